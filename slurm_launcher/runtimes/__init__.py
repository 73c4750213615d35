"""Container runtimes: what is put around an engine's command line and environment. Pure, one small file each.

    RUNTIMES[spec.runtime].wrap(argv, environment, spec) -> Wrapped      base.py has the contract

What each of them keeps to:

- values of the environment stay out of argv, which every user of a node can read: names there, values inherited, or in
  a file of mode 0600;
- the network is the node's own, since the port was chosen there;
- the engine sees the model's binds, its weights (a `source` that is a path; read-only where the runtime can) and the
  agent's private directory; and the GPUs that Slurm gave, no others;
- the image's entry point is passed over: the command line is the engine's;
- TERM reaches the engine; and where a container could outlive the job, the commands that list and remove it are told
  to the agent (`Wrapped.container`).
"""

from __future__ import annotations

from .apptainer import APPTAINER, SINGULARITY
from .base import Bind, Leftovers, Runtime, Wrapped, parse_bind
from .charliecloud import CHARLIECLOUD
from .docker import DOCKER
from .enroot import ENROOT
from .none import NONE
from .podman import PODMAN
from .pyxis import PYXIS

__all__ = ["RUNTIMES", "Bind", "Leftovers", "Runtime", "Wrapped", "parse_bind"]

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime for runtime in (NONE, APPTAINER, SINGULARITY, PODMAN, ENROOT, PYXIS, CHARLIECLOUD, DOCKER)
}
