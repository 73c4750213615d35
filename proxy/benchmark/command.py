"""The command's options, made into a plan. What measures is imported only when the command runs."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from proxy.terminal import ConfigOption, Mistake, StateOption, mistakes, read_config

USERS = "1,2,4,8,16,32,64,128"
_REQUESTS = 8
_TURNS = 2
_OURS = ("model", "messages", "max_tokens", "stream", "stream_options")


def bench(
    model: Annotated[str, typer.Argument(help="The model, by the name that clients ask for.")],
    *,
    config_file: ConfigOption = None,
    state_dir: StateOption = None,
    url: Annotated[
        str | None, typer.Option(help="The gateway. By default where the configuration says, else port 8000 here.")
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The variable with the gateway's key, else OPENAI_API_KEY.")
    ] = None,
    direct: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="An engine, measured without the gateway; may be given several times. By default the model's engines, "
            "where the configuration or the state directory tells them.",
        ),
    ] = None,
    direct_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The variable with the engines' key.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="gateway|direct", help="Measure one of the two and leave out the other.")
    ] = None,
    users: Annotated[str, typer.Option(metavar="N,N,...", help="Users at once.")] = USERS,
    requests: Annotated[
        int | None, typer.Option(min=1, help=f"Requests of each user; {_REQUESTS} if no duration is given.")
    ] = None,
    duration_s: Annotated[
        float | None, typer.Option(min=0.01, help="Instead of --requests: seconds for each target at each step.")
    ] = None,
    turns: Annotated[
        int, typer.Option(min=1, max=1000, help="Turns in which gateway and engine follow one another at each step.")
    ] = _TURNS,
    prompt_tokens: Annotated[str, typer.Option(metavar="N|LOW:HIGH", help="Drawn evenly from a range.")] = "512",
    output_tokens: Annotated[str, typer.Option(metavar="N|LOW:HIGH", help="Asked for as max_tokens.")] = "128",
    shared_prefix_tokens: Annotated[
        int, typer.Option(min=0, help="That all prompts begin with; otherwise no two begin alike.")
    ] = 0,
    seed: Annotated[
        int | None, typer.Option(help="For the same prompts again, which prefix caches may know; else at random.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Without: end-to-end latency only.")] = True,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="For one request, its whole answer included.")] = 600.0,
    extra: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='More fields for each request, such as {"ignore_eos": true} for vLLM.'),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw FILE.png and FILE.svg (needs matplotlib).")
    ] = None,
) -> None:
    """Measure a model at 1, 2, 4 ... 128 users: latencies and tokens per second, through the gateway and without it.

    Users are closed loops: each sends its next request when the last one is answered. Ctrl-C shows what is there.
    """
    # only now: this brings the measuring half with it, which no other command needs
    from .load import Plan  # noqa: PLC0415
    from .prompts import Prompts, parse_lengths  # noqa: PLC0415
    from .session import Output, run  # noqa: PLC0415
    from .targets import DIRECT, GATEWAY, direct_target, gateway_target  # noqa: PLC0415

    if requests is not None and duration_s is not None:
        raise Mistake("expected --requests or --duration-s, not both")
    if only not in (None, GATEWAY, DIRECT):
        raise Mistake(f"--only: expected gateway or direct, found {only!r}")
    with mistakes(ValueError):
        steps = parse_users(users)
        more = parse_extra(extra)
        prompt, output = parse_lengths(prompt_tokens), parse_lengths(output_tokens)
    each = None if duration_s is not None else requests or _REQUESTS
    config = read_config(config_file)
    targets = []
    if only != GATEWAY:
        engines = direct_target(
            config, config_file, state_dir, model=model, urls=direct or [], key_env=direct_key_env, local=url is None
        )
        if engines is not None:
            targets.append(engines)
        elif only == DIRECT:
            raise Mistake("no engine is known to be measured directly: name one with --direct URL")
        else:
            typer.echo("no engine is measured directly, since none is known here: --direct URL names one", err=True)
    if only != DIRECT:
        targets.append(gateway_target(config, url, key_env))
    plan = Plan(
        model=model,
        prompts=Prompts(
            seed=secrets.randbelow(2**31) if seed is None else seed,
            prompt=prompt,
            output=output,
            shared=shared_prefix_tokens,
        ),
        users=steps,
        requests=each,
        duration_s=duration_s,
        turns=turns if each is None else min(turns, each),
        stream=stream,
        timeout_s=timeout_s,
        extra=more,
    )
    if status := run(plan, targets, Output(json_file, plot_file)):
        raise typer.Exit(status)


def parse_users(text: str) -> tuple[int, ...]:
    """`1,2,4`. Raises `ValueError`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 10_000 for part in parts) or len(set(parts)) != len(parts):
        raise ValueError(f"--users: expected different numbers from 1 to 10000 such as {USERS}, found {text!r}")
    return tuple(int(part) for part in parts)


def parse_extra(text: str | None) -> dict[str, Any]:
    """A JSON object without the fields that make the experiment. Raises `ValueError`."""
    if text is None:
        return {}
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError(f'--extra: expected a JSON object such as {{"ignore_eos": true}}, found {text!r}')
    if taken := [name for name in _OURS if name in parsed]:
        raise ValueError(f"--extra: {taken[0]!r} is what other options say")
    return parsed
