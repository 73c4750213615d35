"""Podman, with root or without.

Read: podman-run(1), podman-rm(1), podman-ps(1) of 4.3, tried with 4.3.1 and runc.

- *Variables* by name alone (`--env NAME`): podman takes the value from its own environment.
- *Entry point*: `--entrypoint` is the engine's program, so that of the image is passed over.
- *User*: root inside is the user outside (or root, where podman runs as root), which is what images are made for.
- *GPUs* by CDI, by the numbers that Slurm gave (SLURM_JOB_GPUS), since a container may leave the job's cgroup. Inside
  they count from 0, so CUDA_VISIBLE_DEVICES stays outside. The node needs /etc/cdi/nvidia.yaml (`nvidia-ctk cdi
  generate`).
- *Log*: only what the agent reads; podman's default would copy all of it into the node's journal.
- *Pull*: what the node does not have yet is pulled.
- *Clean-up*: conmon leaves the job, so neither scancel nor KILL ends the container for sure. `podman run` passes TERM
  on; afterwards the agent removes the container by its name, and later agents what killed ones have left (on_node.py).

On a node whose hard limits are below podman's defaults its containers.conf needs `default_ulimits`; without systemd,
`cgroup_manager = "cgroupfs"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slurm_launcher.spec import ModelSpec

from .base import REFERENCE, SHARED_MEMORY, Leftovers, Runtime, Wrapped, binds_of, check, inside, uses_tmp

_SHAPE = rf"((docker|oci-archive|docker-archive|dir|oci):)?(//)?/?{REFERENCE}"
STOP_AFTER_S = 1
"""Between TERM and KILL, when the container is removed: by then its engine has had TERM and time of its own."""


def _check(spec: ModelSpec) -> None:
    check(spec, image="a reference such as docker.io/vllm/vllm-openai:v0.12.0", shape=_SHAPE)
    if spec.image and spec.image.startswith("/"):
        raise ValueError(f"image: {spec.image!r} is a file; podman takes it as oci-archive:{spec.image} or as dir:...")


def _around(argv: Sequence[str], environment: Mapping[str, str], spec: ModelSpec) -> Wrapped:
    variables = inside(environment)
    options = ["--rm", "--name={container}", "--label=slurmgate={uid}", "--pull=missing", "--network=host"]
    options += [f"--shm-size={SHARED_MEMORY}", "--security-opt=label=disable", "--log-driver=none"]
    options += [f"--stop-timeout={STOP_AFTER_S}", *(["--device=nvidia.com/gpu={gpu}"] if spec.resources.gpus else [])]
    for bind in binds_of(spec, uses_tmp=uses_tmp(argv, environment)):
        options.append(f"--volume={bind.source}:{bind.target}{':ro' if bind.read_only else ''}")
    options += [f"--env={name}" for name in sorted(variables)]
    return Wrapped(
        ["podman", "run", *options, f"--entrypoint={argv[0]}", str(spec.image), *argv[1:]],
        variables,
        container=Leftovers(
            list=["podman", "ps", "--all", "--filter=label=slurmgate={uid}", "--format={{.Names}}"],
            remove=["podman", "rm", "--force", "--ignore", "--volumes"],
        ),
    )


PODMAN = Runtime("podman", _check, _around)
