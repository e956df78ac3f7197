"""The sizes of a model that the exporter turns into a graph, read from config.json. Knows no graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convert.sentence_files import UNLIMITED
from service.errors import BakeError

# How families spell a size; the first that is there.
HIDDEN_SIZES = ("hidden_size", "dim", "d_model", "n_embd")
# Types that have none: a token is told from its neighbours by its distance.
WITHOUT_POSITIONS = frozenset({"t5", "mt5", "umt5", "bloom"})
MAX_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
NO_PADDING = -1  # an id that no token has
# Types whose positions begin behind that of padding, as RoBERTa's do.
SKIPS_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "ibert"}
    | {"xmod", "roberta-prelayernorm", "luke", "mluke", "esm"}
)


@dataclass(frozen=True, kw_only=True)
class ExportedConfig:
    """The sizes that a bundle states."""

    model_type: str
    hidden_size: int
    vocabulary_size: int
    max_positions: int
    padding_id: int  # what stands behind a text; a decoder's classifier looks for the last token before it


def read(config: Mapping[str, object]) -> ExportedConfig:
    """Take the sizes from a config.json. Raises BakeError where one is missing or no positive number."""
    model_type = str(config.get("model_type"))
    padding_id = config.get("pad_token_id")
    return ExportedConfig(
        model_type=model_type,
        hidden_size=_size(config, HIDDEN_SIZES),
        vocabulary_size=_size(config, ("vocab_size",)),
        max_positions=_max_positions(config, model_type),
        padding_id=padding_id if isinstance(padding_id, int) else NO_PADDING,
    )


def _max_positions(config: Mapping[str, object], model_type: str) -> int:
    if model_type in WITHOUT_POSITIONS:
        return UNLIMITED
    padding_rows = _size(config, ("pad_token_id",), least=0) + 1 if model_type in SKIPS_PADDING else 0
    return _size(config, MAX_POSITIONS) - padding_rows


def _size(config: Mapping[str, object], keys: tuple[str, ...], least: int = 1) -> int:
    for key in keys:
        found = config.get(key)
        if found is None:
            continue
        if isinstance(found, bool) or not isinstance(found, int) or found < least:
            raise BakeError(f"config.json has {key} {found!r}, must be a number from {least} on")
        return found
    raise BakeError(f"config.json lacks {' and '.join(map(repr, keys))}")
