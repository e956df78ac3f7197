"""The words of DEVICE."""

from __future__ import annotations

import pytest

from service.devices import CPU, Device, Kind, Wish, parse


@pytest.mark.parametrize(
    ("word", "wish"),
    [
        ("auto", Wish()),
        ("cpu", Wish(Kind.CPU)),
        ("CUDA", Wish(Kind.CUDA)),
        ("cuda:0", Wish(Kind.CUDA, 0)),
        ("cuda:12", Wish(Kind.CUDA, 12)),
    ],
)
def test_words(word: str, wish: Wish) -> None:
    assert parse(word) == wish
    assert str(wish) == word.lower()


@pytest.mark.parametrize(
    "word", ["", "gpu", "cpu:0", "auto:1", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "xcpu"]
)
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="auto, cpu, cuda or cuda:N"):
        parse(word)


def test_names_of_devices() -> None:
    assert [str(CPU), str(Device(Kind.CUDA, 1))] == ["cpu", "cuda:1"]
