"""A full-size model from its checkpoint to its table: the parts encoders, decoders and listwise.

The checkpoints are random and written here: nothing is said of quality.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from service.manifest import Precision
from tests.bench import models, served, server, torch_process
from tests.bench.cases import Case
from tests.bench.models import Model


@dataclass(frozen=True)
class Plan:
    """What is measured of a model."""

    model: Model
    precisions: tuple[Precision, ...]
    tasks: tuple[str, ...]  # baked, where the model has adapters; the first is measured
    num_runs: int
    tokenizer: Path  # of the model's family, for a checkpoint that is missing
    work_dir: Path | None
    torch_python: Path | None = None  # None: not compared


@dataclass(frozen=True)
class Layout:
    """How the table of a model is made."""

    command: str
    case_name: str = "texts"
    source: str = ""  # of the texts
    has_targets: bool = False


def measure(plan: Plan, layout: Layout, make_cases: Callable[[Path], Sequence[Case]]) -> None:
    """Measure a model at every precision; print its table, also of what was measured before an error.

    `make_cases` is given the bundle's folder.
    """
    name, torch, found = plan.model.name, None, dict[Precision, served.Figures]()
    with ExitStack() as opened:
        work = Path(opened.enter_context(models.work_folder(plan.work_dir)))
        source = models.checkpoint(plan.model, work / name, plan.tokenizer)
        baked = models.bake(plan.model, source, plan.precisions, plan.tasks, work / models.BUNDLES)
        bundle = work / models.BUNDLES / name
        cases = make_cases(bundle)
        if plan.torch_python and source:
            num_threads = server.tuned_settings().intra_op_threads
            torch = opened.enter_context(torch_process.opened(plan.torch_python, source, num_threads))
        tasks = f" ({', '.join(plan.tasks)})" if plan.model.has_adapters else ""
        bake_cost = f"bake {baked.seconds:.1f} s, peak {baked.peak_anonymous_bytes / 1e9:.2f} GB anonymous"
        limits = f"best of {plan.num_runs} runs, fewer after {served.SIZE_SECONDS:.0f} s"
        compared = f"in turns with {torch.description}" if torch else ""
        title = "; ".join(filter(None, (f"{name}{tasks}: {bake_cost}", limits, compared, layout.source)))
        try:
            for precision in plan.precisions:
                found[precision] = served.measure(bundle, precision, cases, plan.num_runs, torch)
        finally:
            lines = served.table(title, layout.command, layout.case_name, found)
            print("\n".join(lines + (served.verdicts(found) if layout.has_targets else [])), flush=True)
