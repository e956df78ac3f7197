"""The sizes of the documentation: those computed of shapes are those of bundles."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.catalog import RECIPES
from convert.source import locate
from service import manifest
from service.manifest import Precision
from tests import qwen, qwen_vl, xlmr
from tests.bench import full_size_qwen, sizes
from tests.bench.full_size_qwen import JINA_CODE_15B, QWEN3_4B, RERANKER_4B
from tests.bench.full_size_v4 import ADAPTERS, JINA_V4
from tests.conftest import MODEL
from tests.processes import PROJECT

WRITERS: dict[str, Callable[[Path], Path]] = {
    xlmr.V3: xlmr.write_jina_v3,
    qwen.QWEN3_EMBEDDING: qwen.write_qwen3_embedding,
    qwen_vl.JINA_V4: qwen_vl.write_jina_v4,
}
TINY, REAL = 1.3, 1.02  # at most so much larger: weights begin at whole pages, which counts in tiny models


def disk_bytes(bundle: Path, precision: Precision) -> int:
    folders = (bundle / precision, bundle / "vision")
    return sum(path.stat().st_size for folder in folders for path in folder.glob("*.data"))


@pytest.mark.parametrize("model", WRITERS)
def test_a_computed_size_is_that_of_a_tiny_bundle(model: str, tmp_path: Path) -> None:
    source = WRITERS[model](tmp_path / "checkpoint")
    bundle = xlmr.bake_tiny(tmp_path, model, source)
    found = sizes.of_checkpoint(RECIPES[model], source, [Precision.FP32])[Precision.FP32].disk
    assert found <= disk_bytes(bundle, Precision.FP32) <= TINY * found


def test_a_computed_size_is_that_of_the_default_model(real_models: Path) -> None:
    recipe, precisions = RECIPES[MODEL], manifest.load(real_models / MODEL).precisions
    source, _ = locate(recipe, None, offline=False)
    computed = sizes.of_checkpoint(recipe, source, precisions)
    for precision, found in computed.items():
        assert found.disk <= disk_bytes(real_models / MODEL, precision) <= REAL * found.disk
    _, disk, memory = tables("docs/models.md")
    for number, (precision, found) in enumerate(computed.items()):
        assert precision == sizes.PRECISIONS[number]
        documented = [float(table[MODEL][number]) for table in (disk, memory)]
        assert documented == pytest.approx([found.disk / 1e9, found.memory / 1e9], abs=0.005)


def test_the_full_sizes_have_the_parameters_of_the_published_checkpoints() -> None:
    full = {
        "jina-code-embeddings-1.5b": JINA_CODE_15B,
        "qwen3-embedding-4b": QWEN3_4B,
        "qwen3-reranker-4b": RERANKER_4B,
    }
    for name, decoder in full.items():
        shapes = full_size_qwen.decoder_shapes(decoder, decoder.layers)
        assert sum(map(math.prod, shapes.values())) == RECIPES[name].num_parameters
    assert JINA_V4.num_parameters(ADAPTERS) == RECIPES[qwen_vl.JINA_V4].num_parameters


def test_every_model_has_a_size() -> None:
    assert {*sizes.XLMR_WRITERS, *sizes.QWEN_WRITERS, MODEL} == set(RECIPES)


# --- the documentation -----------------------------------------------------------------------------------


def tables(page: str) -> list[dict[str, list[str]]]:
    """Return the tables of a page whose first column names models: the other cells by model."""
    found: list[dict[str, list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", (PROJECT / page).read_text(encoding="utf-8"), re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        if head[0] == "model":
            found.append({re.findall("`([^`]+)`", name)[0]: cells for name, *cells in rows})
    return found


def test_the_tables_name_every_model_and_its_licence() -> None:
    (short,), (facts, *of_sizes) = tables("README.md"), tables("docs/models.md")
    for table in (short, facts, *of_sizes):
        assert [*table] == [*RECIPES]
    assert f"[{len(RECIPES)} models](#models)" in (PROJECT / "README.md").read_text(encoding="utf-8")
    for name, recipe in RECIPES.items():
        assert short[name][0] == facts[name][0] == recipe.manifest.licence.partition(" (")[0]


def test_the_sizes_of_the_readme_are_those_of_the_page() -> None:
    (short,) = tables("README.md")
    _, disk, memory = tables("docs/models.md")
    for name, (_, _, _, *cells) in short.items():
        assert cells == [", ".join(table[name][:2]) for table in (disk, memory)]
