"""The README tells the truth: its commands run, its tables are those of the docs, its tree is the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ropecli.runtimes.emit import FLAGS, USAGE

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
MAKE = ("make demo", "make test", "pip install", "examples/smollm2.sh", "python benchmarks/")
OWN = re.findall(r"^ropecli [^#\n]*", "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S)), re.M)
"""Lines that stand for the reader's own model and text."""


def environment() -> dict[str, str]:
    """This environment with the tool that is under test first on the path, and no colour."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the commands need, so that they may write into `build/`."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "build").mkdir()
    return folder


def commands() -> list[str]:
    """The README's own lines, without those that install, or that stand for the user's own files."""
    lines = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(MAKE) and "calibrate M " not in line]


def in_shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One line as a person types it."""
    words = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


def test_every_command_of_the_readme_runs(checkout: Path) -> None:
    """In the order in which they stand, each ends with status 0 and prints a result."""
    assert len(commands()) >= 8
    for command in commands():
        run = in_shell(command, checkout)
        assert run.returncode == 0, f"{command}\n{run.stderr}"
        assert run.stdout or run.stderr, command


def test_the_whole_job_in_one_line(checkout: Path) -> None:
    """The pipeline of the README, with the tiny model in place of M and a short budget."""
    line = next(line for line in README.splitlines() if line.startswith("ropecli calibrate M "))
    line = line.replace("-o OUT", "-o build/piped").replace("convert M", "convert examples/tiny")
    line = line.replace(
        "calibrate M --data F", "calibrate examples/tiny --data examples/text/calibration --max-evals 3"
    )
    run = in_shell(line, checkout)
    assert run.returncode == 0, run.stderr
    assert (checkout / "build/piped/model.safetensors").stat().st_size > 5_000_000


def test_the_lines_for_a_model_of_ones_own(checkout: Path) -> None:
    """The tiny model stands for MODEL, 1k tokens for 128k, the examples' texts for TEXT and OTHER-TEXT."""
    assert len(OWN) >= 5
    for line in OWN:
        for name, stands_for in {
            "OTHER-TEXT": "examples/text/heldout --documents 2",
            "TEXT -": "examples/text/calibration --max-evals 3 --documents 4 -",
            "MODEL-": "build/own-",
            "MODEL": "examples/tiny",
            "calibration.json": "build/own.json",
            "8k,128k": "256,1k",
            "--target-length 128k": "--target-length 1k",
        }.items():
            line = line.replace(name, stands_for)  # noqa: PLW2901
        run = in_shell(line, checkout)
        assert run.returncode == 0, f"{line}\n{run.stderr}"


def test_the_runtimes_table_has_what_emit_says() -> None:
    """A row for each runtime of --emit, with the program that its flags go into."""
    rows = re.findall(r"^\| .* \| .* \| (.*--emit.*) \|$", README, re.M)
    for name in FLAGS:
        (row,) = [row for row in rows if re.search(rf"--emit {name}\b", row)]
        program = USAGE[name].partition(", with")[0].partition(";")[0].replace(" FLAGS", "")
        assert program.replace("MODEL,", '"MODEL",') in row


def test_the_costs_are_those_of_the_scale_page() -> None:
    """Each row is one of docs/scale.md, with fewer columns."""

    def rows(text: str) -> list[dict[str, str]]:
        head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.strip().splitlines()]
        return [dict(zip(head, line, strict=True)) for line in lines]

    page = (ROOT / "docs/scale.md").read_text("utf-8")
    known = rows("| model |" + page.partition("\n| model |")[2].partition("\n\n")[0])
    quoted = rows(README.partition("<!-- scale -->")[2].partition("<!-- /scale -->")[0])
    assert len(quoted) >= 3
    for row in quoted:
        assert any(row.items() <= other.items() for other in known), row


def test_the_demo_in_the_readme_is_the_demo() -> None:
    """The commands that the README shows are those that `make demo` runs."""
    shown = re.findall(r"^\$ (ropecli .*)$", README, re.M)
    script = (ROOT / "examples/demo.sh").read_text("utf-8")
    run = [line.removeprefix("show ") for line in script.splitlines() if line.startswith("show ropecli")]
    assert shown == [line.replace("$work", "build/demo") for line in run]


@pytest.mark.parametrize("name", ["smollm2", "smollm2-temperature"])
def test_the_table_of_smollm2_is_that_of_its_calibration_file(name: str) -> None:
    """The command beside it prints it, from a file that is in the repository."""
    command = f"benchmarks/methods_table.py examples/{name}.json"
    assert f"`python {command}`" in README
    printed = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=True)
    assert README.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0] == printed.stdout


def test_every_module_is_in_the_annotated_tree() -> None:
    """Whoever looks for a file finds it in the README."""
    tree = README.partition("```text\nropecli/")[2].partition("```")[0]
    for package in ("ropecli", "calibrate"):
        for path in sorted((ROOT / package).iterdir()):
            if path.name.startswith("__") or path.name == "py.typed":
                continue
            assert path.name in tree, f"{package}/{path.name} is not in the README's tree"
