"""The pure parts of bench/: how sure a ratio is, what the verdict says, what is read from /proc and from stacks."""

from __future__ import annotations

import math
import random

import pytest

from bench import __main__ as command
from bench import compare, estimates, hung, report, sampling, soak, verdict
from bench.estimates import Ratio
from bench.load import Figures
from bench.processes import Cpu, cpu_ticks
from bench.slow_streams import cpu_parts
from bench.targets import Target, scaled
from bench.verdict import Judgement, Line


def figures(cpu_us: float, first_p99_ms: float = 30.0, bad: int = 0) -> Figures:
    return Figures(
        requests=100,
        bad=bad,
        per_s=1000.0,
        p50_ms=1.0,
        p99_ms=2.0,
        first_p50_ms=20.0,
        first_p99_ms=first_p99_ms,
        gap_p99_ms=21.0,
        cpu_us=cpu_us,
        user_us=cpu_us * 0.6,
        system_us=cpu_us * 0.4,
        memory_mb=50.0,
    )


def turns(name: str, costs: list[float], *, share: float = 1.0, start_s: float = 0.5) -> compare.Turns:
    target = Target(name, 1, pid=2, share=share, at_once=share, start_s=start_s)
    return compare.Turns(target, [figures(cost) for cost in costs], [figures(cost / 4) for cost in costs])


# -- ratios and their intervals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(4, None), (5, (0, 4)), (7, (0, 6)), (8, (1, 6)), (10, (1, 8)), (20, (5, 14)), (40, (14, 25))],
)
def test_the_interval_of_a_median_has_the_ranks_of_the_sign_test(count: int, ranks: tuple[int, int] | None) -> None:
    """As in the tables of books on nonparametric statistics."""
    assert estimates.median_ranks(count) == ranks


def test_the_interval_holds_the_true_ratio_in_nine_of_ten_runs_however_noisy_the_machine_is() -> None:
    chance = random.Random(7)
    held = 0
    for _ in range(400):
        weather = [chance.choice((1.0, 1.0, 1.3, 2.0)) for _ in range(20)]  # the machine's own, for both of a pair
        ours = [90 * slow * chance.lognormvariate(0, 0.1) for slow in weather]
        theirs = [100 * slow * chance.lognormvariate(0, 0.1) for slow in weather]
        ratio = estimates.compare(ours, theirs)
        held += ratio.low <= 0.9 <= ratio.high
    assert held / 400 > 0.88


def test_pairs_are_compared_with_each_other_so_a_slow_minute_of_the_machine_does_not_count() -> None:
    ours = [100.0, 100.0, 300.0, 300.0, 300.0]
    theirs = [50.0, 50.0, 150.0, 150.0, 150.0]
    assert estimates.compare(ours, theirs) == Ratio(2.0, 2.0, 2.0, 2.0, 5, True)


def test_with_too_few_pairs_the_interval_is_all_of_them_and_not_sure() -> None:
    ratio = estimates.compare([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert (ratio.low, ratio.paired, ratio.high, ratio.sure) == (1.0, 2.0, 3.0, False)


def test_what_has_no_process_has_no_ratio() -> None:
    ratio = estimates.compare([1.0, 2.0], [math.nan, math.nan])
    assert math.isnan(ratio.paired)
    assert ratio.pairs == 0


def test_turns_without_a_partner_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        estimates.compare([1.0, 2.0], [1.0])


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert estimates.percentile([5.0, 1.0, 3.0, 2.0, 4.0], 0.5) == 3.0
    assert estimates.percentile([1.0], 0.99) == 1.0
    assert math.isnan(estimates.percentile([], 0.5))


def test_a_slope_is_per_step() -> None:
    assert estimates.slope([1.0, 3.0, 5.0]) == pytest.approx(2.0)
    assert estimates.slope([1.0]) == 0.0


# -- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "figure", "high", "judgement"),
    [
        (0.8, 0.9, 0.99, Judgement.OK),
        (0.8, 1.0, 1.0, Judgement.OK),
        (0.8, 0.9, 1.1, Judgement.OK_NOT_SURE),
        (0.9, 1.1, 1.2, Judgement.MISSED_NOT_SURE),
        (1.01, 1.1, 1.2, Judgement.MISSED),
    ],
)
def test_a_line_is_sure_when_its_whole_interval_is_on_one_side(
    low: float, figure: float, high: float, judgement: Judgement
) -> None:
    assert Line("x", figure, 1.0, low=low, high=high).judgement is judgement


def test_an_exact_figure_is_ok_or_missed() -> None:
    assert Line("start", 0.8, 1.0).judgement is Judgement.OK
    assert Line("start", 1.2, 1.0).judgement is Judgement.MISSED


def test_what_was_not_measured_is_neither_ok_nor_missed_and_says_how_to_measure_it() -> None:
    lines = [verdict.of_ratio("CPU / peer", None, 1.0, "install it")]
    assert verdict.missed(lines) == []
    assert verdict.rows(lines)[1] == ["CPU / peer", "-", "", "1", "not measured: install it"]


def test_a_ratio_of_few_pairs_is_never_sure() -> None:
    lines = [verdict.of_ratio("CPU / peer", estimates.compare([1.0, 1.0], [2.0, 2.0]), 1.0, "")]
    assert verdict.rows(lines)[1] == ["CPU / peer", "0.5", "too few pairs", "1", "ok, not sure"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00912, "0.0091"), (1.0, "1"), (1.284, "1.28"), (26.04, "26"), (0, "0"), (10.0, "10"), (300.0, "300")],
)
def test_numbers_have_the_digits_that_count(value: float, text: str) -> None:
    assert verdict.number(value) == text


def test_the_verdict_has_every_target_and_says_which_were_not_measured() -> None:
    everybody = [
        turns("slurmgate", [90.0] * 8),
        turns("vllm-router", [100.0] * 8),
        turns("nginx", [50.0] * 8),
        turns("litellm", [10_000.0] * 8, share=0.01),
        turns("slurmgate-2", [200.0] * 8),
    ]
    judgements = {line.what: line.judgement for line in command.judged(everybody, None, None)}
    assert judgements == {
        "CPU per plain request / vllm-router": Judgement.OK,
        "CPU per streamed chunk / vllm-router": Judgement.OK,
        "CPU per streamed chunk / nginx": Judgement.MISSED,
        "CPU per plain request / litellm": Judgement.OK,
        "TTFT p99 / nginx": Judgement.OK,
        "TTFT p99 with two workers / nginx": Judgement.OK,
        "memory growth over the soak": Judgement.UNKNOWN,
        "from start to listening": Judgement.OK,
        "failed requests, one replica of three hung": Judgement.UNKNOWN,
        "growth of p99 meanwhile": Judgement.UNKNOWN,
    }


# -- soak, hung replica -----------------------------------------------------------------------------------------------


def test_a_soak_passes_by_its_growth_and_by_every_answer_being_right() -> None:
    def soaked(last_mb: float, bad: int = 0) -> soak.Soak:
        samples = [soak.Sample(0, 70.0, 20), soak.Sample(10_000, 75.0, 20), soak.Sample(20_000, last_mb, 20)]
        return soak.Soak(samples, 20_000, 1_000, bad, 5.0)

    assert soak.passed(soaked(79.5))
    assert not soak.passed(soaked(79.6))  # 9.6 MiB are more than 10 MB
    assert not soak.passed(soaked(70.0, bad=1))


def test_a_soak_tells_a_cache_that_is_full_from_a_leak() -> None:
    def climbing(*mb: float) -> float:
        return soak.Soak([soak.Sample(n * 10_000, m, 1) for n, m in enumerate(mb)], 1, 1, 0, 1.0).slope_mb

    assert climbing(70.0, 75.0, 78.0, 78.0, 78.0, 78.0) == pytest.approx(0.0)
    assert climbing(70.0, 71.0, 72.0, 73.0, 74.0, 75.0) == pytest.approx(10 * 1.048576)


def test_a_request_that_is_no_json_has_the_length_that_its_head_says() -> None:
    whole = b'POST / HTTP/1.1\r\ncontent-length: 8\r\n\r\n{"a":{}}'
    assert soak.not_json(whole) == b'POST / HTTP/1.1\r\ncontent-length: 8\r\n\r\n{"a":{]]'


@pytest.mark.parametrize(
    ("slowest_s", "failures", "passes"),
    [(0.9, [], True), (1.2, [], False), (0.05, ["504"], False)],
)
def test_a_hung_replica_is_borne_when_nothing_fails_and_p99_grows_by_one_connect_time_out_at_most(
    slowest_s: float, failures: list[str], passes: bool
) -> None:
    before = hung.Phase("before", [0.05] * 100)
    hangs = hung.Phase("hung", [0.05] * 90 + [slowest_s] * 10, failures)
    assert hung.passed([hung.Outcome("silent", [before, hangs, hung.Phase("after", [0.05])])]) is passes


def test_a_gateway_that_answers_nothing_while_a_replica_hangs_does_not_pass() -> None:
    phases = [hung.Phase("before", [0.05]), hung.Phase("hung"), hung.Phase("after")]
    assert not hung.passed([hung.Outcome("silent", phases)])


# -- what is read -----------------------------------------------------------------------------------------------------


def test_cpu_ticks_are_read_past_a_name_with_blanks_and_brackets() -> None:
    line = "42 (a (bad) name) S 1 42 42 0 -1 4194304 9 0 0 0 117 58 3 4 20 0 1 0 100 1 1 1"
    assert cpu_ticks(line) == (117, 58)


def test_the_split_by_ticks_is_put_on_the_exact_sum() -> None:
    total, user, system = cpu_parts(Cpu(total=1.0, user=0.6, system=0.2))
    assert (total, user, system) == pytest.approx((1.0, 0.75, 0.25))
    assert Cpu(3.0, 2.0, 1.0) - Cpu(1.0, 1.0, 0.5) == Cpu(2.0, 1.0, 0.5)


STACKS = """\
main (proxy/cli.py:48);run_forever (loop.c:33397);Edge.__call__ (proxy/middleware.py:42);free (libc.so.6) 4
main (proxy/cli.py:48);uv_run (core.c:464);uv__write (stream.c:800);write (libc.so.6) 3
main (proxy/cli.py:48);data_received (uvicorn/protocols/http/httptools_impl.py:1);llhttp_execute (llhttp.c:9) 2
main (proxy/cli.py:48);uv_run (core.c:464);uv__io_poll (linux.c:1452);epoll_pwait (libc.so.6) 70
main (proxy/cli.py:48);dumps (proxy/logging.py:2);0x7f (orjson/orjson.cpython-311-x86_64-linux-gnu.so) 1
_bootstrap (threading.py:1);_worker (concurrent/futures/thread.py:81);PyThread_acquire_lock_timed (libpython3.11.so.1.0);0x7f (libc.so.6) 90
"""  # noqa: E501


def test_a_sample_counts_for_the_innermost_room_and_threads_that_rest_do_not_count() -> None:
    stacks = sampling.parsed(STACKS)
    assert dict(sampling.by_room(stacks)[1:]) == {
        "proxy/middleware.py": "40.0",
        "kernel: write to sockets and files": "30.0",
        "HTTP parser: httptools, llhttp": "20.0",
        "JSON: orjson": "10.0",
        "under 0.3 % each": "0.0",
        "all of ours": "40.0",
        "all of the kernel": "30.0",
    }


def test_a_function_has_what_its_c_takes_and_within_it_what_it_calls() -> None:
    rows = {name: (alone, within) for name, alone, within in sampling.by_function(sampling.parsed(STACKS))[1:]}
    assert rows["Edge.__call__ (proxy/middleware.py:42)"] == ("40.0", "40.0")
    assert rows["write()"] == ("30.0", "30.0")


@pytest.mark.parametrize(
    ("file", "room"),
    [
        ("proxy/routes/chat.py", "proxy/routes/chat.py"),
        ("starlette/routing.py", "Python: starlette"),
        ("bisect.py", "Python: the standard library"),
    ],
)
def test_ours_are_told_by_module_and_others_by_package(file: str, room: str) -> None:
    assert sampling.python_room(file) == room


# -- turns and tables -------------------------------------------------------------------------------------------------


def test_everybody_is_first_in_turn_and_has_each_neighbour() -> None:
    everybody = [turns(name, []) for name in "abc"]
    orders = ["".join(each.target.name for each in compare.in_turn(everybody, number)) for number in range(6)]
    assert orders == ["abc", "bca", "cab", "cba", "acb", "bac"]


def test_a_small_share_of_a_load_is_at_least_one() -> None:
    assert [scaled(3000, 0.01), scaled(20, 0.01), scaled(128, 1.0)] == [30, 1, 128]


def test_tables_say_which_part_of_the_load_a_slow_peer_got_and_leave_unlike_streams_uncompared() -> None:
    everybody = [turns("slurmgate", [90.0] * 8), turns("litellm", [9_000.0] * 8, share=0.01)]
    assert report.plain_table(everybody).splitlines()[2].split() == [
        *("litellm", "9000", "5400", "3600", "1000", "1.00", "2.00", "0", "800", "0.01", "of", "it"),
    ]
    compared = report.ratio_table(everybody)
    assert "0.0100 to 0.0100" in compared
    assert "TTFT" not in compared


def test_who_fails_is_named_beside_the_figures() -> None:
    broken = compare.Turns(Target("litellm", 1), [figures(9_000.0)], [figures(900.0, bad=3), figures(900.0, bad=4)])
    assert report.failures([turns("slurmgate", [90.0]), broken]) == "FAILED: litellm, 0 plain requests, 7 streams\n"
    assert report.failures([turns("slurmgate", [90.0])]) == ""


def test_json_has_null_for_what_was_not_measured() -> None:
    plan = compare.Plan(rounds=1, turns=1, requests=1, connections=1, streams=1, chunks=1, interval_ms=1.0)
    everybody = [
        turns("slurmgate", [90.0]),
        compare.Turns(Target("direct", 1), [figures(math.nan)], [figures(math.nan)]),
    ]
    found = report.as_json(everybody, plan, ["nginx"])
    assert found["targets"]["direct"]["plain"][0]["cpu_us"] is None
    assert found["ratios"]["direct"]["cpu_per_request"]["paired"] is None
    assert "key" not in found["targets"]["slurmgate"]
