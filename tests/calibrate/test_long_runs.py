"""Runs that are cut off: nothing is scored twice, the result is the uninterrupted one, and other runs are refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import EXAMPLES, GRADIENTS, request
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from calibrate import run, search
from calibrate.model import Settings
from ropecli.errors import BadUsage

KILLS = 20
LIMIT = 2.0
"""Seconds, more than a run takes to look up what an earlier one scored."""
TINY = EXAMPLES / "tiny"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two calibrations left: one to the end, one that was killed at twenty random moments."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder), "7", str(KILLS)],
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def timeless(content: Any) -> Any:
    """JSON without what may differ between two runs on one machine."""
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if k not in ("seconds", "peak_memory_bytes")}
    return [timeless(value) for value in content] if isinstance(content, list) else content


def loaded(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def silent(say: Callable[[str], object] = lambda _: None) -> run.Observer:
    return run.Observer(lambda text: (say(text), None)[1], lambda _: None, lambda *_: None)


# ------------------------------------------------------------------------------------------------ kill -9


def test_a_run_that_was_killed_twenty_times_is_the_uninterrupted_one(killed: Path) -> None:
    """The calibration is the same, and so is the journal, to the last byte."""
    assert timeless(loaded(killed / "killed.json")) == timeless(loaded(killed / "whole.json"))
    assert (killed / "killed.journal").read_bytes() == (killed / "whole.journal").read_bytes()
    assert loaded(killed / "whole.json")["cost"]["gradients"] > 3


def test_nothing_is_computed_twice(killed: Path) -> None:
    """No run begins what was on disk before it; each kill costs what was in flight, and no more."""
    kills = loaded(killed / "kills.json")
    computed = [json.loads(line) for line in (killed / "killed.computed").read_text("utf-8").splitlines()]
    on_disk = [kill["keys"] for kill in kills]
    assert all(len(set(known)) == len(known) for known in on_disk)
    for number, key in computed:
        assert number == 0 or key not in on_disk[number - 1]
    times = Counter(key for _, key in computed)
    whole = [json.loads(line)[1] for line in (killed / "whole.computed").read_text("utf-8").splitlines()]
    assert set(times) == set(whole)
    assert len(set(whole)) == len(whole)
    assert sum(times.values()) <= len(times) + KILLS


def test_the_kills_came_at_many_moments(killed: Path) -> None:
    """Twenty times SIGKILL, from the beginning to the gradients at the end, also in the middle of a computation."""
    kills = loaded(killed / "kills.json")
    assert [kill["signal"] for kill in kills] == [signal.SIGKILL] * KILLS
    sizes = [len(kill["keys"]) for kill in kills]
    total = len((killed / "whole.journal").read_text("utf-8").splitlines()) - 1
    assert len(set(sizes)) > KILLS / 2
    assert min(sizes) < total / 4
    assert max(sizes) > 3 * total / 4
    computed = (killed / "killed.computed").read_text("utf-8").splitlines()
    assert len(computed) > total


def test_few_held_out_documents_are_told(killed: Path) -> None:
    """The effective number stands in each row, and below fifteen a note says that the interval is rough."""
    content = loaded(killed / "whole.json")
    assert [row["effective_documents"] for row in content["validation"]] == [2.0] * 3
    assert [row["interval"] for row in content["validation"]] == ["t"] * 3
    assert ("the verdict rests on 2 held-out documents: with fewer than 15 its interval is a rough one") in content[
        "notes"
    ]


# ------------------------------------------------------------------------------------------------ the command line

ARGUMENTS = ["--factor", "1.25", "--windows", "1", "--device", "cpu", "--max-evals", "14", "--seed", "3"]


def started(out: Path, *more: str) -> subprocess.Popen[str]:
    texts = sorted((EXAMPLES / "text" / "calibration").glob("*.txt"))[:6]
    words = [word for path in texts for word in ("--data", str(path))]
    command = [sys.executable, "-m", "ropecli", "calibrate", str(TINY), *words, *ARGUMENTS, "-o", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out == ""
    return err


def test_the_same_seed_data_and_machine_give_the_same_file_byte_by_byte(tmp_path: Path) -> None:
    """Three files from processes of their own: one run, the same again, and one that was killed and resumed.

    Seconds and the memory that a process took at most are the only bytes that may differ, and what was typed.
    """
    outs = [tmp_path / name for name in ("once", "again", "third")]
    once, cut_off = started(outs[0]), started(outs[2])
    journal = outs[2].with_name("third.journal")
    while cut_off.poll() is None and not (journal.exists() and journal.read_text("utf-8").count("\n") > 4):
        time.sleep(0.01)
    cut_off.kill()
    cut_off.communicate()
    assert cut_off.returncode == -signal.SIGKILL
    assert journal.exists()
    assert not outs[2].exists()
    resumed = started(outs[2], "--resume")
    ended(once)
    again = started(outs[1])
    ended(resumed)
    ended(again)
    untimed = re.compile(rb'("(?:seconds|peak_memory_bytes)": )[0-9.]+')
    typed = [out.read_bytes().replace(bytes(out), b"OUT").replace(b" --resume", b"") for out in outs]
    files = [untimed.sub(rb"\1?", content) for content in typed]
    assert files[0] == files[1] == files[2]
    assert files[0].count(b'"seconds": ?') > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "once", "third"]


# ------------------------------------------------------------------------------------------------ other runs


def resumed(killed: Path, folder: Path, **changes: Any) -> run.Request:
    """The finished run once more, from a copy of its journal, with something changed."""
    path = folder / "journal"
    shutil.copy(killed / "whole.journal", path)
    return replace(request(killed, "whole", resume=True), journal=path, **changes)


def changed_weight(folder: Path) -> dict[str, Any]:
    """One number of the smallest tensor, by its last bit."""
    shutil.copytree(TINY, folder / "model")
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    name = min(tensors, key=lambda n: tensors[n].numel())
    tensors[name].view(-1)[5] *= 1.01
    save_file(tensors, path, metadata={"format": "pt"})
    return {"source": str(folder / "model")}


def changed_config(folder: Path) -> dict[str, Any]:
    shutil.copytree(TINY, folder / "model")
    path = folder / "model" / "config.json"
    path.write_text(path.read_text("utf-8").replace('"rms_norm_eps": 1e-0', '"rms_norm_eps": 2e-0'), "utf-8")
    return {"source": str(folder / "model")}


def changed_text(folder: Path) -> dict[str, Any]:
    *others, last = request(folder, "", resume=True).data
    text = Path(last).read_text("utf-8")
    (folder / "text.txt").write_text(text[:-2] + "!" + text[-1:], "utf-8")
    return {"data": (*others, str(folder / "text.txt"))}


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "weights": changed_weight,
    "checkpoint": changed_config,
    "data": changed_text,
    "seed": lambda _: {"seed": 1},
    "guard": lambda _: {"guard": 0.1},
    "objective": lambda _: {"objective": "all"},
    "tune": lambda _: {"tune": "yarn"},
    "optimizer": lambda _: {"optimizer": "powell"},
    "factors": lambda _: {"factors": (1.5,)},
    "documents": lambda _: {"documents": 3},
    "validation_fraction": lambda _: {"validation_fraction": 0.4},
    "dtype": lambda _: {"settings": Settings("cpu", "float32")},
    "attn_implementation": lambda _: {"settings": Settings("cpu", attn_implementation="eager")},
}


@pytest.mark.parametrize("changed", CHANGES)
def test_another_checkpoint_text_or_setting_does_not_resume(changed: str, killed: Path, tmp_path: Path) -> None:
    """The first thing that would make old scores wrong is named, and the journal is left as it was."""
    asked = resumed(killed, tmp_path, **CHANGES[changed](tmp_path))
    assert asked.journal is not None
    before = asked.journal.read_bytes()
    with pytest.raises(BadUsage, match=f"differs in: {changed}$"):
        run.calibrate(asked, silent())
    assert asked.journal.read_bytes() == before


def test_a_copy_of_the_checkpoint_resumes(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is what the files hold, not where they lie; all is known, and nothing is added to the journal."""
    monkeypatch.setattr(search, "GRADIENTS", GRADIENTS)
    shutil.copytree(TINY, tmp_path / "model")
    asked = resumed(killed, tmp_path, source=str(tmp_path / "model"))
    calibration, _ = run.calibrate(asked, silent())
    content, whole = timeless(calibration.to_json()), timeless(loaded(killed / "whole.json"))
    assert json.loads(json.dumps(content)) | {"checkpoint": 0} == whole | {"checkpoint": 0}
    assert asked.journal is not None
    assert asked.journal.read_bytes() == (killed / "whole.journal").read_bytes()


# ------------------------------------------------------------------------------------------------ Ctrl-C


def test_ctrl_c_among_the_gradients_ends_with_the_best_so_far(killed: Path, tmp_path: Path) -> None:
    """The gradient in flight is the last one; the best divisors so far are checked on held-out text."""
    asked = resumed(killed, tmp_path)
    told: list[str] = []

    def interrupt(text: str) -> None:
        told.append(text)
        if text.startswith("gradient 2"):
            signal.raise_signal(signal.SIGINT)

    calibration, number = run.calibrate(asked, silent(interrupt))
    content = calibration.to_json()
    assert number == signal.SIGINT
    assert content["cost"]["gradients"] == 2
    assert len(content["validation"]) == 3
    assert any("the search for divisors was stopped" in note for note in content["notes"])
    assert any("a divisor for each pair is" in note for note in content["notes"])
    assert sum(text.startswith("gradient") for text in told) == 2


def test_a_time_limit_among_the_gradients_ends_with_the_best_so_far(killed: Path, tmp_path: Path) -> None:
    """When the time is over no further gradient begins, and what is best is checked on held-out text."""
    asked = resumed(killed, tmp_path)

    def wait(text: str) -> None:
        if text.startswith("gradient 2"):
            time.sleep(LIMIT)

    calibration, number = run.calibrate(replace(asked, time_limit=LIMIT), silent(wait))
    content = calibration.to_json()
    assert number is None
    assert content["cost"]["gradients"] <= 2
    assert len(content["validation"]) == 3
    assert any("was stopped" in note for note in content["notes"])


# ------------------------------------------------------------------------------------------------ no way back


def one_way(_module: Any, query: torch.Tensor, *_: Any, **__: Any) -> Any:
    """Attention for inference alone: where a slope is wanted it refuses, as FlexAttention does on a CPU."""
    if query.requires_grad:
        raise NotImplementedError("one_way does not support backward on CPU.\nand more")
    return sdpa_attention_forward(_module, query, *_, **__)


def test_gradients_are_off_where_attention_has_no_backward_pass(tmp_path: Path) -> None:
    """The search goes on without them: the best YaRN is checked and written, and stderr and the file say why."""
    AttentionInterface.register("one_way", one_way)
    told: list[str] = []
    settings = Settings("cpu", attn_implementation="one_way")
    asked = replace(request(tmp_path, "whole", resume=False), settings=settings)
    calibration, number = run.calibrate(asked, silent(told.append))
    content = calibration.to_json()
    said = "no backward pass through this model here: one_way does not support backward on CPU."
    assert f"gradients are off: {said}" in told
    assert (
        f"no divisor for each pair was searched: {said}; "
        "try --attn-implementation eager or sdpa, or --tune yarn, which needs none"
    ) in content["notes"]
    assert (number, content["cost"]["gradients"], content["rope"]["rope_type"]) == (None, 0, "yarn")
    assert len(content["validation"]) == 3
