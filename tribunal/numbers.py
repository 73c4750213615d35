"""Numbers as people write them -> one text for equal values, exact.

    12, -3.50, 1,234.5, 1 234, 1.234,56, 1e6, 1.2 x 10^3, 1/2, 3 1/2, 12.5 %, $12, 5 km, \\frac{1}{2}, x = 4

A percentage is the number that it is (50 % = 1/2). A unit belongs to the value: `5`, `5 km` and `5 m` are three
answers; so does a variable: `x = 5` is not `5`. Whatever is not one number (a range, a sum, a list, two of them) has
no canonical form. The thousands' comma is read as in English: `1,234` is 1234, and `1,5` is nothing.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 200
MOST_DIGITS = 60
MOST_EXPONENT = 100

_SPACES = re.compile(r"\\[,;:! ]|[\u00a0\u2009\u202f]")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s?\{\s?([^{}\s]+)\s?\}\s?\{\s?([^{}\s]+)\s?\}")
_VARIABLE = re.compile(r"([A-Za-z](?:_\{?\w+\}?)?)\s*=\s*")

_ENGLISH = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?"
_SPACED = r"\d{1,3}(?:[ '\u2019_]\d{3})+(?:\.\d+)?"
_EUROPEAN = r"\d{1,3}(?:\.\d{3})+,\d+"
_SIMPLE = r"\d+(?:\.\d+)?|\.\d+"
_PLAIN = rf"(?:{_EUROPEAN}|{_ENGLISH}|{_SPACED}|{_SIMPLE})"
_WHOLE = re.compile(
    rf"""
    (?P<sign>[-+]?)\s*(?P<currency>[$€£¥]?)\s*(?P<sign2>[-+]?)
    (?:
        (?P<whole>\d+)\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d+)
      | (?P<top2>{_PLAIN})\s*/\s*(?P<bottom2>[-+]?{_PLAIN})
      | (?P<number>{_PLAIN})
        (?:\s*(?:[eE]|(?:[x\u00d7*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*)\{{?\s*(?P<exponent>[-+]?\d{{1,4}})\s*\}}?)?
    )
    \s*(?P<unit>%|percent\b|[A-Za-zµμΩ°℃℉€£¥$][A-Za-zµμΩ°²³]*(?:(?:\s?[/·*]\s?|\^-?|\s)[A-Za-z0-9µμΩ°]+){{0,3}})?
    """,
    re.VERBOSE,
)
_UNITS = {
    **dict.fromkeys(("dollar", "dollars", "USD", "usd", "$"), "$"),
    **dict.fromkeys(("euro", "euros", "EUR", "€"), "€"),
    **dict.fromkeys(("pound sterling", "pounds sterling", "GBP", "£"), "£"),
    **dict.fromkeys(("yen", "JPY", "¥"), "¥"),
}
_TRANSLATION = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2044": "/", "\u2215": "/"})
_NO_UNIT = re.compile(
    r"\b(?:or|and|to|plus|minus|times|over|if|not|but|because|since|so|is|are|was|of|million|billion|thousand|hundred|dozen"
    r"|trillion|half|quarter|third|mod|choose|e|i|pi|x)\b",
    re.IGNORECASE,
)


def canonical_number(text: str) -> str | None:
    """`[VARIABLE=]NUMERATOR/DENOMINATOR[ UNIT]`, or None if the text is not one number and nothing else."""
    if len(text) > LONGEST:
        return None
    text = _tidied(text)
    variable = ""
    if match := _VARIABLE.match(text):
        variable = f"{match[1]}="
        text = text[match.end() :].strip()
    match = _WHOLE.fullmatch(text)
    if match is None:
        return None
    value = _value(match)
    unit = _unit(match)
    if value is None or unit is None:
        return None
    if unit == "%":
        value, unit = value / 100, ""
    return f"{variable}{value.numerator}/{value.denominator}{' ' + unit if unit else ''}"


def _tidied(text: str) -> str:
    """Without the wrapping of Markdown and LaTeX."""
    text = text.translate(_TRANSLATION).strip()
    for left, right in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)]
    text = text.replace("\\$", "$").replace("\\%", "%").replace("{,}", ",").replace("\\left", "").replace("\\right", "")
    text = _TEXT.sub(r" \1 ", text)
    text = _SPACES.sub(" ", text)
    text = re.sub(r"(?<=\d)(?=\\[dt]?frac)", " ", text)
    text = _FRACTION.sub(r"\1/\2", text)
    text = re.sub(r"\s+", " ", text).strip(" *`")
    return text.removesuffix(".").rstrip(" *`")


def _value(match: re.Match[str]) -> Fraction | None:
    parts = match.groupdict()
    if parts["sign"] and parts["sign2"]:
        return None
    if sum(c.isdigit() for c in match[0]) > MOST_DIGITS:
        return None
    if parts["whole"] is not None:
        if int(parts["bottom"]) == 0 or int(parts["top"]) >= int(parts["bottom"]):
            return None
        value = int(parts["whole"]) + Fraction(int(parts["top"]), int(parts["bottom"]))
    elif parts["top2"] is not None:
        bottom = _read(parts["bottom2"])
        if bottom == 0:
            return None
        value = _read(parts["top2"]) / bottom
    else:
        exponent = int(parts["exponent"] or 0)
        if abs(exponent) > MOST_EXPONENT:
            return None
        value = _read(parts["number"]) * Fraction(10) ** exponent
    return -value if "-" in (parts["sign"], parts["sign2"]) else value


def _read(text: str) -> Fraction:
    if re.fullmatch(r"[-+]?" + _EUROPEAN, text):
        text = text.replace(".", "").replace(",", ".")
    return Fraction(re.sub(r"[,'\u2019_ ]", "", text))


def _unit(match: re.Match[str]) -> str | None:
    """ "" for none, None for words that make it something else than one number."""
    currency, unit = match["currency"], (match["unit"] or "").strip()
    if unit.lower() in ("%", "percent"):
        return None if currency else "%"
    if unit and _NO_UNIT.search(unit):
        return None
    unit = _UNITS.get(unit, re.sub(r"\s+", " ", unit))
    if currency and unit and unit != currency:
        return None
    return unit or currency
