"""What a new configuration changes in a running gateway, and what has to wait for its next start. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Config

_AT_START = ("state_dir", "server", "database", "launcher", "observability", "files")
"""Sections that are read once: a socket, a database, the jobs' own address."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of models, and paths of sections.

    restart   sections that differ from what runs, and take effect at the next start
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    limits: bool = False
    restart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.limits)

    def sentence(self) -> str:
        """What was done, for an operator."""
        parts = [
            f"{word} {', '.join(names)}"
            for word, names in (("added", self.added), ("removed", self.removed), ("changed", self.changed))
            if names
        ]
        if self.limits:
            parts.append("changed limits")
        done = "; ".join(parts) or "nothing changed"
        if self.restart:
            done += f"; takes effect at the next start: {', '.join(self.restart)}"
        return done


def changes(running: Config, new: Config) -> Changes:
    """Of two configurations. Order of models is no difference."""
    before: dict[str, object] = {**running.models, **running.tribunals}
    after: dict[str, object] = {**new.models, **new.tribunals}
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name, model in after.items() if before.get(name, model) != model),
        limits=running.limits != new.limits,
        restart=tuple(_differing(running, new)),
    )


def _differing(running: Config, new: Config) -> list[str]:
    paths = []
    for section in _AT_START:
        before, after = getattr(running, section), getattr(new, section)
        if before == after:
            continue
        if section == "state_dir":
            paths.append(section)
        else:
            fields = type(before).model_fields
            paths += [f"{section}.{name}" for name in fields if getattr(before, name) != getattr(after, name)]
    return paths
