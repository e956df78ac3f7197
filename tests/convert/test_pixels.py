"""What becomes of an image's pixels: what is read of preprocessor_config.json, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convert import describe, pixels, vision_config
from convert.catalog import RECIPES
from convert.checkpoint import Checkpoint
from service.errors import BakeError
from service.manifest import Source
from service.vision import Vision
from tests import qwen, qwen_vl
from tests.qwen_vl import JINA_V4, MAX_PIXELS, MEAN, MIN_PIXELS, PROCESSOR, SIZES, STD

RECIPE = RECIPES[JINA_V4].manifest.vision
FILE = "vision/model.onnx"
EXPECTED = Vision(
    file=FILE,
    prompt=qwen_vl.PROMPT,
    image_token="<|image_pad|>",
    pooled_from="<|vision_start|>",
    pooled_to="<|vision_end|>",
    min_pixels=MIN_PIXELS,
    max_pixels=MAX_PIXELS,
    mean=MEAN,
    std=STD,
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
    window_size=4,
)


def described(found: Mapping[str, object], known: Vision | None = RECIPE) -> Vision:
    assert known is not None
    return pixels.described(known, vision_config.read({"vision_config": SIZES.vision_config}), found, FILE)


def processor(*without: str, **changes: object) -> dict[str, object]:
    content = qwen_vl.processor_config() | changes
    return {key: value for key, value in content.items() if key not in without}


def test_everything_is_read() -> None:
    assert described(processor()) == EXPECTED


def test_a_missing_file_leaves_what_the_recipe_says() -> None:
    assert described({}) == EXPECTED


def test_the_numbers_of_the_file_come_before_those_of_the_recipe() -> None:
    found = described(
        processor(
            min_pixels=784, max_pixels=10_000, image_mean=[0.5, 0.4, 0.3], image_std=[1, 0.2, 0.1], size=None
        )
    )
    assert found == replace(
        EXPECTED, min_pixels=784, max_pixels=10_000, mean=(0.5, 0.4, 0.3), std=(1.0, 0.2, 0.1)
    )


@pytest.mark.parametrize(
    "key", ["min_pixels", "max_pixels", "image_mean", "image_std", "size", "do_resize", "resample"]
)
def test_what_may_be_missing(key: str) -> None:
    other = replace(EXPECTED, min_pixels=1, max_pixels=2, mean=(0, 0, 0), std=(1, 1, 1))
    expected = {
        "image_mean": replace(EXPECTED, mean=other.mean),
        "image_std": replace(EXPECTED, std=other.std),
    }
    assert described(processor(key), other) == expected.get(key, EXPECTED)


@pytest.mark.parametrize(
    "content",
    [
        {"size": {"shortest_edge": 784, "longest_edge": 5000}},
        {"size": {"shortest_edge": 784, "longest_edge": 5000}, "min_pixels": None, "max_pixels": None},
        {"size": {"shortest_edge": 1, "longest_edge": 9}, "min_pixels": 784, "max_pixels": 5000},
        {"size": {"longest_edge": 5000}, "min_pixels": 784},
        {"min_pixels": 784, "max_pixels": 5000},
    ],
    ids=str,
)
def test_limits_are_under_their_names_or_sides_of_a_square(content: dict[str, object]) -> None:
    assert described(content) == replace(EXPECTED, min_pixels=784, max_pixels=5000)


@pytest.mark.parametrize("size", [None, 224, [1, 2], "large", {"height": 224, "width": 224}], ids=str)
def test_a_size_of_another_form_says_nothing(size: object) -> None:
    assert described({"size": size}) == EXPECTED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"do_resize": False}, "do_resize false"),
        ({"do_rescale": False}, "do_rescale false"),
        ({"do_normalize": False}, "do_normalize false"),
        ({"do_convert_rgb": False}, "do_convert_rgb false"),
        ({"do_resize": False, "do_normalize": False}, "do_resize, do_normalize false"),
        ({"resample": 2}, "resample 2: the service knows only 3, bicubic"),
        ({"resample": "bicubic"}, "resample 'bicubic'"),
        ({"resample": None}, "resample None"),
        ({"rescale_factor": 1 / 256}, "rescale_factor 0.00390625 instead of 1/255"),
        ({"rescale_factor": 1}, "rescale_factor 1 instead"),
        ({"rescale_factor": None}, "rescale_factor None instead"),
        ({"patch_size": 16}, "patch_size 16, config.json has 14 for the tower"),
        ({"temporal_patch_size": 1}, "temporal_patch_size 1, config.json has 2 for the tower"),
        ({"merge_size": 1}, "merge_size 1, config.json has 2 for the tower"),
        ({"min_pixels": -1}, "min_pixels -1, must be a positive integer"),
        ({"min_pixels": "few"}, "min_pixels 'few'"),
        ({"min_pixels": 3136.5}, "min_pixels 3136.5"),
        ({"max_pixels": [1]}, r"max_pixels \[1\]"),
        ({"size": {"shortest_edge": "few"}, "min_pixels": None}, "min_pixels 'few'"),
        ({"min_pixels": 5000, "max_pixels": 4999}, "min_pixels 5000 above max_pixels 4999"),
        ({"max_pixels": 3135}, "min_pixels 3136 above max_pixels 3135"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean \[0.5, 0.5\], must be 3 numbers"),
        ({"image_mean": 0.5}, "image_mean 0.5, must be 3 numbers"),
        ({"image_mean": None}, "image_mean None, must be 3 numbers"),
        ({"image_std": ["a", 1, 1]}, "image_std .* must be 3 numbers"),
        ({"image_std": [None, 1, 1]}, "image_std .* must be 3 numbers"),
        ({"image_std": [1, 1, 1, 1]}, "image_std .* must be 3 numbers"),
    ],
    ids=str,
)
def test_what_the_service_cannot_do_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BakeError, match=f"preprocessor_config.json has {reason}"):
        described(processor(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"image_std": [0, 1, 1]},
        {"image_std": [-0.3, 1, 1]},
        {"image_std": [float("nan"), 1, 1]},
        {"image_std": [float("inf"), 1, 1]},
        {"image_mean": [float("nan"), 0, 0]},
        {"image_mean": [float("inf"), 0, 0]},
    ],
    ids=str,
)
def test_channels_that_cannot_be_divided_by_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BakeError, match=next(iter(changes))):
        described(processor(**changes))


@pytest.mark.parametrize(
    ("name", "value"), [("min_pixels", 0), ("max_pixels", 0), ("min_pixels", True)], ids=str
)
def test_a_limit_that_is_no_number_of_pixels_is_refused(name: str, value: object) -> None:
    """Not taken as absent."""
    with pytest.raises(BakeError, match=name):
        described(processor(**{name: value}))


@pytest.mark.parametrize("changes", [{"do_resize": None}, {"rescale_factor": 0.00392156862745098}], ids=str)
def test_what_changes_no_number_is_taken(changes: dict[str, Any]) -> None:
    assert described(processor(**changes)) == EXPECTED


# --- in a manifest ----------------------------------------------------------------------------------------


def manifest_vision(folder: Path) -> Vision | None:
    return describe.described(RECIPES[JINA_V4], Checkpoint(folder), Source(id="here")).vision


@pytest.mark.parametrize("has_processor", [True, False])
def test_a_manifest_says_what_becomes_of_pixels(tmp_path: Path, *, has_processor: bool) -> None:
    layout = replace(qwen_vl.PUBLISHED, has_processor=has_processor)
    folder = qwen_vl.write_jina_v4(tmp_path, layout=layout)
    assert (folder / PROCESSOR).exists() == has_processor
    assert manifest_vision(folder) == EXPECTED


def test_a_manifest_takes_the_limits_of_the_checkpoint(tmp_path: Path) -> None:
    folder = qwen_vl.write_jina_v4(tmp_path)
    qwen.change_json(folder / PROCESSOR, max_pixels=37_788_800)
    assert manifest_vision(folder) == replace(EXPECTED, max_pixels=37_788_800)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    folder = qwen_vl.write_jina_v4(tmp_path)
    (folder / PROCESSOR).write_text("[]")
    with pytest.raises(BakeError, match="preprocessor_config.json is not a JSON object"):
        manifest_vision(folder)


def test_a_model_of_texts_alone_says_nothing(tmp_path: Path) -> None:
    folder = qwen.write_qwen3_embedding(tmp_path)
    opened = Checkpoint(folder)
    assert describe.described(RECIPES["qwen3-embedding-0.6b"], opened, Source(id="here")).vision is None
