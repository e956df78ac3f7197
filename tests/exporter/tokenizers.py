"""Compares tokenizers in uncommon layouts with those that transformers makes of the same files.

Run as python -m tests.exporter.tokenizers, where the export extra is installed: prints, as JSON, for every
layout the texts for which both do not have the same ids, and for how many texts the layout matters.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import transformers
from tokenizers import Tokenizer

from convert import tokenizer_files, vocabulary
from tests.exporter import checkpoints
from tests.exporter.checkpoints import Tiny

TEXTS = (
    "the river is far", "An Answer", " two spaces", "café olé", "a riverbank, far", "x 中文 y",
    "naïve RIVERBANK",
)  # fmt: skip
BERT, WORDS = (
    Tiny("BertConfig", checkpoints.SIZES),
    Tiny("BertConfig", checkpoints.SIZES, has_only_words=True),
)
ROBERTA = Tiny("RobertaConfig", checkpoints.ROBERTA, is_roberta=True)
ADDED = {"content": "riverbank", "lstrip": False, "rstrip": False, "normalized": True, "single_word": False,
         "special": False}  # fmt: skip
LETTERS = "éïñ中文ARB"  # each becomes a token of its own, at the begin of a word and within
Edit = Callable[[Path], None]


def setting(**values: object) -> Edit:
    """Return what puts settings into tokenizer_config.json."""

    def edit(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def adding(folder: Path) -> None:
    """Name a token in tokenizer_config.json alone."""
    path = folder / "tokenizer_config.json"
    known = json.loads(path.read_text()).get("added_tokens_decoder", {})
    setting(added_tokens_decoder={**known, str(_size(folder)): ADDED})(folder)


def adding_by_file(folder: Path) -> None:
    """Name a token in the file that older versions write."""
    (folder / "added_tokens.json").write_text(json.dumps({"riverbank": _size(folder)}))


def with_bytes(folder: Path) -> None:
    """Cut texts as RoBERTa does, by bytes, of which the space is one."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = None
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                                "use_regex": True}  # fmt: skip
    words = content["model"]["vocab"]
    content["model"]["vocab"] = {word: number for word, number in words.items() if number < 2000}
    content["model"]["vocab"] |= {f"Ġ{letter}": 2000 + number for number, letter in enumerate("trabx")}
    path.write_text(json.dumps(content))
    setting(tokenizer_class="RobertaTokenizerFast", add_prefix_space=True)(folder)


def with_letters(folder: Path) -> None:
    """Let the vocabulary know letters of other scripts, and those of upper case."""
    pieces = [piece for letter in LETTERS for piece in (letter, f"##{letter}")]
    renamed = {f"[unused{number + 100}]": piece for number, piece in enumerate(pieces)}
    words, path = folder / "vocab.txt", folder / "tokenizer.json"
    if words.is_file():
        words.write_text("".join(f"{renamed.get(w, w)}\n" for w in words.read_text().splitlines()))
    else:
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"]
        content["model"]["vocab"] = {renamed.get(word, word): number for word, number in vocabulary.items()}
        path.write_text(json.dumps(content))


FAST = "BertTokenizerFast"
LAYOUTS: dict[str, tuple[Tiny, Edit]] = {
    "the class without letters": (BERT, setting(do_lower_case=False)),
    "cased over lower-casing": (BERT, setting(tokenizer_class=FAST, do_lower_case=False)),
    "accents kept": (BERT, setting(tokenizer_class=FAST, strip_accents=False)),
    "chinese in one": (BERT, setting(tokenizer_class=FAST, tokenize_chinese_chars=False)),
    "a token more": (BERT, adding),
    "words, as they are": (WORDS, setting()),
    "words, cased": (WORDS, setting(do_lower_case=False)),
    "words, accents kept": (WORDS, setting(strip_accents=False)),
    "words, chinese in one": (WORDS, setting(tokenize_chinese_chars=False)),
    "words, a token more": (WORDS, adding_by_file),
    "bytes, with a space": (ROBERTA, with_bytes),
}


def differing(folder: Path, tiny: Tiny, edit: Edit) -> tuple[list[str], int]:
    """Write a layout; return the texts whose ids differ, and for how many it makes a difference."""
    checkpoints.write(folder, tiny)
    with_letters(folder)
    edit(folder)
    made = tokenizer_files.read(folder, json.loads((folder / "config.json").read_text())["model_type"])
    assert made, "it has a tokenizer.json or a list of words"
    own = Tokenizer.from_str(made.decode())
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    wrong = [text for text in TEXTS if own.encode(text).ids != theirs(text)["input_ids"]]
    words = folder / "vocab.txt"
    plain = vocabulary.of_word_pieces(words) if words.is_file() else (folder / "tokenizer.json").read_bytes()
    bare = Tokenizer.from_str(plain.decode())
    return wrong, sum(own.encode(text).ids != bare.encode(text).ids for text in TEXTS)


def _size(folder: Path) -> int:
    words = folder / "vocab.txt"
    if words.is_file():
        return len(words.read_text(encoding="utf-8").splitlines())
    return len(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab())


def main() -> None:
    """Print what differs."""
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            name: differing(Path(scratch) / str(number), tiny, edit)
            for number, (name, (tiny, edit)) in enumerate(LAYOUTS.items())
        }
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
