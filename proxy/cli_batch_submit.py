"""`slurmgate batch submit` and `wait`."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import cli_client
from .cli_client import (
    INTERRUPTED,
    BatchArgument,
    Json,
    KeyOption,
    UrlOption,
    again_and_again,
    at_once,
    contents,
    gateway,
    segment,
    tell,
    write,
)
from .terminal import ConfigOption, Mistake, StateOption, say

if TYPE_CHECKING:
    from .batch_progress import Bar
    from .gateway_client import GatewayClient

ENDPOINT = "/v1/chat/completions"
LOOK_AGAIN_S = 3.0


def submit(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Its requests, one JSON object a line.")],
    endpoint: Annotated[
        str | None, typer.Option(help=f"By default the `url` of the file's first line, else {ENDPOINT}.")
    ] = None,
    window: Annotated[str, typer.Option(help="By when it is to be done: from 1h to 7d.")] = "24h",
    mixed_models: Annotated[bool, typer.Option("--mixed-models", help="Lines may ask several models.")] = False,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="NAME=VALUE", help="May be given several times.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="To be told there when it has ended.")] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Show how it advances until it has ended.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="With --wait: write its results there.")
    ] = None,
    url: UrlOption = None,
    key_env: KeyOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Upload a file of requests and have it run. Prints the batch's id."""
    if output is not None and not wait:
        raise Mistake("--output takes --wait: without it, fetch them later with `slurmgate batch results`")
    first = first_line(file)
    asked: Json = {"endpoint": endpoint or endpoint_of(first), "completion_window": window}
    if metadata:
        asked["metadata"] = pairs(metadata)
    if mixed_models:
        asked["mixed_models"] = True
    if webhook is not None:
        asked["webhook"] = webhook
    client = gateway(url, key_env, config_file, state_dir)
    try:
        asked["input_file_id"] = uploaded(client, file)
        # with a key of its own it can be asked for again when the answer is lost, and is still one batch
        once = {"idempotency-key": secrets.token_urlsafe(18)}
        made = again_and_again(lambda: client.post("/batches", asked, once))
    except KeyboardInterrupt:
        tell("nothing was submitted")
        raise typer.Exit(INTERRUPTED) from None
    say(made["id"])
    if made.get("webhook_secret"):
        tell(f"webhooks of yours are signed with {made['webhook_secret']}")
    if wait:
        waited(client, made["id"], output)


def first_line(file: Path) -> bytes:
    """Raises `Mistake` for a file that cannot be a batch's."""
    try:
        with file.open("rb") as content:
            while line := content.readline(1024 * 1024):
                if line.strip():
                    return line
    except OSError as error:
        raise Mistake(f"{file} cannot be read: {error.strerror}") from None
    raise Mistake(f"{file} has no requests: expected a JSON object a line, with custom_id, method, url and body")


def endpoint_of(line: bytes) -> str:
    """The `url` in a line; what is wrong with the line is the gateway's to say."""
    try:
        url = json.loads(line)["url"]
    except (ValueError, KeyError, TypeError):
        return ENDPOINT
    return url if isinstance(url, str) and url else ENDPOINT


def pairs(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Mistake(f"--metadata: expected NAME=VALUE, found {text!r}")
        found[name] = value
    return found


def uploaded(client: GatewayClient, file: Path) -> str:
    """The id of the file that it is at the gateway."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=file.stat().st_size)
        made = at_once(lambda: client.upload(file, file.name, "batch", lambda size: progress.advance(task, size)))
    return str(made["id"])


def wait_for(
    *,
    batch: BatchArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write its results there.")
    ] = None,
    url: UrlOption = None,
    key_env: KeyOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Show how a batch advances, until it has ended."""
    waited(gateway(url, key_env, config_file, state_dir), batch, output)


def waited(client: GatewayClient, batch_id: str, output: Path | None) -> None:
    """Ends with a status other than 0 unless the batch was completed. Ctrl-C leaves the batch as it is."""
    from rich.console import Console

    from .batch_progress import Bar, mistakes_of, summary

    try:
        with Bar(Console(stderr=True)) as bar:
            card = until_over(client, batch_id, bar)
    except KeyboardInterrupt:
        tell(f"{batch_id} goes on; come back to it with `slurmgate batch wait {batch_id}`")
        raise typer.Exit(INTERRUPTED) from None
    tell(summary(card))
    for mistake in mistakes_of(card):
        tell(f"  {mistake}")
    if output is not None and (card["output_file_id"] or card["error_file_id"]):
        write(output, contents(client, card))
        tell(f"its results are in {output}")
    elif card["output_file_id"] or card["error_file_id"]:
        tell(f"fetch its results with `slurmgate batch results {batch_id} -o FILE`")
    if card["status"] != "completed":
        raise typer.Exit(1)


def until_over(client: GatewayClient, batch_id: str, bar: Bar) -> Json:
    """Its last card. A gateway that does not answer is asked again: it may be starting anew."""
    from .batch_progress import OVER
    from .gateway_client import NoAnswer, Refused

    known = False
    while True:
        try:
            card: Json = client.get(f"/batches/{segment(batch_id)}")
        except (NoAnswer, Refused) as error:
            if not known or (isinstance(error, Refused) and error.status < 500 and error.status != 429):
                raise Mistake(str(error)) from None
            bar.lost(str(error))
            time.sleep(LOOK_AGAIN_S)
            continue
        known = True
        bar.show(card, time.monotonic(), time.time())
        if card["status"] in OVER:
            return card
        time.sleep(cli_client.LOOK_EVERY_S)
