"""Keys, limits, origins, encodings and times over the whole application, in one process."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import create_autospec

import falcon
import pytest
from falcon import inspect
from falcon.testing import Result, TestClient

from service import schema
from service.access import OPEN_PATHS
from service.app import make_app
from service.compression import MIN_BYTES, Compression
from service.config import Settings
from service.logs import LOGGER_NAME, JsonFormatter
from service.registry import Registry
from tests.conftest import MODEL, load_all

ROUTE = "/v1/embeddings"
KEY, OTHER_KEY = "the-right-key", "another-right-key"
PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ORIGIN = "https://app.example"
MARK = "nobodysbusiness"
Make = Callable[..., TestClient]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anyone:{key}".encode()).decode()}


def embed(
    client: TestClient, given: object = "a", headers: Mapping[str, str] | None = None, **more: str
) -> Result:
    return client.simulate_post(
        ROUTE, json={"model": MODEL, "input": given}, headers=dict(headers or {}), **more
    )


@pytest.fixture(scope="module")
def registry(tiny_models: Path) -> Registry:
    return load_all(tiny_models)


@pytest.fixture(scope="module")
def make(registry: Registry) -> Make:
    return lambda **settings: TestClient(make_app(Settings(**settings), registry))


@pytest.fixture(scope="module")
def open_client(make: Make) -> TestClient:
    return make()


@pytest.fixture(scope="module")
def locked(make: Make) -> TestClient:
    return make(api_keys=(KEY, OTHER_KEY))


# --- keys ------------------------------------------------------------------------------------------------


def all_routes() -> list[tuple[str, str]]:
    """List what the application answers, from its own table, and some of what it does not."""
    app = make_app(Settings(), create_autospec(Registry, instance=True))  # no model is asked for its routes
    found = [
        (method, re.sub(r"{[^}]*}", "x", route.path))
        for route in inspect.inspect_routes(app)
        for method in ("OPTIONS", "PUT", *(known.method for known in route.methods if not known.internal))
    ]
    found += [("GET", f"{route.prefix}/x") for route in inspect.inspect_static_routes(app)]
    found += [("GET", f"{sink.prefix}/x") for sink in inspect.inspect_sinks(app)]
    nowhere = ("/nowhere", "/metrics", "/docs", "/openapi.json", "/playground", "/healthz/x", "/%68ealthy")
    return [*found, *(("GET", path) for path in nowhere), ("POST", "/nowhere"), ("DELETE", "/nowhere")]


ROUTES = sorted({*all_routes()})


def test_the_table_has_the_routes_that_users_know():
    known = {
        ("POST", ROUTE),
        ("POST", "/v1/rerank"),
        ("GET", "/v1/models"),
        ("GET", "/"),
        ("GET", "/healthz"),
    }
    assert known < {*ROUTES}


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda part: part)
def test_every_route_by_key(open_client: TestClient, locked: TestClient, method: str, path: str):
    """No key and a wrong key are 401 but for health; with a right one all is as where there are no keys."""

    def status(client: TestClient, headers: dict[str, str]) -> int:
        return client.simulate_request(method, path, headers=headers, json={}).status_code

    as_open = status(open_client, {})
    refused = as_open if path in OPEN_PATHS else 401
    found = [status(locked, headers) for headers in ({}, bearer("wrong"), bearer(KEY), bearer(OTHER_KEY))]
    assert found == [refused, refused, as_open, as_open]
    assert as_open < 500 and as_open != 401


@pytest.mark.parametrize(
    "path", ["//healthz", "/healthz//", "/HEALTHZ", "/healthz/../v1/models", "/healthz;a"]
)
def test_what_only_looks_like_health_needs_a_key(locked: TestClient, path: str):
    assert locked.simulate_get(path).status_code == 401


def test_health_with_a_slash_is_health(locked: TestClient):
    assert locked.simulate_get("/healthz/").status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [({}, "missing_api_key"), (bearer("wrong"), "invalid_api_key")],
    ids=["none", "wrong"],
)
def test_a_refusal_says_what_to_do(locked: TestClient, headers: dict[str, str], code: str):
    answer = embed(locked, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer ")
    error = answer.json["error"]
    assert (error["type"], error["code"], error["param"]) == ("authentication_error", code, None)
    assert "Authorization: Bearer" in error["message"] and answer.json["detail"] == error["message"]
    assert "wrong" not in error["message"] and answer.headers["x-request-id"]


def test_a_browser_is_asked_for_the_key_where_it_opens_a_page(locked: TestClient):
    refused = locked.simulate_get("/", headers=PAGE)
    assert (refused.status_code, refused.headers["www-authenticate"].split()[0]) == (401, "Basic")
    assert locked.simulate_get("/", headers=PAGE | basic(KEY)).status_code == 200
    assert locked.simulate_get("/v1/models", headers=basic(KEY)).status_code == 200
    assert locked.simulate_get("/", headers=PAGE | basic("wrong")).status_code == 401


def test_what_scripts_fetch_makes_no_browser_ask(locked: TestClient):
    refused = locked.simulate_get("/v1/models", headers={"Accept": "*/*"})
    assert refused.headers["www-authenticate"].startswith("Bearer ")


def test_what_other_sites_make_a_browser_send_is_not_computed(locked: TestClient):
    """A browser adds a password that it knows to forms of other sites, but no header `Bearer`."""
    answer = embed(locked, headers=PAGE | basic(KEY))
    assert (answer.status_code, answer.headers["www-authenticate"].split()[0]) == (401, "Bearer")
    assert "HTTP Basic is for reading alone" in answer.json["detail"]


def test_the_body_of_who_has_no_key_is_not_looked_at(locked: TestClient):
    answer = locked.simulate_post(ROUTE, body=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 401


# --- rates -----------------------------------------------------------------------------------------------


def statuses(
    client: TestClient, count: int, headers: Mapping[str, str] | None = None, **more: str
) -> list[int]:
    return [embed(client, headers=headers, **more).status_code for _ in range(count)]


def test_too_many_requests_are_refused(make: Make):
    client = make(rate_limit=3)
    assert statuses(client, 5) == [200, 200, 200, 429, 429]
    answer = embed(client)
    assert 1 <= int(answer.headers["retry-after"]) <= 20
    error = answer.json["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "RATE_LIMIT" in error["message"]


def test_what_does_not_compute_is_not_limited(make: Make):
    client = make(rate_limit=1)
    paths = [*OPEN_PATHS, "/", "/v1/models"]
    assert {client.simulate_get(path).status_code for path in paths * 5} == {200}
    assert {client.simulate_post("/healthz").status_code for _ in range(3)} == {405}
    assert {client.simulate_post("/nowhere").status_code for _ in range(3)} == {404}
    assert statuses(client, 2) == [200, 429]


def test_wrong_requests_count_and_are_refused_before_their_bodies(make: Make):
    client = make(rate_limit=1)
    found = [client.simulate_post(path, body=b"{").status_code for path in (ROUTE, "/v1/rerank")]
    assert found == [422, 429]


def test_each_key_has_its_own_limit_wherever_it_comes_from(make: Make):
    client = make(rate_limit=2, api_keys=(KEY, OTHER_KEY))
    assert statuses(client, 1, bearer(KEY), remote_addr="192.0.2.1") == [200]
    assert statuses(client, 2, bearer(KEY), remote_addr="192.0.2.2") == [200, 429]
    assert statuses(client, 3, bearer(OTHER_KEY)) == [200, 200, 429]
    assert statuses(client, 3, bearer("wrong")) == [401] * 3


def test_without_keys_each_address_has_its_own_limit(make: Make):
    client = make(rate_limit=1)
    assert statuses(client, 2, remote_addr="192.0.2.1") == [200, 429]
    assert statuses(client, 2, remote_addr="192.0.2.2") == [200, 429]


def test_nobody_says_himself_where_he_comes_from(make: Make):
    client = make(rate_limit=1)
    names = ("X-Forwarded-For", "Forwarded", "X-Real-IP")
    found = [statuses(client, 1, {name: f"192.0.2.{number}"}) for number, name in enumerate(names)]
    assert found == [[200], [429], [429]]


# --- origins ---------------------------------------------------------------------------------------------


def preflight(client: TestClient, origin: str, path: str = ROUTE) -> Result:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return client.simulate_options(path, headers=asked)


def test_a_preflight_needs_no_key(make: Make):
    client = make(cors_origins=(ORIGIN,), api_keys=(KEY,))
    answer = preflight(client, ORIGIN)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert client.simulate_options(ROUTE).status_code == 401, "a plain OPTIONS is no preflight"


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer(KEY)], ids=["none", "wrong", "right"])
def test_answers_and_errors_can_be_read_by_a_known_origin(make: Make, headers: dict[str, str]):
    client = make(cors_origins=(ORIGIN, "https://b.example"), api_keys=(KEY,), rate_limit=1)
    for _ in range(2):
        answer = embed(client, headers=headers | {"Origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {*exposed} == {"X-Request-ID", "Retry-After", "Server-Timing"}
        assert "Origin" in answer.headers["vary"] and "access-control-allow-credentials" not in answer.headers
    assert answer.status_code == (429 if headers == bearer(KEY) else 401)


def test_another_origin_is_told_nothing(make: Make):
    client = make(cors_origins=(ORIGIN,))
    for answer in (
        preflight(client, "https://evil.example"),
        embed(client, headers={"Origin": f"{ORIGIN}.evil"}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "Origin" in answer.headers["vary"]


def test_every_origin(make: Make):
    client = make(cors_origins=("*",))
    assert preflight(client, "https://any.example").headers["access-control-allow-origin"] == "*"
    answer = embed(client, headers={"Origin": "https://any.example"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Origin" not in answer.headers.get("vary", "")


def test_without_origins_there_are_no_headers(open_client: TestClient):
    for answer in (preflight(open_client, ORIGIN), embed(open_client, headers={"Origin": ORIGIN})):
        assert not [name for name in answer.headers if name.startswith("access-control")]


# --- times -----------------------------------------------------------------------------------------------


def durations(answer: Result) -> dict[str, float]:
    parts = [part.split(";dur=") for part in answer.headers["server-timing"].split(", ")]
    return {name: float(milliseconds) for name, milliseconds in parts}


def test_what_computes_says_where_the_time_has_gone(open_client: TestClient):
    found = durations(embed(open_client, ["a"] * 20))
    assert list(found) == ["tokenize", "queue", "run", "encode", "total"]
    assert all(value >= 0 for value in found.values()) and found["run"] > 0
    assert sum(found.values()) == pytest.approx(2 * found["total"], abs=1)


def test_what_does_not_compute_has_no_times(open_client: TestClient):
    answers = [open_client.simulate_get("/v1/models"), embed(open_client, [])]
    assert not ["server-timing" for answer in answers if "server-timing" in answer.headers]


# --- encodings -------------------------------------------------------------------------------------------

MANY = ["a"] * 200


@pytest.fixture(scope="module")
def zipping(make: Make) -> TestClient:
    return make(compression=Compression.ALWAYS)


def test_a_large_answer_is_compressed_for_who_asks(zipping: TestClient):
    plain, zipped = (
        embed(zipping, MANY, {"Accept-Encoding": name}) for name in ("identity", "gzip, deflate")
    )
    assert "content-encoding" not in plain.headers and len(plain.content) > MIN_BYTES
    assert zipped.headers["content-encoding"] == "gzip"
    assert int(zipped.headers["content-length"]) == len(zipped.content) < 0.6 * len(plain.content)
    expected, found = (json.loads(body) for body in (plain.content, gzip.decompress(zipped.content)))
    assert expected.keys() == found.keys() and len(found["data"]) == len(MANY)
    assert zipped.headers["content-type"] == plain.headers["content-type"] == falcon.MEDIA_JSON
    assert plain.headers["vary"] == zipped.headers["vary"] == "Accept-Encoding"


def test_a_small_answer_is_not(zipping: TestClient):
    assert "content-encoding" not in embed(zipping, "a", {"Accept-Encoding": "gzip"}).headers


def test_errors_are_compressed_where_plain_is_refused(zipping: TestClient):
    answer = embed(zipping, [], {"Accept-Encoding": "gzip, identity;q=0"})
    assert (answer.status_code, answer.headers["content-encoding"]) == (422, "gzip")
    assert json.loads(gzip.decompress(answer.content))["error"]["code"] == "empty_input"


@pytest.mark.parametrize(("address", "is_gzip"), [("127.0.0.1", False), ("192.0.2.1", True)])
def test_who_is_on_this_host_gets_it_plain(open_client: TestClient, address: str, is_gzip: bool):
    answer = embed(open_client, MANY, {"Accept-Encoding": "gzip"}, remote_addr=address)
    assert ("content-encoding" in answer.headers) == is_gzip
    assert answer.headers["vary"] == "Accept-Encoding"


def test_never_is_never(make: Make):
    client = make(compression=Compression.NEVER)
    answer = embed(client, MANY, {"Accept-Encoding": "gzip, identity;q=0"}, remote_addr="192.0.2.1")
    assert "content-encoding" not in answer.headers and "vary" not in answer.headers


# --- the log ---------------------------------------------------------------------------------------------


def test_an_unforeseen_error_does_not_quote_the_request(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*_: object) -> None:
        raise ValueError(f"cannot do {MARK}")

    monkeypatch.setattr(schema, "embeddings_response", fail)
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)
    with caplog.at_level(logging.DEBUG, logger=LOGGER_NAME):
        answer = embed(make(), MARK)
    written = "\n".join(JsonFormatter().format(record) for record in caplog.records)
    assert answer.status_code == 500 and MARK not in answer.text
    assert "unexpected error" in written and "ValueError" in written and "in fail" in written
    assert MARK not in written
