"""Make convert/data/sentences.jsonl: 200 varied texts for measuring what quantization costs.

Needs the shared data folder (with retrieval/xquad and retrieval/code in it) and the standard library only; no
torch and no sentence-transformers, and no test needs this script. The choice is deterministic: the order is
that of SHA-256 digests, so a second run writes the same bytes. Command, from the root of the repository:

    python tests/reference/make_sentences.py SHARED_DATA_FOLDER
"""

import argparse
import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

OUTPUT = Path(__file__).resolve().parents[2] / "convert" / "data" / "sentences.jsonl"
TOTAL = 200
FUNCTIONS = 25
DOCSTRINGS = 10
# Lines from XQuAD per language: (questions, sentences, paragraphs, words).
PLAN = {
    "en": (20, 20, 6, 5),
    "de": (4, 4, 2, 1),
    "ru": (4, 4, 2, 1),
    "zh": (4, 4, 2, 1),
    "ar": (5, 4, 1, 1),
    "el": (4, 4, 1, 1),
    "es": (4, 4, 1, 1),
    "hi": (4, 4, 1, 1),
    "ro": (4, 4, 1, 1),
    "th": (4, 4, 1, 1),
    "tr": (4, 4, 1, 1),
    "vi": (4, 4, 1, 1),
}
ARTICLE = 5  # The corpus has 240 paragraphs in order, from 48 articles.
ENDS = {"zh": r"(?<=[。\uff01\uff1f])", "hi": r"(?<=[।?!])\s+", "ar": r"(?<=[.؟!])\s+", "th": r"\s+"}
OTHER_END = r"(?<=[^\W_]{3}[.!?])\s+|(?<=[)\]»”\"%][.!?])\s+|(?<=[.!?][)»”\"])\s+"
PAIRS = ("()", "[]", "«»", "“”")
SENTENCE_LENGTH = {"zh": (20, 120), "th": (40, 250)}

Row = dict[str, str]


def read_lines(path: Path) -> list[Row]:
    """Read every object of a gzip-compressed JSON lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def digest(*parts: str) -> str:
    """Return a digest of the parts to sort by, which is arbitrary but always the same."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def article_of(paragraph: str) -> int:
    """Return the number of the article that a paragraph such as p123 belongs to."""
    return int(paragraph[1:]) // ARTICLE


def is_balanced(text: str, language: str) -> bool:
    """Return whether quotation marks and brackets are closed in the text."""
    pairs = PAIRS[:3] if language == "de" else PAIRS
    return text.count('"') % 2 == 0 and all(text.count(pair[0]) == text.count(pair[1]) for pair in pairs)


def cut_sentence(text: str, language: str) -> str:
    """Return one whole sentence of the paragraph, or an empty string where none is of a fitting length."""
    low, high = SENTENCE_LENGTH.get(language, (50, 280))
    pieces = [piece.strip() for piece in re.split(ENDS.get(language, OTHER_END), text)]
    fitting = [piece for piece in pieces if low <= len(piece) <= high and is_balanced(piece, language)]
    if language not in ENDS:
        fitting = [piece for piece in fitting if piece[-1] in ".!?" and not piece[0].islower()]
    return min(fitting, key=lambda piece: digest("sentence", language, piece), default="")


class Chooser:
    """Choose XQuAD lines such that no paragraph gives two lines and articles are used evenly."""

    def __init__(self, folder: Path) -> None:
        """Read the paragraphs, the questions and the links between them."""
        self.paragraphs = {lang: self._texts(folder / f"corpus.{lang}.jsonl.gz") for lang in PLAN}
        self.questions = {lang: read_lines(folder / f"queries.{lang}.jsonl.gz") for lang in PLAN}
        links = (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]
        self.paragraph_of = dict(link.split("\t")[:2] for link in links)
        self.used: set[str] = set()
        self.article_uses: dict[int, int] = {}
        self.texts: set[str] = set()
        self.rows: list[Row] = []

    @staticmethod
    def _texts(path: Path) -> dict[str, str]:
        """Return the texts of a file by their id."""
        return {row["_id"]: row["text"] for row in read_lines(path)}

    def take(self, count: int, language: str, kind: str, candidates: Iterable[tuple[str, str]]) -> None:
        """Take the given number of (paragraph id, text) candidates, early ones and rare articles first."""
        pool = list(candidates)
        for _ in range(count):
            free = [(par, text) for par, text in pool if par not in self.used and text not in self.texts]
            paragraph, text = min(free, key=lambda item: self.article_uses.get(article_of(item[0]), 0))
            self.used.add(paragraph)
            article = article_of(paragraph)
            self.article_uses[article] = self.article_uses.get(article, 0) + 1
            self.texts.add(text)
            self.rows.append({"text": text, "language": language, "kind": kind, "source": "xquad"})

    def choose_paragraphs(self, language: str, count: int) -> None:
        """Take long whole paragraphs."""
        clean = [item for item in self.paragraphs[language].items() if not item[1].startswith("\ufeff")]
        longest = sorted(clean, key=lambda item: (-len(item[1]), item[0]))
        self.take(count, language, "paragraph", longest)

    def choose_words(self, language: str, count: int) -> None:
        """Take answers of one to three words without digits."""
        short = [
            (self.paragraph_of[row["_id"]], row["answer"])
            for row in self.questions[language]
            if 3 <= len(row["answer"]) <= 25
            and len(row["answer"].split()) <= 3
            and not re.search(r"\d", row["answer"])
        ]
        self.take(count, language, "word", sorted(short, key=lambda item: digest("word", language, *item)))

    def choose_questions(self, language: str, count: int) -> None:
        """Take questions."""
        pairs = [(self.paragraph_of[row["_id"]], row["text"]) for row in self.questions[language]]
        order = sorted(pairs, key=lambda item: digest("question", language, *item))
        self.take(count, language, "question", order)

    def choose_sentences(self, language: str, count: int) -> None:
        """Take single sentences cut from paragraphs."""
        cut = [(key, cut_sentence(text, language)) for key, text in self.paragraphs[language].items()]
        order = sorted(cut, key=lambda item: digest("order", language, *item))
        self.take(count, language, "sentence", [item for item in order if item[1]])


def choose_xquad(folder: Path) -> list[Row]:
    """Choose the natural-language lines of all twelve languages."""
    chooser = Chooser(folder)
    for language, plan in PLAN.items():
        chooser.choose_paragraphs(language, plan[2])
    for language, plan in PLAN.items():
        chooser.choose_words(language, plan[3])
    for language, plan in PLAN.items():
        chooser.choose_questions(language, plan[0])
        chooser.choose_sentences(language, plan[1])
    return chooser.rows


def choose_cpython(folder: Path) -> list[Row]:
    """Choose functions of many lengths and docstrings of other functions, each from another module."""
    functions = read_lines(folder / "corpus.jsonl.gz")
    docstrings = {row["_id"]: row["text"] for row in read_lines(folder / "queries.jsonl.gz")}
    links = (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]
    docstring_of = {link.split("\t")[1]: docstrings[link.split("\t")[0]] for link in links}
    by_length = sorted(functions, key=lambda row: (len(row["text"]), row["_id"]))
    rows: list[Row] = []
    modules: set[str] = set()
    for number in range(FUNCTIONS):
        part = by_length[number * len(by_length) // FUNCTIONS : (number + 1) * len(by_length) // FUNCTIONS]
        fresh = [row for row in part if row["path"] not in modules] or part
        row = min(fresh, key=lambda row: digest("function", row["_id"]))
        modules.add(row["path"])
        rows.append({"text": row["text"], "language": "code", "kind": "code", "source": "cpython"})
    for row in sorted(functions, key=lambda row: digest("docstring", row["_id"])):
        if len(rows) == FUNCTIONS + DOCSTRINGS:
            break
        text = docstring_of[row["_id"]]
        if row["path"] in modules or not 40 <= len(text) <= 300 or not text.endswith("."):
            continue
        modules.add(row["path"])
        rows.append({"text": text, "language": "en", "kind": "sentence", "source": "cpython"})
    return rows


def main() -> None:
    """Write the file of texts in a mixed order."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "shared_data", type=Path, help="the folder that holds retrieval/xquad and retrieval/code"
    )
    retrieval = parser.parse_args().shared_data / "retrieval"
    rows = choose_xquad(retrieval / "xquad") + choose_cpython(retrieval / "code")
    texts = {row["text"] for row in rows}
    if len(rows) != TOTAL or len(texts) != TOTAL or not all(text.strip() for text in texts):
        raise SystemExit(f"expected {TOTAL} different texts, found {len(texts)} in {len(rows)} lines")
    rows.sort(key=lambda row: digest("file", row["text"]))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    OUTPUT.write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
