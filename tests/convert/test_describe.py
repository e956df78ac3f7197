"""What the bake says of a model before it writes a graph."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import manifest as contract
from tests import qwen
from tests.conftest import MODEL


@pytest.mark.parametrize("model", qwen.WRITERS)
def test_the_qwen_family_is_said_to_be_decoders(tiny_qwen_models: Path, model: str) -> None:
    assert contract.load(tiny_qwen_models / model).is_decoder


def test_an_encoder_is_none(tiny_models: Path) -> None:
    assert not contract.load(tiny_models / MODEL).is_decoder
