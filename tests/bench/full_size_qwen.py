"""Full-size random checkpoints in the published layouts of the Qwen family. Knows names and shapes.

All are bfloat16, without lm_head. Fewer layers than published may be written, to try something or to
compute what all of them would take.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench import checkpoint_files
from tests.bench.checkpoint_files import BFLOAT16, SAFETENSORS_FILE, Documents, Shapes, Weights
from tests.bench.errors import BenchError

DEFAULT_TOKENIZER = Path("../shared/data/tokenizers/qwen3")
TOKENIZER_FILE = "tokenizer.json.gz"
EMBEDDING_POST_PROCESSOR = "post_processor.qwen3-embedding.json"  # appends <|endoftext|>
RERANKER_TOKENS = "added_tokens.jina-reranker-v3.json"
QWEN25_LAST_TOKEN = 151_664  # what comes after is of Qwen3
NUM_SHARDS_8B = 4
PROJECTED = 512  # of jina-reranker-v3


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder; Qwen3 has norms on queries and keys, Qwen2 has biases instead."""

    model_type: str
    rows: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


QWEN3_06B = Decoder("qwen3", 151_669, 1024, 3072, 28, 16, 8, 128)
QWEN3_8B = Decoder("qwen3", 151_665, 4096, 12_288, 36, 32, 8, 128)
JINA_RERANKER = Decoder("qwen3", 151_936, 1024, 3072, 28, 16, 8, 128)
JINA_CODE_05B = Decoder("qwen2", 151_936, 896, 4864, 24, 14, 2, 64)
JINA_CODE_15B = Decoder("qwen2", 151_936, 1536, 8960, 28, 12, 2, 128)
QWEN3_4B = Decoder("qwen3", 151_665, 2560, 9728, 36, 32, 8, 128)
RERANKER_4B = replace(QWEN3_4B, rows=151_669)


def write_qwen3_embedding_06b(
    folder: Path, tokenizer: Path = DEFAULT_TOKENIZER, num_layers: int = QWEN3_06B.layers
) -> None:
    """Write Qwen/Qwen3-Embedding-0.6B: names without a prefix; 1.19 GB."""
    own = {"architectures": ["Qwen3ForCausalLM"], "eos_token_id": 151643, "max_position_embeddings": 32_768}
    documents = {
        "config.json": config(QWEN3_06B, num_layers) | own,
        **_pooling_file(QWEN3_06B),
        **_tokenizer_files(_embedding_tokenizer(tokenizer)),
    }
    weights = Weights(decoder_shapes(QWEN3_06B, num_layers), BFLOAT16)
    checkpoint_files.write(folder, {SAFETENSORS_FILE: weights}, documents)


def write_qwen3_embedding_8b(
    folder: Path, tokenizer: Path = DEFAULT_TOKENIZER, num_layers: int = QWEN3_8B.layers
) -> None:
    """Write Qwen/Qwen3-Embedding-8B in several files with their index; 1.24 GB and 0.39 GB a layer."""
    weights = Weights(decoder_shapes(QWEN3_8B, num_layers), BFLOAT16)
    files, index = checkpoint_files.sharded(weights, NUM_SHARDS_8B)
    own = {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": False}
    documents = {
        "config.json": config(QWEN3_8B, num_layers) | own,
        **_pooling_file(QWEN3_8B),
        **_tokenizer_files(_embedding_tokenizer(tokenizer)),
    }
    checkpoint_files.write(folder, files, {**documents, **index})


def write_jina_reranker(
    folder: Path, tokenizer: Path = DEFAULT_TOKENIZER, num_layers: int = JINA_RERANKER.layers
) -> None:
    """Write jinaai/jina-reranker-v3: a decoder and a projector of two layers; 1.19 GB."""
    own = {
        "architectures": ["JinaForRanking"],
        "auto_map": {"AutoModel": "modeling.JinaForRanking"},
        "max_position_embeddings": 131_072,
    }
    published = _read_tokenizer(tokenizer)
    published["added_tokens"] += _read_json(tokenizer / RERANKER_TOKENS)
    documents = {"config.json": config(JINA_RERANKER, num_layers) | own, **_tokenizer_files(published)}
    shapes = decoder_shapes(JINA_RERANKER, num_layers, "model.")
    shapes["projector.0.weight"] = PROJECTED, JINA_RERANKER.hidden
    shapes["projector.2.weight"] = PROJECTED, PROJECTED
    checkpoint_files.write(folder, {SAFETENSORS_FILE: Weights(shapes, BFLOAT16)}, documents)


def write_jina_code_05b(
    folder: Path, tokenizer: Path = DEFAULT_TOKENIZER, num_layers: int = JINA_CODE_05B.layers
) -> None:
    """Write jinaai/jina-code-embeddings-0.5b; 0.99 GB."""
    own = {"architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151643, "max_position_embeddings": 32_768}
    documents = {
        "config.json": config(JINA_CODE_05B, num_layers) | own,
        **_pooling_file(JINA_CODE_05B),
        **qwen25_tokenizer_files(tokenizer),
    }
    weights = Weights(decoder_shapes(JINA_CODE_05B, num_layers, "model."), BFLOAT16)
    checkpoint_files.write(folder, {SAFETENSORS_FILE: weights}, documents)


def write_decoder(
    decoder: Decoder,
    folder: Path,
    tokenizer: Path = DEFAULT_TOKENIZER,
    *,
    prefix: str = "",
    pools: bool = True,
) -> None:
    """Write a decoder of other sizes: an embedding model, or a language model that `pools` nothing."""
    own = {"architectures": [f"{decoder.model_type.capitalize()}ForCausalLM"]}
    documents = {
        "config.json": config(decoder, decoder.layers) | own,
        **(_pooling_file(decoder) if pools else {}),
        **_tokenizer_files(_read_tokenizer(tokenizer)),
    }
    weights = Weights(decoder_shapes(decoder, decoder.layers, prefix), BFLOAT16)
    checkpoint_files.write(folder, {SAFETENSORS_FILE: weights}, documents)


def decoder_shapes(decoder: Decoder, num_layers: int, prefix: str = "") -> Shapes:
    """Return every tensor of a decoder."""
    hidden, feed_forward = (decoder.hidden,), decoder.feed_forward
    width, kv_width = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    has_biases = decoder.model_type == "qwen2"
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (decoder.rows, decoder.hidden)}
    for layer in (f"{prefix}layers.{index}." for index in range(num_layers)):
        for part, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
            shapes[f"{layer}self_attn.{part}_proj.weight"] = rows, decoder.hidden
            if has_biases:
                shapes[f"{layer}self_attn.{part}_proj.bias"] = (rows,)
            elif part != "v":
                shapes[f"{layer}self_attn.{part}_norm.weight"] = (decoder.head_dim,)
        shapes[f"{layer}self_attn.o_proj.weight"] = decoder.hidden, width
        for part in ("gate", "up"):
            shapes[f"{layer}mlp.{part}_proj.weight"] = feed_forward, decoder.hidden
        shapes[f"{layer}mlp.down_proj.weight"] = decoder.hidden, feed_forward
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = hidden
    return shapes | {f"{prefix}norm.weight": hidden}


def config(decoder: Decoder, num_layers: int) -> dict[str, Any]:
    """Return what config.json says of a decoder."""
    made: dict[str, Any] = {
        "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
        "hidden_size": decoder.hidden, "initializer_range": 0.02,
        "intermediate_size": decoder.feed_forward, "max_position_embeddings": 40_960,
        "max_window_layers": num_layers, "model_type": decoder.model_type,
        "num_attention_heads": decoder.heads, "num_hidden_layers": num_layers,
        "num_key_value_heads": decoder.kv_heads, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1_000_000, "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.3", "use_cache": True,
        "use_sliding_window": False, "vocab_size": decoder.rows,
    }  # fmt: skip
    if decoder.model_type == "qwen3":
        made |= {"attention_bias": False, "head_dim": decoder.head_dim}
    return made


def _pooling_file(decoder: Decoder) -> Documents:
    pooling = {"word_embedding_dimension": decoder.hidden, "pooling_mode_lasttoken": True}
    return {"1_Pooling/config.json": pooling}


def qwen25_tokenizer_files(folder: Path) -> Documents:
    """Return the tokenizer's files without what Qwen3 has added."""
    published = _read_tokenizer(folder)
    kept = [token for token in published["added_tokens"] if token["id"] <= QWEN25_LAST_TOKEN]
    return _tokenizer_files(published | {"added_tokens": kept})


def _embedding_tokenizer(folder: Path) -> dict[str, Any]:
    return _read_tokenizer(folder) | {"post_processor": _read_json(folder / EMBEDDING_POST_PROCESSOR)}


def _tokenizer_files(tokenizer: dict[str, Any]) -> Documents:
    added = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in tokenizer["added_tokens"]
    }
    config = {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added, "bos_token": None,
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 131_072, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}


def _read_tokenizer(folder: Path) -> dict[str, Any]:
    packed = checkpoint_files.read_gzip(folder / TOKENIZER_FILE, "--qwen-tokenizer DIR")
    tokenizer: dict[str, Any] = json.loads(packed)
    return tokenizer


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read: {error}; name its folder with --qwen-tokenizer") from error
