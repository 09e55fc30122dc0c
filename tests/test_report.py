"""Reports: the page, its figures, hostile names, and a look at it in a real browser.

`tests/report/calibration.json` and `evaluation.jsonl` were written by `ropecli calibrate` (its command is in the file)
and by `ropecli evaluate examples/tiny build/tiny-1k --documents 6 --windows 1 --lengths 256,1k --window 64 --json`.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropecli.cli import main, outputs
from ropecli.errors import BadCalibration
from ropecli.frequencies import base_frequencies, frequencies
from ropecli.plots import METHOD_STROKES, THEME, page_svg
from ropecli.report import figures
from ropecli.report.calibration import calibration_curves, calibration_page
from ropecli.report.evaluation import evaluation_page, short_names
from ropecli.report.figures import Trial, levels, nice, path_of_best, spread, tokens_text
from ropecli.report.page import element, html
from ropecli.spec import RopeSpec, Yarn

HERE = Path(__file__).parent / "report"
TINY = Path(__file__).parents[1] / "examples" / "tiny"
CONTENT: dict[str, Any] = json.loads((HERE / "calibration.json").read_text("utf-8"))
ROWS = [json.loads(line) for line in (HERE / "evaluation.jsonl").read_text("utf-8").splitlines()]
CONFIG = '{\n "rope_theta": 10000.0\n}'

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;$\\frac$</title></style>\x1b[31m\n--></svg>]]>"
VOID = {"meta", "br", "img", "link"}


def one_factor(content: dict[str, Any]) -> dict[str, Any]:
    """The file as it would be for its largest factor alone: quicker to draw."""
    s = content["factors"][-1]
    kept = {key: value for key, value in content.items() if key not in ("fits", "law")}
    search = content["search"]
    return kept | {
        "factors": [s],
        "validation": [row for row in content["validation"] if row["factor"] == s],
        "by_position": [entry for entry in content["by_position"] if entry["factor"] == s],
        "search": search
        | {
            "trace": [trial for trial in search["trace"] if trial["factor"] == s],
            "found": [block for block in search["found"] if block["factor"] == s],
        },
    }


SINGLE = one_factor(CONTENT)


def evaluated(rows: list[dict[str, Any]], command: str = "ropecli evaluate") -> str:
    checkpoints = [{"source": rows[0]["model"], "model_type": "llama", "config_sha256": "0" * 64}]
    data = [{"path": "a.txt", "sha256": "1" * 64, "documents": 1}]
    return evaluation_page(rows, checkpoints, data, {"python": "3"}, command)


@pytest.fixture(scope="module")
def page() -> str:
    return calibration_page(CONTENT, CONFIG, "it")


@pytest.fixture(scope="module")
def single() -> str:
    return calibration_page(SINGLE, CONFIG, "it")


class Reader(HTMLParser):
    """A page as tags with their attributes, and the text of its table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1] and "tr" in self.open:
            self.rows[-1][-1] += data


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    """No script, no file, no address; a policy that would forbid them; every reference is to an id of the page."""
    reader = Reader(page)
    assert reader.open == []
    assert {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object", "base"} == set()
    assert "http:" not in page
    assert "https:" not in page
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 100
    wanted = {
        value[1:] for _, attributes in reader.tags for key, value in attributes.items() if key == "href" and value
    }
    wanted |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert wanted <= set(ids)
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_figures_are_in_the_colours_of_the_page(page: str) -> None:
    """No colour in a figure is fixed, so that it is legible on a dark page, too; each says what it shows."""
    drawn = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawn) == 3 * 5 + 1
    for figure in drawn:
        assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;\"])", figure) == []
        assert "rgb(" not in figure
        assert "var(--ink)" in figure
        label = re.match(r'<svg viewBox="[\d. ]+" role="img" aria-label="([^"]+)"', figure)
        assert label is not None
        assert len(label[1]) > 40
    for name in re.findall(r"var\(--([\w-]+)\)", page):
        assert f"--{name}: " in page


def test_the_verdict_stands_on_top_and_the_numbers_are_those_of_the_file(page: str) -> None:
    """The first heading is the reason in a sentence; the held-out tables hold what the file says, with intervals."""
    first = re.search(r"<h1>(.*?)</h1>", page)
    assert first is not None
    assert first[1].startswith("Factor 4: better than default YaRN on held-out text: −0.")
    rows = Reader(page).rows
    for factor in CONTENT["factors"]:
        within, beyond, whole = (row for row in CONTENT["validation"] if row["factor"] == factor)
        perplexities = [f"{row['ppl']:.2f}" for row in (within, beyond, whole)]
        (found,) = [row for row in rows if row[:4] == ["search result", *perplexities]]
        low, high = beyond["ci95"]
        assert found[5].replace("−", "-") == f"{beyond['delta']:+.4f} {low:+.4f} to {high:+.4f}"
        plain_perplexities = [f"{math.exp(row['baselines']['none']):.2f}" for row in (within, beyond, whole)]
        (plain,) = [row for row in rows if row[:4] == ["no scaling", *plain_perplexities]]
        other = beyond["differences"]["none"]
        assert plain[5].startswith(f"{other['delta']:+.4f} {other['ci95'][0]:+.4f}")


def test_at_the_bottom_stand_the_command_the_config_and_where_it_all_came_from(page: str) -> None:
    """Word for word, and every data file with its hash."""
    text = Reader(page).text
    assert CONTENT["command"] in text
    assert CONFIG in text
    assert CONTENT["checkpoint"]["config_sha256"] in text
    for source in CONTENT["data"]:
        assert source["path"] in text
        assert source["sha256"] in text
    for name, version in CONTENT["versions"].items():
        assert f"{name} {version}" in text
    for note in CONTENT["notes"]:
        assert note in text


def test_a_default_that_is_kept_is_told_so(single: str) -> None:
    """The heading says that default YaRN is kept, and so does the config to paste."""
    kept = SINGLE | {"decision": "default", "reason": "on held-out text the gain is not proved: -0.1"}
    text = Reader(calibration_page(kept, CONFIG, "it")).text
    assert "Default YaRN is kept: on held-out text the gain is not proved: −0.1." in text
    assert "The verdict keeps default YaRN" in text
    assert "The verdict keeps default YaRN" not in single


def test_an_older_file_gives_a_page_with_fewer_figures() -> None:
    """Without loss by position, intervals of the baselines and the command, those parts are left out."""
    older = {key: value for key, value in SINGLE.items() if key not in ("by_position", "command")}
    older["search"] = {key: SINGLE["search"][key] for key in ("optimizer", "trace")}
    older["validation"] = [{k: v for k, v in row.items() if k != "differences"} for row in SINGLE["validation"]]
    text = calibration_page(older, CONFIG, "it")
    assert "Loss by position" not in text
    assert "The ramp" in text
    assert "The command" not in text
    assert calibration_curves(older, "it") == {}


def test_numbers_that_are_none_are_told() -> None:
    """A single held-out document gives no interval, a baseline may have no finite loss, and so may a trial."""
    content = json.loads(json.dumps(SINGLE))
    (entry,) = content["by_position"]
    for key in ("standard_error", "delta_standard_error"):
        entry[key] = {name: [None] * len(column) for name, column in entry[key].items()}
    entry["nll"]["none"][:5] = [None] * 5
    entry["delta"]["none"] = [None] * len(entry["delta"]["none"])
    for row in content["validation"]:
        row["ci95"], row["baselines"]["none"] = None, None
        row["differences"]["none"] = {"delta": None, "ci95": None}
    for trial in content["search"]["trace"][3:9]:
        trial["nll"] = None
    text = calibration_page(content, CONFIG, "it")
    assert text.count("<svg") == 5
    assert text.count("not finite") == 6
    assert text.count("interval unknown") == 3
    assert "nan" not in re.sub("<style>.*?</style>", "", text, flags=re.S)


NEEDED = ("inv_freq", "rope", "factors", "validation", "checkpoint", "search", "cost", "data", "versions")
WRONG: list[tuple[str, Any]] = [(key, wrong) for key in NEEDED for wrong in ("missing", None, "text")]
WRONG += [(key, {}) for key in ("inv_freq", "rope", "factors", "validation", "checkpoint", "search", "cost")]
WRONG += [("reason", "missing"), ("reason", None), ("decision", "missing"), ("by_position", [{"factor": 4.0}])]


@pytest.mark.parametrize(("key", "wrong"), WRONG)
def test_a_file_that_calibrate_did_not_write_is_refused(key: str, wrong: Any) -> None:
    """Whatever is missing or of another kind: a calibration error that names the file, and no traceback."""
    content = {k: v for k, v in SINGLE.items() if k not in (key, "by_position")}
    content |= {} if wrong == "missing" else {key: wrong}
    with pytest.raises(BadCalibration) as caught:
        calibration_page(content, CONFIG, "file.json")
    assert caught.value.where == "file.json"


# ------------------------------------------------------------------------------------------------ hostile names


def hostile_content() -> dict[str, Any]:
    return SINGLE | {
        "checkpoint": {"source": HOSTILE, "model_type": HOSTILE, "config_sha256": HOSTILE},
        "reason": HOSTILE,
        "notes": [HOSTILE],
        "data": [{"path": HOSTILE, "sha256": HOSTILE, "documents": 2}],
        "versions": {HOSTILE: HOSTILE},
        "command": HOSTILE,
        "search": SINGLE["search"] | {"optimizer": HOSTILE},
        "seed": HOSTILE,
    }


def hostile_rows() -> list[dict[str, Any]]:
    models = {name: HOSTILE + str(index) for index, name in enumerate(dict.fromkeys(row["model"] for row in ROWS))}
    return [row | {"model": models[row["model"]], "method": HOSTILE} for row in ROWS]


def test_hostile_names_are_text() -> None:
    """Names full of markup give the same elements as plain ones, and can be read on the page."""
    pages = {
        "calibrate": (calibration_page(hostile_content(), HOSTILE, "it"), calibration_page(SINGLE, HOSTILE, "it")),
        "evaluate": (evaluated(hostile_rows(), HOSTILE), evaluated(ROWS)),
    }
    for hostile, plain in pages.values():
        found, usual = Reader(hostile), Reader(plain)
        assert {tag for tag, _ in found.tags} == {tag for tag, _ in usual.tags}
        assert not [key for _, attributes in found.tags for key in attributes if key.startswith("on")]
        assert found.open == []
        assert "\x1b" not in hostile
        assert "<script>alert(1)</script>" in found.text


@given(st.text())
def test_what_is_not_html_is_escaped(text: str) -> None:
    """Any text is one piece of text and one attribute, with its control characters made visible."""
    reader = Reader(element("p", text, class_=text))
    assert [tag for tag, _ in reader.tags] == ["p"]
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    assert reader.text == visible
    assert reader.tags[0][1]["class"] == visible
    assert html(html(text)) == html(text)


def test_names_are_short_and_differ() -> None:
    """The last part of a path, as many as are needed, and never two that are the same."""
    assert short_names(["runs/a/model", "runs/b/model", "x.json"]) == {
        "runs/a/model": "a/model",
        "runs/b/model": "b/model",
        "x.json": "x.json",
    }
    long = short_names(["a" * 80, "/"])
    assert len(long["a" * 80]) == 22
    assert long["/"] == "/"


# ------------------------------------------------------------------------------------------------ the figures


def polylines(svg: str, points: int) -> list[tuple[list[tuple[float, float]], str]]:
    """The lines of so many points, and their styles."""
    found = []
    for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*fill: none[^"]*)"', svg):
        steps = [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)]
        if len(steps) == points:
            found.append((steps, style))
    return found


def test_the_ramp_is_the_divisors() -> None:
    """Heights are a linear function of base / inv_freq, for the default and for the result."""
    plain = RopeSpec(10000.0, 128, 128, 4096, 16384)
    default = RopeSpec(10000.0, 128, 128, 4096, 16384, Yarn.default(4.0))
    result = RopeSpec(10000.0, 128, 128, 4096, 16384, Yarn(4.0, 1.05, 20.0, 2.0))
    svg = page_svg("ramp", "ramp", figures.ramp(default, result))
    drawn = [steps for steps, _ in polylines(svg, 64)]
    assert len(drawn) == 2
    base = base_frequencies(plain.rope_theta, plain.rotary_dim)
    top, bottom = drawn[0][-1][1], drawn[0][0][1]
    for steps, spec in zip(drawn, (default, result), strict=True):
        divisors = [w / now for w, now in zip(base, frequencies(spec).inv_freq, strict=True)]
        assert [y for _, y in steps] == pytest.approx(
            [bottom + (top - bottom) * (d - 1) / 3 for d in divisors], abs=1e-3
        )
    assert "turns inside L = 4,096 tokens" in svg


def test_the_lines_are_the_losses(single: str) -> None:
    """In the loss by position a line a method has heights that are a linear function of the file's numbers."""
    entry = SINGLE["by_position"][0]
    svg = re.findall(r"<svg.*?</svg>", single, re.S)[0]
    drawn = {style: steps for steps, style in polylines(svg, len(entry["edges"]) - 1)}
    of = {name: next(s for style, s in drawn.items() if f"var(--{name})" in style) for name in entry["nll"]}
    first, last = entry["nll"]["none"][0], entry["nll"]["none"][-1]
    y0, y1 = of["none"][0][1], of["none"][-1][1]
    for name, losses in entry["nll"].items():
        heights = [y0 + (y1 - y0) * (loss - first) / (last - first) for loss in losses]
        assert [y for _, y in of[name]] == pytest.approx(heights, abs=1e-2)


def test_the_law_shows_the_laws_of_others_and_every_point() -> None:
    """YaRN's 0.1 ln s + 1, 0.07, Phi-3's, and the fitted line, each named."""
    block = CONTENT["law"]
    points = [(point["factor"], point["attention_factor"]) for point in block["points"]]
    svg = page_svg("law", "law", figures.law(points, block["a"], block["b"], 256))
    for words in ("YaRN 0.1·ln s + 1", "0.07·ln s + 1", "Phi-3 √(1 + ln s/ln L)", f"{block['a']:.3f}·ln s"):
        assert words in svg
    assert len(polylines(svg, 61)) == 4
    assert svg.count("<use") >= len(points)


def test_a_figure_that_is_drawn_twice_is_the_same() -> None:
    """No date and no random id: a report under version control changes when its content does."""
    assert calibration_page(SINGLE, CONFIG, "it") == calibration_page(SINGLE, CONFIG, "it")


@given(st.lists(st.floats(-2, 3), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_labels_are_apart_and_in_order(wanted: list[float], gap: float) -> None:
    """Inside [0, 1], never closer than the gap where there is room, in the order of the ends; alone they stay put."""
    placed = spread(wanted, gap)
    room = min(gap, 1 / max(len(wanted) - 1, 1))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)
    ordered = [placed[i] for i in sorted(range(len(wanted)), key=lambda i: wanted[i])]
    assert all(b - a >= room - 1e-9 for a, b in pairwise(ordered))
    assert spread([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_scales_are_round_numbers() -> None:
    """Steps of 1, 2 or 5; the edges of the map lie around 0 and reach the best change."""
    assert [nice(v) for v in (1, 1.1, 3, 7, 0.03)] == pytest.approx([1, 2, 5, 10, 0.05])
    for changes in ([-0.1, 0.0, 5.0], [0.0, 0.3], [0.0]):
        edges = levels(changes)
        assert edges[3] == 0
        assert len(edges) == 7
        assert -edges[0] == edges[-1] > 0
        assert min(changes) >= edges[0] * 4 / 3 - 1e-9
    assert [tokens_text(n) for n in (256, 1024, 4096, 8192, 10000, 131072)] == [
        *("256", "1,024", "4,096", "8k", "10,000", "128k"),
    ]


def test_the_path_is_the_best_so_far() -> None:
    """The best among those that saw the most documents; the default again, on more documents, is no step back."""
    steps = [
        (0, 7, 1, 3.0),
        (2, 7, 1, 3.1),
        (2, 8, 1, 2.9),
        (0, 7, 3, 3.5),
        (3, 8, 3, 3.4),
        (4, 8, 3, 3.6),
        (3, 7, 12, 3.2),
    ]
    trials = [Trial(low, high, 1.1, 0.0, documents) for low, high, documents, _ in steps]
    path = path_of_best(trials, [loss for *_, loss in steps])
    assert [trial.cell for trial in path] == [(0, 7), (2, 8), (3, 8), (3, 7)]


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2, of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("side", [0, 1], ids=["light", "dark"])
def test_colours_are_legible_on_light_and_dark(side: int) -> None:
    """Text at least 4.5 : 1 against the page; the names at the ends of lines are text in the method's colour."""
    paper = THEME["paper"][side]
    for name in ("ink", "muted", *METHOD_STROKES):
        assert contrast(THEME[name][side], paper) >= (4.5 if name in ("ink", "muted") else 4.0), name
    for way in ("better", "worse"):
        scale = [contrast(THEME[f"{way}-{level}"][side], paper) for level in range(1, 5)]
        assert scale == sorted(scale)
    assert len({colours[side] for colours in THEME.values()}) == len(THEME)


# linear RGB as it is seen without the first, second or third kind of cone: Machado, Oliveira and Fernandes, A
# Physiologically-based Model for Simulation of Color Vision Deficiency, IEEE TVCG 15 (2009), table 1, severity 1
SIGHT = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, sight: str) -> npt.NDArray[np.float64]:
    """CIE L*a*b* of #rrggbb as it is seen."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(SIGHT[sight]) @ linear, 0, 1) / XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("side", [0, 1], ids=["light", "dark"])
def test_methods_differ_for_every_kind_of_sight(side: int, sight: str) -> None:
    """Any two methods are at least 15 apart in L*a*b*, about six just noticeable differences."""
    seen = {name: lab(THEME[name][side], sight) for name in METHOD_STROKES}
    near = {(a, b): float(np.linalg.norm(seen[a] - seen[b])) for a, b in combinations(seen, 2)}
    assert min(near.values()) >= 15, min(near, key=lambda pair: near[pair])


# ------------------------------------------------------------------------------------------------ evaluate


def test_the_page_of_an_evaluation() -> None:
    """A table a model with every row, differences with intervals, the loss by position of both in one figure."""
    text = evaluated(ROWS, "ropecli evaluate 'a b'")
    rows = Reader(text).rows
    for row in ROWS:
        (found,) = [
            r for r in rows if r[:2] == ["config", f"{row['length']:,}"] and r[2].startswith(f"{row['nll']:.4f}")
        ]
        if row["difference"]:
            assert found[-1].replace("−", "-").startswith(f"{row['difference']['delta']:+.4f} ")
    assert "Lowest loss at 1,024 tokens" in text
    assert html("ropecli evaluate 'a b'") in text
    losses, differences = re.findall(r"<svg.*?</svg>", text, re.S)
    assert ">tiny<" in losses
    assert ">tiny-1k<" in losses
    assert ">tiny-1k, 1,024<" in differences


def many_rows() -> list[dict[str, Any]]:
    """Two models by seven methods."""
    names = ("config", *(name for name in METHOD_STROKES if name != "result"))
    changed = [(row | {"method": name}, index / 10) for row in ROWS for index, name in enumerate(names)]
    return [
        row | {"by_position": [part | {"nll": part["nll"] + more} for part in row["by_position"]]}
        for row, more in changed
    ]


def test_several_models_and_methods_have_figures_of_their_own() -> None:
    """Figures for each model, in which a method has the same colour and its usual name."""
    text = evaluated(many_rows())
    *both, differences = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(both) == 2
    assert ">default YaRN, 1,024<" in differences
    for losses in both:
        for name in ("linear", "yarn"):
            assert re.search(rf"var\(--{name}\)[^>]*>{figures.NAMES[name]}[ ↑↓]*<", losses)
    assert "Loss by position, tiny-1k" in text


def test_a_protocol_without_positions_has_its_table() -> None:
    """`sliding` has no loss by position and no perplexity past L."""
    bare = {"within_nll": None, "beyond_nll": None, "by_position": [], "protocol": "sliding"}
    text = evaluated([row | bare for row in ROWS])
    assert "Loss by position" not in text
    assert "ppl past L" not in text
    assert "sliding" in text


# ------------------------------------------------------------------------------------------------ the command line


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_a_page_from_an_earlier_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`calibrate --from` searches nothing; the config to paste is what `convert` writes, both schemas."""
    (tmp_path / "file.json").write_text(json.dumps(SINGLE))
    out, figure = tmp_path / "page.html", tmp_path / "figure.svg"
    source = ["--from", str(tmp_path / "file.json")]
    assert status("calibrate", str(TINY), *source, "--report", str(out), "--plot", str(figure)) == 0
    assert capsys.readouterr() == ("", f"wrote {figure}\nwrote {out}\n")
    text = Reader(out.read_text("utf-8")).text
    assert status("convert", str(TINY), *source, "-o", str(tmp_path / "new"), "-q") == 0
    config = json.loads((tmp_path / "new" / "config.json").read_text("utf-8"))
    block = json.loads(re.search(r"A click marks all of it\.(\{.*?\n\})", text, re.S)[1])  # type: ignore[index]
    assert {"rope_scaling", "rope_parameters"} <= set(block)
    assert block == {key: config[key] for key in block}
    assert "<svg" in figure.read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.svg", "file.json", "new", "page.html"]


def test_another_model_than_the_one_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page is made, says why convert would refuse, and a note is on standard error."""
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    theta = {"rope_theta": 5000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
    (tmp_path / "config.json").write_text(json.dumps(config | theta))
    (tmp_path / "file.json").write_text(json.dumps(SINGLE))
    out = tmp_path / "page.html"
    assert status("calibrate", str(tmp_path), "--from", str(tmp_path / "file.json"), "--report", str(out)) == 0
    assert "was calibrated for another config" in capsys.readouterr().err
    assert "convert refuses: " in out.read_text("utf-8")


REFUSED: dict[str, tuple[list[str], str]] = {
    "suffix": (["--report", "page.pdf"], ".html"),
    "same file": (["--report", "a.html", "-o", "a.html"], "same file"),
    "there": (["--report", "there.html"], "already exists"),
    "folder": (["--report", "missing/a.html"], "does not exist"),
    "figure": (["--plot", "a.pdf"], ".png or .svg"),
    "from with data": (["--from", "x.json", "--report", "a.html"], "--from"),
    "from alone": (["--from", "x.json"], "--from"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Usage errors with status 2, and not a file more than before: the model and the text do not even exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("kept")
    arguments, words = REFUSED[name]
    data = [] if name == "from alone" else ["--data", "nowhere"]
    assert status("calibrate", "nowhere", *data, "--factor", "2", *arguments) == 2
    assert words in capsys.readouterr().err
    if "--report" in arguments and "-o" not in arguments and "--from" not in arguments:
        assert status("evaluate", "nowhere", "--data", "nowhere", *arguments) == 2
    assert (tmp_path / "there.html").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["there.html"]


def test_without_matplotlib_nothing_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 4 and what to install, before the model is looked for."""
    monkeypatch.setattr(outputs, "find_spec", lambda _: None)
    out = str(tmp_path / "page.html")
    for verb in (["calibrate", "--factor", "2"], ["evaluate"]):
        assert status(*verb, "nowhere", "--data", "nowhere", "--report", out) == 4
        assert "pip install matplotlib" in capsys.readouterr().err
    assert status("inspect", str(TINY), "--plot", str(tmp_path / "figure.svg")) == 4
    shown = capsys.readouterr()
    assert (shown.out, "pip install matplotlib" in shown.err) == ("", True)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ a real browser

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-dev-shm-usage"),
)

CLIPPED = """() => {
  const wrong = [], width = document.documentElement.clientWidth;
  for (const e of document.querySelectorAll("body *")) {
    const style = getComputedStyle(e), box = e.getBoundingClientRect(), inside = e.closest(".wide");
    const what = e.tagName + " " + (e.textContent || "").trim().slice(0, 40);
    if (!box.width || !box.height) continue;
    if (inside === null && (box.left < -1 || box.right > width + 1)) wrong.push("off the page: " + what);
    if (inside === e && (box.right > width + 1 || e.scrollWidth > e.clientWidth && style.overflowX !== "auto"))
      wrong.push("a table that cannot be scrolled: " + what);
    if (e instanceof HTMLElement && inside === null && e.scrollWidth > e.clientWidth + 1 && style.display !== "inline")
      wrong.push("text wider than its box: " + what);
  }
  for (const e of document.querySelectorAll("svg text")) {
    const box = e.getBoundingClientRect(), svg = e.closest("svg").getBoundingClientRect();
    if (box.left < svg.left - 2 || box.right > svg.right + 2 || box.top < svg.top - 2 || box.bottom > svg.bottom + 2)
      wrong.push("text outside its figure: " + e.textContent);
    if (box.height < 8) wrong.push("text too small: " + box.height + " px " + e.textContent);
  }
  return wrong;
}"""

OVERLAPPING = """() => {
  const wrong = [];
  for (const svg of document.querySelectorAll("svg")) {
    const all = [...svg.querySelectorAll("text")].filter(e => !getComputedStyle(e).transform.includes("-1"))
      .map(e => [e.textContent, e.getBoundingClientRect()]);
    all.forEach(([a, p], i) => all.slice(i + 1).forEach(([b, q]) => {
      const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (x > 2 && y > 0.35 * Math.min(p.height, q.height)) wrong.push(a + " | " + b);
    }));
  }
  return wrong;
}"""

COLOURS = """() => [...document.querySelectorAll("svg text, p, td, h1, figcaption")].map(e => {
  const style = getComputedStyle(e);
  return e instanceof SVGElement ? style.fill : style.color;
})"""


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, without a window; skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pictures go; ROPECLI_PICTURES names a folder to look at them in."""
    folder = Path(os.environ.get("ROPECLI_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


PAGES: dict[str, Callable[[], str]] = {
    "calibrate": lambda: calibration_page(CONTENT, CONFIG, "it"),
    "evaluate": lambda: evaluated(ROWS),
    "evaluate-many": lambda: evaluated(many_rows()),
    "hostile-calibrate": lambda: calibration_page(hostile_content(), HOSTILE * 3, "it"),
    "hostile-evaluate": lambda: evaluated(hostile_rows(), HOSTILE * 3),
}


def as_hex(colour: str) -> str:
    red, green, blue = re.findall(r"[\d.]+", colour)[:3]
    return f"#{int(red):02x}{int(green):02x}{int(blue):02x}"


@pytest.mark.browser
@pytest.mark.parametrize("name", PAGES)
def test_in_a_browser(name: str, browser: Any, pictures: Path) -> None:
    """At 400 and 1400 px, light and dark: nothing is fetched, no script runs, nothing is clipped, all is legible."""
    file = pictures / f"{name}.html"
    file.write_text(PAGES[name](), "utf-8")
    for width in (400, 1400):
        for scheme, side in (("light", 0), ("dark", 1)):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab = context.new_page()
            fetched: list[str] = []
            said: list[str] = []
            tab.on("request", lambda request, fetched=fetched: fetched.append(request.url))
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("dialog", lambda dialog, said=said: (said.append(dialog.message), dialog.dismiss()))
            tab.goto(file.as_uri(), wait_until="load")
            assert fetched == [file.as_uri()]
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate(CLIPPED) == []
            assert tab.evaluate(OVERLAPPING) == []
            background = as_hex(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert background == THEME["paper"][side]
            colours = {as_hex(colour) for colour in tab.evaluate(COLOURS)}
            assert min(contrast(colour, background) for colour in colours) >= 4.0
            assert said == []
            picture = pictures / f"{name}-{width}-{scheme}.png"
            tab.screenshot(path=picture, full_page=True)
            assert picture.read_bytes().startswith(b"\x89PNG")
            context.close()


@pytest.mark.browser
def test_printed(browser: Any, pictures: Path) -> None:
    """On A4 paper, also from a dark screen: black on white, and nothing wider than the paper."""
    file = pictures / "print.html"
    file.write_text(PAGES["calibrate"](), "utf-8")
    context = browser.new_context(viewport={"width": 690, "height": 900}, color_scheme="dark")
    tab = context.new_page()
    tab.goto(file.as_uri())
    tab.emulate_media(media="print", color_scheme="dark")
    assert as_hex(tab.evaluate("getComputedStyle(document.body).backgroundColor")) == THEME["paper"][0]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 690  # A4 without its margins, at 96 dots an inch
    tab.pdf(path=pictures / "print.pdf", format="A4")
    assert (pictures / "print.pdf").read_bytes().startswith(b"%PDF")
    context.close()


@pytest.mark.browser
def test_the_check_for_clipping_can_fail(browser: Any, tmp_path: Path) -> None:
    """A wide word, a wide figure and labels on top of each other are each found."""
    file = tmp_path / "page.html"
    file.write_text(
        "<!doctype html><body><p style='width:50px'>incomprehensibilities</p><div style='width:3000px'>wide</div>"
        "<svg width=100 height=20><text x=90 y=10>outside</text>"
        "<text x=0 y=10>one</text><text x=2 y=10>two</text></svg>"
    )
    tab = browser.new_page(viewport={"width": 400, "height": 400})
    tab.goto(file.as_uri())
    found = " ".join(tab.evaluate(CLIPPED))
    for words in ("text wider than its box: P", "off the page: DIV", "text outside its figure: outside"):
        assert words in found
    assert tab.evaluate(OVERLAPPING) == ["one | two"]
    tab.close()
