"""Requests of many long documents to jina-reranker-v3, which sets them all in one prompt. Sends nothing.

The speed counts the tokens of the whole prompt; billed are the query once and each document. Source of the
prompt: jinaai/jina-reranker-v3, modeling.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from service import tokenization
from service.manifest import TOKENIZER_FILE
from tests.bench import cases, models
from tests.bench.cases import RERANK_ROUTE, Case
from tests.bench.client import Request
from tests.bench.errors import BenchError
from tests.bench.texts import Texts

NUM_CHARACTERS = 2000  # of a document
MAX_DOCUMENTS = 125  # of one prompt
CASE_NAME = "documents (tokens)"
BEFORE = (
    "<|im_start|>system\n"
    "You are a search relevance expert who can determine a ranking of the passages based on how "
    "relevant they are to the query. If the query is a question, how relevant a passage is depends on "
    "how well it answers the question. If not, try to analyze the intent of the query and assess how "
    "well each passage satisfies the intent. If an instruction is provided, you should follow the "
    "instruction when determining the ranking.<|im_end|>\n"
    "<|im_start|>user\n"
    "I will provide you with {count} passages, each indicated by a numerical identifier. Rank the passages "
    "based on their relevance to query: {query}\n"
)
PASSAGE = '<passage id="{number}">\n{document}<|embed_token|>\n</passage>\n'
AFTER = "<query>\n{query}<|rerank_token|>\n</query><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def of_counts(counts: Sequence[int], texts: Texts, bundle: Path) -> list[Case]:
    """Make a case of each number of documents. Raises BenchError for more than one prompt holds."""
    tokenizer = tokenization.load(bundle / TOKENIZER_FILE)
    query, made = texts.questions[0], []
    for number in counts:
        if number > MAX_DOCUMENTS:
            raise BenchError(f"{number} documents: more than {MAX_DOCUMENTS} are split into several prompts")
        documents = list(_documents(texts.passages, number))
        num_billed = sum(cases.count(tokenizer, [query, *documents]))
        (num_tokens,) = cases.count(tokenizer, [prompt(query, documents)])
        body = {
            "model": models.LISTWISE_RERANKER,
            "query": query,
            "documents": documents,
            "return_documents": False,
        }
        request = Request(RERANK_ROUTE, orjson.dumps(body), num_billed)
        made.append(Case(f"{number} ({num_tokens:,})", request, 1, num_tokens))
    return made


def prompt(query: str, documents: Sequence[str]) -> str:
    """Set a query and documents as the model reads them."""
    passages = [PASSAGE.format(number=index, document=text) for index, text in enumerate(documents)]
    return BEFORE.format(count=len(documents), query=query) + "".join(passages) + AFTER.format(query=query)


def _documents(passages: Sequence[str], number: int) -> Iterator[str]:
    """Cut documents of equal length out of the passages set one after the other, over and over."""
    joined = " ".join(passages) + " "
    joined *= -(-number * NUM_CHARACTERS // len(joined))
    for begin in range(0, number * NUM_CHARACTERS, NUM_CHARACTERS):
        yield joined[begin : begin + NUM_CHARACTERS]
