"""`docs/json.md` names every field of every JSON document of the tool, and none that is not there."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields as members
from pathlib import Path
from typing import Any

import pytest

from calibrate.calibration import Validation
from calibrate.passkey import PasskeyRow
from ropecli import errors
from ropecli.cli import main
from ropecli.render.evaluation import passkey_to_json
from ropecli.render.terminal import show_error

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "json.md").read_text("utf-8")
REPORTS = ROOT / "tests" / "report"
TINY = str(ROOT / "examples" / "tiny")
TEXT = str(ROOT / "examples" / "text" / "calibration")

NAMED = {
    *("rope[].parameters", "rope[].sources", "findings[].fix", "runtimes", "files", "versions", "memory_bytes_by_rank"),
    *("search.found[]", "fits[].rope", "fits[].calibration", "fits[].cost"),
    *("validation[].baselines", "validation[].differences"),
    *(f"by_position[].{name}" for name in ("nll", "standard_error", "delta", "delta_standard_error")),
}
"""Objects whose keys are names of something, or are said elsewhere on the page."""

VALUES = {"edits[].old", "edits[].new", "baked"}
"""Fields that hold any JSON."""

RARE = {
    *("rope[].inv_freq_long", "rope[].mrope_section", "rope[].sliding_window"),
    *("weights[].where", "weights[].problem", "weights[].hint"),
    *("rope.short_factor", "rope.long_factor", "rope.short_attention_factor"),
    *("calibration.optimism", "law.default.delta", "law.default.ci95", "size", "findings[]"),
    *(f"{name}.{key}" for name in ("difference", "beyond_difference") for key in ("delta", "ci95", "documents")),
}
"""Fields that no document made here has."""


def documented(section: str, after: str = "") -> set[str]:
    """First column of the first table under a heading, or of the one after a sentence there."""
    part = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    assert after in part
    table = re.search(r"(?:^\|.*\n)+", part.partition(after)[2] if after else part, re.M)
    assert table is not None
    return set(re.findall(r"^\| `([^`]+)` \|", table[0], re.M))


def paths(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all fields, as the page spells them."""
    if isinstance(value, Mapping) and path not in VALUES:
        for key, inner in value.items():
            yield from paths(inner, f"{path}.{'NAME' if path in NAMED else key}".removeprefix("."))
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for inner in value:
            yield from paths(inner, f"{path}[]")
    elif value or not isinstance(value, dict | list):  # an empty one says nothing of what may be in it
        yield path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The document that a verb prints with --json."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


def agree(said: set[str], *contents: Any, empty: Collection[str] = ()) -> None:
    """Every field of the documents is on the page, and every field on the page is in one of them, or rare."""
    found = {path for content in contents for path in paths(content)}
    assert found - said == set()
    assert said - found - RARE - set(empty) == set()


def test_inspect(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A checkpoint with a finding, and what differs from another."""
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    }
    other = tmp_path / "config.json"
    other.write_text(json.dumps(config), "utf-8")
    agree(documented("inspect"), printed(capsys, "inspect", str(other)), empty={"notes"})
    agree(documented("inspect", "With `--diff OTHER`:"), printed(capsys, "inspect", TINY, "--diff", str(other)))


def test_calibrate(capsys: pytest.CaptureFixture[str]) -> None:
    """A calibration file for several factors, and a plan."""
    content = json.loads((REPORTS / "calibration.json").read_text("utf-8"))
    del content["command"]  # put in for the page that is drawn from it
    alone = {key: value for key, value in content.items() if key not in ("fits", "law")}
    rows = {f"validation[].{member.name}" for member in members(Validation)} - {
        "validation[].baselines",
        "validation[].differences",
    }
    said = documented("calibrate")
    assert rows <= said
    agree(said, alone, empty=rows)
    agree(documented("calibrate", "several factors were asked for:"), {key: content[key] for key in ("fits", "law")})
    plan = printed(capsys, "calibrate", TINY, "--data", TEXT, "--factor", "4", "--plan-only")
    agree(documented("calibrate", "With `--plan-only --json`:"), plan)


def test_convert(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A new checkpoint, and flags."""
    by_hand = ("convert", TINY, "--rope-type", "yarn", "--factor", "4")
    agree(documented("convert"), printed(capsys, *by_hand, "--output", str(tmp_path / "out")))
    agree(documented("convert", "With `--emit RUNTIME`:"), printed(capsys, *by_hand, "--emit", "vllm"))


def test_evaluate() -> None:
    """The rows of a table, and of a search for a number."""
    rows = [json.loads(line) for line in (REPORTS / "evaluation.jsonl").read_text("utf-8").splitlines()]
    agree(documented("evaluate") | {"difference", "beyond_difference"}, *rows)
    number = PasskeyRow("m", "yarn", 1024, 0.5, 10, 9, 0.5, 0.9, 1.2, 50, 0.1)
    agree(documented("evaluate", "With `--passkey`:"), passkey_to_json(number))


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """An error as a document; each kind with its code and exit status."""
    show_error(errors.BadUsage("wrong", hint="right"), as_json=True)
    agree(documented("Errors"), json.loads(capsys.readouterr().out))
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RopeError)}
    codes = {(kind.code, str(kind.exit_status)) for kind in kinds - {errors.RopeError}}
    assert set(re.findall(r"^\| `([a-z-]+)` \| (\d) \|", PAGE, re.M)) == codes
