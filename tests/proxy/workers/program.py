"""A gateway of several processes as a program.

    python -m tests.proxy.workers.program CONFIG STATE_DIR PORT [COMMAND ...]

COMMAND starts a worker, the real one by default. One line on standard output says that all workers serve.
"""

# ruff: noqa: T201

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from proxy import operator_socket
from proxy.config import load
from proxy.database import open_database
from proxy.state import StateDir
from proxy.workers.gateway import WorkersGateway
from proxy.workers.lines import configure_shared
from proxy.workers.sockets import listen
from proxy.workers.supervisor import COMMAND, WorkersKeepDying


async def main(config_file: str, state_dir: str, port: str, *command: str) -> int:
    config = load(Path(config_file))
    state = StateDir(Path(state_dir))
    state.lock()
    log, lines = configure_shared(state.path)
    database = open_database(state.database)
    gateway = WorkersGateway(
        config,
        state,
        database,
        gateway_url=f"http://127.0.0.1:{port}",
        loopback_only=True,
        listeners=listen("127.0.0.1", int(port), config.server.workers),
        operators=operator_socket.listen(state.operator_socket),
        log=log,
        lines=lines,
        reread=lambda: load(Path(config_file)),
        command=command or COMMAND,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, gateway.end)
    await gateway.start()
    greeting = asyncio.create_task(greet(gateway), name="greeting")
    try:
        await gateway.serve()
    except WorkersKeepDying as error:
        print(f"slurmgate: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        greeting.cancel()
        await gateway.stop(stop_replicas=False)
        database.dispose()
        state.unlock()
    return 0


async def greet(gateway: WorkersGateway) -> None:
    await gateway.workers.all_ready()
    print("ready", *(worker.pid for worker in gateway.workers.workers), flush=True)


if __name__ == "__main__":
    sys.exit(asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main(*sys.argv[1:])))
