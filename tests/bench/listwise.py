"""Requests of many long documents to jina-reranker-v3, which sets them all in one prompt. Sends nothing.

The speed counts the tokens of the whole prompt; billed are the query once and each document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from service import manifest as contract
from service import tokenization
from service.listwise import prompt
from service.manifest import TOKENIZER_FILE
from tests.bench import cases, models
from tests.bench.cases import RERANK_ROUTE, Case
from tests.bench.client import Request
from tests.bench.errors import BenchError
from tests.bench.texts import Texts

NUM_CHARACTERS = 2000  # of a document
CASE_NAME = "documents (tokens)"


def of_counts(counts: Sequence[int], texts: Texts, bundle: Path) -> list[Case]:
    """Make a case of each number of documents. Raises BenchError for more than one prompt holds."""
    tokenizer, limits = tokenization.load(bundle / TOKENIZER_FILE), contract.load(bundle).listwise
    if limits is None:
        raise BenchError(f"{bundle} is no listwise reranker")
    query, made = texts.questions[0], []
    for number in counts:
        if number > limits.block_size:
            raise BenchError(
                f"{number} documents: more than {limits.block_size} are split into several prompts"
            )
        documents = list(_documents(texts.passages, number))
        num_billed = sum(cases.count(tokenizer, [query, *documents]))
        (num_tokens,) = cases.count(tokenizer, [prompt(query, documents, None, limits)])
        body = {
            "model": models.LISTWISE_RERANKER,
            "query": query,
            "documents": documents,
            "return_documents": False,
        }
        request = Request(RERANK_ROUTE, orjson.dumps(body), num_billed)
        made.append(Case(f"{number} ({num_tokens:,})", request, 1, num_tokens))
    return made


def _documents(passages: Sequence[str], number: int) -> Iterator[str]:
    """Cut documents of equal length out of the passages set one after the other, over and over."""
    joined = " ".join(passages) + " "
    joined *= -(-number * NUM_CHARACTERS // len(joined))
    for begin in range(0, number * NUM_CHARACTERS, NUM_CHARACTERS):
        yield joined[begin : begin + NUM_CHARACTERS]
