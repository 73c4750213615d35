"""enroot without pyxis: `enroot start` of a squashfs file, or of a container that the site has created.

Read: NVIDIA/enroot `enroot.in`, `src/runtime.sh`, `doc/cmd/start.md`, `doc/image-format.md`, `doc/standard-hooks.md`,
issues 55, 207, 258. Not run here: the tests assert the command line.

- *Variables* by name alone (`--env NAME`): enroot takes the value from its own environment, and writes it into a file
  on a tmpfs that only this user can read. A value is one line there. A variable that is not set becomes an empty one,
  which for CUDA_VISIBLE_DEVICES would mean "none": the command script takes it away again.
- *Entry point*: `--rc` names a command script that runs the engine in place of the image's /etc/rc.
- *User*: `--root` makes the user root inside, as images expect; `--rw` lets engines write their caches (of a squashfs
  file into memory).
- *GPUs*: enroot shows the node's /dev, so Slurm's cgroup and CUDA_VISIBLE_DEVICES hold; the driver comes with the hook
  that NVIDIA_VISIBLE_DEVICES switches on. The network and /dev/shm are the node's.
- *Clean-up*: none; there is no daemon, and the mounts go with the namespace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slurm_launcher.spec import ModelSpec

from .base import PATH, Runtime, Wrapped, binds_of, check, check_lines, inside

_RC = """[ -n "${CUDA_VISIBLE_DEVICES:-}" ] || unset CUDA_VISIBLE_DEVICES
exec "$@"
"""


def _check(spec: ModelSpec) -> None:
    image = "an absolute path of a squashfs file (`enroot import`), or the name of a container (`enroot create`)"
    check(spec, image=image, shape=rf"{PATH}|[A-Za-z0-9][A-Za-z0-9._+-]*")
    check_lines(spec)


def _around(argv: Sequence[str], environment: Mapping[str, str], spec: ModelSpec) -> Wrapped:
    gpus = spec.resources.gpus > 0
    variables = {"NVIDIA_VISIBLE_DEVICES": "all" if gpus else "void", **inside(environment)}
    options = ["--root", "--rw", "--rc", "{tmp}/rc"]
    for bind in binds_of(spec):
        flags = "x-create=auto,rbind,ro" if bind.read_only else "x-create=auto,rbind"
        options += ["--mount", f"{bind.source}:{bind.target}:none:{flags}"]
    for name in sorted({*variables, *(["CUDA_VISIBLE_DEVICES"] if gpus else [])}):
        options += ["--env", name]
    return Wrapped(["enroot", "start", *options, str(spec.image), *argv], variables, files={"{tmp}/rc": _RC})


ENROOT = Runtime("enroot", _check, _around)
