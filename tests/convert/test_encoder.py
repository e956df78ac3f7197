"""The BERT graph against a second implementation in numpy, in float64, written from the formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from convert import encoder_config
from convert.recipe import Architecture
from service.errors import BakeError
from service.session import Session, SessionSettings, pad
from tests import checkpoints, xlmr
from tests.conftest import MODEL

TOLERANCE = 2e-5
erf = np.vectorize(math.erf)


def layer_norm(weights: dict[str, np.ndarray], name: str, states: np.ndarray, eps: float) -> np.ndarray:
    centred = states - states.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])


def linear(weights: dict[str, np.ndarray], name: str, states: np.ndarray) -> np.ndarray:
    return np.asarray(states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])


def bert(weights: dict[str, np.ndarray], ids: np.ndarray, positions: np.ndarray, eps: float) -> np.ndarray:
    """Return the last hidden states (tokens, hidden) of one text."""
    states = weights["embeddings.word_embeddings.weight"][ids]
    states = states + weights["embeddings.position_embeddings.weight"][positions]
    states = states + weights["embeddings.token_type_embeddings.weight"][0]
    states = layer_norm(weights, "embeddings.LayerNorm", states, eps)
    for layer in range(checkpoints.LAYERS):
        name = f"encoder.layer.{layer}"
        heads = [
            linear(weights, f"{name}.attention.self.{part}", states).reshape(len(ids), checkpoints.HEADS, -1)
            for part in ("query", "key", "value")
        ]
        scores = np.einsum("qhd,khd->hqk", heads[0], heads[1]) / math.sqrt(heads[0].shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        context = np.einsum("hqk,khd->qhd", shares, heads[2]).reshape(len(ids), -1)
        output = linear(weights, f"{name}.attention.output.dense", context)
        states = layer_norm(weights, f"{name}.attention.output.LayerNorm", output + states, eps)
        wide = linear(weights, f"{name}.intermediate.dense", states)
        activated = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        output = linear(weights, f"{name}.output.dense", activated)
        states = layer_norm(weights, f"{name}.output.LayerNorm", output + states, eps)
    return states


@pytest.mark.parametrize("lengths", [(1,), (48,), (7, 7), (3, 40, 17)], ids=str)
def test_states_and_mean_equal_numpy(tiny_models: Path, lengths: tuple[int, ...]) -> None:
    weights = {name: value.astype(np.float64) for name, value in checkpoints.bert_tensors(0).items()}
    draw = np.random.default_rng(2)
    texts = [draw.integers(0, checkpoints.VOCABULARY, length) for length in lengths]
    session = Session(tiny_models / MODEL / "fp32" / "model.onnx", SessionSettings(num_threads=2))
    pooled, states = session.run(pad(texts), ["pooled", "token_embeddings"])
    for row, ids in enumerate(texts):
        expected = bert(weights, ids, np.arange(len(ids)), 1e-12)
        assert np.abs(states[row, : len(ids)] - expected).max() < TOLERANCE
        assert np.abs(pooled[row] - expected.mean(axis=0)).max() < TOLERANCE


@pytest.mark.parametrize(
    "texts",
    [
        [[0, 50, 60, 70, 2]],
        [[0, 50, 1, 60, 1, 1, 70, 2]],
        [[0, 1, 1, 9, 2], [0, 9, 2], [0] + [7] * 40 + [1, 2]],
    ],
    ids=["plain", "padding-inside", "batch"],
)
def test_xlm_roberta_gives_padding_tokens_of_a_text_no_place(tmp_path: Path, texts: list[list[int]]) -> None:
    """A text may contain `<pad>`: transformers counts positions past it, and attends to it all the same."""
    source = xlmr.write_bge_m3(tmp_path / "checkpoint", as_torch=False)
    bundle = xlmr.bake_tiny(tmp_path / "models", xlmr.BGE_M3, source)
    stored = load_file(source / "model.safetensors")
    weights = {name.removeprefix("roberta."): value.astype(np.float64) for name, value in stored.items()}
    session = Session(bundle / "fp32" / "model.onnx", SessionSettings(num_threads=2))
    (pooled,) = session.run(pad([np.array(ids) for ids in texts]), ["pooled"])
    for row, ids in enumerate(map(np.array, texts)):
        is_counted = ids != 1
        expected = bert(weights, ids, np.cumsum(is_counted) * is_counted + 1, 1e-5)
        assert np.abs(pooled[row] - expected[0]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "gelu_new"}, "gelu_new"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"num_attention_heads": 5}, "multiple"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
    ],
)
def test_what_the_graph_cannot_represent_is_refused(
    tiny_checkpoint: Path, change: dict[str, object], reason: str
) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text()) | change
    config = {name: value for name, value in config.items() if value is not None}
    with pytest.raises(BakeError, match=reason):
        encoder_config.read(Architecture.BERT, config)
