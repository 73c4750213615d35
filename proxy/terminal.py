"""What every command shares: its options, one message for a mistake, and where it writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from .config import Config
    from .state import StateDir

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The configuration, a TOML file.", envvar="SLURMGATE_CONFIG")
]
StateOption = Annotated[
    Path | None, typer.Option("--state-dir", help="Where the gateway keeps its state.", envvar="SLURMGATE_STATE_DIR")
]


class Mistake(Exception):
    """Something the user can mend: shown as one message, without a trace."""


def fail(message: str) -> None:
    sys.stderr.write(f"slurmgate: {message}\n")
    sys.exit(1)


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def mistakes(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions that explain themselves into `Mistake`."""
    try:
        yield
    except kinds as error:
        raise Mistake(str(error)) from None


def read_config(path: Path | None) -> Config | None:
    from .config import ConfigError, load

    with mistakes(ConfigError):
        return load(path) if path is not None else None


def open_state(config: Config | None, given: Path | None) -> StateDir:
    """The state directory: the option, else the configuration's, else the default. Its secret can be had."""
    from .config import default_state_dir
    from .state import StateDir, StateDirUnusable

    configured = config.state_dir if config is not None else None
    with mistakes(StateDirUnusable):
        state = StateDir(given or configured or default_state_dir())
        state.secret()
        return state


def open_database(config_file: Path | None, state_dir: Path | None) -> Engine:
    """The database that these options lead to, whether the gateway runs or not."""
    from .database import DatabaseUnusable, database_of

    config = read_config(config_file)
    with mistakes(DatabaseUnusable):
        return database_of(config, open_state(config, state_dir))


@contextmanager
def database(config_file: Path | None, state_dir: Path | None) -> Iterator[Engine]:
    """The same for the length of a block, in which what its stores refuse is a mistake."""
    from sqlalchemy.exc import SQLAlchemyError

    from backends.errors import GatewayError

    engine = open_database(config_file, state_dir)
    try:
        yield engine
    except GatewayError as error:
        raise Mistake(error.message) from None
    except SQLAlchemyError as error:
        raise Mistake(f"the database cannot be used now ({type(error).__name__})") from None
    finally:
        engine.dispose()


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> None:
    """`numbers` of the last columns stand to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index >= len(titles) - numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 320, markup=False, highlight=False).print(table)


def when(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
