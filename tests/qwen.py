"""Checkpoints of the Qwen family in the published layouts, tiny, made on the spot.

Every tensor is drawn from its own name and holds bfloat16 values: all layouts of a model, whatever their
prefix, shards and number format, hold the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.xlmr import BF16, F32, WORDS, Tensors, write_json, write_safetensors

JINA_CODE, QWEN3_EMBEDDING = "jina-code-embeddings-0.5b", "qwen3-embedding-0.6b"
QWEN3_RERANKER, JINA_RERANKER = "qwen3-reranker-0.6b", "jina-reranker-v3"
MODEL_PREFIX = "model."
THETA, EPS = 1_000_000.0, 1e-6
PROJECTION = 16  # size of a projected vector
END_OF_TEXT, TURN_BEGIN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SCORE_MARKER, DOCUMENT_MARKER, QUERY_MARKER = "<|score_token|>", "<|embed_token|>", "<|rerank_token|>"
SPECIAL = (END_OF_TEXT, TURN_BEGIN, TURN_END)
THINKING = ("<think>", "</think>")  # added, but not special
MERGED = ("yes", "no", "\n\n", *(f" {word}" for word in WORDS))  # a token each
PRE_TOKENS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WORD_SPREAD = 0.02
GAINS = {  # of a linear layer: what it makes of values around 1
    "q_proj": 1.6, "k_proj": 1.6, "v_proj": 1.0, "o_proj": 1.5, "gate_proj": 1.5, "up_proj": 1.0,
    "down_proj": 1.2,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a decoder."""

    rows: int = 1600  # of the word table, more than the tokenizer has tokens
    hidden: int = 48
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head: int = 16
    feed_forward: int = 80
    positions: int = 4096
    is_qwen3: bool = True
    final_norm: float = 1.0  # what the last norm scales by, about

    @property
    def config(self) -> dict[str, object]:
        """What all of the family write into config.json."""
        content: dict[str, object] = {
            "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
            "hidden_size": self.hidden, "initializer_range": 0.02, "intermediate_size": self.feed_forward,
            "max_position_embeddings": self.positions, "max_window_layers": self.layers,
            "num_attention_heads": self.heads, "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads, "rms_norm_eps": EPS, "rope_scaling": None,
            "rope_theta": int(THETA), "sliding_window": None, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
            "vocab_size": self.rows,
        }  # fmt: skip
        if self.is_qwen3:
            return content | {"model_type": "qwen3", "attention_bias": False, "head_dim": self.head}
        return content | {"model_type": "qwen2"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the same weights are stored."""

    prefix: str = ""
    shards: int = 1
    dtype: str = BF16


CODE_SIZES = Sizes(hidden=64, is_qwen3=False)
EMBEDDING_SIZES = Sizes()
RERANKER_SIZES = Sizes(positions=16_384, final_norm=9.0)
LISTWISE_SIZES = Sizes(positions=16_384)
SIZES = {
    JINA_CODE: CODE_SIZES, QWEN3_EMBEDDING: EMBEDDING_SIZES, QWEN3_RERANKER: RERANKER_SIZES,
    JINA_RERANKER: LISTWISE_SIZES,
}  # fmt: skip
LISTWISE_CAPACITY = 12_000  # tokens of a prompt, as tokenizer_config.json has it


# --- checkpoints ------------------------------------------------------------------------------------------


def write_jina_code(folder: Path, prefix: str = MODEL_PREFIX, seed: int = 0) -> Path:
    """Write jina-code-embeddings: Qwen2 with biases; the tokenizer appends nothing."""
    write_weights(folder, decoder_tensors(CODE_SIZES, seed), Layout(prefix=prefix))
    write_json(folder / "config.json", {"architectures": ["Qwen2ForCausalLM"]} | CODE_SIZES.config)
    write_pooling(folder, "lasttoken")
    write_tokenizer(folder)
    return folder


def write_qwen3_embedding(
    folder: Path, prefix: str = "", shards: int = 1, dtype: str = BF16, seed: int = 0
) -> Path:
    """Write qwen3-embedding: flat names as published; the tokenizer appends <|endoftext|>."""
    layout = Layout(prefix=prefix, shards=shards, dtype=dtype)
    write_weights(folder, decoder_tensors(EMBEDDING_SIZES, seed), layout)
    write_json(folder / "config.json", {"architectures": ["Qwen3ForCausalLM"]} | EMBEDDING_SIZES.config)
    write_pooling(folder, "lasttoken")
    write_tokenizer(folder, appends_end=True)
    return folder


def write_qwen3_reranker(folder: Path, tied: bool = True, seed: int = 0) -> Path:
    """Write qwen3-reranker, its head the word table, or a table of its own where not `tied`."""
    tensors = decoder_tensors(RERANKER_SIZES, seed)
    layout = Layout(prefix=MODEL_PREFIX)
    write_weights(folder, tensors, layout, {} if tied else lm_head(RERANKER_SIZES, seed))
    config = {"architectures": ["Qwen3ForCausalLM"]} | RERANKER_SIZES.config
    write_json(folder / "config.json", config | {"tie_word_embeddings": tied})
    write_tokenizer(folder)
    return folder


def write_jina_reranker(
    folder: Path, model_max_length: float | None = LISTWISE_CAPACITY, seed: int = 0
) -> Path:
    """Write jina-reranker-v3: a projector, three more special tokens, and the limit of a prompt."""
    tensors = decoder_tensors(LISTWISE_SIZES, seed)
    projector = matrix("projector.0.weight", PROJECTION, LISTWISE_SIZES.hidden, 1.0, seed)
    projector |= matrix("projector.2.weight", PROJECTION, PROJECTION, 1.4, seed)
    write_weights(folder, tensors, Layout(prefix=MODEL_PREFIX), projector)
    write_json(folder / "config.json", {"architectures": ["JinaForRanking"]} | LISTWISE_SIZES.config)
    write_tokenizer(folder, markers=(SCORE_MARKER, DOCUMENT_MARKER, QUERY_MARKER))
    if model_max_length is not None:
        write_json(folder / "tokenizer_config.json", {"model_max_length": model_max_length})
    return folder


WRITERS: dict[str, Callable[..., Path]] = {
    JINA_CODE: write_jina_code,
    QWEN3_EMBEDDING: write_qwen3_embedding,
    QWEN3_RERANKER: write_qwen3_reranker,
    JINA_RERANKER: write_jina_reranker,
}


# --- weights ----------------------------------------------------------------------------------------------


def decoder_tensors(sizes: Sizes, seed: int = 0) -> Tensors:
    """Draw the weights of a decoder by their names without prefix."""
    size, query, kv = sizes.hidden, sizes.heads * sizes.head, sizes.kv_heads * sizes.head
    words = _draw("embed_tokens.weight", (sizes.rows, size), seed) * np.float32(WORD_SPREAD)
    tensors = {"embed_tokens.weight": _rounded(words)}
    for number in range(sizes.layers):
        layer = f"layers.{number}"
        shapes = {
            "self_attn.q_proj": (query, size), "self_attn.k_proj": (kv, size),
            "self_attn.v_proj": (kv, size), "self_attn.o_proj": (size, query),
            "mlp.gate_proj": (sizes.feed_forward, size), "mlp.up_proj": (sizes.feed_forward, size),
            "mlp.down_proj": (size, sizes.feed_forward),
        }  # fmt: skip
        for part, (rows, columns) in shapes.items():
            gain = GAINS[part.partition(".")[2]]
            tensors |= matrix(f"{layer}.{part}.weight", rows, columns, gain, seed)
        for part in "qkv" if not sizes.is_qwen3 else "":
            name = f"{layer}.self_attn.{part}_proj.bias"
            tensors[name] = _rounded(_draw(name, (len(tensors[name.replace("bias", "weight")]),), seed))
        for part in "qk" if sizes.is_qwen3 else "":
            tensors |= _norm(f"{layer}.self_attn.{part}_norm.weight", sizes.head, 1.4, seed)
        tensors |= _norm(f"{layer}.input_layernorm.weight", size, 1.0, seed)
        tensors |= _norm(f"{layer}.post_attention_layernorm.weight", size, 1.0, seed)
    return tensors | _norm("norm.weight", size, sizes.final_norm, seed)


def lm_head(sizes: Sizes, seed: int = 0) -> Tensors:
    """Draw a head of a language model, which no name of a decoder precedes."""
    head = _draw("lm_head.weight", (sizes.rows, sizes.hidden), seed) * np.float32(WORD_SPREAD)
    return {"lm_head.weight": _rounded(head)}


def matrix(name: str, rows: int, columns: int, gain: float, seed: int = 0) -> Tensors:
    """Draw an (out, in) weight that multiplies the size of its input by `gain`."""
    return {name: _rounded(_draw(name, (rows, columns), seed) * np.float32(gain / columns**0.5))}


def _norm(name: str, size: int, center: float, seed: int) -> Tensors:
    """Draw a norm whose weights differ from each other: it cannot be missing."""
    drawn = np.random.default_rng([seed, *name.encode()]).uniform(0.4, 1.6, size)
    return {name: _rounded((center * drawn).astype(np.float32))}


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng([seed, *name.encode()]).standard_normal(shape, dtype=np.float32)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Keep of float32 values what bfloat16 holds."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return (bits & np.uint32(0xFFFF0000)).view("<f4")


# --- files ------------------------------------------------------------------------------------------------


def write_weights(folder: Path, tensors: Tensors, layout: Layout, heads: Tensors | None = None) -> None:
    """Write a decoder's tensors under a prefix and those of its head without, in one file or in shards."""
    named = {layout.prefix + name: values for name, values in tensors.items()} | (heads or {})
    if layout.shards == 1:
        write_safetensors(folder / "model.safetensors", named, layout.dtype)
        return
    names = sorted(named)
    places: dict[str, str] = {}
    for number in range(layout.shards):
        file = f"model-{number + 1:05d}-of-{layout.shards:05d}.safetensors"
        shard = {name: named[name] for name in names[number :: layout.shards]}
        write_safetensors(folder / file, shard, layout.dtype)
        places |= dict.fromkeys(shard, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def write_pooling(folder: Path, mode: str) -> None:
    """Write the pooling of sentence-transformers."""
    names = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    modes = {f"pooling_mode_{name}": name == mode for name in names}
    write_json(folder / "1_Pooling" / "config.json", {**modes, "include_prompt": True})


def write_tokenizer(folder: Path, markers: tuple[str, ...] = (), *, appends_end: bool = False) -> None:
    """Write a tokenizer of the Qwen kind to a folder that is there."""
    tokenizer(markers, appends_end=appends_end).save(str(folder / "tokenizer.json"))


def tokenizer(markers: tuple[str, ...] = (), *, appends_end: bool = False) -> Tokenizer:
    """Make a byte-level BPE tokenizer: bytes and `MERGED` are tokens, special tokens and markers the last."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {letter: number for number, letter in enumerate(sorted(byte_level.alphabet()))}
    merges = []
    for text in MERGED:
        ((piece, _),) = byte_level.pre_tokenize_str(text)
        for end in range(1, len(piece)):
            if piece[: end + 1] not in vocabulary:
                merges.append((piece[:end], piece[end]))
                vocabulary[piece[: end + 1]] = len(vocabulary)
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PRE_TOKENS), "isolated"), byte_level]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    made.add_tokens([AddedToken(name, normalized=False) for name in THINKING])
    made.add_special_tokens([AddedToken(name, normalized=False) for name in markers])
    plain = processors.ByteLevel(trim_offsets=False)
    template = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}",
        pair=f"$A $B {END_OF_TEXT}",
        special_tokens=[(END_OF_TEXT, token_id(made, END_OF_TEXT))],
    )
    made.post_processor = processors.Sequence([plain, template]) if appends_end else plain
    return made


def token_id(made: Tokenizer, token: str) -> int:
    """Return the id of a token that the tokenizer has."""
    found: int | None = made.token_to_id(token)
    assert found is not None, token
    return found


def change_json(path: Path, *without: str, **changes: object) -> None:
    """Change keys of a JSON file, or leave some out."""
    known = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in known.items() if key not in without})


def change_tensors(folder: Path, *without: str, **changes: np.ndarray) -> None:
    """Change tensors of a checkpoint of one file, or leave some out; the others keep their values."""
    stored = load_file(folder / "model.safetensors")
    tensors = {name: value.astype(np.float32) for name, value in stored.items() if name not in without}
    write_safetensors(folder / "model.safetensors", tensors | changes, F32)
