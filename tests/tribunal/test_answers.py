"""When are two answers the same? Never when they might not be."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tribunal.answers import asked_text, canonical, guess, options, same, supposed, usable
from tribunal.numbers import canonical_number
from tribunal.profile import Kind

CHOICES = [{"role": "user", "content": "Which?\nA) red\nB) green\nC) blue\nD) grey"}]


def key(text: str, kind: Kind) -> str | None:
    return canonical(text, kind, CHOICES)


# -- choices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "(B)",
        "[B]",
        "**B**",
        "B.",
        "B) green",
        "The answer is (B)",
        "The answer is B.",
        "the answer is (b).",
        "Answer: **B) green**",
        "Final answer: B",
        "It cannot be A or C.\nThe correct option is B because it is green.",
        "First I thought of A.\n\nB",
        "\\boxed{B}",
        "So we have $\\boxed{\\text{B}}$.",
        "<think>The answer is A.</think>\nB",
        "If the answer is A it fails.\nThe answer is B.",
        "The correct answer is:\n\n**B**",
    ],
)
def test_a_plain_choice_is_found(text: str) -> None:
    assert key(text, Kind.CHOICE) == "choice:B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E",
        "The answer is E.",
        "The answer is B or C",
        "The answer is B, C",
        "The answer is (A) and (C).",
        "B and C",
        "A. yes\nB. no",
        "The answer is a matter of taste",
        "A dog",
        "The answer is A-ha",
        "The answer is not B",
        "The answer is A. The answer is B.",
        "The answer is B/C",
        "\\boxed{B, C}",
        "\\boxed{}",
        "Both A and B",
        "I am not sure.",
    ],
)
def test_what_is_not_plainly_one_choice_is_none(text: str) -> None:
    assert key(text, Kind.CHOICE) is None


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["1234", "1,234", "1 234", "1234.0", "1_234", "1.234e3", "1.234 x 10^3", "$\\boxed{1{,}234}$"], "1234/1"),
        (["1/2", "0.5", ".5", "50%", "50 percent", "\\frac{1}{2}", "\\dfrac{2}{4}", "50\\%"], "1/2"),
        (["-3.5", "\u22123.5", "-3 1/2", "- 7/2", "-3\\frac{1}{2}"], "-7/2"),
        (["$5", "5 dollars", "5.00 USD", "\\$5"], "5/1 $"),
        (["5 km", "5.0 km", "5\\text{ km}", "5\\,km", "**5 km**"], "5/1 km"),
        (["1.234,56", "1,234.56"], "30864/25"),
        (["The total is 3 + 4 = 7.\n#### 7", "The answer is 7.", "**Answer:** 7", "7", "So the result is 7"], "7/1"),
    ],
)
def test_a_number_is_the_same_however_it_is_written(texts: list[str], value: str) -> None:
    assert {key(text, Kind.NUMBER) for text in texts} == {f"number:{value}"}


@pytest.mark.parametrize(
    "text",
    [
        *("1,5", "2 or 3", "3-5", "5!", "2\\pi", "5 x 3", "10^3", "3 million", "1/0", "12:30", "1,2,3", "$5 km"),
        *("5 and 6", "\\sqrt{2}", "5 \u00b1 1", "about 5", "7 hours and 30 minutes", "0x10", "", "no number", "1e999"),
        *("So x = 5 and y = 6", "It is 42, or 43.", "The answer is 3 or 4.", "the result is 4.\nthe result is 5."),
        *("The answer is 12 because 6 * 2", "The answer is 5. However, 6 is possible.", "1 2", "--5", "3 5/2"),
        "9" * 100,
    ],
)
def test_what_is_not_plainly_one_number_is_none(text: str) -> None:
    assert key(text, Kind.NUMBER) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("5", "5 km"), ("5 m", "5 km"), ("5 mW", "5 MW"), ("5", "$5"), ("50", "50%"), ("x = 5", "5"), ("x=5", "y=5")),
        *(("1.234", "1,234"), ("3.14", "3.1416"), ("1/3", "0.333"), ("$5", "\u20ac5"), ("answer: $5", "answer: 5")),
    ],
)
def test_numbers_that_differ_are_never_one(one: str, other: str) -> None:
    assert not same(key(one, Kind.NUMBER), key(other, Kind.NUMBER))


values = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6)
decimals = st.decimals(min_value=-(10**9), max_value=10**9, places=4)


@given(values)
def test_the_canonical_form_of_a_number_is_its_own(value: Fraction) -> None:
    found = canonical_number(f"{value.numerator}/{value.denominator}")
    assert found is not None
    assert canonical_number(found) == found


@given(decimals, decimals, st.sampled_from(["", " km", "%", " s"]), st.sampled_from(["", " km", "%", " s"]))
def test_two_numbers_are_one_exactly_if_they_are_equal(a: Any, b: Any, unit_a: str, unit_b: str) -> None:
    def meant(value: Any, unit: str) -> tuple[Fraction, str]:
        return (Fraction(value) / 100, "") if unit == "%" else (Fraction(value), unit)

    one, other = canonical_number(f"{a}{unit_a}"), canonical_number(f"{b:,}{unit_b}")
    assert one is not None
    assert other is not None
    assert (one == other) == (meant(a, unit_a) == meant(b, unit_b))


@given(st.text(max_size=300))
def test_no_text_breaks_the_canonical_form(text: str) -> None:
    for kind in Kind:
        found = canonical(text, kind, CHOICES)
        assert found is None or found.startswith(f"{kind.value}:")


# -- JSON, code, text -----------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def shape(value: Any) -> Any:
    """A value that is equal where JSON values are: true is not 1, and the order of keys does not count."""
    if isinstance(value, bool) or value is None:
        return (str(value),)
    if isinstance(value, int | float):
        return ("n", Fraction(repr(value)) if isinstance(value, float) else Fraction(value))
    if isinstance(value, str):
        return ("s", value)
    if isinstance(value, list):
        return ("l", tuple(shape(item) for item in value))
    return ("o", frozenset((name, shape(item)) for name, item in value.items()))


@given(json_values, json_values)
def test_two_json_values_are_one_exactly_if_they_are_equal(one: Any, other: Any) -> None:
    a = canonical(json.dumps(one, indent=2), Kind.JSON)
    b = canonical(json.dumps(other, separators=(",", ":"), ensure_ascii=False), Kind.JSON)
    assert same(a, b) == (shape(one) == shape(other))


@given(json_values)
def test_the_canonical_form_of_json_is_its_own(value: Any) -> None:
    found = canonical(json.dumps(value), Kind.JSON)
    assert found is not None
    assert canonical(found.removeprefix("json:"), Kind.JSON) == found
    assert canonical(f"```json\n{json.dumps(value)}\n```", Kind.JSON) == found


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', "NaN", "[1, Infinity]", '{"a":', "here: {}", "", "[" * 100_000, "[" * 300 + "]" * 300]
)
def test_what_is_no_plain_json_is_none(text: str) -> None:
    assert canonical(text, Kind.JSON) is None


def test_large_integers_are_not_made_one() -> None:
    assert not same(canonical("9007199254740993", Kind.JSON), canonical("9007199254740992", Kind.JSON))


def test_code_is_what_is_inside_its_one_fence() -> None:
    plain = "def f(x):\n    return x + 1"
    assert same(key(plain, Kind.CODE), key(f"Here it is:\n\n```python\n{plain}\n```\nIt adds one.", Kind.CODE))
    assert same(key(plain, Kind.CODE), key(plain.replace("\n", "\r\n") + "\r\n", Kind.CODE))
    assert not same(key(plain, Kind.CODE), key(plain.replace("    ", "  "), Kind.CODE))
    assert key("```\na\n```\n```\nb\n```", Kind.CODE) is None
    assert key("```\na", Kind.CODE) is None


def test_free_text_is_the_same_only_if_it_reads_the_same() -> None:
    assert same(key("Paris.", Kind.TEXT), key(" **Paris** \n", Kind.TEXT))
    assert same(key("caf\u00e9", Kind.TEXT), key("cafe\u0301", Kind.TEXT))
    assert not same(key("Paris", Kind.TEXT), key("paris", Kind.TEXT))
    assert not same(key("Paris", Kind.TEXT), key("Paris, France", Kind.TEXT))
    assert not same(key("a\n  b", Kind.TEXT), key("a\nb", Kind.TEXT))


@given(st.text(min_size=1, max_size=120))
def test_the_canonical_form_of_text_is_its_own(text: str) -> None:
    found = key(text, Kind.TEXT)
    if found is not None and "think>" not in text:
        assert key(found.removeprefix("text:"), Kind.TEXT) == found


def test_no_answer_agrees_with_nothing() -> None:
    assert not same(None, None)


# -- usable, and of which kind --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("<|im_end|></s>", "empty"),
        ("<think>hm</think>\n", "empty"),
        ("\u200b\u200b", "empty"),
        ("x" * 300_000, "oversized"),
        ("\x00\x01\x02\x03ab", "garbage"),
        ("\ufffd" * 20, "garbage"),
        ("ha" * 1000, "garbage"),
        ("7", None),
        ("01101000" * 50 + "1", None),
        ("\U0001f600", None),
        ("\u4f60\u597d", None),
    ],
)
def test_what_is_no_answer_is_not_usable(text: str, reason: str | None) -> None:
    assert usable(text, 200_000) == reason


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        (CHOICES[0]["content"], Kind.CHOICE),
        ("How many apples are left?", Kind.NUMBER),
        ("What is 12 * (3 + 4)?", Kind.NUMBER),
        ("Write a Python function that sorts a list.", Kind.CODE),
        ("Tell me about Rome.", Kind.TEXT),
        ("Compare A) and B)", Kind.TEXT),
        ("", Kind.TEXT),
    ],
)
def test_the_shape_of_a_question_speaks_for_a_kind(question: str, kind: Kind) -> None:
    assert supposed([{"role": "user", "content": question}]) is kind


def test_the_answers_must_bear_the_kind_out() -> None:
    assert guess(Kind.NUMBER, ["number:1/1", "number:2/1", None]) is Kind.NUMBER
    assert guess(Kind.NUMBER, ["number:1/1", None]) is Kind.TEXT


def test_the_question_is_the_last_one_of_the_user_also_beside_images() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "A. one\nB. two"}]
    earlier = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "x"}]
    messages: list[dict[str, Any]] = [*earlier, {"role": "user", "content": parts}]
    assert options(asked_text(messages)) == {"A", "B"}


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 9000,
        "```\n" * 16_000,
        "```x\n" * 12_000,
        "answer " + " " * 60_000 + "B",
        "the answer is " * 4500,
        "(" * 60_000,
        "1," * 30_000,
        "<think>" * 9000,
        "<|" * 30_000,
        "\n" * 60_000 + "A) x",
        "x" * 1_000_000,
    ],
    ids=range(11),
)
@pytest.mark.timeout(30)  # a pattern that backtracks would take minutes
def test_a_text_made_to_be_slow_is_not(text: str) -> None:
    for kind in Kind:
        canonical(text, kind, [{"role": "user", "content": text}])
    supposed([{"role": "user", "content": text}])
    usable(text, 10_000_000)
