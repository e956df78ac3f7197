"""Make convert/data/evaluation.jsonl: 400 texts that quality is measured on, none of them in sentences.jsonl.

The search for smoothing and mixtures reads sentences.jsonl alone; what it found is judged by these. No line
shares its paragraph (in its language), its question or its function with a line of sentences.jsonl. Needs the
shared data folder and the standard library only. The choice is deterministic. From the project's root:

    python -m tests.reference.make_evaluation SHARED_DATA_FOLDER
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tests.reference.make_sentences import OUTPUT as SEARCH_FILE
from tests.reference.make_sentences import PLAN, Row, cut_sentence, digest, read_lines

OUTPUT = SEARCH_FILE.with_name("evaluation.jsonl")
TOTAL = 400
# Lines per language: (questions, sentences, paragraphs); functions and docstrings of CPython.
ENGLISH, OTHERS = (110, 80, 20), (5, 5, 2)
FUNCTIONS, DOCSTRINGS = 38, 20

Candidate = tuple[str, str, str]  # kind, what it is from, text


def main() -> None:
    """Write the file of texts in a mixed order."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("shared_data", type=Path, help="the folder with retrieval/xquad and retrieval/code")
    retrieval = parser.parse_args().shared_data / "retrieval"
    searched = [json.loads(line)["text"] for line in SEARCH_FILE.read_text(encoding="utf-8").splitlines()]
    rows = [*_xquad(retrieval / "xquad", searched), *_cpython(retrieval / "code", searched)]
    texts = {row["text"] for row in rows}
    if len(rows) != TOTAL or len(texts) != TOTAL or texts & set(searched):
        raise SystemExit(f"expected {TOTAL} new texts, found {len(texts)} in {len(rows)} lines")
    rows.sort(key=lambda row: digest("evaluation", row["text"]))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    OUTPUT.write_text("".join(lines), encoding="utf-8", newline="\n")


def _xquad(folder: Path, searched: list[str]) -> Iterator[Row]:
    links = (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]
    paragraph_of = dict(link.split("\t")[:2] for link in links)
    for language in PLAN:
        paragraphs = {row["_id"]: row["text"] for row in read_lines(folder / f"corpus.{language}.jsonl.gz")}
        questions = read_lines(folder / f"queries.{language}.jsonl.gz")
        asked = {row["text"]: paragraph_of[row["_id"]] for row in questions}
        answered = {row["answer"]: paragraph_of[row["_id"]] for row in questions}
        used = {asked[text] for text in searched if text in asked}
        used |= {answered[text] for text in searched if text in answered}
        used |= {key for key, text in paragraphs.items() if any(found in text for found in searched)}
        free = {key: text for key, text in paragraphs.items() if key not in used}
        sentences = {key: cut_sentence(text, language) for key, text in free.items()}
        candidates = {
            "question": [("question", key, text) for text, key in asked.items() if key in free],
            "sentence": [("sentence", key, text) for key, text in sentences.items() if text],
            "paragraph": [("paragraph", key, text) for key, text in free.items()],
        }
        yield from _chosen(language, candidates)


def _chosen(language: str, candidates: dict[str, list[Candidate]]) -> Iterator[Row]:
    """Take lines of each kind in the order of their digests; no sentence is cut from a chosen paragraph."""
    counts = dict(zip(candidates, ENGLISH if language == "en" else OTHERS, strict=True))
    whole: set[str] = set()
    for kind in ("paragraph", "sentence", "question"):
        order = sorted(candidates[kind], key=lambda item: digest("evaluation", language, *item))
        fitting = [item for item in order if kind != "sentence" or item[1] not in whole]
        for _, key, text in fitting[: counts[kind]]:
            whole |= {key} if kind == "paragraph" else set()
            yield {"text": text, "language": language, "kind": kind, "source": "xquad"}


def _cpython(folder: Path, searched: list[str]) -> Iterator[Row]:
    functions = {row["_id"]: row["text"] for row in read_lines(folder / "corpus.jsonl.gz")}
    docstrings = {row["_id"]: row["text"] for row in read_lines(folder / "queries.jsonl.gz")}
    links = (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]
    pairs = [link.split("\t")[:2] for link in links]
    free = [
        (docstrings[query], functions[function])
        for query, function in pairs
        if not {docstrings[query], functions[function]} & set(searched)
    ]
    free.sort(key=lambda pair: digest("evaluation", *pair))
    for _, text in free[:FUNCTIONS]:
        yield {"text": text, "language": "code", "kind": "code", "source": "cpython"}
    for text, _ in free[FUNCTIONS : FUNCTIONS + DOCSTRINGS]:
        yield {"text": text, "language": "en", "kind": "sentence", "source": "cpython"}


if __name__ == "__main__":
    main()
