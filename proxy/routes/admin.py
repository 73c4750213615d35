"""/admin: keys, projects and usage, for who has an admin key."""

from __future__ import annotations

from sqlalchemy import Engine
from starlette.routing import Route
from structlog.typing import FilteringBoundLogger

from proxy.bodies import BodyReader
from proxy.keys import KeyStore
from proxy.projects import ProjectStore

from .admin_keys import AdminKey, AdminKeys
from .admin_projects import AdminProject, AdminProjects
from .admin_usage import AdminUsage


def admin_routes(database: Engine, bodies: BodyReader, log: FilteringBoundLogger) -> list[Route]:
    keys, projects = KeyStore(database), ProjectStore(database)
    return [
        Route(AdminKeys.path, AdminKeys(keys, bodies, log), methods=["GET", "POST"]),
        Route(AdminKey.path, AdminKey(keys, bodies, log), methods=["GET", "POST", "DELETE"]),
        Route(AdminProjects.path, AdminProjects(projects, bodies, log), methods=["GET", "POST"]),
        Route(AdminProject.path, AdminProject(projects, bodies, log), methods=["GET", "POST", "DELETE"]),
        Route(AdminUsage.path, AdminUsage(database), methods=["GET"]),
    ]
