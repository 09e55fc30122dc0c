"""Faults on purpose, a few of each kind and none by chance: the source is untouched, the output whole or absent.

tests/faults/faults.py does the same at random moments and for every write; docs/reliability.md has its table.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ropecli import cli, conversion, gguf_writer, staging, writer
from ropecli.checkpoint import read_checkpoint, verify
from ropecli.errors import BadCheckpoint, NoResource, OutputExists
from ropecli.staging import private_folder, staged, write_whole

REPOSITORY = Path(__file__).parent.parent
YARN = ("--rope-type", "yarn", "--factor", "4")


def status_of(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


PAUSE = """
import os, signal, sys
from ropecli import cli, writer

prove = writer.prove

def paused(*arguments):
    prove(*arguments)
    os.kill(os.getpid(), int(sys.argv.pop(1)))

writer.prove = paused
cli.main(sys.argv[2:])
"""


HEEDED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
"""
"""Whoever runs the tests in the background may have had some of the signals ignored."""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_leaves_no_half_output(name: str, checkpoint: Path, tmp_path: Path, tree: Callable[..., Any]) -> None:
    """Just before the output would appear: 128 + the signal, nothing left; after SIGKILL the next run tidies up."""
    number = getattr(signal, name)
    before = tree(checkpoint)
    out = tmp_path / "out"
    words = ["convert", str(checkpoint), "-o", str(out), "--weights", "copy", *YARN]
    command = [sys.executable, "-c", HEEDED + PAUSE, str(int(number)), *words]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=60)
    killed = name == "SIGKILL"
    assert done.returncode == (-number if killed else 128 + number), done.stderr
    assert done.stderr == ""
    left = [path for path in names(tmp_path) if path != "source"]
    assert [staging.is_staging(path) for path in left] == [True] * killed
    assert tree(checkpoint) == before
    assert status_of(*words) == 0
    assert names(tmp_path) == ["out", "source"]
    assert not verify(read_checkpoint(str(out)))


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any, str], None]]:
    """Has Ctrl-C come right after (or, where it removes, right before) a step of the staging."""

    def during(owner: Any, step: str) -> None:
        real = getattr(owner, step)

        def interrupted(*arguments: Any, **options: Any) -> Any:
            if step == "rmtree":
                signal.raise_signal(signal.SIGINT)
            done = real(*arguments, **options)
            signal.raise_signal(signal.SIGINT)
            return done

        monkeypatch.setattr(owner, step, interrupted)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield during
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("owner", "step", "written"),
    [
        (staging, "_lock", False),
        (tempfile, "mkdtemp", False),
        (staging, "_appear", True),
        (shutil, "rmtree", True),
    ],
    ids=["locked", "made", "appeared", "removed"],
)
def test_a_signal_while_the_folder_comes_or_goes(
    owner: Any, step: str, written: bool, interrupt: Callable[[Any, str], None], tmp_path: Path
) -> None:
    """It waits for the end of that step: no folder is left, and the output is whole or absent."""
    interrupt(owner, step)
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "out", force=False) as stage:
        stage.write_text("ours")
    assert names(tmp_path) == (["out"] if written else [])


@pytest.mark.parametrize("step", ["rename", "_exchanged"])
def test_a_signal_while_an_output_is_replaced(
    step: str, interrupt: Callable[[Any, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old output is never gone, also where two names cannot be swapped in one step."""
    new, out = tmp_path / "new", tmp_path / "out"
    for folder in (new, out):
        folder.mkdir()
        (folder / f"of {folder.name}").touch()
    if step == "rename":
        monkeypatch.setattr(staging, "_exchanged", lambda *_: False)
    interrupt(Path if step == "rename" else staging, step)
    with pytest.raises(KeyboardInterrupt), staged(out, force=True) as stage:
        shutil.copytree(new, stage)
    assert (names(tmp_path), names(out)) == (["new", "out"], ["of new"])


def test_a_signal_that_is_ignored_stays_ignored(checkpoint: Path, tmp_path: Path) -> None:
    """Under nohup, SIGHUP ends nothing."""
    words = ["convert", str(checkpoint), "-o", str(tmp_path / "out"), *YARN, "--quiet"]
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + PAUSE
    command = [sys.executable, "-c", code, str(int(signal.SIGHUP)), *words]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "link"])
def test_a_target_that_appears_meanwhile_is_not_replaced(
    kind: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes first keeps the name: status 2, what appeared is as it was, nothing else is left."""
    out = tmp_path / "out"
    prove = writer.prove

    def intruded(*arguments: Any) -> None:
        prove(*arguments)
        if kind == "file":
            out.write_text("theirs")
        elif kind == "link":
            out.symlink_to("nowhere")
        else:
            out.mkdir()
            if kind == "folder":
                (out / "theirs").write_text("theirs")

    monkeypatch.setattr(writer, "prove", intruded)
    assert status_of("convert", checkpoint, "-o", out, *YARN) == 2
    assert names(tmp_path) == ["out", "source"]
    if kind == "file":
        assert out.read_text() == "theirs"
    elif kind == "link":
        assert out.is_symlink()
    else:
        assert names(out) == (["theirs"] if kind == "folder" else [])


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """The same for a GGUF, also between the last look and the last step."""
    out = tmp_path / "out.gguf"

    def write_beside_an_intruder() -> None:
        with staged(out, force=False) as stage:
            stage.write_text("ours")
            out.write_text("theirs")

    with pytest.raises(OutputExists):
        write_beside_an_intruder()
    assert out.read_text() == "theirs"
    assert names(tmp_path) == ["out.gguf"]


def test_a_small_file_appears_whole(tmp_path: Path) -> None:
    """Text is written in UTF-8, nothing else is left in the folder, and nothing is replaced without `force`."""
    out = tmp_path / "out.json"
    write_whole('{"β": 1}\n', out, force=False)
    assert out.read_bytes() == '{"β": 1}\n'.encode()
    with pytest.raises(OutputExists):
        write_whole("new", out, force=False)
    assert out.read_bytes() == '{"β": 1}\n'.encode()
    write_whole(b"new", out, force=True)
    assert out.read_bytes() == b"new"
    assert names(tmp_path) == ["out.json"]


def test_a_small_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """Where the target is a folder, or the folder is gone, the error names the file; a folder is never replaced."""
    folder = tmp_path / "out.json"
    folder.mkdir()
    for out in (folder, tmp_path / "missing" / "out.json"):
        with pytest.raises(NoResource, match="cannot be written") as caught:
            write_whole("{}", out, force=True)
        assert caught.value.where == str(out)
    assert names(tmp_path) == ["out.json"]


def test_a_foreseen_name_in_the_way_is_not_touched(tmp_path: Path) -> None:
    """Whoever else may write in the folder can not send a small file through a link of theirs."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / ".out.json.partial").symlink_to("theirs")
    write_whole("ours", tmp_path / "out.json", force=False)
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert names(tmp_path) == [".out.json.partial", "out.json", "theirs"]


def test_two_runs_to_one_output(checkpoint: Path, tmp_path: Path) -> None:
    """One has it, the other one says that it exists; neither disturbs the staging folder of the other."""
    out, met = tmp_path / "out", threading.Barrier(2)
    results: list[str] = []
    made = conversion.plan(
        read_checkpoint(str(checkpoint)),
        {"default": read_checkpoint(str(checkpoint)).ropes[0].spec},
        tokenizer_text=None,
    )

    def one() -> None:
        met.wait(30)
        try:
            writer.write(made, out, weights="copy")
        except OutputExists:
            results.append("exists")
        else:
            results.append("written")

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["exists", "written"]
    assert names(tmp_path) == ["out", "source"]


def test_what_a_killed_run_left_is_swept_and_what_a_live_one_has_is_not(tmp_path: Path) -> None:
    """Only folders without a lock go; an output that was moved away for a moment comes back."""
    out = tmp_path / "out"
    dead = tmp_path / ".out.ropecli-dead"
    (dead / "replaced").mkdir(parents=True)
    (dead / "replaced" / "config.json").write_text("old")
    other = tmp_path / ".other.ropecli-dead"
    other.mkdir()
    with private_folder(out) as first:
        assert first.stat().st_mode & 0o777 == 0o700
        with private_folder(out) as second:
            assert first.exists()
            assert second != first
    assert names(tmp_path) == [".other.ropecli-dead", "out"]
    assert (out / "config.json").read_text() == "old"


@pytest.mark.parametrize("name", ["x" * 255, "*", "[a]", "ü" * 100, "a\nb"], ids=ascii)
def test_any_name_can_be_an_output(name: str, tmp_path: Path) -> None:
    """The longest one that a file system has, and those that mean something in a pattern."""
    for _ in range(2):
        with staged(tmp_path / name, force=True) as stage:
            stage.mkdir()
            (stage / "config.json").write_text("new")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("swapped", [True, False])
def test_replacing_is_one_step_where_the_system_can(
    swapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --force the old output is there until the new one is; without renameat2 it is moved aside and back."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    if not swapped:
        monkeypatch.setattr(staging, "_exchanged", lambda *_: False)
    with staged(out, force=True) as stage:
        stage.mkdir()
        (stage / "new").write_text("new")
        assert names(out) == ["old"]
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_source_that_changes_while_it_is_copied(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that still goes on is no checkpoint yet: status 3, and no output."""
    copy_file = writer.copy_file

    def racing(source: Path, target: Path) -> None:
        copy_file(source, target)
        if source.suffix == ".safetensors":
            with source.open("ab") as file:
                file.write(b"more")

    monkeypatch.setattr(writer, "copy_file", racing)
    checkpoint_value = read_checkpoint(str(checkpoint))
    made = conversion.plan(checkpoint_value, {"default": checkpoint_value.ropes[0].spec}, tokenizer_text=None)
    with pytest.raises(BadCheckpoint, match="changed while it was copied"):
        writer.write(made, tmp_path / "out", weights="copy")
    assert names(tmp_path) == ["source"]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_in_place_can_be_started_again(after: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever replacement fails: the config is the old or the new one, and the same command goes through."""
    replace, calls = Path.replace, []
    old = (checkpoint / "config.json").read_bytes()

    def fails(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) > after:
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    assert status_of("convert", checkpoint, "--in-place", *YARN) == 4
    monkeypatch.undo()
    assert (checkpoint / "config.json").read_bytes() == old
    assert not [name for name in names(checkpoint) if staging.is_staging(name)]
    assert status_of("convert", checkpoint, "--in-place", *YARN) == 0
    assert (checkpoint / "config.json.backup").read_bytes() == old
    assert read_checkpoint(str(checkpoint)).ropes[0].spec.rope_type == "yarn"


def test_a_killed_run_in_place_does_not_go_along(checkpoint: Path, tmp_path: Path) -> None:
    """Its staging folder lies in the source, and is no part of it."""
    (checkpoint / ".config.json.ropecli-abc").mkdir()
    (checkpoint / ".config.json.ropecli-abc" / "config.json").write_text("{}")
    assert status_of("convert", checkpoint, "-o", tmp_path / "out", *YARN) == 0
    assert ".config.json.ropecli-abc" not in names(tmp_path / "out")


def test_both_writers_stage_the_same_way() -> None:
    """One place knows how an output appears."""
    assert writer.staged is gguf_writer.staged is staged


@pytest.mark.parametrize("force", [False, True])
def test_a_small_file_is_on_the_disk_before_it_has_its_name(force, tmp_path, monkeypatch):
    """The journal of a calibration goes once its file is there: a power cut must not leave an empty one."""
    synced, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    out = tmp_path / "calibration.json"
    if force:
        out.write_text("old")
    write_whole("new", out, force=force)
    assert out.read_text() == "new"
    assert out.stat().st_ino in synced
