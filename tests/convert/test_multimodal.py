"""The text graphs of jina-embeddings-v4 against a second implementation in numpy: words, images, tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service import manifest as contract
from service import multimodal, tokenization
from service.manifest import BASE_TASK, Manifest
from service.multimodal import ImagePrompt, ImageTemplate, TextOrImage
from service.session import Session, SessionSettings
from service.vision import IMAGE_PLACES, IMAGE_VECTORS, POOLING_MASK, POSITION_IDS
from tests import qwen, qwen_vl, qwen_vl_reference, xlmr
from tests.qwen_vl import ADAPTERS, JINA_V4, SIZES
from tests.qwen_vl_reference import Prompt, Reference, unit

TOLERANCE = 5e-6  # of a unit vector's components
STATES = 5e-5  # of states and of what is projected of them, which are around 1
SEEN = 50 * TOLERANCE  # a mistake changes more than this
OUTPUTS = ("pooled", "token_embeddings", "multivector")
VARIANTS = (*ADAPTERS, BASE_TASK)
HIDDEN, ROWS = SIZES.text.hidden, SIZES.text.rows
CELLS = [(1, 1), (3, 5), (5, 3), (1, 9), (9, 1), (4, 4)]
LENGTHS = [(1,), (2, 1), (31, 33, 32), (7, 300, 64), (9, 9, 9)]
TEXT_MISTAKES: list[dict[str, Any]] = [
    {"theta": 1_000_000.0},
    {"eps": 1e-6},
    {"is_causal": False},
    *({"without": (f"{part}_proj",)} for part in "qkv"),
]
IMAGE_MISTAKES: list[dict[str, Any]] = [
    *TEXT_MISTAKES,
    {"sections": (8, 0, 0)},  # one stream of positions
    {"sections": (3, 3, 2)},
    {"sections": (2, 6, 0)},
    {"counts_on_by_tokens": True},
]


@dataclass(frozen=True)
class Model:
    """The graphs of a bundle and the reference over the same tensors, by task."""

    folder: Path
    manifest: Manifest
    template: ImageTemplate
    sessions: dict[str, Session]
    references: dict[str, Reference]

    def run(self, sequences: Sequence[TextOrImage], task: str = BASE_TASK) -> list[tuple[np.ndarray, ...]]:
        """Return for every sequence its vector, its states and its projected states, without padding."""
        inputs = multimodal.stack(sequences, HIDDEN)
        computed = [each.astype(np.float64) for each in self.sessions[task].run(inputs, OUTPUTS)]
        longest = max(map(len, sequences))
        shapes = [(HIDDEN,), (longest, HIDDEN), (longest, SIZES.projection)]
        assert [each.shape for each in computed] == [(len(sequences), *shape) for shape in shapes]
        return [
            (pooled, states[: len(sequence)], projected[: len(sequence)])
            for sequence, pooled, states, projected in zip(sequences, *computed, strict=True)
        ]

    def expected(self, sequence: TextOrImage, task: str = BASE_TASK) -> tuple[np.ndarray, ...]:
        """Compute the same by the formulas."""
        reference = self.references[task]
        states = reference.states(prompt_of(sequence))
        return pooled(states, sequence), states, reference.multivector(states)

    def image(self, cells: tuple[int, int], seed: int = 0) -> ImagePrompt:
        """Draw the vectors of an image and set them in the prompt of images."""
        shape = (cells[0] * cells[1], HIDDEN)
        vectors = np.random.default_rng([seed, *cells]).normal(0, 0.3, shape).astype(np.float32)
        return self.template.prompt(vectors, cells)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    source = qwen_vl.write_jina_v4(tmp_path_factory.mktemp("v4") / "checkpoint")
    bundle = xlmr.bake_tiny(tmp_path_factory.mktemp("models"), JINA_V4, source, VARIANTS)
    manifest = contract.load(bundle)
    assert manifest.vision is not None
    template = multimodal.template(tokenization.load(bundle / "tokenizer.json"), manifest.vision)
    sessions = {
        str(variant.task): Session(bundle / variant.file, SessionSettings(num_threads=2))
        for variant in manifest.variants
    }
    references = {task: qwen_vl_reference.read(source, task) for task in ADAPTERS}
    return Model(
        bundle, manifest, template, sessions, references | {BASE_TASK: qwen_vl_reference.read(source)}
    )


def prompt_of(sequence: TextOrImage) -> Prompt:
    if isinstance(sequence, ImagePrompt):
        return Prompt(sequence.ids, sequence.vectors, sequence.cells, sequence.begin)
    return Prompt(sequence)


def pooled(states: np.ndarray, sequence: TextOrImage) -> np.ndarray:
    """Average over all tokens of a text, or from the beginning to the end of the image, both included."""
    if not isinstance(sequence, ImagePrompt):
        return np.asarray(states.mean(0))
    made = qwen.tokenizer((qwen_vl.VISION_BEGIN, qwen_vl.VISION_END, qwen_vl.IMAGE))
    ends = [qwen.token_id(made, token) for token in (qwen_vl.VISION_BEGIN, qwen_vl.VISION_END)]
    ((begin,), (end,)) = (np.flatnonzero(sequence.ids == token) for token in ends)
    return np.asarray(states[begin : end + 1].mean(0))


def drawn(lengths: tuple[int, ...]) -> list[np.ndarray]:
    draw = np.random.default_rng(2)
    return [draw.integers(0, ROWS, length) for length in lengths]


def check(computed: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    (vector, *rows), (exact, *exact_rows) = computed, expected
    assert np.abs(unit(vector) - unit(exact)).max() < TOLERANCE
    for found, row in zip(rows, exact_rows, strict=True):
        assert np.abs(found - row).max() < STATES
        assert row.std() > 0.3


# --- texts and images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", VARIANTS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_texts_equal_numpy_alone_and_padded(model: Model, lengths: tuple[int, ...], task: str) -> None:
    texts = drawn(lengths)
    for ids, computed in zip(texts, model.run(texts, task), strict=True):
        check(computed, model.expected(ids, task))
        ((vector, *_),) = model.run([ids], task)
        assert np.abs(unit(vector) - unit(computed[0])).max() < TOLERANCE


@pytest.mark.parametrize("task", VARIANTS)
@pytest.mark.parametrize("cells", CELLS, ids=str)
def test_an_image_equals_numpy(model: Model, cells: tuple[int, int], task: str) -> None:
    image = model.image(cells)
    (computed,) = model.run([image], task)
    check(computed, model.expected(image, task))


@pytest.mark.parametrize("task", VARIANTS)
def test_texts_and_images_of_one_run_equal_each_alone(model: Model, task: str) -> None:
    first, second, third = drawn((70, 3, 40))
    sequences: list[TextOrImage] = [
        first,
        model.image((3, 5)),
        second,
        model.image((4, 4), 1),
        third,
        model.image((1, 1), 2),
    ]
    for order in (sequences, sequences[::-1]):
        for sequence, computed in zip(order, model.run(order, task), strict=True):
            check(computed, model.expected(sequence, task))
            (alone,) = model.run([sequence], task)
            assert max(np.abs(one - other).max() for one, other in zip(computed, alone, strict=True)) < STATES


def test_the_prompt_of_images_is_the_published_one(model: Model) -> None:
    made, image = (
        qwen.tokenizer((qwen_vl.VISION_BEGIN, qwen_vl.VISION_END, qwen_vl.IMAGE)),
        model.image((2, 3)),
    )
    assert made.decode(image.ids.tolist(), skip_special_tokens=False) == qwen_vl.PROMPT.replace(
        qwen_vl.IMAGE, 6 * qwen_vl.IMAGE
    )
    assert len(image) == len(made.encode(qwen_vl.PROMPT).ids) + 5


@pytest.mark.parametrize("mistake", TEXT_MISTAKES, ids=str)
def test_a_mistake_in_texts_would_be_seen(model: Model, mistake: dict[str, Any]) -> None:
    (text,) = drawn((40,))
    wrong = replace(model.references[BASE_TASK], **mistake).states(Prompt(text)).mean(0)
    ((vector, *_),) = model.run([text])
    assert np.abs(unit(vector) - unit(wrong)).max() > SEEN


@pytest.mark.parametrize("mistake", IMAGE_MISTAKES, ids=str)
def test_a_mistake_in_images_would_be_seen(model: Model, mistake: dict[str, Any]) -> None:
    image = model.image((3, 5))
    reference = replace(model.references[BASE_TASK], **mistake)
    states = reference.states(prompt_of(image))
    ((_, computed, _),) = model.run([image])
    assert np.abs(unit(computed) - unit(states)).max() > SEEN


def test_rows_and_columns_of_an_image_are_not_exchanged(model: Model) -> None:
    image = model.image((3, 5))
    exchanged = replace(image, cells=(5, 3))
    (one, other) = (model.run([each])[0][0] for each in (image, exchanged))
    assert np.abs(unit(one) - unit(other)).max() > SEEN


def test_what_follows_an_image_is_seen_with_its_positions(model: Model) -> None:
    """Text goes on behind the larger side of an image, not behind its tokens."""
    image = model.image((3, 5))
    positions = multimodal.stack([image], HIDDEN)[POSITION_IDS][0]
    assert np.array_equal(positions, model.references[BASE_TASK].positions(prompt_of(image)))
    begin, end = image.begin, image.begin + 15
    assert positions[end].tolist() == [begin + 5] * 3
    assert positions[end - 1].tolist() == [begin, begin + 2, begin + 4]


def test_only_the_image_is_pooled_but_every_token_projected(model: Model) -> None:
    image = model.image((2, 3))
    ((vector, states, projected),) = model.run([image])
    assert len(states) == len(projected) == len(image)
    assert np.abs(unit(vector) - unit(states.mean(0))).max() > SEEN
    begin, end = image.pooled
    assert (image.begin - begin, end - image.begin - 6) == (1, 1)
    for shift in [(0, 1), (1, 0), (0, -1), (-1, 0)]:
        other = states[begin + shift[0] : end + shift[1]].mean(0)
        assert np.abs(unit(vector) - unit(other)).max() > SEEN
    assert np.abs(unit(vector) - unit(states[begin:end].mean(0))).max() < TOLERANCE


def test_a_literal_image_token_in_a_text_is_a_word(model: Model) -> None:
    """Alone, and beside an image, whose vectors go to its own places."""
    image = model.image((2, 2))
    (text,) = drawn((30,))
    text[[3, 4, 17]] = model.template.image_id
    (alone,) = model.run([text])
    check(alone, model.expected(text))
    sequences: list[TextOrImage] = [text, image, text]
    for sequence, computed in zip(sequences, model.run(sequences), strict=True):
        check(computed, model.expected(sequence))


def test_the_words_under_an_image_do_not_matter(model: Model) -> None:
    image = model.image((3, 3))
    ids = image.ids.copy()
    ids[image.begin : image.begin + 9] = 7
    one, other = (model.run([each])[0][0] for each in (image, replace(image, ids=ids)))
    assert np.array_equal(one, other)
    changed = replace(image, vectors=image.vectors[::-1].copy())
    assert np.abs(unit(one) - unit(model.run([changed])[0][0])).max() > SEEN


@pytest.mark.parametrize("token", [0, ROWS - 1])
def test_what_follows_the_end_of_a_sequence_does_not_matter(model: Model, token: int) -> None:
    """Padding may hold any token and any position."""
    inputs = multimodal.stack([*drawn((7, 60)), model.image((2, 2))], HIDDEN)
    is_text = inputs["attention_mask"] == 1
    filled = inputs | {
        "input_ids": np.where(is_text, inputs["input_ids"], token),
        POSITION_IDS: np.where(is_text[..., None], inputs[POSITION_IDS], 999),
    }
    exact, other = (
        model.sessions[BASE_TASK].run(each, ["pooled", "token_embeddings"]) for each in (inputs, filled)
    )
    assert np.array_equal(exact[0], other[0])
    assert np.array_equal(exact[1][is_text], other[1][is_text])


# --- tasks ------------------------------------------------------------------------------------------------


def test_every_task_has_numbers_of_its_own(model: Model) -> None:
    sequences: list[TextOrImage] = [*drawn((40,)), model.image((3, 5))]
    found = {task: model.run(sequences, task) for task in VARIANTS}
    for one, other in [(one, other) for one in VARIANTS for other in VARIANTS if one < other]:
        for left, right in zip(found[one], found[other], strict=True):
            assert np.abs(unit(left[0]) - unit(right[0])).max() > 0.01
            assert np.abs(left[2] - right[2]).max() > 0.1


@pytest.mark.parametrize("task", ADAPTERS)
def test_the_projector_of_a_task_is_adapted_too(model: Model, task: str) -> None:
    (text,) = drawn((20,))
    ((_, states, projected),) = model.run([text], task)
    forgotten = model.references[BASE_TASK].multivector(states)
    assert np.abs(projected - forgotten).max() > 0.1
    assert np.abs(projected - model.references[task].multivector(states)).max() < STATES


# --- the graph --------------------------------------------------------------------------------------------


def graph_of(model: Model, task: str) -> onnx.GraphProto:
    return onnx.load(str(model.folder / "fp32" / f"{task}.onnx"), load_external_data=False).graph


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("task", VARIANTS)
def test_inputs_and_outputs(model: Model, task: str) -> None:
    graph = graph_of(model, task)
    assert {value.name: shape_of(value) for value in graph.input} == {
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "tokens"],
        POSITION_IDS: ["batch", "tokens", 3],
        POOLING_MASK: ["batch", "tokens"],
        IMAGE_VECTORS: ["cells", HIDDEN],
        IMAGE_PLACES: ["cells"],
    }
    assert {value.name: shape_of(value) for value in graph.output} == {
        "pooled": ["batch", HIDDEN],
        "token_embeddings": ["batch", "tokens", HIDDEN],
        "multivector": ["batch", "tokens", "multivector_size"],
    }


def test_attention_turns_nothing_by_itself(model: Model) -> None:
    """Queries and keys are turned before, by three streams; attention knows only one."""
    nodes = [node for node in graph_of(model, BASE_TASK).node if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == SIZES.text.layers
    for node in nodes:
        assert "do_rotary" not in [attribute.name for attribute in node.attribute]
        assert len(node.input) == 7
        assert len([name for name in node.output if name]) == 3  # or it takes tokens x tokens memory


def test_positions_have_no_limit(model: Model) -> None:
    """Angles are computed, not looked up: no table ends before a position."""
    (text,) = drawn((12,))
    inputs = multimodal.stack([text], HIDDEN)
    far = inputs | {POSITION_IDS: inputs[POSITION_IDS] + 40_000}
    near, shifted = (model.sessions[BASE_TASK].run(each, ["pooled"])[0][0] for each in (inputs, far))
    assert np.abs(unit(near) - unit(shifted)).max() < 0.01  # only differences count, but for float32
