"""`examples/claims.py`: the outcome of a claim is what its interval says, on the page that is kept as well."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from calibrate.statistics import Difference

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"\| ([^|]+) \| ([\d.]+) \| ([+-]\d\.\d{4}) \| ([+-][\d.]+) to ([+-][\d.]+) \| ([^|]+) \|")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    specification = importlib.util.spec_from_file_location("claims", ROOT / "examples" / "claims.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["claims"] = module
    specification.loader.exec_module(module)
    return module


def test_a_claim_is_held_to_its_interval(script: ModuleType) -> None:
    """Proved, the opposite proved, neither; and equal to within a thousandth."""
    below, above, equal = (script.Claim("", "a", "b", past=True, expected=expected) for expected in (-1, 1, 0))
    down, up, unsure, none = (Difference(0.0, *span, 9) for span in ((-3, -1), (1, 3), (-1, 1), (-0.0004, 0.0002)))
    opposite, neither = "does not hold: the opposite is proved", "not proved either way"
    assert [below.verdict(found) for found in (down, up, unsure)] == ["holds", opposite, neither]
    assert [above.verdict(found) for found in (down, up, unsure)] == [opposite, "holds", neither]
    assert [equal.verdict(found) for found in (none, down, unsure)] == ["holds", "does not hold", "does not hold"]


def test_the_kept_page_has_every_claim_at_every_factor(script: ModuleType) -> None:
    """Made by the script: its rows are the claims in order, each with the outcome that its numbers give."""
    rows = ROW.findall((ROOT / "examples" / "claims.md").read_text("utf-8"))
    assert [(text, factor) for text, factor, *_ in rows] == [
        (claim.text, factor) for factor in ("2", "4", "8") for claim in script.CLAIMS
    ]
    claims = {claim.text: claim for claim in script.CLAIMS}
    for text, _, delta, low, high, outcome in rows:
        assert claims[text].verdict(Difference(float(delta), float(low), float(high), 24)) == outcome


def test_the_script_runs(tmp_path: Path) -> None:
    """On three documents at one factor: a row a claim, what everybody agrees on holds, and nothing is scored twice."""
    command = [sys.executable, "examples/claims.py", "examples/tiny", "--data", "examples/text/heldout"]
    command += ["--factors", "2", "--documents", "3", "--journal", str(tmp_path / "journal")]
    first, second = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == 0, first.stderr
    outcomes = {text: outcome for text, *_, outcome in ROW.findall(first.stdout)}
    assert len(outcomes) == 6
    assert outcomes["YaRN beats PI past L"] == "holds"
    # three documents with three tables on whole windows and three on their beginnings, where dynamic NTK is none
    assert len((tmp_path / "journal").read_text().splitlines()) == 1 + 3 * (3 + 3)
    assert second.stdout == first.stdout
