"""What stands beside a tokenizer.json. Beside transformers itself: tests/test_exporter.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from convert import tokenizer_files, vocabulary
from service.errors import BakeError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "A", "é", "e"]
ADDED = {"content": "new", "special": False, "normalized": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that has BERT's list of words alone."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return tmp_path


def with_settings(folder: Path, **values: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def with_tokenizer(folder: Path) -> Path:
    (folder / "tokenizer.json").write_bytes(vocabulary.of_word_pieces(folder / "vocab.txt"))
    return folder


def tokens(folder: Path, text: str) -> list[str]:
    made = tokenizer_files.read(folder, "bert")
    assert made
    found: list[str] = Tokenizer.from_str(made.decode()).encode(text, add_special_tokens=False).tokens
    return found


@pytest.mark.parametrize("make", [lambda folder: folder, with_tokenizer], ids=["words", "tokenizer.json"])
def test_settings_of_letters_are_followed(folder: Path, make: Any) -> None:
    make(folder)
    assert tokens(folder, "A é") == ["a", "e"]
    assert tokens(with_settings(folder, do_lower_case=False), "A é") == ["A", "é"]
    assert tokens(with_settings(folder, strip_accents=False), "A é") == ["a", "é"]


def test_a_class_without_them_ignores_them(folder: Path) -> None:
    given = with_settings(
        with_tokenizer(folder), do_lower_case=False, tokenizer_class="PreTrainedTokenizerFast"
    )
    assert tokens(given, "A") == ["a"]


def test_nothing_said_changes_nothing(folder: Path) -> None:
    given = with_tokenizer(folder)
    before = (given / "tokenizer.json").read_bytes()
    assert tokenizer_files.read(given, "bert") == before
    assert tokenizer_files.read(with_settings(given, do_lower_case=True), "bert") == before


@pytest.mark.parametrize("is_old", [False, True])
def test_tokens_that_are_named_beside_it_are_added(folder: Path, is_old: bool) -> None:
    assert tokens(with_tokenizer(folder), "a new") == ["a", "[UNK]"]
    if is_old:
        (folder / "added_tokens.json").write_text(json.dumps({"new": len(WORDS)}))
    else:
        with_settings(folder, added_tokens_decoder={str(len(WORDS)): ADDED, "2": {"content": "[CLS]"}})
    assert tokens(folder, "a new") == ["a", "new"]


def test_an_id_that_the_tokenizer_has_otherwise_is_refused(folder: Path) -> None:
    with pytest.raises(BakeError, match="'new' has the id 77, but in its tokenizer it has 9"):
        tokenizer_files.read(with_settings(folder, added_tokens_decoder={"77": ADDED}), "bert")


@pytest.mark.parametrize(
    ("kind", "name"), [("bert", "BertJapaneseTokenizer"), ("distilbert", "DistilBertTokenizer"), ("bert", 1)]
)
def test_other_lists_of_words_are_for_transformers(folder: Path, kind: str, name: Any) -> None:
    assert tokenizer_files.read(with_settings(folder, tokenizer_class=name), kind) is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}, "trust_remote_code"),
        ({"truncation_side": "left"}, "cut at their end"),
    ],
)
def test_what_cannot_be_followed_is_refused(folder: Path, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(BakeError, match=reason):
        tokenizer_files.read(with_settings(folder, **values), "bert")


def test_types_of_second_texts_are_asked_for_by_name(folder: Path) -> None:
    assert tokenizer_files.has_types(folder)
    assert tokenizer_files.has_types(with_settings(folder, model_input_names=["input_ids", "token_type_ids"]))
    assert not tokenizer_files.has_types(with_settings(folder, model_input_names=["input_ids"]))
