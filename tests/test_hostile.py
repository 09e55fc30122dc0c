"""Files from strangers, through the real command line: one clear line, the right exit status, nothing raw, no trace.

A case is a name, what lies in the folder, and the exit statuses of `inspect`, `inspect --verify` and `convert`. Each
was found by hand or by a fuzzer (tests/fuzz/), or is in the threat model (SECURITY.md).
"""

import json
import os
import re
import resource
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from configs import LLAMA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrate.calibration import read_calibration
from ropecli import cli
from ropecli.errors import RopeError

REPOSITORY = Path(__file__).parent.parent
TINY = REPOSITORY / "examples" / "tiny"
YARN = ("--rope-type", "yarn", "--factor", "4")
EVIL = "x\x1b[31mRED\n\x9b31m\u202e\x07"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
SECONDS, MEBIBYTES = 5, 500

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process; whatever it says, no control character is in it, and JSON is JSON."""

    def call(*arguments: object) -> tuple[int, str, str]:
        words = [str(argument) for argument in arguments]
        began = time.process_time()
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert time.process_time() - began < SECONDS
        stdout, stderr = capsys.readouterr()
        assert not RAW.search(stdout + stderr)
        assert "Traceback" not in stderr
        if "--json" in words:
            for line in stdout.splitlines():
                json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
        assert isinstance(ended.value.code, int)
        return ended.value.code, stdout, stderr

    return call


def safetensors(tensors: dict[str, Any], data: bytes = b"") -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = safetensors({"a": tensor([1], 0, 4)}, b"abcd")
CONFIG = json.dumps(LLAMA).encode()


def index(**weight_map: object) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def sparse(path: Path, size: int, start: bytes = b"") -> None:
    path.write_bytes(start)
    os.truncate(path, size)


Piece = bytes | Callable[[Path], None]
"""A file's content, or what makes it."""


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def mkdir(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"

FOLDERS: dict[str, tuple[dict[str, Piece], tuple[int, int, int]]] = {
    # config.json
    "an empty config": ({"config.json": b""}, (3, 3, 3)),
    "a config with a byte order mark": ({"config.json": b"\xef\xbb\xbf" + CONFIG, WEIGHTS: ONE}, (0, 0, 0)),
    "a key twice": ({"config.json": b'{"a": 1, "a": 2}'}, (3, 3, 3)),
    "an evil key twice": ({"config.json": b'{"k": {"\\u001b[31m\\n": 1, "\\u001b[31m\\n": 2}}'}, (3, 3, 3)),
    "10,000 objects deep": ({"config.json": b'{"a":' * 10_000 + b"1" + b"}" * 10_000}, (3, 3, 3)),
    "10,000 lists deep": ({"config.json": b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"}, (3, 3, 3)),
    "a gigabyte of zeros": ({"config.json": lambda path: sparse(path, 2**30)}, (3, 3, 3)),
    "a config that is a folder": ({"config.json": mkdir}, (3, 3, 3)),
    "a config that is a pipe": ({"config.json": fifo}, (3, 3, 3)),
    "a config that is a device": ({"config.json": link("/dev/zero")}, (3, 3, 3)),
    "a config that is a link to itself": ({"config.json": link("config.json")}, (3, 3, 3)),
    "a config that cannot be read": ({"config.json": link("/proc/self/mem")}, (3, 3, 3)),
    "evil names": (
        {
            "config.json": json.dumps(LLAMA | {"model_type": EVIL, "architectures": [EVIL], EVIL: EVIL}).encode(),
            WEIGHTS: ONE,
        },
        (0, 0, 0),
    ),
    "an evil rope_type": (
        {"config.json": json.dumps(LLAMA | {"rope_scaling": {"rope_type": EVIL, "factor": 2.0}}).encode()},
        (3, 3, 3),
    ),
    # weights
    "a header of 2^63 bytes": ({"config.json": CONFIG, WEIGHTS: struct.pack("<Q", 2**63) + b"{}"}, (0, 1, 3)),
    "no whole header": ({"config.json": CONFIG, WEIGHTS: b"abc"}, (0, 1, 3)),
    "tensors that overlap": (
        {"config.json": CONFIG, WEIGHTS: safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, b"a" * 12)},
        (0, 1, 3),
    ),
    "a tensor outside of its file": (
        {"config.json": CONFIG, WEIGHTS: safetensors({"a": tensor([2], 2**62, 2**62 + 8)}, b"a" * 8)},
        (0, 1, 3),
    ),
    "evil tensor names": (
        {"config.json": CONFIG, WEIGHTS: safetensors({EVIL: tensor([3], 0, 12, EVIL)}, b"a" * 8)},
        (0, 1, 3),
    ),
    "weights that are a pipe": ({"config.json": CONFIG, WEIGHTS: fifo}, (0, 1, 3)),
    "weights that are a folder": ({"config.json": CONFIG, WEIGHTS: mkdir}, (0, 1, 3)),
    "pickles alone": ({"config.json": CONFIG, "pytorch_model.bin": b"cos\nsystem\n(S'false'\ntR."}, (0, 1, 0)),
    # the index
    "an index that climbs out": ({"config.json": CONFIG, INDEX: index(a="../../etc/passwd")}, (0, 1, 3)),
    "an index with an absolute path": ({"config.json": CONFIG, INDEX: index(a="/etc/passwd")}, (0, 1, 3)),
    "an index with a path of Windows": ({"config.json": CONFIG, INDEX: index(a="C:\\x")}, (0, 1, 3)),
    "an index with a null character": ({"config.json": CONFIG, INDEX: index(a="a\0b")}, (0, 1, 3)),
    "an index with an endless name": ({"config.json": CONFIG, INDEX: index(a="x" * 5000)}, (0, 1, 3)),
    "an index of evil names": ({"config.json": CONFIG, INDEX: index(**{EVIL: EVIL})}, (0, 1, 3)),
    "a shard that is a link out": (
        {"config.json": CONFIG, INDEX: index(a="a.safetensors"), "a.safetensors": link("/etc/passwd")},
        (0, 1, 3),
    ),
    "a shard that is a link to itself": (
        {"config.json": CONFIG, INDEX: index(a="a.safetensors"), "a.safetensors": link("a.safetensors")},
        (0, 1, 3),
    ),
    "a shard that is missing": (
        {"config.json": CONFIG, INDEX: index(a="a.safetensors", b="b.safetensors"), "a.safetensors": ONE},
        (0, 1, 3),
    ),
    "a tensor in two shards": (
        {
            "config.json": CONFIG,
            INDEX: index(a="a.safetensors", b="b.safetensors"),
            "a.safetensors": ONE,
            "b.safetensors": ONE,
        },
        (0, 1, 3),
    ),
    "a shard under two names": (
        {
            "config.json": CONFIG,
            INDEX: index(a="a.safetensors", b="b.safetensors"),
            "a.safetensors": ONE,
            "b.safetensors": link("a.safetensors"),
        },
        (0, 1, 3),
    ),
    "an index that is a folder": ({"config.json": CONFIG, INDEX: mkdir}, (0, 1, 3)),
    # what lies beside
    "a folder that is a loop": ({"config.json": CONFIG, WEIGHTS: ONE, "loop": link(".")}, (0, 0, 3)),
    "a link to a stranger's file": ({"config.json": CONFIG, WEIGHTS: ONE, "notes.txt": link("/etc/passwd")}, (0, 0, 3)),
    "a link to a device": ({"config.json": CONFIG, WEIGHTS: ONE, "notes.txt": link("/dev/zero")}, (0, 0, 3)),
    "evil file names": ({"config.json": CONFIG, WEIGHTS: ONE, "e\x1b[31m\n": b"x"}, (0, 0, 0)),
    "a tokenizer_config that is a pipe": (
        {"config.json": CONFIG, WEIGHTS: ONE, "tokenizer_config.json": fifo},
        (0, 0, 3),
    ),
    "a tokenizer_config that is cut off": (
        {"config.json": CONFIG, WEIGHTS: ONE, "tokenizer_config.json": b"{"},
        (0, 0, 3),
    ),
    "a tokenizer_config with infinities": (
        {"config.json": CONFIG, WEIGHTS: ONE, "tokenizer_config.json": b'{"model_max_length": Infinity}'},
        (0, 0, 0),
    ),
    # other kinds
    "an adapter of a device": (
        {"adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "/dev/zero"}'},
        (3, 3, 3),
    ),
    "an adapter of itself": (
        {"adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "."}'},
        (3, 3, 3),
    ),
    "a GGUF of zeros": ({"model.gguf": lambda path: sparse(path, 2**30)}, (3, 3, 3)),
    "a GGUF with 2^60 pairs": (
        {"model.gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + bytes(1000)},
        (3, 3, 3),
    ),
    "a params.json with evil numbers": (
        {"params.json": b'{"dim": 1e400, "n_layers": -1, "n_heads": NaN, "vocab_size": 1, "norm_eps": 1}'},
        (3, 3, 3),
    ),
}


def made(folder: Path, pieces: dict[str, Piece]) -> Path:
    """The folder with these files in it."""
    folder.mkdir()
    for name, piece in pieces.items():
        if isinstance(piece, bytes):
            (folder / name).write_bytes(piece)
        else:
            piece(folder / name)
    return folder


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_from_a_stranger(case: str, run: Run, tmp_path: Path) -> None:
    """Read or refused with the promised status, by every verb that needs no model, and never half written."""
    pieces, (plain, verified, converted) = FOLDERS[case]
    folder = made(tmp_path / "model", pieces)
    before = sorted(path.name for path in folder.iterdir())
    out = tmp_path / ("out.gguf" if "model.gguf" in pieces else "out")
    assert run("inspect", folder)[0] == plain
    assert run("inspect", folder, "--json")[0] == plain
    assert run("inspect", folder, "--verify")[0] == verified
    assert run("inspect", folder, "--verify", "--json")[0] == verified
    status, _, stderr = run("convert", folder, "-o", out, *YARN)
    assert status == converted, stderr
    assert out.exists() == (status == 0)
    assert run("convert", folder, "--dry-run", *YARN, "--json")[0] == converted
    if status:
        assert len([line for line in stderr.splitlines() if line.startswith("error: ")]) == 1
    assert sorted(path.name for path in folder.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", *(["out"] if status == 0 else [])]


NUMBERS = (float("nan"), float("inf"), -1, 0, 1e308, 10**40, "x", "", None, [], {}, True, EVIL)
TOP = ("rope_theta", "max_position_embeddings", "hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim")
INNER = ("factor", "beta_fast", "beta_slow", "attention_factor", "original_max_position_embeddings", "mscale")


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers_of_a_config_that_are_none(value: object, run: Run, tmp_path: Path) -> None:
    """NaN, infinities, negatives, zero, what is huge or no number, for each number: an answer, or status 3."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    configs = [LLAMA | {key: value} for key in TOP]
    configs += [LLAMA | {"rope_scaling": scaling | {key: value}} for key in INNER]
    for number, config in enumerate(configs):
        folder = made(tmp_path / str(number), {"config.json": json.dumps(config).encode(), WEIGHTS: ONE})
        assert run("inspect", folder, "--json")[0] in (0, 3)
        assert run("convert", folder, "--dry-run", *YARN, "--json")[0] in (0, 2, 3)


VALUES = ("nan", "inf", "-1", "0", "9" * 400, "", "1e-320", EVIL, "a" * 5000, "/dev/full")
NEEDS: dict[str, tuple[str, ...]] = {
    "--factor": ("--rope-type", "yarn"),
    "--target-length": ("--rope-type", "yarn"),
    "--rope-type": ("--factor", "4"),
    "--from": (),
    "--factors": ("--rope-type", "longrope", "--factor", "4"),
    "--low-freq-factor": ("--rope-type", "llama3", "--factor", "4"),
    "--high-freq-factor": ("--rope-type", "llama3", "--factor", "4"),
    "--bake-length": (*YARN, "--bake", "cos-sin"),
}
OPTIONS = [
    (verb, parameter.opts[0])
    for verb in ("inspect", "convert")
    for parameter in typer.main.get_command(cli.app).commands[verb].params  # type: ignore[attr-defined]
    if parameter.param_type_name == "option" and not parameter.is_flag
]


@pytest.mark.parametrize(("verb", "option"), OPTIONS, ids=" ".join)
def test_values_of_options(verb: str, option: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option with each kind of nonsense: done, or a status of the contract, and no file anywhere."""
    monkeypatch.chdir(tmp_path)
    more: tuple[str, ...] = NEEDS.get(option, YARN) if verb == "convert" else ()
    for value in VALUES:
        dry = ("--dry-run",) if verb == "convert" else ()
        status, _, stderr = run(verb, TINY, *dry, *more, option, value)
        assert status in (0, 1, 2, 3, 4), stderr
        assert not list(tmp_path.iterdir()), value


@pytest.mark.parametrize("option", ["--factor", "--guard", "--time-limit", "--validation-fraction"])
@pytest.mark.parametrize("value", ["nan", "1e308", "-inf", "x"])
def test_numbers_of_calibrate(option: str, value: str, run: Run, tmp_path: Path) -> None:
    """Numbers that no search can start with, and a text that is not there: bad usage or bad data, never a traceback."""
    more = () if option == "--factor" else ("--factor", "2")
    status, _, stderr = run("calibrate", TINY, "--data", tmp_path / "none", *more, option, value)
    assert status == 2 or (status == 3 and option != "--factor"), stderr


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/full", "/proc/self/mem", "folder", "twice", "huge"])
def test_calibration_files_that_never_end(source: str, run: Run, tmp_path: Path) -> None:
    """A device is not read; a key twice and a file of gigabytes are refused."""
    file = tmp_path / "calibration.json"
    if source == "folder":
        file.mkdir()
    elif source == "twice":
        file.write_text('{"kind": 1, "kind": 2}')
    elif source == "huge":
        sparse(file, 2**32, b"{")
    where = file if "/" not in source else source
    status, stdout, stderr = run("convert", TINY, "-o", tmp_path / "out", "--from", where)
    assert (status, stdout) == (3, "")
    assert str(where) in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["inspect", "convert"])
@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "", "a" * 5000, "a/b\0c", EVIL, "../" * 500], ids=repr)
def test_names_that_are_no_checkpoint(verb: str, name: str, run: Run) -> None:
    """Devices, empty and endless names, null characters and terminal escapes: status 3."""
    more = ("--dry-run", *YARN) if verb == "convert" else ()
    status, stdout, stderr = run(verb, name, *more)
    assert (status, stdout) == (3, "")
    assert stderr.startswith("error: ")


def test_a_pipe_of_the_shell_is_read(run: Run, tmp_path: Path) -> None:
    """`ropecli inspect <(…)` works: a pipe that the user names is not a pipe that a folder holds."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(CONFIG))
    writer.start()
    assert run("inspect", pipe)[0] == 0
    writer.join()


def test_a_link_in_place_of_a_backup_is_not_followed(run: Run, tmp_path: Path) -> None:
    """--in-place writes its backup as a new file, never through a link that lies there."""
    folder = made(tmp_path / "model", {"config.json": CONFIG, WEIGHTS: ONE})
    (folder / "config.json.backup").symlink_to(tmp_path / "outside")
    assert run("convert", folder, "--in-place", *YARN)[0] == 2
    assert run("convert", folder, "--in-place", "--force", *YARN)[0] == 0
    assert not (tmp_path / "outside").exists()
    assert (folder / "config.json.backup").read_bytes() == CONFIG


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_devices_are_no_outputs(device: str, run: Run) -> None:
    """Not with --force either: root could put a file in the place of the device."""
    before = Path(device).stat()
    for force in ((), ("--force",)):
        assert run("convert", TINY, "-o", device, *YARN, *force)[0] == 2
        assert run("calibrate", TINY, "--data", TINY, "--factor", "2", "-o", device, *force)[0] == 2
    assert Path(device).stat().st_rdev == before.st_rdev


words = st.sampled_from(
    ["--factor", "--json", "--check", "--expect", "--rope-type", "yarn", "4", "nan", "-1", "=", ","]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(verb=st.sampled_from(["inspect", "convert"]), more=st.lists(words | st.text(max_size=8), max_size=6))
def test_any_command_line(verb: str, more: list[str], run: Run) -> None:
    """Whatever stands behind a verb, the status is one of the contract's."""
    dry = ["--dry-run"] if verb == "convert" else []
    assert run(verb, TINY, *dry, *(word for word in more if word not in ("-", "-o", "-f")))[0] in (0, 1, 2, 3, 4)


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
GOOD: dict[str, Any] = {
    "kind": "ropecli.calibration",
    "schema_version": 1,
    "rope": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "beta_slow": 1.0,
        "beta_fast": 32.0,
        "attention_factor": 1.1,
    },
    "inv_freq": [1.0] * 16,
}


@settings(max_examples=300)
@given(
    top=st.dictionaries(st.sampled_from(sorted(GOOD)), anything, max_size=2),
    inner=st.dictionaries(st.sampled_from(sorted(GOOD["rope"])), anything, max_size=2),
    cut=st.integers(0, 400),
)
def test_any_calibration_file(top: dict[str, Any], inner: dict[str, Any], cut: int) -> None:
    """Damaged anywhere, or cut off: what was calibrated comes out, or one error on one line."""
    text = json.dumps(GOOD | {"rope": GOOD["rope"] | inner} | top)
    try:
        read_calibration(text[: len(text) - cut] if cut < 100 else text, "file.json")
    except RopeError as error:
        message = error.message
        assert (error.exit_status, message[:9], message.isprintable()) == (3, "file.json", True)  # noqa: PT017


def spawn(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """A process of its own, with an address space that hostile input may not outgrow."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEBIBYTES * 2**20, MEBIBYTES * 2**20))

    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"} | options.pop("env", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [sys.executable, "-m", "ropecli", *map(str, arguments)],
        text=True,
        env=env,
        check=False,
        timeout=60,
        preexec_fn=limited,
        **streams,
    )


LINES: dict[str, tuple[str, ...]] = {
    "table": ("inspect", str(TINY)),
    "JSON": ("inspect", str(TINY), "--json"),
    "error": ("inspect", "no/such/model"),
    "error as JSON": ("inspect", "no/such/model", "--json"),
    "plan": ("convert", str(TINY), *YARN, "--dry-run"),
    "help": ("convert", "--help"),
}


@pytest.mark.parametrize("case", ["table", "error", "error as JSON", "help"])
def test_a_full_disk_behind_standard_output(case: str) -> None:
    """Status 4 and one line on standard error, without a traceback; an error that goes there keeps its own status."""
    with Path("/dev/full").open("w") as full:
        done = spawn(*LINES[case], stdout=full)
    assert done.returncode == (3 if case == "error" else 4)
    assert len(done.stderr.splitlines()) <= 2
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(("how", "case"), [("full", "table"), ("full", "error"), ("gone", "plan"), ("gone", "error")])
def test_standard_error_that_fails_changes_nothing(how: str, case: str) -> None:
    """What cannot be said is lost; the exit status and the result are what they are."""
    wanted = spawn(*LINES[case])
    if how == "full":
        with Path("/dev/full").open("w") as full:
            done = spawn(*LINES[case], stderr=full)
    else:
        reading, writing = os.pipe()
        os.close(reading)
        done = spawn(*LINES[case], stderr=writing)
        os.close(writing)
    assert (done.returncode, done.stdout) == (wanted.returncode, wanted.stdout)


@pytest.mark.parametrize(
    ("closed", "arguments", "status"),
    [
        (">&-", ("inspect", str(TINY)), 0),
        ("<&-", ("inspect", "-"), 3),
        ("2>&-", ("inspect", "no/such/model"), 3),
        ("<&-", ("convert", str(TINY), "-o", "never", "--from", "-"), 3),
        ("<&- >&- 2>&-", ("inspect", str(TINY)), 0),
    ],
)
def test_streams_that_are_closed(closed: str, arguments: tuple[str, ...], status: int, tmp_path: Path) -> None:
    """As cron and daemons start programs: a closed stream is the null device, never one of our files."""
    command = f'exec "$0" -m ropecli "$@" {closed}'
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        check=False,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", ["table", "help"])
def test_a_terminal_that_knows_ascii_alone(case: str) -> None:
    """Under the real LANG=C, without Python's own remedies, what cannot be shown is replaced."""
    env = {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    done = spawn(*LINES[case], env=env)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii()


def test_a_hub_that_does_not_answer_is_asked_once() -> None:
    """A mistyped path looks like a Hub id: it does not wait for the retries of a download."""
    env = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/nonexistent"}
    done = spawn("inspect", "org/name", env=env)
    assert (done.returncode, done.stdout) == (3, "")
    assert "the Hub does not answer" in done.stderr


def test_a_bare_environment(tmp_path: Path) -> None:
    """No home folder, LANG=C, spaces and other alphabets in every path."""
    place = tmp_path / "a b ü 漢"
    made(place, {"config.json": CONFIG, WEIGHTS: ONE})
    for arguments in (("inspect", place, "--verify"), ("convert", place, "-o", tmp_path / "c d ñ", *YARN)):
        command = [sys.executable, "-m", "ropecli", *map(str, arguments)]
        env = {"PYTHONPATH": str(REPOSITORY), "LANG": "C", "PATH": os.environ["PATH"]}
        done = subprocess.run(command, capture_output=True, env=env, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "c d ñ" / "config.json").exists()
