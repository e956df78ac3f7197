"""What requests may ask of jina-embeddings-v4, over a tiny bundle in one process: forms, order, limits."""

from __future__ import annotations

import base64
import shutil
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from falcon.testing import Result, TestClient
from PIL import Image

from service import fetching, images, media
from service.addresses import FetchRules
from service.app import make_app
from service.config import Settings
from service.embedding import MAX_COLBERT_TOKENS
from service.errors import ImageError
from service.registry import Registry
from service.shares import Share
from tests import qwen_vl, xlmr
from tests.conftest import load_all
from tests.golden import assert_near, embed, vectors
from tests.qwen_vl import JINA_V4
from tests.xlmr import BGE_M3

EMBEDDINGS = "/v1/embeddings"
TEXT = "the red fox"
NEAR, FAR = 2e-6, 1e-3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a tiny jina-embeddings-v4 and a model of texts."""
    folder = tmp_path_factory.mktemp("image_requests")
    xlmr.bake_tiny(folder, JINA_V4, qwen_vl.write_jina_v4(folder / ".checkpoints" / JINA_V4))
    xlmr.bake_tiny(folder, BGE_M3, xlmr.write_bge_m3(folder / ".checkpoints" / BGE_M3))
    return folder


@pytest.fixture(scope="module")
def registry(models: Path) -> Registry:
    return load_all(models)


@pytest.fixture(scope="module")
def client(registry: Registry) -> TestClient:
    return TestClient(make_app(Settings(image_max_bytes=100_000, image_max_pixels=500_000), registry))


@pytest.fixture(scope="module")
def own_tokens(registry: Registry) -> int:
    """Count the tokens of the prompt that an image stands in; with the published tokenizer it is 11."""
    tower = registry.embedding(JINA_V4).tower
    assert tower
    return tower.template.num_tokens


def picture(width: int = 60, height: int = 90, seed: int = 0) -> bytes:
    """Draw a PNG of large colour fields."""
    fields = np.random.default_rng(seed).integers(0, 256, (3, 2, 3), dtype=np.uint8)
    made = Image.fromarray(fields).resize((width, height), Image.Resampling.NEAREST)
    file = BytesIO()
    made.save(file, "PNG")
    return file.getvalue()


def plain(content: bytes) -> str:
    return base64.b64encode(content).decode()


def uri(content: bytes) -> str:
    return f"data:image/png;base64,{plain(content)}"


def refused(client: TestClient, given: Any, param: str, code: str, **fields: Any) -> Result:
    """Check that an input is refused with this place and code; return the answer."""
    answer = client.simulate_post(EMBEDDINGS, json={"model": JINA_V4, "input": given, **fields})
    assert answer.status_code == 422, answer.text
    error = answer.json["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code), error
    assert answer.json["detail"] == error["message"]
    return answer


# --- forms ------------------------------------------------------------------------------------------------

FORMS: dict[str, Any] = {
    "image": lambda content: {"image": plain(content)},
    "image-uri": lambda content: {"image": uri(content)},
    "url-uri": lambda content: {"url": uri(content)},
    "bytes": lambda content: {"bytes": plain(content)},
    "string-uri": uri,
    "list-string-uri": lambda content: [uri(content)],
    "other-case": lambda content: {"image": uri(content).replace("data:image", "DATA:IMAGE")},
    "line-ends": lambda content: {"image": "\n".join(["", plain(content)[:60], plain(content)[60:], ""])},
    "no-padding": lambda content: {"image": plain(content).rstrip("=")},
    "null-text": lambda content: {"text": None, "image": plain(content)},
    "other-kind": lambda content: {"image": f"data:application/octet-stream;base64,{plain(content)}"},
    "parameters": lambda content: {"image": f"data:image/png;name=a.png;base64,{plain(content)}"},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_an_image(client: TestClient, own_tokens: int, form: str) -> None:
    content = picture()
    expected = embed(client, JINA_V4, [{"image": plain(content)}])
    assert embed(client, JINA_V4, FORMS[form](content)) == expected
    assert expected["usage"]["total_tokens"] == 2 * 3 + own_tokens
    other = vectors(embed(client, JINA_V4, FORMS[form](picture(seed=1))))
    assert np.abs(other - vectors(expected)).max() > FAR


def test_an_image_by_url(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, rules: FetchRules) -> bytes:
        asked.append((url, rules.max_bytes))
        return picture()

    monkeypatch.setattr(fetching, "fetch", fetch)
    expected = embed(client, JINA_V4, {"image": plain(picture())})
    for name, url in (
        ("image", "https://a.example/b.png"),
        ("url", "HTTP://a.example"),
        ("bytes", "http://a"),
    ):
        assert embed(client, JINA_V4, {name: url}) == expected
        assert asked.pop() == (url, 100_000)


def test_text_and_image_inputs_in_any_order_keep_it(client: TestClient) -> None:
    images = [picture(seed=seed, width=40 + 30 * seed) for seed in range(3)]
    inputs: list[Any] = ["one", {"image": plain(images[0])}, {"text": "two"}, uri(images[1])]
    inputs += ["three three three", {"url": uri(images[2])}, {"bytes": plain(images[0])}]
    for order in (range(7), reversed(range(7)), [3, 0, 6, 1, 5, 2, 4]):
        mixed = [inputs[number] for number in order]
        body = embed(client, JINA_V4, mixed, task="retrieval.passage")
        assert [item["index"] for item in body["data"]] == list(range(7))
        total = 0
        for row, given in zip(vectors(body), mixed, strict=True):
            alone = embed(client, JINA_V4, [given], task="retrieval.passage")
            assert_near(row, vectors(alone)[0], NEAR)
            total += alone["usage"]["total_tokens"]
        assert body["usage"]["total_tokens"] == total


def test_prompts_do_not_change_images_but_tasks_do(client: TestClient) -> None:
    given = {"image": plain(picture())}
    query, passage, matching, code = (
        vectors(embed(client, JINA_V4, given, task=task))
        for task in ("retrieval.query", "retrieval.passage", "text-matching", "code.query")
    )
    assert_near(query, passage, 0)
    assert np.abs(query - matching).max() > FAR and np.abs(query - code).max() > FAR


def test_multivectors_of_texts_and_images(client: TestClient, own_tokens: int) -> None:
    inputs = [TEXT, {"image": plain(picture())}, "a"]
    body = embed(client, JINA_V4, inputs, return_multivector=True)
    rows = [np.array(item["embedding"]) for item in body["data"]]
    assert [item["object"] for item in body["data"]] == ["embedding"] * 3
    assert {row.shape[1] for row in rows} == {qwen_vl.SIZES.projection}
    assert len(rows[1]) == 2 * 3 + own_tokens and len(rows[0]) > len(rows[2])
    for row, given in zip(rows, inputs, strict=True):
        np.testing.assert_allclose(np.linalg.norm(row, axis=1), 1, rtol=0, atol=1e-6)
        alone = embed(client, JINA_V4, given, return_multivector=True)
        assert_near(row, np.array(alone["data"][0]["embedding"]), NEAR)
    packed = embed(client, JINA_V4, inputs, return_multivector=True, embedding_type="base64")
    for row, item in zip(rows, packed["data"], strict=True):
        decoded = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in item["embedding"]]
        assert_near(decoded, row, 1e-7)
    binary = embed(client, JINA_V4, TEXT, return_multivector=True, embedding_type="binary")
    signs = np.packbits(rows[0] > 0, axis=1).astype(int) - 128
    assert binary["data"][0]["embedding"] == signs.tolist()


def test_sizes_of_images(client: TestClient) -> None:
    given = {"image": plain(picture())}
    whole = vectors(embed(client, JINA_V4, given))[0]
    cut = vectors(embed(client, JINA_V4, given, dimensions=10))[0]
    assert_near(cut, whole[:10] / np.linalg.norm(whole[:10]), NEAR)


# --- refusals ---------------------------------------------------------------------------------------------


def test_images_to_a_model_of_texts(client: TestClient) -> None:
    body = {"model": BGE_M3, "input": [TEXT, {"image": plain(picture())}]}
    answer = client.simulate_post(EMBEDDINGS, json=body)
    assert answer.status_code == 422
    assert answer.json["error"]["param"] == "input[1].image"
    assert answer.json["error"]["code"] == "images_unsupported"
    assert BGE_M3 in answer.json["detail"] and JINA_V4 in answer.json["detail"]
    as_text = embed(client, BGE_M3, [uri(b"not an image at all")])
    assert as_text["usage"]["total_tokens"] > 10, "to a model of texts a string is a text"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"late_chunking": True}, "input[1].image", "unsupported_option"),
        ({"late_chunking": True, "return_multivector": True}, "late_chunking", "conflicting_fields"),
        ({"return_multivector": True, "dimensions": 8}, "dimensions", "conflicting_fields"),
        ({"return_multivector": True, "dimensions": 0}, "dimensions", "conflicting_fields"),
        ({"return_sparse": True}, "return_sparse", "unsupported_option"),
        ({"task": "retrieval.document"}, "task", "unknown_task"),
        ({"task": "none"}, "task", "unknown_task"),
        ({"task": "retrieval", "prompt_name": "document"}, "prompt_name", "invalid_prompt_name"),
        ({"task": "code.query", "prompt_name": "passage"}, "prompt_name", "conflicting_fields"),
        ({"dimensions": 65}, "dimensions", "invalid_dimensions"),
    ],
    ids=str,
)
def test_options_are_refused_before_anything_is_fetched(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], param: str, code: str
) -> None:
    monkeypatch.setattr(fetching, "fetch", lambda url, rules: pytest.fail("fetched"))
    refused(client, [TEXT, {"image": "https://a.example/b.png"}], param, code, **fields)


def test_late_chunking_of_texts(client: TestClient) -> None:
    given = ["red fox.", "blue sky."]
    chunks = vectors(embed(client, JINA_V4, given, late_chunking=True, task="retrieval"))
    alone = vectors(embed(client, JINA_V4, given, task="retrieval"))
    assert chunks.shape == alone.shape
    assert np.abs(chunks[1] - alone[1]).max() > FAR


BAD_ITEMS: dict[str, tuple[Any, str, str]] = {
    "text-and-image": ({"text": "a", "image": "b"}, "", "conflicting_fields"),
    "two-images": ({"url": "http://a", "image": "b"}, "", "conflicting_fields"),
    "neither": ({"pdf": "b"}, ".text", "missing_field"),
    "number": ({"image": 5}, ".image", "wrong_type"),
    "empty": ({"image": ""}, ".image", "invalid_image"),
    "not-base64": ({"image": "what is this?"}, ".image", "invalid_image"),
    "text-in-base64": ({"bytes": plain(b"hello")}, ".bytes", "invalid_image"),
    "uri-without-base64": ({"image": "data:image/png,abc"}, ".image", "invalid_image"),
    "svg": ({"image": plain(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}, ".image", "invalid_image"),
    "html": ({"image": plain(b"<!doctype html><html></html>")}, ".image", "invalid_image"),
    "truncated": ({"image": plain(picture()[:-60])}, ".image", "invalid_image"),
    "too-many-bytes": ({"image": plain(bytes(100_001))}, ".image", "image_too_large"),
    "far-too-many-bytes": ({"image": plain(bytes(1_000_000))}, ".image", "image_too_large"),
    "too-many-pixels": ({"image": plain(picture(1000, 501))}, ".image", "image_too_large"),
    "strip": ({"image": plain(picture(402, 2))}, ".image", "invalid_image"),
    "ftp": ({"image": "ftp://a.example/b.png"}, ".image", "image_url_invalid"),
    "file": ({"image": "file:///etc/passwd"}, ".image", "image_url_invalid"),
    "inside": ({"image": "http://127.0.0.1:1/"}, ".image", "image_url_not_allowed"),
    "plain-uri": ("data:image/png;base64,AAAA", "", "invalid_image"),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
@pytest.mark.parametrize("place", [None, 0, 2])
def test_bad_items_are_named(client: TestClient, case: str, place: int | None) -> None:
    item, end, code = BAD_ITEMS[case]
    given: Any = item
    if place is not None:
        given = ["a", {"image": plain(picture())}, "b"]
        given[place] = item
    param = ("input" if place is None else f"input[{place}]") + end
    answer = refused(client, given, param, code)
    assert param in answer.json["detail"]


def test_the_first_of_several_bad_images_is_named(client: TestClient) -> None:
    given = [{"image": plain(picture())}, {"image": plain(b"x")}, {"image": "http://127.0.0.1:1/"}]
    refused(client, given, "input[1].image", "invalid_image")


def test_a_strip_has_the_error_of_the_reference(client: TestClient) -> None:
    answer = refused(client, {"image": plain(picture(402, 2))}, "input.image", "invalid_image")
    assert "absolute aspect ratio must be smaller than 200, got 201" in answer.json["detail"]


def test_too_many_images(client: TestClient) -> None:
    given = [{"image": plain(picture())}] * (media.MAX_IMAGES + 1)
    refused(client, given, "input", "too_many_images")


def test_a_text_that_is_too_long_is_named_by_its_place(client: TestClient) -> None:
    long = "red " * 20_000
    refused(client, [{"image": plain(picture())}, long], "input[1]", "input_too_long")
    body = embed(client, JINA_V4, [{"image": plain(picture())}, long], truncate=True)
    assert len(body["data"]) == 2


def test_too_many_multivectors(client: TestClient, registry: Registry) -> None:
    limit = registry.embedding(JINA_V4).manifest.max_tokens
    given = ["red " * limit] * (MAX_COLBERT_TOKENS // limit + 1)
    refused(client, given, "return_multivector", "too_many_tokens", return_multivector=True, truncate=True)


def test_documents_of_rerankers_are_texts(client: TestClient) -> None:
    body = {"model": JINA_V4, "query": "a", "documents": [{"image": plain(picture())}]}
    answer = client.simulate_post("/v1/rerank", json=body)
    assert (answer.status_code, answer.json["error"]["param"]) == (422, "documents[0].text")


# --- many images ------------------------------------------------------------------------------------------


def test_many_images_of_many_sizes(client: TestClient) -> None:
    sizes = [(30 + 7 * number % 200, 30 + 13 * number % 150) for number in range(64)]
    images = [{"image": plain(picture(width, height, seed))} for seed, (width, height) in enumerate(sizes)]
    together = vectors(embed(client, JINA_V4, images))
    for number in range(0, 64, 9):
        assert_near(together[number], vectors(embed(client, JINA_V4, images[number]))[0], NEAR)


def test_images_are_decoded_one_at_a_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []
    decode = images.decode

    def counted(content: bytes, max_pixels: int) -> Image.Image:
        running.append(1)
        assert len(running) == 1, "two at once"
        try:
            return decode(content, max_pixels)
        finally:
            running.pop()

    monkeypatch.setattr(images, "decode", counted)
    given = [{"image": plain(picture(seed=seed, width=300, height=300))} for seed in range(16)]
    assert len(embed(client, JINA_V4, given)["data"]) == 16


def test_fetches_of_a_request_run_at_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = threading.Barrier(4, timeout=20)

    def fetch(url: str, rules: FetchRules) -> bytes:
        everyone.wait()
        if url.endswith("/2"):
            raise ImageError("is broken", code="image_fetch_failed")
        return picture()

    monkeypatch.setattr(fetching, "fetch", fetch)
    given = [{"image": f"http://a.example/{number}"} for number in range(4)]
    answer = refused(client, given, "input[2].image", "image_fetch_failed")
    assert answer.json["detail"] == "input[2].image: is broken."


def test_a_tower_that_is_broken_is_one_models_error(models: Path, tmp_path: Path) -> None:
    broken = tmp_path / JINA_V4
    shutil.copytree(models / JINA_V4, broken)
    graph = broken / "vision" / "model.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    client = TestClient(make_app(Settings(), load_all(tmp_path)))
    body = {"model": JINA_V4, "input": {"image": plain(picture())}}
    answer = client.simulate_post(EMBEDDINGS, json=body)
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "model_failed")
    assert embed(client, JINA_V4, TEXT)["data"]


def test_an_image_that_computes_no_number_is_withheld(
    registry: Registry, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Share.run

    def spoiled(self: Share, *arguments: Any) -> np.ndarray:
        computed = run(self, *arguments).copy()
        computed[0, 0] = np.nan
        return computed

    monkeypatch.setattr(Share, "run", spoiled)
    body = {"model": JINA_V4, "input": [TEXT, {"image": plain(picture())}]}
    answer = client.simulate_post(EMBEDDINGS, json=body)
    assert (answer.status_code, answer.json["error"]["code"]) == (500, "model_output_not_finite")
    assert embed(client, JINA_V4, TEXT)["data"]
