"""Where slurmgate's time goes: py-spy samples it under the same load, once plain, once streamed."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from pathlib import Path

from .load import chat_request, measure
from .mock_engine import MODEL
from .peers import NotInstalled, Target, find
from .report import table

SECONDS = 8
_RATE = 500


def profile(target: Target, place: Path, *, connections: int, streams: int, events: int) -> None:
    """Print the functions with the most samples, and leave the stacks in `place` for a flame graph."""
    spy = find("py-spy")
    if spy is None:
        raise NotInstalled("py-spy: pip install py-spy into an environment on PATH")
    place.mkdir(parents=True, exist_ok=True)
    for word, stream in (("plain", False), ("streamed", True)):
        request = chat_request(MODEL, target.key, stream=stream)
        at_once = streams if stream else connections
        file = place / f"{word}.stacks"
        command = [spy, "record", "--pid", str(target.pid), "--duration", str(SECONDS), "--rate", str(_RATE)]
        command += ["--function", "--nonblocking", "--format", "raw", "--output", str(file)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as sampler:
            begun = time.perf_counter()
            while sampler.poll() is None and time.perf_counter() - begun < SECONDS + 2:
                count = at_once * (2 if stream else 20)
                measure(target.port, None, request, connections=at_once, requests=count, events=events if stream else 0)
            _, errors = sampler.communicate()
        if sampler.returncode or not file.exists():
            raise NotInstalled(f"py-spy could not sample: {errors.strip()}")
        print(f"\n{word}, {at_once} at once; stacks in {file}")
        print(most(file.read_text()))


def most(stacks: str, count: int = 45) -> str:
    """Functions by samples: alone, and with what they called. Idle samples are not in the stacks."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, number = line.rpartition(" ")
        frames = stack.split(";")
        alone[frames[-1]] += int(number)
        for frame in set(frames):
            within[frame] += int(number)
    total = sum(alone.values()) or 1
    rows = [["function", "alone %", "with callees %"]]
    rows += [
        [name, f"{samples / total * 100:.1f}", f"{within[name] / total * 100:.1f}"]
        for name, samples in alone.most_common(count)
    ]
    return table(rows)
