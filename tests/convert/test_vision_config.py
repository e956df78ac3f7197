"""Sizes of the vision tower and of the text layers beside it: what is read of config.json or refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convert import build, configs, decoder_config, vision_config
from convert.catalog import RECIPES
from convert.checkpoint import Checkpoint
from convert.decoder_config import DecoderConfig
from convert.recipe import Architecture
from convert.vision_config import VisionConfig
from service.errors import BakeError
from tests import qwen, qwen_vl
from tests.qwen_vl import JINA_V4, SIZES

VL = Architecture.QWEN2_5_VL
NEEDED = (
    "depth", "hidden_size", "num_heads", "intermediate_size", "out_hidden_size", "patch_size",
    "temporal_patch_size", "spatial_merge_size", "window_size", "fullatt_block_indexes",
)  # fmt: skip
NEEDED_OF_TEXT = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
)  # fmt: skip
PUBLISHED = {  # of the real model
    "depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 2048,
    "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu",
}  # fmt: skip


def tower(*without: str, **changes: object) -> dict[str, object]:
    content = SIZES.vision_config | changes
    return {"vision_config": {key: value for key, value in content.items() if key not in without}}


def text(*without: str, **changes: object) -> dict[str, object]:
    """Return what is said of the text layers, at the top alone."""
    content = SIZES.text_config | changes
    return {key: value for key, value in content.items() if key not in without}


# --- the tower --------------------------------------------------------------------------------------------


def test_every_size_is_read() -> None:
    found = vision_config.read(tower())
    assert found == VisionConfig(
        num_layers=3,
        hidden_size=32,
        num_heads=2,
        feed_forward_size=44,
        output_size=64,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        window_size=4,
        full_layers=(1,),
        norm_eps=1e-6,
        rotary_base=10_000.0,
    )
    assert (found.head_size, found.patch_values, found.patches_of_cell) == (16, 1176, 4)


def test_the_published_sizes_are_read() -> None:
    found = vision_config.read({"vision_config": PUBLISHED})
    assert (found.head_size, found.patch_values, found.window_size) == (80, 1176, 4)
    assert found.full_layers == (7, 15, 23, 31)


@pytest.mark.parametrize(
    ("window", "patch", "merge", "cells"), [(112, 14, 2, 4), (128, 16, 2, 4), (119, 14, 2, 4), (56, 14, 4, 1)]
)
def test_a_window_has_whole_cells(window: int, patch: int, merge: int, cells: int) -> None:
    """As the reference divides: a window that is no whole number of cells loses what is over."""
    content = tower(window_size=window, patch_size=patch, spatial_merge_size=merge)
    assert vision_config.read(content).window_size == cells


@pytest.mark.parametrize(
    "changes",
    [{"in_channels": None, "in_chans": 3}, {"in_chans": 3}, {"hidden_act": "silu"}],
    ids=str,
)
def test_what_may_be_missing(changes: dict[str, Any]) -> None:
    plain = vision_config.read(tower())
    content = {**SIZES.vision_config, **changes}
    absent = {"in_channels", "in_chans", "hidden_act"} - set(changes)
    given = {key: value for key, value in content.items() if value is not None and key not in absent}
    assert vision_config.read({"vision_config": given}) == plain


@pytest.mark.parametrize("found", [None, [], "vision", 3], ids=str)
def test_a_checkpoint_without_tower_is_refused(found: object) -> None:
    with pytest.raises(BakeError, match="lacks 'vision_config'"):
        vision_config.read({"vision_config": found})
    with pytest.raises(BakeError, match="lacks 'vision_config'"):
        vision_config.read(text())


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(BakeError, match=f"lacks '{key}' in vision_config"):
        vision_config.read(tower(key))


@pytest.mark.parametrize("value", ["many", None, [2], {}, 2.5, True], ids=str)
@pytest.mark.parametrize("key", NEEDED[:-1])
def test_a_size_that_is_no_number_is_refused(key: str, value: object) -> None:
    with pytest.raises(BakeError, match="no number in vision_config"):
        vision_config.read(tower(**{key: value}))


@pytest.mark.parametrize("value", [None, 7, ["last"], [None], [1.5]], ids=str)
def test_full_blocks_that_are_no_numbers_are_refused(value: object) -> None:
    with pytest.raises(BakeError, match="no number in vision_config"):
        vision_config.read(tower(fullatt_block_indexes=value))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' in vision_config"),
        ({"hidden_act": None}, "hidden_act None in vision_config"),
        ({"in_channels": 1}, "1 channels in vision_config, not 3"),
        ({"in_channels": 4, "in_chans": 3}, "4 channels"),
        ({"depth": 0}, "below 1"),
        ({"hidden_size": 0}, "below 1"),
        ({"num_heads": 0}, "below 1"),
        ({"patch_size": 0}, "below 1"),
        ({"patch_size": -14}, "below 1"),
        ({"spatial_merge_size": 0}, "below 1"),
        ({"window_size": 0}, "smaller than a cell"),
        ({"window_size": 27}, "smaller than a cell"),
        ({"window_size": -112}, "smaller than a cell"),
        ({"num_heads": 3}, "hidden_size 32 and num_heads 3"),
        ({"num_heads": 16}, "multiple of 4"),
        ({"hidden_size": 36, "num_heads": 2}, "multiple of 4"),
    ],
    ids=str,
)
def test_what_the_graph_cannot_represent_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BakeError, match=reason):
        vision_config.read(tower(**changes))


def test_a_tower_whose_vectors_are_no_words_is_refused(tmp_path: Path) -> None:
    folder = qwen_vl.write_jina_v4(tmp_path)
    qwen.change_json(folder / "config.json", vision_config={**SIZES.vision_config, "out_hidden_size": 32})
    with pytest.raises(BakeError, match="out_hidden_size 32, the words have 64"):
        build.tower(RECIPES[JINA_V4], Checkpoint(folder))


def test_only_a_model_that_takes_images_has_a_tower(tmp_path: Path) -> None:
    folder = qwen.write_qwen3_embedding(tmp_path)
    assert build.tower(RECIPES["qwen3-embedding-0.6b"], Checkpoint(folder)) is None


# --- the text layers --------------------------------------------------------------------------------------


def test_the_text_layers_are_read() -> None:
    found = configs.read(VL, SIZES.config)
    assert found == DecoderConfig(
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_size=16,
        hidden_size=64,
        feed_forward_size=80,
        vocabulary_size=1100,
        norm_eps=qwen_vl.EPS,
        max_positions=4096,
        rotary_base=qwen_vl.THETA,
        rotary_sections=(2, 3, 3),
        has_biases=True,
        has_head_norms=False,
        is_tied=True,
    )


def test_text_sizes_may_be_at_the_top_or_in_a_part_of_their_own() -> None:
    """The files of transformers before 4.52, since then, and both in one."""
    expected = configs.read(VL, SIZES.config)
    flat = text("model_type", model_type="qwen2_5_vl") | tower()
    nested = {"model_type": "qwen2_5_vl", "text_config": SIZES.text_config} | tower()
    for content in (flat, flat | {"text_config": None}, nested):
        assert configs.read(VL, content) == expected


def test_the_part_of_the_text_layers_is_right_where_two_differ() -> None:
    content = SIZES.config | {"hidden_size": 1, "text_config": SIZES.text_config}
    assert configs.read(VL, content) == configs.read(VL, SIZES.config)


@pytest.mark.parametrize("found", [["text"], "text", 3], ids=str)
def test_a_part_that_is_no_object_is_refused(found: object) -> None:
    with pytest.raises(BakeError, match="text_config .* must be an object"):
        configs.read(VL, SIZES.config | {"text_config": found})


@pytest.mark.parametrize("key", NEEDED_OF_TEXT)
def test_a_missing_key_of_the_text_layers_is_named(key: str) -> None:
    with pytest.raises(BakeError, match=f"lacks '{key}'"):
        configs.read(VL, {"text_config": text(key)})


# --- positions in three streams ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scaling",
    [
        {"mrope_section": [2, 3, 3]},
        {"mrope_section": [2, 3, 3], "type": "mrope"},
        {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        {"mrope_section": [2, 3, 3], "rope_type": "mrope", "type": "mrope"},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_newer", [False, True])
def test_sections_are_read_where_either_release_writes_them(
    scaling: dict[str, object], *, is_newer: bool
) -> None:
    """transformers 5 writes them into `rope_parameters`, and the base of the angles with them."""
    content = text("rope_scaling", rope_scaling=scaling)
    if is_newer:
        parameters = {"rope_theta": qwen_vl.THETA, **scaling}
        content = text("rope_scaling", "rope_theta", rope_parameters=parameters)
    else:
        content["rope_scaling"] = scaling
    found = decoder_config.read(VL, {"text_config": content})
    assert (found.rotary_sections, found.rotary_base) == ((2, 3, 3), qwen_vl.THETA)


@pytest.mark.parametrize("scaling", [None, {}, {"rope_type": "default"}, {"mrope_section": None}], ids=str)
def test_missing_sections_are_named(scaling: object) -> None:
    with pytest.raises(BakeError, match="lacks 'mrope_section'"):
        decoder_config.read(VL, text("rope_scaling", rope_scaling=scaling) | {"rope_scaling": scaling})


@pytest.mark.parametrize(
    "sections", [[2, 3, 4], [2, 3], [8], [2, 2, 2, 2], [16, 24, 24], [1, 3, 3], [4, 4, 8]], ids=str
)
def test_sections_that_do_not_share_the_angles_are_refused(sections: list[int]) -> None:
    with pytest.raises(BakeError, match="mrope_section"):
        decoder_config.read(VL, text() | {"rope_scaling": {"mrope_section": sections}})


@pytest.mark.parametrize("sections", [[], [-2, 5, 5], [9, 0, -1]], ids=str)
def test_missing_and_negative_sections_are_refused(sections: list[int]) -> None:
    with pytest.raises(BakeError, match="mrope_section"):
        decoder_config.read(VL, text() | {"rope_scaling": {"mrope_section": sections}})


@pytest.mark.parametrize("sections", [["a", 3, 3], [2.5, 2.5, 3], [None, 4, 4]], ids=str)
def test_sections_that_are_no_numbers_are_refused(sections: list[object]) -> None:
    with pytest.raises(BakeError, match="no number"):
        decoder_config.read(VL, text() | {"rope_scaling": {"mrope_section": sections}})


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 4.0, "mrope_section": [2, 3, 3]},
        {"type": "linear", "mrope_section": [2, 3, 3]},
        {"mrope_section": [2, 3, 3], "mrope_interleaved": True},
        "mrope",
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_scaled_positions_are_refused(key: str, scaling: object) -> None:
    with pytest.raises(BakeError, match=f"scales positions \\({key}"):
        decoder_config.read(VL, text() | {key: scaling})


@pytest.mark.parametrize("architecture", [Architecture.QWEN2, Architecture.QWEN3])
def test_a_text_model_has_one_stream(architecture: Architecture) -> None:
    sizes = replace(SIZES.text, is_qwen3=architecture == Architecture.QWEN3)
    assert decoder_config.read(architecture, sizes.config).rotary_sections == ()
    with pytest.raises(BakeError, match="mrope_section"):
        scaling = {"mrope_section": [2, 3, 3], "rope_type": "default"}
        decoder_config.read(architecture, sizes.config | {"rope_scaling": scaling})


# --- other models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["qwen2", "qwen2_vl", "qwen3_vl", "qwen3", "llava"])
def test_another_model_is_refused(model_type: str) -> None:
    with pytest.raises(BakeError, match=f"model_type '{model_type}': this recipe reads only qwen2_5_vl"):
        configs.read(VL, text() | tower() | {"model_type": model_type})


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_another_model_with_text_layers_of_its_own_kind_is_refused(model_type: str) -> None:
    nested = {**SIZES.text_config, "model_type": f"{model_type}_text"}
    with pytest.raises(BakeError, match=f"model_type '{model_type}_text'"):
        configs.read(VL, SIZES.config | {"model_type": model_type, "text_config": nested})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window"),
        ({"attention_bias": True}, "attention_bias"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"num_attention_heads": 3}, "num_attention_heads 3"),
        ({"hidden_size": 128}, "mrope_section"),
        ({"head_dim": 24}, "head_dim 24"),
    ],
    ids=str,
)
def test_text_layers_that_the_graph_cannot_represent_are_refused(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BakeError, match=reason):
        configs.read(VL, SIZES.config | {"text_config": SIZES.text_config | changes})


def test_another_text_model_is_not_read_as_one_that_takes_images(tmp_path: Path) -> None:
    folder = qwen.write_jina_code(tmp_path)
    shutil.rmtree(folder / "1_Pooling")
    with pytest.raises(BakeError, match="model_type 'qwen2': this recipe reads only qwen2_5_vl"):
        build.build(RECIPES[JINA_V4], Checkpoint(folder), ("none",))


@pytest.mark.parametrize("indexes", [[3], [0, 7], [-1]], ids=str)
def test_full_blocks_that_do_not_exist_are_refused(indexes: list[int]) -> None:
    config = qwen_vl.SIZES.config
    tower = {**qwen_vl.SIZES.vision_config, "fullatt_block_indexes": indexes}
    with pytest.raises(BakeError, match="fullatt_block_indexes"):
        vision_config.read({**config, "vision_config": tower})
