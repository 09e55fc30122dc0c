"""`docs/rope.md`: every number and figure in it is what the code computes today."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "rope.md").read_text(encoding="utf-8")
GIVEN = {  # numbers that define something, or name a paper or a version, and so are not computed
    *("0.1", "0.07", "1.0", "3.1", "4.05", "5.24"),
    *("2104.09864", "2306.15595", "2309.00071", "2402.13753"),
}
FIGURES = ("methods.svg", "plain.svg", "ramps.svg", "yarn.svg")


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    """The script that makes the page's numbers and figures."""
    specification = importlib.util.spec_from_file_location("rope_figures", DOCS / "figures.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn(figures: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    figures.draw(folder)
    return folder


def texts(path: Path) -> list[str]:
    """All words in an SVG file, in order."""
    return [element.text or "" for element in ET.parse(path).iter() if element.tag.endswith("}text")]  # noqa: S314


def heights(path: Path) -> list[float]:
    """Heights of the points of all curves over the 64 pairs, from 0 to 1 of the range that the curves fill."""
    found: list[float] = []
    for element in ET.parse(path).iter():  # noqa: S314
        steps = re.findall(r"[ML] \S+ (\S+)", element.get("d") or "")
        if len(steps) == 64:
            found.extend(map(float, steps))
    return [(y - min(found)) / (max(found) - min(found)) for y in found]


def test_the_tables_are_up_to_date(figures: ModuleType) -> None:
    """Each marked table equals a fresh one: after a change of the maths, `python docs/figures.py` renews them."""
    assert figures.page_with_tables(PAGE) == PAGE


def test_the_text_says_what_is_computed(figures: ModuleType) -> None:
    """Every phrase with a computed number stands in the page as the code gives it."""
    words = " ".join(PAGE.split())
    assert [fact for fact in figures.facts() if fact not in words] == []


def test_no_number_is_written_by_hand(figures: ModuleType) -> None:
    """Each decimal number in the page is in a computed phrase or table, or on the list of given ones."""
    computed = " ".join([*figures.facts(), *figures.tables().values()])
    known = GIVEN | set(re.findall(r"\d+\.\d+", computed))
    assert sorted(set(re.findall(r"\d+\.\d+", PAGE)) - known) == []


def test_a_page_without_a_marker_is_refused(figures: ModuleType) -> None:
    """A table whose marker was lost is not dropped in silence."""
    with pytest.raises(SystemExit, match="temperature"):
        figures.page_with_tables(PAGE.replace("<!-- temperature:", "<!-- heat:"))


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_are_up_to_date(name: str, drawn: Path) -> None:
    """The committed figures show what the script draws today, label by label and point by point, and are small."""
    assert texts(DOCS / "figures" / name) == texts(drawn / name)
    assert heights(DOCS / "figures" / name) == pytest.approx(heights(drawn / name), abs=1e-3)
    assert (DOCS / "figures" / name).stat().st_size < 60_000


def test_the_page_shows_every_figure(drawn: Path) -> None:
    """No figure is left out of the page, left lying about, or missing."""
    shown = re.findall(r"\]\(figures/(\S+)\)", PAGE)
    assert sorted(shown) == sorted(path.name for path in drawn.iterdir())
    assert sorted(path.name for path in (DOCS / "figures").iterdir()) == sorted(FIGURES) == sorted(shown)


def test_how_far_ntk_aware_reaches() -> None:
    """The page's word on it, against the README's table of the tiny model at factor 8."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| 8 \| (NTK-aware|default YaRN) \| (\S+) \| (\S+) \|", readme, re.MULTILINE)
    past = {name: float(beyond) / float(within) for name, within, beyond in rows[:2]}
    assert "more than three times that within L, and default YaRN's a seventh more" in PAGE
    assert 3 < past["NTK-aware"] < 4
    assert past["default YaRN"] == pytest.approx(1 + 1 / 7, abs=0.02)
