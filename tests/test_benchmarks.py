"""The demo and the benchmarks that the README quotes run to their end, on their smallest settings."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import genetic

ROOT = Path(__file__).resolve().parent.parent

COMMANDS = {
    "methods_table": (["examples/tiny", "--factors", "2", "--documents", "4"], "| 2 | default YaRN |"),
    "inspect_speed": (["--runs", "1"], "AutoConfig against inspect:"),
    "convert": (["--runs", "1", "--gigabytes", "0.1"], "speed against cp -r:"),
    "score": (
        ["examples/tiny", "--lengths", "512", "--runs", "1", "--ways", "gradient"],
        "- memory of the scorer beyond the model:",
    ),
    "search_cost": (
        ["--factors", "4", "--seeds", "1", "--documents", "1", "--searches", "cobyqa", "--folder", "{folder}"],
        "- on held-out text ahead of every one of them:",
    ),
}
AS_MODULES = ("search_cost",)
"""Those that import their neighbours."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_prints_its_figures(name: str, tmp_path: Path) -> None:
    """Each ends with status 0 and prints the line that the README shows."""
    options, line = COMMANDS[name]
    options = [option.format(folder=tmp_path) for option in options]
    place = ["-m", f"benchmarks.{name}"] if name in AS_MODULES else [f"benchmarks/{name}.py"]
    command = [sys.executable, *place, *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert line in run.stdout


def test_the_table_of_a_calibration_file_is_its_held_out_check() -> None:
    """For each of three factors, each method's perplexities and its difference from default YaRN, as in the file."""
    path = ROOT / "tests" / "report" / "calibration.json"
    command = [sys.executable, "benchmarks/methods_table.py", str(path)]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    beyond = json.loads(path.read_text("utf-8"))["validation"][-2]
    assert (beyond["factor"], beyond["positions"], len(lines)) == (4, "beyond", 2 + 3 * 6)
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["2"] * 6 + ["3"] * 6 + ["4"] * 6
    ntk, delta = beyond["baselines"]["ntk"], beyond["differences"]["ntk"]["delta"]
    assert f" {math.exp(ntk):.2f} | {delta:+.4f} (" in lines[16]
    assert f" {beyond['default_ppl']:.2f} |  |  |" in lines[18]
    assert f" {beyond['ppl']:.2f} | {beyond['delta']:+.4f} (" in lines[19]


def test_the_genetic_search_stays_within_its_rules_and_goes_down() -> None:
    """64 tables and 40 times 32 more, none twice; divisors never fall, lie in [1, 1.25 s] and are hundredths."""
    asked: list[tuple[float, ...]] = []
    goal = np.array([1, 1, 1.5, 2, 3, 4, 4.5, 5])

    def loss(divisors: np.ndarray) -> float:
        asked.append(tuple(divisors.tolist()))
        return float(((divisors - goal) ** 2).sum())

    starts = [np.full(8, 4.0), np.geomspace(1, 4, 8), np.linspace(1, 4, 8)]
    found = genetic.search(loss, starts, 4.0, seed=1)
    tables = np.array(asked)
    assert len(asked) == len(set(asked)) == 64 + 40 * 32
    assert (np.diff(tables) >= 0).all()
    assert tables.min() >= 1
    assert tables.max() <= 5
    assert np.allclose(100 * tables, np.round(100 * tables), atol=1e-9)
    assert tuple(found.tolist()) == min(asked, key=lambda t: float(((np.array(t) - goal) ** 2).sum()))
    assert ((found - goal) ** 2).sum() < 0.1 * min(((start - goal) ** 2).sum() for start in starts)
    again = asked.copy()
    asked.clear()
    genetic.search(loss, starts, 4.0, seed=1)
    assert asked == again


def test_the_demo_walks_the_whole_road(tmp_path: Path) -> None:
    """What `make demo` runs ends with the converted checkpoint's loss."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "examples/demo.sh"]
    environment = {**os.environ, "PATH": path}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "decision: calibrated" in run.stderr
    assert run.stdout.rstrip().splitlines()[-1].startswith("config   1,024")
