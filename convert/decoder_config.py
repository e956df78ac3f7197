"""Sizes of Qwen-family decoders, read from config.json. Knows no graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convert import rotary
from convert.recipe import Architecture
from service.errors import BakeError

MODEL_TYPES = {
    Architecture.QWEN2: ("qwen2",),
    Architecture.QWEN3: ("qwen3",),
    Architecture.QWEN2_5_VL: ("qwen2_5_vl", "qwen2_5_vl_text"),
}
ACTIVATION = "silu"
PLAIN_ROTARY = (None, "default")  # no scaling of positions
PLAIN_SECTIONS = (*PLAIN_ROTARY, "mrope")  # the name of positions in several streams
ROTARY_KEYS = {"rope_theta", "rope_type", "type"}  # what may be said of positions without scaling them
SECTIONS_KEY = "mrope_section"
NUM_STREAMS = 3  # of positions: time, rows, columns
HEAD_SIZE_MULTIPLE = 16  # ONNX Runtime's attention takes heads of such sizes


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The sizes of a Qwen-family decoder."""

    num_layers: int
    num_heads: int
    num_kv_heads: int  # heads that keys and values have; each serves several query heads
    head_size: int
    hidden_size: int
    feed_forward_size: int
    vocabulary_size: int
    norm_eps: float
    max_positions: int
    rotary_base: float
    rotary_sections: tuple[int, ...] = ()  # how many angles each stream of positions turns; (): one stream
    has_biases: bool  # on queries, keys and values
    has_head_norms: bool  # RMS norms over each head of queries and keys
    is_tied: bool | None = None  # whether the word table is the language model's head too, where it is known

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if min(self.num_layers, self.num_heads, self.num_kv_heads, self.hidden_size, self.max_positions) < 1:
            raise BakeError(f"config.json has a size below 1: {self}")
        if self.num_heads % self.num_kv_heads:
            raise BakeError(
                f"num_attention_heads {self.num_heads} is not a multiple of num_key_value_heads "
                f"{self.num_kv_heads}"
            )
        if self.head_size % HEAD_SIZE_MULTIPLE or self.head_size < HEAD_SIZE_MULTIPLE:
            raise BakeError(
                f"head_dim {self.head_size} is not a multiple of {HEAD_SIZE_MULTIPLE}, as attention needs it"
            )
        if not 0 < self.rotary_base < float("inf"):
            raise BakeError(f"config.json has rope_theta {self.rotary_base}, must be a positive number")
        if self.rotary_sections:
            self._check_sections(self.rotary_sections)
        if not 0 < self.norm_eps < 1:
            raise BakeError(f"config.json has rms_norm_eps {self.norm_eps}, must be above 0 and below 1")

    def _check_sections(self, sections: tuple[int, ...]) -> None:
        is_whole = len(sections) == NUM_STREAMS and 2 * sum(sections) == self.head_size
        if min(sections) < 0 or not is_whole:
            raise BakeError(
                f"config.json has {SECTIONS_KEY} {list(sections)}, must be {NUM_STREAMS} numbers, none below "
                f"0, whose sum is half of head_dim {self.head_size}"
            )

    @property
    def query_size(self) -> int:
        """Return the width of all query heads, which need not be the hidden size."""
        return self.num_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Return the width of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_size


def read(architecture: Architecture, config: Mapping[str, object]) -> DecoderConfig:
    """Take the sizes from a config.json. Raises BakeError on what this builder cannot represent."""
    if architecture == Architecture.QWEN2_5_VL:
        config = {**config, **_mapping(config, "text_config")}
    _check(architecture, config)
    is_qwen3 = architecture == Architecture.QWEN3
    try:
        sizes = {key: int(str(config[key])) for key in (
            "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size",
            "intermediate_size", "vocab_size", "max_position_embeddings",
        )}  # fmt: skip
        head_size = config.get("head_dim") or sizes["hidden_size"] // max(1, sizes["num_attention_heads"])
        return DecoderConfig(
            num_layers=sizes["num_hidden_layers"],
            num_heads=sizes["num_attention_heads"],
            num_kv_heads=sizes["num_key_value_heads"],
            head_size=int(str(head_size)),
            hidden_size=sizes["hidden_size"],
            feed_forward_size=sizes["intermediate_size"],
            vocabulary_size=sizes["vocab_size"],
            norm_eps=float(str(config["rms_norm_eps"])),
            max_positions=sizes["max_position_embeddings"],
            rotary_base=rotary.base(config),
            rotary_sections=_sections(architecture, config),
            has_biases=not is_qwen3,
            has_head_norms=is_qwen3,
            is_tied=_is_tied(config),
        )
    except KeyError as error:
        raise BakeError(f"config.json lacks {error.args[0]!r}") from error
    except ValueError as error:
        raise BakeError(f"config.json has a size that is no number: {error}") from error


def _check(architecture: Architecture, config: Mapping[str, object]) -> None:
    """Refuse what would change the numbers: another activation, windows, scaled positions, more biases."""
    model_type = config.get("model_type", MODEL_TYPES[architecture][0])
    if model_type not in MODEL_TYPES[architecture]:
        known = ", ".join(MODEL_TYPES[architecture])
        raise BakeError(f"config.json has model_type {model_type!r}: this recipe reads only {known}")
    if config.get("hidden_act") != ACTIVATION:
        raise BakeError(f"config.json has hidden_act {config.get('hidden_act')!r} instead of {ACTIVATION!r}")
    for key in ("use_sliding_window", "attention_bias"):
        if config.get(key):
            raise BakeError(f"config.json has {key} true, which this builder does not know")
    layers = config.get("layer_types") or []
    if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
        raise BakeError(f"config.json has layer_types {layers!r}: only full_attention is known")
    for key in ("rope_scaling", "rope_parameters"):
        scaling = config.get(key) or {}
        has_sections = architecture == Architecture.QWEN2_5_VL
        if not isinstance(scaling, Mapping) or not _is_plain(scaling, has_sections=has_sections):
            raise BakeError(
                f"config.json scales positions ({key} {scaling!r}), which this builder does not know"
            )


def _is_plain(scaling: Mapping[str, object], *, has_sections: bool) -> bool:
    """Tell whether this says of positions no more than their base and their streams."""
    keys = ROTARY_KEYS | ({SECTIONS_KEY} if has_sections else set())
    kinds = PLAIN_SECTIONS if has_sections else PLAIN_ROTARY
    return set(scaling) <= keys and all(scaling.get(key) in kinds for key in ("rope_type", "type"))


def _sections(architecture: Architecture, config: Mapping[str, object]) -> tuple[int, ...]:
    """Read how many angles each stream of positions turns, from where one of the two spellings has it."""
    if architecture != Architecture.QWEN2_5_VL:
        return ()
    for key in ("rope_scaling", "rope_parameters"):
        found = _mapping(config, key).get(SECTIONS_KEY)
        if isinstance(found, list) and found:
            return tuple(int(str(size)) for size in found)
    raise KeyError(SECTIONS_KEY)


def _mapping(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = config.get(key) or {}
    if not isinstance(found, Mapping):
        raise BakeError(f"config.json has {key} {found!r}, must be an object")
    return found


def _is_tied(config: Mapping[str, object]) -> bool | None:
    found = config.get("tie_word_embeddings")
    return None if found is None else bool(found)
