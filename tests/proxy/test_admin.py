"""/admin, on both databases: who may, what is refused and how, what is logged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import httpx
import pytest
from jsonschema_rs import Draft202012Validator
from sqlalchemy import Engine, text
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from backends.base import Usage
from backends.errors import GatewayError
from proxy import database as db
from proxy import openapi_admin
from proxy.accounting import Accounting
from proxy.auth import Authentication, KeyRing
from proxy.bodies import BodyReader
from proxy.keys import KeyStore
from proxy.record import Record, attach
from proxy.replies import send_error
from proxy.routes.admin import admin_routes
from proxy.terms import NewKey

Json = dict[str, Any]


class RecordingLog:
    """What was logged, as (event, fields)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Json]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


class App:
    """The routes, a real authentication before them, and errors as the gateway's outermost layer sends them."""

    def __init__(self, database: Engine, ring: KeyRing, log: RecordingLog) -> None:
        routes = admin_routes(database, BodyReader(1 << 20), cast(Any, log))
        self._app = Authentication(Router(routes, redirect_slashes=False), ring)
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        attach(scope, Record(scope["method"], scope["path"]))
        scope["app"] = self
        self._ring.refresh()
        try:
            await self._app(scope, receive, send)
        except GatewayError as error:
            await send_error(send, error)


@dataclass
class Admin:
    http: httpx.AsyncClient
    database: Engine
    log: RecordingLog
    key: str
    key_id: str

    async def ok(self, method: str, path: str, body: Json | None = None, **query: Any) -> Json:
        answer = await self.http.request(method, path, json=body, params=query or None)
        assert answer.status_code == 200, answer.text
        shown: Json = answer.json()
        return shown

    async def refused(
        self, method: str, path: str, body: Any = None, status: int = 400, query: dict[str, str] | None = None
    ) -> Json:
        """The error, which has OpenAI's four keys."""
        answer = await self.http.request(method, path, json=body, params=query)
        assert answer.status_code == status, answer.text
        error: Json = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error


@pytest.fixture
async def admin(database: Engine) -> AsyncIterator[Admin]:
    store = KeyStore(database)
    made, key = store.make(NewKey(name="root", admin=True))
    log = RecordingLog()
    transport = httpx.ASGITransport(App(database, KeyRing(store, loopback_only=False), log), raise_app_exceptions=True)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000", headers=headers) as http:
        yield Admin(http, database, log, key, made.id)


def described(name: str, value: Json) -> Json:
    """The value, which is as the published description has it."""
    Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": {"schemas": openapi_admin.SCHEMAS}}
    ).validate(value)
    return value


PATHS = [
    ("GET", "/admin/keys"),
    ("POST", "/admin/keys"),
    ("GET", "/admin/keys/key_x"),
    ("POST", "/admin/keys/key_x"),
    ("DELETE", "/admin/keys/key_x"),
    ("GET", "/admin/projects"),
    ("POST", "/admin/projects"),
    ("GET", "/admin/projects/proj_x"),
    ("POST", "/admin/projects/proj_x"),
    ("DELETE", "/admin/projects/proj_x"),
    ("GET", "/admin/usage"),
]


# -- who may ---------------------------------------------------------------------------------------------------------


async def test_only_an_admin_key_may(admin: Admin) -> None:
    other = KeyStore(admin.database).create("ada")
    for method, path in PATHS:
        for headers, status, code in (
            ({"authorization": f"Bearer {other}"}, 403, "insufficient_permissions"),
            ({"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ):
            answer = await admin.http.request(method, path, headers=headers, content=b"not even JSON")
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (method, path)
            assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(KeyStore(admin.database).list()) == 2
    assert admin.log.lines == []


async def test_an_admin_key_that_is_revoked_may_no_more(admin: Admin) -> None:
    await admin.ok("DELETE", f"/admin/keys/{admin.key_id}")
    assert (await admin.refused("GET", "/admin/keys", status=401))["code"] == "invalid_api_key"


async def test_the_paths_that_are_tried_here_are_all_there_are(admin: Admin) -> None:
    routes = admin_routes(admin.database, BodyReader(1), cast(Any, admin.log))
    there = {(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    assert {(method, path.replace("key_x", "{id}").replace("proj_x", "{id}")) for method, path in PATHS} == there


# -- keys ------------------------------------------------------------------------------------------------------------


async def test_a_key_is_made_shown_changed_and_revoked(admin: Admin) -> None:
    project = described("Project", await admin.ok("POST", "/admin/projects", {"name": "physics", "account": "phys"}))
    made = described(
        "NewKey",
        await admin.ok(
            "POST",
            "/admin/keys",
            {
                "name": "ada",
                "project_id": project["id"],
                "models": ["m"],
                "priority": "batch",
                "limits": {"requests_per_minute": 60, "tokens_per_day": 1000},
                "expires_at": 4102444800,
            },
        ),
    )
    key = made.pop("key")
    assert key.startswith("sk-sg-")
    assert key.endswith(made["hint"])
    assert made["project_id"] == project["id"]
    assert described("Key", await admin.ok("GET", f"/admin/keys/{made['id']}")) == made

    changed = await admin.ok("POST", f"/admin/keys/{made['id']}", {"limits": {"tokens_per_day": None}, "models": None})
    assert changed["limits"] == {**dict.fromkeys(db.LIMITS), "requests_per_minute": 60}
    assert changed["models"] is None
    assert changed["priority"] == "batch"
    assert (await admin.ok("POST", f"/admin/keys/{made['id']}", {"disabled": True}))["status"] == "disabled"

    gone = described("KeyDeleted", await admin.ok("DELETE", f"/admin/keys/{made['id']}"))
    assert gone == {"id": made["id"], "object": "key.deleted", "deleted": True}
    assert await admin.ok("DELETE", f"/admin/keys/{made['id']}") == gone
    assert (await admin.ok("GET", f"/admin/keys/{made['id']}"))["status"] == "revoked"
    assert (await admin.refused("POST", f"/admin/keys/{made['id']}", {"disabled": False}))["code"] == "key_revoked"


async def test_every_change_is_logged_with_who_made_it_and_never_with_a_key(admin: Admin) -> None:
    project = await admin.ok("POST", "/admin/projects", {"name": "physics"})
    made = await admin.ok("POST", "/admin/keys", {"name": "ada", "project_id": project["id"]})
    await admin.ok("POST", f"/admin/keys/{made['id']}", {"name": "eve", "disabled": True})
    await admin.ok("DELETE", f"/admin/keys/{made['id']}")
    await admin.ok("POST", f"/admin/projects/{project['id']}", {"disabled": True})
    await admin.ok("DELETE", f"/admin/projects/{project['id']}")
    await admin.ok("GET", "/admin/keys")
    assert admin.log.lines == [
        ("project_created", {"by": admin.key_id, "project_id": project["id"]}),
        ("key_created", {"by": admin.key_id, "key_id": made["id"], "project_id": project["id"], "admin": False}),
        ("key_changed", {"by": admin.key_id, "key_id": made["id"], "fields": ["disabled", "name"]}),
        ("key_revoked", {"by": admin.key_id, "key_id": made["id"]}),
        ("project_changed", {"by": admin.key_id, "project_id": project["id"], "fields": ["disabled"]}),
        ("project_archived", {"by": admin.key_id, "project_id": project["id"]}),
    ]
    for key in (admin.key, made["key"]):
        assert key[6:] not in str(admin.log.lines)


async def test_lists_come_in_pages(admin: Admin) -> None:
    made = [admin.key_id] + [(await admin.ok("POST", "/admin/keys", {"name": f"k{i}"}))["id"] for i in range(4)]
    seen: list[str] = []
    after: Json = {}
    while True:
        page = described("KeyList", await admin.ok("GET", "/admin/keys", limit=2, **after))
        seen += [key["id"] for key in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert sorted(seen) == sorted(made)
    empty = await admin.ok("GET", "/admin/keys", project_id="proj_none")
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_what_is_over_is_left_out_of_lists_unless_it_is_asked_for(admin: Admin) -> None:
    key = await admin.ok("POST", "/admin/keys", {"name": "ada"})
    await admin.ok("DELETE", f"/admin/keys/{key['id']}")
    assert len((await admin.ok("GET", "/admin/keys"))["data"]) == 1
    assert len((await admin.ok("GET", "/admin/keys", include_revoked="true"))["data"]) == 2
    project = await admin.ok("POST", "/admin/projects", {"name": "old"})
    assert (await admin.ok("DELETE", f"/admin/projects/{project['id']}"))["status"] == "archived"
    assert (await admin.ok("GET", "/admin/projects"))["data"] == []
    page = described("ProjectList", await admin.ok("GET", "/admin/projects", include_archived="true"))
    assert [one["id"] for one in page["data"]] == [project["id"]]


# -- bad input -------------------------------------------------------------------------------------------------------

KEY_MISTAKES: dict[str, tuple[Any, str | None, str, str]] = {
    "nothing": ({}, "name", "missing_required_parameter", "Missing required parameter: 'name'."),
    "a typo": ({"name": "a", "model": []}, "model", "unknown_parameter", "Did you mean 'models'?"),
    "an unknown field": ({"name": "a", "zzz": 1}, "zzz", "unknown_parameter", "Known are: name, project_id"),
    "a typo inside": (
        {"name": "a", "limits": {"token_per_day": 1}}, "limits.token_per_day", "unknown_parameter",
        "Did you mean 'tokens_per_day'?",
    ),
    "a wrong type": (
        {"name": 5}, "name", "invalid_type",
        "Invalid type for 'name': expected a string, but got an integer instead.",
    ),
    "a boolean for a number": (
        {"name": "a", "limits": {"tokens_per_day": True}}, "limits.tokens_per_day", "invalid_type",
        "expected an integer, but got a boolean instead.",
    ),
    "a number for a boolean": ({"name": "a", "admin": 1}, "admin", "invalid_type", "expected a boolean"),
    "a text for a list": ({"name": "a", "models": "m"}, "models", "invalid_type", "expected an array"),
    "a wrong item": ({"name": "a", "models": ["m", 5]}, "models[1]", "invalid_type", "expected a string"),
    "a list for an object": ({"name": "a", "limits": []}, "limits", "invalid_type", "expected an object"),
    "an empty list": ({"name": "a", "models": []}, "models", "invalid_value", "or null for all of them"),
    "a blank name": ({"name": " "}, "name", "invalid_value", "expected 1 to 200 printable characters"),
    "a long name": ({"name": "a" * 201}, "name", "invalid_value", "expected 1 to 200 printable characters"),
    "a NUL": ({"name": "a\0b"}, "name", "invalid_value", "printable"),
    "a NUL in a model": ({"name": "a", "models": ["\0"]}, "models", "invalid_value", "names of models"),
    "zero": (
        {"name": "a", "limits": {"concurrent_requests": 0}}, "limits.concurrent_requests", "invalid_value",
        "Invalid value for 'limits.concurrent_requests': expected at least 1.",
    ),
    "more than the database holds": (
        {"name": "a", "limits": {"tokens_per_day": 2**63}}, "limits.tokens_per_day", "invalid_value",
        "expected at most 1000000000000000.",
    ),
    "limits that contradict each other": (
        {"name": "a", "limits": {"tokens_per_day": 10, "tokens_per_month": 5}}, "limits", "invalid_value",
        "Invalid value for 'limits': expected tokens_per_day (10) to be at most tokens_per_month (5).",
    ),
    "an unknown class": (
        {"name": "a", "priority": "high"}, "priority", "invalid_value", "expected one of 'interactive' or 'batch'.",
    ),
    "a time that is past": ({"name": "a", "expires_at": 1000}, "expires_at", "invalid_value", "in the future"),
    "a time beyond all calendars": ({"name": "a", "expires_at": 2**62}, "expires_at", "invalid_value", "future"),
    "no such project": ({"name": "a", "project_id": "x"}, "project_id", "invalid_value", "No project has"),
    "not an object": ([], None, "invalid_type", "expected an object, but got an array"),
}  # fmt: skip


async def test_a_wrong_field_is_named(admin: Admin) -> None:
    for mistake, (body, param, code, told) in KEY_MISTAKES.items():
        error = await admin.refused("POST", "/admin/keys", body)
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code), mistake
        assert told in error["message"], mistake
    assert len(KeyStore(admin.database).list()) == 1


async def test_several_mistakes_are_told_at_once(admin: Admin) -> None:
    error = await admin.refused("POST", "/admin/keys", {"limits": {"tokens_per_day": "x"}, "colour": "red"})
    assert error["param"] == "name"
    for path in ("'name'", "'limits.tokens_per_day'", "'colour'"):
        assert path in error["message"]


async def test_values_are_not_repeated_in_errors(admin: Admin) -> None:
    for body in ({"name": ["sk-sg-secret"]}, {"name": "a", "priority": "sk-sg-secret"}, {"name": "sk-sg-secret\n"}):
        assert "secret" not in (await admin.refused("POST", "/admin/keys", body))["message"]


QUERY_MISTAKES: dict[str, tuple[str, dict[str, str], str, str]] = {
    "no number": ("/admin/keys", {"limit": "x"}, "limit", "invalid_type"),
    "too many": ("/admin/keys", {"limit": "101"}, "limit", "invalid_value"),
    "an empty value": ("/admin/keys", {"limit": ""}, "limit", "invalid_type"),
    "an unknown id": ("/admin/keys", {"after": "key_x"}, "after", "invalid_value"),
    "a NUL": ("/admin/projects", {"after": "\0"}, "after", "invalid_value"),
    "an unknown parameter": ("/admin/projects", {"page": "1"}, "page", "unknown_parameter"),
    "no boolean": ("/admin/projects", {"include_archived": "perhaps"}, "include_archived", "invalid_type"),
    "no date": ("/admin/usage", {"start_date": "yesterday"}, "start_date", "invalid_value"),
    "no such day": ("/admin/usage", {"end_date": "2026-02-30"}, "end_date", "invalid_value"),
    "the wrong way round": (
        "/admin/usage", {"start_date": "2026-11-02", "end_date": "2026-11-01"}, "end_date", "invalid_value",
    ),
    "no such dimension": ("/admin/usage", {"group_by": "key,colour"}, "group_by[1]", "invalid_value"),
    "one of them twice": ("/admin/usage", {"group_by": "key,key"}, "group_by", "invalid_value"),
    "no page": ("/admin/usage", {"page": "-1"}, "page", "invalid_value"),
    "a page beyond all": ("/admin/usage", {"page": "9" * 30}, "page", "invalid_value"),
}  # fmt: skip


async def test_a_wrong_parameter_is_named(admin: Admin) -> None:
    for mistake, (path, query, param, code) in QUERY_MISTAKES.items():
        error = await admin.refused("GET", path, query=query)
        assert (error["param"], error["code"]) == (param, code), mistake


async def test_what_is_not_there_is_a_404(admin: Admin) -> None:
    for method, path in (("GET", "keys/x"), ("POST", "keys/x"), ("DELETE", "keys/%00"), ("POST", "projects/%00")):
        error = await admin.refused(method, f"/admin/{path}", {}, status=404)
        assert error["code"] in ("key_not_found", "project_not_found")


async def test_a_database_that_fails_is_a_503(admin: Admin) -> None:
    with db.writing(admin.database) as connection:
        connection.execute(text("ALTER TABLE usage RENAME TO elsewhere"))
    error = await admin.refused("GET", "/admin/usage", status=503)
    assert (error["type"], error["code"]) == ("server_error", "storage_failed")


# -- usage -----------------------------------------------------------------------------------------------------------


async def test_usage_in_sums_and_pages(admin: Admin) -> None:
    accounting = Accounting(admin.database, now=lambda: 1795348800.0)
    for model in ("a", "b", "c"):
        accounting.add(admin.key_id, "", model, Usage(10, 5))
    accounting.write(accounting.take())
    page = described("UsagePage", await admin.ok("GET", "/admin/usage"))
    assert page == {
        "object": "page",
        "data": [
            {
                "object": "usage", "day": "2026-11-22", "key_id": None, "key_name": None, "project_id": None,
                "project_name": None, "model": None, "requests": 3, "failed": 0, "prompt_tokens": 30,
                "completion_tokens": 15, "total_tokens": 45,
            }
        ],
        "has_more": False,
        "next_page": None,
    }  # fmt: skip
    first = await admin.ok("GET", "/admin/usage?group_by=key&group_by=model&limit=2")
    assert [(one["key_name"], one["model"]) for one in first["data"]] == [("root", "a"), ("root", "b")]
    assert first["has_more"]
    rest = await admin.ok("GET", f"/admin/usage?group_by[]=key,model&limit=2&page={first['next_page']}")
    assert [one["model"] for one in rest["data"]] == ["c"]
    assert (await admin.ok("GET", "/admin/usage", model="b", end_date="2026-11-22"))["data"][0]["requests"] == 1
    assert (await admin.ok("GET", "/admin/usage", start_date="2026-11-23"))["data"] == []
