"""One embedding model: texts to unit vectors. Knows tokens, sessions and pooling, nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service import pooling, tokenization
from service.errors import InvalidRequest, LateChunkingUnsupported, ModelOutputInvalid
from service.manifest import TOKENIZER_FILE, Manifest, Output, Precision
from service.scheduler import Scheduler
from service.session import Session, SessionSettings
from service.tokenization import Tokenizer

# Graphs that round activations to 8 bits at run time. Attention over padded rows differs in the last bit from
# attention without padding; one rounding that tips over tips others, and with its neighbours the answer for a
# text would move by as much as 8 bits cost at all (cosine 0.998). Unpadded runs are equal to the last bit.
ROUNDS_ACTIVATIONS = frozenset({Precision.INT8, Precision.INT8_BLOCK})
WARM_UP_TEXTS = ("warm-up", "a somewhat longer warm-up text")  # of two lengths, so that one is padded

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What a request asks of a model beside its inputs."""

    task: str | None = None
    dimensions: int | None = None
    truncate: bool = False
    late_chunking: bool = False
    return_multivector: bool = False


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors (n, dimensions) in input order, and the tokens they are billed for."""

    vectors: Floats
    num_tokens: int


@dataclass(frozen=True)
class EmbeddingModel:
    """A loaded embedding model."""

    manifest: Manifest
    tokenizer: Tokenizer
    session: Session
    scheduler: Scheduler

    def embed(self, texts: Sequence[str], options: EmbedOptions) -> Embeddings:
        """Embed texts, at least one.

        Raises InvalidRequest for what this model cannot do, ModelOutputInvalid for NaN and infinity.
        """
        dimensions = self._checked_dimensions(options)
        sequences = self._checked_tokens(texts, truncate=options.truncate)
        pooled = np.stack(self.scheduler.submit(self.session, sequences, Output.POOLED))
        if not np.isfinite(pooled).all():
            raise ModelOutputInvalid(self.manifest.name)
        return Embeddings(pooling.unit(pooled, dimensions), sum(len(ids) for ids in sequences))

    def warm_up(self) -> None:
        """Run both ways through the graph once. Raises ModelOutputInvalid when the answer is not finite."""
        self.embed(WARM_UP_TEXTS, EmbedOptions(truncate=True))

    def _checked_dimensions(self, options: EmbedOptions) -> int:
        """Check what is asked for against what the model can do; return the size of the answer."""
        name = self.manifest.name
        if options.late_chunking:
            raise LateChunkingUnsupported(f"Model {name} does not support late_chunking.")
        if options.return_multivector:
            raise InvalidRequest(
                f"Model {name} has no multi-vectors; leave return_multivector out.",
                param="return_multivector",
                code="unsupported_option",
            )
        if options.task is not None:
            raise InvalidRequest(
                f"Model {name} has no tasks; leave 'task' out.", param="task", code="unknown_task"
            )
        size = self.manifest.dimensions
        wanted = size if options.dimensions is None else options.dimensions
        if wanted != size and not (self.manifest.truncatable and 1 <= wanted <= size):
            allowed = f"from 1 to {size}" if self.manifest.truncatable else f"{size}, its own size,"
            raise InvalidRequest(
                f"'dimensions' is {wanted}; model {name} takes only {allowed}.",
                param="dimensions",
                code="invalid_dimensions",
            )
        return wanted

    def _checked_tokens(self, texts: Sequence[str], *, truncate: bool) -> list[Ids]:
        """Tokenize; refuse inputs without tokens and, unless `truncate`, those over the limit."""
        limit = self.manifest.max_tokens
        encoded = self.tokenizer.encode(texts, limit)
        for index, tokens in enumerate(encoded):
            if not tokens.num_tokens:
                raise InvalidRequest(
                    f"input[{index}] has no token; send a text.", param=f"input[{index}]", code="empty_input"
                )
            if tokens.num_tokens > limit and not truncate:
                count = f"{'' if tokens.is_whole else 'at least '}{tokens.num_tokens}"
                raise InvalidRequest(
                    f"input[{index}] has {count} tokens, more than the {limit} that {self.manifest.name} "
                    "takes. Send 'truncate': true to cut it off, or split it.",
                    param=f"input[{index}]",
                    code="input_too_long",
                )
        return [tokens.ids for tokens in encoded]


def open_model(
    folder: Path, manifest: Manifest, precision: Precision, settings: SessionSettings, scheduler: Scheduler
) -> EmbeddingModel:
    """Open a bundle's tokenizer and graph. Raises BundleError when either is broken."""
    variant = next(variant for variant in manifest.variants if variant.precision == precision)
    tokenizer = tokenization.load(folder / TOKENIZER_FILE)
    session = Session(folder / variant.file, replace(settings, may_pad=precision not in ROUNDS_ACTIVATIONS))
    return EmbeddingModel(manifest, tokenizer, session, scheduler)
