"""Charliecloud: `ch-run` of an image directory, a squashfs file, or an image in ch-image's storage.

Read: ch-run(1) and ch-fromhost(1) of 0.31, where it is run in the tests.

- *Variables*: inherited. `--set-env` puts the image's own (its Dockerfile's ENV: PATH and the like) over them, and then
  a file with the engine's over those: only this user can read it, and it is one line a variable.
- *Entry point*: there is none; a command is run as it is. *User*: the user outside.
- *Writable places*: the image is read-only, so HOME is the private directory unless the model says where; /tmp is the
  node's (ch-run would take TMPDIR's directory for it, so that is set, too).
- *Binds*: a target has to exist in the image (/mnt/0 to /mnt/9 do, in most), and read-only ones there are none of.
- *GPUs*: /dev is the node's, so Slurm's cgroup and CUDA_VISIBLE_DEVICES hold; the driver's libraries have to be put
  into the image once, by `ch-fromhost --nvidia`. The network and /dev/shm are the node's.
- *Clean-up*: none; there is no daemon, and every process stays one of the job's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slurm_launcher.spec import ModelSpec

from .base import PATH, REFERENCE, Runtime, Wrapped, binds_of, check, check_lines, inside


def _check(spec: ModelSpec) -> None:
    image = "an absolute path of a directory or a squashfs file, or the name that `ch-image pull` gave it"
    check(spec, image=image, shape=rf"{PATH}|{REFERENCE}", without_ro=True)
    check_lines(spec)


def _around(argv: Sequence[str], environment: Mapping[str, str], spec: ModelSpec) -> Wrapped:
    variables = {"HOME": "{tmp}", "TMPDIR": "/tmp", **inside(environment)}  # noqa: S108  # the container's own
    options = ["--env-no-expand", "--set-env", "--set-env={tmp}/environment-{rank}"]
    options += [f"--bind={bind.source}:{bind.target}" for bind in binds_of(spec, uses_tmp=False)]
    lines = "".join(f"{name}={value}\n" for name, value in sorted(variables.items()))
    return Wrapped(
        ["ch-run", *options, str(spec.image), "--", *argv], variables, files={"{tmp}/environment-{rank}": lines}
    )


CHARLIECLOUD = Runtime("charliecloud", _check, _around)
