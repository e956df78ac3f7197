"""Sizes of Qwen-family decoders: what is read of config.json, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from convert import configs, decoder_config
from convert.decoder_config import DecoderConfig
from convert.recipe import Architecture
from service.errors import BakeError
from tests.qwen import CODE_SIZES, EMBEDDING_SIZES, EPS, THETA

SIZES = {Architecture.QWEN2: CODE_SIZES, Architecture.QWEN3: EMBEDDING_SIZES}
NEEDED = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
)  # fmt: skip


def changed(architecture: Architecture, *without: str, **changes: object) -> dict[str, object]:
    content = SIZES[architecture].config | changes
    return {key: value for key, value in content.items() if key not in without}


@pytest.mark.parametrize("architecture", SIZES)
def test_every_size_is_read(architecture: Architecture) -> None:
    sizes, is_qwen3 = SIZES[architecture], architecture == Architecture.QWEN3
    found = configs.read(architecture, changed(architecture))
    assert found == DecoderConfig(
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        head_size=sizes.head,
        hidden_size=sizes.hidden,
        feed_forward_size=sizes.feed_forward,
        vocabulary_size=sizes.rows,
        norm_eps=EPS,
        max_positions=sizes.positions,
        rotary_base=THETA,
        has_biases=not is_qwen3,
        has_head_norms=is_qwen3,
        is_tied=True,
    )
    assert isinstance(found, DecoderConfig)
    assert (found.query_size, found.kv_size) == (sizes.heads * sizes.head, sizes.kv_heads * sizes.head)


@pytest.mark.parametrize("absent", [{}, {"head_dim": None}], ids=["missing", "null"])
def test_a_head_is_by_default_its_share_of_the_hidden_size(absent: dict[str, None]) -> None:
    content = changed(Architecture.QWEN2, "head_dim", hidden_size=128) | absent
    assert decoder_config.read(Architecture.QWEN2, content).head_size == 128 // CODE_SIZES.heads


@pytest.mark.parametrize("theta", [10_000, 5e6, "1000000"])
@pytest.mark.parametrize("scaling", [{}, {"rope_type": "default"}, {"type": "default"}], ids=str)
def test_the_base_of_angles_is_read_where_either_release_writes_it(
    theta: object, scaling: dict[str, object]
) -> None:
    """transformers 5 moves `rope_theta` into `rope_parameters`."""
    older = changed(Architecture.QWEN3, rope_theta=theta, rope_scaling=scaling or None)
    newer = changed(
        Architecture.QWEN3, "rope_theta", "rope_scaling", rope_parameters={"rope_theta": theta, **scaling}
    )
    for content in (older, newer):
        assert decoder_config.read(Architecture.QWEN3, content).rotary_base == float(str(theta))


@pytest.mark.parametrize(("tied", "expected"), [(True, True), (False, False)])
def test_the_head_is_tied_as_the_config_says(tied: bool, expected: bool) -> None:
    content = changed(Architecture.QWEN3, tie_word_embeddings=tied)
    assert decoder_config.read(Architecture.QWEN3, content).is_tied == expected


@pytest.mark.parametrize("key", NEEDED)
@pytest.mark.parametrize("architecture", SIZES)
def test_a_missing_key_is_named(architecture: Architecture, key: str) -> None:
    with pytest.raises(BakeError, match=f"lacks '{key}'"):
        decoder_config.read(architecture, changed(architecture, key))


@pytest.mark.parametrize("value", ["many", None, [2], {}, 2.5, True], ids=str)
@pytest.mark.parametrize("key", NEEDED[:-2])
def test_a_size_that_is_no_number_is_refused(key: str, value: object) -> None:
    with pytest.raises(BakeError, match="no number"):
        decoder_config.read(Architecture.QWEN3, changed(Architecture.QWEN3, **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"), [("head_dim", "wide"), ("rms_norm_eps", "small"), ("rope_theta", [1e6])]
)
def test_what_has_a_default_or_a_fraction_must_be_a_number_too(key: str, value: object) -> None:
    with pytest.raises(BakeError, match="no number"):
        decoder_config.read(Architecture.QWEN3, changed(Architecture.QWEN3, **{key: value}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "qwen2_5_vl"}, "model_type 'qwen2_5_vl'"),
        ({"model_type": "qwen2"}, "reads only qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_act": None}, "hidden_act None"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window"),
        ({"attention_bias": True}, "attention_bias"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": "yarn"}, "yarn"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_parameters .*yarn"),
        ({"num_attention_heads": 5}, "num_attention_heads 5 is not a multiple of num_key_value_heads 2"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim 15"),
        ({"head_dim": -2}, "head_dim -2"),
        ({"num_hidden_layers": 0}, "below 1"),
        ({"num_attention_heads": 0}, "below 1"),
        ({"num_key_value_heads": 0}, "below 1"),
        ({"hidden_size": 0}, "below 1"),
        ({"max_position_embeddings": -1}, "below 1"),
    ],
    ids=str,
)
def test_what_the_graph_cannot_represent_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BakeError, match=reason):
        decoder_config.read(Architecture.QWEN3, changed(Architecture.QWEN3, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention", "full_attention"]},
        {"layer_types": None},
        {"use_sliding_window": False, "sliding_window": 4096},
        {"rope_parameters": None},
        {"rope_scaling": {}},
    ],
    ids=str,
)
def test_what_changes_no_number_is_taken(changes: dict[str, Any]) -> None:
    plain = decoder_config.read(Architecture.QWEN3, changed(Architecture.QWEN3))
    assert decoder_config.read(Architecture.QWEN3, changed(Architecture.QWEN3, **changes)) == plain


def test_a_config_without_model_type_is_read_as_the_recipe_says() -> None:
    content = changed(Architecture.QWEN2, "model_type")
    assert decoder_config.read(Architecture.QWEN2, content).has_biases


@pytest.mark.parametrize("head_size", [8, 12, 24])
def test_a_head_that_attention_cannot_run_is_refused(head_size: int) -> None:
    with pytest.raises(BakeError, match=f"head_dim {head_size}"):
        decoder_config.read(Architecture.QWEN3, EMBEDDING_SIZES.config | {"head_dim": head_size})


@pytest.mark.parametrize("layers", [[None, "full_attention", "x"], "sliding_attention"], ids=str)
def test_unknown_layer_types_are_refused(layers: object) -> None:
    with pytest.raises(BakeError, match="layer_types"):
        decoder_config.read(Architecture.QWEN3, EMBEDDING_SIZES.config | {"layer_types": layers})


def test_a_scaling_without_type_is_refused() -> None:
    with pytest.raises(BakeError, match="rope_scaling"):
        decoder_config.read(Architecture.QWEN3, EMBEDDING_SIZES.config | {"rope_scaling": {"factor": 4.0}})


def test_two_different_bases_are_refused() -> None:
    content = EMBEDDING_SIZES.config | {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}
    with pytest.raises(BakeError, match="two bases"):
        decoder_config.read(Architecture.QWEN3, content)


@pytest.mark.parametrize("eps", [float("nan"), 0, -1e-6, 1.5])
def test_an_eps_that_cannot_be_is_refused(eps: float) -> None:
    with pytest.raises(BakeError, match="rms_norm_eps"):
        decoder_config.read(Architecture.QWEN3, EMBEDDING_SIZES.config | {"rms_norm_eps": eps})
