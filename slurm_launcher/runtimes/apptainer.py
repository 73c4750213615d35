"""Apptainer, and Singularity, which has the same options and another prefix for variables.

`exec` keeps the network, the process group, /dev (so /dev/shm is the node's), /tmp and the home directory of the job,
and passes over the image's runscript; the user inside is the user outside. Variables named `APPTAINERENV_X` become `X`
inside, over the image's own (Apptainer user guide, "Environment and Metadata"). `--nv` brings the driver; which GPUs
are seen is what Slurm's cgroup and CUDA_VISIBLE_DEVICES say, since both hold inside. Nothing is left behind: no daemon,
no conmon.

An image is a SIF file or a directory on a shared file system, or a reference that each node pulls into its own cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slurm_launcher.spec import ModelSpec

from .base import PATH, REFERENCE, Runtime, Wrapped, binds_of, check, inside, uses_tmp

_SHAPE = rf"{PATH}|(docker|oras|library|shub|https?)://{REFERENCE}|docker-daemon:{REFERENCE}"


def _check(spec: ModelSpec) -> None:
    check(
        spec, image="an absolute path of a SIF file or a directory, or a reference such as docker://...", shape=_SHAPE
    )


def _runtime(program: str, prefix: str) -> Runtime:
    def around(argv: Sequence[str], environment: Mapping[str, str], spec: ModelSpec) -> Wrapped:
        options = ["--nv"] if spec.resources.gpus else []
        for bind in binds_of(spec, uses_tmp=uses_tmp(argv, environment)):
            place = bind.source if bind.target == bind.source else f"{bind.source}:{bind.target}"
            options += ["--bind", f"{bind.source}:{bind.target}:ro" if bind.read_only else place]
        variables = {prefix + name: value for name, value in inside(environment).items()}
        return Wrapped([program, "exec", *options, str(spec.image), *argv], variables)

    return Runtime(program, _check, around)


APPTAINER = _runtime("apptainer", "APPTAINERENV_")
SINGULARITY = _runtime("singularity", "SINGULARITYENV_")
