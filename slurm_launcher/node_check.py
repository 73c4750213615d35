"""Runs on a compute node, for `slurmgate doctor --from-node`: what an engine and its agent would meet there.

Only the standard library, Python 3.6 and newer, ASCII: it is carried inside a batch script, as agent.py is. Above it
stands `ASKED`, a dict:

    url, path, expect    the gateway, what to ask it for, and what must be in the answer
    readable, writable   paths
    programs             names or paths
    options              pairs: a program, and an option that its --help must tell of

It prints one line, `MARK` and a JSON object. Nothing that it finds is an error of its own.
"""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit

MARK = "SLURMGATE-NODE-CHECK "
CONNECT_TIMEOUT_S = 10.0


def network(asked: "dict[str, Any]") -> "dict[str, Any]":
    """Name, connection and answer, each told apart: another person mends each of them."""
    found = {"addresses": [], "failed_at": None, "why": ""}  # type: dict[str, Any]
    parts = urlsplit(asked["url"])
    try:
        found["addresses"] = sorted({info[4][0] for info in socket.getaddrinfo(parts.hostname, parts.port or 80)})
    except (OSError, UnicodeError) as error:
        return dict(found, failed_at="name", why=str(error))
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=CONNECT_TIMEOUT_S)
    begun = time.time()
    try:
        connection.connect()
    except OSError as error:
        return dict(found, failed_at="connection", why=str(error) or type(error).__name__)
    try:
        connection.request("GET", asked["path"])
        reply = connection.getresponse()
        text = reply.read(65536).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return dict(found, failed_at="answer", why=str(error) or type(error).__name__)
    finally:
        connection.close()
    found["took_s"] = time.time() - begun
    if asked["expect"] not in text:
        return dict(found, failed_at="identity", why="HTTP " + str(reply.status))
    return found


def tells_of(program: str, option: str) -> bool:
    try:
        done = subprocess.run(
            [program, "--help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return option.encode() in done.stdout


def found_on(asked: "dict[str, Any]") -> "dict[str, Any]":
    return {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "end_time_known": "SLURM_JOB_END_TIME" in os.environ,
        "python": list(sys.version_info[:3]),
        "at": time.time(),
        "network": network(asked),
        "readable": {path: os.access(path, os.R_OK) for path in asked["readable"]},
        "writable": {path: os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK) for path in asked["writable"]},
        "programs": {program: shutil.which(program) or "" for program in asked["programs"]},
        "options": [[program, option, tells_of(program, option)] for program, option in asked["options"]],
    }


def main(asked: "dict[str, Any]") -> None:
    sys.stdout.write(MARK + json.dumps(found_on(asked)) + "\n")
    sys.stdout.flush()
