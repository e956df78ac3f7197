"""Sessions of a bundle's graphs on a device, and inputs for them. Compares nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convert import emulation
from service import host, inference, multimodal, tokenization
from service.devices import Device, Kind
from service.inference import PER_TOKEN
from service.manifest import TOKENIZER_FILE, Manifest, Output, Precision, Variant
from service.multimodal import TextOrImage
from service.scoring import sigmoid
from service.session import Session, SessionSettings
from service.windows import Patches, tower_inputs

LENGTHS = (40, 5, 17)  # of texts that share a run, so that rows are padded
NUM_CHANNELS = 3
CELLS = (2, 3)  # of the image in a prompt
GRIDS = (
    (6, 4),
    (4, 10),
)  # cells of images that share a run of the tower: neither windows nor images are equal

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """Inputs of a graph, and the tokens of every row of its outputs; none where they have no token axis."""

    name: str
    inputs: Inputs
    lengths: tuple[int, ...] = ()

    def answers(self, output: str, values: np.ndarray) -> np.ndarray:
        """Take what a request would be answered with: nothing of padding, scores from 0 to 1."""
        if output == Output.SCORES:
            return sigmoid(values)
        if output not in PER_TOKEN:
            return values.reshape(-1)
        rows = [row[:length].reshape(-1) for row, length in zip(values, self.lengths, strict=True)]
        return np.concatenate(rows)


@contextmanager
def opened(folder: Path, manifest: Manifest, variant: Variant, device: Device) -> Iterator[Session]:
    """Open a variant's graph; a 16-bit one on the CPU by its stand-in."""
    settings = SessionSettings(num_threads=host.num_usable_cores(), device=device)
    if device.kind == Kind.CUDA:
        yield Session(folder / variant.file, settings)
        return
    with emulation.runnable(folder, manifest, variant) as (_, shown):
        yield Session(folder / shown.file, settings)


def provider(session: Session) -> str:
    """Return where a session places what it can: the CPU, silently, where CUDA is out of reach."""
    return str(session._native.get_providers()[0])


def runs(folder: Path, manifest: Manifest) -> list[Run]:
    """Make a padded run and one of a text alone, with whatever else the graphs of the model take."""
    sequences = _sequences(folder, manifest)
    stack = inference.stacker(manifest)
    return [
        Run("padded", stack(sequences), tuple(map(len, sequences))),
        Run("alone", stack(sequences[:1]), (len(sequences[0]),)),
    ]


def graphs(folder: Path, manifest: Manifest) -> list[tuple[Variant, list[Run]]]:
    """List the graphs of a bundle, the vision tower among them, each with its runs."""
    made = runs(folder, manifest)
    found = [(variant, made) for variant in manifest.variants]
    if manifest.vision:
        tower = replace(manifest.variants[0], precision=Precision.FP32, file=manifest.vision.file)
        found.append((tower, [tower_run(manifest)]))
    return found


def tower_run(manifest: Manifest) -> Run:
    """Make a run of the vision tower over images of two sizes."""
    vision = manifest.vision
    assert vision is not None
    draw, size = np.random.default_rng(3), vision.merge_size
    values = NUM_CHANNELS * vision.temporal_patch_size * vision.patch_size**2
    images = [
        Patches(
            draw.normal(size=(down * across * size**2, values)).astype(np.float32),
            (down * size, across * size),
        )
        for down, across in GRIDS
    ]
    return Run("images", tower_inputs(images, vision)[0])


def _sequences(folder: Path, manifest: Manifest) -> list[TextOrImage]:
    draw, tokenizer = np.random.default_rng(2), tokenization.load(folder / TOKENIZER_FILE)
    markers: list[int] = []
    if manifest.listwise:
        asked = [manifest.listwise.document_marker, manifest.listwise.query_marker]
        markers = sorted(tokenizer.ids_of(asked))
    ordinary = np.setdiff1d(np.arange(manifest.vocabulary_size), markers)
    texts: list[TextOrImage] = [
        np.concatenate([draw.choice(ordinary, length), np.array(markers, dtype=np.int64)])
        for length in LENGTHS
    ]
    if manifest.vision:
        vectors = draw.normal(0, 0.3, (CELLS[0] * CELLS[1], manifest.dimensions)).astype(np.float32)
        texts.append(multimodal.template(tokenizer, manifest.vision).prompt(vectors, CELLS))
    return texts
