"""`torchrun -m ropecli`: several processes give what one gives, one of them speaks, and none waits for a dead one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from calibrate import evaluation, parallel, passkey, run
from calibrate.fit import Request
from calibrate.model import Settings, pick_device
from calibrate.parallel import ALONE, Ranks, here, joined
from ropecli.cli import loading, main
from ropecli.errors import BadUsage

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = EXAMPLES / "tiny"
TEXTS = [str(path) for path in sorted((EXAMPLES / "text" / "calibration").glob("*.txt"))]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
SOON = 120
CPU = Settings(device="cpu")


def data(count: int) -> list[str]:
    return [word for path in TEXTS[:count] for word in ("--data", path)]


SEARCH = Request(str(TINY), tuple(TEXTS[:4]), (1.5,), windows=1, settings=CPU)
SEARCHED = ["calibrate", str(TINY), *data(4), "--factor", "1.5", "--windows", "1", "--device", "cpu"]


def finished(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SOON)
    assert "Traceback (most recent call last)" not in done.stderr.partition("ChildFailedError")[0], done.stderr
    return done


def silent(trial: Callable[[], None] = lambda: None) -> run.Observer:
    return run.Observer(lambda _: None, lambda _: None, lambda *_: trial())


def without_times(content: Any) -> Any:
    """A calibration file without what no two runs share."""
    if isinstance(content, dict):
        unsteady = ("seconds", "peak_memory_bytes")
        return {key: without_times(value) for key, value in content.items() if key not in unsteady}
    return [without_times(item) for item in content] if isinstance(content, list) else content


# ------------------------------------------------------------------------------------------------ torchrun


def test_two_processes_calibrate_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Search, slopes and held-out check: every number of the file, and a word of each kind once."""
    arguments = ["calibrate", str(TINY), *data(3), "--factor", "1.5", "--windows", "2", "--device", "cpu"]
    arguments += ["--tune", "factors", "--max-evals", "2", "-q"]
    with pytest.raises(SystemExit):
        main([*arguments, "-o", str(tmp_path / "one.json")])
    capsys.readouterr()
    done = finished([*TORCHRUN, "2", "-m", "ropecli", *arguments[:-1], "-o", str(tmp_path / "two.json"), "--json"])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trial 1:") == done.stderr.count("decision:") == 1
    (line,) = done.stdout.splitlines()
    one, two = (json.loads((tmp_path / name).read_text("utf-8")) for name in ("one.json", "two.json"))
    assert without_times(one) == without_times(two) == without_times(json.loads(line))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "two.json"]


def test_a_killed_rank_ends_the_run_with_one_line_and_a_journal(tmp_path: Path) -> None:
    """SIGKILL for the second rank in the middle of the search; a single process then goes on with --resume."""
    out = tmp_path / "out.json"
    arguments = [str(TINY), *data(4), "--factor", "1.5", "--windows", "1", "--device", "cpu", "-o", str(out)]
    command = [*TORCHRUN, "2", "-m", "ropecli", "calibrate", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr or ():
            said.append(line)
            if "trial 3:" in line:
                break
        second = [child for child in _children(process.pid) if b"RANK=1" in _environment(child).split(b"\0")]
        os.kill(second[0], signal.SIGKILL)
        said += process.stderr or ()
        assert process.wait(timeout=SOON) == 1
    errors = [line for line in said if line.startswith("error:")]
    assert errors == ["error: one of the 2 ranks ended or was ended, or gave no answer for 30 minutes\n"], "".join(said)
    assert any("run it again with --resume" in line for line in said)
    assert any("exitcode  : 4 " in line for line in said) or any("exitcode  : -9 " in line for line in said)
    journal = tmp_path / "out.json.journal"
    assert [path.name for path in tmp_path.iterdir()] == [journal.name]
    known = journal.read_text("utf-8").splitlines()
    assert len(known) > 3
    calibration, _ = run.calibrate(replace(SEARCH, max_evals=3, journal=journal, resume=True), silent())
    assert calibration.cost["evaluations"] == 3
    lines = journal.read_text("utf-8").splitlines()
    assert lines[: len(known)] == known
    # the held-out check alone was left: a line for each table that it needs
    assert len(lines) - len(known) <= 6


def _children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


def _environment(process: int) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


# ------------------------------------------------------------------------------------------------ the ranks

OUT_OF_MEMORY = """
from calibrate import score
def full(model, ids): raise MemoryError("1 TB")
if rank == 1: score.token_nll = full
"""
ASLEEP = """
import time
from datetime import timedelta
from calibrate import parallel, score
parallel.TIMEOUT = timedelta(seconds=1.5)
def sleep(model, ids):
    time.sleep(3)
    raise MemoryError("late")
if rank == 1: score.token_nll = sleep
"""
OTHER_TEXT = """
from calibrate import corpus, evaluation
def changed(paths, text_field="text"):
    texts, sources = corpus.read_texts(paths, text_field)
    return [corpus.Text(text.name, text.text[1:]) for text in texts], sources
if rank == 1: evaluation.read_texts = changed
"""
INTERRUPTED = """
import signal
from calibrate import score
scored, plain = [], score.token_nll
def interrupted(model, ids):
    scored.append(1)
    if rank == 1 and len(scored) == 3: signal.raise_signal(signal.SIGINT)
    return plain(model, ids)
score.token_nll = interrupted
"""
METHODS = ("none", "yarn")


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with even numbers of heads, which two ranks can share, and the tokenizer of the tiny one."""
    folder = tmp_path_factory.mktemp("even")
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    config |= {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 192}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config | {"num_hidden_layers": 2}))
    for weight in model.parameters():
        weight.data.mul_(3)
    model.to(torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where calibrations are written, with the journal of one that ended after two evaluations."""
    folder = tmp_path_factory.mktemp("out")
    run.calibrate(replace(SEARCH, max_evals=2, journal=folder / "resumed.json.journal"), silent())
    return folder


@pytest.fixture(scope="module")
def scenes(in_parts: Path, folder: Path) -> dict[str, Any]:
    """What ranks said and how they ended, for each scene."""
    short = ["--lengths", "64", "--windows", "1", "--device", "cpu"]
    two = ["--lengths", "64,384", "--methods", ",".join(METHODS), "--windows", "1", "--json", "--device", "cpu"]
    tiny, even = (["evaluate", str(folder)] for folder in (TINY, in_parts))
    resumed, stopped = ([*SEARCHED, "-o", str(folder / f"{name}.json")] for name in ("resumed", "stopped"))
    scenes = {
        "resumed": {"size": 2, "arguments": [*resumed, "--resume", "--max-evals", "4"]},
        "stopped": {"size": 2, "arguments": stopped, "before": INTERRUPTED},
        "three": {"size": 3, "arguments": [*tiny, *data(5), *two]},
        "passkey": {"size": 2, "arguments": [*tiny, "--passkey", "--lengths", "128", "--trials", "3", "--json"]},
        "parts": {"size": 2, "arguments": [*even, *data(3), *two, "--tensor-parallel", "2"]},
        "copies of parts": {"size": 4, "arguments": [*even, *data(3), *two, "--tensor-parallel", "2"]},
        "odd heads": {"size": 2, "arguments": [*tiny, *data(3), *short, "--tensor-parallel", "2"]},
        "odd ranks": {"size": 3, "arguments": [*even, *data(1), *short, "--tensor-parallel", "2"]},
        "out of memory": {"size": 3, "arguments": [*tiny, *data(3), *short], "before": OUT_OF_MEMORY},
        "asleep": {"size": 2, "arguments": [*tiny, *data(3), *short], "before": ASLEEP},
        "other text": {"size": 2, "arguments": [*tiny, *data(2), *short], "before": OTHER_TEXT},
        "no text": {"size": 2, "arguments": [*tiny, "--data", "nowhere", *short]},
        "standard input": {"size": 2, "arguments": [*tiny, "--data", "-", *short]},
        "device map": {"size": 2, "arguments": [*tiny, *data(1), *short, "--device-map", "auto"]},
        "no such option": {"size": 2, "arguments": [*tiny, "--dada", "x"]},
    }
    # what the command line sets for the libraries, which are imported before it runs; ranks would share one GPU badly
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = os.environ | quiet | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "ranks.py")],
        input=json.dumps(scenes),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=SOON,
    )
    played: dict[str, Any] = json.loads(done.stdout)
    return played


@pytest.mark.parametrize("scene", ["three", "parts", "copies of parts"])
def test_ranks_evaluate_as_one_process(scene: str, scenes: dict[str, Any], in_parts: Path) -> None:
    """Windows that do not divide by the ranks; a model in two parts; two copies of one: each row to 1e-6."""
    folder, count = (TINY, 5) if scene == "three" else (in_parts, 3)
    request = evaluation.Request((str(folder),), tuple(TEXTS[:count]), (64, 384), METHODS, windows=1, settings=CPU)
    rows = evaluation.evaluate(request, lambda _: None)
    assert set(scenes[scene]["statuses"]) == {0}, scenes[scene]["err"]
    found = [json.loads(line) for line in scenes[scene]["out"]]
    assert [(row["method"], row["length"], row["tokens"]) for row in found] == [
        (row.method, row.length, row.tokens) for row in rows
    ]
    assert [row["nll"] for row in found] == pytest.approx([row.nll for row in rows], abs=1e-6)
    assert abs(rows[1].nll - rows[3].nll) > 1e-3
    assert sum("none, 64 tokens:" in line for line in scenes[scene]["err"]) == 1


def test_ranks_go_on_from_the_journal_of_the_first(scenes: dict[str, Any], folder: Path) -> None:
    """What it holds they take from it, what it lacks they compute together: the file is that of one process."""
    assert scenes["resumed"]["statuses"] == [0, 0], scenes["resumed"]["err"]
    alone, _ = run.calibrate(replace(SEARCH, max_evals=4), silent())
    found = json.loads((folder / "resumed.json").read_text("utf-8"))
    assert without_times(found) == without_times(json.loads(json.dumps(alone.to_json())))
    assert not (folder / "resumed.json.journal").exists()


def test_a_signal_to_one_rank_stops_the_search_in_all(scenes: dict[str, Any], folder: Path) -> None:
    """At the same question; the best so far is checked by all and written by the first, which ends as interrupted."""
    assert scenes["stopped"]["statuses"] == [130, 0], scenes["stopped"]["err"]
    found = json.loads((folder / "stopped.json").read_text("utf-8"))
    assert "the search was stopped before it ended; this is the best of what it had seen" in found["notes"]
    assert 2 <= found["cost"]["evaluations"] < 8
    assert len(found["validation"]) == 3


def test_ranks_share_the_questions_of_passkey(scenes: dict[str, Any]) -> None:
    """As often found, and as many nats, as one process says."""
    request = evaluation.Request((str(TINY),), (), (128,), settings=CPU)
    rows = passkey.retrieve(request, 3, lambda _: None)
    found = [json.loads(line) for line in scenes["passkey"]["out"]]
    assert [(row["depth"], row["found"], row["trials"]) for row in found] == [
        (row.depth, row.found, row.trials) for row in rows
    ]
    assert [row["nll"] for row in found] == pytest.approx([row.nll for row in rows], abs=1e-6)


SAID = {
    "odd heads": (2, f"error: {TINY}: --tensor-parallel: num_key_value_heads is 3, which 2 ranks cannot share"),
    "odd ranks": (2, "error: --tensor-parallel: 3 ranks cannot be dealt into groups of 2"),
    "out of memory": (4, "error: rank 1: out of memory on one window of 64 tokens"),
    "asleep": (4, "error: one of the 2 ranks ended or was ended, or gave no answer for 0.025 minutes"),
    "other text": (3, "error: rank 1: the windows differ from those of rank 0"),
    "no text": (3, "error: nowhere: no such file or folder"),
    "standard input": (2, "error: --data: standard input cannot be read by several processes"),
    "device map": (2, "error: --device-map: 2 ranks on one machine would spread their models over the same devices"),
    "no such option": (2, "error: No such option: --dada (Possible options: --data)"),
}


@pytest.mark.parametrize("scene", SAID)
def test_what_goes_wrong_is_said_once_by_the_first_rank(scene: str, scenes: dict[str, Any]) -> None:
    """Whichever rank it goes wrong on; all of them end with the status of the error, and nobody has to kill them."""
    status, line = SAID[scene]
    played = scenes[scene]
    assert set(played["statuses"]) == {status}, played
    assert played["out"] == []
    assert [said for said in played["err"] if not said.startswith("hint:")] == [line]


# ------------------------------------------------------------------------------------------------ one process


def test_shares_are_whole_and_even() -> None:
    """Every window once, whatever the numbers; ranks that hold one model together have the same share."""
    for size, tensor in ((1, 1), (3, 1), (4, 2), (6, 3)):
        for count in (0, 1, 2, 5, 24):
            shares = [Ranks(rank, size, tensor=tensor).mine(count) for rank in range(size)]
            assert [index for share in shares[::tensor] for index in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            assert all(shares[rank] == shares[rank - rank % tensor] for rank in range(size))


def test_a_process_alone_adds_nothing() -> None:
    """No group, no copy: what comes in goes out."""
    values = np.ones((2, 3))
    assert ALONE.total(values) is values
    assert (ALONE.any(True), ALONE.any(False), ALONE.most(2.5)) == (True, False, 2.5)
    assert ALONE.from_first(values) is values
    ALONE.check_same(values, "the windows")
    with joined() as ranks:
        assert ranks is here() is ALONE
    with pytest.raises(BadUsage, match="one process cannot hold a model in 2 parts"), joined(2):
        pass


def test_each_rank_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` and `cuda` are the GPU with the rank's number on its machine; a number that is given stays."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, device: device)
    second = Ranks(5, 8, local=1)
    assert [str(pick_device(wanted, second)) for wanted in ("auto", "cuda", "cuda:3", "cpu")] == [
        *("cuda:1", "cuda:1", "cuda:3", "cpu"),
    ]
    assert str(pick_device("cuda")) == "cuda"


def test_a_process_that_works_alone_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers set some of torchrun's names for every process: without all of them nobody else would write."""
    assert loading.LAUNCHED == parallel.LAUNCHED
    told = dict(zip(parallel.LAUNCHED, ("1", "2", "1", "localhost", "29500"), strict=True))
    for name in told:
        monkeypatch.delenv(name, raising=False)
    assert loading.speaks()
    for name, value in told.items():
        assert loading.speaks()
        assert parallel._launched(os.environ) is parallel.ALONE
        monkeypatch.setenv(name, value)
    assert not loading.speaks()
    assert parallel._launched(os.environ).rank == 1
