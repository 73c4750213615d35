"""Public model names -> backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from backends.base import Backend
from backends.errors import NotFound


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that is served.

    created          when this gateway took it up, in seconds since the epoch
    context_length   gives it in tokens, None where neither the configuration nor the engine says
    state            gives "ready", "starting" or "unavailable"
    """

    name: str
    backend: Backend
    created: int
    context_length: Callable[[], int | None] = lambda: None
    state: Callable[[], str] = lambda: "ready"

    def card(self) -> dict[str, object]:
        """The model as `/v1/models` shows it: OpenAI's fields, vLLM's `max_model_len`, and our `state`."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "slurmgate",
            "max_model_len": self.context_length(),
            "state": self.state(),
        }


class Registry:
    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries: Mapping[str, Entry] = {entry.name: entry for entry in entries}

    def replace(self, entries: Iterable[Entry]) -> None:
        """Other models from now on; who has found one keeps it."""
        self._entries = {entry.name: entry for entry in entries}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def find(self, name: str) -> Entry:
        """The model of that name. Raises `NotFound` as OpenAI does."""
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(
                f"The model '{name[:200]}' does not exist or you do not have access to it.",
                param="model",
                code="model_not_found",
            )
        return entry
