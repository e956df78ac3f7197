"""A decoder in transformers, timed on demand: what the service is compared with. Knows no service.

Run by any interpreter that has torch and transformers: nothing of the project is imported. It reads a line
`{"rows": ..., "tokens": ...}` at a time and answers the seconds of one forward of the decoder to its last
hidden state. Token ids are random and no row is padded, so that no mask is needed: torch's fastest way.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers  # type: ignore[import-not-found, unused-ignore]

CLASSES = {"qwen2": "Qwen2Model", "qwen3": "Qwen3Model"}  # by the model_type of config.json


def load(checkpoint: Path) -> Any:
    """Load the decoder of a checkpoint in float32; other tensors, a projector for one, are left out."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    kind = getattr(transformers, CLASSES[config["model_type"]])
    loaded, report = kind.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        attn_implementation="sdpa",
        local_files_only=True,
        output_loading_info=True,
    )
    if report["missing_keys"]:  # they would be random numbers of another size
        raise SystemExit(f"{checkpoint} lacks {sorted(report['missing_keys'])[:5]}")
    return loaded.eval()


def forward_seconds(model: Any, num_rows: int, num_tokens: int) -> float:
    """Time one forward."""
    ids = torch.randint(model.config.vocab_size, (num_rows, num_tokens))
    begin = time.perf_counter()
    with torch.inference_mode():
        states = model(input_ids=ids, use_cache=False).last_hidden_state
    seconds = time.perf_counter() - begin
    if not torch.isfinite(states).all():
        raise SystemExit("the states are not finite")
    return seconds


def serve(model: Any, lines: TextIO, answers: TextIO) -> None:
    """Answer every line until there are no more."""
    for line in lines:
        asked = json.loads(line)
        seconds = forward_seconds(model, asked["rows"], asked["tokens"])
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


def main() -> None:
    """Load the checkpoint of the first argument, with the threads of the second, and serve."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the libraries print is no answer
    checkpoint, num_threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(num_threads)
    model = load(checkpoint)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(versions), file=answers, flush=True)
    serve(model, sys.stdin, answers)


if __name__ == "__main__":
    main()
