"""The figures of a report: each takes values and returns what draws them onto axes (`ropecli.plots.page_svg`)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from ropecli.frequencies import corner, divisors, frequencies, yarn_corners
from ropecli.plots import THEME, method_look
from ropecli.spec import RopeSpec, Yarn, default_attention_factor

Draw: TypeAlias = Callable[[Any], None]

NAMES: Mapping[str, str] = {
    "none": "no scaling",
    "linear": "PI",
    "ntk": "NTK-aware",
    "ntk-by-parts": "NTK-by-parts",
    "yarn": "default YaRN",
    "result": "search result",
}
"""Methods as people call them, in the order of every table and legend."""

INK, MUTED, GRID, PAPER = (THEME[name][0] for name in ("ink", "muted", "grid", "paper"))
BETTER = tuple(THEME[f"better-{level}"][0] for level in range(1, 5))
WORSE = tuple(THEME[f"worse-{level}"][0] for level in range(1, 5))
LABEL_GAP = 0.25
"""Least distance of two labels at the end of lines, in inches over the height of the figure."""


@dataclass(frozen=True, slots=True)
class Line:
    """One method along the positions: y and half the height of its band; None where nothing is known.

    label  what stands at its end
    look   colour, marker and stroke (see `method_look`)
    """

    label: str
    look: Mapping[str, Any]
    x: Sequence[float]
    y: Sequence[float | None]
    reach: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of a search: corners in pairs, attention factor, and its loss less default YaRN's on the same text."""

    low: float
    high: float
    attention_factor: float
    change: float
    documents: int

    @property
    def cell(self) -> tuple[int, int]:
        """The nearest whole (low, high)."""
        return round(self.low), round(self.high)


def tokens_text(tokens: float) -> str:
    """1,024 and 256, but 32k from 8k on where it is a whole number of them."""
    whole = round(tokens)
    return f"{whole // 1024}k" if whole >= 8192 and whole % 1024 == 0 else f"{whole:,}"


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign; a minus that is one."""
    return f"{value:+.{digits}f}".replace("-", "−")


def nice(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below a value above 0."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= value * (1 - 1e-9))


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights in [0, 1] at least `gap` apart, in the same order, as near to the wanted ones as they can be."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, 1 / max(len(wanted) - 1, 1))
    # without its gaps this is isotonic regression: neighbours that would cross are pooled around their mean
    pools: list[list[float]] = []
    for place, i in enumerate(order):
        pools.append([wanted[i] - place * gap])
        while len(pools) > 1 and sum(pools[-2]) / len(pools[-2]) > sum(pools[-1]) / len(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    free = [sum(pool) / len(pool) for pool in pools for _ in pool]
    top = 1 - (len(wanted) - 1) * gap
    heights = [0.0] * len(wanted)
    for place, (i, base) in enumerate(zip(order, free, strict=True)):
        heights[i] = min(max(base, 0.0), top) + place * gap
    return heights


def _label_ends(axes: Any, labels: Sequence[tuple[float, str, str]]) -> None:
    """(y of the end, text, colour): text to the right of the axes, moved apart, with a thin line where it was moved."""
    low, high = axes.get_ylim()
    ends = [min(max((y - low) / (high - low), 0.0), 1.0) for y, _, _ in labels]
    heights = spread(ends, LABEL_GAP / axes.figure.get_figheight())
    for end, height, (y, text, colour) in zip(ends, heights, labels, strict=True):
        beyond = " ↑" if y > high else " ↓" if y < low else ""
        axes.plot([1.0, 1.03], [end, height], transform=axes.transAxes, color=colour, linewidth=0.7, clip_on=False)
        axes.text(1.04, height, text + beyond, transform=axes.transAxes, color=colour, va="center", fontsize=9)


def _positions(axes: Any, length: int, original: int | None) -> None:
    """The axis of positions: ticks at multiples of L, and L marked."""
    axes.set_xlim(0, length)
    if original is None or original > length:
        original = None
        step = nice(length / 5)
    else:
        step = original * math.ceil(length / original / 5)
        axes.axvline(original, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        axes.text(original, 1.01, "L", transform=axes.get_xaxis_transform(), ha="center", va="bottom", color=MUTED)
    ticks = [step * i for i in range(int(length / step) + 1)]
    axes.set_xticks(ticks, [tokens_text(tick) for tick in ticks])
    axes.set_xlabel("position in the window, tokens")


def _draw_lines(axes: Any, lines: Sequence[Line], limits: tuple[float, float] | None) -> None:
    for line in lines:
        known = [(x, y, reach or 0.0) for x, y, reach in zip(line.x, line.y, line.reach, strict=True) if y is not None]
        x, y = [p[0] for p in known], [p[1] for p in known]
        colour = line.look["color"]
        axes.fill_between(
            x, [v - r for _, v, r in known], [v + r for _, v, r in known], color=colour, alpha=0.14, linewidth=0
        )
        axes.plot(x, y, linewidth=1.4, markersize=4, markevery=max(1, len(x) // 8), **line.look)
    if limits is not None:
        axes.set_ylim(*limits)
    ends = [(next(v for v in reversed(line.y) if v is not None), line) for line in lines]
    _label_ends(axes, [(y, line.label, line.look["color"]) for y, line in ends])


def loss_by_position(lines: Sequence[Line], length: int, original: int | None) -> Draw:
    """Loss against position, a line a method with its band, named at its end."""

    def draw(axes: Any) -> None:
        axes.grid(axis="y")
        _positions(axes, length, original)
        axes.set_ylabel("loss, nats a token")
        _draw_lines(axes, lines, None)

    return draw


def change_by_position(lines: Sequence[Line], length: int, original: int) -> Draw:
    """Loss less default YaRN's against position; the axis is cut where methods that are far worse leave it."""

    def ends(line: Line) -> list[float]:
        known = [(y, reach or 0.0) for y, reach in zip(line.y, line.reach, strict=True) if y is not None]
        return [y + sign * reach for y, reach in known for sign in (-1, 1)]

    farthest = {line.label: max(map(abs, ends(line)), default=0.0) for line in lines}
    near = [line for line in lines if farthest[line.label] <= 4 * max(min(farthest.values()), 0.02)]
    low = min(0.0, *(min(ends(line)) for line in near))
    high = max(0.0, *(max(ends(line)) for line in near))
    room = 0.08 * max(high - low, 0.02)

    def draw(axes: Any) -> None:
        axes.grid(axis="y")
        axes.axhline(0, color=THEME["yarn"][0], linewidth=1.2)
        _positions(axes, length, original)
        axes.set_ylabel("loss − default YaRN's, nats a token")
        _draw_lines(axes, lines, (low - room, high + room))

    return draw


def ramp(default: RopeSpec, result: RopeSpec) -> Draw:
    """What each pair's frequency is divided by, default against result; above, the turns that it makes inside L."""

    def draw(axes: Any) -> None:
        axes.grid(axis="y")
        for row, (name, spec) in enumerate((("yarn", default), ("result", result))):
            look, m = method_look(name), frequencies(spec, spec.max_length).attention_factor
            axes.plot(range(spec.pairs), divisors(spec, spec.max_length), linewidth=1.6, markersize=4, **look)
            words = NAMES[name]
            if isinstance(spec.scaling, Yarn):
                low, high = yarn_corners(spec, spec.scaling)
                words += f": ramp {low:.3g} to {high:.3g}, m {m:.3f}"
            else:
                words += f": m {m:.3f}"
            axes.text(0.02, 0.97 - 0.08 * row, words, transform=axes.transAxes, color=look["color"], va="top")
        axes.set_ylim(0.9, max(axes.get_ylim()[1], 1.28 * result.scaling.factor))
        axes.set_xlim(-0.5, result.pairs - 0.5)
        axes.set_xlabel("rotary pair, fast to slow")
        axes.set_ylabel("frequency divided by")
        place = (result.rope_theta, result.rotary_dim, result.original_length)
        ticks = {10.0**power: corner(10.0**power, *place) for power in range(-6, 9)}
        shown = {turns: pair for turns, pair in ticks.items() if -0.5 <= pair <= result.pairs - 0.5}
        above = axes.secondary_xaxis("top")
        above.set_xticks(list(shown.values()), [f"{turns:,.12g}" for turns in shown])
        above.set_xlabel(f"turns inside L = {result.original_length:,} tokens")

    return draw


def path_of_best(trials: Sequence[Trial], losses: Sequence[float]) -> list[Trial]:
    """The best so far after each trial, where its corners changed: the best of those that saw the most documents.

    The first trial is the default; where it is scored again, on more documents, it is for comparison.
    """
    path: list[Trial] = []
    best: tuple[int, float] | None = None
    for trial, loss in zip(trials, losses, strict=True):
        if best is None or trial.documents > best[0] or (trial.documents == best[0] and loss < best[1]):
            best = trial.documents, loss
            if not path or (trial.cell not in (path[-1].cell, path[0].cell)):
                path.append(trial)
    return path


def _blocks(cells: Mapping[tuple[int, int], float]) -> list[tuple[tuple[int, int], int, float]]:
    """(cell, side, value), large ones first: a cell fills the room up to the next one that was visited."""

    def side(cell: tuple[int, int]) -> int:
        others = (max(abs(cell[0] - i), abs(cell[1] - j)) for i, j in cells if (i, j) != cell)
        return min(others, default=1)

    return sorted(((cell, side(cell), value) for cell, value in cells.items()), key=lambda block: -block[1])


def levels(changes: Sequence[float]) -> list[float]:
    """Seven edges between eight colours, equally far apart around 0 and such that the best change has a deep colour."""
    best = -min(changes)
    if best <= 0:
        above = sorted(change for change in changes if change > 0)
        best = above[len(above) // 2] if above else 0.04
    step = nice(best / 4)
    return [step * i for i in range(-3, 4)]


def lattice(trials: Sequence[Trial], path: Sequence[Trial], default: tuple[float, float], result: Trial) -> Draw:
    """The cells visited, coloured by their best loss less default YaRN's on the same documents, and the way taken.

    Where a cell was scored on several sets of documents, the largest one counts.
    """
    best: dict[tuple[int, int], tuple[int, float]] = {}
    for trial in trials:
        had = best.get(trial.cell, (0, math.inf))
        if trial.documents > had[0] or (trial.documents == had[0] and trial.change < had[1]):
            best[trial.cell] = trial.documents, trial.change
    cells = {cell: change for cell, (_, change) in best.items()}
    edges = levels(list(cells.values()))
    colours = (*reversed(BETTER), *WORSE)

    def draw(axes: Any) -> None:
        for (i, j), side, change in _blocks(cells):
            colour = colours[sum(change >= edge for edge in edges)]
            size = min(side, 4)
            axes.bar(j, size, size, i - size / 2, color=colour, edgecolor=PAPER, linewidth=0.6, zorder=2)
        x, y = [t.high for t in path], [t.low for t in path]
        axes.plot(x, y, color=PAPER, linewidth=3, zorder=4, solid_joinstyle="round")
        for start, end in pairwise(zip(x, y, strict=True)):
            arrow = {
                "arrowstyle": "-|>",
                "color": INK,
                "linewidth": 1.1,
                "mutation_scale": 8,
                "shrinkA": 0,
                "shrinkB": 3,
            }
            axes.annotate("", end, start, arrowprops=arrow, zorder=4)
        marks = (("default YaRN", default, "yarn", "o", 8), ("result", (result.low, result.high), "result", "*", 12))
        for _, (low, high), name, marker, size in marks:
            look = {"markersize": size, "markerfacecolor": PAPER, "markeredgewidth": 1.6, "zorder": 5}
            axes.plot([high], [low], marker=marker, color=THEME[name][0], **look)
        lows, highs = [low for low, _ in cells], [high for _, high in cells]
        axes.set_ylim(min(lows) - 1, max(lows) + 1)
        axes.set_xlim(min(highs) - 1, max(highs) + 1)
        axes.locator_params(integer=True, nbins=8)
        axes.set_ylabel("low corner: pairs up to here are kept")
        axes.set_xlabel("high corner: pairs from here on are divided by s")
        _key(axes, edges, colours)
        for row, (label, _, name, marker, size) in enumerate(marks):
            height = 0.16 - 0.11 * row
            look = {"markersize": size, "markerfacecolor": PAPER, "markeredgewidth": 1.6, "clip_on": False}
            axes.plot([1.07], [height], marker=marker, color=THEME[name][0], transform=axes.transAxes, **look)
            axes.text(1.12, height, label, transform=axes.transAxes, va="center")

    return draw


def _key(axes: Any, edges: Sequence[float], colours: Sequence[str]) -> None:
    """The colours with what they mean, to the right of the axes; the worst on top."""
    bottom, height = 0.26, 0.072
    digits = max(0, -math.floor(math.log10(edges[-1] - edges[-2])))
    for level, colour in enumerate(colours):
        y = bottom + height * level
        axes.bar(1.07, height, 0.06, y, color=colour, transform=axes.transAxes, clip_on=False, linewidth=0)
    for level, edge in enumerate(edges, start=1):
        text = "0" if abs(edge) < 1e-12 else signed(edge, digits)
        axes.text(1.12, bottom + height * level, text, transform=axes.transAxes, va="center", fontsize=8)
    words = "nats against\ndefault YaRN"
    axes.text(1.04, bottom + height * len(colours) + 0.02, words, transform=axes.transAxes, va="bottom", fontsize=8)


def temperature(trials: Sequence[Trial], result: Trial, default: float) -> Draw:
    """m against loss: the trials at the result's corners by how many documents they saw, and the rest faint."""
    at_corners = [t for t in trials if t.cell == result.cell]
    counts = sorted({t.documents for t in at_corners})
    near = [t.change for t in at_corners]

    def draw(axes: Any) -> None:
        axes.grid(axis="y")
        low = min(*near, 0.0)
        # a trial far off would press the others flat
        high = max(0.0, min(max(near), -1.5 * low if low < 0 else 2 * sorted(near)[len(near) // 2]))
        room = 0.12 * max(high - low, 0.004)
        rest = [t for t in trials if t.cell != result.cell and low - room <= t.change <= high + room]
        axes.plot(
            [t.attention_factor for t in rest],
            [t.change for t in rest],
            linestyle="",
            marker=".",
            markersize=5,
            color=MUTED,
            alpha=0.45,
        )
        axes.axhline(0, color=THEME["yarn"][0], linewidth=1.2)
        axes.set_ylim(low - room, high + room)
        axes.axvline(default, color=THEME["yarn"][0], linewidth=0.9, linestyle=(0, (1, 2)))
        axes.text(
            default, 1.01, "0.1·ln s + 1", transform=axes.get_xaxis_transform(), ha="center", color=THEME["yarn"][0]
        )
        colour = THEME["result"][0]
        labels = []
        for index, count in enumerate(counts):
            points = sorted((t.attention_factor, t.change) for t in at_corners if t.documents == count)
            last = index == len(counts) - 1
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linewidth=1.4 if last else 0.9,
                linestyle="solid" if last else (0, (4, 2)),
                marker="o",
                markersize=4,
                markerfacecolor=colour if last else PAPER,
            )
            labels.append((points[-1][1], f"{count} document{'s' if count > 1 else ''}", colour))
        axes.plot([result.attention_factor], [result.change], marker="*", markersize=11, color=colour, zorder=5)
        _label_ends(axes, [*labels, (0.0, "default YaRN", THEME["yarn"][0])])
        axes.set_xlabel("attention factor m")
        axes.set_ylabel("loss − default YaRN's, nats a token")

    return draw


def law(points: Sequence[tuple[float, float]], a: float, b: float, original: int) -> Draw:
    """m(s) on a logarithmic axis of s: what the searches found, the line through it, and the laws of others."""
    last = max(s for s, _ in points) * 1.15
    scale = [math.exp(math.log(last) * i / 60) for i in range(61)]
    shown: tuple[tuple[str, str, Callable[[float], float]], ...] = (
        ("yarn", "YaRN 0.1·ln s + 1", default_attention_factor),
        ("ntk-by-parts", "0.07·ln s + 1", lambda s: 0.07 * math.log(s) + 1),
        ("ntk", "Phi-3 √(1 + ln s/ln L)", lambda s: math.sqrt(1 + math.log(s) / math.log(original))),
        ("result", f"{a:.3f}·ln s {'−' if b < 0 else '+'} {abs(b):.3f}", lambda s: a * math.log(s) + b),
    )

    def draw(axes: Any) -> None:
        axes.grid(axis="y")
        axes.set_xscale("log")
        labels = []
        for name, text, of in shown:
            look = {**method_look(name), "marker": ""}
            axes.plot(scale, [of(s) for s in scale], linewidth=1.5, **look)
            labels.append((of(last), text, look["color"]))
        axes.plot(*zip(*points, strict=True), linestyle="", marker="o", markersize=6, color=THEME["result"][0])
        axes.set_xlim(1, last)
        factors = sorted(s for s, _ in points)
        axes.set_xticks([1, *factors], ["1", *(f"{s:g}" for s in factors)])
        axes.minorticks_off()
        axes.set_xlabel("extension factor s")
        axes.set_ylabel("attention factor m")
        _label_ends(axes, labels)

    return draw


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of a forest plot: a difference in nats a token, and its 95 % interval where there is one."""

    label: str
    colour: str
    delta: float
    ci95: Sequence[float] | None


def forest(rows: Sequence[Difference]) -> Draw:
    """Differences with their intervals, a line each from the top down."""

    def draw(axes: Any) -> None:
        axes.grid(axis="x")
        axes.axvline(0, color=INK, linewidth=1)
        for place, row in enumerate(rows):
            if row.ci95 is not None:
                axes.plot(row.ci95, [place, place], color=row.colour, linewidth=1.8)
            axes.plot([row.delta], [place], marker="o", markersize=5, color=row.colour)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel("loss − first row's, nats a token")

    return draw
