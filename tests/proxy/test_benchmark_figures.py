"""The pure half of `slurmgate bench`: figures, prompts, tables, the JSON document, the plots."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from proxy.benchmark import plot
from proxy.benchmark.command import parse_extra, parse_users
from proxy.benchmark.figures import Sample, percentile, share, spread, summary
from proxy.benchmark.load import Cell, Plan
from proxy.benchmark.prompts import Lengths, Prompts, Ticket, WordCount, fitted, parse_lengths
from proxy.benchmark.show import Results, document, errors_text, figures_rows, introduction, milliseconds, share_rows
from proxy.benchmark.targets import Place, Target, place_of
from proxy.terminal import Mistake

PROMPTS = Prompts(seed=7, prompt=Lengths(100, 200), output=Lengths(10, 20))
PLAN = Plan("m", PROMPTS, (1, 2))


def sample(ttft_s: float, gap_s: float, tokens: int = 5) -> Sample:
    gaps = [gap_s] * (tokens - 1)
    return Sample(ttft_s + sum(gaps), ttft_s, gaps, tokens, prompt_tokens=100, output_tokens=tokens)


# -- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([1.0, 2.0, 3.0, 4.0], 50, 2.5), ([1.0], 99, 1.0), ([0.0, 10.0], 95, 9.5), (list(range(101)), 99, 99.0)],
)
def test_percentiles_lie_between_neighbours(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


def test_a_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 50))
    assert math.isnan(spread([]).mean)


def test_tokens_per_second_are_of_answers_that_came_whole() -> None:
    samples = [sample(0.1, 0.01), sample(0.2, 0.01), Sample(0.001, error="429 overloaded")]
    figures = summary(samples, users=2, wall_s=2.0)
    assert figures.output_tokens == 10
    assert figures.output_tokens_per_s == 5.0
    assert figures.output_tokens_per_s_per_user == 2.5
    assert figures.requests_per_s == 1.0
    assert (figures.requests, figures.failed, figures.errors) == (3, 1, {"429 overloaded": 1})
    assert figures.ttft_ms.p50 == pytest.approx(150.0)
    assert figures.tpot_ms.p50 == pytest.approx(10.0)
    assert figures.e2e_ms.count == 2


def test_tokens_are_the_servers_count_and_events_only_where_it_gives_none() -> None:
    three_a_chunk = Sample(1.0, 0.1, [0.1] * 3, events=4, output_tokens=12)
    assert summary([three_a_chunk], 1, 1.0).output_tokens == 12
    assert summary([three_a_chunk], 1, 1.0).by_usage
    silent = Sample(1.0, 0.1, [0.1] * 3, events=4)
    assert summary([silent], 1, 1.0).output_tokens == 4
    assert not summary([silent], 1, 1.0).by_usage


def test_the_gateways_share_is_told_for_each_percentile() -> None:
    found = share(spread([0.011, 0.011]), spread([0.010, 0.010]))
    assert found[50].difference_ms == pytest.approx(1.0)
    assert found[99].ratio == pytest.approx(1.1)
    assert math.isnan(share(spread([0.1]), spread([]))[50].ratio)


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_no_two_prompts_begin_alike() -> None:
    tickets = [
        Ticket(target, users, turn, user, index)
        for target in ("direct", "gateway")
        for users in (1, 8)
        for turn in (0, 1)
        for user in range(users)
        for index in range(3)
    ]
    openings = {" ".join(PROMPTS.text(ticket).split()[:16]) for ticket in tickets}
    assert len(openings) == len(tickets)


def test_the_same_seed_gives_the_same_prompts_and_another_one_others() -> None:
    ticket = Ticket("gateway", 8, 0, 3, 1)
    assert PROMPTS.text(ticket) == Prompts(7, PROMPTS.prompt, PROMPTS.output).text(ticket)
    assert PROMPTS.text(ticket) != Prompts(8, PROMPTS.prompt, PROMPTS.output).text(ticket)


def test_gateway_and_engine_get_the_same_lengths_and_other_words() -> None:
    ours, theirs = Ticket("gateway", 8, 0, 3, 1), Ticket("direct", 8, 0, 3, 1)
    assert PROMPTS.lengths(ours) == PROMPTS.lengths(theirs)
    assert PROMPTS.text(ours) != PROMPTS.text(theirs)


def test_a_shared_prefix_is_shared_by_all_and_no_longer() -> None:
    prompts = Prompts(7, Lengths(300, 300), Lengths(1, 1), shared=100)
    one, other = (prompts.text(Ticket("direct", 2, 0, user, 0)).split() for user in (0, 1))
    same = next(index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    assert 100 <= same < 104


def test_lengths_stay_in_their_range_and_words_follow_the_tokens() -> None:
    drawn = [PROMPTS.lengths(Ticket("direct", 1, 0, 0, index)) for index in range(200)]
    assert {min(p for p, _ in drawn), max(p for p, _ in drawn)} <= set(range(100, 201))
    assert {output for _, output in drawn} == set(range(10, 21))
    count = fitted((50, 95), (450, 695))
    assert count == WordCount(1.5, 20.0, exact=True)
    assert count is not None
    assert count.words(320) == 200
    assert count.words(1) == 1
    assert fitted((50, 95), (450, 90)) is None


@pytest.mark.parametrize("text", ["", "0", "x", "5:", "9:3", ":4", "1:2:3", "-1", "1000001"])
def test_a_length_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tokens"):
        parse_lengths(text)


def test_lengths_are_a_number_or_a_range() -> None:
    assert parse_lengths("128") == Lengths(128, 128)
    assert str(parse_lengths("64:256")) == "64:256"


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "0", "1,,2", "a", "4,4", "10001"])
def test_users_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--users"):
        parse_users(text)


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"model": "x"}', '{"stream": false}'])
def test_extra_fields_are_an_object_and_leave_the_experiment_alone(text: str) -> None:
    with pytest.raises(ValueError, match="--extra"):
        parse_extra(text)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://host:8000", Place("host", 8000)),
        ("http://host:8000/v1/", Place("host", 8000)),
        ("https://host/llm/v1", Place("host", 443, True, "/llm")),
        ("http://[::1]:80", Place("::1", 80)),
    ],
)
def test_addresses_may_end_in_v1(url: str, place: Place) -> None:
    assert place_of(url) == place
    assert place_of(place.url) == place


@pytest.mark.parametrize(
    "url", ["host:8000", "ftp://host", "http://", "http://host:x", "http://h?a=b", "http://h\r\nx"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(Mistake, match="expected an address"):
        place_of(url)


def test_a_key_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(Mistake, match="--key-env") as caught:
        place_of("http://me:sk-secret@host:8000")
    assert "sk-secret" not in str(caught.value)


def test_a_place_does_not_show_its_key() -> None:
    assert "sk-secret" not in repr(place_of("http://host:8000", "sk-secret"))


# -- shown -----------------------------------------------------------------------------------------------------------


def results(*, stream: bool = True) -> Results:
    cells = []
    for users in (1, 2):
        for name, ttft_s in (("direct", 0.1), ("gateway", 0.101)):
            samples = [sample(ttft_s, 0.01) if stream else Sample(ttft_s, output_tokens=5) for _ in range(4)]
            cells.append(Cell(users, name, samples, 1.0, complete=True))
    cells[-1].samples.append(Sample(0.1, error="timeout"))
    cells.append(Cell(4, "direct"))  # begun, nothing answered
    targets = (Target("direct", (Place("engine", 1),)), Target("gateway", (Place("gateway", 2, key="sk-secret"),)))
    return Results(PLAN, targets, tuple(cells), 1e9, "0.1", interrupted=True)


def test_the_table_has_a_row_for_each_target_at_each_number_of_users() -> None:
    titles, rows = figures_rows(results())
    assert [row[:3] for row in rows] == [
        ["1", "direct", "4"],
        ["1", "gateway", "4"],
        ["2", "direct", "4"],
        ["2", "gateway", "5"],
    ]
    assert rows[0][titles.index("TTFT ms")] == "100 / 100 / 100"
    assert rows[3][-1] == "1 x timeout"
    assert rows[0][-1] == "0"


def test_what_the_gateway_adds_has_a_table_of_its_own() -> None:
    _, rows = share_rows(results())
    assert [row[0] for row in rows] == ["1", "2"]
    assert rows[0][1].startswith("+1.00 (1.010) / ")
    assert rows[0][2].startswith("+0.00 (1.000) / ") or rows[0][2].startswith("0.00") or "(1.000)" in rows[0][2]


def test_whole_answers_have_no_first_token() -> None:
    shown = results(stream=False)
    assert figures_rows(shown)[1][0][3] == "-"
    assert share_rows(shown)[1][0][1] == "-"
    level = document(shown)["levels"][0]
    assert level["measured"]["direct"]["ttft_ms"]["p50"] is None
    assert set(level["gateway_share"]) == {"e2e"}


def test_the_document_is_json_with_the_figures_the_plan_and_no_key() -> None:
    told = document(results())
    text = json.dumps(told, allow_nan=False)
    assert "sk-secret" not in text
    assert told["interrupted"] is True
    assert told["seed"] == 7
    assert [target["name"] for target in told["targets"]] == ["direct", "gateway"]
    level = told["levels"][1]
    assert (level["users"], level["complete"]) == (2, True)
    assert level["measured"]["gateway"]["errors"] == {"timeout": 1}
    assert set(level["measured"]["direct"]["itl_ms"]) == {"p50", "p95", "p99", "mean", "count"}
    assert set(level["gateway_share"]) == {"ttft", "itl", "tpot", "e2e"}
    assert level["gateway_share"]["ttft"]["p50"] == {"difference_ms": 1.0, "ratio": 1.01}


def test_the_introduction_says_what_is_only_nominal() -> None:
    assert "nominal" in introduction(results())
    assert "100 on average" in introduction(results())


def test_milliseconds_show_the_digits_that_matter() -> None:
    assert [milliseconds(value) for value in (0.123, 12.34, 1234.5, math.nan)] == ["0.12", "12.3", "1,234", "-"]
    assert errors_text(summary([Sample(1, error="a"), Sample(1, error="a"), Sample(1, error="b")], 1, 1.0)) == (
        "2 x a, 1 x b"
    )


@pytest.mark.parametrize("given", ["figure", "figure.png", "figure.SVG"])
def test_a_plot_has_both_names_whichever_is_given(given: str) -> None:
    assert plot.files_of(Path("d") / given) == (Path("d/figure.png"), Path("d/figure.svg"))


def test_a_name_with_dots_keeps_them() -> None:
    assert plot.files_of(Path("llama-3.1"))[1] == Path("llama-3.1.svg")
