"""What counting costs a request: `python -m tests.bench.counting`, `--files` as gunicorn's workers do it."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from types import SimpleNamespace

from service import metric_files
from service.observing import Answer, Source

NUM_REQUESTS, NUM_ROUNDS = 100_000, 5


def main() -> None:
    """Print the microseconds of all that one request of one run tells, the median of some rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", action="store_true", help="count in files that processes share")
    if parser.parse_args().files:
        os.environ[metric_files.VARIABLE] = str(metric_files.make())
    from service.app import make_metrics  # only now: the library looks for the folder when it is imported

    metrics = make_metrics(metric_files.from_environment(os.environ))
    graph = SimpleNamespace(source=Source("all-minilm-l6-v2", "int8"))
    rounds = []
    for _ in range(NUM_ROUNDS):
        begin = time.perf_counter()
        for _ in range(NUM_REQUESTS):
            metrics.queue_changed(1, 0)
            metrics.queue_changed(0, 30)
            metrics.ran(graph, 2, 25, 5, 0.004)
            metrics.queue_changed(0, -30)
            metrics.queue_changed(-1, 0)
            metrics.waited(0.003)
            metrics.answered(Answer("/v1/embeddings", 200, 0.02, "all-minilm-l6-v2", 25))
        rounds.append((time.perf_counter() - begin) / NUM_REQUESTS * 1e6)
    print(f"{statistics.median(rounds):.1f} us a request ({min(rounds):.1f} to {max(rounds):.1f})")


if __name__ == "__main__":
    main()
