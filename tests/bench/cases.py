"""Requests whose texts have an exact number of tokens. Knows tokenizers and routes, sends nothing."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from service import manifest as contract
from service import options, tokenization
from service.manifest import TOKENIZER_FILE, Manifest
from service.options import EmbedOptions
from service.tokenization import Tokenizer
from tests.bench.client import Request
from tests.bench.errors import BenchError
from tests.bench.load import ROUTE
from tests.bench.models import Model

RERANK_ROUTE = "/v1/rerank"
QUERY_TOKENS, SEED = 8, 0
# Each is one token of XLM-R, of BERT and of Qwen, at the begin of a text and after a space.
WORDS = ("time", "year", "man", "way", "day", "war", "world", "life", "hand", "part", "work", "end", "home")


@dataclass(frozen=True)
class Size:
    """How many texts a request has (for a reranker: documents) and the tokens of each (of each pair)."""

    num_texts: int
    num_tokens: int

    def __post_init__(self) -> None:
        """Refuse requests of nothing and pairs that the query would fill."""
        if self.num_texts < 1 or self.num_tokens < 2 * QUERY_TOKENS:
            raise ValueError(f"{self} must be at least 1x{2 * QUERY_TOKENS}")

    def __str__(self) -> str:
        """Spell it as the command line does."""
        return f"{self.num_texts}x{self.num_tokens}"


@dataclass(frozen=True)
class Case:
    """A request, its name in the table, and the rows and tokens of each that the graph computes for it."""

    label: str
    request: Request
    num_rows: int
    num_tokens: int

    @property
    def total_tokens(self) -> int:
        """Return the tokens of all rows."""
        return self.num_rows * self.num_tokens


def of_sizes(model: Model, sizes: Sequence[Size], task: str | None, bundle: Path) -> list[Case]:
    """Make a case of each size that the model takes."""
    tokenizer, manifest = tokenization.load(bundle / TOKENIZER_FILE), contract.load(bundle)
    made = []
    for size in sizes:
        if size.num_tokens > manifest.max_tokens:
            print(f"{model.name}: {size} left out: it takes {manifest.max_tokens} tokens", file=sys.stderr)
            continue
        if model.is_reranker:
            request = _pairs(manifest, size, tokenizer)
        else:
            request = _texts(manifest, size, task, tokenizer)
        made.append(Case(str(size), request, size.num_texts, size.num_tokens))
    return made


def count(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return each text's tokens with special tokens."""
    return [len(encoding.ids) for encoding in tokenizer.native.encode_batch_fast(list(texts))]


def _texts(manifest: Manifest, size: Size, task: str | None, tokenizer: Tokenizer) -> Request:
    """Special tokens and the prefix of the task, which is not billed, make up the rest of the size."""
    found = options.task_of(manifest, EmbedOptions(task=task))
    prefix = found.prefix if found else ""
    num_words = size.num_tokens + 1 - count(tokenizer, [prefix + WORDS[0]])[0]
    texts = _words(size.num_texts, num_words)
    if set(count(tokenizer, [prefix + text for text in texts])) != {size.num_tokens}:
        raise BenchError(f"{manifest.name}: texts of {size.num_tokens} tokens cannot be made of {WORDS}")
    body = {"model": manifest.name, "input": texts, "task": task}
    return Request(ROUTE, orjson.dumps(body), sum(count(tokenizer, texts)))


def _pairs(manifest: Manifest, size: Size, tokenizer: Tokenizer) -> Request:
    num_words = size.num_tokens - QUERY_TOKENS - tokenizer.native.num_special_tokens_to_add(True)
    (query,), documents = _words(1, QUERY_TOKENS), _words(size.num_texts, num_words)
    body = {"model": manifest.name, "query": query, "documents": documents, "return_documents": False}
    return Request(RERANK_ROUTE, orjson.dumps(body), sum(count(tokenizer, [query, *documents])))


def _words(num_texts: int, num_words: int) -> list[str]:
    """Make texts that differ: equal documents would be computed once."""
    chosen = random.Random(SEED)
    return [" ".join(chosen.choices(WORDS, k=num_words)) for _ in range(num_texts)]
