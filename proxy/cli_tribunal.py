"""The commands about tribunals: `slurmgate tribunal show ID`, what one of them did; `slurmgate tribunal profiles`,
which there are."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_client import JsonOption, KeyOption, UrlOption, gateway
from .terminal import ConfigOption, Mistake, StateOption, print_table, read_config, say, when

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.tree import Tree

TEXT_CHARS = 400

Json = dict[str, Any]

tribunal_app = typer.Typer(help="Tribunals: several models, one answer.", no_args_is_help=True)


def mount(app: typer.Typer) -> None:
    """Make these commands part of `slurmgate`."""
    app.add_typer(tribunal_app, name="tribunal")


@tribunal_app.command()
def show(  # noqa: PLR0917  # its options
    deliberation: Annotated[str, typer.Argument(metavar="ID", help="From the header x-slurmgate-deliberation.")],
    full: Annotated[bool, typer.Option("--full", help="Texts in their whole length.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
    key_env: KeyOption = None,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
) -> None:
    """What a tribunal did: its calls, candidates, critiques, votes, and why each phase ended."""
    from .gateway_client import NoAnswer

    try:
        told = gateway(url, key_env, config_file, state_dir).get(f"/tribunal/deliberations/{deliberation}")
    except NoAnswer as error:
        raise Mistake(str(error)) from None
    if as_json:
        say(json.dumps(told))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)
    for part in parts_of(told, None if full else TEXT_CHARS):
        console.print(part)


@tribunal_app.command()
def profiles(config_file: ConfigOption = None) -> None:
    """The tribunals of a configuration."""
    config = read_config(config_file)
    if config is None:
        raise Mistake("which ones? Give the configuration: --config FILE")
    rows = []
    for name, profile in config.tribunals.items():
        members = ", ".join(
            f"{member.name}{f' x{member.samples}' if member.samples > 1 else ''}" for member in profile.members
        )
        critics = ", ".join(critic.name for critic in profile.critics) or ("each other" if profile.rounds else "-")
        judge = profile.judge.model if profile.judge else "-"
        numbers = (profile.quorum, profile.rounds, profile.full_calls, f"{profile.deadline_s:g}")
        rows.append((name, members, critics, judge, str(profile.verdict), profile.fingerprint, *map(str, numbers)))
    titles = ("MODEL", "MEMBERS", "CRITICS", "JUDGE", "VERDICT", "FINGERPRINT", "QUORUM", "ROUNDS", "CALLS", "SECONDS")
    print_table(titles, rows, numbers=4)


# -- a deliberation as text ------------------------------------------------------------------------------------------


def parts_of(told: Json, most: int | None) -> Iterator[RenderableType]:
    """One after the other. `most` characters of each text, None for all of it."""
    outcome = told["outcome"] + (f", less than promised: {told['degraded']}" if told.get("degraded") else "")
    usage = told.get("usage") or {}
    yield f"{told['id']}  {told['model']}  {when(told['created_at'])}"
    yield f"{outcome}; verdict: {told['verdict'] or 'none'}; {told['elapsed_s']:.2f} s; {len(told['calls'])} calls"
    yield (
        f"{usage.get('prompt', 0)} prompt tokens, {usage.get('completion', 0)} completion tokens; request "
        f"{told['request_id']}; can be read until {when(told['expires_at'])}"
    )
    yield ""
    yield calls_of(told)
    if told["candidates"]:
        yield candidates_of(told, most)
    for judgement in told.get("judgements", ()):
        first, second = judgement["order"]
        winner = judgement["winner"]
        said = f"prefers {winner}" if winner is not None else "gave no word"
        yield f"{judgement['judge']}, shown {first} before {second}: {said}"


def calls_of(told: Json) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    numbers = ("AT", "SECONDS", "PROMPT", "COMPLETION")
    for title in ("CALL", "PHASE", "WHO", "MODEL", *numbers, "OUTCOME"):
        table.add_column(title, justify="right" if title in numbers else "left", overflow="fold")
    exits = {phase: (reason, at_s) for phase, reason, at_s in told.get("exits", ())}
    for call in told["calls"]:
        usage = call.get("usage") or {}
        taken = f"{call['elapsed_s']:.2f}" if call.get("elapsed_s") is not None else ""
        outcome = call["outcome"] + (f" ({call['reason']})" if call.get("reason") else "")
        if call.get("hedge_of") is not None:
            outcome += f", beside {call['hedge_of']}"
        table.add_row(
            str(call["ask_id"]), call["phase"], call["label"], call["model"], f"{call['started_s']:.2f}", taken,
            str(usage.get("prompt", "")), str(usage.get("completion", "")), outcome,
        )  # fmt: skip
    for phase, (reason, at_s) in exits.items():
        table.add_row("", phase, "", "", f"{at_s:.2f}", "", "", "", f"ended: {reason}")
    return table


def candidates_of(told: Json, most: int | None) -> Tree:
    """Each with what was said about it, the winner marked."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree("candidates")
    for candidate in told["candidates"]:
        number = candidate["id"]
        mark = " (the answer)" if number == told.get("winner") else ""
        mark += " (stands alone)" if number in told.get("dissents", ()) else ""
        refined = f", refines {candidate['of']}" if candidate.get("of") is not None else ""
        head = f"{number}: {candidate['seat']}{refined}{mark}; support {candidate['support']:.2f}, "
        branch = tree.add(Text(f"{head}tally {candidate['tally']:.2f}"))
        if candidate.get("text"):
            branch.add(Text(shortened(candidate["text"], most)))
        for ballot in told["ballots"]:
            score = (ballot.get("scores") or {}).get(str(number))
            if score is None:
                continue
            errors = (ballot.get("fatal_errors") or {}).get(str(number)) or ()
            said = f"; {'; '.join(errors)}" if errors else ""
            branch.add(Text(shortened(f"{ballot['critic']}, round {ballot['round'] + 1}: {score:g}{said}", most)))
    return tree


def shortened(text: str, most: int | None) -> str:
    """Without what would move the cursor of a terminal."""
    text = "".join(char if char == "\n" or char.isprintable() else "?" for char in text)
    return text if most is None or len(text) <= most else f"{text[:most]} [{len(text) - most} more characters]"
