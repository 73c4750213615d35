"""/admin/keys: list, make, show, change, revoke. A key is shown in clear once, in the answer that made it."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from proxy.bodies import BodyReader
from proxy.keys import KeyStore
from proxy.replies import send_json
from proxy.terms import KeyChanges, KeyList, NewKey

from .admin_shared import administrator, body_of, in_database, listed, query_of


class AdminKeys:
    """GET and POST."""

    path = "/admin/keys"

    def __init__(self, keys: KeyStore, bodies: BodyReader, log: FilteringBoundLogger) -> None:
        self._keys = keys
        self._bodies = bodies
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        by = administrator(scope, self.path)
        if scope["method"] == "POST":
            given = await body_of(NewKey, receive, self._bodies)
            made, clear = await in_database(lambda: self._keys.make(given))
            self._log.info("key_created", by=by, key_id=made.id, project_id=made.project_id, admin=made.admin)
            await send_json(send, {**made.card(), "key": clear})
            return
        asked = query_of(KeyList, scope)
        found = await in_database(
            lambda: self._keys.list(
                project_id=asked.project_id,
                revoked=asked.include_revoked,
                after=asked.after,
                limit=asked.limit + 1,
            )
        )
        await send_json(send, listed([key.card() for key in found], asked.limit))


class AdminKey:
    """GET, POST (change) and DELETE (revoke)."""

    path = "/admin/keys/{id}"

    def __init__(self, keys: KeyStore, bodies: BodyReader, log: FilteringBoundLogger) -> None:
        self._keys = keys
        self._bodies = bodies
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        by = administrator(scope, self.path)
        key_id = scope["path_params"]["id"]
        if scope["method"] == "POST":
            changes = await body_of(KeyChanges, receive, self._bodies)
            key = await in_database(lambda: self._keys.update(key_id, changes))
            self._log.info("key_changed", by=by, key_id=key.id, fields=sorted(changes.model_fields_set))
        elif scope["method"] == "DELETE":
            key = await in_database(lambda: self._keys.find(key_id))
            if await in_database(lambda: self._keys.revoke(key.id)):
                self._log.info("key_revoked", by=by, key_id=key.id)
            await send_json(send, {"id": key.id, "object": "key.deleted", "deleted": True})
            return
        else:
            key = await in_database(lambda: self._keys.find(key_id))
        await send_json(send, key.card())
