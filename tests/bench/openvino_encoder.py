"""An XLM-R encoder in OpenVINO, timed on demand: what the graphs are compared with. Knows no service.

Run by any interpreter that has what openvino_convert needs: nothing of the project is imported. It reads a
line `{"precision": ..., "rows": ..., "tokens": ..., "seconds": ...}` at a time and answers the best time of
one inference to the last hidden states, repeated for `seconds`. No row is padded and there is no mask:
OpenVINO's fastest way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import openvino  # type: ignore[import-not-found, unused-ignore]

CONVERT_MODULE = "tests.bench.openvino_convert"
GROUP_SIZE, NOT_QUANTIZED = 128, 0  # of the activations
FP32, INT8 = "fp32", "int8"
MAX_DIFFERENCE, MAX_INT8_DIFFERENCE = 1e-3, 0.1  # of states, which are of size 1; largest and mean


def load(folder: Path, num_threads: int) -> dict[str, Any]:
    """Compile the encoder of a folder in float32 and in dynamically quantized int8."""
    core, properties = openvino.Core(), {
        "INFERENCE_PRECISION_HINT": "f32",  # the default would be bf16 where the processor has it
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip

    def compiled(name: str, group_size: int) -> Any:
        chosen = properties | {"DYNAMIC_QUANTIZATION_GROUP_SIZE": group_size}
        return core.compile_model(str(folder / f"{name}.xml"), "CPU", chosen)

    models = {FP32: compiled(FP32, NOT_QUANTIZED), INT8: compiled(INT8, GROUP_SIZE)}
    check(folder, models, compiled(INT8, NOT_QUANTIZED))
    return models


def check(folder: Path, models: dict[str, Any], weights_only: Any) -> None:
    """Refuse a model that computes something else, or an int8 one that multiplies in float32.

    Where OpenVINO cannot quantize activations, it multiplies by the 8-bit weights in float32 and names its
    kernels alike: only the answers tell, which are then those of the weights alone.
    """
    with np.load(folder / "probe.npz") as probe:
        ids, expected = probe["ids"], probe["states"]
    exact, small, rounded = (
        model({"input_ids": ids})[0] for model in (models[FP32], models[INT8], weights_only)
    )
    if np.abs(exact - expected).max() > MAX_DIFFERENCE:
        raise SystemExit("OpenVINO's states are not torch's")
    if np.abs(small - expected).mean() > MAX_INT8_DIFFERENCE:
        raise SystemExit("OpenVINO's int8 states are far from torch's")
    if np.abs(small - rounded).max() <= MAX_DIFFERENCE:
        raise SystemExit("OpenVINO multiplies in float32 here: it has not quantized the activations")


def best_seconds(request: Any, question: dict[str, Any], vocabulary_size: int) -> float:
    """Return the best time of one inference, repeated for some seconds."""
    ids = np.random.default_rng(0).integers(5, vocabulary_size, (question["rows"], question["tokens"]))
    request.set_input_tensor(openvino.Tensor(ids, shared_memory=False))

    def seconds() -> float:
        begin = time.perf_counter()
        request.start_async()
        request.wait()
        return time.perf_counter() - begin

    seconds()
    times, end = list[float](), time.perf_counter() + question["seconds"]
    while not times or time.perf_counter() < end:
        times.append(seconds())
    return min(times)


def serve(models: dict[str, Any], vocabulary_size: int, lines: TextIO, answers: TextIO) -> None:
    """Answer every line until there are no more."""
    # One request of each model for good: those made and dropped for every question have crashed the process.
    requests = {name: model.create_infer_request() for name, model in models.items()}
    for line in lines:
        question = json.loads(line)
        seconds = best_seconds(requests[question["precision"]], question, vocabulary_size)
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


def main() -> None:
    """Load the checkpoint of the first argument, with the threads of the second, and serve."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever the libraries print is no answer
    checkpoint, num_threads = Path(sys.argv[1]), int(sys.argv[2])
    vocabulary_size = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder = Path(place)
        subprocess.run([sys.executable, "-m", CONVERT_MODULE, str(checkpoint), place], check=True)
        models = load(folder, num_threads)
        versions = {"OpenVINO": openvino.__version__, "NNCF": (folder / "nncf").read_text(encoding="utf-8")}
        print(json.dumps(versions), file=answers, flush=True)
        serve(models, vocabulary_size, sys.stdin, answers)


if __name__ == "__main__":
    main()
