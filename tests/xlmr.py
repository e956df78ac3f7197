"""Checkpoints of the XLM-R family in the published layouts, made on the spot: tiny ones, and a wide one.

Every tensor is drawn from its own name: the two layouts of jina-embeddings-v3 hold the same weights.
"""

from __future__ import annotations

import json
import string
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from service.manifest import Precision

V3, BGE_M3, BGE_RERANKER = "jina-embeddings-v3", "bge-m3", "bge-reranker-v2-m3"
RANK, ALPHA = 4, 1
UPDATE = 0.4  # size of an adapter's update beside its weight
PREFIXES = {  # in the order of the stacked adapters
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}
SPARSE_BIAS = np.float32(0.9)  # so that most tokens have a positive weight, not all
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
WORDS = (  # a token each
    "a", "and", "blue", "cat", "dog", "far", "fox", "is", "of", "red", "river", "sea", "sky", "the", "town",
    "tree", "very",
)  # fmt: skip
BLOCK_ROWS = 4099  # of a large table, repeated: a prime, so that near rows stay unequal
F16, F32, BF16 = "F16", "F32", "BF16"

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """The sizes of an encoder."""

    rows: int  # of the word table
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    positions: int

    @property
    def config(self) -> dict[str, object]:
        """What all of the family write into config.json."""
        return {
            "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "classifier_dropout": None,
            "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": self.hidden,
            "initializer_range": 0.02, "intermediate_size": self.feed_forward, "layer_norm_eps": 1e-05,
            "max_position_embeddings": self.positions, "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers, "output_past": True, "pad_token_id": 1, "type_vocab_size": 1,
            "use_cache": True, "vocab_size": self.rows,
        }  # fmt: skip


TINY = Sizes(rows=2100, hidden=32, layers=2, heads=4, feed_forward=64, positions=130)
LONG = replace(TINY, positions=8194)  # as tiny, but for texts of the real length
WIDE = Sizes(rows=250_002, hidden=1024, layers=1, heads=16, feed_forward=256, positions=8194)
V3_TOKENS = TINY.positions  # the limit of the tiny models: rotary positions, and learned ones from 2 on
BGE_TOKENS = TINY.positions - 2


# --- checkpoints ------------------------------------------------------------------------------------------


def write_jina_v3(folder: Path, seed: int = 0) -> Path:
    """Write the original layout: torch parametrizations, stacked adapters, bf16."""
    return _write_stacked(folder, TINY, seed, tokenizer())


def write_wide_jina_v3(folder: Path, tokenizer: bytes, seed: int = 0) -> Path:
    """Write one layer of the real width and a word table of the real length, half a gigabyte."""
    return _write_stacked(folder, WIDE, seed, tokenizer)


def write_jina_v3_peft(folder: Path, seed: int = 0) -> Path:
    """Write the native layout: plain weights, a PEFT folder for each task, bf16."""
    base = _v3_base(TINY, seed)
    stacked = _v3_adapters(base, TINY, seed)
    write_safetensors(folder / "model.safetensors", _prefixed("roberta.", base), BF16)
    for index, task in enumerate(PREFIXES):
        adapter: Tensors = {}
        for name, (one_a, one_b) in stacked.items():
            adapter |= _peft_layer(f"roberta.{name}", one_a[index], one_b[index])
        own = folder / task.replace(".", "_").replace("-", "_")
        write_safetensors(own / "adapter_model.safetensors", adapter, BF16)
        targets = ["word_embeddings", "token_type_embeddings"]
        targets += ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "dense"]
        content = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
        write_json(own / "adapter_config.json", content | {"target_modules": targets})
    config = {"architectures": ["JinaEmbeddingsV3Model"], "model_type": "jina_embeddings_v3"}
    write_json(folder / "config.json", TINY.config | _v3_config(TINY) | config)
    (folder / "tokenizer.json").write_bytes(tokenizer())
    return folder


def write_bge_m3(
    folder: Path, *, with_heads: bool = True, as_torch: bool = True, seed: int = 0, sizes: Sizes = TINY
) -> Path:
    """Write bge-m3 as published, in torch's own files, or with its weights as safetensors."""
    tensors = _xlm_roberta(sizes, seed) | _linear("pooler.dense", sizes.hidden, sizes.hidden, seed)
    if as_torch:
        write_torch_file(folder / "pytorch_model.bin", tensors, F32)
    else:
        write_safetensors(folder / "model.safetensors", tensors, F32)
    for head, num_out in (("sparse_linear", 1), ("colbert_linear", sizes.hidden)) if with_heads else ():
        drawn = _linear(head, num_out, sizes.hidden, seed)
        drawn[f"{head}.bias"] += SPARSE_BIAS if head == "sparse_linear" else 0
        write_torch_file(folder / f"{head}.pt", {name.split(".")[1]: drawn[name] for name in drawn}, F16)
    config = {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "torch_dtype": "float32"}
    write_json(folder / "config.json", sizes.config | config | {"position_embedding_type": "absolute"})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 8192, "do_lower_case": False})
    _write_pooling(folder, sizes, "cls_token")
    (folder / "tokenizer.json").write_bytes(tokenizer())
    return folder


def write_bge_reranker(folder: Path, seed: int = 0) -> Path:
    """Write bge-reranker-v2-m3: an encoder without pooler and a classifier."""
    tensors = _prefixed("roberta.", _xlm_roberta(TINY, seed))
    tensors |= _linear("classifier.dense", TINY.hidden, TINY.hidden, seed)
    tensors |= _linear("classifier.out_proj", 1, TINY.hidden, seed)
    write_safetensors(folder / "model.safetensors", tensors, F32)
    config = {"architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta"}
    config |= {"position_embedding_type": "absolute", "torch_dtype": "float32"}
    write_json(folder / "config.json", TINY.config | config | {"id2label": {"0": "LABEL_0"}})
    (folder / "tokenizer.json").write_bytes(tokenizer())
    return folder


def bake_tiny(out: Path, model: str, source: Path, tasks: tuple[str, ...] | None = None) -> Path:
    """Bake a checkpoint of the family in fp32, unmeasured; return the folder of its bundle."""
    request = BakeRequest(
        out=out,
        source=str(source),
        precisions=(Precision.FP32,),
        tasks=tasks,
        verification=Verification.SKIP,
    )
    bake(RECIPES[model], request)
    return out / model


# --- weights ----------------------------------------------------------------------------------------------


def _write_stacked(folder: Path, sizes: Sizes, seed: int, tokenizer: bytes) -> Path:
    base = _v3_base(sizes, seed)
    tensors = {name: values for name, values in base.items() if values.ndim == 1}
    for name, (one_a, one_b) in _v3_adapters(base, sizes, seed).items():
        tensors[f"{name}.parametrizations.weight.original"] = base[f"{name}.weight"]
        tensors[f"{name}.parametrizations.weight.0.lora_A"] = one_a
        tensors[f"{name}.parametrizations.weight.0.lora_B"] = one_b
    large = {"roberta.embeddings.word_embeddings.parametrizations.weight.original": sizes.rows}
    write_safetensors(folder / "model.safetensors", _prefixed("roberta.", tensors), BF16, large)
    config = {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}
    write_json(folder / "config.json", sizes.config | _v3_config(sizes) | config)
    _write_pooling(folder, sizes, "mean_tokens")
    (folder / "tokenizer.json").write_bytes(tokenizer)
    return folder


def _v3_config(sizes: Sizes) -> dict[str, object]:
    sizes_trained = [sizes.hidden // 4, sizes.hidden // 2, sizes.hidden]
    return {
        "_name_or_path": "jinaai/jina-embeddings-v3", "emb_pooler": None, "load_trained_adapters": True,
        "lora_adaptations": list(PREFIXES), "lora_alpha": ALPHA, "lora_dropout_p": 0.0,
        "lora_main_params_trainable": False, "lora_rank": RANK, "matryoshka_dimensions": sizes_trained,
        "position_embedding_type": "rotary", "rotary_emb_base": 20000.0, "task_instructions": PREFIXES,
        "torch_dtype": "bfloat16", "truncate_dim": None, "use_flash_attn": True,
    }  # fmt: skip


def _v3_base(sizes: Sizes, seed: int) -> Tensors:
    """Draw the weights without adapter. Of a large word table only a block, which repeats."""
    size = sizes.hidden
    tensors = _table("word", min(sizes.rows, BLOCK_ROWS), size, seed) | _table("token_type", 1, size, seed)
    tensors |= _norm("emb_ln", size, seed)
    for layer in range(sizes.layers):
        name = f"encoder.layers.{layer}"
        tensors |= _linear(f"{name}.mixer.Wqkv", 3 * size, size, seed)
        tensors |= _linear(f"{name}.mixer.out_proj", size, size, seed)
        tensors |= _linear(f"{name}.mlp.fc1", sizes.feed_forward, size, seed)
        tensors |= _linear(f"{name}.mlp.fc2", size, sizes.feed_forward, seed)
        tensors |= _norm(f"{name}.norm1", size, seed) | _norm(f"{name}.norm2", size, seed)
    return tensors | _linear("pooler.dense", size, size, seed)


def _v3_adapters(base: Tensors, sizes: Sizes, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draw both sides of the stacked adapters by the module that they adapt: every matrix has one."""
    adapters = {}
    for name in [name.removesuffix(".weight") for name, values in base.items() if values.ndim == 2]:
        rows, columns = base[f"{name}.weight"].shape
        is_table = name.startswith("embeddings.")
        rows = sizes.rows if name == "embeddings.word_embeddings" else rows
        spread = np.sqrt(UPDATE * _spread(name, columns) * np.sqrt(RANK) / ALPHA)  # A @ B sums RANK products
        shapes = ((rows, RANK), (RANK, columns)) if is_table else ((RANK, columns), (rows, RANK))
        one_a, one_b = (
            _draw(f"{name}.lora_{side}", (len(PREFIXES), *shape), seed) * np.float32(spread)
            for side, shape in zip("AB", shapes, strict=True)
        )
        adapters[name] = (one_a, one_b)
    return adapters


def _peft_layer(name: str, one_a: np.ndarray, one_b: np.ndarray) -> Tensors:
    """Name one adapted layer as PEFT does, which knows query, key and value apart."""
    if ".embeddings." in name:
        return {f"{name}.lora_embedding_A": one_a.T, f"{name}.lora_embedding_B": one_b.T}
    if not name.endswith(".mixer.Wqkv"):
        return {f"{name}.lora_A.weight": one_a, f"{name}.lora_B.weight": one_b}
    attention = name.replace(".mixer.Wqkv", ".self_attn")
    layers: Tensors = {}
    for part, block in zip("qkv", np.split(one_b, 3), strict=True):
        layers |= {f"{attention}.{part}_proj.lora_A.weight": one_a}
        layers |= {f"{attention}.{part}_proj.lora_B.weight": block}
    return layers


def _xlm_roberta(sizes: Sizes, seed: int) -> Tensors:
    size = sizes.hidden
    tensors = _table("word", sizes.rows, size, seed) | _table("position", sizes.positions, size, seed)
    tensors |= _table("token_type", 1, size, seed) | _norm("embeddings.LayerNorm", size, seed)
    for layer in range(sizes.layers):
        name = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= _linear(f"{name}.attention.{part}", size, size, seed)
        tensors |= _norm(f"{name}.attention.output.LayerNorm", size, seed)
        tensors |= _linear(f"{name}.intermediate.dense", sizes.feed_forward, size, seed)
        tensors |= _linear(f"{name}.output.dense", size, sizes.feed_forward, seed)
        tensors |= _norm(f"{name}.output.LayerNorm", size, seed)
    return tensors


def _table(kind: str, rows: int, size: int, seed: int) -> Tensors:
    name = f"embeddings.{kind}_embeddings"
    return {f"{name}.weight": _draw(name, (rows, size), seed) * np.float32(_spread(name, size))}


def _linear(name: str, num_out: int, num_in: int, seed: int) -> Tensors:
    weight = _draw(f"{name}.weight", (num_out, num_in), seed) * np.float32(_spread(name, num_in))
    return {
        f"{name}.weight": weight,
        f"{name}.bias": _draw(f"{name}.bias", (num_out,), seed) * np.float32(0.3),
    }


def _norm(name: str, size: int, seed: int) -> Tensors:
    """Draw a norm far from 1 and 0: it cannot be missing."""
    weight, bias = (_draw(f"{name}.{kind}", (size,), seed) * np.float32(0.3) for kind in ("weight", "bias"))
    return {f"{name}.weight": 1 + weight, f"{name}.bias": bias}


def _spread(name: str, num_in: int) -> float:
    """Return the standard deviation of a matrix: a layer keeps the size of its input or enlarges it."""
    if name.startswith("embeddings."):
        return 1.0 if "word" in name else 0.3
    return float(1.7 / num_in**0.5)


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng([seed, *name.encode()]).standard_normal(shape, dtype=np.float32)


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: values for name, values in tensors.items()}


# --- files ------------------------------------------------------------------------------------------------


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def write_safetensors(
    path: Path, tensors: Tensors, dtype: str, rows: Mapping[str, int] | None = None
) -> None:
    """Write a safetensors file; a tensor named in `rows` is repeated until it has so many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    counts = {name: (rows or {}).get(name, len(values)) for name, values in tensors.items()}
    offset = 0
    for name, values in tensors.items():
        shape = [counts[name], *values.shape[1:]]
        end = offset + int(np.prod(shape)) * (2 if dtype == BF16 else 4)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, values in tensors.items():
            stored = _stored(values, dtype)
            for begin in range(0, counts[name], len(stored)):
                file.write(stored[: counts[name] - begin].tobytes())


def write_torch_file(path: Path, tensors: Tensors, dtype: str) -> None:
    """Write a state dict as torch.save does: a zip of a pickle and the values of each tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    storage = {F32: b"ctorch\nFloatStorage\n", F16: b"ctorch\nHalfStorage\n"}[dtype]
    ordered = b"ccollections\nOrderedDict\n)R"
    pickled = b"\x80\x02" + ordered + b"("
    for index, (name, values) in enumerate(tensors.items()):
        strides = [int(np.prod(values.shape[axis + 1 :])) for axis in range(values.ndim)]
        pickled += _word(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        pickled += _word("storage") + storage + _word(str(index)) + _word("cpu") + _numbers([values.size])
        pickled += b"tQ" + _numbers([0]) + b"(" + _numbers(values.shape) + b"t(" + _numbers(strides)
        pickled += b"t\x89" + ordered + b"tR"
    entries = {"data.pkl": pickled + b"u.", "byteorder": b"little", "version": b"3\n"}
    entries |= {f"data/{index}": _stored(v, dtype).tobytes() for index, v in enumerate(tensors.values())}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)


def _word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode("ascii")


def _numbers(values: tuple[int, ...] | list[int]) -> bytes:
    return b"".join(b"J" + struct.pack("<i", value) for value in values)


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == BF16:
        return (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype(
            "<u2"
        )  # the upper half of float32
    return values.astype({F16: "<f2", F32: "<f4"}[dtype])


def _write_pooling(folder: Path, sizes: Sizes, mode: str) -> None:
    modes = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens")}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": sizes.hidden, **modes})


def tokenizer() -> bytes:
    """Make a tokenizer of the XLM-R kind: `WORDS` and single characters are tokens, <mask> is the last."""
    pieces = [
        "▁",
        *(f"▁{word}" for word in WORDS),
        *string.ascii_letters,
        *string.digits,
        *string.punctuation,
    ]
    filler = TINY.rows - len(SPECIAL) - len(pieces) - 1
    pieces += [f"▁unused{number}" for number in range(filler)]
    scored = [*((name, 0.0) for name in SPECIAL), *((piece, -5.0) for piece in pieces), ("<mask>", 0.0)]
    made = Tokenizer(models.Unigram(scored, unk_id=SPECIAL.index("<unk>"), byte_fallback=False))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made.add_special_tokens([*SPECIAL, AddedToken("<mask>", lstrip=True)])
    return made.to_str().encode()
