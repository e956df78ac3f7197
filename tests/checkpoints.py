"""Tiny checkpoints in the published layouts, made on the spot."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

HIDDEN, LAYERS, HEADS, FEED_FORWARD, POSITIONS = 32, 2, 4, 64, 64
MAX_TOKENS = 48
VOCABULARY = 2100  # so that the word table is large enough to be quantized


def write_bert(folder: Path, seed: int = 0) -> Path:
    """Write a tiny BERT sentence encoder; biases and norms are far from 0 and 1: none can be missing."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "type_vocab_size": 2,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_TOKENS}))
    save_file(bert_tensors(seed), folder / "model.safetensors")
    wordpiece_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def bert_tensors(seed: int) -> dict[str, np.ndarray]:
    """Draw the weights under their published names."""
    draw = np.random.default_rng(seed)
    tensors = {
        "embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part, outputs, inputs in (
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", FEED_FORWARD, HIDDEN),
            ("output.dense", HIDDEN, FEED_FORWARD),
        ):
            tensors |= {f"{name}.{part}.weight": (outputs, inputs), f"{name}.{part}.bias": (outputs,)}
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors |= {f"{name}.{part}.weight": (HIDDEN,), f"{name}.{part}.bias": (HIDDEN,)}
    return {
        name: (draw.normal(size=shape) * 0.3 + ("LayerNorm.weight" in name)).astype(np.float32)
        for name, shape in tensors.items()
    }


def wordpiece_tokenizer() -> Tokenizer:
    """Make a WordPiece tokenizer of single characters, with truncation and padding built in as published."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*special, *characters, *(f"##{character}" for character in characters)]
    pieces += [f"[unused{number}]" for number in range(VOCABULARY - len(pieces))]
    tokenizer = Tokenizer(
        models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return tokenizer
