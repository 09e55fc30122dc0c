"""The direction of imports, read from the source: down only, and one door for each dependency."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("ropecli", "calibrate")

ROWS: tuple[tuple[str, ...], ...] = (
    ("ropecli.__main__",),
    ("ropecli.cli",),
    ("ropecli.render", "ropecli.options", "ropecli.plots", "ropecli.report"),
    (
        "ropecli.writer",
        "ropecli.gguf_writer",
        "ropecli.agreement",
        "ropecli.baking",
        "calibrate.run",
        "calibrate.fit",
        "calibrate.sharing",
        "calibrate.verdict",
        "calibrate.plan",
        "calibrate.evaluation",
        "calibrate.passkey",
    ),
    ("ropecli.conversion", "ropecli.inspection", "calibrate.calibration"),
    ("ropecli", "calibrate"),
    ("ropecli.spec",),
    ("ropecli.errors",),
)
"""From the top down; the longest name that fits decides. A module imports from its own row or from a lower one."""

NARROW: dict[str, tuple[str, ...]] = {
    "ropecli.frequencies": ("ropecli.spec",),
    "ropecli.dialects": (
        "ropecli.dialects",
        "ropecli.frequencies",
        "ropecli.json_edit",
        "ropecli.spec",
        "ropecli.errors",
    ),
    "ropecli.runtimes": (
        "ropecli.runtimes",
        "ropecli.dialects",
        "ropecli.frequencies",
        "ropecli.spec",
        "ropecli.errors",
    ),
    "calibrate": ("calibrate", "ropecli.spec", "ropecli.frequencies", "ropecli.checkpoint", "ropecli.errors"),
}
"""Packages that may see no more of ours than this."""

SEE_CALIBRATE = ("calibrate", "ropecli.cli", "ropecli.render")

DOORS: dict[str, tuple[str, ...]] = {
    "typer": ("ropecli.cli", "ropecli.options"),
    "click": (),
    "rich": ("ropecli.render",),
    "scipy": ("calibrate.search", "calibrate.statistics", "calibrate.passkey"),
    "transformers": ("calibrate.model", "calibrate.fence"),
    "torch.distributed": ("calibrate.parallel",),
    "torch": ("calibrate", "ropecli.table_lookup"),
    "matplotlib": ("ropecli.plots",),
    "pyarrow": ("calibrate.corpus",),
    "huggingface_hub": ("ropecli.hub",),
    # their files are read and written here with Python's own struct and json; transformers needs both
    "gguf": (),
    "safetensors": (),
}
"""Dependency → where it may be imported."""

SLOW = ("torch", "transformers", "scipy", "matplotlib", "pyarrow", "gguf", "huggingface_hub")
"""What `ropecli` may import inside of functions only, so that it starts in a blink."""


@dataclass(frozen=True, slots=True)
class Import:
    """`importer` imports `imported`; `at_start` where that happens when the importer is loaded."""

    importer: str
    imported: str
    line: int
    at_start: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@cache
def modules() -> dict[str, Path]:
    """Dotted name → file, for every module of both packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _nodes(node: ast.AST, at_start: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_start
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from _nodes(child, at_start=False)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _nodes(child, at_start and not inside)


@cache
def imports() -> tuple[Import, ...]:
    """Every import in both packages; of `from package import module` the module."""
    found = []
    for name, path in modules().items():
        for node, at_start in _nodes(ast.parse(path.read_text("utf-8")), at_start=True):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                assert node.level == 0, f"{name}:{node.lineno}: a relative import"
                members = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [member if member in modules() else str(node.module) for member in members]
            found += [Import(name, target, node.lineno, at_start) for target in dict.fromkeys(targets)]
    return tuple(found)


def fits(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of these or lies under one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def row(name: str) -> int:
    """The row of a module: that of the longest prefix."""
    candidates = [(len(prefix), i) for i, prefixes in enumerate(ROWS) for prefix in prefixes if fits(name, (prefix,))]
    return max(candidates)[1]


def ours(name: str) -> bool:
    return fits(name, PACKAGES)


def test_imports_point_down():
    """No module imports from a row above its own."""
    up = [found for found in imports() if ours(found.imported) and row(found.imported) < row(found.importer)]
    assert [str(found) for found in up] == []


def test_imports_make_no_circle():
    """Within a row, too, there is an order: no module reaches itself through what it imports."""
    below = {
        name: {i.imported for i in imports() if i.importer == name and i.imported in modules()} for name in modules()
    }
    while free := [name for name, targets in below.items() if not targets]:
        for name in free:
            del below[name]
        for targets in below.values():
            targets -= set(free)
    assert below == {}


@pytest.mark.parametrize("package", NARROW)
def test_a_narrow_package_sees_what_it_may(package):
    """Maths sees values, dialects no runtime, runtimes no checkpoint, the experiment four modules of the tool."""
    seen = [i for i in imports() if fits(i.importer, (package,)) and ours(i.imported)]
    assert [str(found) for found in seen if not fits(found.imported, NARROW[package])] == []


def test_only_the_command_line_sees_the_experiment():
    """In ropecli only cli and render import calibrate, and not while they are loaded."""
    seen = [found for found in imports() if fits(found.imported, ("calibrate",))]
    assert [str(found) for found in seen if not fits(found.importer, SEE_CALIBRATE)] == []
    assert [str(found) for found in seen if fits(found.importer, ("ropecli",)) and found.at_start] == []


@pytest.mark.parametrize("dependency", DOORS)
def test_one_door_for_each_dependency(dependency):
    """A dependency is imported where it belongs and nowhere else."""
    users = [found for found in imports() if fits(found.imported, (dependency,))]
    assert [str(found) for found in users if not fits(found.importer, DOORS[dependency])] == []


def test_no_door_leads_nowhere():
    """Whoever may import a dependency does, a narrow package sees all that it may, and every row has its modules."""
    used = {dependency: [i.importer for i in imports() if fits(i.imported, (dependency,))] for dependency in DOORS}
    doors = [(dependency, door) for dependency, places in DOORS.items() for door in places]
    assert [door for door in doors if not any(fits(name, door[1:]) for name in used[door[0]])] == []
    views = {(i.importer, i.imported) for i in imports()}
    sights = [(package, sight) for package, seen in NARROW.items() for sight in seen]
    assert [s for s in sights if not any(fits(a, s[:1]) and fits(b, s[1:]) for a, b in views)] == []
    assert {name for names in ROWS for name in names} <= modules().keys()


def test_every_dependency_is_known():
    """Anything that is neither ours nor Python's own has a door, or is numpy."""
    known = {*DOORS, "numpy", *PACKAGES, *sys.stdlib_module_names}
    assert [str(found) for found in imports() if found.imported.partition(".")[0] not in known] == []


def test_the_tool_loads_nothing_slow():
    """In ropecli the slow libraries are imported inside of functions."""
    early = [found for found in imports() if found.at_start and fits(found.importer, ("ropecli",))]
    assert [str(found) for found in early if fits(found.imported, SLOW)] == []


def test_the_reader_of_imports_sees_them_all():
    """The checks above would fail on a wrong import: this one finds those that are known to be there."""
    found = {(i.importer, i.imported): i.at_start for i in imports()}
    assert found["ropecli.frequencies", "ropecli.spec"] is True
    assert found["ropecli.cli.convert", "ropecli.writer"] is False
    assert found["calibrate.model", "torch"] is True
    assert (
        row("ropecli.cli")
        < row("ropecli.writer")
        < row("ropecli.conversion")
        < row("ropecli.json_edit")
        < row("ropecli.spec")
    )
    assert len(modules()) > 40
