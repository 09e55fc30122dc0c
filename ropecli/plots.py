"""Figures: wavelengths by pair, divisors by pair, loss by position; and any figure as SVG for a page.

The only file that knows matplotlib, which is an optional dependency and slow to import: it is imported inside the
functions, and its global state (pyplot, the user's styles) is left alone. Every line differs by marker and stroke as
well as by colour.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from io import BytesIO
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

from ropecli.errors import BadUsage, NoResource
from ropecli.frequencies import divisors, frequencies
from ropecli.spec import Dynamic, LayerRope, Plain, RopeSpec
from ropecli.staging import write_whole

WIDTH, HEIGHT, DPI = 8.0, 4.5, 100
"""Inches of one panel, and dots an inch: a PNG is 800 pixels wide."""

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666")
STROKES = ("solid", "dashed", "dashdot", "dotted")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

THEME: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#101418"),
    "ink": ("#1b1f24", "#e6e9ed"),
    "muted": ("#59636e", "#9aa5b1"),
    "grid": ("#dde2e7", "#2c343d"),
    "none": ("#737a83", "#868686"),
    "linear": ("#5c3400", "#eed25f"),
    "dynamic": ("#5443ee", "#8f5cff"),
    "ntk": ("#13864f", "#4ae0a0"),
    "ntk-by-parts": ("#c926b5", "#ff94d0"),
    "yarn": ("#003a80", "#5ba6ff"),
    "result": ("#d14600", "#d8633a"),
    "better-4": ("#08488c", "#c3e2ff"),
    "better-3": ("#2f7fc1", "#79bcf2"),
    "better-2": ("#7db5de", "#3d81b8"),
    "better-1": ("#cbe1f1", "#254a69"),
    "worse-1": ("#fbdcc0", "#452d1c"),
    "worse-2": ("#f0b080", "#704420"),
    "worse-3": ("#d67a36", "#a8662c"),
    "worse-4": ("#a04a12", "#dd9450"),
}
"""Name → colour on a light and on a dark page. A method has the same colour everywhere; no two colours are equal.

The methods' colours were searched for the greatest distance between any two, for those who see all colours and for
protanopes, deuteranopes and tritanopes.
"""

METHOD_STROKES: Mapping[str, tuple[str, Any]] = {
    "none": ("P", "dotted"),
    "linear": ("s", "dashdot"),
    "dynamic": ("v", (0, (5, 1, 1, 1, 1, 1))),
    "ntk": ("^", (0, (5, 1))),
    "ntk-by-parts": ("D", "dashed"),
    "yarn": ("o", "solid"),
    "result": ("*", "solid"),
}
"""Method → marker and stroke."""

REGIONS = {
    "kept": ("#ffffff", ""),
    "ramp": ("#f0f0f0", "//"),
    "interpolated": ("#d4d4d4", ""),
    "still": ("#ffffff", ".."),
}
"""What happens to a pair → the fill and the hatching of its part of the figure."""


def _matplotlib() -> tuple[Any, Callable[..., Any]]:
    """matplotlib.style, and what makes a figure. Raises NoResource where it is not installed."""
    try:
        from matplotlib import style  # noqa: PLC0415 - an optional extra, and slow
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional extra, and slow
    except ImportError as error:
        raise NoResource("drawing needs matplotlib", hint="pip install matplotlib") from error
    return style, Figure


@contextmanager
def _drawing(path: Path, panels: int = 1) -> Iterator[list[Any]]:
    """Axes below each other, written to `path` when the block ends without an error."""
    suffix = path.suffix.lower()
    if suffix not in {".png", ".svg"}:
        raise BadUsage(
            f"a figure is a .png or .svg file, found {suffix or 'no suffix'}", where=str(path), hint="name it FILE.svg"
        )
    style, figure_of = _matplotlib()
    settings = {
        "svg.hashsalt": "ropecli",
        "svg.fonttype": "none",
        "font.size": 11,
        "hatch.color": "#c8c8c8",
        "text.parse_math": False,  # a dollar sign in a path is no formula
    }
    with style.context(["default", settings], after_reset=True):
        figure = figure_of(figsize=(WIDTH, HEIGHT * panels), dpi=DPI, layout="constrained")
        axes = figure.subplots(panels, 1, squeeze=False)
        yield [row[0] for row in axes]
        buffer = BytesIO()
        metadata = {"Date": None, "Creator": "ropecli"} if suffix == ".svg" else {"Software": "ropecli"}
        figure.savefig(buffer, format=suffix[1:], metadata=metadata)
    write_whole(buffer.getvalue(), path, force=True)


PAGE_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.labelsize": 9,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": THEME["ink"][0],
    "axes.labelcolor": THEME["ink"][0],
    "axes.edgecolor": THEME["muted"][0],
    "xtick.color": THEME["muted"][0],
    "ytick.color": THEME["muted"][0],
    "xtick.labelcolor": THEME["ink"][0],
    "ytick.labelcolor": THEME["ink"][0],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": THEME["grid"][0],
    "grid.linewidth": 0.7,
}


def page_svg(name: str, label: str, draw: Callable[[Any], None], size: tuple[float, float] = (4.7, 3.2)) -> str:
    """A figure as an `<svg>` element for a page, in the colours of the page.

    name   of the figure, unlike any other on the page: ids begin with it
    label  what the figure shows, for those who do not see it; escaped here
    draw   is given the axes; of colours it uses the light ones of `THEME`, which become var(--NAME)
    size   inches; on the page the figure is as wide as its place

    Raises NoResource without matplotlib.
    """
    style, figure_of = _matplotlib()
    with style.context(["default", {**PAGE_STYLE, "svg.hashsalt": name}], after_reset=True):
        figure = figure_of(figsize=size, dpi=72, layout="constrained")
        draw(figure.subplots())
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _for_a_page(buffer.getvalue().decode(), name, label)


def _for_a_page(text: str, name: str, label: str) -> str:
    """matplotlib's file → an element: without its preamble and style sheet, ids and colours made those of the page."""
    box = re.search(r'viewBox="([\d. ]+)"', text)
    body = text[text.index(">", text.index("<svg")) + 1 :]
    for useless in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>", r"<!--.*?-->", r"\n\s*(?=\n)"):
        body = re.sub(useless, "", body, flags=re.S)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    body = re.sub(r"font: ((?:\w+ )*[\d.]+px) [^;\"]*", r"font: \1 var(--sans)", body)
    names = {light: theme for theme, (light, _) in THEME.items()}
    body = re.sub("#[0-9a-f]{6}", lambda found: f"var(--{names[found[0]]})" if found[0] in names else found[0], body)
    view = box[1] if box else "0 0 1 1"
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(label)}">{body}'


def method_look(name: str) -> dict[str, Any]:
    """Colour, marker and stroke of a method; `result` is the calibrated one."""
    marker, stroke = METHOD_STROKES[name]
    return {"color": THEME[name][0], "marker": marker, "linestyle": stroke}


def _styles() -> Iterator[dict[str, Any]]:
    """One look after the other: the strokes repeat after four lines, the markers after eight."""
    for colour, marker, stroke in zip(cycle(COLOURS), cycle(MARKERS), cycle(STROKES), strict=False):
        yield {"color": colour, "marker": marker, "linestyle": stroke, "linewidth": 1.5, "markersize": 5}


def _spread_markers(pairs: int) -> int:
    """How many pairs from one marker to the next, so that at most about 32 are drawn."""
    return max(1, math.ceil(pairs / 32))


def _described(spec: RopeSpec) -> str:
    """One line of words and numbers: the kind of scaling and its factor."""
    if isinstance(spec.scaling, Plain):
        return "plain"
    at_length = f" at {spec.max_length:,} tokens" if spec.length_dependent else ""
    return f"{spec.rope_type}, factor {spec.scaling.factor:g}{at_length}"


def _wavelengths(inv_freq: Sequence[float]) -> list[float]:
    """Tokens for a full turn, λ = 2π / inv_freq; NaN (nothing drawn) for a pair that stands still."""
    return [2 * math.pi / w if w > 0 else math.nan for w in inv_freq]


def _regions(found: Sequence[float], full: float) -> list[str]:
    """For each divisor: kept, interpolated (divided by the whole factor), ramp (in between), or still (not turning)."""

    def region(divisor: float) -> str:
        if divisor == math.inf:
            return "still"
        if divisor <= 1 + 1e-6:
            return "kept"
        return "interpolated" if divisor >= full * (1 - 1e-6) else "ramp"

    return [region(divisor) for divisor in found]


def _shade(axes: Any, spec: RopeSpec) -> None:
    """A band behind the curves for each run of pairs that fare alike, and one legend entry a region."""
    found = divisors(spec, spec.max_length)
    full = found[-1] if isinstance(spec.scaling, Dynamic) else spec.scaling.factor
    more = " or more" if any(full * (1 + 1e-6) < divisor < math.inf for divisor in found) else ""
    words = {"interpolated": f"interpolated (divided by {full:.4g}{more})", "still": "not turning"}
    runs = [(name, [d for d, _ in run]) for name, run in groupby(enumerate(_regions(found, full)), lambda x: x[1])]
    for name, (colour, hatch) in REGIONS.items():
        spans = [pairs for region, pairs in runs if region == name]
        for pairs in spans:
            axes.axvspan(pairs[0] - 0.5, pairs[-1] + 0.5, facecolor=colour, hatch=hatch, linewidth=0, zorder=0)
        if spans:
            label = f"{words.get(name, name)}: {_pairs_in_words(spans)}"
            axes.fill([], [], facecolor=colour, hatch=hatch, edgecolor="#c8c8c8", label=label)


def _pairs_in_words(spans: Sequence[Sequence[int]]) -> str:
    if len(spans) > 1:
        return f"{sum(map(len, spans))} pairs"
    first, last = spans[0][0], spans[0][-1]
    return f"pair {first}" if first == last else f"pairs {first}–{last}"


def _mark_length(axes: Any, tokens: int, name: str, side: str) -> None:
    axes.axhline(tokens, color="#000000", linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    axes.text(1.01, tokens, f"{name} = {tokens:,}", transform=axes.get_yaxis_transform(), va=side, fontsize=10)


def _wavelength_panel(axes: Any, rope: LayerRope) -> None:
    spec = rope.spec
    if isinstance(spec.scaling, Plain):
        shown = {"plain, no scaling": spec}
    else:
        shown = {"before": replace(spec, scaling=Plain()), f"after: {_described(spec)}": spec}
        _shade(axes, spec)
    every = _spread_markers(spec.pairs)
    for (label, each), look in zip(shown.items(), _styles(), strict=False):
        wavelengths = _wavelengths(frequencies(each, each.max_length).inv_freq)
        fill = "#ffffff" if label == "before" else look["color"]
        axes.plot(range(each.pairs), wavelengths, label=label, markevery=every, markerfacecolor=fill, **look)
    _mark_length(axes, spec.original_length, "L", "top" if spec.max_length > spec.original_length else "center")
    if spec.max_length > spec.original_length:
        _mark_length(axes, spec.max_length, "L'", "bottom")
    axes.set_title(
        f"{rope.name}: {_described(spec)}, θ = {_plain_number(spec.rope_theta)}, {spec.pairs} pairs", fontsize=12
    )
    axes.set_ylabel("wavelength: tokens for a full turn")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_plain_number)
    axes.set_xlabel("rotary pair, fast to slow")
    axes.set_xlim(-0.5, spec.pairs - 0.5)
    axes.legend(loc="upper left", fontsize=10, framealpha=1.0)


def _plain_number(value: float, _position: object = None) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def plot_wavelengths(ropes: Sequence[LayerRope], path: Path) -> None:
    """Wavelength of every rotary pair before and after scaling, one panel a kind of layer, to a PNG or SVG file.

    ropes    at least one; its spec is drawn for a sequence of its `max_length` where it depends on the length
    path     .png or .svg; replaced if it is there, and written whole or not at all

    A wavelength is the number of tokens for a full turn, 2π / inv_freq; pairs that stand still are left out. L and L'
    are marked, and shaded are the pairs that the scaling keeps, changes in part, or divides by the whole factor.
    Raises BadUsage for another suffix or no rope, NoResource without matplotlib or for a place that cannot be written.
    """
    if not ropes:
        raise BadUsage("there is no rotary embedding to draw", where=str(path))
    with _drawing(path, len(ropes)) as panels:
        for axes, rope in zip(panels, ropes, strict=True):
            _wavelength_panel(axes, rope)


def plot_divisors(specs: Mapping[str, RopeSpec], path: Path) -> None:
    """What each pair's frequency is divided by, one line a label of `specs`, to a PNG or SVG file.

    1 means that the pair is kept, the factor that it is fully interpolated. Drawn at each spec's `max_length`.
    Raises BadUsage for another suffix or no spec, NoResource without matplotlib or for a place that cannot be written.
    """
    if not specs:
        raise BadUsage("there is no rotary embedding to draw", where=str(path))
    with _drawing(path) as (axes,):
        for (label, spec), look in zip(specs.items(), _styles(), strict=False):
            found = divisors(spec, spec.max_length)
            axes.plot(range(spec.pairs), found, label=label, markevery=_spread_markers(spec.pairs), **look)
        axes.set_xlabel("rotary pair, fast to slow")
        axes.set_ylabel("frequency divided by")
        axes.grid(axis="y", color="#dddddd")
        axes.legend(loc="best", fontsize=10)


def plot_loss_by_position(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]], path: Path, trained_length: int
) -> None:
    """Loss against the position in the window, one line a label, to a PNG or SVG file.

    curves          label → (position in tokens, nats per token, low and high end of its interval), by position; a label
                    that is a method's name has that method's look
    path            .png or .svg; replaced if it is there, and written whole or not at all
    trained_length  L in tokens, marked

    Raises BadUsage for another suffix or no curve, NoResource without matplotlib or for a place that cannot be written.
    """
    if not any(curves.values()):
        raise BadUsage("there is no loss to draw", where=str(path))
    with _drawing(path) as (axes,):
        for (label, points), own in zip(curves.items(), _styles(), strict=False):
            look = {**own, **method_look(label)} if label in METHOD_STROKES else own
            positions, losses, lows, highs = zip(*points, strict=True) if points else ((), (), (), ())
            axes.fill_between(positions, lows, highs, color=look["color"], alpha=0.15, linewidth=0)
            axes.plot(positions, losses, label=label, markevery=_spread_markers(len(points)), **look)
        axes.axvline(trained_length, color="#000000", linewidth=1, linestyle=(0, (1, 2)))
        axes.text(
            trained_length,
            1.01,
            f"L = {trained_length:,}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
        )
        axes.xaxis.set_major_formatter(_plain_number)
        axes.set_xlabel("position in the window, tokens")
        axes.set_ylabel("loss, nats per token")
        axes.grid(axis="y", color="#dddddd")
        axes.legend(loc="best", fontsize=10)
