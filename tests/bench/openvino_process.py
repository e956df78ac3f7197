"""The process in which OpenVINO runs an encoder: its interpreter and what it is asked. Knows no service."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.manifest import Precision
from tests.bench import child
from tests.bench.cases import Size
from tests.bench.child import Child

MODULE = "tests.bench.openvino_encoder"
PACKAGES = ("openvino", "nncf", "torch", "transformers")
PRECISIONS = (Precision.FP32, Precision.INT8)
LEFT_OUT = (
    "OpenVINO left out: --openvino-python names an interpreter that has it, in an environment of its own: "
    f"python3 -m venv ENV && ENV/bin/pip install {' '.join(PACKAGES)}"
)


class OpenVinoProcess:
    """An open process that has compiled a checkpoint at every precision."""

    def __init__(self, opened: Child, num_threads: int) -> None:
        """Describe it by the versions that it has named."""
        self._child = opened
        versions = ", ".join(f"{name} {version}" for name, version in opened.greeting.items())
        self.description = (
            f"{versions} (INT8_SYM weights, dynamic quantization group 128), {num_threads} threads"
        )

    def turns(self, precision: Precision, seconds: float) -> Callable[[Size], Callable[[], float]]:
        """Return what makes the turns of a precision, which repeat an inference for some seconds."""

        def make(size: Size) -> Callable[[], float]:
            question = {
                "precision": precision,
                "rows": size.num_texts,
                "tokens": size.num_tokens,
                "seconds": seconds,
            }
            return lambda: float(self._child.ask(question)["seconds"])

        return make


def interpreter(wanted: Path | None) -> Path | None:
    """Return the interpreter asked for; print what is left out without one.

    Raises BenchError where it has no OpenVINO.
    """
    if wanted is None:
        print(LEFT_OUT)
        return None
    return child.check_packages(wanted, "--openvino-python", PACKAGES)


@contextmanager
def opened(python: Path, checkpoint: Path, num_threads: int) -> Iterator[OpenVinoProcess]:
    """Hold a checkpoint open in OpenVINO until the block ends."""
    print("loading the checkpoint in OpenVINO", file=sys.stderr)
    command = [str(python), "-m", MODULE, str(checkpoint), str(num_threads)]
    with child.opened("OpenVINO", command) as process:
        yield OpenVinoProcess(process, num_threads)
