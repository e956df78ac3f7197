"""jina-embeddings-v4 in transformers, timed on demand: what the service is compared with. Knows no service.

Run by any interpreter that has torch, transformers and pillow: nothing of the project is imported. It reads a
line `{"images": [base64 of a file, ...]}` at a time, images of one size, and answers the vectors and the
seconds from the files' bytes to them, with those of the tower and of the text layers apart. The images of a
line are one batch of prompts of equal lengths, as fast as torch can be. The adapter of the task is merged
into the weights, as the service has it.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import safetensors.torch
import torch
import transformers  # type: ignore[import-not-found, unused-ignore]
from PIL import Image

TASK = "text-matching"
# "<|im_start|>user\n<|vision_start|>", an image, "<|vision_end|>Describe the image.<|im_end|>\n"
HEAD, TAIL = [151644, 872, 198, 151652], [151653, 74785, 279, 2168, 13, 151645, 198]
IMAGE_TOKEN, IMAGE_TYPE = 151655, 1
POOLED_AROUND = 1  # tokens before the image and behind it
PARTS = {"visual": "tower", "language_model": "text"}


class Embedder:
    """The model, its image processor and the seconds that its parts took in the last forward."""

    def __init__(self, checkpoint: Path) -> None:
        """Load a checkpoint in float32 and merge the adapter of the task."""
        self.model, self.processor = load(checkpoint), load_processor(checkpoint)
        self.seconds: dict[str, float] = {}
        for module, part in PARTS.items():
            getattr(self.model, module).register_forward_pre_hook(self._timer(part, -1))
            getattr(self.model, module).register_forward_hook(self._timer(part, 1))

    def _timer(self, part: str, sign: int) -> Any:
        def note(*_: object) -> None:
            self.seconds[part] = self.seconds.get(part, 0.0) + sign * time.perf_counter()

        return note

    def embed(self, files: list[bytes]) -> torch.Tensor:
        """Return unit vectors of images of one size."""
        self.seconds = {}
        images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        processed = self.processor(images, return_tensors="pt")
        grids = processed["image_grid_thw"]
        (num_cells,) = {int(grid.prod()) // self.processor.merge_size**2 for grid in grids}
        row = torch.tensor([*HEAD, *[IMAGE_TOKEN] * num_cells, *TAIL])
        ids = row.repeat(len(files), 1)
        with torch.inference_mode():
            states = self.model(
                input_ids=ids,
                pixel_values=processed["pixel_values"],
                image_grid_thw=grids,
                mm_token_type_ids=(ids == IMAGE_TOKEN).int() * IMAGE_TYPE,
                use_cache=False,
            ).last_hidden_state
        pooled = states[:, len(HEAD) - POOLED_AROUND : len(HEAD) + num_cells + POOLED_AROUND].mean(dim=1)
        return torch.nn.functional.normalize(pooled, dim=-1)


def load(checkpoint: Path) -> Any:
    """Load tower and text layers; the projector of multi-vectors is left out."""
    loaded, report = transformers.Qwen2_5_VLModel.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        attn_implementation="sdpa",
        local_files_only=True,
        output_loading_info=True,
    )
    if report["missing_keys"]:  # they would be random numbers of another size
        raise SystemExit(f"{checkpoint} lacks {sorted(report['missing_keys'])[:5]}")
    _merge(loaded, checkpoint / "adapters")
    return loaded.eval()


def _merge(model: Any, folder: Path) -> None:
    """Add the products of the task's updates to the weights of the text layers."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    updates = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    prefix, end = "base_model.model.model.", f".lora_A.{TASK}.weight"
    names = [name for name in updates if name.startswith(prefix) and name.endswith(end)]
    if not names:
        raise SystemExit(f"{folder} has no adapter of {TASK}")
    for name in names:
        module = model.get_submodule(name.removeprefix(prefix).removesuffix(end))
        left, right = updates[name.replace(".lora_A.", ".lora_B.")].float(), updates[name].float()
        module.weight.data += config["lora_alpha"] / config["r"] * (left @ right)


def load_processor(checkpoint: Path) -> Any:
    """Load the image processor that needs no torchvision."""
    config = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    names = ("size", "image_mean", "image_std", "patch_size", "temporal_patch_size", "merge_size")
    return transformers.Qwen2VLImageProcessorPil(**{name: config[name] for name in names})


def serve(embedder: Embedder, lines: TextIO, answers: TextIO) -> None:
    """Answer every line until there are no more."""
    for line in lines:
        files = [base64.b64decode(image) for image in json.loads(line)["images"]]
        begin = time.perf_counter()
        vectors = embedder.embed(files)
        seconds = {"seconds": time.perf_counter() - begin, **embedder.seconds}
        if not torch.isfinite(vectors).all():
            raise SystemExit("the vectors are not finite")
        print(json.dumps({**seconds, "vectors": vectors.tolist()}), file=answers, flush=True)


def main() -> None:
    """Load the checkpoint of the first argument, with the threads of the second, and serve."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the libraries print is no answer
    checkpoint, num_threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(num_threads)
    embedder = Embedder(checkpoint)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(versions), file=answers, flush=True)
    serve(embedder, sys.stdin, answers)


if __name__ == "__main__":
    main()
