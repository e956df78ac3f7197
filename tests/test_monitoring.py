"""What documents and manifests say of metrics: that each is there, that each query can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import NAMESPACE, Metrics
from tests import kustomize
from tests.processes import PROJECT

ADAPTER = PROJECT / "deploy" / "monitoring" / "prometheus-adapter.yaml"
OPERATIONS, METRICS = (PROJECT / "docs" / name for name in ("operations.md", "metrics.md"))
SPEAKERS = [OPERATIONS, METRICS, *sorted((PROJECT / "deploy").rglob("*.yaml"))]
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
RANGES = r"\[\d+[smhd]\]"  # what marks a query in the text of a page


def families() -> dict[str, str]:
    """Return the types of all that the service says, by name."""
    text, _ = Metrics({"version": "1"}).render()
    return {family.name: family.type for family in text_string_to_metric_families(text.decode())}


def series() -> set[str]:
    """Return the names of all that can be asked for."""
    return {name + suffix for name, kind in families().items() for suffix in SUFFIXES[kind]}


def rules() -> list[dict[str, Any]]:
    """Return the alerts of the page on operations."""
    blocks = re.findall(r"```yaml\n(.*?)```", OPERATIONS.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in map(yaml.safe_load, blocks) if "groups" in block]
    return [rule for group in found["groups"] for rule in group["rules"]]


def adapter_rule() -> dict[str, Any]:
    (found,) = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("path", SPEAKERS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_metric_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(rf"{NAMESPACE}_[a-z_]*[a-z]", path.read_text(encoding="utf-8")))
    assert named <= series() | set(families())


def test_every_metric_is_in_the_table() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|", METRICS.read_text(), re.MULTILINE)
    said = {f"{NAMESPACE}_{name}": kind for name, kind in rows}
    assert said == {name + (kind == "counter") * "_total": kind for name, kind in families().items()}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_alerts_can_be_read_and_say_what_to_do(rule: dict[str, Any]) -> None:
    assert NAMESPACE in promql_parser.parse(rule["expr"]).prettify() or "up{" in rule["expr"]
    assert rule.keys() == {"alert", "expr", "for", "annotations"}
    assert rule["annotations"]["summary"]


def test_queries_in_the_text_can_be_read() -> None:
    queries = [
        query
        for path in (OPERATIONS, METRICS)
        for query in re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))
        if re.search(RANGES, query) or f"({NAMESPACE}" in query
    ]
    assert queries
    for query in queries:
        promql_parser.parse(query.replace("\\|", "|"))


def test_the_autoscaler_asks_for_what_the_adapter_makes_of_the_service() -> None:
    rule = adapter_rule()
    asked, _, _ = rule["seriesQuery"].partition("{")
    made = re.sub(rule["name"]["matches"], rule["name"]["as"].replace("${1}", r"\1"), asked)
    resources = kustomize.render(PROJECT / "deploy" / "base")
    (scaler,) = [resource for resource in resources if resource["kind"] == "HorizontalPodAutoscaler"]
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == made
    assert families()[made] == "histogram"
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'pod=~"a"').replace("<<.GroupBy>>", "pod")
    promql_parser.parse(query)
    promql_parser.parse(rule["seriesQuery"])
