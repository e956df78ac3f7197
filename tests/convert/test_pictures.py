"""The built-in images, and their vectors by a tiny jina-embeddings-v4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert import pictures, running
from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from service import images
from service import manifest as contract
from service.embedding import EmbeddingModel
from service.manifest import Precision
from service.options import EmbedOptions
from tests import qwen_vl
from tests.processes import PROJECT
from tests.qwen_vl import JINA_V4

FILES = sorted(pictures.FOLDER.iterdir())
MAX_BYTES = 400_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    request = BakeRequest(
        out=out,
        source=str(qwen_vl.write_jina_v4(out / ".checkpoint")),
        precisions=(Precision.FP32, Precision.INT4),
        tasks=("retrieval",),
        verification=Verification.SKIP,
    )
    bake(RECIPES[JINA_V4], request)
    return out / JINA_V4


def opened(folder: Path, precision: Precision) -> EmbeddingModel:
    manifest = contract.load(folder)
    (variant,) = [variant for variant in manifest.variants if variant.precision == precision]
    model = running.open_variant(folder, manifest, variant)
    assert isinstance(model, EmbeddingModel)
    return model


def test_the_files_are_small_and_without_metadata() -> None:
    assert 12 <= len(FILES) <= 16
    assert sum(path.stat().st_size for path in FILES) < MAX_BYTES
    for path in FILES:
        with Image.open(path) as image:
            assert image.mode == "RGB", path.name
            assert not image.getexif(), path.name
            assert image.width * image.height <= 280 * 224, path.name


def test_the_package_and_its_readme_name_them() -> None:
    assert '"data/images/*"' in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    readme = (PROJECT / "convert" / "data" / "README.md").read_text(encoding="utf-8")
    assert f"| {len(FILES)} small images" in readme
    assert (PROJECT / "convert" / "data" / "LICENSE.scikit-image.txt").is_file()


def test_the_images_have_the_size_that_the_model_takes(bundle: Path) -> None:
    vision = contract.load(bundle).vision
    assert vision
    cell = vision.patch_size * vision.merge_size
    given = pictures.pictures(vision)
    assert len(given) == len(FILES)
    for pixels, path in zip(given, FILES, strict=True):
        height, width, channels = pixels.shape
        assert pixels.dtype == np.uint8
        assert channels == 3
        assert (height % cell, width % cell) == (0, 0)
        with Image.open(path) as image:
            assert images.smart_resize(image.height, image.width, vision) == (height, width)


def test_each_image_has_a_vector_of_its_own_which_quantization_moves(bundle: Path) -> None:
    vision = contract.load(bundle).vision
    assert vision
    given = pictures.pictures(vision)
    options = EmbedOptions(task="retrieval", prompt_name="passage")
    seen: list[int] = []
    exact, near = (
        pictures.image_vectors(opened(bundle, precision), options, given, seen.append)
        for precision in (Precision.FP32, Precision.INT4)
    )
    assert seen == [1] * 2 * len(FILES)
    assert exact.shape == (len(FILES), qwen_vl.SIZES.text.hidden)
    assert np.allclose(np.linalg.norm(exact, axis=1), 1, atol=1e-5)
    alike = exact @ exact.T - np.eye(len(FILES))
    assert alike.max() < 1 - 1e-6
    cosines = np.einsum("nd,nd->n", exact, near)
    assert 0.5 < cosines.mean() < 1 - 1e-4
