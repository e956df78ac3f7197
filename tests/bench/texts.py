"""The texts to measure on: XQuAD English, or the project's own sentences where it is absent. Knows files.

The order of the texts for throughput is shuffled with a fixed seed: neighbours in a file are of one article.
"""

from __future__ import annotations

import csv
import gzip
import random
from dataclasses import dataclass
from pathlib import Path

import orjson

from convert import texts
from tests.bench.errors import BenchError

CORPUS_FILE, QUERIES_FILE, QRELS_FILE = "corpus.en.jsonl.gz", "queries.en.jsonl.gz", "qrels.tsv"
SEED = 0

Gains = dict[str, dict[str, float]]  # query id -> paragraph id -> gain


@dataclass(frozen=True)
class RetrievalSet:
    """Questions and paragraphs by id, and which paragraph answers which question."""

    questions: dict[str, str]
    paragraphs: dict[str, str]
    gains: Gains


@dataclass(frozen=True)
class Texts:
    """The texts of every part; `source` names them in the tables."""

    source: str
    passages: list[str]
    questions: list[str]
    retrieval: RetrievalSet | None


def load(folder: Path) -> Texts:
    """Read the XQuAD folder, or the project's own sentences if there is none. Raises BenchError."""
    if not all((folder / name).exists() for name in (CORPUS_FILE, QUERIES_FILE, QRELS_FILE)):
        own = _shuffled(texts.evaluation())
        return Texts(f"the project's own {len(own)} sentences (XQuAD is not in {folder})", own, own, None)
    found = _read_set(folder, CORPUS_FILE, QUERIES_FILE)
    source = f"XQuAD English, {len(found.paragraphs)} paragraphs, {len(found.questions)} questions"
    passages, questions = list(found.paragraphs.values()), list(found.questions.values())
    return Texts(source, _shuffled(passages), _shuffled(questions), found)


def load_code(folder: Path) -> RetrievalSet | None:
    """Read the set of functions and their descriptions; None if there is none."""
    if not (folder / QRELS_FILE).exists():
        return None
    return _read_set(folder, "corpus.jsonl.gz", "queries.jsonl.gz")


def _read_set(folder: Path, corpus: str, queries: str) -> RetrievalSet:
    return RetrievalSet(
        questions=_read_texts(folder / queries),
        paragraphs=_read_texts(folder / corpus),
        gains=_read_gains(folder / QRELS_FILE),
    )


def _shuffled(texts: list[str]) -> list[str]:
    return random.Random(SEED).sample(texts, len(texts))


def _read_texts(path: Path) -> dict[str, str]:
    try:
        with gzip.open(path, "rb") as lines:
            entries = [orjson.loads(line) for line in lines]
        return {entry["_id"]: entry["text"] for entry in entries}
    except (OSError, EOFError, KeyError, orjson.JSONDecodeError) as error:
        raise BenchError(f"{path} cannot be read: {error!r}") from error


def _read_gains(path: Path) -> Gains:
    gains: Gains = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            gains.setdefault(row["query-id"], {})[row["corpus-id"]] = float(row["score"])
    return gains
