"""What a worker says of itself and its models, as fields of logs and answers. Knows no HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from service import host, providers
from service.loading import Loaded
from service.placement import Placement
from service.selection import Choice


def of_choice(choice: Choice) -> dict[str, Any]:
    """Say where a model runs, in which precision, and why."""
    return {
        "device": str(choice.device),
        "precision": choice.precision,
        "verified": choice.verified,
        "reason": choice.reason,
    }


def of_resources(loaded: Loaded) -> dict[str, Any]:
    """Say what a model takes of the host; its memory by estimate."""
    threads = loaded.model.graphs.settings.num_threads
    return {"threads": threads, "memory_bytes": loaded.choice.needed_bytes}


def of_worker(placement: Placement, models: Sequence[Loaded]) -> dict[str, Any]:
    """Say what this process is, where it was placed, and what each of its models runs on."""
    return {
        "process": {
            "pid": os.getpid(),
            "onnxruntime": providers.RUNTIME_VERSION,
            "instruction_set": host.instruction_set(),
            "device": str(placement.device),
            "reason": placement.reason,
            "memory_bytes": placement.memory_bytes,
        },
        "models": {
            loaded.model.manifest.name: {**of_choice(loaded.choice), **of_resources(loaded)}
            for loaded in models
        },
    }
