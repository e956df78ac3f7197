"""Token ids from a checkpoint's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert import vocabulary
from service.errors import BakeError
from tests import qwen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    qwen.write_tokenizer(tmp_path, (qwen.DOCUMENT_MARKER, qwen.QUERY_MARKER))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("tokens", [("yes", "no"), ("no", "yes"), (qwen.DOCUMENT_MARKER, qwen.QUERY_MARKER)])
def test_ids_come_in_the_order_of_the_tokens(path: Path, tokens: tuple[str, str]) -> None:
    made = qwen.tokenizer((qwen.DOCUMENT_MARKER, qwen.QUERY_MARKER))
    ids = vocabulary.ids_of(path, tokens)
    assert len(set(ids)) == len(tokens)
    assert tuple(made.id_to_token(token_id) for token_id in ids) == tokens


def test_missing_tokens_are_named(path: Path) -> None:
    with pytest.raises(BakeError, match=r"has no token <\|score_token\|>, maybe, which"):
        vocabulary.ids_of(path, ("yes", qwen.SCORE_MARKER, "maybe"))


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(BakeError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        vocabulary.ids_of(path, ("yes",))


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BakeError, match="cannot be read"):
        vocabulary.ids_of(tmp_path / "tokenizer.json", ("yes",))


def test_without_tokens_the_tokenizer_is_not_read(tmp_path: Path) -> None:
    assert vocabulary.ids_of(tmp_path / "absent.json", ()) == ()
