"""Public model names -> backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from backends.base import Backend
from backends.errors import NotFound

from .principals import ANYBODY, Principal


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that is served.

    created          when this gateway took it up, in seconds since the epoch
    context_length   gives it in tokens, None where neither the configuration nor the engine says
    state            gives "ready", "starting", "idle" (at zero: its first request starts it) or "unavailable"
    aliases          other names that clients may ask by; answers and accounts have `name`
    calls            of other models that one answer is expected to take; 1 for a model that answers by itself
    """

    name: str
    backend: Backend
    created: int
    context_length: Callable[[], int | None] = lambda: None
    state: Callable[[], str] = lambda: "ready"
    aliases: tuple[str, ...] = ()
    calls: int = 1

    def card(self, id: str = "") -> dict[str, object]:
        """The model as `/v1/models` shows it: OpenAI's fields, vLLM's `max_model_len`, and our `state`.

        An alias has a card of its own; `root`, as vLLM calls it, then is the model's name.
        """
        card: dict[str, object] = {
            "id": id or self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "slurmgate",
            "max_model_len": self.context_length(),
            "state": self.state(),
        }
        if id and id != self.name:
            card["root"] = self.name
        return card


class Registry:
    def __init__(self, entries: Iterable[Entry]) -> None:
        self.replace(entries)

    def replace(self, entries: Iterable[Entry]) -> None:
        """Other models from now on; who has found one keeps it."""
        by_name = {}
        for entry in entries:
            for name in (entry.name, *entry.aliases):
                by_name[name] = entry
        self._entries: Mapping[str, Entry] = by_name

    def find(self, name: str, principal: Principal = ANYBODY) -> Entry:
        """The model of that name or alias. Raises `NotFound` as OpenAI does, also for one that the key may not use."""
        entry = self._entries.get(name)
        if entry is None or not (principal.models is None or _allowed(name, entry, principal.models)):
            raise NotFound(
                f"The model '{name[:200]}' does not exist or you do not have access to it.",
                param="model",
                code="model_not_found",
            )
        return entry

    def cards(self, principal: Principal = ANYBODY) -> Iterator[dict[str, object]]:
        """Every name that the key may ask by."""
        for name, entry in self._entries.items():
            if principal.models is None or _allowed(name, entry, principal.models):
                yield entry.card(name)


def _allowed(name: str, entry: Entry, models: frozenset[str]) -> bool:
    """A key that may use a model may ask for it by any name; one that may use an alias, by that alone."""
    return name in models or entry.name in models
