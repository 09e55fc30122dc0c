"""`ropecli calibrate --plan-only`: what a run would cost, known before a weight is read, and true of the run."""

import json
import shutil
from pathlib import Path

import pytest

from calibrate.plan import plan_of
from calibrate.run import Request
from calibrate.search import GRADIENTS
from ropecli import options
from ropecli.cli import main
from ropecli.errors import BadUsage

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = EXAMPLES / "tiny"
TEXTS = tuple(str(path) for path in sorted((EXAMPLES / "text" / "calibration").glob("*.txt"))[:6])


@pytest.fixture
def config_alone(tmp_path: Path) -> Path:
    """The tiny checkpoint without its weights."""
    folder = tmp_path / "config"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_a_plan_needs_no_weights_and_writes_nothing(config_alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON line: text, operations, memory, time; the folder is as it was, and no output is made."""
    before = sorted(config_alone.iterdir())
    out = config_alone.parent / "out.json"
    data = [word for path in TEXTS for word in ("--data", path)]
    wanted = ["--factor", "2", "--windows", "2", "--device", "cpu", "-o", str(out)]
    assert status("calibrate", str(config_alone), *data, *wanted, "--plan-only", "--flops", "2G", "--json") == 0
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    plan = json.loads(line)
    assert (plan["schema_version"], plan["kind"], plan["dtype"]) == (1, "ropecli.plan", "bfloat16")
    (part,) = plan["factors"]
    assert part["search"] == {"documents": 3, "windows": 6, "tokens": 3072}
    assert part["held_out"] == {"documents": 3, "windows": 6, "tokens": 3072}
    # 6 layers of 6 heads of 32; a head of 192 by 2,048; the matrices of the config
    matrices = 6 * (2 * 192 * 192 + 2 * 192 * 96 + 3 * 192 * 512)
    window = 2 * 512 * (matrices + 192 * 2048) + 2 * 6 * 6 * 64 * 512 * 513 / 2
    assert part["forward_equivalent_flops"] == pytest.approx(6 * window, rel=0.001)
    assert part["held_out_flops"] == pytest.approx(6 * 6 * window, rel=0.001)
    assert plan["flops"] == pytest.approx(part["forward_equivalents"] * 6 * window + part["held_out_flops"], rel=0.001)
    assert plan["hours"] == pytest.approx(plan["flops"] / 2e9 / 3600)
    memory = plan["memory_bytes_by_rank"]
    assert memory["weights"] == 2 * plan["parameters"]["stored"]
    assert memory["total"] == sum(value for key, value in memory.items() if key != "total")
    assert sorted(config_alone.iterdir()) == before
    assert not out.exists()


def test_a_plan_for_people(config_alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line a factor, memory, and the time where a rate is given."""
    data = [word for path in TEXTS for word in ("--data", path)]
    wanted = ["--factor", "2", "--factor", "1.5", "--windows", "1", "--plan-only"]
    assert status("calibrate", str(config_alone), *data, *wanted) == 0
    lines = capsys.readouterr().out.splitlines()
    title, headings, *factors, memory, parts = lines
    assert title.endswith("config: 2.83 M parameters, bfloat16")
    assert headings.split() == ["factor", "window", "search", "held", "out", "passes", "one", "pass", "in", "all"]
    assert [line.split()[:3] for line in factors] == [["2", "512", "tokens"], ["1.5", "384", "tokens"]]
    assert all(line.split()[4] == line.split()[6] == "windows" for line in factors)
    assert max(map(len, lines[1:])) <= 80
    assert memory.startswith("memory of a process: ")
    assert parts.split()[::3] == ["weights", "activations", "logits"]
    assert status("calibrate", str(config_alone), *data, *wanted, "--flops", "3G") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("time: ")


def test_slopes_cost_three_passes_each_and_a_budget_is_heeded() -> None:
    """`--tune factors` adds its gradients; --max-evals bounds the search."""
    request = Request(str(TINY), TEXTS, (2.0,), windows=1)
    plain, bounded = (plan_of(r, None).factors[0] for r in (request, Request(str(TINY), TEXTS, (2.0,), max_evals=4)))
    finer = plan_of(Request(str(TINY), TEXTS, (2.0,), tune="factors", windows=1), None).factors[0]
    assert finer.passes == plain.passes + 3 * GRADIENTS
    assert bounded.passes == 4
    assert plan_of(request, None).hours is None


@pytest.mark.parametrize(
    ("text", "rate"), [("400T", 4e14), ("1.5p", 1.5e15), ("4e14", 4e14), ("30 G", 3e10), ("7", 7.0)]
)
def test_rates_are_read(text: str, rate: float) -> None:
    assert options.rate(text, "--flops") == rate


@pytest.mark.parametrize("text", ["", "0", "T", "-4T", "4X", "1e999"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(BadUsage, match="expected operations a second"):
        options.rate(text, "--flops")


def test_a_rate_without_a_plan_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It would be ignored."""
    assert status("calibrate", str(TINY), "--data", TEXTS[0], "--factor", "2", "--flops", "4T") == 2
    assert "--flops: the rate is for the plan" in capsys.readouterr().err


@pytest.mark.parametrize(("lengths", "noted"), [([], True), (["--original-length", "32k"], False)])
def test_a_length_that_was_not_trained_for_is_noted_first(
    lengths: list[str], noted: bool, config_alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qwen3 states 40,960 positions and was trained for 32,768: said before anything else is looked at."""
    path = config_alone / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"model_type": "qwen3", "max_position_embeddings": 40960}), encoding="utf-8")
    data = ["--data", str(config_alone / "missing.txt"), "--factor", "4", "--plan-only"]
    assert status("calibrate", str(config_alone), *data, *lengths) != 0
    assert ("trained for 32768 tokens: give --original-length" in capsys.readouterr().err) == noted
