"""The commands about batches: `slurmgate batch submit, wait, list, show, cancel, pause, resume, results`.

They are a client of a gateway, like any other: of the one at --url, else of the one that runs on this state directory.
A batch goes on whether anybody waits for it or not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import cli_client
from .cli_batch_submit import submit, wait_for
from .cli_client import (
    INTERRUPTED,
    BatchArgument,
    Json,
    JsonOption,
    KeyOption,
    UrlOption,
    again_and_again,
    at_once,
    contents,
    gateway,
    segment,
    write,
)
from .terminal import ConfigOption, StateOption, print_table, say, when

if TYPE_CHECKING:
    from .gateway_client import GatewayClient

LINES_AT_ONCE = 1000

batch_app = typer.Typer(help="Batches: thousands of prompts, run when there is room.", no_args_is_help=True)
batch_app.command("submit")(submit)
batch_app.command("wait")(wait_for)


def mount(app: typer.Typer) -> None:
    """Make these commands part of `slurmgate`."""
    app.add_typer(batch_app, name="batch")


# -- looking ---------------------------------------------------------------------------------------------------------


@batch_app.command("list")
def list_batches(
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="The newest of them.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key_env: KeyOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """List your project's batches, the newest first."""
    from .batch_progress import done_of, failed_of, state_of, total_of

    client = gateway(url, key_env, config_file, state_dir)
    cards = at_once(lambda: client.get("/batches", {"limit": limit}))["data"]
    if as_json:
        say(json.dumps(cards))
        return
    if not cards:
        say("no batches")
        return
    rows = [
        [
            card["id"],
            state_of(card),
            str(card.get("model") or "-"),
            when(card["created_at"]),
            when(card["expires_at"]),
            str(total_of(card)),
            str(done_of(card)),
            str(failed_of(card)),
        ]
        for card in cards
    ]
    print_table(["batch", "state", "model", "created", "due", "lines", "done", "failed"], rows, numbers=3)


@batch_app.command("show")
def show(
    *,
    batch: BatchArgument,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key_env: KeyOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Show a batch: how far it is, when it will be done, what was wrong with its file."""
    client = gateway(url, key_env, config_file, state_dir)
    card = at_once(lambda: client.get(f"/batches/{segment(batch)}"))
    if as_json:
        say(json.dumps(card))
        return
    for name, value in facts(card):
        say(f"{name:<12}{value}")


def facts(card: Json) -> Iterator[tuple[str, str]]:
    from .batch_progress import done_of, failed_of, mistakes_of, state_of, total_of

    yield "batch", card["id"]
    yield "state", state_of(card)
    if card.get("model"):
        yield "model", card["model"]
    yield "endpoint", card["endpoint"]
    yield "lines", f"{total_of(card)}, {done_of(card)} done, {failed_of(card)} of them failed"
    if usage := card.get("usage"):
        yield "tokens", f"{usage['input_tokens']} in, {usage['output_tokens']} out"
    yield "created", when(card["created_at"])
    yield "due", f"{when(card['expires_at'])} ({card['completion_window']})"
    if card.get("estimated_completion_at"):
        yield "done by", f"{when(card['estimated_completion_at'])}, as it goes now"
    for name in ("completed", "failed", "expired", "cancelled"):
        if card.get(f"{name}_at"):
            yield name, when(card[f"{name}_at"])
    for name, field in (("input", "input_file_id"), ("output", "output_file_id"), ("errors", "error_file_id")):
        if card.get(field):
            yield name, card[field]
    for name, value in (card.get("metadata") or {}).items():
        yield "metadata", f"{name}={value}"
    for mistake in mistakes_of(card):
        yield "mistake", mistake


# -- telling ---------------------------------------------------------------------------------------------------------


@batch_app.command("cancel")
def cancel(
    *,
    batch: BatchArgument,
    url: UrlOption = None,
    key_env: KeyOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """End a batch. What was done until then is in its results."""
    card = told(gateway(url, key_env, config_file, state_dir), batch, "cancel")
    say(f"{batch} is {card['status']}")


@batch_app.command("pause")
def pause(
    *,
    batch: BatchArgument,
    url: UrlOption = None,
    key_env: KeyOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Begin no more lines of a batch until it is resumed. Its window goes on."""
    told(gateway(url, key_env, config_file, state_dir), batch, "pause")
    say(f"{batch} is paused; go on with `slurmgate batch resume {batch}`")


@batch_app.command("resume")
def resume(
    *,
    batch: BatchArgument,
    url: UrlOption = None,
    key_env: KeyOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Let a batch that was paused go on."""
    told(gateway(url, key_env, config_file, state_dir), batch, "resume")
    say(f"{batch} goes on")


def told(client: GatewayClient, batch: str, verb: str) -> Json:
    card: Json = at_once(lambda: client.post(f"/batches/{segment(batch)}/{verb}"))
    return card


# -- results ---------------------------------------------------------------------------------------------------------


@batch_app.command("results")
def results(
    *,
    batch: BatchArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Instead of standard output.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is done later, until the batch has ended.")
    ] = False,
    url: UrlOption = None,
    key_env: KeyOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """Print a batch's results, a JSON object a line, those that failed among them. Those that are there may be had
    while it runs."""
    from .batch_progress import OVER

    client = gateway(url, key_env, config_file, state_dir)
    card = at_once(lambda: client.get(f"/batches/{segment(batch)}"))
    found = contents(client, card) if card["status"] in OVER else so_far(client, batch, follow)
    try:
        if output is not None:
            write(output, found)
            return
        for data in found:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def so_far(client: GatewayClient, batch: str, follow: bool) -> Iterator[bytes]:
    """What is done by now, in the order in which it was done; with `follow` until the batch has ended."""
    after = 0
    while True:
        query = {"after_line": after, "limit": LINES_AT_ONCE}
        data, headers = again_and_again(partial(client.lines, f"/batches/{segment(batch)}/results", query))
        if data:
            yield data
        after = int(headers["x-slurmgate-next-line"])
        if headers["x-slurmgate-over"] == "true":
            return
        if not data:
            if not follow:
                return
            time.sleep(cli_client.LOOK_EVERY_S)
