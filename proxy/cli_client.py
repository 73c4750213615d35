"""What commands share that are a client of a gateway: options, the gateway that they ask, results into files."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .terminal import Mistake, open_state, read_config

if TYPE_CHECKING:
    from .gateway_client import GatewayClient

LOOK_EVERY_S = 1.0
TRIES = 4
INTERRUPTED = 130

Json = dict[str, Any]
T = TypeVar("T")

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="OPENAI_BASE_URL",
        help="The gateway, such as http://login1:8000/v1. By default the one that runs on the state directory.",
    ),
]
KeyOption = Annotated[
    str | None, typer.Option("--key-env", metavar="NAME", help="The variable with your key, else OPENAI_API_KEY.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="A batch's id.")]


def gateway(url: str | None, key_env: str | None, config_file: Path | None, state_dir: Path | None) -> GatewayClient:
    from .gateway_client import client_of

    state = open_state(read_config(config_file), state_dir) if not url else None
    return client_of(state, url or None, key_env)


def at_once(ask: Callable[[], T]) -> T:
    """An answer, or a mistake: for who asks once."""
    from .gateway_client import NoAnswer

    try:
        return ask()
    except NoAnswer as error:
        raise Mistake(str(error)) from None


def again_and_again(ask: Callable[[], T]) -> T:
    """An answer, after a few tries: for what may be asked twice without harm."""
    from .gateway_client import NoAnswer

    for number in range(1, TRIES + 1):
        try:
            return ask()
        except NoAnswer as error:
            if number == TRIES:
                raise Mistake(str(error)) from None
            time.sleep(LOOK_EVERY_S * number)
    raise AssertionError("unreachable")


def contents(client: GatewayClient, card: Json) -> Iterator[bytes]:
    """The bytes of a batch's output and error file."""
    if not card["output_file_id"] and not card["error_file_id"]:
        raise Mistake(f"{card['id']} is {card['status']} and has no results")
    for file_id in (card["output_file_id"], card["error_file_id"]):
        if file_id:
            yield from passed_on(client, file_id)


def passed_on(client: GatewayClient, file_id: str) -> Iterator[bytes]:
    from .gateway_client import NoAnswer

    try:
        yield from client.pieces(f"/files/{segment(file_id)}/content")
    except NoAnswer as error:
        raise Mistake(str(error)) from None


def write(output: Path, pieces: Iterator[bytes]) -> None:
    """The file is there whole, or as it was before."""
    part = output.with_name(f".{output.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            for data in pieces:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(output)
    except OSError as error:
        raise Mistake(f"{output} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def segment(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def tell(text: str) -> None:
    """What is not the command's result."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
