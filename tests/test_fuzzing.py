"""Requests that nobody thought of: over the OpenAPI document, and over the parsing of bodies.

Every run draws the same cases, so that a failure is there again.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from falcon.testing import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from service import requests
from service.app import make_app
from service.config import Settings
from service.errors import RequestError
from service.forms import EMBEDDINGS, MULTI_VECTOR, RERANK, TOKENIZE, Form
from service.registry import Registry
from tests.conftest import Live

MAX_INPUTS = 10
UNKNOWN_MODEL = "nope"
BODIES = ("/v1/embeddings", "/v1/multi-vector", "/v1/rerank", "/v1/tokenize")
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
SAME_CASES = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck], max_examples=100
)
PARSERS: dict[str, tuple[Callable[[bytes, int], object], Form[Any]]] = {
    "embeddings": (requests.parse_embeddings, EMBEDDINGS),
    "rerank": (requests.parse_rerank, RERANK),
    "tokenize": (requests.parse_tokenize, TOKENIZE),
    "multi-vector": (requests.parse_multi_vector, MULTI_VECTOR),
}

# --- over the document ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(all_kinds_registry: Registry) -> TestClient:
    return TestClient(make_app(Settings(max_inputs=MAX_INPUTS), all_kinds_registry))


@pytest.fixture(scope="module")
def document(client: TestClient, all_kinds_registry: Registry) -> dict[str, Any]:
    """Get the document; requests in it name models that are loaded, or one that is not."""
    found: dict[str, Any] = client.simulate_get("/openapi.json").json
    names = [loaded.model.manifest.name for loaded in all_kinds_registry.loaded()]
    for schema in found["components"]["schemas"].values():
        if schema["title"].endswith("Body"):
            schema["properties"]["model"]["enum"] = [*names, UNKNOWN_MODEL]
    (name, *_) = found["paths"]["/v1/models/{name}"]["get"]["parameters"]
    name["schema"] = {"anyOf": [name["schema"], {"enum": names}]}
    return found


def operations_of(document: dict[str, Any], client: TestClient | None = None) -> list[Any]:
    """List the operations of a document, to be called in this process where there is a client."""
    schema = schemathesis.openapi.from_dict(document)
    schema.app = client.app if client else None
    return [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]


def fuzz(operation: Any, mode: GenerationMode, num_cases: int, url: str | None = None) -> list[int]:
    """Send cases of an operation, right or wrong by its schema; give the statuses of the answers."""
    statuses: list[int] = []

    @settings(SAME_CASES, max_examples=num_cases)
    @given(case=operation.as_strategy(generation_mode=mode))
    def probe(case: Case[Any]) -> None:
        answer = case.call(base_url=url)
        case.validate_response(answer, checks=CHECKS)
        statuses.append(answer.status_code)

    probe()
    return statuses


def fuzz_all(operations: list[Any], num_cases: int, url: str | None = None) -> dict[str, Counter[int]]:
    """Send at least so many cases over all operations; count the statuses of each path."""
    found: dict[str, Counter[int]] = {}
    for operation in operations:
        # Bodies are where most can go wrong: four of the routes have one.
        share = num_cases // 10 if operation.method == "post" else max(2, num_cases // 50)
        for mode in GenerationMode:
            found.setdefault(operation.path, Counter()).update(fuzz(operation, mode, share, url))
    assert sum(statuses.total() for statuses in found.values()) >= num_cases
    return found


@pytest.mark.parametrize("num_cases", [200, pytest.param(2000, marks=pytest.mark.full)])
def test_no_answer_is_outside_the_document(
    document: dict[str, Any], client: TestClient, num_cases: int
) -> None:
    found = fuzz_all(operations_of(document, client), num_cases)
    assert set(found) == set(document["paths"])
    reached = {path: {200, 422} for path in BODIES} | {"/v1/models/{name}": {200, 404}}
    for path, statuses in reached.items():
        assert statuses <= set(found[path]), f"the cases do not reach far enough: {found}"


@pytest.mark.full
def test_no_answer_of_a_live_service_is_outside_the_document(
    document: dict[str, Any], all_kinds_models: Path, serve: Callable[..., AbstractContextManager[Live]]
) -> None:
    with serve(all_kinds_models, MAX_INPUTS=str(MAX_INPUTS)) as live:
        found = fuzz_all(operations_of(document), 500, live.url)
    assert all({200, 422} <= set(found[path]) for path in BODIES)


def without_a_status(document: dict[str, Any]) -> None:
    del document["paths"]["/v1/tokenize"]["post"]["responses"]["422"]


def without_a_field(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["TokenizeItem"]
    del schema["properties"]["tokens"]
    schema["required"].remove("tokens")


def with_another_media_type(document: dict[str, Any]) -> None:
    answer = document["paths"]["/v1/tokenize"]["post"]["responses"]["200"]
    answer["content"] = {"text/html": answer["content"]["application/json"]}


def with_another_header(document: dict[str, Any]) -> None:
    answer = document["paths"]["/v1/tokenize"]["post"]["responses"]["200"]
    answer["headers"]["X-Missing"] = {"required": True, "schema": {"type": "string"}}


@pytest.mark.parametrize(
    "spoil", [without_a_status, without_a_field, with_another_media_type, with_another_header]
)
def test_an_answer_outside_the_document_is_seen(
    document: dict[str, Any], client: TestClient, spoil: Callable[[dict[str, Any]], None]
) -> None:
    spoiled = copy.deepcopy(document)
    spoil(spoiled)
    (operation,) = (one for one in operations_of(spoiled, client) if one.path == "/v1/tokenize")
    with pytest.raises((FailureGroup, Failure)):
        for mode in GenerationMode:
            fuzz(operation, mode, 20)


# --- over the parsing of bodies ---------------------------------------------------------------------------

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 1 << 63, 1 << 64, 10**400, 1e308])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text() | st.sampled_from(["query", "float", "binary"])


def json_values(*names: str) -> st.SearchStrategy[Any]:
    """Draw JSON values whose objects have fields of these names, and others."""
    fields = st.sampled_from(names) | st.text(max_size=5)
    return st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(fields, inner, max_size=5),
        max_leaves=10,
    )


def is_read(parse: Callable[[bytes, int], object], body: bytes) -> bool:
    """Parse a body; nothing but a RequestError that an answer can carry may come out of it."""
    try:
        parse(body, MAX_INPUTS)
    except RequestError as error:
        assert error.message.encode() and error.code
        assert error.param is None or error.param.encode()
        return False
    return True


@pytest.mark.parametrize("route", PARSERS)
def test_any_bytes_are_read_or_refused(route: str) -> None:
    parse, _ = PARSERS[route]

    @SAME_CASES
    @given(body=st.binary() | st.text().map(str.encode))
    def probe(body: bytes) -> None:
        is_read(parse, body)

    probe()


@pytest.mark.parametrize("num_cases", [300, pytest.param(5000, marks=pytest.mark.full)])
@pytest.mark.parametrize("route", PARSERS)
def test_any_json_is_read_or_refused(route: str, num_cases: int) -> None:
    parse, form = PARSERS[route]
    names = [*form.body.__struct_fields__, *(alias for names in form.aliases.values() for alias in names)]
    values = json_values("text", "image", "url", "bytes")
    right = {names[0]: st.text(min_size=1), names[1]: st.lists(st.text(), min_size=1, max_size=3)}
    bodies = st.fixed_dictionaries(right, optional=dict.fromkeys(names[2:], values))
    wrong = st.fixed_dictionaries({}, optional=dict.fromkeys(names, values)) | values
    were_read = Counter[bool]()

    @settings(SAME_CASES, max_examples=num_cases)
    @given(body=st.fixed_dictionaries(right) | bodies | wrong, escaped=st.booleans())
    def probe(body: object, escaped: bool) -> None:
        content = json.dumps(body, ensure_ascii=escaped).encode(errors="surrogatepass")
        were_read[is_read(parse, content)] += 1

    probe()
    assert were_read[True] and were_read[False], "the cases do not reach far enough"


@pytest.mark.parametrize("route", PARSERS)
@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_deep_bodies_are_refused(route: str, depth: int) -> None:
    parse, form = PARSERS[route]
    for field in form.body.__struct_fields__:
        nested = b'{"model": "m", "%s": ' % field.encode() + b"[" * depth + b"]" * depth + b"}"
        with pytest.raises(RequestError):
            parse(nested, MAX_INPUTS)


@pytest.mark.parametrize("route", PARSERS)
@pytest.mark.parametrize("depth", [300, 1000, 1020])
def test_deep_bodies_under_two_names_are_refused(route: str, depth: int) -> None:
    parse, form = PARSERS[route]
    nested = b"[" * depth + b"]" * depth
    for field, (alias, *_) in form.aliases.items():
        with pytest.raises(RequestError):
            parse(b'{"%s": %s, "%s": %s}' % (field.encode(), nested, alias.encode(), nested), MAX_INPUTS)
