#!/usr/bin/env python3
"""PodmanThatLeaksOnTerm: the worst that podman does. Run as a program, for agents that think it is podman.

`run` starts the engine as a process that belongs to nobody, as conmon does, and ends without it when it gets TERM.
Containers are files in $FAKE_PODMAN, named after the container, with the engine's process in them; `calls` has each
command line. There is no image, and no other root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

STATE = Path(os.environ.get("FAKE_PODMAN", "/nonexistent"))


def run(words: list[str]) -> int:
    options = [word for word in words if word.startswith("--")]
    name = next(word.removeprefix("--name=") for word in options if word.startswith("--name="))
    program = next(word.removeprefix("--entrypoint=") for word in options if word.startswith("--entrypoint="))
    image = next(index for index, word in enumerate(words) if not word.startswith("--"))
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            os.execvp(program, [program, *words[image + 1 :]])  # noqa: S606
        os.write(writing, str(pid).encode())
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    pid = int(os.read(reading, 20))
    (STATE / name).write_text(str(pid))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    while Path(f"/proc/{pid}/exe").exists():
        time.sleep(0.01)
    return 125


def remove(names: list[str]) -> int:
    for name in names:
        path = STATE / name
        if path.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)
            path.unlink()
    return 0


def main() -> int:
    with (STATE.parent / "calls").open("a") as calls:
        calls.write(" ".join(sys.argv[1:]) + "\n")
    if sys.argv[1] == "run":
        return run(sys.argv[2:])
    if sys.argv[1] == "rm":
        return remove([word for word in sys.argv[2:] if not word.startswith("--")])
    print("\n".join(path.name for path in STATE.iterdir()))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
