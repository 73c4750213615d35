"""The order of those who wait: classes, turns, credit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from backends.places import Priority
from backends.waiting_line import QUANTUM, WaitingLine

BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE


@dataclass(eq=False)
class Entry:
    owner: str
    tokens: int = 100
    priority: Priority = INTERACTIVE
    possible: bool = True


def line_of(*entries: Entry) -> WaitingLine[Entry]:
    line: WaitingLine[Entry] = WaitingLine()
    for entry in entries:
        line.add(entry)
    return line


def drained(line: WaitingLine[Entry]) -> list[Entry]:
    out = []
    while (entry := line.pop(lambda entry: entry.possible)) is not None:
        out.append(entry)
    return out


def test_interactive_goes_before_batch_always() -> None:
    batch = [Entry("a", 10, BATCH) for _ in range(5)]
    interactive = [Entry("b", 100_000) for _ in range(5)]
    assert drained(line_of(*batch, *interactive)) == [*interactive, *batch]


def test_one_owner_s_requests_keep_their_order() -> None:
    entries = [Entry("a", tokens) for tokens in (5000, 1, 3000, 2)]
    assert drained(line_of(*entries)) == entries


def test_who_comes_with_one_request_does_not_wait_for_a_hundred_of_another() -> None:
    crowd = [Entry("crowd", QUANTUM) for _ in range(100)]
    single = Entry("single", QUANTUM)
    assert drained(line_of(*crowd, single)).index(single) <= 1


def test_large_requests_wait_for_as_many_tokens_of_small_ones() -> None:
    large = [Entry("large", 8 * QUANTUM) for _ in range(4)]
    small = [Entry("small", QUANTUM) for _ in range(32)]
    order = drained(line_of(*large, *small))
    served = Counter[str]()
    for entry in order:
        served[entry.owner] += entry.tokens
        assert abs(served["large"] - served["small"]) <= 9 * QUANTUM


def test_who_cannot_go_now_holds_nobody_up() -> None:
    stuck, other, batch = Entry("a", possible=False), Entry("b"), Entry("a", priority=BATCH)
    line = line_of(stuck, other, batch)
    assert drained(line) == [other, batch]
    assert list(line) == [stuck]
    stuck.possible = True
    assert drained(line) == [stuck]


def test_one_that_comes_back_is_before_its_owner_s_others() -> None:
    line = line_of(Entry("a"), Entry("a"))
    back = Entry("a")
    line.add(back, first=True)
    assert drained(line)[0] is back


def test_a_request_that_used_more_than_it_was_taken_for_is_paid_by_its_owner() -> None:
    ours = [Entry("greedy", QUANTUM) for _ in range(20)]
    theirs = [Entry("modest", QUANTUM) for _ in range(20)]
    line = line_of(*ours, *theirs)
    line.charge("greedy", INTERACTIVE, 10 * QUANTUM)
    line.charge("nobody", INTERACTIVE, 10 * QUANTUM)
    assert [entry.owner for entry in drained(line)[:10]] == ["modest"] * 10


def test_lengths_and_who_is_before_a_newcomer() -> None:
    line = line_of(Entry("a"), Entry("b"), Entry("a", priority=BATCH))
    assert (len(line), line.length(INTERACTIVE), line.length(BATCH)) == (3, 2, 1)
    assert (line.before(INTERACTIVE), line.before(BATCH)) == (2, 3)


ENTRIES = st.lists(
    st.builds(
        Entry,
        st.sampled_from(["a", "b", "c", "d", "e"]),
        st.integers(1, 20_000),
        st.sampled_from([INTERACTIVE, BATCH]),
    ),
    max_size=60,
)


@given(ENTRIES)
def test_everybody_is_served_once(entries: list[Entry]) -> None:
    line = line_of(*entries)
    assert Counter(map(id, drained(line))) == Counter(map(id, entries))
    assert len(line) == line.length(INTERACTIVE) == line.length(BATCH) == 0
    assert list(line) == []


@given(ENTRIES, st.data())
def test_who_leaves_leaves_no_trace(entries: list[Entry], data: st.DataObject) -> None:
    line = line_of(*entries)
    gone = data.draw(st.sets(st.sampled_from(entries), max_size=10)) if entries else set()
    for entry in gone:
        line.remove(entry)
    assert Counter(map(id, drained(line))) == Counter(id(entry) for entry in entries if entry not in gone)


@given(
    st.lists(st.integers(1, 10_000), min_size=20, max_size=20),
    st.lists(st.integers(1, 10_000), min_size=20, max_size=20),
)
def test_while_both_wait_neither_gets_much_more_than_the_other(one: list[int], other: list[int]) -> None:
    """Deficit round robin's bound: at any moment their service differs by less than a quantum and the largest request,
    each."""
    line = line_of(*(Entry("one", tokens) for tokens in one), *(Entry("other", tokens) for tokens in other))
    served, left = Counter[str](), Counter({"one": 20, "other": 20})
    while all(left.values()):
        entry = line.pop(lambda entry: True)
        assert entry is not None
        served[entry.owner] += entry.tokens
        left[entry.owner] -= 1
        assert abs(served["one"] - served["other"]) <= 2 * (QUANTUM + 10_000)
