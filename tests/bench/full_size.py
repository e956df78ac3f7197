"""Full-size random checkpoints in the published layouts of three encoders. Knows names, shapes and files.

Every tensor is cut from one block of noise, repeated: gigabytes take seconds to write and little more memory
than the block. Weights are spread like untrained ones, norms are 1: states stay of a sane size to the end.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tests.bench.errors import BenchError

DEFAULT_TOKENIZER = Path("../shared/data/tokenizers/xlm-roberta/tokenizer.json.gz")
ROWS, POSITIONS, HIDDEN, FEED_FORWARD, LAYERS, HEADS, RANK = 250_002, 8194, 1024, 4096, 24, 16, 4
TASKS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    **dict.fromkeys(("separation", "classification", "text-matching"), ""),
}
NUM_NOISE = (1 << 24) - 3  # values of the block, 64 MB; prime: the rows of a table repeat shifted
STD = 0.02
ADAPTER_STDS = {"lora_A": 0.1, "lora_B": 0.16}  # together 0.4 of what they are added to (rank 4, scale 1/4)
FLOAT32, FLOAT16, BFLOAT16 = np.dtype("<f4"), np.dtype("<f2"), np.dtype(ml_dtypes.bfloat16)
SAFETENSORS_NAMES = {FLOAT32: "F32", BFLOAT16: "BF16"}
TORCH_STORAGES = {FLOAT32: b"FloatStorage", FLOAT16: b"HalfStorage"}
Shapes = dict[str, tuple[int, ...]]

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


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds."""

    shapes: Shapes
    dtype: np.dtype[Any]

    def size(self, name: str) -> int:
        """Return the bytes of a tensor."""
        return self.dtype.itemsize * math.prod(self.shapes[name])


def write_jina_v3(folder: Path, tokenizer: Path = DEFAULT_TOKENIZER) -> None:
    """Write jinaai/jina-embeddings-v3 in its original layout: five stacked adapters, bfloat16; 1.14 GB."""
    documents = {
        "config.json": V3_CONFIG,
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True},
    }
    _write(folder, {"model.safetensors": Weights(jina_v3_shapes(), BFLOAT16)}, documents, tokenizer)


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
    weights = {"model.safetensors": Weights(xlmr_shapes("roberta.") | head, FLOAT32)}
    _write(folder, weights, {"config.json": RERANKER_CONFIG}, tokenizer)


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


def xlmr_shapes(prefix: str = "") -> Shapes:
    """Return every tensor of an XLM-R encoder without pooler."""
    shapes = _tables(f"{prefix}embeddings.", word=ROWS, position=POSITIONS, token_type=1)
    shapes |= _norm(f"{prefix}embeddings.LayerNorm.")
    for layer in (f"{prefix}encoder.layer.{index}." for index in range(LAYERS)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear(f"{layer}attention.{part}.", HIDDEN, HIDDEN)
        shapes |= _norm(f"{layer}attention.output.LayerNorm.") | _norm(f"{layer}output.LayerNorm.")
        shapes |= _linear(f"{layer}intermediate.dense.", FEED_FORWARD, HIDDEN)
        shapes |= _linear(f"{layer}output.dense.", HIDDEN, FEED_FORWARD)
    return shapes


def check_space(folder: Path, num_bytes: int, purpose: str) -> None:
    """Raise BenchError where the disk of a folder, which need not be there yet, has too little left."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if num_bytes > (free := shutil.disk_usage(existing).free):
        raise BenchError(f"{purpose} needs {num_bytes / 1e9:.1f} GB in {folder}; free: {free / 1e9:.1f} GB")


def _tables(prefix: str, **rows: int) -> Shapes:
    return {f"{prefix}{name}_embeddings.weight": (number, HIDDEN) for name, number in rows.items()}


def _linear(prefix: str, num_outputs: int, num_inputs: int) -> Shapes:
    return {f"{prefix}weight": (num_outputs, num_inputs), f"{prefix}bias": (num_outputs,)}


def _norm(prefix: str) -> Shapes:
    return {f"{prefix}weight": (HIDDEN,), f"{prefix}bias": (HIDDEN,)}


def _write(folder: Path, files: dict[str, Weights], documents: dict[str, Any], tokenizer: Path) -> None:
    """Write a checkpoint beside its place and move it there: a folder that is there is whole."""
    if not tokenizer.is_file():
        raise BenchError(f"{tokenizer} is not there; name the tokenizer.json.gz of XLM-R")
    num_bytes = sum(weights.size(name) for weights in files.values() for name in weights.shapes)
    check_space(folder, num_bytes, f"the checkpoint {folder.name}")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        (partial / "tokenizer.json").write_bytes(gzip.decompress(tokenizer.read_bytes()))
        for name, document in documents.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        for name, weights in files.items():
            (_write_safetensors if name.endswith(".safetensors") else _write_torch)(partial / name, weights)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@functools.cache
def _noise() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(NUM_NOISE, dtype=np.float32)


def _write_values(file: IO[bytes], name: str, weights: Weights) -> None:
    """Write a tensor's values from the block of noise, beginning at a place that the name decides."""
    shape = weights.shapes[name]
    std = ADAPTER_STDS.get(name.rpartition(".")[2], STD)
    is_norm = len(shape) == 1 and name.endswith(".weight")
    start, remaining = zlib.crc32(name.encode()) % NUM_NOISE, math.prod(shape)
    while remaining:
        part = _noise()[start : start + remaining]
        values = np.ones_like(part) if is_norm else part * np.float32(std)
        file.write(values.astype(weights.dtype, copy=False).view(np.uint8).data)
        start, remaining = 0, remaining - len(part)


def _write_safetensors(path: Path, weights: Weights) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(weights.shapes.items()):
        dtype, begin, end = SAFETENSORS_NAMES[weights.dtype], end, end + weights.size(name)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(weights.shapes):
            _write_values(file, name, weights)


def _write_torch(path: Path, weights: Weights) -> None:
    """Write a state dict as torch.save does: a zip of a pickle and one stored member for each tensor."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"".join(_pickled(weights)))
        archive.writestr("archive/byteorder", b"little")
        for index, name in enumerate(weights.shapes):
            member = zipfile.ZipInfo(f"archive/data/{index}")
            member.file_size = weights.size(name)  # decides on zip64
            with archive.open(member, "w") as file:
                _write_values(file, name, weights)
        archive.writestr("archive/version", b"3\n")


def _pickled(weights: Weights) -> Iterator[bytes]:
    """Return a state dict in pickle protocol 2, tensors as references to the members of the zip."""
    ordered_dict, storage = b"ccollections\nOrderedDict\n)R", TORCH_STORAGES[weights.dtype]

    def word(text: str) -> bytes:
        return b"X" + struct.pack("<I", len(text)) + text.encode()

    def numbers(*values: int) -> bytes:
        return b"".join(b"J" + struct.pack("<i", value) for value in values)

    yield b"\x80\x02" + ordered_dict + b"("
    for index, (name, shape) in enumerate(weights.shapes.items()):
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        yield word(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        yield word("storage") + b"ctorch\n" + storage + b"\n" + word(str(index)) + word("cpu")
        yield numbers(math.prod(shape)) + b"tQ" + numbers(0)
        yield b"(" + numbers(*shape) + b"t(" + numbers(*strides) + b"t\x89" + ordered_dict + b"tR"
    yield b"u."
