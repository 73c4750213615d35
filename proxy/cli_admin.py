"""The commands about keys; those about projects and usage have files of their own.

All work on the database, whether the gateway runs or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .admin_options import (
    AdminOption,
    AllModelsOption,
    Class,
    ClassOption,
    ConcurrentOption,
    DayOption,
    ExpiresOption,
    JsonOption,
    KeyArgument,
    ModelOption,
    MonthOption,
    ProjectOption,
    RequestsOption,
    TokensOption,
    expiry,
    limit_changes,
    limits_in_words,
    model_changes,
    print_one,
)
from .cli_projects import projects_app
from .cli_usage import usage
from .terminal import ConfigOption, Mistake, StateOption, database, print_table, say, when

keys_app = typer.Typer(help="API keys: make, list, change, revoke. They are stored hashed.", no_args_is_help=True)


def mount(app: typer.Typer) -> None:
    """Make these commands part of `slurmgate`."""
    app.add_typer(keys_app, name="keys")
    app.add_typer(projects_app, name="projects")
    app.command("usage")(usage)


# -- keys ------------------------------------------------------------------------------------------------------------


@keys_app.command("create")
def create_key(
    *,
    name: Annotated[str, typer.Argument(help="Whose key it is, such as a person or a program.")],
    project: ProjectOption = None,
    model: ModelOption = None,
    priority: ClassOption = None,
    rpm: RequestsOption = None,
    tpm: TokensOption = None,
    concurrent: ConcurrentOption = None,
    tokens_per_day: DayOption = None,
    tokens_per_month: MonthOption = None,
    expires: ExpiresOption = None,
    admin: AdminOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Make a key and print it, alone, on standard output: it is shown this once."""
    limits = limit_changes(
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        concurrent_requests=concurrent,
        tokens_per_day=tokens_per_day,
        tokens_per_month=tokens_per_month,
    )
    given = {
        "name": name,
        **_terms(
            project=project,
            model=model,
            every_model=False,
            priority=priority,
            limits=limits,
            expires=expires,
            admin=admin,
        ),
    }
    from .keys import KeyStore
    from .terms import NewKey, parsed

    with database(config_file, state_dir) as engine:
        new = parsed(NewKey, given)
        say(KeyStore(engine).make(new)[1])


def _terms(
    *,
    project: str | None,
    model: Sequence[str] | None,
    every_model: bool,
    priority: Class | None,
    limits: Mapping[str, int | None],
    expires: str | None,
    admin: bool | None,
) -> dict[str, Any]:
    """What was said of a key, as `/admin/keys` would be told."""
    given = model_changes(model, every_model)
    if project is not None:
        given["project_id"] = None if project == "none" else project
    if priority is not None:
        given["priority"] = priority.value
    if limits:
        given["limits"] = dict(limits)
    if expires is not None:
        given["expires_at"] = expiry(expires)
    if admin is not None:
        given["admin"] = admin
    return given


@keys_app.command("list")
def list_keys(as_json: JsonOption = False, config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """List the keys: whose they are, what they may do, whether they work."""
    from .keys import KeyStore
    from .projects import ProjectStore

    with database(config_file, state_dir) as engine:
        keys = KeyStore(engine).list()
        projects = {project.id: project for project in ProjectStore(engine).list()}
    if as_json:
        say(json.dumps([key.card() for key in keys]))
        return
    titles = ("id", "name", "ends with", "project", "class", "models", "limits", "made", "last used", "state")
    rows = []
    for key in keys:
        project = projects.get(key.project_id)
        state = key.status
        if state == "valid" and project is not None and project.status != "active":
            state = f"its project is {project.status}"
        rows.append(
            (
                key.id,
                key.name,
                key.hint,
                project.name if project is not None else "-",
                key.priority.name.lower() + (", admin" if key.admin else ""),
                ", ".join(key.models) if key.models is not None else "all",
                limits_in_words(key.limits),
                when(key.created_at),
                key.last_used or "-",
                state,
            )
        )
    print_table(titles, rows)


@keys_app.command("show")
def show_key(
    *, key: KeyArgument, as_json: JsonOption = False, config_file: ConfigOption = None, state_dir: StateOption = None
) -> None:
    """Show all there is to know of a key; not the key itself, which is not kept."""
    from .keys import KeyStore

    with database(config_file, state_dir) as engine:
        found = KeyStore(engine).find(key)
    print_one(found, as_json)


@keys_app.command("update")
def update_key(
    *,
    key: KeyArgument,
    name: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    project: ProjectOption = None,
    model: ModelOption = None,
    all_models: AllModelsOption = False,
    priority: ClassOption = None,
    rpm: RequestsOption = None,
    tpm: TokensOption = None,
    concurrent: ConcurrentOption = None,
    tokens_per_day: DayOption = None,
    tokens_per_month: MonthOption = None,
    expires: ExpiresOption = None,
    admin: AdminOption = None,
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
    given = _terms(
        project=project,
        model=model,
        every_model=all_models,
        priority=priority,
        limits=limits,
        expires=expires,
        admin=admin,
    )
    if name is not None:
        given["name"] = name
    _change_key(config_file, state_dir, key, given)


@keys_app.command("disable")
def disable_key(key: KeyArgument, config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """Have a key refused until it is enabled again."""
    _change_key(config_file, state_dir, key, {"disabled": True})


@keys_app.command("enable")
def enable_key(key: KeyArgument, config_file: ConfigOption = None, state_dir: StateOption = None) -> None:
    """Let a disabled key work again."""
    _change_key(config_file, state_dir, key, {"disabled": False})


def _change_key(config_file: Path | None, state_dir: Path | None, key: str, given: Mapping[str, Any]) -> None:
    from .keys import KeyStore
    from .terms import KeyChanges, parsed

    if not given:
        raise Mistake("nothing to change: name what shall be, such as --rpm 60")
    with database(config_file, state_dir) as engine:
        changed = KeyStore(engine).update(key, parsed(KeyChanges, given))
    say(f"changed {changed.id} ({changed.name})")


@keys_app.command("revoke")
def revoke_key(
    id_or_name: Annotated[str, typer.Argument(help="A key's id, or a name: then all keys of that name.")],
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Revoke keys, for good: a running gateway refuses them within a second."""
    from .keys import KeyStore

    with database(config_file, state_dir) as engine:
        count = KeyStore(engine).revoke(id_or_name)
    if not count:
        raise Mistake(f"no valid key has the id or the name {id_or_name!r}")
    say(f"revoked {count} key{'s' if count > 1 else ''}")
