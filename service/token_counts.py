"""How many tokens texts have for a model, with the prefix of a task. Runs no graph; knows no HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service import options
from service.errors import InvalidRequest
from service.loading import Model
from service.manifest import Kind
from service.options import EmbedOptions
from service.tokenization import Ids, grown_length

MAX_CHARACTERS = 1_000_000  # of one request, once normalized
NEVER_CUT = 1 << 24  # tokens: more than so many characters have


@dataclass(frozen=True)
class Counted:
    """The ids of every text as the model reads it, never cut, and the tokens that `usage` counts."""

    ids: list[Ids]
    num_tokens: int  # without a task's prefix


def count(model: Model, texts: Sequence[str], task: str | None) -> Counted:
    """Tokenize texts. Raises InvalidRequest for an unknown task and for too many characters."""
    num_characters = sum(map(grown_length, texts))
    if num_characters > MAX_CHARACTERS:
        raise InvalidRequest(
            f"'input' has {num_characters} characters once normalized, more than the {MAX_CHARACTERS} of one "
            "request; send several requests.",
            param="input",
            code="too_many_characters",
        )
    prefix = _prefix(model, task)
    bare = [tokens.ids for tokens in model.tokenizer.encode(texts, NEVER_CUT)]
    read = bare
    if prefix:
        prefixed = [prefix + text for text in texts]
        read = [tokens.ids for tokens in model.tokenizer.encode(prefixed, NEVER_CUT)]
    return Counted(read, sum(map(len, bare)))


def _prefix(model: Model, task: str | None) -> str:
    manifest = model.manifest
    if manifest.kind == Kind.RERANKER and task is None:
        return ""  # its prompts are made of more than one text
    found = options.task_of(manifest, EmbedOptions(task=task))
    return found.prefix if found else ""
