"""A live service under texts of ever other lengths keeps the memory that it has after its first seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.manifest import Precision
from tests.bench import soak
from tests.bench.server import serve
from tests.bench.soak import MAX_GROWTH, Load, Memory, Soak
from tests.conftest import MODEL

# For a third of the time threads get to know their first long texts; of the rest the halves are compared. A
# run that goes on may add a fifth to a sample: over two minutes in which memory stayed, medians of 10 samples
# differed from those of the next 10 by up to 7 %, of 14 by up to 5 %.
SECONDS, BASELINE_SECOND, WINDOW = 42, 28, 14


def test_growth_is_seen() -> None:
    leaking = Soak([Memory(100.0 + second, 10.0) for second in range(60)], num_requests=1)
    assert leaking.growth(20).resident == pytest.approx(154.5 / 114.5)
    assert leaking.growth(20).anonymous == 1.0


@pytest.mark.full
def test_memory_stays_as_lengths_vary(real_models: Path) -> None:
    check(real_models, MODEL, soak.DEFAULT_LOAD)


@pytest.mark.full
def test_memory_stays_as_long_texts_come_and_go(tmp_path: Path) -> None:
    check(tmp_path, soak.bake_long(tmp_path, [Precision.INT8]), soak.LONG_LOAD)


def check(models: Path, model: str, load: Load) -> None:
    with serve(models, Precision.INT8, model) as service:
        found = soak.measure(service, load, SECONDS)
    growth = found.growth(BASELINE_SECOND, WINDOW)
    assert found.num_requests > load.num_clients
    assert growth.resident < MAX_GROWTH, found.samples
    assert growth.anonymous < MAX_GROWTH, found.samples
