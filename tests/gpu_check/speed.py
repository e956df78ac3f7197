"""Tokens per second of full-size graphs, weights random, on a device. Says nothing of quality."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from service import inference
from service import manifest as contract
from service.devices import Device
from service.manifest import Manifest, Precision
from service.session import Session
from tests import qwen, xlmr
from tests.bench import full_size_qwen, full_size_xlmr
from tests.bench.cases import Size
from tests.gpu_check.sessions import opened

SIZES = (Size(1, 32), Size(32, 128), Size(8, 512), Size(1, 8192))
MODELS: dict[str, str] = {"bge-m3": "XLM-R-large", "qwen3-embedding-0.6b": "Qwen3-0.6B"}
PRECISIONS = {
    "bge-m3": (Precision.FP16, Precision.BF16, Precision.FP32),
    "qwen3-embedding-0.6b": (Precision.BF16, Precision.FP16),
}
MIN_RUNS, MAX_RUNS, MAX_SECONDS = 2, 20, 5.0


def write_checkpoint(folder: Path, model: str) -> None:
    """Write a full-size checkpoint; the tokenizer is a tiny one, for no text is read."""
    folder.mkdir(parents=True)
    if model == "bge-m3":
        tokenizer = folder.parent / "tokenizer.xlmr.json.gz"
        tokenizer.write_bytes(gzip.compress(xlmr.tokenizer()))
        full_size_xlmr.write_bge_m3(folder, tokenizer)
        return
    tokenizer = folder.parent / "tokenizer.qwen"
    tokenizer.mkdir(exist_ok=True)
    made = qwen.tokenizer().to_str().encode()
    (tokenizer / full_size_qwen.TOKENIZER_FILE).write_bytes(gzip.compress(made))
    post_processor = json.loads(made)["post_processor"]
    (tokenizer / full_size_qwen.EMBEDDING_POST_PROCESSOR).write_text(json.dumps(post_processor))
    full_size_qwen.write_qwen3_embedding_06b(folder, tokenizer)


def bake_full_size(work: Path, model: str, write: Callable[[Path, str], None] = write_checkpoint) -> Path:
    """Write and bake a full-size model; return its bundle."""
    source = work / "checkpoints" / model
    write(source, model)
    request = BakeRequest(
        out=work, source=str(source), precisions=PRECISIONS[model], verification=Verification.SKIP
    )
    bake(RECIPES[model], request)
    return work / model


def measured(folder: Path, device: Device, sizes: Sequence[Size] = SIZES) -> Iterator[str]:
    """Time every variant at every size that the model takes; describe each variant in a line."""
    manifest = contract.load(folder)
    for variant in manifest.variants:
        with opened(folder, manifest, variant, device) as session:
            figures = [f"{size} {_tokens_per_second(session, manifest, size)}" for size in sizes]
        shape = MODELS.get(manifest.name, manifest.name)
        yield f"{shape} {variant.precision}, tokens/s: {', '.join(figures)}"


def _tokens_per_second(session: Session, manifest: Manifest, size: Size) -> str:
    """Take the best of a few runs: what else the host does only adds time."""
    if size.num_tokens > manifest.max_tokens:
        return "left out"
    draw = np.random.default_rng(0)
    ids = draw.integers(0, manifest.vocabulary_size, (size.num_texts, size.num_tokens))
    inputs, seconds = inference.stacker(manifest)(list(ids)), list[float]()
    while len(seconds) < MIN_RUNS or (len(seconds) < MAX_RUNS and sum(seconds) < MAX_SECONDS):
        begin = time.perf_counter()
        session.run(inputs, [manifest.outputs[0]])
        seconds.append(time.perf_counter() - begin)
    return f"{ids.size / min(seconds):,.0f}"
