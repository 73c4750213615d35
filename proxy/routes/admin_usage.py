"""GET /admin/usage: sums of requests and tokens."""

from __future__ import annotations

from sqlalchemy import Engine
from starlette.types import Receive, Scope, Send

from backends.errors import InvalidRequest
from proxy.replies import send_json
from proxy.terms import UsageAsked
from proxy.usage_report import report

from .admin_shared import administrator, in_database, query_of


class AdminUsage:
    path = "/admin/usage"

    def __init__(self, database: Engine) -> None:
        self._database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        administrator(scope, self.path)
        asked = query_of(UsageAsked, scope)
        if asked.start_date and asked.end_date and asked.start_date > asked.end_date:
            raise InvalidRequest(
                "Invalid value for 'end_date': expected a day that is not before 'start_date'.",
                param="end_date",
                code="invalid_value",
            )
        sums = await in_database(
            lambda: report(
                self._database,
                by=asked.group_by,
                since=asked.start_date,
                until=asked.end_date,
                key_id=asked.key_id,
                project_id=asked.project_id,
                model=asked.model,
                offset=asked.page,
                limit=asked.limit + 1,
            )
        )
        more = len(sums) > asked.limit
        page = {
            "object": "page",
            "data": [one.card() for one in sums[: asked.limit]],
            "has_more": more,
            "next_page": str(asked.page + asked.limit) if more else None,
        }
        await send_json(send, page)
