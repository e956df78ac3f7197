"""Writes tiny checkpoints, bakes them as models outside the catalog and prints how near the answers are.

python -m tests.exporter [--only NAME,...] [--out DIR]: a table, and the same as DIR/found.json. Needs the
export extra; compares with sentence-transformers where that is installed too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from falcon.testing import TestClient

from convert.__main__ import main as convert
from service.app import make_app
from service.config import Settings
from service.manifest import Precision
from service.registry import Registry
from service.scheduler import Scheduler
from tests.exporter import checkpoints, reference
from tests.exporter.checkpoints import CHECKPOINTS, Tiny
from tests.exporter.reference import Floats

QUERIES = ("where is the river", "a blue fox", "how is bread made?")
TEXTS = (
    "the river is far", "Bread is baked.", "x", "a fox, a dog; a cat", "12345 + 67", "blue sky over the sea",
    "An Answer", "town and tree",
)  # fmt: skip
LONG = "one two three four five six seven eight nine ten " * 9  # more than the limit of tokens


@dataclass(frozen=True)
class Found:
    """How a model was baked, and how near its fp32 answers are; of a reranker the largest difference."""

    name: str
    path: str  # direct or exported
    transformers: float
    sentence_transformers: float | None
    prompts: dict[str, float]
    precisions: list[str]
    never_pads: bool
    quantized_nodes: int


def compared(name: str, tiny: Tiny, out: Path) -> Found:
    """Write, bake and ask one model. Raises AssertionError where the bake or an answer fails."""
    source = checkpoints.write(out / "checkpoints" / name, tiny)
    models = out / "models" / name
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = convert(["--source", str(source), "--out", str(models), "--force"])
    assert status == 0, printed.getvalue()
    path = "exported" if "exported with optimum" in printed.getvalue() else "direct"
    client = _client(models)
    texts = TEXTS if tiny.is_reranker else (*TEXTS, LONG)
    ours = _answers(client, name, tiny, texts)
    theirs = reference.of_transformers(source, tiny, QUERIES, texts)
    sentences = reference.of_sentence_transformers(source, tiny, QUERIES, texts)
    prompts = {}
    for prompt in reference.prompts_of(source):
        expected = reference.prompted(source, texts, prompt)
        if expected is not None:
            for field in ("task", "prompt_name"):
                found = _answers(client, name, tiny, texts, **{field: prompt})
                prompts[f"{field} {prompt}"] = _nearness(found, expected, tiny)
    manifest = json.loads((models / name / "manifest.json").read_bytes())
    return Found(
        name=name,
        path=path,
        transformers=_nearness(ours, theirs, tiny),
        sentence_transformers=None if sentences is None else _nearness(ours, sentences, tiny),
        prompts=prompts,
        precisions=sorted({variant["precision"] for variant in manifest["variants"]}),
        never_pads=manifest["never_pads"],
        quantized_nodes=_quantized(models / name / "int8" / "model.onnx"),
    )


def _client(models: Path) -> TestClient:
    settings = Settings(models_dir=models, precision=Precision.FP32)
    registry = Registry(settings, Scheduler(settings.max_batch_tokens))
    registry.load()
    assert not registry.failed(), registry.failed()
    return TestClient(make_app(settings, registry))


def _answers(client: TestClient, name: str, tiny: Tiny, texts: tuple[str, ...], **fields: str) -> Floats:
    if not tiny.is_reranker:
        body = {"model": name, "input": list(texts), "truncate": True, **fields}
        answer = client.simulate_post("/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.text
        return np.array([item["embedding"] for item in answer.json["data"]])
    rows = []
    for query in QUERIES:
        answer = client.simulate_post(
            "/v1/rerank", json={"model": name, "query": query, "documents": list(texts)}
        )
        assert answer.status_code == 200, answer.text
        scores = {result["index"]: result["relevance_score"] for result in answer.json["results"]}
        rows.append([scores[index] for index in range(len(texts))])
    return np.array(rows)


def _nearness(ours: Floats, theirs: Floats, tiny: Tiny) -> float:
    """Return the worst cosine, or of scores the largest difference."""
    if tiny.is_reranker:
        return float(np.abs(ours - theirs).max())
    return float(np.einsum("nd,nd->n", ours, theirs).min())


def _quantized(path: Path) -> int:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return sum(node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul") for node in graph.node)


def _table(found: list[Found]) -> str:
    lines = ["| checkpoint | path | transformers | sentence-transformers |", "|---|---|---|---|"]
    for row in found:
        figures = [
            "" if figure is None else f"{figure:.1e}" if figure < 0.5 else f"{figure:.7f}"
            for figure in (row.transformers, row.sentence_transformers)
        ]
        lines.append(f"| `{row.name}` | {row.path} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> int:
    """Compare the checkpoints asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.exporter", description=__doc__)
    parser.add_argument("--only", help=f"comma-separated: {', '.join(CHECKPOINTS)}")
    parser.add_argument("--out", type=Path, help="where checkpoints and bundles stay; default: nowhere")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(CHECKPOINTS)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        found = [compared(name, CHECKPOINTS[name], out) for name in names]
        (out / "found.json").write_text(json.dumps([asdict(row) for row in found], indent=1))
    print(_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
