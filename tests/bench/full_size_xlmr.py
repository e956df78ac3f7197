"""Full-size random checkpoints in the published layouts of three encoders. Knows names and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench import checkpoint_files
from tests.bench.checkpoint_files import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    SAFETENSORS_FILE,
    Documents,
    Files,
    Shapes,
    Weights,
)

DEFAULT_TOKENIZER = Path("../shared/data/tokenizers/xlm-roberta/tokenizer.json.gz")
ROWS, POSITIONS, HIDDEN, FEED_FORWARD, LAYERS, HEADS, RANK = 250_002, 8194, 1024, 4096, 24, 16, 4
TASKS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    **dict.fromkeys(("separation", "classification", "text-matching"), ""),
}

XLMR_CONFIG: dict[str, Any] = {
    "_name_or_path": "", "architectures": ["XLMRobertaModel"], "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0, "classifier_dropout": None, "eos_token_id": 2, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": HIDDEN, "initializer_range": 0.02,
    "intermediate_size": FEED_FORWARD, "layer_norm_eps": 1e-05, "max_position_embeddings": POSITIONS,
    "model_type": "xlm-roberta", "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "output_past": True, "pad_token_id": 1, "position_embedding_type": "absolute", "torch_dtype": "float32",
    "transformers_version": "4.33.0", "type_vocab_size": 1, "use_cache": True, "vocab_size": ROWS,
}  # fmt: skip
CODE = "jinaai/xlm-roberta-flash-implementation"
V3_CONFIG = XLMR_CONFIG | {
    "_name_or_path": "jinaai/jina-embeddings-v3",
    "auto_map": {"AutoConfig": f"{CODE}--configuration_xlm_roberta.XLMRobertaFlashConfig",
                 "AutoModel": f"{CODE}--modeling_lora.XLMRobertaLoRA"},
    "emb_pooler": None, "load_trained_adapters": True, "lora_adaptations": list(TASKS), "lora_alpha": 1,
    "lora_dropout_p": 0.0, "lora_main_params_trainable": False, "lora_rank": RANK,
    "matryoshka_dimensions": [32, 64, 128, 256, 512, 768, 1024], "position_embedding_type": "rotary",
    "rotary_emb_base": 20000.0, "task_instructions": TASKS, "torch_dtype": "bfloat16",
    "transformers_version": "4.30.2", "truncate_dim": None, "use_flash_attn": True,
}  # fmt: skip
RERANKER_CONFIG = XLMR_CONFIG | {
    "_name_or_path": "BAAI/bge-m3", "architectures": ["XLMRobertaForSequenceClassification"],
    "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "transformers_version": "4.38.1",
}  # fmt: skip


def write_jina_v3(folder: Path, tokenizer: Path = DEFAULT_TOKENIZER) -> None:
    """Write jinaai/jina-embeddings-v3 in its original layout: five stacked adapters, bfloat16; 1.14 GB."""
    documents = {
        "config.json": V3_CONFIG,
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True},
    }
    _write(folder, {SAFETENSORS_FILE: Weights(jina_v3_shapes(), BFLOAT16)}, documents, tokenizer)


def write_bge_m3(folder: Path, tokenizer: Path = DEFAULT_TOKENIZER) -> None:
    """Write BAAI/bge-m3: a torch state dict in float32 and the float16 ones of two heads; 2.27 GB."""
    documents = {
        "config.json": XLMR_CONFIG,
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": True},
        "sentence_bert_config.json": {"max_seq_length": 8192, "do_lower_case": False},
    }
    weights = {
        "pytorch_model.bin": Weights(xlmr_shapes() | _linear("pooler.dense.", HIDDEN, HIDDEN), FLOAT32),
        "sparse_linear.pt": Weights(_linear("", 1, HIDDEN), FLOAT16),
        "colbert_linear.pt": Weights(_linear("", HIDDEN, HIDDEN), FLOAT16),
    }
    _write(folder, weights, documents, tokenizer)


def write_bge_reranker(folder: Path, tokenizer: Path = DEFAULT_TOKENIZER) -> None:
    """Write BAAI/bge-reranker-v2-m3: encoder and classifier in float32; 2.27 GB."""
    head = _linear("classifier.dense.", HIDDEN, HIDDEN) | _linear("classifier.out_proj.", 1, HIDDEN)
    weights = {SAFETENSORS_FILE: Weights(xlmr_shapes("roberta.") | head, FLOAT32)}
    _write(folder, weights, {"config.json": RERANKER_CONFIG}, tokenizer)


def write_layers(folder: Path, num_layers: int, num_rows: int) -> None:
    """Write the encoder of bge-m3 with fewer layers and words, without heads and tokenizer, in float32."""
    sizes = {"num_hidden_layers": num_layers, "vocab_size": num_rows}
    shapes = xlmr_shapes(num_layers=num_layers, num_rows=num_rows)
    checkpoint_files.write(
        folder, {SAFETENSORS_FILE: Weights(shapes, FLOAT32)}, {"config.json": XLMR_CONFIG | sizes}
    )


def jina_v3_shapes() -> Shapes:
    """Return every tensor of jina-embeddings-v3."""
    base = _tables("embeddings.", word=ROWS, token_type=1) | _norm("emb_ln.")
    base |= _linear("pooler.dense.", HIDDEN, HIDDEN)
    for layer in (f"encoder.layers.{index}." for index in range(LAYERS)):
        base |= _linear(f"{layer}mixer.Wqkv.", 3 * HIDDEN, HIDDEN) | _norm(f"{layer}norm1.")
        base |= _linear(f"{layer}mixer.out_proj.", HIDDEN, HIDDEN) | _norm(f"{layer}norm2.")
        base |= _linear(f"{layer}mlp.fc1.", FEED_FORWARD, HIDDEN)
        base |= _linear(f"{layer}mlp.fc2.", HIDDEN, FEED_FORWARD)
    shapes: Shapes = {}
    for name, shape in base.items():
        if len(shape) == 1:  # norms and biases have no adapter
            shapes[f"roberta.{name}"] = shape
            continue
        parts = ((RANK, shape[1]), (shape[0], RANK))
        # A table is looked up, not multiplied: there A and B have each other's roles.
        lora_a, lora_b = reversed(parts) if "_embeddings." in name else parts
        module = f"roberta.{name.removesuffix('weight')}parametrizations.weight."
        shapes[f"{module}original"] = shape
        shapes |= {f"{module}0.lora_A": (len(TASKS), *lora_a), f"{module}0.lora_B": (len(TASKS), *lora_b)}
    return shapes


def xlmr_shapes(prefix: str = "", *, num_layers: int = LAYERS, num_rows: int = ROWS) -> Shapes:
    """Return every tensor of an XLM-R encoder without pooler."""
    shapes = _tables(f"{prefix}embeddings.", word=num_rows, position=POSITIONS, token_type=1)
    shapes |= _norm(f"{prefix}embeddings.LayerNorm.")
    for layer in (f"{prefix}encoder.layer.{index}." for index in range(num_layers)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear(f"{layer}attention.{part}.", HIDDEN, HIDDEN)
        shapes |= _norm(f"{layer}attention.output.LayerNorm.") | _norm(f"{layer}output.LayerNorm.")
        shapes |= _linear(f"{layer}intermediate.dense.", FEED_FORWARD, HIDDEN)
        shapes |= _linear(f"{layer}output.dense.", HIDDEN, FEED_FORWARD)
    return shapes


def _tables(prefix: str, **rows: int) -> Shapes:
    return {f"{prefix}{name}_embeddings.weight": (number, HIDDEN) for name, number in rows.items()}


def _linear(prefix: str, num_outputs: int, num_inputs: int) -> Shapes:
    return {f"{prefix}weight": (num_outputs, num_inputs), f"{prefix}bias": (num_outputs,)}


def _norm(prefix: str) -> Shapes:
    return {f"{prefix}weight": (HIDDEN,), f"{prefix}bias": (HIDDEN,)}


def _write(folder: Path, files: Files, documents: Documents, tokenizer: Path) -> None:
    vocabulary = checkpoint_files.read_gzip(tokenizer, "--xlmr-tokenizer")
    checkpoint_files.write(folder, files, {"tokenizer.json": vocabulary, **documents})
