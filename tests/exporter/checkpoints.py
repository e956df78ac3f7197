"""Tiny checkpoints of random weights in the usual layout, made by transformers. Needs the export extra."""

from __future__ import annotations

import io
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from convert import texts

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 2100, "max_position_embeddings": 130,
}  # fmt: skip
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
PROMPTS = {"query": "query: ", "document": "passage: "}
MODULES = "sentence_transformers.models"
OUTSIDE = ("modules.json", "config_sentence_transformers.json")  # of the transformer's folder


@dataclass(frozen=True)
class Tiny:
    """A checkpoint to make: a config of transformers, and what stands beside it."""

    config: str
    sizes: Mapping[str, Any]
    pooling: str | None = "mean"  # None: no modules.json
    auto_class: str = "AutoModel"
    is_roberta: bool = False  # its tokenizer
    dense_size: int = 0
    dimensions: int = 0  # of vectors that are cut; 0: whole
    max_tokens: int = 64
    limit_file: str = "sentence_bert_config.json"
    is_nested: bool = False  # the transformer in a folder of its own
    prompts: Mapping[str, str] | None = None
    has_only_words: bool = False  # vocab.txt in place of tokenizer.json
    has_only_pieces: bool = False  # a SentencePiece model in its place
    pad_token: str | None = None  # None: as is usual in the family
    moves_with_padding: bool = False  # its layers take padding in
    lowercases: bool = False  # before a tokenizer that knows letters of both cases

    @property
    def is_reranker(self) -> bool:
        """Tell whether it scores pairs."""
        return self.auto_class == "AutoModelForSequenceClassification"


ROBERTA = {**SIZES, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
RERANKER: dict[str, Any] = {"auto_class": "AutoModelForSequenceClassification", "pooling": None}
ONE_LABEL = {**SIZES, "num_labels": 1}
QWEN = {**SIZES, "hidden_size": 64, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
DISTILBERT = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 2100,
    "max_position_embeddings": 130,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 2100}
BLOOM = {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 2100, "pad_token_id": 3}
DEBERTA = {
    **SIZES, "relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0,
    "position_biased_input": False,
}  # fmt: skip
# What tokenizers had before tokenizer.json: the file, and the ids of its special pieces.
DEBERTA_PIECES = {"pad": (0, "[PAD]"), "bos": (1, "[CLS]"), "eos": (2, "[SEP]"), "unk": (3, "[UNK]")}
XLM_PIECES = {"unk": (0, "<unk>"), "bos": (1, "<s>"), "eos": (2, "</s>")}
T5_PIECES = {"pad": (0, "<pad>"), "eos": (1, "</s>"), "unk": (2, "<unk>"), "bos": (-1, "<s>")}
PIECES: dict[str, tuple[str, Mapping[str, tuple[int, str]]]] = {
    "DebertaV2Config": ("spm.model", DEBERTA_PIECES),
    "XLMRobertaConfig": ("sentencepiece.bpe.model", XLM_PIECES),
    "T5Config": ("spiece.model", T5_PIECES),
}
NUM_PIECES = 900
CHECKPOINTS: dict[str, Tiny] = {
    "bert-cls": Tiny("BertConfig", SIZES, "cls"),
    "bert-mean": Tiny("BertConfig", SIZES, "mean", prompts=PROMPTS),
    "bert-dense": Tiny("BertConfig", SIZES, "mean", dense_size=24),
    "bert-plain": Tiny("BertConfig", SIZES, None),
    "bert-words": Tiny("BertConfig", SIZES, has_only_words=True),
    "bert-lowercasing": Tiny("BertConfig", SIZES, lowercases=True),
    "bert-nested": Tiny("BertConfig", SIZES, dense_size=24, is_nested=True),
    "bert-cross-encoder": Tiny("BertConfig", ONE_LABEL, **RERANKER),
    "roberta-mean": Tiny("RobertaConfig", ROBERTA, is_roberta=True),
    "roberta-own-limit": Tiny(
        "RobertaConfig", ROBERTA, is_roberta=True, max_tokens=20, limit_file="sentence_roberta_config.json"
    ),
    "roberta-cross-encoder": Tiny("RobertaConfig", {**ROBERTA, "num_labels": 1}, is_roberta=True, **RERANKER),
    "camembert-mean": Tiny("CamembertConfig", ROBERTA, is_roberta=True),
    "xlm-roberta-mean": Tiny("XLMRobertaConfig", ROBERTA, is_roberta=True, prompts=PROMPTS),
    "qwen3-last": Tiny("Qwen3Config", QWEN, "lasttoken", prompts={"query": "Instruct: find\nQuery:"}),
    "qwen2-last": Tiny("Qwen2Config", QWEN, "lasttoken"),
    "distilbert-mean": Tiny("DistilBertConfig", DISTILBERT),
    "distilbert-cut": Tiny("DistilBertConfig", DISTILBERT, dense_size=24, dimensions=16, is_nested=True),
    "distilbert-words": Tiny("DistilBertConfig", DISTILBERT, "cls", has_only_words=True),
    "mpnet-mean": Tiny("MPNetConfig", ROBERTA, is_roberta=True),
    "deberta-v2-mean": Tiny("DebertaV2Config", DEBERTA),
    "deberta-v2-cross-encoder": Tiny("DebertaV2Config", {**DEBERTA, "num_labels": 1}, **RERANKER),
    "albert-mean": Tiny("AlbertConfig", {**SIZES, "embedding_size": 16}),
    "electra-cross-encoder": Tiny("ElectraConfig", {**ONE_LABEL, "embedding_size": 16}, **RERANKER),
    "modernbert-cls": Tiny(
        "ModernBertConfig",
        {**SIZES, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2}
        | {"eos_token_id": 3, "local_attention": 16, "global_attn_every_n_layers": 2},
        "cls",
    ),
    "bert-decoder": Tiny("BertConfig", {**SIZES, "is_decoder": True}),
    "bert-relu": Tiny("BertConfig", {**SIZES, "hidden_act": "relu"}, "mean"),
    "qwen3-mean": Tiny("Qwen3Config", QWEN, "mean"),
    "deberta-v2-pieces": Tiny("DebertaV2Config", DEBERTA, has_only_pieces=True),
    "xlm-roberta-pieces": Tiny("XLMRobertaConfig", ROBERTA, is_roberta=True, has_only_pieces=True),
    "t5-dense": Tiny("T5Config", T5, auto_class="T5EncoderModel", dense_size=24, has_only_pieces=True),
    "mt5-mean": Tiny("MT5Config", T5, auto_class="MT5EncoderModel"),
    "bloom-last": Tiny("BloomConfig", BLOOM, "lasttoken"),
    "qwen3-cross-encoder": Tiny(  # every pair ends in the token of padding
        "Qwen3Config", {**QWEN, "pad_token_id": 3, "num_labels": 1}, pad_token="[SEP]", **RERANKER
    ),
    "llama-cross-encoder": Tiny(  # it knows of no padding, its tokenizer does
        "LlamaConfig",
        {**SIZES, "hidden_size": 64, "num_key_value_heads": 2, "num_labels": 1},
        pad_token="[SEP]",
        **RERANKER,
    ),
    "convbert-mean": Tiny("ConvBertConfig", {**SIZES, "embedding_size": 32}, moves_with_padding=True),
    "mobilebert-mean": Tiny(
        "MobileBertConfig",
        {**SIZES, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
        moves_with_padding=True,
    ),
}


def write(folder: Path, tiny: Tiny, seed: int = 0) -> Path:
    """Write a checkpoint; norms and biases are far from 1 and 0, so that none can be missing."""
    torch.manual_seed(seed)
    config = getattr(transformers, tiny.config)(**tiny.sizes)
    kind = getattr(transformers, tiny.auto_class)
    made = kind.from_config(config) if tiny.auto_class.startswith("Auto") else kind(config)
    model = made.float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.2 + is_norm)
    model.save_pretrained(folder)
    _tokenizer(tiny).save_pretrained(folder)
    if tiny.has_only_words:
        _keep_only_words(folder, _class_of_tokenizer(tiny))
    if tiny.has_only_pieces:
        _keep_only_pieces(folder, tiny)
    if tiny.pooling:
        _write_modules(folder, tiny)
    return folder


def _write_modules(folder: Path, tiny: Tiny) -> None:
    modes = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    names = ["Transformer", "Pooling", *(["Dense"] if tiny.dense_size else []), "Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": "" if number == 0 else f"{number}_{name}"}
        | {"type": f"{MODULES}.{name}"}
        for number, name in enumerate(names)
    ]
    _write_json(folder / "modules.json", modules)
    flags = {f"pooling_mode_{mode}": tiny.pooling == name for name, mode in modes.items()}
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": _size(tiny), **flags})
    limit = {"max_seq_length": tiny.max_tokens, "do_lower_case": tiny.lowercases}
    _write_json(folder / tiny.limit_file, limit)
    settings: dict[str, Any] = {"truncate_dim": tiny.dimensions} if tiny.dimensions else {}
    if tiny.prompts:
        settings |= {"prompts": dict(tiny.prompts), "default_prompt_name": None}
    if settings:
        _write_json(folder / "config_sentence_transformers.json", settings)
    if tiny.is_nested:
        _nest(folder, modules)
    (folder / f"{len(modules) - 1}_Normalize").mkdir(exist_ok=True)
    if tiny.dense_size:
        layer = torch.nn.Linear(32, tiny.dense_size)
        dense = folder / "2_Dense"
        sizes = {"in_features": 32, "out_features": tiny.dense_size, "bias": True}
        _write_json(
            dense / "config.json", {**sizes, "activation_function": "torch.nn.modules.activation.Tanh"}
        )
        torch.save(
            {"linear.weight": layer.weight.data, "linear.bias": layer.bias.data}, dense / "pytorch_model.bin"
        )


def _nest(folder: Path, modules: list[dict[str, Any]]) -> None:
    """Move the transformer as the first versions of sentence-transformers had it, a config outside."""
    inner = transformer_of(folder, is_nested=True)
    inner.mkdir()
    for path in [path for path in folder.iterdir() if path.is_file() and path.name not in OUTSIDE]:
        path.rename(inner / path.name)
    _write_json(folder / "modules.json", [{**modules[0], "path": inner.name}, *modules[1:]])
    _write_json(folder / "config.json", {"__version__": "0.2.0"})


def transformer_of(folder: Path, *, is_nested: bool) -> Path:
    """Return the folder of the weights and the tokenizer."""
    return folder / "0_Transformer" if is_nested else folder


def _keep_only_words(folder: Path, name: str) -> None:
    """Leave what tokenizers had before tokenizer.json: a list of words and a few settings."""
    words = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    for file in ("tokenizer.json", "special_tokens_map.json"):
        (folder / file).unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n")
    settings = {"tokenizer_class": name, "do_lower_case": True, "model_max_length": 64}
    _write_json(folder / "tokenizer_config.json", settings)


def _keep_only_pieces(folder: Path, tiny: Tiny) -> None:
    """Train a SentencePiece model on the built-in texts and leave it in the tokenizer's place."""
    import sentencepiece

    file, special = PIECES[tiny.config]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts.evaluation()),
        model_writer=trained,
        vocab_size=NUM_PIECES,
        minloglevel=2,
        **{f"{kind}_id": number for kind, (number, _) in special.items()},
        **{f"{kind}_piece": piece for kind, (_, piece) in special.items()},
    )
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (folder / name).unlink()
    (folder / file).write_bytes(trained.getvalue())
    settings = {"tokenizer_class": _class_of_tokenizer(tiny), "model_max_length": 64}
    _write_json(folder / "tokenizer_config.json", settings)


def _class_of_tokenizer(tiny: Tiny) -> str:
    return f"{tiny.config.removesuffix('Config')}Tokenizer"


def _size(tiny: Tiny) -> int:
    return next(int(tiny.sizes[name]) for name in ("hidden_size", "dim", "d_model") if name in tiny.sizes)


def _tokenizer(tiny: Tiny) -> transformers.PreTrainedTokenizerFast:
    """Make a WordPiece tokenizer of single characters with the special tokens and types of its family."""
    special = list(ROBERTA_TOKENS if tiny.is_roberta else BERT_TOKENS)
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*special, *characters, *(f"##{character}" for character in characters)]
    pieces += [f"[unused{number}]" for number in range(2100 - len(pieces))]
    unknown = "<unk>" if tiny.is_roberta else "[UNK]"
    words = {piece: number for number, piece in enumerate(pieces)}
    native = Tokenizer(models.WordPiece(words, unk_token=unknown))
    native.normalizer = normalizers.BertNormalizer(lowercase=not tiny.lowercases)
    native.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    native.add_special_tokens([AddedToken(token, special=True) for token in special])
    if tiny.is_roberta:
        template = {"single": "<s> $A </s>", "pair": "<s> $A </s> </s> $B </s>"}
        names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    else:
        template = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    names["pad_token"] = tiny.pad_token or names["pad_token"]
    native.post_processor = processors.TemplateProcessing(
        **template, special_tokens=[(names[key], words[names[key]]) for key in ("cls_token", "sep_token")]
    )
    has_types = tiny.config in ("BertConfig", "ElectraConfig", "AlbertConfig", "DebertaV2Config")
    inputs = ["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=native, unk_token=unknown, model_max_length=64, model_input_names=inputs, **names
    )


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
