"""Kill, interrupt and starve convert and calibrate, and look at what is left: writes docs/reliability.md.

    python tests/faults/faults.py [--kills 15] [--calibrations 100] [--only TEXT] [--output docs/reliability.md]

`--only calibrate`, or `--only "a GGUF"`, does those rows again and keeps the others.

Every run is a fork of this process, which has imported everything: so the fault falls into the work and not into the
start of Python. A C library in front of libc (faulty_writes.c; needs gcc) makes the n-th write fail, for every n, and
tells when the first one comes: three of four signals are sent between that and the end.
"""

import argparse
import contextlib
import ctypes
import errno
import functools
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TINY = ROOT / "examples" / "tiny"
YARN = ("--rope-type", "yarn", "--factor", "4", "--quiet")
MOST = 3
"""Runs for each one that a signal is to hit, at most."""
CALIBRATIONS = "`calibrate`: SIGKILL at a random moment, then `--resume`"
SMALL_DISKS = "`convert` --weights copy onto a tmpfs of 100 KiB to 8 MiB"
SHIM = "ROPECLI_FAULTY_WRITES"


@dataclass
class Row:
    """One line of the table: what was done how often, with which exit statuses, and what was wrong afterwards."""

    what: str
    runs: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    complete: int = 0
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """As Markdown."""
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        found = "; ".join(sorted(set(self.wrong))[:3]) or "nothing"
        return f"| {self.what} | {self.runs} | {statuses} | {self.complete} | {found} |"


def started(arguments: Sequence[object], before: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """The command line in a fork: its process, and a pipe that ends with the first effect on a file system."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from ropecli import cli  # noqa: PLC0415 - imported long ago

            library().fault_tell(writing)
            before()
            cli.main([str(argument) for argument in arguments])
    except KeyboardInterrupt:
        os._exit(130)  # before the first line of ours
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 70)
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        os._exit(70)  # what a traceback would have been
    os._exit(70)


def ended(child: int, reading: int) -> int:
    """The exit status of what was started."""
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forked(arguments: Sequence[object], before: Callable[[], None] = lambda: None) -> int:
    """Run the command line to its end; its exit status."""
    return ended(*started(arguments, before))


@dataclass(frozen=True)
class Pace:
    """How long a run takes when it is left alone, in seconds: up to its first effect on the disk, and from there."""

    begin: float
    rest: float

    @classmethod
    def of(cls, arguments: Sequence[object]) -> "Pace":
        """Of this command line."""
        began = time.monotonic()
        child, reading = started(arguments)
        os.read(reading, 1)
        first = time.monotonic()
        assert ended(child, reading) == 0, arguments
        return cls(first - began, time.monotonic() - first)

    def hit(self, arguments: Sequence[object], how: int) -> int:
        """The exit status of a run that signal `how` hits at a random moment, mostly after its first effect."""
        child, reading = started(arguments)
        moment = random.uniform(0, self.begin + self.rest)  # noqa: S311 - a moment, not a secret
        if random.random() < 0.75:  # noqa: S311
            os.read(reading, 1)
            moment = random.uniform(0, self.rest)  # noqa: S311
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, how)
        return ended(child, reading)


@functools.cache
def library() -> ctypes.CDLL:
    """The C library that stands in front of libc."""
    return ctypes.CDLL(os.environ[SHIM])


def content(folder: Path) -> dict[str, str]:
    """File → SHA-256 of everything in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def verifies(out: Path) -> bool:
    """What `ropecli inspect --verify --check` says, and whether it is the embedding that was asked for."""
    from ropecli.checkpoint import read_checkpoint  # noqa: PLC0415
    from ropecli.inspection import inspect, weight_problems  # noqa: PLC0415

    checkpoint = read_checkpoint(str(out))
    grave = [found for found in inspect(checkpoint).findings if found.severity == "error"]
    return not grave and not weight_problems(checkpoint) and checkpoint.ropes[0].spec.rope_type == "yarn"


WAYS: dict[str, tuple[str, ...]] = {
    "--weights copy": ("-o", "out", "--weights", "copy"),
    "--weights hardlink": ("-o", "out", "--weights", "hardlink"),
    "--force over a checkpoint": ("-o", "out", "--weights", "copy", "--force"),
    "--bake cos-sin": ("-o", "out", "--bake", "cos-sin", "--weights", "copy"),
    "--bake attention-factor": ("-o", "out", "--bake", "attention-factor"),
    "a GGUF": ("-o", "out.gguf"),
    "--in-place": ("--in-place",),
}


class Conversion:
    """One way to convert, in a folder of its own that is made again for every run."""

    def __init__(self, way: str, gguf: Path) -> None:
        self.way, self.gguf = way, gguf
        self.place = Path(tempfile.mkdtemp(prefix="ropecli-faults-"))
        self.source = self.place / "source"
        self.out = self.place / ("source" if way == "--in-place" else "out.gguf" if way == "a GGUF" else "out")
        self.fresh()
        self.pace = Pace.of(self.arguments)

    @property
    def arguments(self) -> list[object]:
        """The command line."""
        model = self.source / "model.gguf" if self.way == "a GGUF" else self.source
        names = [self.place / word if word in ("out", "out.gguf") else word for word in WAYS[self.way]]
        return ["convert", model, *names, *YARN]

    def fresh(self) -> None:
        """The place as it is before a run."""
        shutil.rmtree(self.place)
        self.place.mkdir()
        if self.way == "a GGUF":
            self.source.mkdir()
            shutil.copy(self.gguf, self.source / "model.gguf")
        else:
            shutil.copytree(TINY, self.source)
        if "--force" in self.way:
            assert forked(["convert", self.source, "-o", self.out, "--weights", "hardlink", *YARN]) == 0
        self.before = content(self.source)

    def judged(self, row: Row, status: int, *, killed: bool = False) -> None:
        """Look at what a run left; then the same command must go through."""
        from ropecli.staging import is_staging  # noqa: PLC0415

        row.runs += 1
        row.statuses[status] += 1
        if status == 70:
            row.wrong.append("a traceback")
        strays = [path for folder in (self.place, self.source) for path in folder.iterdir() if is_staging(path.name)]
        if strays and not killed:
            row.wrong.append("a staging folder was left")
        now = content(self.source)
        if self.way == "--in-place":
            done = now["config.json"] != self.before["config.json"]
            if now["model.safetensors"] != self.before["model.safetensors"]:
                row.wrong.append("the weights changed")
        else:
            done = os.path.lexists(self.out)
            if now != self.before:
                row.wrong.append("the source changed")
        if "--force" in self.way and not done:
            row.wrong.append("the old output is gone")
        row.complete += done
        if done and not verifies(self.out):
            row.wrong.append("the output does not verify")
        if done and "--in-place" not in self.way:
            return
        if not done and forked(self.arguments) != 0:
            row.wrong.append("the same command does not go through afterwards")
        if [path.name for path in self.place.iterdir() if is_staging(path.name)]:
            row.wrong.append("the next run does not tidy up")


def killed(conversion: Conversion, count: int, how: int) -> Row:
    """A signal at random moments, until it has hit so many runs; some are done before it comes."""
    row = Row(f"`convert` {conversion.way}: {signal.Signals(how).name} at a random moment")
    while row.runs - row.statuses[0] < count and row.runs < MOST * count:
        conversion.fresh()
        conversion.judged(row, conversion.pace.hit(conversion.arguments, how), killed=how == signal.SIGKILL)
    return row


def starved(conversion: Conversion, error: int) -> Row:
    """Every write in turn fails, and all after it."""
    row = Row(f"`convert` {conversion.way}: {errno.errorcode[error]} from the n-th write on, for every n")
    for number in range(10_000):
        conversion.fresh()

        def arm(number: int = number) -> None:
            library().fault_arm(number, error)

        status = forked(conversion.arguments, arm)
        if status == 0:
            break
        if status != 4:
            row.wrong.append(f"exit status {status}")
        conversion.judged(row, status)
    return row


def both(conversion: Conversion, count: int) -> Row:
    """Two runs to one output at the same time: one of them wins, and the other one says so."""
    row = Row(f"`convert` {conversion.way}: two at once to one output")
    for _ in range(count):
        conversion.fresh()
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                os._exit(forked(conversion.arguments))
            children.append(child)
        statuses = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        if statuses != [0, 2]:
            row.wrong.append(f"exit statuses {statuses}")
        row.statuses[statuses[0]] += 1
        conversion.judged(row, statuses[1])
    return row


def calibrations(count: int) -> Iterator[Row]:
    """calibrate is killed, resumed, and compared with a run that was left alone; the row after each of them."""
    from transformers.models.llama import modeling_llama  # noqa: F401, PLC0415

    import calibrate.run  # noqa: F401, PLC0415 - before the forks
    from ropecli.staging import is_staging  # noqa: PLC0415

    row = Row(CALIBRATIONS)
    place = Path(tempfile.mkdtemp(prefix="ropecli-faults-"))
    model = small_model(place / "model")
    texts = ROOT / "examples" / "text" / "calibration"
    data = ("--data", texts / "1824-Monroe-1.txt", "--data", texts / "1877-Hayes-1.txt")

    def arguments(output: Path) -> list[object]:
        more = ["--factor", "2", "--documents", "2", "--windows", "1", "--tune", "temperature", "--quiet"]
        return ["calibrate", model, *data, *more, "-o", output]

    def result(output: Path) -> str:
        found = json.loads(output.read_text())
        return json.dumps({key: found[key] for key in ("rope", "inv_freq", "decision", "validation", "calibration")})

    before = content(model)
    pace = Pace.of(arguments(place / "alone.json"))
    wanted = result(place / "alone.json")
    while row.statuses[-signal.SIGKILL] < count and row.runs < MOST * count:
        number = row.runs
        output = place / str(number) / "calibration.json"
        output.parent.mkdir()
        status = pace.hit(arguments(output), signal.SIGKILL)
        row.runs += 1
        row.statuses[status] += 1
        allowed = {output.name, f"{output.name}.journal", f"{output.name}.journal.partial"}
        if not {path.name for path in output.parent.iterdir() if not is_staging(path.name)} <= allowed:
            row.wrong.append("a stray file")
        row.complete += output.exists()
        if not output.exists() and forked([*arguments(output), "--resume"]) != 0:
            row.wrong.append("it cannot be resumed")
        elif result(output) != wanted:
            row.wrong.append("the resumed run gives something else")
        elif status and [path.name for path in output.parent.iterdir()] != [output.name]:
            row.wrong.append("the resumed run leaves something behind")
        if content(model) != before:
            row.wrong.append("the source changed")
        yield row


def small_model(folder: Path) -> Path:
    """A Llama of one layer with random weights and the tiny model's tokenizer, trained at 32 tokens so to say."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=2048, max_position_embeddings=32, tie_word_embeddings=True, **shape)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    return folder


def small_disks() -> Row:
    """A file system that is too small, for many sizes."""
    row = Row(SMALL_DISKS)
    disk = Path(tempfile.mkdtemp(prefix="ropecli-disk-"))
    for kibibytes in (100, 200, 400, 1000, 3000, 5000, 5600, 5700, 5750, 5800, 6000, 8000):
        size = f"size={kibibytes}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], check=False, capture_output=True
        )
        if done.returncode:
            row.wrong.append("not run: mounting needs root")
            return row
        try:
            status = forked(["convert", TINY, "-o", disk / "out", "--weights", "copy", *YARN])
            row.runs += 1
            row.statuses[status] += 1
            row.complete += (disk / "out").exists()
            left = [path.name for path in disk.iterdir()]
            if left != (["out"] if status == 0 else []) or status not in (0, 4):
                row.wrong.append(f"exit status {status} with {left}")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return row


PAGE = """# Reliability

What was done to `convert` and `calibrate`, and what was found afterwards. Printed by

```sh
python tests/faults/faults.py {words}
```

on {date}: {convert} runs of `convert` and {calibrate} of `calibrate` ended by SIGKILL. Of the signals, three of four
were sent at a random moment after a run's first effect on the disk, the others at any moment.
After every run: is the source byte-equal, is the output absent or does `inspect --verify --check` accept it, is nothing
left beside it, does the same command go through now? After a SIGKILL a folder `.OUT.ropecli-…` may lie beside the
output; the next run to the same output removes it: that is checked, too. A calibration that was killed is resumed, and
gives what one that was left alone gives.
A negative exit status is the signal that ended the run; 0 is a run that was done before.

| what | runs | exit statuses | outputs that were there | found wrong |
| --- | --- | --- | --- | --- |
{rows}

A smaller part of this runs with the tests (`tests/test_faults.py`); readers that go away, and standard streams that are
full or closed, are in `tests/test_cli_convert.py` and `tests/test_hostile.py`.
"""


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=15, help="SIGKILLs of convert, for each way to convert")
    parser.add_argument("--calibrations", type=int, default=100, help="SIGKILLs of calibrate")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "reliability.md")
    parser.add_argument("--only", default="", help="the rows with this in their name; the others stay as they are")
    options = parser.parse_args()
    if SHIM not in os.environ:
        library = Path(tempfile.mkdtemp()) / "faulty_writes.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faulty_writes.c", "-ldl"], check=True)
        more = {SHIM: str(library), "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | more | {"TQDM_DISABLE": "1"})  # noqa: S606
    import ropecli.gguf_writer  # noqa: PLC0415 - before the forks
    import ropecli.table_check  # noqa: F401, PLC0415

    random.seed(0)
    gguf = tiny_gguf(Path(tempfile.mkdtemp()))
    old = options.output.read_text().splitlines() if options.only else []
    rows = [line for line in old if line.startswith("| `") and options.only not in line.split("|")[1]]

    words = f"--kills {options.kills} --calibrations {options.calibrations}"

    def add(row: Row) -> None:
        rows[:] = [line for line in rows if not line.startswith(f"| {row.what} |")] + [row.line()]
        print(row.line(), flush=True)
        options.output.write_text(page(words, rows))  # whatever ends it, what was tried is written down

    for way in WAYS:
        if options.only not in f"`convert` {way}":
            continue
        conversion = Conversion(way, gguf)
        add(killed(conversion, options.kills, signal.SIGKILL))
        for how in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            add(killed(conversion, max(options.kills // 5, 1), how))
        for error in (errno.ENOSPC, errno.EIO):
            add(starved(conversion, error))
        if "--force" not in way and way != "--in-place":
            add(both(conversion, max(options.kills // 5, 1)))
        shutil.rmtree(conversion.place)
    if options.only in SMALL_DISKS:
        add(small_disks())
    if options.only in CALIBRATIONS:
        for row in calibrations(options.calibrations):
            add(row)


def page(words: str, rows: Sequence[str]) -> str:
    """docs/reliability.md."""

    def killed(verb: str) -> int:
        return sum(int(n) for row in rows if row.startswith(f"| `{verb}`") for n in re.findall(r" -9: (\d+)", row))

    order = [f"| `convert` {way}:" for way in WAYS] + [f"| {SMALL_DISKS}", f"| {CALIBRATIONS}"]
    return PAGE.format(
        words=words,
        date=time.strftime("%Y-%m-%d"),
        convert=killed("convert"),
        calibrate=killed("calibrate"),
        rows="\n".join(sorted(rows, key=lambda row: [not row.startswith(start) for start in order])),
    )


def tiny_gguf(folder: Path) -> Path:
    """A small GGUF Llama with a few megabytes of weights."""
    import gguf  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    for number in range(4):
        writer.add_tensor(f"blk.{number}.weight", np.zeros((1024, 256), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":
    main()
