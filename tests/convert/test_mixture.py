"""The search for a mixture, on made-up answers."""

from __future__ import annotations

import numpy as np
import pytest

from convert import mixture
from convert.mixture import Subject
from service.manifest import Kind, Precision

NUM_LAYERS, NUM_TEXTS, SIZE = 20, 30, 16
DRAW = np.random.default_rng(2)
EXACT = DRAW.normal(size=(NUM_TEXTS, SIZE)).astype(np.float32)
NOISE = DRAW.normal(size=(NUM_LAYERS, NUM_TEXTS, SIZE)).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def subject(harm: dict[int, float]) -> Subject:
    """Make a subject whose layers, rounded, move the answers as `harm` says, the others next to nothing."""
    strengths = np.array([harm.get(layer, 1e-5) for layer in range(NUM_LAYERS)], dtype=np.float32)

    def answers(switches: np.ndarray) -> np.ndarray:
        return unit(EXACT + np.einsum("l,lnd->nd", strengths * switches, NOISE))

    sizes = {f"layer.{layer}": 100 for layer in range(NUM_LAYERS)}
    exact = unit(EXACT)
    return Subject(Kind.EMBEDDING, sizes, exact, answers, exact, answers)


def search(*subjects: Subject) -> tuple[dict[str, Precision], int]:
    steps: list[None] = []
    tasks: dict[str | None, Subject] = dict(zip("abc", subjects, strict=False))
    found = mixture.searched(list(tasks), tasks.__getitem__, lambda: steps.append(None))
    return found, len(steps)


def test_nothing_is_left_out_where_everything_may_be_rounded() -> None:
    assert search(subject({})) == ({}, 1)


def test_the_layers_that_harm_are_left_to_the_accurate_scheme() -> None:
    found, steps = search(subject({3: 0.5, 11: 0.3}))
    assert {"layer.3", "layer.11"} <= set(found)
    assert len(found) == 2  # a tenth of the weights; a twentieth is not enough
    assert set(found.values()) == {Precision.INT8_BLOCK}
    assert steps <= mixture.num_steps(NUM_LAYERS)


def test_a_layer_that_harms_one_task_is_left_out_of_all() -> None:
    found, _ = search(subject({}), subject({7: 0.5}))
    assert "layer.7" in found


def test_a_graph_beyond_help_stays_fast() -> None:
    found, _ = search(subject(dict.fromkeys(range(NUM_LAYERS), 0.5)))
    assert found == {}


@pytest.mark.parametrize(("share", "expected"), [(0.5, {"a", "c"}), (0.1, {"c"}), (0.05, set())])
def test_a_share_counts_weights_not_layers(share: float, expected: set[str]) -> None:
    sizes = {"a": 30, "b": 60, "c": 10}
    assert mixture.first(["a", "b", "c"], sizes, share) == expected
