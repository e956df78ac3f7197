"""jina-embeddings-v4 against the reference implementation: a golden checkpoint, baked by the command.

Over HTTP; what no request can express (a small limit, given spans, the reference's own pixels, other
neighbours in one run) goes through the objects that serve HTTP.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from falcon.testing import TestClient
from PIL import Image

from service import inference
from service.embedding import EmbeddingModel
from service.errors import InvalidRequest
from service.image_embedding import ImageTower
from service.late_chunking import Document
from service.manifest import Output
from service.options import EmbedOptions
from service.registry import Registry
from tests import golden
from tests.golden import assert_near, embed, vectors

V4 = "jina-embeddings-v4"
IMAGES = golden.SHARED / "data" / "images"
IMAGE_END_TO_END = 2e-3  # a decoder of JPEG may differ by a grey level
EVERY_8TH = "multivector_every_8th"

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def arrays(golden_v4_models: Path) -> dict[str, np.ndarray]:
    return golden.arrays(V4)


@pytest.fixture(scope="module")
def model(golden_v4_registry: Registry) -> EmbeddingModel:
    return golden_v4_registry.embedding(V4)


@pytest.fixture(scope="module")
def tower(model: EmbeddingModel) -> ImageTower:
    assert model.tower
    return model.tower


def ways_to_ask(task: str) -> Iterator[dict[str, str | None]]:
    """List the fields that ask for one task."""
    bare, _, side = task.rpartition(".")
    yield {"task": task}
    if bare:
        yield {"task": bare, "prompt_name": side}
        yield {"task": task, "prompt_name": side}
    if side == "query":
        yield {"task": bare}
    if task == "text-matching":
        yield {}
        yield {"task": None}
        yield {"prompt_name": "passage"}
        yield {"task": task, "prompt_name": "query"}


def text_of(case: dict[str, Any]) -> str:
    return str(golden.expected(V4)["texts"][case["text"]])


def sizes_of(case: dict[str, Any]) -> dict[int | None, str]:
    """Name the array of every size that a case has; None is the model's own."""
    slices = case["outputs"].get("dimensions", {})
    return {None: case["outputs"]["embedding"]} | {int(size): name for size, name in slices.items()}


# --- text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.cases(V4, "cases"), ids=golden.by_id)
def test_texts_over_http(
    golden_v4_client: TestClient, model: EmbeddingModel, arrays: dict[str, np.ndarray], case: Any
) -> None:
    text = text_of(case)
    (alone,) = model.tokenizer.encode([text], model.manifest.max_tokens)
    for size, name in sizes_of(case).items():
        body = embed(golden_v4_client, V4, text, task=case["task"], dimensions=size)
        assert_near(vectors(body)[0], arrays[name], golden.UNIT)
        assert golden.cosine(vectors(body)[0], arrays[name]) >= golden.SAME_COSINE
        assert body["usage"] == {"prompt_tokens": len(alone.ids), "total_tokens": len(alone.ids)}


def test_the_golden_texts_have_sizes_and_multi_vectors() -> None:
    if not golden.is_there():
        pytest.skip(golden.MISSING)
    cases = golden.expected(V4)["cases"]
    assert sum("dimensions" in case["outputs"] for case in cases) > 1
    assert sum("multivector" in case["outputs"] for case in cases) > 30


@pytest.mark.parametrize("case", golden.cases(V4, "cases"), ids=golden.by_id)
def test_ways_to_ask_for_a_task(
    golden_v4_client: TestClient, arrays: dict[str, np.ndarray], case: Any
) -> None:
    for fields in ways_to_ask(case["task"]):
        answer = embed(golden_v4_client, V4, [{"text": text_of(case)}], embedding_type="base64", **fields)
        decoded = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"], validate=True), "<f4")
        assert_near(decoded, arrays[case["outputs"]["embedding"]], golden.UNIT)


def has_multivector(case: dict[str, Any]) -> bool:
    return "multivector" in case["outputs"]


@pytest.mark.parametrize("case", golden.cases(V4, "cases", has_multivector), ids=golden.by_id)
def test_text_multivectors_over_http(
    golden_v4_client: TestClient, arrays: dict[str, np.ndarray], case: Any
) -> None:
    body = embed(golden_v4_client, V4, text_of(case), task=case["task"], return_multivector=True)
    (item,) = body["data"]
    assert_near(item["embedding"], arrays[case["outputs"]["multivector"]], golden.UNIT)
    assert (item["index"], len(item["embedding"])) == (0, len(case["ids"]))


@pytest.mark.parametrize("case", golden.cases(V4, "cases"), ids=golden.by_id)
def test_token_ids(model: EmbeddingModel, case: Any) -> None:
    prefixes = {task.name: task.prefix for task in model.manifest.tasks}
    assert prefixes[case["task"]] == case["prompt"]
    text = case["prompt"] + text_of(case)
    assert model.tokenizer.encode([text, "other"], 8192)[0].ids.tolist() == case["ids"]
    assert model.tokenizer.locate(text).ids.tolist() == case["ids"]


@pytest.mark.parametrize("case", golden.cases(V4, "truncation"), ids=golden.by_id)
def test_truncation(model: EmbeddingModel, arrays: dict[str, np.ndarray], case: Any) -> None:
    limited = replace(model, manifest=replace(model.manifest, max_tokens=case["max_tokens"]))
    (cut,) = model.tokenizer.encode([case["prompt"] + text_of(case)], case["max_tokens"])
    assert cut.ids.tolist() == case["ids"]
    computed = limited.embed([text_of(case)], EmbedOptions(task=case["task"], truncate=True))
    assert_near(computed.vectors[0], arrays[case["outputs"]["embedding"]], golden.UNIT)
    with pytest.raises(InvalidRequest, match=r"input\[0\] has (at least )?\d+ tokens"):
        limited.embed([text_of(case)], EmbedOptions(task=case["task"]))


@pytest.mark.parametrize("task", ["retrieval.query", "retrieval.passage", "text-matching", "code.query"])
@pytest.mark.parametrize("names", golden.cases(V4, "batches"), ids=str)
def test_batches_are_the_single_runs(
    golden_v4_client: TestClient, arrays: dict[str, np.ndarray], names: list[str], task: str
) -> None:
    texts = golden.expected(V4)["texts"]
    answer = vectors(embed(golden_v4_client, V4, [texts[name] for name in names], task=task))
    for row, name in zip(answer, names, strict=True):
        assert_near(row, arrays[f"{task}/{name}/embedding"], golden.UNIT)


def is_expressible(case: dict[str, Any]) -> bool:
    return bool(case["form"] == "items" and case["join"] == " ")


@pytest.mark.parametrize("case", golden.cases(V4, "late_chunking", is_expressible), ids=golden.by_id)
def test_late_chunking_over_http(
    golden_v4_client: TestClient, arrays: dict[str, np.ndarray], case: Any
) -> None:
    body = embed(golden_v4_client, V4, case["items"], task=case["task"], late_chunking=True)
    assert_near(vectors(body), arrays[case["outputs"]["embedding"]], golden.UNIT)


@pytest.mark.parametrize("case", golden.cases(V4, "late_chunking"), ids=golden.by_id)
def test_late_chunking_of_given_spans(
    model: EmbeddingModel, arrays: dict[str, np.ndarray], case: Any
) -> None:
    ends = np.array([end for _, end in case["char_spans"]])
    whole = Document(case["text"], ends, is_one_text=case["form"] == "sentences")
    computed = model.embed_document(whole, EmbedOptions(task=case["task"])).vectors
    assert_near(computed, arrays[case["outputs"]["embedding"]], golden.UNIT)


# --- images -----------------------------------------------------------------------------------------------


def encoded(file: str) -> str:
    return base64.b64encode((IMAGES / file).read_bytes()).decode()


def facts_of(case: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = (facts for facts in golden.expected(V4)["images"] if facts["file"] == case["file"])
    return found


def reference_pixels(case: dict[str, Any]) -> np.ndarray:
    """Resize as the reference did; its sha256 is compared in the tests of service.images."""
    picture = Image.open(IMAGES / case["file"]).convert("RGB")
    return np.asarray(picture.resize(facts_of(case)["resized_wh"], Image.Resampling.BICUBIC))


def expected_rows(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[slice, np.ndarray]:
    """Return which rows of a multi-vector are known, and what they are."""
    if EVERY_8TH in case["outputs"]:
        return slice(None, None, 8), arrays[case["outputs"][EVERY_8TH]]
    return slice(None), arrays[case["outputs"]["multivector"]]


@pytest.mark.parametrize("case", golden.cases(V4, "image_cases"), ids=golden.by_id)
def test_images_over_http(golden_v4_client: TestClient, arrays: dict[str, np.ndarray], case: Any) -> None:
    forms = [{"image": encoded(case["file"])}, f"data:image/png;base64,{encoded(case['file'])}"]
    tokens = facts_of(case)["num_image_tokens"] + 11
    for task in case["api_tasks"]:
        for size, name in sizes_of(case).items():
            body = embed(golden_v4_client, V4, forms, task=task, dimensions=size)
            assert_near(vectors(body), np.stack([arrays[name]] * 2), IMAGE_END_TO_END)
            assert body["usage"] == {"prompt_tokens": 2 * tokens, "total_tokens": 2 * tokens}
        body = embed(golden_v4_client, V4, forms[0], task=task, return_multivector=True)
        found = np.array(body["data"][0]["embedding"])
        rows, expected = expected_rows(case, arrays)
        assert len(found) == tokens
        assert_near(found[rows], expected, IMAGE_END_TO_END)


@pytest.mark.parametrize("case", golden.cases(V4, "image_cases"), ids=golden.by_id)
def test_images_of_the_references_own_pixels(
    model: EmbeddingModel, arrays: dict[str, np.ndarray], case: Any
) -> None:
    pixels = reference_pixels(case)
    for task in case["api_tasks"]:
        for size, name in sizes_of(case).items():
            found = model.embed([pixels], EmbedOptions(task=task, dimensions=size)).vectors[0]
            assert_near(found, arrays[name], golden.UNIT)
            assert golden.cosine(found, arrays[name]) >= golden.SAME_COSINE
        computed = model.embed([pixels], EmbedOptions(task=task, return_multivector=True))
        assert computed.multivectors
        rows, expected = expected_rows(case, arrays)
        assert_near(computed.multivectors[0][rows], expected, golden.UNIT)


@pytest.mark.parametrize("case", golden.cases(V4, "image_cases"), ids=golden.by_id)
def test_token_ids_of_images(model: EmbeddingModel, tower: ImageTower, case: Any) -> None:
    (group,) = tower.prompts({0: reference_pixels(case)})
    prompt = group[0]
    image = [tower.template.image_id] * case["num_image_tokens"]
    assert prompt.ids.tolist() == [*case["ids_head"], *image, *case["ids_tail"]]
    assert list(prompt.pooled) == case["pool_span"]


@pytest.mark.parametrize("adapter", ["retrieval", "text-matching", "code"])
def test_texts_and_images_mixed_keep_their_order(
    golden_v4_client: TestClient, arrays: dict[str, np.ndarray], adapter: str
) -> None:
    if not golden.is_there():
        pytest.skip(golden.MISSING)
    golden_set = golden.expected(V4)
    images = [case for case in golden_set["image_cases"] if case["adapter"] == adapter]
    task = "text-matching" if adapter == "text-matching" else f"{adapter}.query"
    texts = [case for case in golden_set["cases"] if case["task"] == task]
    mixed: list[Any] = []
    for number in range(max(len(images), len(texts))):
        mixed += images[number : number + 1] + texts[number : number + 1]
    inputs = [text_of(case) if "text" in case else {"image": encoded(case["file"])} for case in mixed]
    body = embed(golden_v4_client, V4, inputs, task=task)
    assert [item["index"] for item in body["data"]] == list(range(len(mixed)))
    for row, case in zip(vectors(body), mixed, strict=True):
        tolerance = golden.UNIT if "text" in case else IMAGE_END_TO_END
        assert_near(row, arrays[case["outputs"]["embedding"]], tolerance)


def test_any_lengths_in_one_run_are_the_single_runs(
    model: EmbeddingModel, tower: ImageTower, arrays: dict[str, np.ndarray]
) -> None:
    """Texts and images padded to the longest: each has the vector of its own run."""
    golden_set = golden.expected(V4)
    images = [case for case in golden_set["image_cases"] if case["adapter"] == "retrieval"]
    texts = [case for case in golden_set["cases"] if case["task"] == "retrieval.passage"]
    pixels = {number: reference_pixels(case) for number, case in enumerate(images)}
    prompts = {number: prompt for group in tower.prompts(pixels) for number, prompt in group.items()}
    sequences = [*(np.array(case["ids"]) for case in texts), *(prompts[number] for number in pixels)]
    inputs = inference.stacker(model.manifest)(sequences)
    (together,) = model.graphs.session("retrieval").run(inputs, [Output.POOLED])
    for row, case in zip(together, [*texts, *images], strict=True):
        unit = row / np.linalg.norm(row)
        assert_near(unit, arrays[case["outputs"]["embedding"]], golden.UNIT)


def test_the_tower_is_opened_by_the_first_image(golden_v4_models: Path) -> None:
    from tests.conftest import load_all

    model = load_all(golden_v4_models).embedding(V4)
    model.embed(["a text"], EmbedOptions())
    model.embed(["a text"], EmbedOptions(return_multivector=True, task="code"))
    assert model.manifest.vision
    assert model.manifest.vision.file not in model.graphs.open_files()
    model.embed([np.zeros((56, 56, 3), dtype=np.uint8)], EmbedOptions())
    assert model.manifest.vision.file in model.graphs.open_files()
