"""A worker process, as `proxy.workers.supervisor` starts it."""

from __future__ import annotations

import sys

from proxy.database import database_of
from proxy.serving import Serving
from proxy.state import StateDir

from .messages import Start
from .worker import Services, run


def compose(start: Start, services: Services) -> Serving:
    """What answers, as in a gateway of one process; what decides is main's."""
    models = start.config.models
    return Serving(
        start.config,
        services.control,
        database_of(start.config, StateDir(start.state_dir)),
        state_dir=start.state_dir,
        places=lambda name: services.places.of(name, affinity=models[name].affinity),
        metrics=services.metrics,
        numbers=services.control.metrics,
        loopback_only=start.loopback_only,
        log=services.log,
        lines=services.lines,
        home=StateDir(start.state_dir).identity,
        boot=start.boot,
    )


if __name__ == "__main__":
    sys.exit(run(compose))
