"""Tokens: with special tokens, without what the file switches on, cut as the library itself would cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as NativeTokenizer

from service import tokenization
from service.errors import BundleError

TEXTS = ["", "a", "hello world", "x" * 60]


@pytest.fixture(scope="module")
def path(tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint / "tokenizer.json"


def test_truncation_and_padding_of_the_file_are_off(path: Path) -> None:
    assert [len(tokens.ids) for tokens in tokenization.load(path).encode(TEXTS, 100)] == [2, 3, 12, 62]


def test_one_text_and_many_agree(path: Path) -> None:
    tokenizer = tokenization.load(path)
    alone = [tokenizer.encode([text], 100)[0].ids.tolist() for text in TEXTS]
    assert [tokens.ids.tolist() for tokens in tokenizer.encode(TEXTS, 100)] == alone


@pytest.mark.parametrize("max_tokens", [2, 3, 5, 40, 100])
def test_truncation_equals_the_library(path: Path, max_tokens: int) -> None:
    native = NativeTokenizer.from_file(str(path))
    native.no_padding()
    native.enable_truncation(max_tokens)
    tokenizer = tokenization.load(path)
    texts = [*TEXTS, "one two three " * 1000, " " * 20_000 + "end"]
    cut = [tokens.ids.tolist() for tokens in tokenizer.encode(texts, max_tokens)]
    assert cut == [native.encode(text).ids for text in texts]


@pytest.mark.parametrize(
    ("text", "is_whole"), [("ab " * 10_000, False), (" " * 30_000 + "ab", True), ("ab " * 20, True)]
)
def test_a_text_far_over_the_limit_is_not_read_to_its_end(path: Path, text: str, is_whole: bool) -> None:
    (tokens,) = tokenization.load(path).encode([text], 10)
    assert tokens.is_whole == is_whole
    assert len(tokens.ids) <= 10
    assert (tokens.num_tokens > 20) == (len(text.split()) > 10)
    assert tokens.num_tokens < 2000


def test_a_text_that_grows_when_it_is_normalized_is_read_for_what_it_becomes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One character of 18: a text of them was read, and took memory, for 18 times the characters allowed."""
    read: list[str] = []
    tokenizer = tokenization.load(path)
    encode = tokenization.Tokenizer._encode

    def noted(self: tokenization.Tokenizer, texts: list[str]) -> list[tokenization.Ids]:
        read.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(tokenization.Tokenizer, "_encode", noted)
    text = "\ufdfa " * 50_000
    allowed = 100 * tokenization.PREFIX_CHARACTERS
    (tokens,) = tokenizer.encode([text], 100)
    assert len(read[0]) * 9 <= allowed  # with the spaces
    whole = tokenizer.native.encode(text[:allowed])
    assert tokens.ids.tolist() == tokenizer._cut(np.array(whole.ids), 100, is_whole=True).ids.tolist()


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        tokenization.load(tmp_path / "tokenizer.json")


def test_many_texts_are_encoded_in_parts_and_in_order(path: Path) -> None:
    texts = ["x" * (number % 37) for number in range(3 * tokenization.TEXTS_AT_ONCE + 1)]
    tokens = tokenization.load(path).encode(texts, 100)
    assert [found.num_tokens for found in tokens] == [2 + number % 37 for number in range(len(texts))]


@pytest.mark.parametrize("at_once", [1, 30, 10_000])
def test_texts_are_tokenized_in_calls_of_so_many_characters(
    path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    expected = [tokens.ids.tolist() for tokens in tokenization.load(path).encode(TEXTS * 3, 100)]
    monkeypatch.setattr(tokenization, "CHARACTERS_AT_ONCE", at_once)
    found = [tokens.ids.tolist() for tokens in tokenization.load(path).encode(TEXTS * 3, 100)]
    assert found == expected
    assert [len(part) for part in tokenization._parts(["a" * 10] * 5, 100)] == (
        {1: [1] * 5, 30: [3, 2], 10_000: [5]}[at_once]
    )
