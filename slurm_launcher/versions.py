"""What the Slurm of a site can do: its version, and which options its commands do not know. Pure.

What is missing is learnt from a refusal and not from a version: sites wrap commands, and distributions patch them. An
option that was refused once is not used again, where there is another way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

OLDEST = (21, 8)
NEWEST = (26, 5)
"""Releases whose output the parsers are tested with."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Slurm's `22.05.8` is (22, 5, 8)."""

    major: int
    minor: int
    micro: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor:02}.{self.micro}"

    @property
    def release(self) -> tuple[int, int]:
        return self.major, self.minor


def parse_version(text: str) -> Version | None:
    """Of `sbatch --version`: `slurm 24.11.5`, Debian's `slurm-wlm 22.05.8`, `slurm 25.11.0-0rc1`; None for none."""
    match = re.search(r"^slurm\S* (\d+)\.(\d+)(?:\.(\d+))?", text, re.MULTILINE)
    return Version(int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


INSTEAD: Mapping[str, tuple[str, ...]] = {
    "--me": ("--user={uid}",),  # squeue has it since 20.02
    "--duplicates": (),  # of a requeued job only the last life is shown then, which is the one that counts
    "--allocations": (),  # steps are shown too; their ids are no job's
    "--oneliner": (),  # records of several lines are read as well
}
"""Options that a command may not know -> what to say in their place."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What has been learnt so far. `lacking`: pairs of a command and an option that it has refused."""

    lacking: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    def argv(self, argv: Sequence[str], uid: int) -> list[str]:
        """The command, said in a way that is understood here."""
        said: list[str] = []
        for word in argv:
            instead = INSTEAD.get(word) if (argv[0], word) in self.lacking else None
            said += [word] if instead is None else [text.format(uid=uid) for text in instead]
        return said

    def without(self, command: str, option: str) -> Capabilities:
        return replace(self, lacking=self.lacking | {(command, option)})

    def can_do_without(self, command: str, option: str) -> bool:
        """There is another way, and it has not been taken yet."""
        return option in INSTEAD and (command, option) not in self.lacking


_REFUSED = re.compile(
    r"(?:unrecognized|unknown|invalid|illegal) option:?\s+(?:--\s+)?[`'\"]?(?P<option>-{0,2}[A-Za-z][\w-]*)",
    re.IGNORECASE,
)


def refused_option(stderr: str) -> str | None:
    """The option that a command says it does not know, such as `--me`; None where it says nothing of the kind.

    getopt's words: `unrecognized option '--me'` (glibc), the same with another quote (older), `unrecognized option: me`
    (musl).
    """
    match = _REFUSED.search(stderr)
    return f"--{match['option'].lstrip('-')}" if match else None
