"""Docker, where a site lets its users talk to the daemon (which makes them root on that node).

Read: docs.docker.com, "docker container run", "docker container rm"; docker/cli opts/gpus.go. Not run here: the tests
assert the command line.

- *Variables* by name alone (`--env NAME`): the client takes the value from its own environment.
- *Entry point*: `--entrypoint` is the engine's program, so that of the image is passed over.
- *User*: the daemon is root, so the container is told who the user is; a home directory of such a user exists in no
  image, so HOME is /tmp, and tools that look for a name of the user find USER.
- *GPUs* by the numbers that Slurm gave: the container is not in the job's cgroup. Inside they count from 0, so
  CUDA_VISIBLE_DEVICES stays outside. The quotes keep the comma from being read as one between fields.
- *Clean-up*: the container belongs to the daemon, not to the job. `docker run` passes TERM on; afterwards the agent
  removes the container by its name, and later agents what killed ones have left (on_node.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slurm_launcher.spec import ModelSpec

from .base import REFERENCE, SHARED_MEMORY, Leftovers, Runtime, Wrapped, binds_of, check, inside, uses_tmp


def _check(spec: ModelSpec) -> None:
    check(spec, image="a reference such as vllm/vllm-openai:v0.12.0", shape=REFERENCE)


def _around(argv: Sequence[str], environment: Mapping[str, str], spec: ModelSpec) -> Wrapped:
    variables = inside(environment)
    options = ["--rm", "--name={container}", "--label=slurmgate={uid}", "--pull=missing", "--network=host"]
    options += [f"--shm-size={SHARED_MEMORY}", "--log-driver=none", "--user={uid}:{gid}"]
    if spec.resources.gpus:
        options.append('--gpus="device={gpus}"')
    for bind in binds_of(spec, uses_tmp=uses_tmp(argv, environment)):
        options.append(f"--volume={bind.source}:{bind.target}{':ro' if bind.read_only else ''}")
    options += [] if "HOME" in variables else ["--env=HOME=/tmp"]
    options += [f"--env={name}" for name in sorted({*variables, "USER"})]
    return Wrapped(
        ["docker", "run", *options, f"--entrypoint={argv[0]}", str(spec.image), *argv[1:]],
        variables,
        container=Leftovers(
            list=["docker", "ps", "--all", "--filter=label=slurmgate={uid}", "--format={{.Names}}"],
            remove=["docker", "rm", "--force", "--volumes"],
        ),
    )


DOCKER = Runtime("docker", _check, _around)
