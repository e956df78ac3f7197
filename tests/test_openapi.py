"""The OpenAPI document: made of the types that parse, valid, of all routes, and its examples work."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import falcon.inspect
import msgspec
import pytest
from falcon.testing import TestClient
from openapi_spec_validator import validate

from service import answers, forms, openapi, operations
from service.app import STATUSES, make_app
from service.compression import Compression
from service.config import Settings
from service.forms import Form
from service.operations import OPERATIONS, Operation
from service.registry import Registry
from service.scheduler import Scheduler
from tests import xlmr
from tests.conftest import MODEL, load_all

FORMS = [operation for operation in OPERATIONS if operation.form]
TYPED = [operation for operation in OPERATIONS if isinstance(operation.answer, type)]
EXAMPLES = [
    pytest.param(operation, name, id=f"{operation.path}-{name}")
    for operation in FORMS
    for name in operation.examples
]
OF_HTTP = {"content-type", "content-length", "vary"}  # need no description
TIMED = {"/v1/embeddings", "/v1/multi-vector", "/v1/rerank"}
JSON = "application/json"
KEY = "a-key-of-the-test"
UNAUTHORIZED = 401
GONE = 499  # a client that has gone reads nothing


@pytest.fixture(scope="module")
def client(all_kinds_registry: Registry) -> TestClient:
    return TestClient(make_app(Settings(), all_kinds_registry))


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    answer = client.simulate_get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json
    return found


def schema_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"][name]
    return found


def offered(client: TestClient) -> set[tuple[str, str]]:
    """List what the application's router knows, as (method, path) of the document."""
    return {
        (method.method.lower(), route.path.replace(":path}", "}"))
        for route in falcon.inspect.inspect_routes(client.app)
        for method in route.methods
        if not method.internal
    }


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_every_route_is_in_the_document(client: TestClient, document: dict[str, Any]) -> None:
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == offered(client)
    assert ("post", "/v1/embeddings") in described and ("get", "/v1/models/{name}") in described


def test_root_lists_every_route(client: TestClient) -> None:
    listed = client.simulate_get("/").json["routes"]
    assert len(listed) == len(set(listed))
    assert set(listed) == {f"{method.upper()} {path}" for method, path in offered(client) if method != "head"}


@pytest.mark.parametrize("operation", FORMS, ids=lambda operation: operation.path)
def test_fields_are_those_that_are_parsed(document: dict[str, Any], operation: Operation) -> None:
    assert operation.form
    described = schema_of(document, operation.form.body.__name__)["properties"]
    aliases = {alias for names in operation.form.aliases.values() for alias in names}
    assert set(described) == {*operation.form.body.__struct_fields__, *aliases}
    assert all(field["description"] for field in described.values())


@pytest.mark.parametrize("item", ["InputItem", "TextItem"])
def test_fields_of_inputs_are_described(document: dict[str, Any], item: str) -> None:
    assert all(field["description"] for field in schema_of(document, item)["properties"].values())


def test_a_field_added_to_the_type_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    added = msgspec.defstruct(
        "EmbeddingsBody", [("colour", str | None, None)], bases=(forms.EmbeddingsBody,), kw_only=True
    )
    form: Form[Any] = Form(added, forms.EMBEDDINGS.aliases, forms.EMBEDDINGS.remedies)
    changed = dataclasses.replace(operations.EMBEDDINGS, form=form)
    assert form.read(b'{"model": "m", "input": "a", "colour": "red"}').colour == "red"
    routes = [("POST", "/v1/embeddings")]
    before = schema_of(openapi.document("1", routes), "EmbeddingsBody")["properties"]
    monkeypatch.setattr(openapi, "OPERATIONS", (changed,))
    after = schema_of(openapi.document("1", routes), "EmbeddingsBody")["properties"]
    assert set(after) - set(before) == {"colour"}


@pytest.mark.parametrize(("operation", "name"), EXAMPLES)
def test_every_example_answers(client: TestClient, operation: Operation, name: str) -> None:
    answer = client.simulate_request(operation.method, operation.path, json=operation.examples[name])
    assert answer.status_code == 200, answer.text
    msgspec.json.decode(answer.content, type=operation.answer)


@pytest.mark.parametrize(("operation", "name"), EXAMPLES)
def test_every_header_of_an_answer_is_described(
    all_kinds_registry: Registry, document: dict[str, Any], operation: Operation, name: str
) -> None:
    client = TestClient(make_app(Settings(compression=Compression.ALWAYS), all_kinds_registry))
    answer = client.simulate_request(
        operation.method,
        operation.path,
        json=operation.examples[name],
        headers={"Accept-Encoding": "gzip, identity;q=0"},
    )
    described = document["paths"][operation.path][operation.method.lower()]["responses"]["200"]["headers"]
    assert {*described} == {"X-Request-ID", "Content-Encoding"} | (
        {"Server-Timing"} if operation.path in TIMED else set()
    )
    assert {header.lower() for header in answer.headers} - OF_HTTP == {header.lower() for header in described}
    assert {*described} <= {*document["components"]["headers"]}


def test_every_form_has_examples_and_they_are_in_the_document(document: dict[str, Any]) -> None:
    for operation in FORMS:
        body = document["paths"][operation.path]["post"]["requestBody"]["content"]["application/json"]
        shown = [example["value"] for example in body["examples"].values()]
        assert shown == [*operation.examples.values()] and shown


@pytest.mark.parametrize("operation", TYPED, ids=lambda one: one.path)
def test_examples_of_answers_are_of_their_types(document: dict[str, Any], operation: Operation) -> None:
    responses = document["paths"][operation.path][operation.method.lower()]["responses"]
    shown = [
        example["value"]
        for status in {"200", "503"} & {*responses}
        for example in responses[status].get("content", {JSON: {}})[JSON].get("examples", {}).values()
    ]
    assert shown
    for value in shown:
        msgspec.convert(value, type=operation.answer)
        assert len(json.dumps(value)) < 500  # to be read at a glance


@pytest.mark.parametrize("operation", FORMS, ids=lambda operation: operation.path)
def test_the_example_of_an_answer_is_of_the_first_request(
    client: TestClient, document: dict[str, Any], operation: Operation
) -> None:
    """Same model, as many items, and the fields that the service answers with."""
    body = document["paths"][operation.path]["post"]
    request, *_ = body["requestBody"]["content"][JSON]["examples"].values()
    shown, *_ = body["responses"]["200"]["content"][JSON]["examples"].values()
    answered = client.simulate_post(operation.path, json=request["value"]).json
    items = "results" if operation.path == "/v1/rerank" else "data"
    assert shown["value"]["model"] == answered["model"]
    assert {*shown["value"]} == {*answered}
    assert [{*each} for each in shown["value"][items]] == [{*each} for each in answered[items]]


def test_every_operation_has_one_known_tag(document: dict[str, Any]) -> None:
    known = [tag["name"] for tag in document["tags"]]
    assert known == [*operations.Tag]
    used = [tuple(found["tags"]) for methods in document["paths"].values() for found in methods.values()]
    assert {*used} == {(name,) for name in known}


# --- examples for what is loaded -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_client(tiny_models: Path) -> TestClient:
    """A client of a service that has the default model alone."""
    return TestClient(make_app(Settings(), load_all(tiny_models)))


def shown_examples(client: TestClient, path: str) -> dict[str, dict[str, Any]]:
    body = client.simulate_get("/openapi.json").json["paths"][path]["post"]["requestBody"]
    return {one["summary"]: one["value"] for one in body["content"][JSON]["examples"].values()}


@pytest.mark.parametrize("operation", FORMS, ids=lambda operation: operation.path)
def test_examples_work_or_say_which_model_they_need(small_client: TestClient, operation: Operation) -> None:
    shown = shown_examples(small_client, operation.path)
    assert len(shown) == len(operation.examples)
    is_first = True
    for name, body in shown.items():
        status = small_client.simulate_post(operation.path, json=body).status_code
        assert (status == 200) == ("(needs " not in name), name
        assert is_first or status != 200  # those that work come first
        is_first = is_first and status == 200


def test_an_example_names_a_loaded_model_of_its_kind(tiny_qwen_registry: Registry) -> None:
    client = TestClient(make_app(Settings(), tiny_qwen_registry))
    texts = shown_examples(client, "/v1/embeddings")["texts"]
    assert texts["model"] != MODEL
    assert client.simulate_post("/v1/embeddings", json=texts).status_code == 200
    documents = shown_examples(client, "/v1/rerank")["documents"]
    assert documents["model"] != xlmr.BGE_RERANKER
    assert client.simulate_post("/v1/rerank", json=documents).status_code == 200
    path = client.simulate_get("/openapi.json").json["paths"]["/v1/models/{name}"]["get"]
    assert client.simulate_get(f"/v1/models/{path['parameters'][0]['example']}").status_code == 200


def test_the_document_follows_what_is_loaded_later(tiny_models: Path) -> None:
    settings = Settings(models_dir=tiny_models)
    registry = Registry(settings, Scheduler(settings.max_batch_tokens))
    client = TestClient(make_app(settings, registry))
    assert "late chunking" in shown_examples(client, "/v1/embeddings")  # nothing is known yet
    registry.load()
    assert "late chunking (needs jina-embeddings-v3)" in shown_examples(client, "/v1/embeddings")


@pytest.mark.parametrize("operation", [one for one in TYPED if not one.form], ids=lambda one: one.path)
def test_answers_are_of_their_types(client: TestClient, operation: Operation) -> None:
    path = operation.path.replace("{name}", str(operations.MODEL_ID["example"]))
    answer = client.simulate_get(path, params={"verbose": "1"} if path == "/healthz" else {})
    assert answer.status_code == 200, answer.text
    msgspec.json.decode(answer.content, type=operation.answer)


def test_errors_have_examples_of_the_one_body(document: dict[str, Any]) -> None:
    for status, answer in document["components"]["responses"].items():
        example = msgspec.convert(answer["content"]["application/json"]["example"], answers.ErrorAnswer)
        assert (example.error.type == "internal_error") == (int(status) >= 500)
        assert {"X-Request-ID", "Content-Encoding"} <= {*answer["headers"]}
        assert ("Server-Timing" in answer["headers"]) == (status in ("500", "503"))
        assert ("Retry-After" in answer["headers"]) == (status in ("429", "503"))


def test_every_status_of_errors_is_described(document: dict[str, Any]) -> None:
    described = {int(status) for status in document["components"]["responses"]}
    assert {*STATUSES.values()} - {GONE} <= described
    posts = [methods["post"]["responses"] for methods in document["paths"].values() if "post" in methods]
    for responses in posts:
        assert {*STATUSES.values(), 200, 401} - {GONE} <= {int(status) for status in responses}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/livez"])
def test_health_needs_no_key(document: dict[str, Any], path: str) -> None:
    assert document["paths"][path]["get"]["security"] == []
    assert document["security"] == [{"bearer": []}, {}]
    assert "401" not in document["paths"][path]["get"]["responses"]


def credentials(scheme: str) -> dict[str, str]:
    shown = {"bearer": KEY, "basic": base64.b64encode(f"anyone:{KEY}".encode()).decode()}
    return {"Authorization": f"{scheme} {shown[scheme]}"}


def test_every_operation_names_the_schemes_that_work_for_it(
    all_kinds_registry: Registry, document: dict[str, Any]
) -> None:
    """With keys, a scheme is refused where the document does not name it, and nowhere else."""
    locked = TestClient(make_app(Settings(api_keys=(KEY,)), all_kinds_registry))
    seen = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            named = {name for one in operation.get("security", document["security"]) for name in one}
            asked = path.replace("{name}", "x")
            works = {
                scheme
                for scheme in document["components"]["securitySchemes"]
                if locked.simulate_request(method.upper(), asked, headers=credentials(scheme)).status_code
                != UNAUTHORIZED
            }
            open_to_all = locked.simulate_request(method.upper(), asked).status_code != UNAUTHORIZED
            assert named == (set() if open_to_all else works), (method, path)
            seen.add((open_to_all, *sorted(named)))
    assert seen == {(True,), (False, "bearer"), (False, "basic", "bearer")}
