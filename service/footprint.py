"""How much memory of the host a model takes once it serves: an estimate by measured constants. Pure.

Measured as anonymous memory (RssAnon) on AVX512-VNNI with ONNX Runtime 1.31.1, XLM-R-large shape: fp32
1158 MiB for 1152 MiB of linear layers, int8 297 for 288, int8-block 366 for 324; the rest of the weights, the
word table, stays mapped and is read as it is needed. A run of 8x128 tokens took 65, 65 and 70 MiB, which
its session keeps for the next; longer ones give their memory back.
A prepacked copy keeps the packed layers mapped too, once for all workers: fp32 took 5 MB, int8 11 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from service.manifest import Manifest, Precision

# ONNX Runtime prepacks linear layers into memory of its own, and what it read them from can be dropped. In a
# copy they are packed on the disk: mapped, but in memory as long as the model serves.
LINEAR_FACTOR = 1.1
# The word table stays mapped: of its rows those that texts use are in memory. Chosen, not measured.
TABLE_SHARE = 0.25
TABLE_BYTES = {  # for each value of the word table; blocks of 32 values have a float32 scale
    Precision.FP32: 4,
    Precision.FP16: 2,
    Precision.BF16: 2,
    Precision.INT8: 1.125,
    Precision.INT8_BLOCK: 1.125,
    Precision.INT4: 1.125,
}
SESSION_BYTES = 11_000_000  # of a graph's own beside its weights: the most measured
# float32 at once for each token and channel of a run; 16 (encoders) to 27 (5.4 times as wide within) measured
STATE_FLOATS = 26
TOKENIZER_BYTES = 1200  # for each row of the vocabulary; 240 (WordPiece) to 1170 (Unigram) measured
FLOAT_BYTES = 4


def graph_files(manifest: Manifest, precision: Precision, tasks: Sequence[str | None]) -> set[str]:
    """Name the graphs of tasks, and the vision tower, which is opened with the first image."""
    files = {
        variant.file
        for variant in manifest.variants
        if variant.precision == precision and variant.task in (None, *tasks)
    }
    return files | ({manifest.vision.file} if manifest.vision else set())


def needed_bytes(
    manifest: Manifest,
    precision: Precision,
    tasks: Sequence[str | None],
    batch_tokens: int,
    sharers: int = 1,
    num_sessions: int = 1,
) -> int:
    """Return what the graphs of tasks, each in `num_sessions` but for the tower, and the tokenizer take.

    A session keeps the memory of a run of `batch_tokens`, the tower's does not. Of weights that `sharers`
    workers map together, a worker is taken to need its share. Longer texts while they run, and tasks that are
    opened later, come on top.
    """
    files = graph_files(manifest, precision, tasks)
    tower = manifest.vision.file if manifest.vision else ""
    table = manifest.vocabulary_size * manifest.dimensions * TABLE_BYTES[precision]
    tables = {file: 0 if file == tower else table for file in files}
    linear = sum(max(0, weights_bytes(manifest, file) - tables[file]) for file in files)
    mapped = linear * LINEAR_FACTOR + table * TABLE_SHARE
    num_graphs, has_tower = len(files - {tower}), tower in files
    states = STATE_FLOATS * FLOAT_BYTES * batch_tokens * manifest.dimensions
    sessions = num_sessions * num_graphs * (SESSION_BYTES + states) + has_tower * SESSION_BYTES
    return round(mapped / sharers) + sessions + TOKENIZER_BYTES * manifest.vocabulary_size


def weights_bytes(manifest: Manifest, file: str) -> int:
    """Return the bytes of the weights that a graph reads.

    A bundle that does not say gets an even share of its folder's: too little where tasks share weights,
    rather than too much, which would refuse what has run before.
    """
    record = manifest.files.get(file)
    if record and record.weights_bytes:
        return record.weights_bytes
    folder = PurePosixPath(file).parent
    beside = [name for name in manifest.files if PurePosixPath(name).parent == folder]
    num_graphs = max(1, sum(name.endswith(".onnx") for name in beside))
    return sum(manifest.files[name].size for name in beside if not name.endswith(".onnx")) // num_graphs
