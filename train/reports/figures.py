"""The report's pictures, as inline SVG: small panels by matplotlib, and the graph of the run.

In: numbers. Out: an `<svg>` element as text, without prolog or metadata. Colours are CSS variables of the page (`--c1`,
`--line`, ...) and ink is `currentColor`, so a picture follows the page's light or dark scheme; text stays text.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rounds.train.engine.kinds import Kind

# matplotlib knows no CSS variables: it draws in these colours, and the finished text gets the variables in their place.
_INK, _LINE, _FIRST, _SECOND, _PAGE = "#010203", "#010204", "#010205", "#010206", "#010207"
_COLOURS = {
    _INK: "currentColor",
    _LINE: "var(--line)",
    _FIRST: "var(--c1)",
    _SECOND: "var(--c2)",
    _PAGE: "var(--page)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}
_FOREST_WIDTH = 4.6
"""Inches; the names take what they need of it."""
_MAX_POINTS = 240
"""A raw curve is thinned to this many points; more cannot be told apart at the panel's width."""


@dataclass(frozen=True)
class Point:
    """A score to draw: its stage, its value, half its interval, and the place of the point that it came from."""

    name: str
    value: float
    half_width: float
    start: int | None
    rejected: bool


@dataclass(frozen=True)
class Curve:
    """One stage's values of one quantity, step by step."""

    name: str
    values: Sequence[float]


def scores(label: str, points: Sequence[Point]) -> str:
    """Draw one metric over the stages, with intervals. A rejected policy is hollow and its line dashed."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"scores {label}"}):
        figure, axes = _panel()
        for place, point in enumerate(points):
            if point.start is not None:
                before = points[point.start]
                axes.plot(
                    [point.start, place],
                    [before.value, point.value],
                    color=_FIRST,
                    lw=1.4,
                    alpha=0.6,
                    ls="--" if point.rejected else "-",
                    zorder=2,
                )
            face = _PAGE if point.rejected else _FIRST
            axes.errorbar(
                place,
                point.value,
                point.half_width,
                fmt="o",
                ms=5,
                mfc=face,
                mec=_FIRST,
                ecolor=_FIRST,
                elinewidth=1.2,
                capsize=2.5,
                zorder=3,
            )
            if len(points) <= 7:
                axes.annotate(f"{point.value:.3g}", (place, point.value + point.half_width), (0, 5), ha="center",
                              textcoords="offset points", fontsize=8, zorder=2.5,
                              bbox={"fc": _PAGE, "ec": "none", "alpha": 0.85, "pad": 0.4})  # fmt: skip
        axes.margins(y=0.22)
        axes.set_xlim(-0.5, len(points) - 0.5)
        crowded = len(points) > 5 or sum(len(point.name) for point in points) > 34
        names = [_short(point.name, 14) for point in points]
        axes.set_xticks(
            range(len(points)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center", rotation_mode="anchor"
        )
        figure.subplots_adjust(bottom=0.3 if crowded else 0.15)
        told = "; ".join(f"{point.name} {point.value:.4g}" + (" (rejected)" if point.rejected else "") for point in points)
        return _svg(figure, f"{label}: {told}")


def curves(label: str, stages: Sequence[Curve], second: bool = False, named: bool = True) -> str:
    """Draw a training curve, stage after stage: the raw values faint, their moving average strong."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"curves {label}"}):
        figure, axes = _panel()
        colour, step, ends = _SECOND if second else _FIRST, 0, []
        low, high = (end(end(stage.values) for stage in stages) for end in (min, max))
        if low > 0 and high > 50 * low:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for number, stage in enumerate(stages):
            places = _thin(len(stage.values))
            raw = [stage.values[place] for place in places]
            for values, width, alpha in ((raw, 0.8, 0.3), (smooth(stage.values, places), 1.6, 1.0)):
                mark = {"marker": "o", "ms": 3} if len(places) == 1 else {}
                axes.plot([step + 1 + place for place in places], values, color=colour, lw=width, alpha=alpha, zorder=3, **mark)
            if number:
                axes.axvline(step + 0.5, color=_LINE, lw=0.8, zorder=1)
            if named:
                axes.text(
                    step + 0.5 + len(stage.values) / 2,
                    1.0,
                    _short(stage.name, 14),
                    transform=axes.get_xaxis_transform(),
                    ha="center",
                    va="bottom",
                    fontsize=8,
                )
            step += len(stage.values)
            first, last = smooth(stage.values, (0, len(stage.values) - 1))
            ends.append(f"{stage.name} {first:.3g} to {last:.3g}")
        axes.set_xlim(0.5, step + 0.5)
        axes.set_xlabel("step", labelpad=1)
        return _svg(figure, f"{label} over the steps, moving average: {'; '.join(ends)}")


def histogram(label: str, counts: Sequence[tuple[str, int]]) -> str:
    """Draw how many rows fall into each bucket."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"histogram {label}"}):
        figure, axes = _panel()
        axes.bar(range(len(counts)), [count for _, count in counts], color=_FIRST, width=0.8)
        axes.set_xticks(range(len(counts)), [name for name, _ in counts])
        for place, (_, count) in enumerate(counts):
            axes.annotate(f"{count:,}", (place, count), (0, 2), ha="center", textcoords="offset points", fontsize=8)
        axes.set_xlabel("tokens", labelpad=1)
        axes.margins(y=0.15)
        return _svg(figure, f"{label}: " + "; ".join(f"{name} tokens {count}" for name, count in counts))


@dataclass(frozen=True)
class Interval:
    """A difference to draw, with its interval: `sign` is 1 for better, -1 for worse, 0 for what cannot be told apart."""

    name: str
    value: float
    low: float
    high: float
    sign: int


def forest(label: str, intervals: Sequence[Interval], higher_is_better: bool) -> str:
    """Draw differences to a baseline, one a line, around zero. What cannot be told apart from it is hollow.

    Where a few would press all others together, the axis ends before them and their value is written at its end.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"forest {label}"}):
        names = [_short(each.name, 24) for each in intervals]
        left = (0.15 + 0.068 * max(map(len, names))) / _FOREST_WIDTH
        height = 0.55 + 0.2 * len(intervals)
        figure = Figure(figsize=(_FOREST_WIDTH, height))
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.add_axes((left, 0.45 / height, 0.97 - left, 1 - 0.5 / height))
        axes.patch.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=_INK, lw=0.8, zorder=1)
        limit = forest_limit(intervals)
        for place, each in enumerate(intervals):
            axes.axhline(place, color=_LINE, lw=0.4, alpha=0.4, zorder=0.5)
            _interval(axes, place, each, higher_is_better, limit)
        axes.set_yticks(range(len(intervals)), names)
        axes.set_ylim(len(intervals) - 0.4, -0.6)
        if limit:
            inside = [end for each in intervals for end in (each.low, each.high) if abs(end) <= limit]
            low, high = (min(-limit / 4, *inside), max(limit / 4, *inside))
            axes.set_xlim(
                -limit if any(each.value < -limit for each in intervals) else 1.1 * low,
                limit if any(each.value > limit for each in intervals) else 1.1 * high,
            )
        axes.tick_params(axis="y", length=0, pad=4)
        axes.tick_params(axis="x", length=2.5, pad=2)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("worse ← difference → better" if higher_is_better else "better ← difference → worse", labelpad=1)
        told = "; ".join(f"{each.name} {each.value:+.3g} ({each.low:+.3g} to {each.high:+.3g})" for each in intervals)
        return _svg(figure, f"{label}, difference to the baseline with 95 % interval: {told}")


def forest_limit(intervals: Sequence[Interval]) -> float | None:
    """Return where the axis ends so that small differences stay apart, or None where all fit on one axis.

    It ends a little beyond the last interval before a jump to more than eight times as far, if half of them lie inside.
    """
    reach = sorted(max(abs(each.low), abs(each.high)) for each in intervals)
    for place in range(len(reach) // 2, len(reach)):
        if place and reach[place] > 8 * reach[place - 1] > 0:
            return 1.6 * reach[place - 1]
    return None


def _interval(axes: Axes, place: int, each: Interval, higher_is_better: bool, limit: float | None) -> None:
    colour = {1: _FIRST, -1: _SECOND}.get(each.sign, _INK)
    if limit and abs(each.value) > limit:
        side = math.copysign(1, each.value)
        value = f"{each.value:+.3g}".replace("-", "−")  # as the axis writes it
        axes.annotate(
            f"{value} →" if side > 0 else f"← {value}",
            (side * limit, place),
            color=colour,
            fontsize=8,
            ha="right" if side > 0 else "left",
            va="center",
            zorder=3,
        )
        return
    pointing = each.sign * (1 if higher_is_better else -1)
    axes.plot([each.low, each.high], [place, place], color=colour, lw=1.4, alpha=1.0 if each.sign else 0.55, zorder=2)
    axes.plot(
        each.value,
        place,
        marker={1: ">", -1: "<"}.get(pointing, "o"),
        ms=5,
        mfc=colour if each.sign else _PAGE,
        mec=colour,
        ls="",
        zorder=3,
    )


def smooth(values: Sequence[float], places: Iterable[int]) -> list[float]:
    """Return, at some places of a curve, the centred average over a twelfth of it, and at least three values; shorter at the ends.

    Only where it is drawn: at every step, time would grow with the square of the steps.
    """
    half = max(1, len(values) // 24)
    windows = (values[max(0, place - half) : place + half + 1] for place in places)
    return [math.fsum(window) / len(window) for window in windows]


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.6, 2.2))
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_axes((0.14, 0.17, 0.83, 0.73))
    axes.patch.set_visible(False)
    axes.grid(axis="y", color=_LINE, lw=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5, pad=2)
    return figure, axes


def _thin(length: int) -> list[int]:
    """Return the places of a curve that are drawn, its ends among them."""
    stride = -(-length // _MAX_POINTS)
    return sorted({*range(0, length, stride), length - 1})


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _svg(figure: Figure, label: str) -> str:
    """Write the figure, keep its `<svg>` element with the ids that it uses, round its paths, put the page's colours in."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, variable)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\d+\.\d+", lambda n: f"{float(n[0]):.1f}", path[0]), text)
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    head = re.search(r'viewBox="[^"]*"', text)
    assert head
    return f'<svg role="img" aria-label="{escape(label)}" {head[0]}>' + text[text.index(">") + 1 :]


_LEFT, _TOP, _WIDE, _HIGH, _BOX_WIDTH, _BOX_HEIGHT = 100, 8, 112, 58, 92, 26


@dataclass(frozen=True)
class Box:
    """A stage to draw: its row and kind, its state (done, accepted, rejected, skipped), its key, and the keys it reads."""

    name: str
    row: str
    kind: Kind
    state: str
    key: str
    reads: Mapping[str, str]


def lineage(rows: Sequence[str], stages: Sequence[Box]) -> str:
    """Draw the run: a row per policy, a column per kind of stage; the sources of a policy are one box."""
    cells: dict[tuple[int, int], list[Box]] = {}
    for stage in stages:
        if stage.row in rows and stage.kind.column is not None:
            cells.setdefault((rows.index(stage.row), stage.kind.column), []).append(stage)
    places = {stage.key: place for place, those in cells.items() for stage in those}
    edges = {
        (places[key], place): None
        for place, those in cells.items()
        for stage in those
        for name, key in stage.reads.items()
        if key in places and name.startswith(stage.kind.arrows)
    }
    used = sorted({column for _, column in cells})
    width, height = _LEFT + len(used) * _WIDE, 2 * _TOP + max(0, len(rows) - 1) * _HIGH + _BOX_HEIGHT

    def centre(place: tuple[int, int]) -> tuple[int, int]:
        return _LEFT + used.index(place[1]) * _WIDE + _BOX_WIDTH // 2, _TOP + place[0] * _HIGH + _BOX_HEIGHT // 2

    label = f"The run's {len(stages)} stages, a row for each of {', '.join(rows)}"
    parts = [
        f'<svg class="graph" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><defs><marker id="arrow" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" '
        'orient="auto"><path d="M0 0L6 3L0 6z"/></marker></defs>'
    ]
    parts += [
        f'<text class="row" x="0" y="{centre((row, used[0]))[1] + 4}">{escape(_short(name, 14))}</text>'
        for row, name in enumerate(rows)
        if used
    ]
    parts += [_arrow(centre(first), centre(second)) for first, second in edges]
    parts += [_box(centre(place), those) for place, those in cells.items()]
    return "".join([*parts, "</svg>"])


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    (x1, y1), (x2, y2) = start, end
    if y1 == y2 and x2 > x1:
        return f'<path class="edge" d="M{x1 + _BOX_WIDTH // 2} {y1}L{x2 - _BOX_WIDTH // 2 - 1} {y2}"/>'
    y1, y2 = y1 + _BOX_HEIGHT // 2, y2 - _BOX_HEIGHT // 2 - 1
    return f'<path class="edge" d="M{x1} {y1}C{x1} {y1 + 22} {x2} {y2 - 22} {x2} {y2}"/>'


def _box(centre: tuple[int, int], stages: Sequence[Box]) -> str:
    (x, y), first = centre, stages[0]
    text = first.kind.name if len(stages) == 1 else f"{len(stages)} {first.kind.name}s"
    return (
        f'<g class="{first.state}"><title>{escape(", ".join(stage.name for stage in stages))}</title><rect x="{x - _BOX_WIDTH // 2}" '
        f'y="{y - _BOX_HEIGHT // 2}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="5"/><text x="{x}" y="{y + 4}">{text}</text></g>'
    )
