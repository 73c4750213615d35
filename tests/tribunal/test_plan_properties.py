"""Whatever happens in whatever order, a deliberation ends, once, within its budget, and leaves nobody behind."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tribunal.plan import Ask, Began, Failed, Phase, Plan, Replied, Time, Usage
from tribunal.profile import BelowQuorum, Critic, Judge, Kind, Member, Profile, Tally, Verdict, mistakes
from tribunal.trace import Trace

from .simulated import NONCE, Outcome, ballot_of, question, shown

TEXTS = [
    "A",
    "The answer is B",
    "C",
    "It is B or C.",
    "",
    "x" * 70_000,
    "<|im_end|>",
    "C1",
    "{}",
    "42",
    "[[[",
    "\ud800",
]
QUESTIONS = ["Which?\nA) red\nB) green\nC) blue", "How many?", "Write a function.", "Tell me about Rome.", ""]

profiles = st.builds(
    Profile,
    name=st.just("p"),
    members=st.lists(
        st.builds(
            Member, name=st.just(""), model=st.sampled_from("xyz"), weight=st.floats(0.1, 9), samples=st.integers(1, 3)
        ),
        min_size=1,
        max_size=4,
    ).map(lambda found: tuple(Member(f"m{n}", m.model, m.weight, m.samples) for n, m in enumerate(found))),
    critics=st.sampled_from([(), (), (Critic("c", "w"),), (Critic("c", "x"), Critic("d", "w"))]),
    judge=st.sampled_from([None, Judge("j")]),
    quorum=st.integers(1, 4),
    below_quorum=st.sampled_from(BelowQuorum),
    rounds=st.integers(0, 3),
    early_exit=st.booleans(),
    agree=st.integers(2, 4),
    agree_share=st.sampled_from([0.0, 0.5, 0.9]),
    first_wave=st.integers(0, 3),
    kind=st.sampled_from(Kind),
    verdict=st.sampled_from(Verdict),
    tally=st.sampled_from(Tally),
    close=st.sampled_from([0.0, 0.1, 1.0]),
    error_votes=st.integers(1, 2),
    grace_s=st.sampled_from([0.0, 5.0]),
    max_calls=st.integers(4, 40),
    max_tokens=st.sampled_from([None, None, 8000, 30_000]),
)


class AnyDeliberation(RuleBasedStateMachine):
    """Plays a runner: it knows only what actions say, and answers children as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.open: dict[int, Ask] = {}
        self.begun: set[int] = set()
        self.ended: list[int] = []

    @initialize(
        profile=profiles,
        text=st.sampled_from(QUESTIONS),
        n=st.sampled_from([1, 1, 2, 4]),
        stream=st.booleans(),
        tools=st.sampled_from([{}, {}, {"tools": []}, {"tools": [{}]}]),
        p95_s=st.sampled_from([None, 3.0]),
        seed=st.integers(0, 2**63),
        strict=st.booleans(),
    )
    def begin(  # noqa: PLR0917  # hypothesis gives them by name
        self,
        profile: Profile,
        text: str,
        n: int,
        stream: bool,
        tools: dict[str, Any],
        p95_s: float | None,
        seed: int,
        strict: bool,
    ) -> None:
        assume(not list(mistakes(profile)))
        wants = {"response_format": {"type": "json_object"}, "valid": lambda text: "<" not in text} if strict else {}
        self.profile = profile
        self.question = question(text, n=n, stream=stream, tools=tools, **wants)
        self.plan = Plan(profile, self.question, seed=seed, now_s=self.now_s, nonce=NONCE, p95_s=lambda model: p95_s)
        self.out = Outcome(self.plan)
        self.take(self.plan.start())

    def take(self, actions: list[Any]) -> None:
        for ask in self.out.take(actions):
            self.open[ask.ask_id] = ask
            assert ask.timeout_s > 0
            assert ask.params["max_tokens"] > 0
            assert ask.params["seed"] < 2**31
            own = {c.text for c in self.plan._case.candidates if f"critic:{c.seat.label}" == ask.label}
            others = {c.text for c in self.plan._case.candidates if f"critic:{c.seat.label}" != ask.label}
            if ask.phase is Phase.CRITIQUE and not self.profile.critics and len(ask.messages) == 1:
                assert not (own - others) & set(shown(ask).values()), "nobody judges itself"
        for ask_id in list(self.open):
            if ask_id not in self.out.running:
                del self.open[ask_id]

    def on(self, event: Any) -> None:
        self.take(self.plan.on(event, self.now_s))

    def going(self) -> bool:
        return not self.plan.closed

    def one_of_open(self, data: Any) -> Ask:
        return self.open[data.draw(st.sampled_from(sorted(self.open)))]

    def end(self, ask: Ask) -> int:
        del self.open[ask.ask_id]
        self.out.running.discard(ask.ask_id)
        self.ended.append(ask.ask_id)
        return ask.ask_id

    @precondition(lambda self: self.going() and self.open)
    @rule(data=st.data(), text=st.sampled_from(TEXTS), fair=st.booleans(), passed_s=st.sampled_from([0.0, 0.5, 4.0]))
    def somebody_answers(self, data: Any, text: str, fair: bool, passed_s: float) -> None:
        ask = self.one_of_open(data)
        self.now_s += passed_s
        if fair and ask.phase is Phase.CRITIQUE:
            text = ballot_of(ask, lambda text: len(text) % 10, lambda text: ["no"] if len(text) % 3 else [])
        elif fair and ask.phase is Phase.JUDGE:
            text = "C1" if ask.ask_id % 2 else "C2"
        usage = data.draw(st.sampled_from([None, Usage(10, min(5, ask.params["max_tokens"]))]))
        if ask.stream and text.strip() and ask.ask_id not in self.begun:
            self.begun.add(ask.ask_id)
            self.on(Began(ask.ask_id))
        tools = bool(ask.params.get("tools")) and fair
        self.on(Replied(self.end(ask), text, "stop", usage, passed_s, tool_calls=tools))

    @precondition(lambda self: self.going() and self.open)
    @rule(data=st.data(), status=st.sampled_from([400, 429, 500, 502, 503, 504]))
    def somebody_fails(self, data: Any, status: int) -> None:
        ask = self.one_of_open(data)
        self.on(Failed(self.end(ask), "engine_error", status))

    @precondition(lambda self: self.going() and any(ask.stream for ask in self.open.values()))
    @rule()
    def a_stream_begins(self) -> None:
        ask = next(ask for ask in self.open.values() if ask.stream)
        self.begun.add(ask.ask_id)
        self.on(Began(ask.ask_id))

    @precondition(lambda self: self.going() and self.out.wake_at is not None)
    @rule(late_s=st.sampled_from([0.0, 0.01, 30.0]))
    def the_clock_strikes(self, late_s: float) -> None:
        assert self.out.wake_at is not None
        self.now_s = max(self.now_s, self.out.wake_at) + late_s
        self.out.wake_at = None
        self.on(Time())

    @precondition(lambda self: self.out.asks and not self.going())
    @rule(data=st.data())
    def something_is_heard_after_the_end(self, data: Any) -> None:
        ask = data.draw(st.sampled_from(self.out.asks))
        for event in (Replied(ask.ask_id, "late"), Failed(ask.ask_id, "late"), Began(ask.ask_id), Time()):
            assert self.plan.on(event, self.now_s + 1) == []

    @invariant()
    def it_waits_for_somebody_or_for_the_clock(self) -> None:
        if hasattr(self, "plan") and self.going():
            assert self.open or self.out.wake_at is not None
            assert self.out.running == set(self.open)
            unbegun = [ask for ask in self.open if ask not in self.begun]
            assert not unbegun or self.out.wake_at is not None, "a child that hangs is not waited for without end"

    @invariant()
    def it_stays_within_its_budget(self) -> None:
        if hasattr(self, "plan"):
            assert len(self.out.asks) <= self.profile.max_calls
            budget = self.plan._case.budget
            if self.profile.max_tokens is not None:
                assert budget.spent + budget.reserved <= self.profile.max_tokens

    @invariant()
    def it_ends_in_one_answer_for_each_choice_or_one_error(self) -> None:
        if not hasattr(self, "plan"):
            return
        indexes = [answer.index for answer in self.out.answers]
        assert len(set(indexes)) == len(indexes)
        if self.plan.closed:
            assert self.out.closed is not None
            assert not self.open
            assert (self.out.failure is None) == (sorted(indexes) == list(range(self.question.n)))
            assert self.plan.trace.outcome == self.out.closed.outcome != ""
            assert all(call.outcome != "running" for call in self.plan.trace.calls)
            if self.out.failure is not None:
                assert self.out.failure.status in (400, 502, 503, 504)
            Trace.as_json(self.plan.trace.redacted())

    def teardown(self) -> None:
        """The clock alone ends it, but for a stream that has begun: that is the child's to end."""
        if not hasattr(self, "plan"):
            return
        for _ in range(500):
            if not self.going():
                break
            if self.out.wake_at is not None:
                self.the_clock_strikes(0.0)
            else:
                ask = next(iter(self.open.values()))
                self.on(Replied(self.end(ask), "the rest"))
        assert self.plan.closed
        self.it_ends_in_one_answer_for_each_choice_or_one_error()
        self.it_stays_within_its_budget()


AnyDeliberation.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestAnyDeliberation = AnyDeliberation.TestCase
