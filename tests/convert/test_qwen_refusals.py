"""What is refused when a checkpoint of the Qwen family is baked: tensors, poolings, kinds, tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from service.errors import BakeError
from tests import qwen, xlmr
from tests.convert.conftest import Copy
from tests.qwen import JINA_CODE, JINA_RERANKER, QWEN3_EMBEDDING, QWEN3_RERANKER, SIZES

SHAPES: list[tuple[str, str, tuple[int, ...]]] = [
    (QWEN3_EMBEDDING, "embed_tokens.weight", (1600, 40)),
    (QWEN3_EMBEDDING, "embed_tokens.weight", (1599, 48)),
    (QWEN3_EMBEDDING, "layers.0.self_attn.q_proj.weight", (48, 48)),
    (QWEN3_EMBEDDING, "layers.1.self_attn.k_proj.weight", (64, 48)),
    (QWEN3_EMBEDDING, "layers.1.self_attn.v_proj.weight", (48, 32)),
    (QWEN3_EMBEDDING, "layers.0.self_attn.o_proj.weight", (64, 48)),
    (QWEN3_EMBEDDING, "layers.0.self_attn.q_norm.weight", (64,)),
    (QWEN3_EMBEDDING, "layers.0.self_attn.k_norm.weight", (1,)),
    (QWEN3_EMBEDDING, "layers.1.mlp.gate_proj.weight", (48, 80)),
    (QWEN3_EMBEDDING, "layers.1.mlp.up_proj.weight", (79, 48)),
    (QWEN3_EMBEDDING, "layers.1.mlp.down_proj.weight", (80, 48)),
    (QWEN3_EMBEDDING, "layers.1.input_layernorm.weight", (47,)),
    (QWEN3_EMBEDDING, "layers.0.post_attention_layernorm.weight", (48, 1)),
    (QWEN3_EMBEDDING, "norm.weight", (1,)),
    (JINA_CODE, "model.layers.1.self_attn.q_proj.bias", (63,)),
    (JINA_CODE, "model.layers.0.self_attn.k_proj.bias", (64,)),
    (JINA_CODE, "model.layers.1.self_attn.v_proj.bias", (1, 32)),
    (JINA_RERANKER, "projector.0.weight", (16, 40)),
    (JINA_RERANKER, "projector.2.weight", (16, 15)),
]


@pytest.mark.parametrize(("name", "tensor", "shape"), SHAPES, ids=str)
def test_a_tensor_of_another_shape_is_named(
    qwen_copy: Copy, tmp_path: Path, name: str, tensor: str, shape: tuple[int, ...]
) -> None:
    folder = qwen_copy(name)
    qwen.change_tensors(folder, **{tensor: np.zeros(shape, dtype=np.float32)})
    with pytest.raises(BakeError, match=rf"{tensor.removeprefix('model.')} has shape \({shape[0]},"):
        xlmr.bake_tiny(tmp_path / "models", name, folder)
    assert not (tmp_path / "models" / name).exists()


@pytest.mark.parametrize(("name", "tensor"), sorted({(name, tensor) for name, tensor, _ in SHAPES}))
def test_a_missing_tensor_is_named(qwen_copy: Copy, tmp_path: Path, name: str, tensor: str) -> None:
    folder = qwen_copy(name)
    qwen.change_tensors(folder, tensor)
    with pytest.raises(BakeError, match=f"has no tensor '{tensor.removeprefix('model.')}'"):
        xlmr.bake_tiny(tmp_path / "models", name, folder)


@pytest.mark.parametrize(("layers", "found"), [(1, 2), (3, 2)])
def test_another_number_of_layers_is_refused(
    qwen_copy: Copy, tmp_path: Path, layers: int, found: int
) -> None:
    folder = qwen_copy(QWEN3_EMBEDDING)
    qwen.change_json(folder / "config.json", num_hidden_layers=layers)
    with pytest.raises(BakeError, match=f"has {found} layers, its config.json says {layers}"):
        xlmr.bake_tiny(tmp_path / "models", QWEN3_EMBEDDING, folder)


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens"])
@pytest.mark.parametrize("name", [JINA_CODE, QWEN3_EMBEDDING])
def test_another_pooling_is_refused(qwen_copy: Copy, tmp_path: Path, name: str, mode: str) -> None:
    folder = qwen_copy(name)
    qwen.write_pooling(folder, mode)
    with pytest.raises(BakeError, match=f"pools by pooling_mode_{mode}: {name} does not"):
        xlmr.bake_tiny(tmp_path / "models", name, folder)


@pytest.mark.parametrize("name", [JINA_CODE, QWEN3_EMBEDDING])
def test_a_classifier_is_not_baked_as_an_embedding_model(qwen_copy: Copy, tmp_path: Path, name: str) -> None:
    folder = qwen_copy(name)
    qwen.change_json(folder / "config.json", architectures=["Qwen3ForSequenceClassification"])
    with pytest.raises(BakeError, match=f"ForSequenceClassification: {name} is an embedding model"):
        xlmr.bake_tiny(tmp_path / "models", name, folder)


@pytest.mark.parametrize(
    ("name", "other"),
    [(JINA_CODE, QWEN3_EMBEDDING), (QWEN3_EMBEDDING, JINA_CODE), (QWEN3_RERANKER, JINA_CODE)],
)
def test_the_other_generation_is_refused(qwen_sources: Path, tmp_path: Path, name: str, other: str) -> None:
    with pytest.raises(BakeError, match=r"has model_type 'qwen\d': this recipe reads only qwen\d"):
        xlmr.bake_tiny(tmp_path, name, qwen_sources / other)


@pytest.mark.parametrize(
    ("name", "missing"),
    [(QWEN3_RERANKER, "yes, no"), (JINA_RERANKER, r"<\|embed_token\|>, <\|rerank_token\|>")],
)
def test_a_tokenizer_without_the_tokens_of_a_head_is_refused(
    qwen_copy: Copy, tmp_path: Path, name: str, missing: str
) -> None:
    folder = qwen_copy(name)
    (folder / "tokenizer.json").write_bytes(xlmr.tokenizer())
    with pytest.raises(BakeError, match=f"has no token {missing}, which"):
        xlmr.bake_tiny(tmp_path / "models", name, folder)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("config.json", {"use_sliding_window": True}),
        ("tokenizer_config.json", {"model_max_length": "long"}),
    ],
    ids=str,
)
def test_a_config_that_is_refused_publishes_nothing(
    qwen_copy: Copy, tmp_path: Path, file: str, change: dict[str, Any]
) -> None:
    folder = qwen_copy(JINA_RERANKER)
    qwen.change_json(folder / file, **change)
    with pytest.raises(BakeError, match=next(iter(change))):
        xlmr.bake_tiny(tmp_path / "models", JINA_RERANKER, folder)
    assert not (tmp_path / "models").exists()


def test_an_untied_reranker_without_head_is_refused(qwen_copy: Copy, tmp_path: Path) -> None:
    folder = qwen_copy(QWEN3_RERANKER)
    qwen.change_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(BakeError, match=r"no tensor 'lm_head\.weight'"):
        xlmr.bake_tiny(tmp_path / "models", QWEN3_RERANKER, folder)


def test_a_head_of_another_size_is_refused(qwen_copy: Copy, tmp_path: Path) -> None:
    folder = qwen_copy(QWEN3_RERANKER)
    qwen.change_json(folder / "config.json", tie_word_embeddings=False)
    head = qwen.lm_head(replace(SIZES[QWEN3_RERANKER], rows=400))
    qwen.change_tensors(folder, **head)
    with pytest.raises(BakeError, match=r"head has shape \(400, 48\)"):
        xlmr.bake_tiny(tmp_path / "models", QWEN3_RERANKER, folder)


@pytest.mark.parametrize(
    ("name", "rows"), [(QWEN3_RERANKER, 200), (QWEN3_RERANKER, 258), (JINA_RERANKER, 300)]
)
def test_a_word_table_without_the_tokens_of_a_head_is_refused(
    qwen_copy: Copy, tmp_path: Path, name: str, rows: int
) -> None:
    folder = qwen_copy(name)
    words = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].astype(np.float32)
    qwen.change_tensors(folder, **{"model.embed_tokens.weight": words[:rows]})
    qwen.change_json(folder / "config.json", vocab_size=rows)
    with pytest.raises(BakeError, match=f"{rows} rows"):
        xlmr.bake_tiny(tmp_path / "models", name, folder)


def test_a_listwise_checkpoint_that_says_how_it_pools_is_refused(qwen_copy: Copy, tmp_path: Path) -> None:
    folder = qwen_copy(JINA_RERANKER)
    qwen.write_pooling(folder, "mean_tokens")
    with pytest.raises(BakeError, match="pools by pooling_mode_mean_tokens"):
        xlmr.bake_tiny(tmp_path / "models", JINA_RERANKER, folder)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (QWEN3_RERANKER, "Qwen3ForSequenceClassification"),
        (JINA_RERANKER, "Qwen3ForSequenceClassification"),
        (QWEN3_EMBEDDING, "JinaForRanking"),
        (QWEN3_RERANKER, "JinaForRanking"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    qwen_copy: Copy, tmp_path: Path, name: str, found: str
) -> None:
    folder = qwen_copy(name)
    qwen.change_json(folder / "config.json", architectures=[found])
    with pytest.raises(BakeError, match=f"{found}: {name} is"):
        xlmr.bake_tiny(tmp_path / "models", name, folder)


def test_a_head_is_used_where_the_config_does_not_say_that_it_is_tied(tmp_path: Path) -> None:
    untied = qwen.write_qwen3_reranker(tmp_path / "untied", tied=False)
    silent = qwen.write_qwen3_reranker(tmp_path / "silent", tied=False)
    qwen.change_json(silent / "config.json", "tie_word_embeddings")
    bundles = [
        xlmr.bake_tiny(tmp_path / f"models{number}", QWEN3_RERANKER, folder)
        for number, folder in enumerate((untied, silent))
    ]
    one, other = ((bundle / "fp32" / "model.onnx").read_bytes() for bundle in bundles)
    assert one == other
