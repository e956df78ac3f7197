"""Graphs made elsewhere, compared with the model itself, and texts that share a run with texts alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from falcon.testing import TestClient
from tokenizers import Tokenizer

from convert import any_model, parity, torch_answers
from convert.bake import BakeRequest, Prepared, Verification, bake
from convert.graph import ATTENTION_MASK, INPUT_IDS, Graph, constant_of
from convert.parity import Expected
from convert.recipe import Recipe
from service.app import make_app
from service.config import Settings
from service.errors import BakeError
from service.manifest import Manifest, Output, Precision
from service.registry import Registry
from service.scheduler import Scheduler
from tests import checkpoints

NAME = "some-model"
TEXTS = ["a river", "Bread is baked, slowly.", "x", "a fox and a dog"]
TABLE = np.random.default_rng(0).normal(size=(3000, checkpoints.HIDDEN)).astype(np.float32) + 0.5

Pool = Callable[[Graph, str], str]


def masked(graph: Graph, words: str) -> str:
    """Add up the words of a text alone."""
    mask = graph.op("Cast", "mask", [ATTENTION_MASK], {"to": onnx.TensorProto.FLOAT})
    mask = graph.op("Unsqueeze", "mask.rows", [mask, graph.value("one", [1])])
    return graph.op(
        "Squeeze", "sum", [graph.op("MatMul", "products", [mask, words]), graph.value("one", [1])]
    )


def unmasked(graph: Graph, words: str) -> str:
    """Add up the words of a text and its padding."""
    return graph.op("ReduceSum", "sum", [words, graph.value("one", [1])], {"keepdims": 0})


def beside_others(graph: Graph, words: str) -> str:
    """Add to a text what its neighbours have."""
    own = masked(graph, words)
    return graph.op("Add", "both", [own, graph.op("ReduceMean", "others", [own, graph.value("zero", [0])])])


def not_finite_when_padded(graph: Graph, words: str) -> str:
    """Divide by 0 where a text has padding."""
    mask = graph.op("Cast", "least", [ATTENTION_MASK], {"to": onnx.TensorProto.FLOAT})
    least = graph.op("ReduceMin", "least.row", [mask, graph.value("one", [1])], {"keepdims": 1})
    return graph.op("Div", "divided", [masked(graph, words), least])


def graph_of(pool: Pool) -> Graph:
    graph = Graph("other")
    for name in (INPUT_IDS, ATTENTION_MASK):
        graph.input(name, np.int64, ("batch", "tokens"))
    table = graph.constant("table", constant_of("table", TABLE))
    graph.op("Identity", Output.POOLED, [pool(graph, graph.op("Gather", "words", [table, INPUT_IDS]))])
    graph.output(Output.POOLED, ("batch", checkpoints.HIDDEN))
    return graph


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Prepared]:
    """A recipe and a checkpoint, of which the tokenizer and the sizes alone matter here."""
    source = checkpoints.write_bert(tmp_path_factory.mktemp("padding") / NAME)
    recipe, ready, _ = any_model.prepared(str(source), NAME, offline=True)
    return recipe, ready


def sums(opened: tuple[Recipe, Prepared]) -> Expected:
    """Add up the words of every text that is compared."""
    recipe, ready = opened
    tokenizer = Tokenizer.from_str(ready.tokenizer.decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(checkpoints.POSITIONS)
    ids = [tokenizer.encode(text).ids for text in parity.built_in_texts(recipe.manifest)]
    rows = np.stack([TABLE[each].sum(axis=0) for each in ids])
    return Expected(rows / np.linalg.norm(rows, axis=1)[:, None])


def baked(
    opened: tuple[Recipe, Prepared],
    pool: Pool,
    out: Path,
    expected: Expected | None = None,
    precision: Precision = Precision.FP32,
) -> Manifest:
    """Bake a graph that adds up words, against sums of our own."""
    recipe, ready = opened
    prepared = replace(ready, graph=graph_of(pool), expected=expected or sums(opened))
    return bake(recipe, BakeRequest(out=out, precisions=(precision,), prepared=prepared,
                                    verification=Verification.SKIP))  # fmt: skip


def embedded(models: Path, texts: list[str]) -> np.ndarray:
    settings = Settings(models_dir=models)
    registry = Registry(settings, Scheduler(settings.max_batch_tokens))
    registry.load()
    assert not registry.failed()
    answer = TestClient(make_app(settings, registry)).simulate_post(
        "/v1/embeddings", json={"model": NAME, "input": texts}
    )
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json["data"]])


@pytest.mark.parametrize(
    ("pool", "never_pads"), [(masked, False), (unmasked, True), (not_finite_when_padded, True)]
)
def test_texts_share_a_run_only_where_that_moves_nothing(
    opened: tuple[Recipe, Prepared],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pool: Pool,
    never_pads: bool,
) -> None:
    manifest = baked(opened, pool, tmp_path)
    assert manifest.never_pads is never_pads
    assert ("padding moves its answers" in capsys.readouterr().out) is never_pads
    together = embedded(tmp_path, TEXTS)
    alone = np.concatenate([embedded(tmp_path, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_what_depends_on_neighbours_of_equal_length_is_not_published(
    opened: tuple[Recipe, Prepared], tmp_path: Path
) -> None:
    with pytest.raises(BakeError, match="depends on the others in its run, .*; nothing was published"):
        baked(opened, beside_others, tmp_path)
    assert not list(tmp_path.glob("[!.]*"))


@pytest.mark.parametrize(
    ("misread", "said"),
    [(None, "the exported graph differs from the model in torch by"),
     ("a river", "the tokenizer of the bundle .*: other token ids of 'a river'. The answers differ by")],
)  # fmt: skip
def test_what_differs_is_named(
    opened: tuple[Recipe, Prepared], tmp_path: Path, misread: str | None, said: str
) -> None:
    wrong = replace(sums(opened), answers=sums(opened).answers[::-1], misread=misread)
    with pytest.raises(BakeError, match=f"{said} .*worst cosine .*; nothing was published"):
        baked(opened, masked, tmp_path, wrong)


def test_a_text_is_misread_where_a_tokenizer_makes_other_ids(opened: tuple[Recipe, Prepared]) -> None:
    _, ready = opened
    tokenizer = Tokenizer.from_str(ready.tokenizer.decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    long = "a river " * checkpoints.POSITIONS

    def ids_of(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    def mistaken(text: str) -> list[int]:
        return ids_of(text.replace("x", "y"))

    assert torch_answers.misread(ready.tokenizer, ids_of, [*TEXTS, long]) is None
    assert torch_answers.misread(ready.tokenizer, mistaken, [long, *TEXTS]) == "x"


def test_the_figures_of_fp32_are_told_where_it_is_not_kept(
    opened: tuple[Recipe, Prepared], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert baked(opened, masked, tmp_path, precision=Precision.INT8).precisions == (Precision.INT8,)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "fp32" in line]
    assert "against the reference PASS, max difference" in line and line.endswith("; not kept")
