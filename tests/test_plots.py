"""`ropecli.plots`: files, their sizes and labels, the curves inside them, and what is refused."""

import math
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from ropecli.errors import BadUsage, NoResource
from ropecli.frequencies import base_frequencies, frequencies
from ropecli.plots import plot_divisors, plot_loss_by_position, plot_wavelengths
from ropecli.spec import (
    Dynamic,
    LayerRope,
    Linear,
    Longrope,
    Ntk,
    NtkByParts,
    Plain,
    Proportional,
    RopeSpec,
    Scaling,
    Yarn,
)

LLAMA = RopeSpec(10000.0, 128, 128, 4096, 16384, Yarn.default(4.0))
POSITIONS = [32.0, 96.0, 160.0, 224.0, 288.0, 352.0]
LOSSES = {"plain": [3.3, 3.2, 3.2, 3.1, 3.9, 4.5], "yarn": [3.4, 3.3, 3.3, 3.2, 3.2, 3.2]}
CURVES = {
    name: [(position, loss, loss - 0.1, loss + 0.1) for position, loss in zip(POSITIONS, losses, strict=True)]
    for name, losses in LOSSES.items()
}


def layer(spec: RopeSpec, name: str = "default") -> LayerRope:
    return LayerRope(name, 32, spec, {})


def texts(path: Path) -> list[str]:
    """All words in an SVG file."""
    return [element.text or "" for element in ET.parse(path).iter() if element.tag.endswith("}text")]  # noqa: S314


def lines(path: Path, points: int) -> list[tuple[list[tuple[float, float]], str]]:
    """The polylines of so many points in an SVG file, in its coordinates (y grows downwards), and their styles."""
    found = []
    for element in ET.parse(path).iter():  # noqa: S314
        steps = re.findall(r"[ML] (\S+) (\S+)", element.get("d") or "")
        style = element.get("style") or ""
        if len(steps) == points and "fill: none" in style:
            found.append(([(float(x), float(y)) for x, y in steps], style))
    return found


def curves(path: Path, points: int) -> list[list[tuple[float, float]]]:
    """The polylines alone."""
    return [steps for steps, _ in lines(path, points)]


def pixels(path: Path) -> tuple[int, int]:
    """Width and height in the header of a PNG file."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_a_png_is_800_pixels_wide_and_a_panel_a_layer_type_high(tmp_path: Path) -> None:
    """One panel is 800 by 450 pixels, and each further kind of layer adds one below."""
    sliding = layer(replace(LLAMA, scaling=Plain(), max_length=4096), "sliding_attention")
    plot_wavelengths([layer(LLAMA)], tmp_path / "one.png")
    plot_wavelengths([layer(LLAMA, "full_attention"), sliding], tmp_path / "two.PNG")
    assert pixels(tmp_path / "one.png") == (800, 450)
    assert pixels(tmp_path / "two.PNG") == (800, 900)


def test_the_labels_say_what_happens_to_which_pairs(tmp_path: Path) -> None:
    """Llama-2 with default YaRN at s = 4: corners 20 and 46, L and L' named, title with kind, factor and base."""
    plot_wavelengths([layer(LLAMA)], tmp_path / "figure.svg")
    assert set(texts(tmp_path / "figure.svg")) >= {
        "default: yarn, factor 4, θ = 10,000, 64 pairs",
        "kept: pairs 0–20",
        "ramp: pairs 21–45",
        "interpolated (divided by 4): pairs 46–63",
        "before",
        "after: yarn, factor 4",
        "L = 4,096",
        "L' = 16,384",
        "wavelength: tokens for a full turn",
        "rotary pair, fast to slow",
    }


def test_the_curves_are_the_wavelengths(tmp_path: Path) -> None:
    """Heights in the figure are a linear function of the logarithm of 2π / inv_freq, before and after scaling."""
    plot_wavelengths([layer(LLAMA)], tmp_path / "figure.svg")
    before, after = curves(tmp_path / "figure.svg", 64)
    base = [math.log(2 * math.pi / w) for w in base_frequencies(10000.0, 128)]
    scaled = [math.log(2 * math.pi / w) for w in frequencies(LLAMA).inv_freq]
    slope = (before[-1][1] - before[0][1]) / (base[-1] - base[0])
    assert slope < 0
    for drawn, expected in ((before, base), (after, scaled)):
        heights = [before[0][1] + slope * (value - base[0]) for value in expected]
        assert [y for _, y in drawn] == pytest.approx(heights, abs=1e-3)


REGIONS: list[tuple[Scaling, int, set[str]]] = [
    (Linear(4.0), 16384, {"interpolated (divided by 4): pairs 0–63"}),
    (Ntk(4.0), 16384, {"kept: pair 0", "ramp: pairs 1–62", "interpolated (divided by 4): pair 63"}),
    (Dynamic(4.0), 16384, {"kept: pair 0", "ramp: pairs 1–62", "interpolated (divided by 13): pair 63"}),
    (Dynamic(4.0), 4096, {"kept: pairs 0–63"}),
    (NtkByParts(4.0), 16384, {"kept: pairs 0–20", "ramp: pairs 21–45", "interpolated (divided by 4): pairs 46–63"}),
    (
        Longrope(4.0, (1.0,) * 64, (1.0, 4.0) * 16 + (5.0,) * 32, 1.1, 1.1),
        16384,
        {"kept: 16 pairs", "interpolated (divided by 4 or more): 48 pairs"},
    ),
    (Proportional(1.0, 0.25), 4096, {"kept: pairs 0–15", "not turning: pairs 16–63"}),
    (Plain(), 4096, set()),
]


@pytest.mark.parametrize(("scaling", "max_length", "expected"), REGIONS, ids=lambda value: type(value).__name__)
def test_regions_of_every_kind(scaling: Scaling, max_length: int, expected: set[str], tmp_path: Path) -> None:
    """Kept, ramp, interpolated and standing pairs are counted right for kinds with and without a ramp."""
    plot_wavelengths([layer(replace(LLAMA, scaling=scaling, max_length=max_length))], tmp_path / "figure.svg")
    words = ("kept", "ramp", "interpolated", "not turning")
    assert {text for text in texts(tmp_path / "figure.svg") if text.startswith(words)} == expected


def test_lines_differ_without_colour(tmp_path: Path) -> None:
    """In greyscale the lines are told apart by their strokes and markers."""
    specs = {str(s): replace(LLAMA, scaling=s) for s in (Linear(4.0), Ntk(4.0), NtkByParts(4.0), Yarn.default(4.0))}
    plot_divisors(specs, tmp_path / "figure.svg")
    strokes = {re.sub(r"stroke: #\w+", "", style) for _, style in lines(tmp_path / "figure.svg", 64)}
    assert len(strokes) == len(specs)


def test_divisors_are_what_frequencies_are_divided_by(tmp_path: Path) -> None:
    """Position interpolation is a flat line at the factor, and YaRN climbs from 1 to it."""
    plot_divisors(
        {"PI": replace(LLAMA, scaling=Linear(4.0)), "YaRN": LLAMA, "none": replace(LLAMA, scaling=Plain())},
        tmp_path / "figure.svg",
    )
    interpolated, yarn, none = ([y for _, y in curve] for curve in curves(tmp_path / "figure.svg", 64))
    assert len(set(interpolated)) == len(set(none)) == 1
    height = [none[0] + (interpolated[0] - none[0]) * (d - 1) / 3 for d in (1.0, 4.0)]
    assert [yarn[0], yarn[-1]] == pytest.approx(height, abs=1e-3)
    assert yarn == sorted(yarn, reverse=True)


def test_loss_by_position(tmp_path: Path) -> None:
    """Each curve is a line through its points with a name in the legend, and L is marked."""
    plot_loss_by_position(CURVES, tmp_path / "loss.svg", 256)
    plot_loss_by_position(CURVES, tmp_path / "loss.png", 256)
    assert {"plain", "yarn", "L = 256", "position in the window, tokens"} <= set(texts(tmp_path / "loss.svg"))
    plain, yarn = curves(tmp_path / "loss.svg", len(POSITIONS))
    scale = (plain[5][1] - plain[0][1]) / (4.5 - 3.3)
    assert scale < 0
    for drawn, losses in ((plain, LOSSES["plain"]), (yarn, LOSSES["yarn"])):
        heights = [plain[0][1] + scale * (loss - 3.3) for loss in losses]
        assert [y for _, y in drawn] == pytest.approx(heights, abs=1e-3)
    assert pixels(tmp_path / "loss.png") == (800, 450)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_figure_is_the_same_file(suffix: str, tmp_path: Path) -> None:
    """No date, no random ids: a figure under version control changes when its content does."""
    for name in ("first", "second"):
        plot_wavelengths([layer(LLAMA)], tmp_path / f"{name}{suffix}")
    first = (tmp_path / f"first{suffix}").read_bytes()
    assert first == (tmp_path / f"second{suffix}").read_bytes()
    assert b"date" not in first.lower()


def test_a_users_style_changes_nothing(tmp_path: Path) -> None:
    """The figure does not depend on the user's matplotlib settings, and leaves them as they were."""
    plot_wavelengths([layer(LLAMA)], tmp_path / "before.png")
    with mpl.rc_context({"font.size": 20.0, "axes.facecolor": "black"}):
        settings = dict(mpl.rcParams)
        plot_wavelengths([layer(LLAMA)], tmp_path / "after.png")
        assert dict(mpl.rcParams) == settings
    assert (tmp_path / "before.png").read_bytes() == (tmp_path / "after.png").read_bytes()


@pytest.mark.parametrize("name", ["figure.pdf", "figure", "figure.jpeg", ".svg"])
def test_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    """Only .png and .svg are drawn; the message names the file, and nothing is written."""
    for draw in (
        lambda path: plot_wavelengths([layer(LLAMA)], path),
        lambda path: plot_divisors({"yarn": LLAMA}, path),
        lambda path: plot_loss_by_position(CURVES, path, 256),
    ):
        with pytest.raises(BadUsage, match=r"\.png or \.svg") as caught:
            draw(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    """No rope, no spec and no curve are mistakes of the caller, told in one line."""
    for draw in (
        lambda path: plot_wavelengths([], path),
        lambda path: plot_divisors({}, path),
        lambda path: plot_loss_by_position({"plain": []}, path, 256),
    ):
        with pytest.raises(BadUsage, match="there is no"):
            draw(tmp_path / "figure.svg")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A missing folder, and a folder in the way, give one line and leave nothing behind."""
    (tmp_path / "folder.svg").mkdir()
    for path in (tmp_path / "missing" / "figure.svg", tmp_path / "folder.svg"):
        with pytest.raises(NoResource, match="cannot be written") as caught:
            plot_wavelengths([layer(LLAMA)], path)
        assert caught.value.where == str(path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


def test_without_matplotlib_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """matplotlib is optional: where it is absent, the error names the extra that brings it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NoResource, match="matplotlib") as caught:
        plot_wavelengths([layer(LLAMA)], tmp_path / "figure.svg")
    assert caught.value.hint == "pip install matplotlib"
    assert not list(tmp_path.iterdir())


def test_importing_plots_does_not_import_matplotlib_and_drawing_not_pyplot(tmp_path: Path) -> None:
    """Start-up does not pay for figures, and drawing opens no window system."""
    program = f"""
import sys
from pathlib import Path
import ropecli.plots
assert "matplotlib" not in sys.modules
ropecli.plots.plot_loss_by_position({CURVES!r}, Path({str(tmp_path / "loss.svg")!r}), 256)
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
