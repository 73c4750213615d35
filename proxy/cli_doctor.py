"""`slurmgate doctor`: looks for what is wrong between this machine, its configuration and the cluster.

It works whether a gateway runs or not, changes nothing, and submits a job only with --from-node.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import ConfigOption, Mistake, StateOption, read_config, say

if TYPE_CHECKING:
    from slurm_launcher.doctor import Finding


def mount(app: typer.Typer) -> None:
    """Make this command part of `slurmgate`."""
    app.command()(doctor)


def doctor(  # noqa: PLR0917  # its options
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    from_node: Annotated[
        bool, typer.Option("--from-node", help="Submit a job of one minute that looks at a node and the way back.")
    ] = False,
    model: Annotated[list[str] | None, typer.Option("--model", help="Only this one; may be repeated.")] = None,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for the job of --from-node.")] = 180.0,
) -> None:
    """Look for mistakes in the configuration, on this machine and in Slurm, and say what to do about each."""
    from slurm_launcher.doctor import Verdict

    from .config import default_state_dir
    from .examination import examine

    config = read_config(config_file)
    if config is None:
        from .embedded import configuration

        config = configuration()
    specs = config.specs
    if model:
        if missing := sorted(set(model) - specs.keys()):
            raise Mistake(f"no model {missing[0]!r} to launch in the configuration; there are: {', '.join(specs)}")
        specs = {name: specs[name] for name in model}
    where = state_dir or config.state_dir or default_state_dir()
    wait = wait_s if from_node else None
    findings = asyncio.run(examine(config, where, specs, config_file=config_file, wait_s=wait))
    if as_json:
        told = [
            {"what": f.what, "verdict": f.verdict.value, "sentence": f.sentence, "advice": f.advice} for f in findings
        ]
        say(json.dumps({"object": "doctor", "findings": told}))
    else:
        show(findings)
    if any(f.verdict is Verdict.WRONG for f in findings):
        sys.exit(1)


def show(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from slurm_launcher.doctor import Verdict

    colours = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.WRONG: "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for f in findings:
        told = Text(f.sentence)
        if f.advice:
            told.append(f"\n-> {f.advice}", style="italic")
        table.add_row(Text(f.verdict.value, style=colours[f.verdict]), f.what, told)
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    console.print(table)
    counts = [(v, sum(f.verdict is v for f in findings)) for v in (Verdict.WRONG, Verdict.WARNING)]
    console.print(", ".join(f"{count} {verdict.value}" for verdict, count in counts if count) or "all is well")
