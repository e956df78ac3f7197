"""The client libraries, each in a script of its own against a live service: what they give, what they raise.

What they must give is what plain httpx gets of the same service, and of the golden models what is stored of
them. The service has the golden bundles where the golden set is beside the project, else tiny ones.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests import client_environment, golden, pictures
from tests.client_environment import SCRIPTS
from tests.conftest import Live
from tests.processes import LOCALHOST, PROJECT

KEY = "the-clients-key-6640"
EMBEDDING, MULTIMODAL, RERANKER = "jina-embeddings-v3", "jina-embeddings-v4", "jina-reranker-v3"
MODELS = (EMBEDDING, MULTIMODAL, RERANKER)
TOLERANCE = 2e-6  # of numbers that were computed in another batch
RATE = 20  # requests a minute of the limited service: it asks to wait for 3 s
SCRIPT_SECONDS = 120
# Without these, libraries ask for their price lists and report what they are used for. A proxy that is not
# there keeps them on this host: a client that still goes to its hosted address fails.
NOWHERE = f"http://{LOCALHOST}:9"
ENVIRONMENT = {
    "ANONYMIZED_TELEMETRY": "False", "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE,
    "http_proxy": NOWHERE, "https_proxy": NOWHERE, "NO_PROXY": LOCALHOST, "no_proxy": LOCALHOST,
}  # fmt: skip
Serve = Callable[..., AbstractContextManager[Live]]

# What every script must have been answered; what follows a comma is only another way to the same.
ANSWERS = {
    "openai": [
        "texts", "texts, as floats", "texts, async", "query", "query with its task", "short", "picture",
        "models", "encoding asked for", "after a wait",
    ],
    "langchain": [
        "texts", "texts, by OpenAIEmbeddings", "query", "query, by OpenAIEmbeddings", "picture", "ranking",
        "ranking, of objects", "best three",
    ],
    "llama_index": [
        "texts", "texts, async", "query", "query with its task", "short", "chunks", "signs", "picture",
        "ranking", "best three",
    ],
    "haystack": [
        "texts", "texts, in batches", "tokens", "tokens of the query", "query", "query, async",
        "query with its task", "short", "chunks", "picture", "ranking", "best three",
    ],
    "chroma": [
        "texts", "texts, every option", "query", "query with its task", "short", "chunks", "picture",
        "nearest", "nearest, opened again",
    ],
    "litellm": [
        "texts", "texts, by its OpenAI provider", "query", "query with its task", "short", "picture",
        "ranking", "best three", "documents",
    ],
}  # fmt: skip
# What every script must have raised. Jina's clients raise RuntimeError with what the service says.
ERRORS = {
    "openai": {
        "wrong key": "AuthenticationError",
        "unknown model": "NotFoundError",
        "wrong task": "UnprocessableEntityError",
        "nothing": "UnprocessableEntityError",
        "token ids": "UnprocessableEntityError",
        "too often": "RateLimitError",
    },
    "langchain": dict.fromkeys(
        ["wrong key", "wrong key, reranking", "unknown model", "unknown model, reranking", "nothing"]
        + ["blank query"],
        "RuntimeError",
    ),
    "llama_index": dict.fromkeys(
        [
            "wrong key",
            "wrong key, the right one only in the environment",
            "wrong key, reranking",
            "unknown model",
            "wrong task",
            "unsigned binary",
            "blank query",
        ],
        "RuntimeError",
    )
    | dict.fromkeys(["wrong key, async", "wrong task, async"], "ClientResponseError"),
    "haystack": dict.fromkeys(
        ["wrong key", "unknown model", "unknown model, reranking", "wrong task", "blank query"],
        "RuntimeError",
    ),
    "chroma": dict.fromkeys(["wrong key", "unknown model", "wrong task"], "RuntimeError"),
    "litellm": {
        "wrong key": "AuthenticationError",
        "wrong key, by its OpenAI provider": "AuthenticationError",
        "wrong key, reranking": "AuthenticationError",
        "unknown model": "NotFoundError",
        "wrong task": "BadRequestError",
        "wrong task, by its OpenAI provider": "BadRequestError",
        "blank query": "BadRequestError",
    },
}
WITHOUT_MESSAGE = {"ClientResponseError"}  # aiohttp's: the status, not what the service says
# What is asked to be refused, as a plain request: path, body, key.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "wrong key": ("embeddings", {"model": EMBEDDING, "input": "a"}, "wrong"),
    "unknown model": ("embeddings", {"model": "nope", "input": "a"}, KEY),
    "wrong task": ("embeddings", {"model": EMBEDDING, "input": "a", "task": "nope"}, KEY),
    "nothing": ("embeddings", {"model": EMBEDDING, "input": []}, KEY),
    "token ids": ("embeddings", {"model": EMBEDDING, "input": [[1, 2]]}, KEY),
    "unsigned binary": ("embeddings", {"model": EMBEDDING, "input": "a", "encoding_type": "ubinary"}, KEY),
    "blank query": ("rerank", {"model": RERANKER, "query": " ", "documents": ["a"]}, KEY),
    "unknown model, reranking": ("rerank", {"model": "nope", "query": "a", "documents": ["a"]}, KEY),
}


@dataclass(frozen=True)
class Asked:
    """A live service, what clients ask of it, and what plain requests get."""

    live: Live
    limited: Live  # with a RATE_LIMIT
    texts: list[str]
    query: str
    documents: list[str]
    picture: Path

    def post(self, path: str, body: dict[str, Any], key: str = KEY) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{self.live.url}/v1/{path}", json=body, headers=headers, timeout=60)

    def embed(self, given: object, model: str = EMBEDDING, **options: Any) -> dict[str, Any]:
        answer = self.post("embeddings", {"model": model, "input": given, **options})
        assert answer.status_code == httpx.codes.OK, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def vectors(self, given: object, **options: Any) -> np.ndarray:
        return golden.vectors(self.embed(given, **options))

    @cached_property
    def ranking(self) -> list[list[float]]:
        body = {"model": RERANKER, "query": self.query, "documents": self.documents}
        results = self.post("rerank", body).json()["results"]
        return [[result["index"], result["relevance_score"]] for result in results]

    def picture_base64(self) -> str:
        return base64.b64encode(self.picture.read_bytes()).decode()

    def tokens(self, given: object) -> dict[str, Any]:
        answer = self.embed(given)
        return {"model": answer["model"], "usage": answer["usage"]}

    @cached_property
    def expected(self) -> dict[str, Any]:
        """What each call must give."""
        texts, query = self.vectors(self.texts), self.vectors([self.query])[0]
        return {
            "texts": texts,
            "query": query,
            "query with its task": self.vectors([self.query], task="retrieval.query")[0],
            "short": self.vectors(self.texts, dimensions=16),
            "chunks": self.vectors(self.texts, late_chunking=True),
            "signs": (texts > 0).astype(int),
            "picture": self.vectors([{"image": self.picture_base64()}], model=MULTIMODAL)[0],
            "ranking": self.ranking,
            "best three": self.ranking[:3],
            "documents": [self.documents[int(index)] for index, _ in self.ranking],
            "nearest": np.argsort(-(texts @ query)).tolist(),
            "tokens": self.tokens(self.texts),
            "tokens of the query": self.tokens([self.query]),
            "models": sorted(MODELS),
            "encoding asked for": "base64",
            "after a wait": {"retries": 1, "vector": query},
        }


@pytest.fixture(scope="module")
def python() -> Path:
    return client_environment.interpreter()


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the models that the scripts name."""
    fixtures = ("golden_models", "golden_v4_models", "golden_qwen_models")
    folders = [
        request.getfixturevalue(name) for name in (fixtures if golden.is_there() else ["all_kinds_models"])
    ]
    out = tmp_path_factory.mktemp("clients_models")
    for model in MODELS:
        (out / model).symlink_to(next(folder / model for folder in folders if (folder / model).is_dir()))
    return out


@pytest.fixture(scope="module")
def asked(models: Path, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    texts = ["a red fox", "the blue sea is very far", "a town and a river of the dog", "cat"]
    query, documents = "the river", ["a dog", "the river is far", "a cat and a dog", "sky", "the town is red"]
    if golden.is_there():
        texts = [golden.expected(EMBEDDING)["texts"][name] for name in ("short_en", "de", "zh", "repeat")]
        case = golden_ranking()
        query, documents = case["query"], case["documents"]
    picture = tmp_path_factory.mktemp("picture") / "noise.png"
    Image.fromarray(pictures.noise(56, 84)).save(picture)
    settings = {"API_KEYS": KEY, "CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    with ExitStack() as stack:
        live = stack.enter_context(serve(models, **settings))
        limited = serve(models, MODELS_TO_LOAD=EMBEDDING, RATE_LIMIT=str(RATE), **settings)
        yield Asked(live, stack.enter_context(limited), texts, query, documents, picture)


def golden_ranking() -> Any:
    return next(case for case in golden.expected(RERANKER)["cases"] if case["id"] == "five")


@pytest.fixture(scope="module")
def done(
    asked: Asked, python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """Run the script of a client once; return what each of its calls returned or raised."""
    folder = tmp_path_factory.mktemp("clients")
    given = {
        "url": asked.live.url, "limited_url": asked.limited.url, "key": KEY, "texts": asked.texts,
        "query": asked.query, "documents": asked.documents, "picture": str(asked.picture),
    }  # fmt: skip
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), **ENVIRONMENT}  # none of the user's own
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")

    @cache
    def run(client: str) -> dict[str, Any]:
        files = [folder / "given.json", folder / f"{client}.json"]
        ended = subprocess.run(
            [python, SCRIPTS / f"use_{client}.py", *files], cwd=folder, env=variables,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SCRIPT_SECONDS,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout
        found: dict[str, Any] = json.loads(files[1].read_text(encoding="utf-8"))
        return found

    return run


def assert_same(found: Any, expected: Any) -> None:
    """Compare numbers within the tolerance, in whatever they are nested, and all else as it is."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, np.ndarray) or (isinstance(expected, list) and isinstance(expected[0], list)):
        golden.assert_near(found, np.asarray(expected), TOLERANCE)
    else:
        assert found == expected


# Of the first test all that is installed and baked is counted too.
slow = [pytest.mark.full, pytest.mark.timeout(900)]


def marked(*values: str) -> Any:
    return pytest.param(*values, marks=slow, id=": ".join(values[:2]))


@pytest.mark.parametrize(
    ("client", "call"), [marked(client, call) for client, calls in ANSWERS.items() for call in calls]
)
def test_a_client_gives_what_plain_requests_get(
    asked: Asked, done: Callable[[str], dict[str, Any]], client: str, call: str
) -> None:
    outcome = done(client)[call]
    assert "returned" in outcome, outcome
    assert_same(outcome["returned"], asked.expected[call.partition(", ")[0]])


@pytest.mark.parametrize(
    ("client", "call", "kind"),
    [marked(client, call, kind) for client, calls in ERRORS.items() for call, kind in calls.items()],
)
def test_a_client_raises_what_the_service_says(
    asked: Asked, done: Callable[[str], dict[str, Any]], client: str, call: str, kind: str
) -> None:
    outcome = done(client)[call]
    assert outcome.get("raised") == kind, outcome
    if call == "too often":
        assert (outcome["status"], outcome["code"]) == (429, "rate_limit_exceeded")
        assert f"{RATE} requests a minute" in outcome["message"]
        return
    path, body, key = REFUSED.get(call) or REFUSED[call.partition(", ")[0]]
    refused = asked.post(path, body, key)
    error = refused.json()["error"]
    assert outcome["status"] in (None, refused.status_code)
    assert error["message"] in outcome["message"] or kind in WITHOUT_MESSAGE
    if client == "openai":
        assert (outcome["status"], outcome["code"]) == (refused.status_code, error["code"])


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("client", ANSWERS)
def test_every_call_of_a_script_is_looked_at(done: Callable[[str], dict[str, Any]], client: str) -> None:
    assert done(client).keys() == {*ANSWERS[client], *ERRORS[client]}


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(not golden.is_there(), reason=golden.MISSING)
@pytest.mark.parametrize("client", ANSWERS)
def test_a_client_gives_the_golden_numbers(
    asked: Asked, done: Callable[[str], dict[str, Any]], client: str
) -> None:
    stored = golden.arrays(EMBEDDING)
    names = {text: name for name, text in golden.expected(EMBEDDING)["texts"].items()}
    rows = [stored[f"text-matching/{names[text]}/embedding"] for text in asked.texts]
    golden.assert_near(done(client)["texts"]["returned"], np.array(rows), golden.UNIT)
    if "ranking" in ANSWERS[client]:
        case = golden_ranking()
        order, scores = zip(*done(client)["ranking"]["returned"], strict=True)
        assert list(order) == case["order"]
        golden.assert_near(
            scores, golden.arrays(RERANKER)[case["outputs"]["scores"]][case["order"]], golden.SCORE
        )


@pytest.mark.full
@pytest.mark.timeout(900)
def test_no_two_answers_are_alike(asked: Asked) -> None:
    """Else a client that mixed up texts, tasks or models would go unnoticed."""
    rows = [*asked.expected["texts"], asked.expected["query"], asked.expected["query with its task"]]
    cosines = np.array(rows) @ np.transpose(rows)
    assert np.abs(cosines - np.eye(len(rows))).max() < 0.9999
    scores = [score for _, score in asked.ranking]
    assert np.diff(scores).max() < -10 * TOLERANCE
    assert [index for index, _ in asked.ranking] != sorted(index for index, _ in asked.ranking)


VECTORS = np.eye(3)
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "order": (VECTORS[::-1].tolist(), VECTORS),
    "number": (VECTORS[:2].tolist(), VECTORS),
    "value": ((VECTORS + 1e-5).tolist(), VECTORS),
    "ranking": ([[1, 0.5], [0, 0.4]], [[0, 0.5], [1, 0.4]]),
    "score": ([[0, 0.5], [1, 0.4001]], [[0, 0.5], [1, 0.4]]),
    "words": (["a", "b"], ["b", "a"]),
    "field": ({"retries": 2, "vector": [0.0, 1.0]}, {"retries": 1, "vector": np.array([0.0, 1.0])}),
}


@pytest.mark.parametrize(("found", "expected"), DIFFERENT.values(), ids=DIFFERENT)
def test_the_comparison_sees_a_difference(found: Any, expected: Any) -> None:
    with pytest.raises(AssertionError):
        assert_same(found, expected)


# --- the README ------------------------------------------------------------------------------------------


def rows() -> list[list[str]]:
    section = (PROJECT / "README.md").read_text(encoding="utf-8").partition("\n## Clients\n")[2]
    table = [
        line.strip("|").split(" | ") for line in section.partition("\n## ")[0].splitlines() if line[:1] == "|"
    ]
    return table[2:]  # less its head


def test_the_readme_names_the_tested_versions() -> None:
    named = [re.findall(r"`([\w-]+)` ([\d.]+)", row[1]) for row in rows()]
    assert dict(pin for found in named for pin in found) == client_environment.pins()
    locked = client_environment.LOCK.read_text(encoding="utf-8").splitlines()
    assert {f"{name}=={version}" for name, version in client_environment.pins().items()} <= set(locked)


def test_every_client_has_a_section_of_its_own() -> None:
    page = (PROJECT / "docs" / "clients.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^## `([\w-]+)`$", page, re.MULTILINE)} == {*client_environment.pins()}


def test_the_code_of_the_readme_is_what_is_tested() -> None:
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.glob("use_*.py")))
    flat = re.sub(r"\s+", "", scripts)
    codes = [code for row in rows() for code in re.findall(r"`([^`]+)`", row[2])]
    assert len(codes) >= len(rows())
    assert [code for code in codes if re.sub(r"\s+", "", code) not in flat] == []


# --- the environment -------------------------------------------------------------------------------------


def test_a_package_index_that_does_not_answer_is_noticed() -> None:
    nowhere = {"PIP_INDEX_URL": f"{NOWHERE}/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    assert not client_environment.is_index_reachable(Path(sys.executable), **nowhere)


@pytest.mark.parametrize(
    ("answer", "ends_with"),
    [("exit 1", pytest.skip.Exception), ("exit 0", pytest.fail.Exception)],
    ids=["no index", "a broken install"],
)
def test_only_a_missing_index_excuses_an_install(
    tmp_path: Path, answer: str, ends_with: type[BaseException]
) -> None:
    """By an interpreter that installs nothing, and whose pip answers so when it is asked for an index."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *" index "*) {answer};; *) exit 1;; esac\n')
    python.chmod(0o755)
    with pytest.raises(ends_with):
        client_environment.install(python)
