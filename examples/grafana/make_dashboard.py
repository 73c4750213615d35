"""Makes the Grafana dashboard: `python examples/grafana/make_dashboard.py > examples/grafana/slurmgate.json`.

A panel is a title, a unit and its queries; where it stands follows from the order. All panels go by the variables
`datasource` (a Prometheus), `job` (Prometheus' name of the gateway) and `model` (one, several or all of its models).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 42
WIDTH = 24
HEIGHT = 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
JOB = 'job=~"$job"'
MODEL = f'{JOB}, model=~"$model"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """queries   pairs of an expression and its legend
    unit      Grafana's name of it
    width     of 24
    kind      Grafana's panel type
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    width: int = 8
    kind: str = "timeseries"
    stacked: bool = False
    help: str = ""


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, by: str, where: str = MODEL) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}{RATE}))"


def quantiles(metric: str, where: str = MODEL, also: str = "") -> tuple[tuple[str, str], ...]:
    """p50, p95 and p99 of a histogram; by a label if given."""
    by = f"le, {also}" if also else "le"
    legend = f" {{{{{also}}}}}" if also else ""
    total = f"sum by ({by}) (rate({metric}_bucket{{{where}}}{RATE}))"
    return tuple((f"histogram_quantile({q / 100}, {total})", f"p{q}{legend}") for q in (50, 95, 99))


ROWS = (
    Row(
        "Traffic",
        (
            Panel("Requests a second", ((rate("slurmgate_requests_total", "model"), "{{model}}"),), "reqps"),
            Panel(
                "Requests a second by status",
                ((rate("slurmgate_requests_total", "status"), "{{status}}"),),
                "reqps",
                stacked=True,
            ),
            Panel("Requests in flight", ((f"sum(slurmgate_requests_in_flight{{{JOB}}})", "in flight"),)),
        ),
    ),
    Row(
        "Latency",
        (
            Panel("Time to first token (streams)", quantiles("slurmgate_time_to_first_token_seconds"), "s", width=6),
            Panel(
                "Inter-token latency",
                quantiles("slurmgate_time_per_output_token_seconds"),
                "s",
                width=6,
                help="The mean of each stream: from its first bytes to its end, by the tokens after the first.",
            ),
            Panel("End to end", quantiles("slurmgate_request_duration_seconds", f'{MODEL}, model!=""'), "s", width=6),
            Panel("Queue wait", quantiles("slurmgate_queue_wait_seconds", also="class"), "s", width=6),
        ),
    ),
    Row(
        "Tokens",
        (
            Panel(
                "Completion tokens a second",
                ((rate("slurmgate_tokens_total", "model", f'{MODEL}, kind="completion"'), "{{model}}"),),
                width=12,
            ),
            Panel(
                "Prompt tokens a second",
                ((rate("slurmgate_tokens_total", "model", f'{MODEL}, kind="prompt"'), "{{model}}"),),
                width=12,
            ),
        ),
    ),
    Row(
        "Errors",
        (
            Panel("Errors a second by code", ((rate("slurmgate_errors_total", "code", JOB), "{{code}}"),), "reqps"),
            Panel(
                "Refused: 429 and 503",
                ((rate("slurmgate_rejected_requests_total", "model, reason"), "{{model}} {{reason}}"),),
                "reqps",
                help="Refusals that came before the model was known have no model.",
            ),
            Panel(
                "Over limits of keys and projects",
                ((rate("slurmgate_rate_limit_refusals_total", "kind", JOB), "{{kind}}"),),
                "reqps",
            ),
            Panel(
                "Retries at another replica",
                ((rate("slurmgate_retries_total", "model, reason"), "{{model}} {{reason}}"),),
                "reqps",
                width=12,
            ),
            Panel(
                "Fallbacks to another model",
                ((rate("slurmgate_fallbacks_total", "model, reason"), "{{model}} {{reason}}"),),
                "reqps",
                width=12,
            ),
        ),
    ),
    Row(
        "Queue and places",
        (
            Panel(
                "Waiting requests",
                ((f"sum by (model, class) (slurmgate_queue_length{{{MODEL}}})", "{{model}} {{class}}"),),
                stacked=True,
            ),
            Panel(
                "Places used",
                (
                    (f"sum by (model) (slurmgate_replica_requests_in_flight{{{MODEL}}})", "{{model}} used"),
                    (f"sum by (model) (slurmgate_replica_limit{{{MODEL}}})", "{{model}} of"),
                ),
            ),
            Panel("Batches", ((f"max by (state) (slurmgate_batches{{{JOB}}})", "{{state}}"),)),
            Panel(
                "Lines of batches",
                (
                    (
                        f"sum by (model, result) (rate(slurmgate_batch_lines_total{{{MODEL}}}{RATE}))",
                        "{{model}} {{result}}",
                    ),
                ),
                "reqps",
            ),
            Panel(
                "Lines of batches in flight",
                ((f"sum by (model) (slurmgate_batch_lines_in_flight{{{MODEL}}})", "{{model}}"),),
            ),
            Panel("Service rate", ((f"sum by (model) (slurmgate_service_rate{{{MODEL}}})", "{{model}}"),), "reqps"),
        ),
    ),
    Row(
        "Replicas and cold starts",
        (
            Panel(
                "Replicas by state",
                ((f"sum by (model, state) (slurmgate_replicas{{{MODEL}}})", "{{model}} {{state}}"),),
                width=6,
                stacked=True,
            ),
            Panel(
                "Circuit breakers that are not closed",
                (
                    (
                        f'sum by (model, state) (slurmgate_circuit_breaker{{{MODEL}, state!="closed"}})',
                        "{{model}} {{state}}",
                    ),
                ),
                width=6,
            ),
            Panel("Cold starts", quantiles("slurmgate_cold_start_duration_seconds"), "s", width=6),
            Panel(
                "Replicas that failed",
                (
                    (
                        f"sum by (model, reason) (increase(slurmgate_failed_replicas_total{{{MODEL}}}{RATE}))",
                        "{{model}} {{reason}}",
                    ),
                ),
                width=6,
            ),
        ),
    ),
    Row(
        "Tribunals",
        (
            Panel(
                "Deliberations a second",
                (
                    (
                        rate("slurmgate_tribunal_deliberations_total", "model, verdict, outcome"),
                        "{{model}} {{verdict}} {{outcome}}",
                    ),
                ),
                "reqps",
                stacked=True,
            ),
            Panel(
                "Calls a second",
                ((rate("slurmgate_tribunal_calls_total", "model, phase, outcome"), "{{model}} {{phase}} {{outcome}}"),),
                "reqps",
                stacked=True,
            ),
            Panel("Phases", quantiles("slurmgate_tribunal_phase_duration_seconds", also="phase"), "s"),
        ),
    ),
    Row(
        "Gateway process",
        (
            Panel(
                "CPU",
                (
                    (f"sum(rate(process_cpu_seconds_total{{{JOB}}}{RATE}))", "cores used"),
                    (f"sum(slurmgate_processes{{{JOB}}})", "processes"),
                ),
                width=6,
            ),
            Panel(
                "Resident memory",
                ((f"sum(process_resident_memory_bytes{{{JOB}}})", "resident"),),
                "bytes",
                width=6,
            ),
            Panel("Event loop lag", quantiles("slurmgate_event_loop_lag_seconds", JOB), "s", width=6),
            Panel("Open files", ((f"sum(process_open_fds{{{JOB}}})", "open"),), width=3),
            Panel(
                "Version",
                ((f"slurmgate_build_info{{{JOB}}}", "{{version}}"),),
                width=3,
                kind="stat",
            ),
        ),
    ),
)


def panel_json(panel: Panel, number: int, x: int, y: int) -> Json:
    timeseries = panel.kind == "timeseries"
    custom: Json = {"fillOpacity": 10, "showPoints": "never"}
    if panel.stacked:
        custom |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 30}
    options: Json = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    if not timeseries:
        options = {"textMode": "name", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": DATASOURCE,
        "gridPos": {"h": HEIGHT, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": custom if timeseries else {}},
            "overrides": [],
        },
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }


def panels_json() -> list[Json]:
    panels: list[Json] = []
    y = 0
    for row in ROWS:
        title = {"id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": []}
        panels.append({**title, "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y}})
        y += 1
        x = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            panels.append(panel_json(panel, len(panels) + 1, x, y))
            x += panel.width
        y += HEIGHT
    return panels


def variable(name: str, label: str, query: str) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> Json:
    return {
        "uid": "slurmgate",
        "title": "slurmgate",
        "tags": ["slurmgate", "llm"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                variable("job", "Job", "label_values(slurmgate_requests_in_flight, job)"),
                variable("model", "Model", "label_values(slurmgate_requests_total, model)"),
            ]
        },
        "panels": panels_json(),
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")
