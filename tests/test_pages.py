"""The pages without a browser: what is sent, with which headers, and that nothing is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from falcon.testing import TestClient

from service.app import make_app
from service.config import Settings
from service.pages import FOLDER, MEDIA_TYPES
from tests.conftest import load_all

PAGES = {"/": "home.html", "/docs": "docs.html", "/playground": "playground.html"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"}


@pytest.fixture(scope="module")
def client(tiny_models: Path) -> TestClient:
    return TestClient(make_app(Settings(), load_all(tiny_models)))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_only_what_is_there(client: TestClient, path: str) -> None:
    answer = client.simulate_get(path, headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (200, MEDIA_TYPES[".html"])
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="(static/[^"]+)"', answer.text)
    assert named
    for name in named:
        found = client.simulate_get(f"/{name}")
        assert (found.status_code, found.headers["x-content-type-options"]) == (200, "nosniff")
        assert found.content == (FOLDER / name.removeprefix("static/")).read_bytes()


def test_the_first_page_leads_on(client: TestClient) -> None:
    page = client.simulate_get("/", headers=BROWSER).text
    led_to = [path for path in re.findall(r'<a href="([^"]+)"', page)]
    assert led_to == ["docs", "playground", "v1/models", "healthz"]
    for path in led_to:
        assert client.simulate_get(f"/{path}").status_code == 200


@pytest.mark.parametrize(
    "accept", [None, "*/*", "application/json", "application/json, text/html", "text/html;q=0.5, */*", "x"]
)
def test_who_does_not_prefer_html_gets_json(client: TestClient, accept: str | None) -> None:
    answer = client.simulate_get("/", headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json["name"] == "jina-onnx-server" and "Accept" in answer.headers["vary"]
    assert "content-security-policy" not in answer.headers


@pytest.mark.parametrize("page", PAGES.values())
def test_a_page_names_nothing_elsewhere(page: str) -> None:
    own = [FOLDER / page, *(FOLDER / page).parent.glob(f"{Path(page).stem}.*")]
    for path in own:
        assert not re.findall(
            r"(?:https?:)?//[a-z]", re.sub(r"^\s*(//|/\*).*", "", path.read_text(), flags=re.M)
        )


@pytest.mark.parametrize(
    "name", ["nothing.js", "../pages.py", "..%2Fpages.py", "%2e%2e/pages.py", ".", "docs"]
)
def test_no_other_file_is_sent(client: TestClient, name: str) -> None:
    answer = client.simulate_get(f"/static/{name}")
    assert answer.status_code == 404
    assert answer.json["error"]["code"] == "route_not_found"


def test_the_licence_is_beside_the_files() -> None:
    assert "Apache License" in (FOLDER / "swagger-ui.LICENSE.txt").read_text()
    named = re.match(
        r"/\*! For license information please see (\S+) \*/", (FOLDER / "swagger-ui-bundle.js").read_text()
    )
    assert named and "MIT" in (FOLDER / named[1]).read_text()  # of the packages inside it
