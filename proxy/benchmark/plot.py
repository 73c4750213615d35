"""The curves over the number of users, as PNG and SVG. Needs matplotlib, the extra `plots`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import Figures
from .show import LATENCIES, Results, spread_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING = "plots need matplotlib: pip install 'slurmgate[plots]'"

COLORS = {"direct": "#7f7f7f", "gateway": "#1f6fb4"}
MARKERS = {"direct": "s", "gateway": "o"}

_DIGITS = re.compile(r"(\d\.\d\d)\d+")

Levels = Mapping[int, Mapping[str, Figures]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One row of curves: a title, and figures by number of users and target."""

    title: str
    levels: Levels


def is_possible() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def files_of(given: Path) -> tuple[Path, Path]:
    """The PNG and the SVG of `--plot FILE`, whether FILE has one of these endings or none."""
    stem = given.with_suffix("") if given.suffix.lower() in (".png", ".svg") else given
    return stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")


def draw(results: Results, given: Path) -> tuple[Path, Path]:
    """Writes both files. Raises `OSError`."""
    return draw_panels([Panel(results.plan.model, results.levels)], given)


def draw_panels(panels: Sequence[Panel], given: Path) -> tuple[Path, Path]:
    """One row a panel: TTFT, ITL, end to end (p50 and p99), tokens per second."""
    import matplotlib as mpl  # noqa: PLC0415  # an extra
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    png, svg = files_of(given)
    # text stays text, and the same figures give the same file
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "slurmgate", "font.size": 8}):
        figure = Figure(figsize=(12, 2.9 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        rows = figure.subplots(len(panels), 4, squeeze=False)
        for row, panel in zip(rows, panels, strict=True):
            for axes, (latency, title) in zip(row, LATENCIES.items(), strict=False):
                _latency(axes, panel, latency, title)
            _throughput(row[3], panel)
        rows[0][0].legend(fontsize=7, frameon=False)
        figure.savefig(png, dpi=130)
        drawn = StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        svg.write_text(slim(drawn.getvalue()))
    return png, svg


def slim(svg: str) -> str:
    """Without indents and with two digits after the point: a quarter less, and a hundredth of a point off at most."""
    return _DIGITS.sub(r"\1", "\n".join(line.strip() for line in svg.splitlines())) + "\n"


def _latency(axes: Axes, panel: Panel, latency: str, title: str) -> None:
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    for name in _targets(panel.levels):
        for percent, style in ((50, "-"), (99, ":")):
            points = [
                (users, spread_of(level[name], latency).at(percent))
                for users, level in panel.levels.items()
                if name in level and spread_of(level[name], latency).count
            ]
            _curve(axes, points, name, style, f"{name}, p{percent}")
    _axes(axes, f"{panel.title}: {title}, ms")
    if axes.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(_plain)
        axes.minorticks_off()


def _throughput(axes: Axes, panel: Panel) -> None:
    for name in _targets(panel.levels):
        points = [(users, level[name].output_tokens_per_s) for users, level in panel.levels.items() if name in level]
        _curve(axes, points, name, "-", name)
    _axes(axes, f"{panel.title}: output tokens/s")
    axes.set_ylim(bottom=0)


def _curve(axes: Axes, points: Sequence[tuple[int, float]], name: str, style: str, label: str) -> None:
    if not points:
        return
    options: dict[str, Any] = {"color": COLORS.get(name), "marker": MARKERS.get(name, "."), "markersize": 3}
    axes.plot([x for x, _ in points], [y for _, y in points], style, linewidth=1.2, label=label, **options)


def _axes(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(_plain)
    axes.minorticks_off()
    axes.set_xlabel("users")
    axes.grid(visible=True, which="major", alpha=0.3)


def _plain(value: float, _: float) -> str:
    return f"{value:g}"


def _targets(levels: Levels) -> list[str]:
    found = {name for level in levels.values() for name in level}
    return [name for name in COLORS if name in found]
