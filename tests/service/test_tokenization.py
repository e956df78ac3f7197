"""Tokens: with special tokens, without what the file switches on, cut as the library itself would cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as NativeTokenizer

from service import tokenization
from service.errors import BundleError

TEXTS = ["", "a", "hello world", "x" * 60]


@pytest.fixture(scope="module")
def path(tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint / "tokenizer.json"


def test_truncation_and_padding_of_the_file_are_off(path: Path) -> None:
    assert [len(ids) for ids in tokenization.load(path).encode(TEXTS)] == [2, 3, 12, 62]


def test_one_text_and_many_agree(path: Path) -> None:
    tokenizer = tokenization.load(path)
    assert [ids.tolist() for ids in tokenizer.encode(TEXTS)] == [
        tokenizer.encode([text])[0].tolist() for text in TEXTS
    ]


@pytest.mark.parametrize("max_tokens", [2, 3, 5, 40, 100])
def test_truncation_equals_the_library(path: Path, max_tokens: int) -> None:
    native = NativeTokenizer.from_file(str(path))
    native.no_padding()
    native.enable_truncation(max_tokens)
    tokenizer = tokenization.load(path)
    cut = [tokenizer.truncate(ids, max_tokens).tolist() for ids in tokenizer.encode(TEXTS)]
    assert cut == [native.encode(text).ids for text in TEXTS]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        tokenization.load(tmp_path / "tokenizer.json")
