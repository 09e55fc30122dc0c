"""The demo and the benchmarks that the README quotes run to their end, on their smallest settings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

COMMANDS = {
    "methods_table": (["examples/tiny", "--factors", "2", "--documents", "4"], "| 2 | default YaRN |"),
    "inspect": (["--runs", "1"], "AutoConfig against inspect:"),
    "convert": (["--runs", "1", "--gigabytes", "0.1"], "speed against cp -r:"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_prints_its_figures(name: str) -> None:
    """Each ends with status 0 and prints the line that the README shows."""
    options, line = COMMANDS[name]
    command = [sys.executable, f"benchmarks/{name}.py", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert line in run.stdout


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
