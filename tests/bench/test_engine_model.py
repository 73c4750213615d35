"""The engine model as numbers, without a server and without a clock."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from bench.engine_model import EngineModel, Job, QueueIsFull, Speeds, Token, TooLong
from bench.engine_profiles import LLAMA_8B, LLAMA_70B, PROFILES, on_a100
from bench.engine_users import closed_loop
from proxy.benchmark.figures import Figures, summary

STEP_S = 0.010
SPEEDS = Speeds(
    weights_s=0.009,
    overhead_s=0.001,
    per_sequence_s=0.0,
    per_context_token_s=0.0,
    per_token_s=0.0001,
    cache_tokens=100_000,
    batch_tokens=1000,
)


def play(engine: EngineModel) -> tuple[list[tuple[float, Token]], float]:
    """Steps until there is nothing to do: the tokens with their times, and when it was over."""
    now, given = 0.0, []
    while (took := engine.begin()) is not None:
        now += took
        given += [(now, token) for token in engine.finish()]
    return given, now


def measured(speeds: Speeds, users: int, requests: int = 2, prompt: int = 100, output: int = 20) -> Figures:
    samples, wall_s = closed_loop(speeds, users, requests, lambda user, index: (prompt, output))
    return summary(samples, users, wall_s)


def test_a_single_user_waits_one_step_for_each_token() -> None:
    figures = measured(SPEEDS, 1)
    assert figures.itl_ms.p50 == pytest.approx(STEP_S * 1e3)
    assert figures.itl_ms.p99 == pytest.approx(STEP_S * 1e3)


def test_the_first_token_comes_with_the_step_that_ends_the_prompt() -> None:
    engine = EngineModel(SPEEDS)
    engine.submit(Job(1, prompt_tokens=2500, output_tokens=2))
    took = [engine.begin() or 0.0]
    assert engine.finish() == []
    took.append(engine.begin() or 0.0)
    assert engine.finish() == []
    took.append(engine.begin() or 0.0)
    assert engine.finish() == [Token(1, 0, last=False)]
    # 1000 tokens' arithmetic takes longer than reading the weights, 500 do, too
    assert took == pytest.approx([0.101, 0.101, 0.051])


def test_decoding_together_takes_as_long_as_alone_until_arithmetic_or_the_cache_is_in_the_way() -> None:
    alone, together = measured(SPEEDS, 1, output=200), measured(SPEEDS, 16, output=200)
    assert together.itl_ms.p50 == pytest.approx(alone.itl_ms.p50)
    assert together.output_tokens_per_s > 10 * alone.output_tokens_per_s
    slow = replace(SPEEDS, per_context_token_s=1e-5)
    assert measured(slow, 16, output=200).itl_ms.p50 > alone.itl_ms.p50 * 2


def test_every_sequence_of_a_step_costs_its_share() -> None:
    dear = replace(SPEEDS, per_sequence_s=0.001)
    assert measured(dear, 8, output=100).itl_ms.p50 == pytest.approx((STEP_S + 8 * 0.001) * 1e3)


def test_throughput_grows_no_more_once_the_cache_is_full_and_the_first_token_waits_ever_longer() -> None:
    small = replace(SPEEDS, cache_tokens=1000)  # for eight requests of 120 tokens
    few, enough, many = (measured(small, users, 4) for users in (2, 8, 32))
    assert enough.output_tokens_per_s > 3 * few.output_tokens_per_s
    assert many.output_tokens_per_s < 1.2 * enough.output_tokens_per_s
    assert many.ttft_ms.p50 > 5 * enough.ttft_ms.p50
    assert many.itl_ms.p50 == pytest.approx(few.itl_ms.p50)


def test_nobody_overtakes_in_the_line() -> None:
    engine = EngineModel(replace(SPEEDS, cache_tokens=1000))
    for job in (Job(1, 600, 5), Job(2, 600, 5), Job(3, 10, 5)):  # the third would fit beside the first
        engine.submit(job)
    given, _ = play(engine)
    firsts = [token.job_id for _, token in given if token.index == 0]
    assert firsts == [1, 2, 3]


def test_the_newest_is_preempted_when_decoding_finds_no_room_and_still_gets_every_token_once() -> None:
    engine = EngineModel(replace(SPEEDS, cache_tokens=250))
    engine.submit(Job(1, 100, 100))
    engine.submit(Job(2, 100, 100))
    given, _ = play(engine)
    assert engine.counts.preemptions == 1
    for job_id in (1, 2):
        mine = [token for _, token in given if token.job_id == job_id]
        assert [token.index for token in mine] == list(range(100))
        assert [token.last for token in mine] == [False] * 99 + [True]
    gaps = {job_id: longest_gap(given, job_id) for job_id in (1, 2)}
    assert gaps[1] < 2 * STEP_S  # the older one noticed nothing
    assert gaps[2] > 10 * STEP_S
    assert engine.cache_tokens == 0


def longest_gap(given: list[tuple[float, Token]], job_id: int) -> float:
    times = [when for when, token in given if token.job_id == job_id]
    return max(later - earlier for earlier, later in pairwise(times))


def test_the_cache_never_holds_more_than_it_can() -> None:
    speeds = replace(SPEEDS, cache_tokens=777, batch_tokens=64)
    engine = EngineModel(speeds)
    for number in range(40):
        engine.submit(Job(number, 10 + 13 * (number % 9), 1 + 17 * (number % 7)))
    given: list[Token] = []
    while engine.begin() is not None:
        assert engine.cache_tokens <= speeds.cache_tokens
        given += engine.finish()
    assert sum(token.last for token in given) == 40
    assert len(given) == sum(1 + 17 * (number % 7) for number in range(40))
    assert (engine.cache_tokens, engine.running, engine.waiting) == (0, 0, 0)


def test_prompts_in_parts_let_decoding_go_on_and_whole_prompts_make_it_wait() -> None:
    def longest(speeds: Speeds) -> float:
        engine = EngineModel(speeds)
        engine.submit(Job(1, 10, 50))
        now, times = 0.0, []
        for step in range(60):
            if step == 10:
                engine.submit(Job(2, 4000, 1))
            took = engine.begin()
            if took is None:
                break
            now += took
            times += [now for token in engine.finish() if token.job_id == 1]
        return max(later - earlier for earlier, later in pairwise(times))

    chunked = longest(replace(SPEEDS, batch_tokens=200))
    whole = longest(replace(SPEEDS, batch_tokens=200, chunked=False))
    assert chunked == pytest.approx(0.001 + 200 * SPEEDS.per_token_s)
    assert whole == pytest.approx(STEP_S + 0.001 + 4000 * SPEEDS.per_token_s)


def test_no_more_sequences_run_than_may() -> None:
    engine = EngineModel(replace(SPEEDS, sequences=3))
    for number in range(5):
        engine.submit(Job(number, 10, 10))
    engine.begin()
    assert (engine.running, engine.waiting) == (3, 2)
    assert engine.counts.peak_waiting == 2


def test_an_engine_with_a_limit_refuses_who_is_too_many() -> None:
    engine = EngineModel(replace(SPEEDS, takes=2))
    engine.submit(Job(1, 10, 10))
    engine.submit(Job(2, 10, 10))
    with pytest.raises(QueueIsFull):
        engine.submit(Job(3, 10, 10))
    assert engine.counts.refused == 1


def test_what_can_never_fit_is_refused_at_once() -> None:
    with pytest.raises(TooLong):
        EngineModel(replace(SPEEDS, cache_tokens=100)).submit(Job(1, 90, 11))


def test_who_leaves_gives_back_his_places_and_gets_no_more_tokens() -> None:
    engine = EngineModel(SPEEDS)
    for number in (1, 2, 3):
        engine.submit(Job(number, 10, 10))
    engine.begin()
    engine.cancel(2)  # while the step runs
    assert {token.job_id for token in engine.finish()} == {1, 3}
    engine.submit(Job(4, 10, 10))
    engine.cancel(4)
    engine.cancel(99)
    given, _ = play(engine)
    assert {token.job_id for _, token in given} == {1, 3}
    assert engine.cache_tokens == 0


def test_users_whom_an_engine_refuses_are_counted_and_come_again() -> None:
    samples, _ = closed_loop(replace(SPEEDS, takes=2), 4, 3, lambda user, index: (10, 5))
    figures = summary(samples, 4, 1.0)
    assert figures.requests == 12
    assert figures.errors == {"429": 2}


def test_the_profiles_are_what_their_sources_say() -> None:
    assert LLAMA_8B.cache_bytes == 131_072
    assert LLAMA_70B.cache_bytes == 327_680
    itl = [PROFILES[name].speeds.step_s(1, 1, 512) * 1e3 for name in ("llama-1b", "llama-3b", "llama-8b", "llama-70b")]
    assert itl == pytest.approx([4.6, 7.3, 13.6, 28.5], abs=0.1)
    assert PROFILES["llama-70b-2gpu"].speeds.cache_tokens < PROFILES["llama-70b"].speeds.cache_tokens / 10


def test_a_model_that_does_not_fit_is_no_profile() -> None:
    with pytest.raises(ValueError, match="141 GB of weights leave no room on 1 GPUs"):
        on_a100(LLAMA_70B)
