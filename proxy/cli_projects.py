"""`slurmgate projects`: what keys belong to. Works on the database, whether the gateway runs or not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from .admin_options import (
    AccountOption,
    AllModelsOption,
    ConcurrentOption,
    DayOption,
    JsonOption,
    ModelOption,
    MonthOption,
    ProjectArgument,
    RequestsOption,
    TokensOption,
    limit_changes,
    limits_in_words,
    model_changes,
    print_one,
)
from .terminal import ConfigOption, Mistake, StateOption, database, print_table, say, when

projects_app = typer.Typer(help="Projects: what keys belong to, with limits of their own.", no_args_is_help=True)


@projects_app.command("create")
def create_project(
    *,
    name: Annotated[str, typer.Argument(help="Its name, which no other project has.")],
    account: AccountOption = None,
    model: ModelOption = None,
    rpm: RequestsOption = None,
    tpm: TokensOption = None,
    concurrent: ConcurrentOption = None,
    tokens_per_day: DayOption = None,
    tokens_per_month: MonthOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Make a project and print its id. Its limits are for all its keys together."""
    limits = limit_changes(
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        concurrent_requests=concurrent,
        tokens_per_day=tokens_per_day,
        tokens_per_month=tokens_per_month,
    )
    given = {"name": name, **_project_terms(account, model, False, limits)}
    from .projects import ProjectStore
    from .terms import NewProject, parsed

    with database(config_file, state_dir) as engine:
        new = parsed(NewProject, given)
        say(ProjectStore(engine).create(new).id)


def _project_terms(
    account: str | None, model: Sequence[str] | None, every_model: bool, limits: Mapping[str, int | None]
) -> dict[str, Any]:
    given = model_changes(model, every_model)
    if account is not None:
        given["account"] = account
    if limits:
        given["limits"] = dict(limits)
    return given


@projects_app.command("list")
def list_projects(as_json: JsonOption = False, config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """List the projects."""
    from .projects import ProjectStore

    with database(config_file, state_dir) as engine:
        projects = ProjectStore(engine).list()
    if as_json:
        say(json.dumps([project.card() for project in projects]))
        return
    print_table(
        ("id", "name", "account", "models", "limits", "made", "state"),
        [
            (
                project.id,
                project.name,
                project.account or "-",
                ", ".join(project.models) if project.models is not None else "all",
                limits_in_words(project.limits),
                when(project.created_at),
                project.status,
            )
            for project in projects
        ],
    )


@projects_app.command("show")
def show_project(
    *,
    project: ProjectArgument,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Show all there is to know of a project."""
    from .projects import ProjectStore

    with database(config_file, state_dir) as engine:
        found = ProjectStore(engine).find(project)
    print_one(found, as_json)


@projects_app.command("update")
def update_project(
    *,
    project: ProjectArgument,
    name: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    account: AccountOption = None,
    model: ModelOption = None,
    all_models: AllModelsOption = False,
    rpm: RequestsOption = None,
    tpm: TokensOption = None,
    concurrent: ConcurrentOption = None,
    tokens_per_day: DayOption = None,
    tokens_per_month: MonthOption = None,
    disabled: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Whether its keys are refused for the time being.")
    ] = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Change what is named, within a second in a running gateway; the rest stays as it is."""
    limits = limit_changes(
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        concurrent_requests=concurrent,
        tokens_per_day=tokens_per_day,
        tokens_per_month=tokens_per_month,
    )
    given = _project_terms(account, model, all_models, limits)
    if name is not None:
        given["name"] = name
    if disabled is not None:
        given["disabled"] = disabled
    if not given:
        raise Mistake("nothing to change: name what shall be, such as --tokens-per-month 1000000")
    from .projects import ProjectStore
    from .terms import ProjectChanges, parsed

    with database(config_file, state_dir) as engine:
        changes = parsed(ProjectChanges, given)
        changed = ProjectStore(engine).update(project, changes)
    say(f"changed {changed.id} ({changed.name})")


@projects_app.command("archive")
def archive_project(project: ProjectArgument, config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """Close a project for good: its keys stop working, its usage stays."""
    from .projects import ProjectStore

    with database(config_file, state_dir) as engine:
        archived = ProjectStore(engine).archive(project)
    say(f"archived {archived.id} ({archived.name})")
