"""What every model of the catalog takes on the disk and in memory, by precision, as its graphs say.

The graphs are built from checkpoints of full size that hold no values (sparse files): nothing is computed, a
size follows from the shapes alone. Memory is the service's own estimate, which `/healthz?verbose=1` shows.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO
from unittest import mock

from convert import bundle, describe
from convert.build import build, tower, wanted_tasks
from convert.catalog import RECIPES
from convert.checkpoint import Checkpoint
from convert.graph import Graph
from convert.quantize import quantize
from convert.recipe import Recipe
from convert.source import locate
from service import footprint
from service.config import Settings
from service.files import FileRecord
from service.manifest import Precision, Source
from tests.bench import checkpoint_files, full_size_qwen, full_size_v4, full_size_xlmr, tables
from tests.bench.checkpoint_files import Weights
from tests.bench.full_size_qwen import JINA_CODE_15B, QWEN3_06B, QWEN3_4B, RERANKER_4B, Decoder

PRECISIONS = (Precision.FP32, Precision.INT8, Precision.INT8_BLOCK, Precision.INT4, Precision.FP16)
ON_CPU = len(PRECISIONS) - 1  # of them; bf16 is as large as fp16
NUM_SESSIONS = 2  # of a graph on the CPU: one on all threads, one for narrow runs

Write = Callable[[Path, Path], None]  # a checkpoint into a folder, with the tokenizer of its family


def _decoder(decoder: Decoder, prefix: str = "", *, pools: bool = True) -> Write:
    return partial(full_size_qwen.write_decoder, decoder, prefix=prefix, pools=pools)


XLMR_WRITERS: dict[str, Write] = {
    "jina-embeddings-v3": full_size_xlmr.write_jina_v3,
    "bge-m3": full_size_xlmr.write_bge_m3,
    "bge-reranker-v2-m3": full_size_xlmr.write_bge_reranker,
}
QWEN_WRITERS: dict[str, Write] = {
    "jina-embeddings-v4": full_size_v4.write,
    "jina-code-embeddings-0.5b": full_size_qwen.write_jina_code_05b,
    "jina-code-embeddings-1.5b": _decoder(JINA_CODE_15B, "model."),
    "qwen3-embedding-0.6b": full_size_qwen.write_qwen3_embedding_06b,
    "qwen3-embedding-4b": _decoder(QWEN3_4B),
    "qwen3-embedding-8b": full_size_qwen.write_qwen3_embedding_8b,
    "jina-reranker-v3": full_size_qwen.write_jina_reranker,
    "qwen3-reranker-0.6b": _decoder(QWEN3_06B, "model.", pools=False),
    "qwen3-reranker-4b": _decoder(RERANKER_4B, "model.", pools=False),
}


@dataclass(frozen=True)
class Size:
    """Bytes of one precision."""

    disk: int  # with all tasks, and the vision tower
    memory: int  # of the default task in one worker


def measure(xlmr_tokenizer: Path, qwen_tokenizer: Path) -> dict[str, dict[Precision, Size]]:
    """Build the graphs of every model in every precision; return their sizes."""
    writers = {name: (write, xlmr_tokenizer) for name, write in XLMR_WRITERS.items()}
    writers |= {name: (write, qwen_tokenizer) for name, write in QWEN_WRITERS.items()}
    found = {}
    for name, recipe in RECIPES.items():
        print(f"{name}: sizes", file=sys.stderr)
        with ExitStack() as opened:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="sizes-"))) / name
            if name in writers:
                write_sparse(*writers[name], folder)
            else:
                folder, _ = locate(recipe, None, offline=False)
            found[name] = of_checkpoint(recipe, folder, PRECISIONS)
    return found


def write_sparse(write: Write, tokenizer: Path, folder: Path) -> None:
    """Write a checkpoint without its values, where the format allows it: they take no room."""

    def skip(file: IO[bytes], name: str, weights: Weights) -> None:
        if file.seekable():
            file.truncate(file.seek(weights.size(name), 1))
        else:  # a member of a zip
            file.write(bytes(weights.size(name)))

    with mock.patch.multiple(checkpoint_files, _write_values=skip, check_space=lambda *_: None):
        write(folder, tokenizer)


def of_checkpoint(recipe: Recipe, folder: Path, precisions: Iterable[Precision]) -> dict[Precision, Size]:
    """Return the sizes of a model's graphs, from its checkpoint's shapes."""
    opened = Checkpoint(folder, recipe.head_files)
    tasks = wanted_tasks(recipe, None)
    graphs, vision = build(recipe, opened, tasks), tower(recipe, opened)
    with mock.patch.object(describe, "sha256_of", lambda path: ""):  # of what holds no values
        described = describe.described(recipe, opened, Source(id=recipe.manifest.name))
    found = {}
    for precision in precisions:
        made = {describe.graph_name(task): quantize(graph, precision) for task, graph in graphs.items()}
        records = {f"{precision}/{name}.onnx": _record(graph) for name, graph in made.items()}
        disk = bundle.weights_bytes(made)
        if vision:
            records[describe.VISION_GRAPH] = _record(vision)
            disk += bundle.weights_bytes({describe.MODEL_GRAPH: vision})
        manifest = replace(described, files=records)
        manifest = describe.with_variants(manifest, tasks, [precision])
        default = manifest.tasks_of([manifest.default_task]) if manifest.default_task else ()
        opened_tasks: list[str | None] = [task.variant for task in default] or [None]
        memory = footprint.needed_bytes(
            manifest, precision, opened_tasks, Settings().max_batch_tokens, num_sessions=NUM_SESSIONS
        )
        found[precision] = Size(disk, memory)
    return found


def _record(graph: Graph) -> FileRecord:
    return FileRecord(size=0, sha256="", weights_bytes=bundle.weights_bytes({"": graph}))


def table(found: dict[str, dict[Precision, Size]], command: str) -> list[str]:
    """Lay out the sizes in GB of 10^9 bytes."""
    disk = [(name, *(_gb(size.disk) for size in sizes.values())) for name, sizes in found.items()]
    memory = [
        (name, *(_gb(size.memory) for size in [*sizes.values()][:ON_CPU])) for name, sizes in found.items()
    ]
    header = ("model", *PRECISIONS)
    return [
        *tables.aligned("GB of weights on the disk, all tasks", command, header, disk),
        *tables.aligned(
            "GB of memory, one worker, default task, by estimate", command, header[: 1 + ON_CPU], memory
        ),
    ]


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.{2 if num_bytes >= 1e8 else 3}f}"
