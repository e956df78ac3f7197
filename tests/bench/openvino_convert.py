"""An XLM-R encoder from a checkpoint to OpenVINO's files, float32 and with 8-bit weights. Times nothing.

Run by any interpreter that has OpenVINO, NNCF, torch and transformers: nothing of the project is imported. It
ends when the files are written: torch and the models that are timed share no memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import openvino  # type: ignore[import-not-found, unused-ignore]
import torch
import transformers  # type: ignore[import-not-found, unused-ignore]

PROBE = (2, 16)  # rows and tokens


class States(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """The encoder from token ids to its last hidden states; without a mask, as no row is padded."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self.encoder = transformers.AutoModel.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            add_pooling_layer=False,
        ).eval()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return (rows, tokens, hidden)."""
        states: torch.Tensor = self.encoder(input_ids=input_ids).last_hidden_state
        return states


def main() -> None:
    """Convert the checkpoint of the first argument into the folder of the second, with a probe's states."""
    checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
    torch.manual_seed(0)
    states = States(checkpoint)
    ids = torch.randint(5, states.encoder.config.vocab_size, PROBE)
    with torch.inference_mode():
        model = openvino.convert_model(states, example_input={"input_ids": ids})
        np.savez(folder / "probe.npz", ids=ids.numpy(), states=states(ids).numpy())
    openvino.save_model(model, folder / "fp32.xml", compress_to_fp16=False)
    model = openvino.Core().read_model(folder / "fp32.xml")
    small = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(small, folder / "int8.xml", compress_to_fp16=False)
    (folder / "nncf").write_text(nncf.__version__, encoding="utf-8")


if __name__ == "__main__":
    main()
