"""The pages in a real browser: they load nothing from elsewhere, send requests and show the answers."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from service.operations import Tag
from tests import qwen, xlmr
from tests.conftest import MODEL, Live

SECONDS = 30
KEY = "a-key-of-the-test"
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder where pictures of the pages are to be kept
READABLE = 4.5  # the ratio that WCAG asks of texts
# Lists the texts that are shown on a ground from which they hardly differ.
FAINT = """
const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const over = ([r, g, b, a = 1], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
const linear = (value) => value <= 10 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const ground = (each) => each
  ? over(rgb(getComputedStyle(each).backgroundColor), ground(each.parentElement)) : [255, 255, 255];
const faint = [];
for (const each of document.querySelectorAll("body *")) {
  const has_text = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const takes_text = ["TEXTAREA", "INPUT", "SELECT"].includes(each.tagName);
  if (!(has_text || takes_text) || each.closest("noscript") || !each.getClientRects().length) continue;
  const back = ground(each);
  const pair = [light(back), light(over(rgb(getComputedStyle(each).color), back))].sort((a, b) => a - b);
  const ratio = (pair[1] + 0.05) / (pair[0] + 0.05);
  if (ratio < arguments[0]) faint.push(`${each.tagName}.${each.className} ${each.textContent}: ${ratio}`);
}
return faint;
"""
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def live(
    real_models: Path,
    tmp_path_factory: pytest.TempPathFactory,
    serve: Callable[..., AbstractContextManager[Live]],
) -> Iterator[Live]:
    models = Path(shutil.copytree(real_models, tmp_path_factory.mktemp("pages") / "models"))
    xlmr.bake_tiny(models, xlmr.BGE_RERANKER, xlmr.write_bge_reranker(models.parent / "reranker"))
    with serve(models) as started:
        yield started


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.fail("install the browser: apt-get install chromium chromium-driver (make test-full does)")
    options = ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    started = Chrome(options, Service(driver))
    started.set_page_load_timeout(SECONDS)
    yield started
    started.quit()


def wait_for(browser: Chrome, selector: str, says: str = "") -> Any:
    """Return the first element that is shown and has the text."""

    def found(_: Chrome) -> Any:
        elements = browser.find_elements(By.CSS_SELECTOR, selector)
        return next((each for each in elements if each.is_displayed() and says in each.text), False)

    return WebDriverWait(browser, SECONDS).until(found, f"{selector} that says {says!r}")


def click(browser: Chrome, selector: str) -> None:
    element = wait_for(browser, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def write(browser: Chrome, selector: str, text: str) -> None:
    element = wait_for(browser, selector)
    element.clear()
    element.send_keys(text)


def check_requests(browser: Chrome, live: Live) -> None:
    """Make sure that the page has asked nobody else and has met no error that it does not show."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    asked = [urlsplit(url) for url in sent]
    over_network = [url for url in asked if url.scheme in ("http", "https", "ws", "wss")]
    own = urlsplit(live.url)
    assert over_network
    assert [url for url in over_network if (url.hostname, url.port) != (own.hostname, own.port)] == []
    shown = ("network", "deprecation")  # answers that are errors stand in the page
    said = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry["message"] for entry in said if entry["source"] not in shown] == []


def keep(browser: Chrome, name: str, width: int = 1280) -> None:
    if SCREENSHOTS:
        height = browser.execute_script("return Math.min(1400, document.documentElement.scrollHeight)")
        browser.set_window_size(width, max(700, height) + 150)
        browser.execute_script("window.scrollTo(0, 0)")
        browser.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


def test_a_request_is_sent_from_the_documentation(browser: Chrome, live: Live) -> None:
    browser.get(f"{live.url}/docs")
    wait_for(browser, ".title", "jina-onnx-server")
    keep(browser, "docs")
    click(browser, "[id$='v1_embeddings'] .opblock-summary-control")
    click(browser, "[id$='v1_embeddings'] .try-out__btn")
    area = wait_for(browser, "[id$='v1_embeddings'] textarea.body-param__text")
    assert json.loads(area.get_property("value"))["model"] == MODEL  # sent as the page proposes it
    click(browser, "[id$='v1_embeddings'] .execute")
    wait_for(browser, "[id$='v1_embeddings'] .live-responses-table .response-col_status", "200")
    answer = wait_for(browser, "[id$='v1_embeddings'] .live-responses-table .highlight-code")
    assert '"object"' in answer.text
    check_requests(browser, live)


def test_the_documentation_is_grouped_and_short(browser: Chrome, live: Live) -> None:
    browser.get(f"{live.url}/docs")
    wait_for(browser, ".title", "jina-onnx-server")
    groups = browser.find_elements(By.CSS_SELECTOR, ".opblock-tag")
    names = [group.get_attribute("data-tag") for group in groups]
    assert names == [tag for tag in Tag if tag != Tag.PAGES]
    methods = {each.text for each in browser.find_elements(By.CSS_SELECTOR, ".opblock-summary-method")}
    paths = {each.text for each in browser.find_elements(By.CSS_SELECTOR, ".opblock-summary-path")}
    assert methods == {"GET", "POST"}
    assert {"/v1/embeddings", "/healthz"} < paths and not {"/docs", "/playground"} & paths
    wait_for(browser, "section.models", "Schemas")
    assert not browser.find_elements(By.CSS_SELECTOR, "section.models .json-schema-2020-12")


def test_the_documentation_shows_a_short_answer_of_the_loaded_model(browser: Chrome, live: Live) -> None:
    browser.get(f"{live.url}/docs")
    for route in ("v1_embeddings", "v1_rerank"):
        click(browser, f"[id$='{route}'] .opblock-summary-control")
        answer = wait_for(browser, f"[id$='{route}'] tr[data-code='200'] .highlight-code", "usage")
        example = json.loads(answer.text)
        assert example["model"] == (MODEL if route == "v1_embeddings" else xlmr.BGE_RERANKER)


@pytest.mark.parametrize("colours", ["dark", "light"])
def test_the_documentation_has_the_colours_that_the_browser_asks_for(
    browser: Chrome, live: Live, colours: str
) -> None:
    wanted = {"features": [{"name": "prefers-color-scheme", "value": colours}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    browser.get(f"{live.url}/docs")
    click(browser, "[id$='v1_embeddings'] .opblock-summary-control")
    click(browser, "[id$='v1_embeddings'] .try-out__btn")
    click(browser, "[id$='v1_embeddings'] .execute")
    wait_for(browser, "[id$='v1_embeddings'] .live-responses-table .highlight-code", "object")
    keep(browser, f"docs-{colours}")
    paint = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", paint)[0])
    assert red < 60 if colours == "dark" else red > 200
    if colours == "dark":  # the light ones are Swagger UI's own
        assert browser.execute_script(FAINT, READABLE) == []


def test_the_pages_lead_to_each_other(browser: Chrome, live: Live) -> None:
    browser.get(f"{live.url}/")
    wait_for(browser, "h1", "jina-onnx-server")
    keep(browser, "home")
    click(browser, "a[href='docs']")
    wait_for(browser, ".title", "jina-onnx-server")
    click(browser, "nav a[href='playground']")
    wait_for(browser, "h1", "Playground")
    click(browser, "nav a[href='docs']")
    wait_for(browser, ".title", "jina-onnx-server")
    check_requests(browser, live)


def test_texts_are_compared_and_documents_ranked(browser: Chrome, live: Live) -> None:
    browser.get(f"{live.url}/playground")
    wait_for(browser, "#embed-model", MODEL)
    click(browser, "#embed button")
    wait_for(browser, "#embed-note", "4 texts")
    values = [float(cell.text) for cell in browser.find_elements(By.CSS_SELECTOR, "#matrix tbody td")]
    assert len(values) == 16
    assert values[::5] == [1.0] * 4
    assert values[11] > values[8]  # the two of the stock market are nearer than a cat and it
    click(browser, "#rank button")
    wait_for(browser, "#rank-note", "4 documents")
    scores = [float(each.text) for each in browser.find_elements(By.CSS_SELECTOR, "#bars .score")]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    keep(browser, "playground")
    keep(browser, "playground-narrow", 420)
    check_requests(browser, live)


def test_without_a_reranker_the_ranking_says_so_and_goes_on_saying_it(
    browser: Chrome, real_models: Path, serve: Callable[..., AbstractContextManager[Live]]
) -> None:
    with serve(real_models) as live:
        browser.get(f"{live.url}/playground")
        wait_for(browser, "#rank-hint", "No reranker is loaded")
        click(browser, "#rank button")
        wait_for(browser, "#rank-note", "4 documents")
        wait_for(browser, "#rank-hint", "No reranker is loaded")
        click(browser, "#embed button")
        wait_for(browser, "#embed-note", "4 texts")
        keep(browser, "playground-no-reranker")
        check_requests(browser, live)


def test_with_a_reranker_nothing_is_said_of_none(browser: Chrome, live: Live) -> None:
    browser.get(f"{live.url}/playground")
    wait_for(browser, "#rank-model", xlmr.BGE_RERANKER)
    assert not browser.find_element(By.ID, "rank-hint").is_displayed()


def test_one_text_is_one(browser: Chrome, live: Live) -> None:
    browser.get(f"{live.url}/playground")
    wait_for(browser, "#embed-model", MODEL)
    write(browser, "#texts", "A cat.")
    click(browser, "#embed button")
    note = wait_for(browser, "#embed-note", "1 text")
    assert note.text.startswith("1 text, ") and not browser.find_element(By.ID, "embed-cut").is_displayed()
    write(browser, "#documents", "A cat.")
    click(browser, "#rank button")
    assert wait_for(browser, "#rank-note", "1 document").text == "1 document, best first"


@pytest.mark.parametrize(
    ("form", "field", "says"),
    [
        ("embed", "texts", "At least one text is needed."),
        ("rank", "query", "A query is needed."),
        ("rank", "documents", "At least one document is needed."),
    ],
)
def test_a_blank_field_is_asked_for_and_nothing_sent(
    browser: Chrome, live: Live, form: str, field: str, says: str
) -> None:
    browser.get(f"{live.url}/playground")
    wait_for(browser, "#embed-model", MODEL)
    browser.get_log("performance")
    write(browser, f"#{field}", "   ")
    click(browser, f"#{form} button")
    wait_for(browser, f"#{form}-error", says)
    assert browser.switch_to.active_element.get_attribute("id") == field
    assert "Network.requestWillBeSent" not in str(browser.get_log("performance"))


def test_what_is_cut_is_said(browser: Chrome, live: Live) -> None:
    browser.get(f"{live.url}/playground")
    wait_for(browser, "#embed-model", MODEL)
    long = "'\\n' + 'word '.repeat(300)"
    browser.execute_script(f"document.getElementById('texts').value = 'A cat.' + {long}")
    click(browser, "#embed button")
    said = wait_for(browser, "#embed-cut", "256 tokens").text
    assert "text 2 (302 tokens)" in said and "text 1" not in said
    wait_for(browser, "#embed-note", "2 texts")
    keep(browser, "playground-cut")
    many = f"'A cat.' + {long.replace('300', '9000')}"
    browser.execute_script(f"document.getElementById('documents').value = {many}")
    click(browser, "#rank button")
    said = wait_for(browser, "#rank-cut", "of query and document together").text
    assert "document 2 (" in said and "document 1" not in said
    wait_for(browser, "#rank-note", "2 documents")
    write(browser, "#documents", "A cat.")
    click(browser, "#rank button")
    wait_for(browser, "#rank-note", "1 document,")
    assert not browser.find_element(By.ID, "rank-cut").is_displayed()  # of the last ranking alone
    check_requests(browser, live)


def test_what_a_listwise_reranker_cuts_is_said(
    browser: Chrome, tiny_qwen_models: Path, serve: Callable[..., AbstractContextManager[Live]]
) -> None:
    with serve(tiny_qwen_models) as live:
        browser.get(f"{live.url}/playground")
        wait_for(browser, "#rank-model", qwen.JINA_RERANKER)
        Select(browser.find_element(By.ID, "rank-model")).select_by_visible_text(qwen.JINA_RERANKER)
        browser.execute_script(
            "document.getElementById('documents').value = 'A cat.\\n' + 'word '.repeat(3000);"
            "document.getElementById('query').value = 'cat '.repeat(600)"
        )
        click(browser, "#rank button")
        said = wait_for(browser, "#rank-cut", "512 tokens of a query and 2048 of a document").text
        assert "the query (" in said and "document 2 (" in said and "document 1" not in said
        check_requests(browser, live)


def test_an_error_is_shown_as_it_comes(browser: Chrome, live: Live) -> None:
    browser.get(f"{live.url}/playground")
    wait_for(browser, "#embed-model", MODEL)
    browser.execute_script("document.getElementById('texts').value = 'x\\n'.repeat(3000)")
    click(browser, "#embed button")
    wait_for(browser, "#embed-error", "2048")
    check_requests(browser, live)


def test_the_playground_sends_an_api_key(
    browser: Chrome, tiny_models: Path, serve: Callable[..., AbstractContextManager[Live]]
) -> None:
    with serve(tiny_models, API_KEYS=KEY) as live:
        browser.get(f"{live.url.replace('://', f'://user:{KEY}@')}/playground")  # as its dialog would
        browser.get(f"{live.url}/playground")
        wait_for(browser, "#embed-model", MODEL)
        click(browser, "#embed button")
        wait_for(browser, "#embed-error", "Enter one of the server's keys above")
        write(browser, "#key", KEY)
        click(browser, "h1")
        click(browser, "#embed button")
        wait_for(browser, "#embed-note", "4 texts")
        check_requests(browser, live)
