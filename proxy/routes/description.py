"""GET /openapi.json and /docs: what is served here, for programs and for people. Made once, when somebody first asks:
no start waits for it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from html import escape
from typing import Any

import orjson
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from proxy.record import record_of
from proxy.replies import send_bytes

JSON_PATH, PAGE_PATH = "/openapi.json", "/docs"

Json = dict[str, Any]


_NOTHING_FROM_ELSEWHERE = (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")
"""Nothing but what is in the page itself, so that no text in it could become more than text."""


class Description:
    """What is said of `routes`."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = routes

    @cached_property
    def document(self) -> Json:
        from proxy import openapi  # noqa: PLC0415  # read when it is asked for, as what is in it is made

        return openapi.document(self.routes)

    @cached_property
    def json(self) -> bytes:
        return orjson.dumps(self.document)

    @cached_property
    def page(self) -> bytes:
        return "".join(_page(self.document)).encode()


class Fixed:
    """An ASGI endpoint whose answer never changes. `body` makes it, or has it."""

    def __init__(
        self, path: str, content_type: bytes, body: Callable[[], bytes], *headers: tuple[bytes, bytes]
    ) -> None:
        self.path = path
        self._content_type = content_type
        self._body = body
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        record.endpoint, record.quiet = self.path, True
        await send_bytes(send, 200, self._content_type, self._body(), self._headers)


def describing(routes: Sequence[Route]) -> list[Route]:
    """The routes that describe these and themselves."""
    description = Description(routes)
    document = Fixed(JSON_PATH, b"application/json", lambda: description.json)
    page = Fixed(PAGE_PATH, b"text/html; charset=utf-8", lambda: description.page, _NOTHING_FROM_ELSEWHERE)
    own = [Route(fixed.path, fixed, methods=["GET"]) for fixed in (document, page)]
    description.routes = [*routes, *own]
    return own


# -- the page --------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d6d9de, #3a3f47); --soft: light-dark(#f4f5f7, #1e2126);
  --dim: light-dark(#5b6470, #9aa4b2); --link: light-dark(#0a58ca, #7ab4ff); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  background: light-dark(#fff, #15171a); color: light-dark(#1b1f24, #dfe3e8); }
h1 { margin: 0; } h1 small, .dim { color: var(--dim); font-weight: normal; } h1 small { font-size: 1rem; }
h2 { margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); } h3 { margin: 1rem 0 .3rem; font-size: 1rem; }
a { color: var(--link); } code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .7rem; border-radius: 6px; overflow-x: auto; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; }
details > div { padding: 0 1rem 1rem; } summary { padding: .5rem .8rem; cursor: pointer; }
summary b { display: inline-block; width: 4.2rem; font: 600 12px ui-monospace, monospace; color: var(--link); }
summary code { font-weight: 600; } summary span { float: right; }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid var(--line); padding: .25rem .5rem;
  vertical-align: top; } td:first-child { white-space: nowrap; width: 1%; }
@media (max-width: 40rem) { summary span { float: none; display: block; } }
"""


def _page(document: Json) -> Iterator[str]:
    info = document["info"]
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
    yield f"<p>{escape(info['summary'])} {_text(info['description'])}</p>"
    yield f'<p>Send your key as <code>Authorization: Bearer …</code>. For programs: <a href="{JSON_PATH}">'
    yield f"{JSON_PATH}</a>, OpenAPI {escape(document['openapi'])}.</p>"
    operations = [(path, method, o) for path, item in document["paths"].items() for method, o in item.items()]
    for tag in dict.fromkeys(o["tags"][0] for _, _, o in operations):
        yield f"<h2>{escape(tag)}</h2>"
        for path, method, operation in operations:
            if operation["tags"][0] == tag:
                yield from _operation(path, method, operation)
    yield "<h2>Schemas</h2>"
    for name, schema in document["components"]["schemas"].items():
        yield f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary><div>'
        yield f"<pre>{escape(json.dumps(schema, indent=2))}</pre></div></details>"
    yield "</body></html>"


def _operation(path: str, method: str, operation: Json) -> Iterator[str]:
    yield f'<details id="{escape(operation["operationId"])}"><summary><b>{method.upper()}</b>'
    yield f'<code>{escape(path)}</code> <span class="dim">{escape(operation["summary"])}'
    yield f"{'' if operation['security'] else ' (no key)'}</span></summary><div>"
    body = operation.get("requestBody", {}).get("content", {})
    for kind, content in body.items():
        yield f'<h3>Body <span class="dim">{escape(kind)}</span></h3>'
        yield from _fields(content["schema"])
    if parameters := operation.get("parameters"):
        yield "<h3>Parameters</h3><table>"
        for parameter in parameters:
            yield _row(parameter["name"], parameter["schema"], f"in the {parameter['in']}")
        yield "</table>"
    yield "<h3>Answers</h3><table>"
    for status, answer in operation["responses"].items():
        kinds = ", ".join(
            f"{_named(content['schema'])} <span class='dim'>{escape(kind)}</span>"
            for kind, content in answer.get("content", {}).items()
        )
        yield f"<tr><td>{escape(status)}</td><td>{kinds}</td><td>{_text(answer['description'])}</td></tr>"
    yield f"</table><h3>Example</h3><pre>{escape(_curl(path, method, operation, body))}</pre></div></details>"


def _fields(schema: Json) -> Iterator[str]:
    required = schema.get("required", [])
    yield "<table>"
    for name, field in schema.get("properties", {}).items():
        yield _row(name, field, "required" if name in required else "")
    yield "</table>"


def _row(name: str, schema: Json, note: str) -> str:
    kinds = schema.get("type", "any")
    kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
    limits = [f"{key} {json.dumps(schema[key])}" for key in ("const", "enum", "minItems", "minimum") if key in schema]
    told = escape(", ".join([kind, *(limit for limit in limits if str(-(2**63)) not in limit)]))
    return f"<tr><td><code>{escape(name)}</code></td><td>{told}</td><td class='dim'>{escape(note)}</td></tr>"


def _named(schema: Json) -> str:
    """The name of a schema, as a link to it."""
    target = schema.get("$ref") or schema.get("contentSchema", {}).get("$ref")
    if target is None:
        return ""
    name = escape(target.rsplit("/", 1)[1])
    return f'<a href="#{name}">{name}</a>'


def _text(text: str) -> str:
    """Text with `code` in it."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _curl(path: str, method: str, operation: Json, body: Json) -> str:
    lines = [f'curl "$BASE_URL{path.replace("{id}", "ID")}"']
    if method == "delete":
        lines[0] += " -X DELETE"
    if operation["security"]:
        lines.append('-H "Authorization: Bearer $KEY"')
    for kind, content in body.items():
        if kind == "application/json":
            lines += [f"-H 'Content-Type: {kind}'", f"-d {shlex.quote(json.dumps(content.get('example', {})))}"]
        else:
            lines += ["-F model=MODEL", "-F file=@speech.wav"]
    if method == "post" and not body:
        lines[0] += " -X POST"
    return " \\\n  ".join(lines)
