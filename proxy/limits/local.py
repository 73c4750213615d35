"""Who decides, in this process: keeps the owners that something is to be remembered of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from backends.errors import Unavailable
from proxy.principals import Allowance, Principal

from .buckets import Kind
from .owners import UNKNOWN_S, Owner, Plan, effective
from .refusals import refused
from .seam import Headers

Spent = Callable[[Kind, str, str], int]
"""(key or project, its id, a day such as `2026-11-22`) -> the tokens that it used from that day on, of UTC."""

SWEEP_S = 60.0
_DAY_S = 86400


class LocalPass:
    """A `Pass` of `Limits`; without a plan it counts for nothing."""

    __slots__ = ("_begun", "_limits", "_plan", "_tokens", "headers")

    def __init__(
        self, limits: Limits | None = None, plan: Plan | None = None, tokens: int = 0, begun: float = 0.0
    ) -> None:
        self._limits = limits
        self._plan = plan
        self._tokens = tokens
        self._begun = begun
        self.headers: Headers = plan.headers() if plan is not None else ()

    def leave(self, tokens: int | None) -> None:
        plan, self._plan = self._plan, None
        if plan is not None and self._limits is not None:
            self._limits.leave(plan, self._tokens, self._tokens if tokens is None else tokens, self._begun)


FREE = LocalPass()
"""For who has no limits."""


class Limits:
    """The `Admission` protocol.

    defaults    for keys that say nothing, nor their projects
    spent       what was used before this process began: asked once for each budget, in a thread
    clock       seconds, for minutes
    wall        seconds since the epoch, for days and months
    in_flight   passes that have not come back
    """

    def __init__(
        self,
        defaults: Allowance | None = None,
        *,
        spent: Spent = lambda kind, id, since: 0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.in_flight = 0
        self._spent = spent
        self._clock = clock
        self._wall = wall
        self._keys: dict[str, Owner] = {}
        self._projects: dict[str, Owner] = {}
        self._sweep_at = clock() + SWEEP_S
        self._turn_page(wall())
        self.configure(defaults or Allowance())

    def configure(self, defaults: Allowance) -> None:
        """Other defaults from now on."""
        self._defaults = defaults
        self._for_all = not defaults.unlimited
        self._plans: dict[str, Plan] = {}

    @property
    def remembered(self) -> int:
        """Keys and projects of which something is remembered."""
        return len(self._keys) + len(self._projects)

    def concerns(self, principal: Principal) -> bool:
        return principal.limited or self._for_all

    def enter(self, principal: Principal, model: str, tokens: int) -> LocalPass | None:
        if not (principal.limited or self._for_all):
            return FREE
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep(now)
        plan = self._plans.get(principal.key_id)
        if plan is None or plan.principal is not principal:
            plan = self._plan(principal, now)
        if plan.budgets and not self._up_to_date(plan):
            return None
        if not plan.fits(tokens, now):
            wall = self._wall()
            against = [refusal for owner in plan.owners for refusal in owner.refusals(tokens, now, wall)]
            raise refused(against, model, plan.headers())
        plan.take(tokens)
        self.in_flight += 1
        return LocalPass(self, plan, tokens, now)

    async def ask(self, principal: Principal, model: str, tokens: int) -> LocalPass:
        while (granted := self.enter(principal, model, tokens)) is None:
            await self._learn(self._plans[principal.key_id])
        return granted

    def leave(self, plan: Plan, taken: int, used: int, begun: float) -> None:
        """A pass has come back."""
        now = self._clock()
        if plan.budgets:
            self._up_to_date(plan)
        plan.settle(taken, used, now, now - begun)
        self.in_flight -= 1

    # -- inside -------------------------------------------------------------------------------------------------------

    def _plan(self, principal: Principal, now: float) -> Plan:
        """What counts for a principal; whoever has limits in it goes by these from now on."""
        own, project = effective(principal, self._defaults)
        key_id, project_id = principal.key_id, principal.project_id
        owners = []
        if not own.unlimited:
            owner = self._keys.get(key_id)
            if owner is None:
                owner = self._keys[key_id] = Owner("key", key_id)
            owner.configure(own, now, self._day, self._month)
            owners.append(owner)
        if not project.unlimited:
            owner = self._projects.get(project_id)
            if owner is None:
                owner = self._projects[project_id] = Owner("project", project_id)
            owner.configure(project, now, self._day, self._month)
            owners.append(owner)
        plan = self._plans[key_id] = Plan(principal, tuple(owners))
        return plan

    def _up_to_date(self, plan: Plan) -> bool:
        """Bring a plan's budgets to today. False if what was used of one is still to be learnt."""
        wall = self._wall()
        if wall >= self._day_ends:
            self._turn_page(wall)
        return plan.as_of == self._day or plan.bring_to(self._day, self._month)

    async def _learn(self, plan: Plan) -> None:
        """Ask what was used of its budgets. Raises `Unavailable`: without knowing, nobody can be let in."""
        for budget in plan.budgets:
            if budget.known:
                continue
            period = budget.period
            try:
                used = await asyncio.to_thread(self._spent, budget.kind, budget.owner, budget.first_day)
            except SQLAlchemyError as error:
                why = "What was used of the budget so far cannot be read just now."
                raise Unavailable(why, retry_after_s=UNKNOWN_S) from error
            if period == budget.period:
                budget.learn(used)

    def _turn_page(self, wall: float) -> None:
        today = time.gmtime(wall)
        self._day = time.strftime("%Y-%m-%d", today)
        self._month = time.strftime("%Y-%m", today)
        self._day_ends = (wall // _DAY_S + 1) * _DAY_S

    def _sweep(self, now: float) -> None:
        """Forget owners of whom there is nothing to remember, and the plans that they are in."""
        self._sweep_at = now + SWEEP_S
        wall = self._wall()
        if wall >= self._day_ends:
            self._turn_page(wall)
        gone = set()
        for owners in (self._keys, self._projects):
            for id, owner in list(owners.items()):
                for budget in owner.budgets:
                    budget.turn_to(self._day if budget.daily else self._month)
                if owner.idle(now):
                    gone.add(owner)
                    del owners[id]
        self._plans = {id: plan for id, plan in self._plans.items() if gone.isdisjoint(plan.owners)}
