"""The full-size models that can be measured: how each is sized, written and baked. Measures no speed."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from service.manifest import Precision
from tests.bench import checkpoint_files, full_size_qwen, full_size_xlmr, memory, server
from tests.bench.errors import BenchError
from tests.processes import PROJECT, environment

CONVERT, BUNDLES = (sys.executable, "-m", "convert", "--force"), "bundles"
BYTES_PER_PARAMETER = {Precision.FP32: 4.0, Precision.INT8: 1.1, Precision.INT8_BLOCK: 1.2}
LISTWISE_RERANKER, QWEN3_8B = "jina-reranker-v3", "qwen3-embedding-8b"


class Encoder(StrEnum):
    """What the part `encoders` can measure."""

    JINA_V3 = "jina-embeddings-v3"
    BGE_M3 = "bge-m3"
    BGE_RERANKER = "bge-reranker-v2-m3"
    MINILM = server.MODEL  # small, from the converter's own source: to try this benchmark


class Decoder(StrEnum):
    """What the part `decoders` can measure."""

    QWEN3_06B = "qwen3-embedding-0.6b"
    JINA_CODE_05B = "jina-code-embeddings-0.5b"


@dataclass(frozen=True)
class Model:
    """How a model is sized, written and asked."""

    name: str
    num_parameters: int
    write: Callable[[Path, Path], None] | None = None  # None: the converter finds the checkpoint
    has_adapters: bool = False  # a graph for each task
    is_reranker: bool = False


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(Encoder.JINA_V3, 572_310_396, full_size_xlmr.write_jina_v3, has_adapters=True),
        Model(Encoder.BGE_M3, 567_754_752, full_size_xlmr.write_bge_m3),
        Model(Encoder.BGE_RERANKER, 567_755_777, full_size_xlmr.write_bge_reranker, is_reranker=True),
        Model(Encoder.MINILM, 22_713_216),
        Model(Decoder.QWEN3_06B, 595_776_512, full_size_qwen.write_qwen3_embedding_06b),
        Model(Decoder.JINA_CODE_05B, 494_032_768, full_size_qwen.write_jina_code_05b),
        Model(LISTWISE_RERANKER, 596_836_352, full_size_qwen.write_jina_reranker, is_reranker=True),
    )
}


def work_folder(wanted: Path | None) -> AbstractContextManager[str]:
    """Give the folder asked for, which is kept, else one that is removed at the end."""
    return nullcontext(str(wanted.absolute())) if wanted else tempfile.TemporaryDirectory(prefix="bench-")


def checkpoint(model: Model, folder: Path, tokenizer: Path) -> Path | None:
    """Write the checkpoint where it is missing; return its folder, None for the converter's own source."""
    if model.write is None:
        return None
    if not folder.exists():
        print(f"{folder.name}: writing the checkpoint", file=sys.stderr)
        model.write(folder, tokenizer)
    return folder


def bake(
    model: Model, source: Path | None, precisions: Sequence[Precision], tasks: Sequence[str], out: Path
) -> memory.Measured:
    """Bake a checkpoint; `tasks` where it has adapters. Raises BenchError with the end of the output."""
    options = ["--precision", ",".join(precisions), "--verify", "skip", "--out", str(out)]
    num_bytes = sum(BYTES_PER_PARAMETER[precision] for precision in precisions) * model.num_parameters
    if source:
        options += ["--source", str(source)]
    if model.has_adapters:
        options += ["--task", ",".join(tasks)]
        num_bytes *= len(tasks)
    checkpoint_files.check_space(out, int(num_bytes), f"the bundle of {model.name}")
    print(f"{source.name if source else model.name}: bake", file=sys.stderr)
    baked = memory.run_measured([*CONVERT, model.name, *options], environment(), PROJECT)
    if baked.returncode:
        raise BenchError(f"{model.name} could not be baked, status {baked.returncode}:\n{baked.output_tail}")
    return baked


def bytes_on_disk(bundle: Path, precision: Precision) -> int:
    """Return the size of a bundle's files of a precision."""
    return sum(path.stat().st_size for path in (bundle / precision).iterdir())
