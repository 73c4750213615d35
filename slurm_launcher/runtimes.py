"""Container runtimes: what is put around an engine's argv and environment. Pure.

A runtime is a function `(argv, environment, spec) -> (argv, environment)` in `RUNTIMES`. What it must keep: values of
the environment stay out of argv, which every user of a node can read; a signal to the process group reaches the engine;
and the network is the node's own, since the port was chosen there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .spec import ModelSpec

Wrapped = tuple[list[str], dict[str, str]]
Runtime = Callable[[Sequence[str], Mapping[str, str], ModelSpec], Wrapped]


def _none(argv: Sequence[str], environment: Mapping[str, str], spec: ModelSpec) -> Wrapped:
    """The engine as a plain process."""
    return list(argv), dict(environment)


def _apptainer(program: str, prefix: str) -> Runtime:
    """`apptainer exec`, which keeps the network, the process group, /tmp and the home directory of the job.

    Variables named `APPTAINERENV_X` become `X` inside (Apptainer user guide, "Environment and Metadata"). Singularity
    has the same options and another prefix. PYTHONNOUSERSITE: the home directory is mounted, and the Python in the
    image must not pick up packages that the user once installed in ~/.local for another one.
    """

    def wrap(argv: Sequence[str], environment: Mapping[str, str], spec: ModelSpec) -> Wrapped:
        if not spec.image:
            raise ValueError(f"model {spec.name}: runtime {program} needs an image")
        options = ["--nv"] if spec.resources.gpus else []
        for bind in spec.binds:
            options += ["--bind", bind]
        inside = {"PYTHONNOUSERSITE": "1", **environment}
        return [program, "exec", *options, spec.image, *argv], {prefix + name: inside[name] for name in inside}

    return wrap


RUNTIMES: dict[str, Runtime] = {
    "none": _none,
    "apptainer": _apptainer("apptainer", "APPTAINERENV_"),
    "singularity": _apptainer("singularity", "SINGULARITYENV_"),
}
