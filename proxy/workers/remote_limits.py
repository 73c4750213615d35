"""`proxy.limits.seam.Admission` in a worker: main counts, this asks. Who has no limits is let in without asking."""

from __future__ import annotations

import asyncio

from proxy.limits.local import FREE
from proxy.limits.seam import Headers, Pass
from proxy.principals import Allowance, Principal

from .link import Link
from .messages import headers_from, principal_to


class RemotePass:
    """A `Pass`: `number` is that of the question that was answered with it."""

    __slots__ = ("_link", "_number", "headers")

    def __init__(self, link: Link, number: int, headers: Headers) -> None:
        self.headers = headers
        self._link = link
        self._number = number

    def leave(self, tokens: int | None) -> None:
        number, self._number = self._number, 0
        if number:
            self._link.tell("left", number, tokens)


class RemoteLimits:
    """defaults   for keys that say nothing: where there are any, everybody is asked for"""

    def __init__(self, link: Link, defaults: Allowance) -> None:
        self._link = link
        self._named: dict[str, Principal] = {}
        self.configure(defaults)

    def configure(self, defaults: Allowance) -> None:
        """Other defaults from now on."""
        self._for_all = not defaults.unlimited

    def concerns(self, principal: Principal) -> bool:
        return principal.limited or self._for_all

    def enter(self, principal: Principal, model: str, tokens: int) -> Pass | None:
        return None if self.concerns(principal) else FREE

    async def ask(self, principal: Principal, model: str, tokens: int) -> Pass:
        link = self._link
        if self._named.get(principal.key_id) is not principal:
            self._named[principal.key_id] = principal
            link.tell("principal", principal_to(principal))
        number, answer = link.question("enter", principal.key_id, model, tokens)
        try:
            headers = await answer
        except asyncio.CancelledError:
            link.give_up(number)
            raise
        return RemotePass(link, number, headers_from(headers))
