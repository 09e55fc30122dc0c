"""Every page: its links lead somewhere, the options that it names exist, and what is to be cited is this version."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from ropecli import __version__
from ropecli.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]
ELSEWHERE = {
    *("--nproc-per-node", "--nnodes", "--rdzv-endpoint"),  # torchrun
    *("--model-path", "--model", "--rope-freq-base", "--rope-freq-scale", "--max-model-len"),  # runtimes
    *("--yarn-beta-fast", "--yarn-beta-slow"),
    *("--factors", "--seeds", "--slow-seeds", "--lengths", "--runs", "--ways", "--parts", "--measure"),  # benchmarks
    *("--at-once", "--searches", "--no-truth", "--measure-gpu"),
    *("--kills", "--calibrations"),  # tests/faults
    "--journal",  # examples/claims.py
}
"""Options of other programs that the pages name."""


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Files that are there, and headings that are in them."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_options_exist() -> None:
    """Of `ropecli` itself, or on the list of those of other programs."""
    verbs = get_command(app).commands.values()  # type: ignore[attr-defined]
    known = {word for verb in verbs for option in verb.params for word in (*option.opts, *option.secondary_opts)}
    named = {page.name: set(re.findall(r"(?<![\w-])--[a-z][a-z-]*\w", page.read_text("utf-8"))) for page in PAGES}
    for page, options in named.items():
        assert options - known - ELSEWHERE - {"--help", "--version"} == set(), page
    assert set().union(*named.values()) >= ELSEWHERE


def test_what_is_cited_is_this_version() -> None:
    """The version and the licence of CITATION.cff are those of the package."""
    lines = (ROOT / "CITATION.cff").read_text("utf-8").splitlines()
    assert f"version: {__version__}" in lines
    assert "license: Apache-2.0" in lines
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text("utf-8")
