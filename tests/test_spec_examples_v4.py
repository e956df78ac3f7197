"""The specification's commands for jina-embeddings-v4 against a live gunicorn; images from a local server.

The golden checkpoint is served; it is narrow, so that sizes are those of its bundle.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from service.manifest import Manifest, load
from tests import golden, spec
from tests.golden import assert_near
from tests.processes import LOCALHOST
from tests.spec import Serve, Service, assert_unit, command, items, sent

V4 = "jina-embeddings-v4"
EXAMPLE_HOST = "https://example.com"
PICTURES = {"sample-image.jpg": "rocket.jpg", "sunset.jpg": "chelsea.png"}  # as asked for: what it is
IMAGES = golden.SHARED / "data" / "images"
IMAGE_END_TO_END = 2e-3
OWN_TOKENS = 11  # of the prompt that an image stands in

pytestmark = pytest.mark.skipif(not golden.is_there(), reason=golden.MISSING)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a line for each request."""

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the pictures that the examples name; give the server's address."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, file in PICTURES.items():
        (folder / name).write_bytes((IMAGES / file).read_bytes())
    server = ThreadingHTTPServer((LOCALHOST, 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://{LOCALHOST}:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def service(
    golden_v4_models: Path, serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    settings = tmp_path_factory.mktemp("curl")
    (settings / ".curlrc").write_text(spec.CURL_SETTINGS)
    with serve(golden_v4_models, IMAGE_ALLOW_HOSTS=LOCALHOST) as live:
        yield Service(live.url, settings)


@pytest.fixture(scope="module")
def manifest(golden_v4_models: Path) -> Manifest:
    return load(golden_v4_models / V4)


@pytest.fixture(scope="module")
def examples(pictures: str) -> dict[str, str]:
    return {number: written.replace(EXAMPLE_HOST, pictures) for number, written in spec.examples().items()}


def test_the_examples_name_images(examples: dict[str, str], pictures: str) -> None:
    for number, name in (("10", "sample-image.jpg"), ("11", "sunset.jpg")):
        assert f"{pictures}/{name}" in examples[number]
        assert f"{EXAMPLE_HOST}/{name}" in spec.examples()[number]


@pytest.mark.parametrize(("number", "count"), [("9", 1), ("10", 1), ("11", 3), ("12", 1)])
def test_examples_of_vectors(
    service: Service, examples: dict[str, str], manifest: Manifest, number: str, count: int
) -> None:
    found = items(service.answer(examples[number]), V4, count)
    assert_unit(found, manifest.dimensions)
    assert len(np.unique(np.round(found, 4), axis=0)) == count, "equal vectors"


def test_example_10_has_the_vector_of_the_file(service: Service, examples: dict[str, str]) -> None:
    body = service.answer(examples["10"])
    given = base64.b64encode((IMAGES / "rocket.jpg").read_bytes()).decode()
    asked = {"model": V4, "input": [{"image": f"data:image/jpeg;base64,{given}"}]}
    answer = golden_post(service, asked)
    assert_near(items(body, V4, 1), np.array(items(answer, V4, 1)), 1e-6)
    assert body["usage"] == answer["usage"]


def test_example_11_answers_in_order(service: Service, examples: dict[str, str]) -> None:
    body = service.answer(examples["11"])
    mixed = items(body, V4, 3)
    arrays = golden.arrays(V4)
    assert_near(mixed[1], arrays["image/text-matching/chelsea.png/embedding"], IMAGE_END_TO_END)
    given = sent(examples["11"])["input"]
    assert ["image" in item for item in given] == [False, True, False]
    total = body["usage"]["total_tokens"]
    for place in (0, 2):
        alone = service.answer(command("/v1/embeddings", {"model": V4, "input": given[place]}))
        assert_near(items(alone, V4, 1)[0], np.array(mixed[place]), golden.UNIT)
        total -= alone["usage"]["total_tokens"]
    (facts,) = (facts for facts in golden.expected(V4)["images"] if facts["file"] == "chelsea.png")
    assert total == facts["num_image_tokens"] + OWN_TOKENS


def test_example_12_asks_for_the_query_side(service: Service, examples: dict[str, str]) -> None:
    asked = sent(examples["12"])
    assert (asked["task"], asked["prompt_name"]) == ("retrieval", "query")
    found = items(service.answer(examples["12"]), V4, 1)
    for fields, is_same in (
        ({"task": "retrieval.query"}, True),
        ({"task": "retrieval"}, True),
        ({"task": "retrieval", "prompt_name": "passage"}, False),
        ({"task": "text-matching"}, False),
    ):
        other = items(
            service.answer(command("/v1/embeddings", {"model": V4, "input": asked["input"], **fields})), V4, 1
        )
        assert (np.abs(np.subtract(found, other)).max() < 1e-6) == is_same, fields


def test_example_13_has_a_vector_for_each_token(
    service: Service, examples: dict[str, str], golden_v4_models: Path
) -> None:
    (rows,) = items(service.answer(examples["13"]), V4, 1)
    tokenizer = Tokenizer.from_file(str(golden_v4_models / V4 / "tokenizer.json"))
    (text,) = sent(examples["13"])["input"]
    assert len(rows) == len(tokenizer.encode(f"Query: {text}").ids)
    assert_unit(rows, np.shape(golden.arrays(V4)["retrieval.query/single/multivector"])[1])


def test_the_list_of_models(service: Service, manifest: Manifest) -> None:
    entry = spec.listed(service.answer(f"curl {spec.LOCAL}/v1/models"))[V4]
    assert entry["tasks"] == ["retrieval", "text-matching", "code"]
    assert entry["supports_multimodal"] is True
    assert (entry["max_tokens"], entry["dimensions"]) == (8192, manifest.dimensions)


def golden_post(service: Service, body: object) -> dict[str, object]:
    """Post a body that is too long for a command line."""
    answer = httpx.post(f"{service.url}/v1/embeddings", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found
