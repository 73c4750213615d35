"""The published description says exactly what is served."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema_rs import Draft202012Validator, meta
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route, Router

from proxy import openapi, shapes
from proxy.app import Gateway
from tests.fakes.chat_engine import Answers
from tests.in_process import Served, serving

CONFIG = '[models."org/m"]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]'


def routes_of(gateway: Gateway) -> list[Route]:
    """What the gateway's router really has, under the layers around it."""
    layer: Any = gateway.serving._app
    while not isinstance(layer, Router):
        layer = getattr(layer, "_app", None) or layer._router
    return [route for route in layer.routes if isinstance(route, Route)]


async def get(served: Served, path: str) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.get(served.url + path)


async def published(served: Served) -> dict[str, Any]:
    answer = await get(served, "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    document: dict[str, Any] = answer.json()
    return document


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): o for path, item in document["paths"].items() for method, o in item.items()}


async def test_every_route_is_described_and_nothing_else(tmp_path: Path) -> None:
    async with serving(CONFIG, tmp_path) as served:
        routed = {
            (method.lower(), openapi.public_path(route.path))
            for route in routes_of(served.gateway)
            for method in (route.methods or set()) - {"HEAD"}
        }
        assert set(operations(await published(served))) == routed
        known = {(o.method, openapi.public_path(o.path)) for o in openapi.OPERATIONS}
        assert known == routed, "proxy/openapi.py has an operation that no route has"


async def test_the_document_is_openapi_3_1_and_refers_to_nothing_that_is_not_there(tmp_path: Path) -> None:
    async with serving(CONFIG, tmp_path) as served:
        document = await published(served)
    OpenAPIV31SpecValidator(document).validate()
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(ids) == len(set(ids))
    assert openapi.SCHEMAS.keys() == document["components"]["schemas"].keys(), "a schema that nobody needs"


async def test_who_needs_a_key_is_as_described(tmp_path: Path) -> None:
    async with serving(CONFIG, tmp_path) as served, httpx.AsyncClient() as http:
        for (method, path), operation in operations(await published(served)).items():
            if path.startswith("/internal/"):
                continue  # has tokens of its own
            answer = await http.request(method, served.url + path.replace("{id}", "x"))
            assert (answer.status_code == 401) == bool(operation["security"]), path


@pytest.mark.parametrize("operation", openapi.OPERATIONS, ids=lambda o: f"{o.method} {o.path}")
def test_its_example_is_as_its_schema_asks(operation: openapi.Operation) -> None:
    if isinstance(operation.body, shapes.Shape):
        schema = openapi.shaped(operation.body, operation.also)
        meta.validate(schema)
        Draft202012Validator(schema).validate(operation.example)
        assert operation.example is not None
        operation.body.check(operation.example)


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "text", [], {}, -(2**63), 2**63 - 1], ids=json.dumps)
def test_a_kind_and_its_schema_agree(value: Any) -> None:
    kinds = [kind for kind in vars(shapes).values() if isinstance(kind, shapes.Kind)]
    assert len(kinds) >= 7
    for kind in kinds:
        assert kind.fits(value) == Draft202012Validator(dict(kind.schema)).is_valid(value), kind.words
        shape = shapes.Shape(required={}, optional={"field": kind})
        fits = value is None or kind.fits(value)
        assert Draft202012Validator(openapi.shaped(shape, {})).is_valid({"field": value}) == fits


async def test_answers_and_errors_are_as_described(tmp_path: Path) -> None:
    async with Answers() as engine, serving(CONFIG.replace("http://127.0.0.1:1", engine.url), tmp_path) as served:
        document = await published(served)
        async with httpx.AsyncClient(base_url=served.url, headers=served.headers) as http:
            question = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
            asked = {**question["example"], "model": "org/m"}
            answers = {
                "ChatCompletion": await http.post("/v1/chat/completions", json=asked),
                "Error": await http.post("/v1/chat/completions", json={**asked, "messages": 1}),
                "ModelList": await http.get("/v1/models"),
                "Model": await http.get("/v1/models/org/m"),
                "Health": await http.get("/health"),
                "Readiness": await http.get("/ready"),
            }
            for name, answer in answers.items():
                validator(document, name).validate(answer.json())
            streamed = await http.post("/v1/chat/completions", json={**asked, "stream": True})
            events = re.findall("^data: ({.*})$", streamed.text, re.MULTILINE)
            assert len(events) > 2
            for event in events:
                validator(document, "ChatCompletionChunk").validate(json.loads(event))


def validator(document: dict[str, Any], name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})


class Page(HTMLParser):
    """What a page refers to, what can be referred to in it, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.add(value or "")
            if name == "id":
                assert value not in self.ids
                self.ids.add(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_the_page_shows_it_all_and_loads_nothing(tmp_path: Path) -> None:
    async with serving(CONFIG, tmp_path) as served:
        document = await published(served)
        answer = await get(served, "/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert len(answer.content) < 200_000
    page = Page(answer.text)
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert page.links <= {"/openapi.json"} | {f"#{name}" for name in page.ids}
    for (_, path), operation in operations(document).items():
        assert path in page.text
        assert operation["operationId"] in page.ids
        assert operation["summary"] in page.text
    assert page.text.count("curl ") == len(operations(document))
    assert document["components"]["schemas"].keys() <= page.ids
