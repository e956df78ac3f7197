"""Sizes and tensor names of BERT-family encoders, read from config.json. Knows no graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convert import rotary
from convert.recipe import Architecture
from service.errors import BakeError

ACTIVATIONS = ("gelu",)  # the exact (erf) form, as BiasGelu computes it


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where an architecture keeps its tensors; the names in a layer follow `layer` and its number."""

    model_types: tuple[str, ...]
    position_type: str  # as config.json spells it
    embeddings_norm: str = "embeddings.LayerNorm"
    layer: str = "encoder.layer"
    query_key_value: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    skips_padding_positions: bool = False  # the first token is at pad_token_id + 1, padding has no place


LAYOUTS: dict[Architecture, Layout] = {
    Architecture.BERT: Layout(model_types=("bert",), position_type="absolute"),
    Architecture.XLM_ROBERTA: Layout(
        model_types=("xlm-roberta", "roberta", "camembert"),
        position_type="absolute",
        skips_padding_positions=True,
    ),
    Architecture.JINA_V3: Layout(
        model_types=("xlm-roberta", "jina_embeddings_v3"),
        position_type="rotary",
        embeddings_norm="emb_ln",
        layer="encoder.layers",
        query_key_value=("mixer.Wqkv",),
        attention_output="mixer.out_proj",
        attention_norm="norm1",
        up="mlp.fc1",
        down="mlp.fc2",
        output_norm="norm2",
    ),
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The sizes of a BERT-family encoder and where its tensors are."""

    layout: Layout
    num_layers: int
    num_heads: int
    hidden_size: int
    feed_forward_size: int
    vocabulary_size: int
    norm_eps: float
    max_positions: int  # tokens that have a position
    padding_id: int | None = None  # where positions skip padding tokens: their id, and their position
    rotary_base: float | None = None  # None: a table of learned positions

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if min(self.num_layers, self.num_heads, self.hidden_size, self.max_positions) < 1:
            raise BakeError(f"config.json has a size below 1: {self}")
        if self.hidden_size % self.num_heads:
            raise BakeError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_heads}"
            )

    @property
    def num_position_rows(self) -> int:
        """Return the rows of the table of learned positions."""
        return self.max_positions + (0 if self.padding_id is None else self.padding_id + 1)

    @property
    def head_size(self) -> int:
        """Return the width of one attention head."""
        return self.hidden_size // self.num_heads


def read(architecture: Architecture, config: Mapping[str, object]) -> EncoderConfig:
    """Take the sizes from a config.json. Raises BakeError on what this builder cannot represent."""
    layout = LAYOUTS[architecture]
    for key, value, allowed in (
        ("model_type", config.get("model_type", layout.model_types[0]), layout.model_types),
        ("hidden_act", config.get("hidden_act"), ACTIVATIONS),
        ("position_embedding_type", config.get("position_embedding_type", layout.position_type),
         (layout.position_type,)),
    ):  # fmt: skip
        if value not in allowed:
            raise BakeError(f"config.json has {key} {value!r}: this recipe reads only {', '.join(allowed)}")
    is_rotary = layout.position_type == "rotary"
    try:
        padding_id = int(str(config["pad_token_id"])) if layout.skips_padding_positions else None
        unused_rows = 0 if padding_id is None else padding_id + 1
        return EncoderConfig(
            layout=layout,
            num_layers=int(str(config["num_hidden_layers"])),
            num_heads=int(str(config["num_attention_heads"])),
            hidden_size=int(str(config["hidden_size"])),
            feed_forward_size=int(str(config["intermediate_size"])),
            vocabulary_size=int(str(config["vocab_size"])),
            norm_eps=float(str(config["layer_norm_eps"])),
            max_positions=int(str(config["max_position_embeddings"])) - unused_rows,
            padding_id=padding_id,
            rotary_base=_rotary_base(config) if is_rotary else None,
        )
    except KeyError as error:
        raise BakeError(f"config.json lacks {error.args[0]!r}") from error
    except ValueError as error:
        raise BakeError(f"config.json has a size that is no number: {error}") from error


def _rotary_base(config: Mapping[str, object]) -> float:
    """Take the base of the rotary angles: as published, or as transformers writes it since version 5."""
    key = "rotary_emb_base"
    return float(str(config[key])) if key in config else rotary.base(config)
