"""/admin/projects: list, make, show, change, archive."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from proxy.bodies import BodyReader
from proxy.projects import ProjectStore
from proxy.replies import send_json
from proxy.terms import NewProject, ProjectChanges, ProjectList

from .admin_shared import administrator, body_of, in_database, listed, query_of


class AdminProjects:
    """GET and POST."""

    path = "/admin/projects"

    def __init__(self, projects: ProjectStore, bodies: BodyReader, log: FilteringBoundLogger) -> None:
        self._projects = projects
        self._bodies = bodies
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        by = administrator(scope, self.path)
        if scope["method"] == "POST":
            given = await body_of(NewProject, receive, self._bodies)
            made = await in_database(lambda: self._projects.create(given))
            self._log.info("project_created", by=by, project_id=made.id)
            await send_json(send, made.card())
            return
        asked = query_of(ProjectList, scope)
        found = await in_database(
            lambda: self._projects.list(archived=asked.include_archived, after=asked.after, limit=asked.limit + 1)
        )
        await send_json(send, listed([project.card() for project in found], asked.limit))


class AdminProject:
    """GET, POST (change) and DELETE (archive)."""

    path = "/admin/projects/{id}"

    def __init__(self, projects: ProjectStore, bodies: BodyReader, log: FilteringBoundLogger) -> None:
        self._projects = projects
        self._bodies = bodies
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        by = administrator(scope, self.path)
        project_id = scope["path_params"]["id"]
        if scope["method"] == "POST":
            changes = await body_of(ProjectChanges, receive, self._bodies)
            project = await in_database(lambda: self._projects.update(project_id, changes))
            self._log.info("project_changed", by=by, project_id=project.id, fields=sorted(changes.model_fields_set))
        elif scope["method"] == "DELETE":
            project = await in_database(lambda: self._projects.archive(project_id))
            self._log.info("project_archived", by=by, project_id=project.id)
        else:
            project = await in_database(lambda: self._projects.find(project_id))
        await send_json(send, project.card())
