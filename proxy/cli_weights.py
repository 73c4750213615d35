"""The commands about models' weights: do they fit into GPUs, and bring them here. They need no gateway."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import ConfigOption, Mistake, mistakes, print_table, read_config, say

if TYPE_CHECKING:
    from slurm_launcher.fetching import Plan
    from slurm_launcher.fit import Verdict
    from slurm_launcher.model_shape import ModelShape
    from slurm_launcher.spec import ModelSpec
    from slurm_launcher.weights import Weights

ModelArgument = Annotated[
    str, typer.Argument(help="A model of the configuration, or what an engine loads: a path, a hub id.")
]
EngineOption = Annotated[str | None, typer.Option(help="For a model that the configuration does not have.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


def mount(app: typer.Typer) -> None:
    """Make these commands part of `slurmgate`."""
    for command in (fit, fetch):
        app.command()(command)


@dataclass(frozen=True, slots=True)
class Asked:
    """What to look at: `spec` where the configuration has it."""

    name: str
    source: str
    engine: str
    spec: ModelSpec | None


def asked(model: str, config_file: Path | None, engine: str | None) -> Asked:
    """Raises `Mistake`."""
    from slurm_launcher.engines import ENGINES

    config = read_config(config_file)
    if engine is not None and engine not in ENGINES:
        raise Mistake(f"no engine {engine!r}; known: {', '.join(sorted(ENGINES))}")
    if config is not None and model in config.models:
        spec = config.specs.get(model)
        if spec is None:
            raise Mistake(f"{model} is not launched here: it has no `source`")
        return Asked(model, spec.source, engine or spec.engine, spec)
    if config is not None and "/" not in model:
        raise Mistake(f"no model {model!r}; known: {', '.join(config.models)}")
    gguf = model.lower().endswith(".gguf") or re.search(r"GGUF(:|$)", model, re.IGNORECASE)
    return Asked(model, model, engine or ("llamacpp" if gguf else "vllm"), None)


# -- fit -------------------------------------------------------------------------------------------------------------


def fit(
    model: ModelArgument,
    config_file: ConfigOption = None,
    *,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens that a sequence shall be able to have.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="So many sequences of that length at once.")] = 1,
    gpus: Annotated[int | None, typer.Option(min=1, help="On each node.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1)] = None,
    gpu_type: Annotated[str | None, typer.Option(help="As in Slurm's GRES, such as h100 or a100_3g.20gb.")] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Of one GPU, such as 80G, where its type does not tell.")
    ] = None,
    engine: EngineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a model fits into its GPUs, with the numbers. Exit status 1 where it does not."""
    from slurm_launcher.engine_memory import rule_of
    from slurm_launcher.fit import fit as judge
    from slurm_launcher.gpus import gpu_of
    from slurm_launcher.spec import Resources

    from .config import parse_memory

    what = asked(model, config_file, engine)
    given = what.spec.resources if what.spec is not None else Resources()
    if gpu_type is not None:  # another type has another memory
        given = replace(given, gpu_type=gpu_type, gpu_memory_mb=0)
    if gpu_memory is not None:
        with mistakes(ValueError):
            given = replace(given, gpu_memory_mb=parse_memory(gpu_memory))
    if context is None and what.spec is not None:
        context = what.spec.context_length
    weights = weights_of(what)
    shape = weights.shape(what.name)
    gpu = gpu_of(given.gpu_type, given.gpu_memory_mb)
    if gpu is None and given.gpu_type:
        raise Mistake(
            f"nothing is known of a GPU {given.gpu_type!r}: say how much memory it has, as in --gpu-memory 80G"
        )
    verdict = judge(
        shape,
        gpu,
        gpus or given.gpus or 1,
        context,
        concurrency=concurrency,
        engine=rule_of(what.engine, what.spec.arguments if what.spec is not None else ()),
        nodes=nodes or given.nodes,
    )
    if as_json:
        say(json.dumps(as_dict(verdict, shape, weights, what.engine)))
    else:
        print_table((verdict.model, ""), list(rows(verdict, shape, weights, what.engine)), numbers=1)
        for note in verdict.notes:
            say(f"note: {note}")
        say(verdict.sentence)
    if verdict.kind not in ("fits", "unknown"):
        sys.exit(1)


def weights_of(what: Asked) -> Weights:
    """From this machine where it has them, else from the hub's metadata. Raises `Mistake`."""
    from slurm_launcher.weights import WeightsUnknown, found, from_hub, local

    spec = what.spec
    path = found(
        what.source,
        what.engine,
        environment=dict(spec.environment) if spec is not None else {},
        binds=spec.binds if spec is not None else (),
    )
    with mistakes(WeightsUnknown):
        if path is not None:
            return local(path)
        if what.source.startswith(("/", ".", "~")):
            raise Mistake(f"{what.source} is not there")
        from slurm_launcher.hub import HubError

        with mistakes(HubError):
            return from_hub(what.source, what.engine)


def rows(verdict: Verdict, shape: ModelShape, weights: Weights, engine: str) -> Iterator[tuple[str, str]]:
    from slurm_launcher.fit import gb
    from slurm_launcher.model_shape import quantization_of

    files = f"{weights.files} file{'' if weights.files == 1 else 's'}"
    yield f"weights, {files}{', ' + q if (q := quantization_of(weights.config)) else ''}", gb(weights.bytes)
    for dtype, size in shape.dtypes:
        yield f"  of them {dtype}", gb(size)
    if shape.weight_bytes != weights.bytes:
        yield "weights as loaded", gb(shape.weight_bytes)
    if shape.kv is None:
        yield "KV cache of a token", "unknown"
    elif verdict.kv_token_bytes:
        yield "KV cache of a token", f"{verdict.kv_token_bytes:,} B"
        wanted = f"{verdict.concurrency} x {verdict.context:,} tokens"
        yield f"KV cache wanted, {wanted}", gb(kv_wanted(verdict, shape))
    if verdict.gpu is None or not verdict.taken_bytes:
        return
    total = verdict.gpus * verdict.nodes
    yield f"memory of {total} x {verdict.gpu.name}", gb(total * verdict.gpu.memory_bytes)
    yield f"  taken by {engine}", gb(verdict.taken_bytes)
    yield "  to run it (assumed)", gb(verdict.overhead_bytes)
    yield "  left for the KV cache", gb(verdict.room_bytes)
    if verdict.kv_token_bytes and verdict.room_bytes > 0:
        yield f"sequences of {verdict.context:,} tokens at once", f"{verdict.sequences:,}"
        if verdict.kind != "fits":
            yield f"largest context for {verdict.concurrency}", f"{verdict.largest_context:,}"


def kv_wanted(verdict: Verdict, shape: ModelShape) -> float:
    """Bytes on all GPUs, by what a token costs there."""
    once = shape.kv_bytes_per_token() or 1
    return shape.kv_bytes(verdict.context) * verdict.concurrency * verdict.kv_token_bytes / once


def as_dict(verdict: Verdict, shape: ModelShape, weights: Weights, engine: str) -> dict[str, Any]:
    told = asdict(verdict)
    told["gpu"] = asdict(verdict.gpu) if verdict.gpu is not None else None
    return {
        **told,
        "engine": engine,
        "fits": {"fits": True, "unknown": None}.get(verdict.kind, False),
        "sentence": verdict.sentence,
        "file_bytes": weights.bytes,
        "dtypes": dict(shape.dtypes),
    }


# -- fetch -----------------------------------------------------------------------------------------------------------


def fetch(
    model: ModelArgument,
    config_file: ConfigOption = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="A directory that the nodes see; else the hub's cache.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit; else the newest.")] = None,
    engine: EngineOption = None,
) -> None:
    """Fetch a model's weights from the hub: what its engine needs, nothing twice. May be interrupted and repeated."""
    from slurm_launcher.fetching import CannotFetch, carry_out, prepare

    what = asked(model, config_file, engine)
    if what.source.startswith(("/", ".", "~")):
        raise Mistake(f"{what.source} is a path: there is nothing to fetch")
    with mistakes(CannotFetch):
        plan = prepare(what.source, what.engine, to, revision)
        left_out = len(plan.listed.sizes) - len(plan.files)
        sys.stderr.write(
            f"{plan.listed.repository}, commit {plan.listed.commit[:12]}: {len(plan.files)} files, "
            f"{plan.total / 1e9:.1f} GB ({left_out} that {what.engine} does not need are left out)\n"
        )
        with bar(plan) as progress:
            path = carry_out(plan, progress)
    say(str(path))
    sys.stderr.write(advice(what, path, plan))


@contextmanager
def bar(plan: Plan) -> Iterator[Any]:
    """On standard error, so that standard output holds the path alone."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("fetch", total=plan.total)
        yield lambda done: shown.update(task, completed=done)


def advice(what: Asked, path: Path, plan: Plan) -> str:
    """What to write into the configuration."""
    table = f'[models."{what.name if what.spec is not None else plan.listed.repository}"]'
    lines = [
        f"In the configuration:\n\n  {table}",
        f'  engine = "{what.engine}"',
        f"  source = {json.dumps(str(path))}",
    ]
    if plan.to is None:  # the snapshot is made of links into the rest of the repository's folder
        lines.append(f"  binds = [{json.dumps(f'{plan.folder}:{plan.folder}:ro')}]   # with a container runtime")
    else:
        lines.append(f"  binds = [{json.dumps(f'{plan.to}:{plan.to}:ro')}]   # with a container runtime")
    lines.append('  environment = { HF_HUB_OFFLINE = "1" }')
    return "\n".join(lines) + "\n"
