"""What the gateway must reach, and whether it did. Pure.

A figure that comes with an interval says how sure it is: "ok" and "missed" when the whole interval is on one side of
the target, "ok, not sure" and "missed, not sure" when the target lies in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .estimates import Ratio


class Judgement(Enum):
    OK = "ok"
    OK_NOT_SURE = "ok, not sure"
    MISSED_NOT_SURE = "missed, not sure"
    MISSED = "missed"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the verdict: what was measured, and what it may be at most.

    low, high   the interval around `figure`; the figure itself where it is exact
    how         what makes it: shown where it was not measured
    """

    what: str
    figure: float
    target: float
    unit: str = ""
    low: float = math.nan
    high: float = math.nan
    how: str = ""

    @property
    def judgement(self) -> Judgement:
        if math.isnan(self.figure):
            return Judgement.UNKNOWN
        low = self.figure if math.isnan(self.low) else self.low
        high = self.figure if math.isnan(self.high) else self.high
        if self.figure <= self.target:
            return Judgement.OK if high <= self.target else Judgement.OK_NOT_SURE
        return Judgement.MISSED if low > self.target else Judgement.MISSED_NOT_SURE


def of_ratio(what: str, ratio: Ratio | None, target: float, how: str) -> Line:
    """A ratio judged by the median of its pairs. None: that peer did not run."""
    if ratio is None:
        return Line(what, math.nan, target, how=how)
    low, high = (ratio.low, ratio.high) if ratio.sure else (-math.inf, math.inf)
    return Line(what, ratio.paired, target, low=low, high=high, how=how)


def missed(lines: Sequence[Line]) -> list[Line]:
    """Those whose figure is beyond its target, surely or not."""
    return [line for line in lines if line.judgement in (Judgement.MISSED, Judgement.MISSED_NOT_SURE)]


def rows(lines: Sequence[Line]) -> list[list[str]]:
    """For a table."""
    shown = [["", "measured", "90 % interval", "at most", ""]]
    for line in lines:
        if line.judgement is Judgement.UNKNOWN:
            shown.append([line.what, "-", "", number(line.target) + line.unit, f"not measured: {line.how}"])
            continue
        exact = math.isnan(line.low)
        interval = "" if exact else f"{number(line.low)} to {number(line.high)}"
        if math.isinf(line.low):
            interval = "too few pairs"
        measured, most = number(line.figure) + line.unit, number(line.target) + line.unit
        shown.append([line.what, measured, interval, most, line.judgement.value])
    return shown


def number(value: float) -> str:
    """Three digits that count, and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, min(4, 2 - math.floor(math.log10(abs(value)))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
