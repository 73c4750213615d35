"""Figures of a shared machine: ratios of what was measured side by side, and how sure they are. Pure.

A machine that others use is slower in one minute than in the next. So targets are loaded in short turns, A B A B, each
turn of A is compared with the turn of B beside it, and the median of those ratios is what counts: a disturbance of
some turns moves it little. Its interval is that of the sign test: it follows from the order of the values alone, so it
holds whatever their distribution is (W. J. Conover, Practical Nonparametric Statistics, section 3.2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.9


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours by theirs; NaN where there is nothing to compare.

    paired      the median of the pairs' ratios
    low, high   the interval that holds the true median with at least 90 %, or all that there is when pairs are too few
    of_medians  our median by their median
    pairs       how many
    sure        whether there were pairs enough for the 90 %
    """

    paired: float
    low: float
    high: float
    of_medians: float
    pairs: int
    sure: bool


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank; NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def median_ranks(count: int, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Which of `count` sorted values enclose the true median, as indices; None where even all of them do not suffice.

    Values are above or below the true median like tosses of a coin. The narrowest pair (k, count - 1 - k) is taken
    whose chance of missing, twice that of at most k heads, is at most 1 - confidence.
    """
    best = None
    missed = 0.0
    for k in range(count // 2):
        missed += 2 * math.comb(count, k) / 2**count
        if missed > 1 - confidence:
            break
        best = (k, count - 1 - k)
    return best


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of values measured in turns, each with its neighbour. Pairs with a NaN or a zero below are left out.

    Raises `ValueError` when there are not equally many.
    """
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if b > 0 and not math.isnan(a)]
    if not pairs:
        return Ratio(math.nan, math.nan, math.nan, math.nan, 0, False)
    ratios = sorted(a / b for a, b in pairs)
    ranks = median_ranks(len(ratios))
    low, high = ranks or (0, len(ratios) - 1)
    return Ratio(
        paired=statistics.median(ratios),
        low=ratios[low],
        high=ratios[high],
        of_medians=statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs),
        pairs=len(ratios),
        sure=ranks is not None,
    )


def slope(values: Sequence[float]) -> float:
    """Per step, by least squares; 0 of fewer than two values."""
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope
