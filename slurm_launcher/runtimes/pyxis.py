"""pyxis, NVIDIA's plugin for Slurm: the container is an option of srun, and the engine is a step in the job.

Read: NVIDIA/pyxis `args.c`, `README.md`, the wiki's "Usage". Not run here: the tests assert the command line.

- *Variables*: srun hands on its environment, and the image's own values win; PYXIS_CONTAINER_ENV names those that win
  over the image's. It is a variable and not an option, so that releases that do not know it yet go on without.
- *Entry point*: `--no-container-entrypoint`. *User*: `--container-remap-root`, as images expect.
- *GPUs*: the step has the job's; NVIDIA_VISIBLE_DEVICES switches the driver's hook on. The network and /dev/shm are
  the node's.
- *Clean-up*: Slurm ends the step with the job, and pyxis removes a container without a name with its step.

Over several nodes the image needs a `python3`, which looks after the engine on each node (on_node.py), and the private
directory is one inside the container.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slurm_launcher.spec import ModelSpec

from .base import PATH, REFERENCE, Runtime, Wrapped, binds_of, check, inside, uses_tmp

_SHAPE = rf"{PATH}|(dockerd?://)?([A-Za-z0-9$._-]+@)?([a-zA-Z0-9.:-]+#)?{REFERENCE}"


def _check(spec: ModelSpec) -> None:
    check(spec, image="an absolute path of a squashfs file, or [REGISTRY#]IMAGE[:TAG]", shape=_SHAPE)
    if spec.resources.nodes > 1 and spec.local_copy is not None:
        raise ValueError("local_copy: with pyxis over several nodes, containers start before there is a copy to mount")


def _around(argv: Sequence[str], environment: Mapping[str, str], spec: ModelSpec) -> Wrapped:
    visible = "all" if spec.resources.gpus else "void"
    variables = {"NVIDIA_VISIBLE_DEVICES": visible, **inside(environment)}
    shown = uses_tmp(argv, environment) and spec.resources.nodes == 1
    mounts = [
        f"{bind.source}:{bind.target}{':ro' if bind.read_only else ''}" for bind in binds_of(spec, uses_tmp=shown)
    ]
    options = [f"--container-image={spec.image}", *([f"--container-mounts={','.join(mounts)}"] if mounts else [])]
    options += ["--container-writable", "--container-remap-root", "--no-container-entrypoint"]
    named = {**variables, "PYXIS_CONTAINER_ENV": ",".join(sorted(variables))}
    return Wrapped(list(argv), named, step=tuple(options))


PYXIS = Runtime("pyxis", _check, _around)
