"""What a manifest says of the prompts of listwise rerankers. Data only."""

from __future__ import annotations

from dataclasses import dataclass

# Tokens of a listwise prompt beyond its capacity, which counts the texts but not the words around them, some
# ten a document, nor an instruction. The reference computes positions without a limit; a graph has a table.
PROMPT_ROOM = 4096


@dataclass(frozen=True, kw_only=True)
class Listwise:
    """The marker tokens and the limits of a listwise reranker, in tokens unless said."""

    document_marker: str
    query_marker: str
    max_query_length: int
    max_doc_length: int
    block_size: int  # documents of one prompt
    capacity: int  # of one prompt
