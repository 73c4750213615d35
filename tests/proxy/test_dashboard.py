"""The dashboard, the alert rules and the documentation against the metrics that there are."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.metrics.families import FAMILIES, Kind
from tests.fakes.chat_engine import Answers
from tests.in_process import serving

ROOT = Path(__file__).parent.parent.parent
GRAFANA = ROOT / "examples" / "grafana"
DOCUMENT = (ROOT / "docs" / "observability.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "slurmgate.json").read_text())

SUFFIXES = {Kind.COUNTER: ("",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
NAMES = {family.shown + suffix: family for family in FAMILIES for suffix in SUFFIXES[family.kind]}
NOT_OURS = {"le", "job", "instance"}


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def rules() -> Iterator[str]:
    for line in DOCUMENT.splitlines():
        if line.strip().startswith("expr: "):
            yield line.strip().removeprefix("expr: ")


def metrics_in(expression: str) -> list[str]:
    return re.findall(r"\b((?:slurmgate|process)_[a-z_]+)", expression)


def test_the_file_is_as_its_maker_makes_it() -> None:
    made = runpy.run_path(str(GRAFANA / "make_dashboard.py"))["dashboard"]()
    assert made == DASHBOARD, "run examples/grafana/make_dashboard.py"


@pytest.mark.parametrize("expression", [*expressions(), *rules()])
def test_each_query_asks_for_metrics_and_labels_that_there_are(expression: str) -> None:
    names = metrics_in(expression)
    assert names
    known = set().union(*({*NAMES[name].labels} for name in names)) | NOT_OURS
    for selector in re.findall(r"\{([^}]*)\}", expression):
        labels = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"', selector)
        assert set(labels) <= known
        assert re.fullmatch(r'(\w+(=~|!~|!=|=)"[^"]*"(, )?)*', selector)
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert set(grouped.split(", ")) <= known
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)


@pytest.mark.parametrize("expression", [*expressions(), *rules()])
def test_counters_are_asked_for_as_rates_and_histograms_as_quantiles(expression: str) -> None:
    for name in metrics_in(expression):
        family = NAMES[name]
        if family.kind is Kind.COUNTER:
            assert re.search(rf"(rate|increase)\({name}\b", expression)
        if name.endswith("_bucket"):
            assert expression.startswith("histogram_quantile(0.")
            assert re.search(r"by \(le\b", expression)


def test_every_metric_of_ours_is_in_the_dashboard() -> None:
    used = {NAMES[name].name for expression in expressions() for name in metrics_in(expression)}
    assert {family.name for family in FAMILIES if family.name.startswith("slurmgate_")} <= used


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.shown)
def test_every_metric_is_documented_as_it_is(family: Any) -> None:
    labels = ", ".join(f"`{label}`" for label in family.labels) or "-"
    assert f"| `{family.shown}` | {family.kind.value} | {labels} | {family.help} |" in DOCUMENT


def test_the_documentation_names_no_metric_that_there_is_not() -> None:
    assert set(metrics_in(DOCUMENT)) <= NAMES.keys() | {family.shown for family in FAMILIES}


async def test_a_gateway_shows_these_families_and_no_others(tmp_path: Path) -> None:
    async with Answers() as engine:
        text = f'[models."org/m"]\nengine = "vllm"\nurls = ["{engine.url}"]\n'
        async with serving(text, tmp_path) as served, httpx.AsyncClient() as http:
            answer = await http.get(served.url + "/metrics")
            asked = await http.get(served.url + "/metrics", headers={"accept": "application/openmetrics-text"})
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert {family.name for family in text_string_to_metric_families(answer.text)} == {f.name for f in FAMILIES}
    assert asked.headers["content-type"].startswith("application/openmetrics-text")
    assert asked.text.endswith("# EOF\n")


def test_the_dashboard_can_be_imported_anywhere() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["model"]["query"]["query"] == "label_values(slurmgate_requests_total, model)"
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert DASHBOARD["schemaVersion"] >= 39
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert all(target["datasource"]["uid"] == "${datasource}" for panel in panels for target in panel["targets"])


def test_panels_do_not_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
