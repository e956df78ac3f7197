"""The specification's own curl commands, run as they are written against a live gunicorn.

jina-embeddings-v3 has its real width and its real tokenizer here, so that dimensions are those promised.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests import golden, xlmr
from tests.conftest import Live
from tests.processes import PROJECT
from tests.xlmr import BGE_M3, BGE_RERANKER, V3

pytestmark = pytest.mark.skipif(not golden.is_there(), reason=golden.MISSING)

SPECIFICATION = golden.SHARED / "spec" / "api-reference.md"
LOCAL = "http://localhost:8080"
DEFAULT_RERANKER = "jina-reranker-v3"
EXAMPLE = re.compile(
    r"^###+ (?:Example (?P<number>\d+)|(?P<pattern>Pattern \d+)):.*?\n```bash\n(?P<command>.*?)\n```",
    re.DOTALL | re.MULTILINE,
)
# What curl does beyond the command line: print the status behind the body, and no progress.
CURL_SETTINGS = 'silent\nshow-error\nwrite-out = "\\n%{http_code}"\n'
SECONDS = 60
NEAR = 1e-6
Serve = Callable[..., AbstractContextManager[Live]]


@dataclass(frozen=True)
class Service:
    """A live service and the folder of curl's settings."""

    url: str
    settings: Path

    def run(self, command: str) -> tuple[int, dict[str, Any]]:
        """Run a curl command written for the address of the specification; return status and body."""
        assert LOCAL in command
        done = subprocess.run(
            ["bash", "-c", command.replace(LOCAL, self.url)],
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "CURL_HOME": str(self.settings)},
            capture_output=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=True,
        )
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body)

    def answer(self, command: str) -> dict[str, Any]:
        """Run a curl command that must succeed."""
        status, body = self.run(command)
        assert status == 200, body
        return body


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A models folder with jina-embeddings-v3 in its real width, bge-m3 and a reranker, both tiny.

    It takes more than a gigabyte, and pytest keeps what several runs have left: it is deleted at the end.
    """
    folder = tmp_path_factory.mktemp("examples")
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    sources = {
        V3: xlmr.write_wide_jina_v3(checkpoints / V3, golden.xlm_roberta_tokenizer()),
        BGE_M3: xlmr.write_bge_m3(checkpoints / BGE_M3),
        BGE_RERANKER: xlmr.write_bge_reranker(checkpoints / BGE_RERANKER),
    }
    for model, source in sources.items():
        options = ["--source", str(source), "--out", str(folder), "--precision", "fp32", "--verify", "skip"]
        subprocess.run([sys.executable, "-m", "convert", model, *options], cwd=PROJECT, check=True)
    shutil.rmtree(checkpoints)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def service(models: Path, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = tmp_path_factory.mktemp("curl")
    (settings / ".curlrc").write_text(CURL_SETTINGS)
    with serve(models) as live:
        yield Service(live.url, settings)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(golden.xlm_roberta_tokenizer().decode())


@pytest.fixture(scope="module")
def examples() -> dict[str, str]:
    """The commands of the specification for a local server, by the number or name of their heading."""
    text = SPECIFICATION.read_text(encoding="utf-8")
    found = {match["number"] or match["pattern"]: match["command"] for match in EXAMPLE.finditer(text)}
    assert {*map(str, range(1, 24)), "Pattern 1", "Pattern 2", "Pattern 3"} == {*found}
    return found


def sent(command: str) -> dict[str, Any]:
    """Read the body that a command sends."""
    words = shlex.split(command)
    body: dict[str, Any] = json.loads(words[words.index("-d") + 1])
    return body


def command(route: str, body: object) -> str:
    """Write a command as the specification does."""
    return f"curl {LOCAL}{route} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


def items(body: dict[str, Any], model: str, count: int) -> list[Any]:
    """Check an embeddings answer against the specification's schema; return the embeddings."""
    assert set(body) == {"object", "model", "data", "usage"}
    assert (body["object"], body["model"]) == ("list", model)
    assert [item["index"] for item in body["data"]] == [*range(count)]
    assert all(item["object"] == "embedding" for item in body["data"])
    assert all(set(item) == {"object", "index", "embedding"} for item in body["data"])
    assert set(body["usage"]) == {"prompt_tokens", "total_tokens"}
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0
    return [item["embedding"] for item in body["data"]]


def assert_unit(vectors: Any, size: int) -> None:
    assert np.shape(vectors)[1:] == (size,)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=0, atol=NEAR)


FLOATS = {"1": (2, 1024), "2": (1, 1024), "3": (2, 1024), "4": (2, 512), "7": (3, 1024), "8": (2, 1024)}


@pytest.mark.parametrize(("number", "shape"), FLOATS.items(), ids=FLOATS)
def test_examples_of_vectors(
    service: Service, examples: dict[str, str], tokenizer: Tokenizer, number: str, shape: tuple[int, int]
):
    count, size = shape
    body = service.answer(examples[number])
    found = items(body, V3, count)
    assert_unit(found, size)
    assert len(np.unique(np.round(found, 4), axis=0)) == count, "equal vectors"
    given = sent(examples[number])["input"]
    texts = [given] if isinstance(given, str) else given
    assert body["usage"]["total_tokens"] == sum(len(tokenizer.encode(text).ids) for text in texts)


def test_examples_2_and_3_apply_their_tasks(service: Service, examples: dict[str, str]):
    for example in (examples["2"], examples["3"]):
        other = example.replace(f'"task": "{sent(example)["task"]}",', "")
        assert "task" not in sent(other)
        asked, default = (np.array(service.answer(c)["data"][0]["embedding"]) for c in (example, other))
        assert asked @ default < 0.99


def test_example_4_is_a_slice_of_length_one(service: Service, examples: dict[str, str]):
    whole = service.answer(examples["4"].replace('"dimensions": 512,', '"dimensions": 1024,'))
    kept = np.array(items(whole, V3, 2))[:, :512]
    expected = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    found = items(service.answer(examples["4"]), V3, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=NEAR)


def plain(examples: dict[str, str], number: str) -> str:
    """Return an example without its `embedding_type`."""
    return re.sub(r'"embedding_type": "\w+",', "", examples[number])


def test_example_5_base64(service: Service, examples: dict[str, str]):
    (encoded,) = items(service.answer(examples["5"]), V3, 1)
    vector = np.frombuffer(base64.b64decode(encoded, validate=True), "<f4")
    assert_unit(vector[None], 1024)
    (floats,) = items(service.answer(plain(examples, "5")), V3, 1)
    np.testing.assert_allclose(vector, floats, rtol=0, atol=NEAR)


def test_example_6_binary(service: Service, examples: dict[str, str]):
    (packed,) = items(service.answer(examples["6"]), V3, 1)
    assert len(packed) == 128 and all(type(number) is int and -128 <= number <= 127 for number in packed)
    (floats,) = items(service.answer(plain(examples, "6")), V3, 1)
    bits = np.unpackbits((np.array(packed) + 128).astype(np.uint8))
    np.testing.assert_array_equal(bits.astype(bool), np.array(floats) > 0)


def test_example_7_gives_each_sentence_its_context(service: Service, examples: dict[str, str]):
    body = sent(examples["7"])
    sentences = body["input"][0].replace(". ", ".|").split("|")
    assert len(sentences) == 3
    late = items(service.answer(examples["7"]), V3, 3)
    chunks = items(service.answer(command("/v1/embeddings", body | {"input": sentences})), V3, 3)
    np.testing.assert_allclose(late, chunks, rtol=0, atol=NEAR)
    alone = items(service.answer(command("/v1/embeddings", {"model": V3, "input": sentences})), V3, 3)
    assert np.abs(np.subtract(late, alone)).max(axis=1).min() > 1e-3


def test_pattern_2(service: Service, examples: dict[str, str]):
    assert_unit(items(service.answer(examples["Pattern 2"]), BGE_M3, 2), xlmr.TINY.hidden)


# --- rerank -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "count"), {"19": 3, "20": 3, "21": 3, "22": 3}.items())
def test_examples_of_reranking(service: Service, examples: dict[str, str], number: str, count: int):
    assert DEFAULT_RERANKER in examples[number]
    example = examples[number].replace(DEFAULT_RERANKER, BGE_RERANKER)
    body = service.answer(example)
    assert set(body) == {"model", "object", "results", "usage"}
    assert body["model"] == BGE_RERANKER and body["usage"]["total_tokens"] > 0
    documents = [d if isinstance(d, str) else d["text"] for d in sent(example)["documents"]]
    assert len(body["results"]) == count
    assert len({result["index"] for result in body["results"]}) == count
    for result in body["results"]:
        assert set(result) == {"index", "relevance_score", "document"}
        assert result["document"] == {"text": documents[result["index"]]}
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True) and all(0 < score < 1 for score in scores)


@pytest.mark.parametrize("number", ["19", "22"])
def test_reranker_that_is_not_loaded(service: Service, examples: dict[str, str], number: str):
    without = examples[number].replace(f'"model": "{DEFAULT_RERANKER}",', "")
    assert "model" not in sent(without)
    for example in (without, examples[number]):
        status, body = service.run(example)
        assert status == 404
        assert set(body["error"]) == {"message", "type", "param", "code"}
        found = (body["error"]["type"], body["error"]["param"], body["error"]["code"])
        assert found == ("invalid_request_error", "model", "model_not_found")
        assert all(name in body["detail"] for name in (DEFAULT_RERANKER, V3, BGE_M3, BGE_RERANKER))


# --- models -----------------------------------------------------------------------------------------------


def is_integer_or_null(value: object) -> bool:
    return value is None or type(value) is int


FIELDS: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: type(value) is str,
    "object": lambda value: value == "model",
    "created": lambda value: type(value) is int and value > 0,
    "owned_by": lambda value: type(value) is str,
    "type": lambda value: value in ("embedding", "reranker"),
    "max_tokens": is_integer_or_null,
    "dimensions": is_integer_or_null,
    "supports_multimodal": lambda value: type(value) is bool,
    "tasks": lambda value: value is None or all(type(task) is str for task in value),
}


def test_example_23_lists_the_models(service: Service, examples: dict[str, str]):
    body = service.answer(examples["23"])
    assert set(body) == {"object", "data"} and body["object"] == "list"
    table = re.findall(r"^\| `data\[\]\.(\w+)`", SPECIFICATION.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(table) == set(FIELDS)
    for entry in body["data"]:
        assert [field for field, is_right in FIELDS.items() if not is_right(entry[field])] == []
    listed = {
        entry["id"]: (entry["type"], entry["dimensions"], entry["max_tokens"]) for entry in body["data"]
    }
    assert listed == {
        V3: ("embedding", 1024, 8192),
        BGE_M3: ("embedding", xlmr.TINY.hidden, xlmr.BGE_TOKENS),
        BGE_RERANKER: ("reranker", None, xlmr.BGE_TOKENS),
    }


def test_health_example(service: Service):
    example = f"curl {LOCAL}/healthz"
    assert example in SPECIFICATION.read_text(encoding="utf-8")
    assert service.answer(example) == {"status": "ok"}
