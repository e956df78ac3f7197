"""The specification's own curl commands, run as they are written against a live gunicorn.

jina-embeddings-v3 has its real width and its real tokenizer here, so that dimensions are those promised.
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests import golden, spec, xlmr
from tests.processes import PROJECT
from tests.spec import NEAR, Serve, Service, assert_unit, command, items, results, sent
from tests.xlmr import BGE_M3, BGE_RERANKER, V3

pytestmark = pytest.mark.skipif(not golden.is_there(), reason=golden.MISSING)

DEFAULT_RERANKER = "jina-reranker-v3"


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
    with spec.service_of(models, serve, tmp_path_factory.mktemp("curl")) as found:
        yield found


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(golden.xlm_roberta_tokenizer().decode())


@pytest.fixture(scope="module")
def examples() -> dict[str, str]:
    return spec.examples()


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


@pytest.mark.parametrize("number", ["19", "20", "21", "22"])
def test_examples_of_reranking(service: Service, examples: dict[str, str], number: str):
    assert DEFAULT_RERANKER in examples[number]
    example = examples[number].replace(DEFAULT_RERANKER, BGE_RERANKER)
    found = results(service.answer(example), BGE_RERANKER, sent(example))
    assert all(0 < result["relevance_score"] < 1 for result in found)


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


def test_example_23_lists_the_models(service: Service, examples: dict[str, str]):
    entries = spec.listed(service.answer(examples["23"])).items()
    found = {name: (entry["type"], entry["dimensions"], entry["max_tokens"]) for name, entry in entries}
    assert found == {
        V3: ("embedding", 1024, 8192),
        BGE_M3: ("embedding", xlmr.TINY.hidden, xlmr.BGE_TOKENS),
        BGE_RERANKER: ("reranker", None, xlmr.BGE_TOKENS),
    }


def test_health_example(service: Service):
    example = f"curl {spec.LOCAL}/healthz"
    assert example in spec.text()
    assert service.answer(example) == {"status": "ok"}
