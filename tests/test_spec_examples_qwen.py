"""The specification's commands for the Qwen family, and its test script, against a live gunicorn.

All models of the golden set are served; they are narrow, so that sizes are those of their bundles.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from convert.catalog import RECIPES
from service.manifest import load
from tests import spec
from tests.conftest import bake_golden
from tests.spec import NEAR, PATH, Serve, Service, assert_unit, command, items, results, sent

CODE, LARGER_CODE = "jina-code-embeddings-0.5b", "jina-code-embeddings-1.5b"
QWEN3, QWEN3_RERANKER = "qwen3-embedding-0.6b", "qwen3-reranker-0.6b"
JINA_RERANKER, BGE_RERANKER = "jina-reranker-v3", "bge-reranker-v2-m3"
V3, V4, BGE_M3 = "jina-embeddings-v3", "jina-embeddings-v4", "bge-m3"
FULL_SIZE = 1024  # of qwen3's answers, where a checkpoint has as much
JQ = """#!{python}
import json, sys
answer = json.load(sys.stdin)
FILTERS = {{
    ".data[0].embedding[:3]": lambda: [answer["data"][0]["embedding"][:3]],
    ".results": lambda: [answer["results"]],
    ".data[].id": lambda: [entry["id"] for entry in answer["data"]],
}}
for found in FILTERS[sys.argv[1]]():
    print(json.dumps(found, indent=2))
"""


LARGER = {  # the checkpoint that stands for a model
    LARGER_CODE: CODE,
    "qwen3-embedding-4b": QWEN3,
    "qwen3-embedding-8b": QWEN3,
    "qwen3-reranker-4b": QWEN3_RERANKER,
}


@pytest.fixture(scope="module")
def models(
    golden_models: Path,
    golden_qwen_models: Path,
    golden_v4_models: Path,
    golden_qwen_checkpoints: Path,
    tiny_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A models folder with a bundle of every model; small checkpoints stand for the larger ones too."""
    folder = tmp_path_factory.mktemp("examples_qwen")
    for bundle in (
        *golden_models.iterdir(),
        *golden_qwen_models.iterdir(),
        *golden_v4_models.iterdir(),
        *tiny_models.iterdir(),
    ):
        if not bundle.name.startswith("."):
            (folder / bundle.name).symlink_to(bundle, target_is_directory=True)
    for larger, smaller in LARGER.items():
        bake_golden(golden_qwen_checkpoints / smaller, folder, larger)
    return folder


@pytest.fixture(scope="module")
def service(models: Path, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with spec.service_of(models, serve, tmp_path_factory.mktemp("curl")) as found:
        yield found


@pytest.fixture(scope="module")
def examples(models: Path) -> dict[str, str]:
    return spec.examples()


@pytest.fixture(scope="module")
def tokenizer(models: Path) -> Tokenizer:
    """The tokenizer of all models of the family; only qwen3-embedding adds a token."""
    return Tokenizer.from_file(str(models / CODE / "tokenizer.json"))


def size_of(models: Path, model: str) -> int:
    return load(models / model).dimensions


def num_tokens(tokenizer: Tokenizer, texts: list[str], num_added: int = 0) -> int:
    return sum(len(tokenizer.encode(text).ids) + num_added for text in texts)


def vectors_of(service: Service, model: str, texts: list[str], **fields: object) -> np.ndarray:
    asked = {"model": model, "input": texts, **fields}
    return np.array(items(service.answer(command("/v1/embeddings", asked)), model, len(texts)))


# --- jina-code-embeddings ---------------------------------------------------------------------------------

CODE_EXAMPLES = {"14": LARGER_CODE, "15": LARGER_CODE, "16": CODE, "17": LARGER_CODE}


@pytest.mark.parametrize(("number", "model"), CODE_EXAMPLES.items(), ids=CODE_EXAMPLES)
def test_code_examples(
    service: Service, examples: dict[str, str], models: Path, tokenizer: Tokenizer, number: str, model: str
):
    asked = sent(examples[number])
    body = service.answer(examples[number])
    found = items(body, model, len(asked["input"]))
    assert_unit(found, size_of(models, model))
    assert body["usage"]["total_tokens"] == num_tokens(tokenizer, asked["input"])
    default = vectors_of(service, model, asked["input"])
    is_default = asked["task"] == "nl2code.query"
    assert np.allclose(found, default, rtol=0, atol=NEAR) == is_default


def test_example_18_base64(service: Service, examples: dict[str, str], models: Path):
    asked = sent(examples["18"])
    encoded = items(service.answer(examples["18"]), LARGER_CODE, 2)
    found = np.array([np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in encoded])
    assert_unit(found, size_of(models, LARGER_CODE))
    floats = vectors_of(service, LARGER_CODE, asked["input"], task=asked["task"])
    np.testing.assert_allclose(found, floats, rtol=0, atol=NEAR)


def test_code_tasks_of_the_specification(service: Service, examples: dict[str, str]):
    section = spec.text().partition("## jina-code-embeddings\n")[2].partition("### Example")[0]
    tasks = re.findall(r"^\| `(\w+\.\w+)` \|", section, re.MULTILINE)
    assert len(tasks) == 10
    entries = spec.listed(service.answer(examples["23"]))
    for model in (CODE, LARGER_CODE):
        assert set(entries[model]["tasks"]) == set(tasks)


# --- qwen3-embedding --------------------------------------------------------------------------------------


def test_qwen3_example_applies_its_instruction(
    service: Service, examples: dict[str, str], models: Path, tokenizer: Tokenizer
):
    section = spec.text().partition("**Applied Instruction Format:**\n```\n")[2]
    whole = section.partition("\n```")[0]
    assert whole.startswith("Instruct: Given a search query") and "\nQuery: What are" in whole
    body = service.answer(examples["Example"])
    found = items(body, QWEN3, 1)
    assert_unit(found, min(FULL_SIZE, size_of(models, QWEN3)))
    np.testing.assert_allclose(found, vectors_of(service, QWEN3, [whole]), rtol=0, atol=NEAR)
    texts = sent(examples["Example"])["input"]
    assert body["usage"]["total_tokens"] == num_tokens(tokenizer, texts, num_added=1)
    assert np.abs(np.subtract(found, vectors_of(service, QWEN3, texts))).max() > 1e-2


def test_pattern_1(service: Service, examples: dict[str, str], models: Path):
    (status, documents), (other_status, query) = service.run_all(examples["Pattern 1"])
    assert (status, other_status) == (200, 200)
    found = [*items(documents, QWEN3, 2), *items(query, QWEN3, 1)]
    assert_unit(found, min(FULL_SIZE, size_of(models, QWEN3)))
    assert len(np.unique(np.round(found, 4), axis=0)) == 3, "equal vectors"


def test_pattern_3(service: Service, examples: dict[str, str], models: Path):
    found = items(service.answer(examples["Pattern 3"]), QWEN3, 1)
    assert_unit(found, min(FULL_SIZE, size_of(models, QWEN3)))
    (text,) = sent(examples["Pattern 3"])["input"]
    whole = f"Instruct: {instructions()['code.query']}\nQuery: {text}"
    np.testing.assert_allclose(found, vectors_of(service, QWEN3, [whole]), rtol=0, atol=NEAR)


def instructions() -> dict[str, str | None]:
    """Read the tables of qwen3's tasks: the instruction without dots at its end; None where there is none."""
    section = spec.text().partition("### Qwen3 Embedding Tasks")[2].partition("**Qwen3 Late Chunking:**")[0]
    found: dict[str, str | None] = {}
    for names, applied in re.findall(r"^\| (`.+?) \|[^|]*\| ([✅❌][^|]*) \|", section, re.MULTILINE):
        quoted = re.search(r'"(.+?)\.*"', applied)
        assert (quoted is not None) == applied.startswith("✅")
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", names), quoted[1] if quoted else None)
    return found


def test_qwen3_tasks_of_the_specification(service: Service, examples: dict[str, str], models: Path):
    known = instructions()
    assert len(known) == 12 and list(known.values()).count(None) == 2
    entry = spec.listed(service.answer(examples["23"]))[QWEN3]
    assert set(entry["tasks"]) == set(known)
    text = "how to reverse a list"
    prefixes = {task.name: task.prefix for task in load(models / QWEN3).tasks}
    for task, instruction in known.items():
        if instruction:
            assert prefixes[task].startswith(f"Instruct: {instruction}")
        else:
            assert prefixes[task] == ""
        whole = f"Instruct: {instruction}\nQuery: {text}" if instruction else text
        if task != "retrieval.query":  # the table has only the beginning of its instruction
            expected = vectors_of(service, QWEN3, [whole])
            np.testing.assert_allclose(
                vectors_of(service, QWEN3, [text], task=task), expected, rtol=0, atol=NEAR
            )


def test_qwen3_refuses_late_chunking_with_the_body_of_the_specification(service: Service):
    section = spec.text().partition("**Qwen3 Late Chunking:**")[2].partition("```json\n")[2]
    expected = json.loads(section.partition("```")[0])
    assert QWEN3 in expected["detail"]["error"]["message"]
    asked = {"model": QWEN3, "input": ["One. Two."], "late_chunking": True}
    status, body = service.run(command("/v1/embeddings", asked))
    assert status == 422
    assert {"detail": body["detail"]} == expected
    assert body["error"] == {
        "message": expected["detail"]["error"]["message"],
        "type": "invalid_request_error",
        "param": "late_chunking",
        "code": "late_chunking_unsupported",
    }


def test_code_refuses_late_chunking(service: Service):
    asked = {"model": CODE, "input": ["One. Two."], "late_chunking": True}
    status, body = service.run(command("/v1/embeddings", asked))
    message = f"Model {CODE} does not support late_chunking."
    assert (status, body["detail"]) == (422, {"error": {"message": message, "type": "internal_error"}})


# --- rerank -----------------------------------------------------------------------------------------------

LOWEST = {JINA_RERANKER: -1, QWEN3_RERANKER: 0, BGE_RERANKER: 0}  # scores; the highest is 1


@pytest.mark.parametrize("model", LOWEST)
@pytest.mark.parametrize("number", ["19", "20", "21", "22"])
def test_examples_of_reranking(service: Service, examples: dict[str, str], number: str, model: str):
    assert sent(examples[number])["model"] == JINA_RERANKER
    example = examples[number].replace(JINA_RERANKER, model)
    asked = sent(example)
    found = results(service.answer(example), model, asked)
    scores = [result["relevance_score"] for result in found]
    assert all(LOWEST[model] <= score <= 1 for score in scores) and len(set(scores)) == len(scores)
    if "top_n" in asked:
        everything = {name: value for name, value in asked.items() if name != "top_n"}
        expected = service.answer(command("/v1/rerank", everything))["results"][: asked["top_n"]]
        assert [result["index"] for result in found] == [result["index"] for result in expected]


@pytest.mark.parametrize("number", ["19", "21"])
def test_the_default_reranker(service: Service, examples: dict[str, str], number: str):
    without = examples[number].replace(f'"model": "{JINA_RERANKER}",', "")
    assert "model" not in sent(without)
    assert service.answer(without) == service.answer(examples[number])


def test_usage_of_the_jina_reranker(service: Service, examples: dict[str, str], tokenizer: Tokenizer):
    asked = sent(examples["22"])
    usage = service.answer(examples["22"])["usage"]
    expected = num_tokens(tokenizer, [asked["query"], *asked["documents"]])
    assert usage == {"prompt_tokens": expected, "total_tokens": expected}


# --- models -----------------------------------------------------------------------------------------------

LISTED: dict[str, tuple[str, str, int]] = {  # type, owner, most tokens
    V3: ("embedding", "jinaai", 8192),
    V4: ("embedding", "jinaai", 8192),
    BGE_M3: ("embedding", "BAAI", 8192),
    BGE_RERANKER: ("reranker", "BAAI", 8192),
    CODE: ("embedding", "jinaai", 32768),
    LARGER_CODE: ("embedding", "jinaai", 32768),
    QWEN3: ("embedding", "Qwen", 32768),
    QWEN3_RERANKER: ("reranker", "Qwen", 8192),
    JINA_RERANKER: ("reranker", "jinaai", 8192),
    "all-minilm-l6-v2": ("embedding", "sentence-transformers", 48),
    "qwen3-embedding-4b": ("embedding", "Qwen", 32768),
    "qwen3-embedding-8b": ("embedding", "Qwen", 32768),
    "qwen3-reranker-4b": ("reranker", "Qwen", 8192),
}


def test_example_23_lists_the_models(service: Service, examples: dict[str, str], models: Path):
    entries = spec.listed(service.answer(examples["23"]))
    found = {name: (entry["type"], entry["owned_by"], entry["max_tokens"]) for name, entry in entries.items()}
    assert found == LISTED and set(LISTED) == set(RECIPES)
    for name, entry in entries.items():
        assert entry["supports_multimodal"] is (name == V4)
        if entry["type"] == "reranker":
            assert (entry["dimensions"], entry["tasks"]) == (None, None)
        else:
            size = size_of(models, name)
            is_qwen3 = name.startswith("qwen3-embedding-")
            assert entry["dimensions"] == (min(size, FULL_SIZE) if is_qwen3 else size)
            assert set(entry["tasks"] or ()) == set(RECIPES[name].manifest.task_variants)


# --- the test script --------------------------------------------------------------------------------------


JQS = ["ours", *(["hosts"] if shutil.which("jq", path=PATH) else [])]


@pytest.mark.parametrize("jq", JQS)
def test_quick_test_script(service: Service, tmp_path: Path, jq: str):
    section = spec.text().partition("## Quick Test Script")[2].partition("```bash\n")[2]
    script, _, usage = section.partition("```")
    assert "./test_api.sh" in usage
    (tmp_path / "test_api.sh").write_text(script)
    if jq == "ours":
        (tmp_path / "jq").write_text(JQ.format(python=sys.executable))
        (tmp_path / "jq").chmod(0o755)
    found = run_script(tmp_path, service.url)
    assert [*found] == ["Embeddings v3", "Reranker", "Models List"]
    (numbers,) = found["Embeddings v3"]
    assert len(numbers) == 3 and all(type(number) is float and -1 <= number <= 1 for number in numbers)
    asked = {"query": "test", "documents": ["doc1", "doc2"]}
    assert json.dumps(asked, separators=(",", ":")) in script
    assert found["Reranker"] == [results(service.answer(command("/v1/rerank", asked)), JINA_RERANKER, asked)]
    assert set(found["Models List"]) == set(LISTED)


def run_script(folder: Path, url: str) -> dict[str, list[Any]]:
    """Run the script of a folder, with its jq if it has one; return the JSON values under the headings."""
    done = subprocess.run(
        ["bash", "test_api.sh", url],
        cwd=folder,
        env={"PATH": f"{folder}:{PATH}"},
        capture_output=True,
        encoding="utf-8",
        timeout=spec.SECONDS,
        check=True,
    )
    parts = re.split(r"^=== Testing (.+) ===$", done.stdout, flags=re.MULTILINE)[1:]
    return {heading: values(text) for heading, text in zip(parts[::2], parts[1::2], strict=True)}


def values(text: str) -> list[Any]:
    """Read JSON values that follow each other."""
    found, rest = [], text.lstrip()
    while rest:
        value, end = json.JSONDecoder().raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found
