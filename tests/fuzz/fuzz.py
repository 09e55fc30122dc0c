"""Coverage-guided fuzzing of everything that reads a file: `make fuzz`, or `fuzz.py DOOR [libFuzzer options]`.

Each door takes bytes, puts them where a user would have them, and lets nothing out but an answer or one of our errors.
atheris is no part of the test environment: `make fuzz` makes one of its own. The kept corpus is one folder a door.
"""

import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import atheris

os.environ["HF_HUB_OFFLINE"] = "1"

# what reads is instrumented; what only looks at a spec afterwards would take atheris minutes, and steers nothing
with atheris.instrument_imports(include=["ropecli", "calibrate"]):
    from calibrate.corpus import read_texts
    from ropecli.checkpoint import read_checkpoint
    from ropecli.gguf_checkpoint import read_model
    from ropecli.gguf_header import verify_gguf
    from ropecli.safetensors_header import read_header, survey

from calibrate.calibration import read_calibration
from ropecli import cli
from ropecli.conversion import plan, scaling_by_hand
from ropecli.errors import RopeError
from ropecli.frequencies import frequencies
from ropecli.inspection import inspect, inspection_to_json

PLACE = Path(tempfile.mkdtemp(prefix="ropecli-fuzz-"))
PARAMS = b'{"dim": 64, "n_layers": 2, "n_heads": 4, "head_dim": 16, "vocab_size": 32, "norm_eps": 1e-5, '


def on_one_line(error: RopeError) -> None:
    """Nothing from a file reaches a terminal raw."""
    assert error.message.isprintable(), error.message


def config(data: bytes) -> None:
    """A config.json: read, looked at as a person and as a program would, converted as far as the plan."""
    checkpoint = read_checkpoint("-", stdin=io.TextIOWrapper(io.BytesIO(data)))
    json.dumps(inspection_to_json(inspect(checkpoint)), allow_nan=False)
    for rope in checkpoint.ropes:
        assert len(frequencies(rope.spec).inv_freq) == rope.spec.pairs
    if checkpoint.format == "hf" and checkpoint.ropes:
        intent = {rope.name: rope.spec for rope in checkpoint.ropes[:1]}
        scaling_by_hand("yarn", checkpoint.ropes[0].spec, 2.0)
        plan(checkpoint, intent)


def params(data: bytes) -> None:
    """A params.json of Meta or Mistral: the same, behind keys that lead there."""
    config(PARAMS + data)


def safetensors(data: bytes) -> None:
    """The header of a safetensors file."""
    file = PLACE / "model.safetensors"
    file.write_bytes(data)
    read_header(file)


def index(data: bytes) -> None:
    """An index of shards beside one good shard."""
    folder = PLACE / "index"
    folder.mkdir(exist_ok=True)
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (folder / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    (folder / "model.safetensors.index.json").write_bytes(data)
    survey(folder)


def gguf(data: bytes) -> None:
    """A GGUF file."""
    file = PLACE / "model.gguf"
    file.write_bytes(data)
    verify_gguf(file)
    read_model(file)


def calibration(data: bytes) -> None:
    """A calibration file."""
    read_calibration(data.decode("utf-8", "replace"), "file.json")


def text(data: bytes) -> None:
    """A text file and the rows of a JSONL file."""
    for name in ("text.txt", "text.jsonl"):
        (PLACE / name).write_bytes(data)
        try:
            read_texts([str(PLACE / name)])
        except RopeError as error:
            on_one_line(error)


def arguments(data: bytes) -> None:
    """A command line of inspect or convert --dry-run on the tiny checkpoint."""
    words = data.decode("utf-8", "replace").split("\n")
    tiny = str(Path(__file__).parents[2] / "examples" / "tiny")
    verb = ["convert", tiny, "--dry-run"] if len(data) % 2 else ["inspect", tiny]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as said:
        status = cli._run([*verb, *(word for word in words if word not in ("-", "-o", "--output", "--plot", "-f"))])
    assert status in (0, 1, 2, 3, 4), status
    for line in (out.getvalue() + said.getvalue()).split("\n"):
        assert line.isprintable(), line


DOORS: dict[str, Callable[[bytes], None]] = {
    door.__name__: door for door in (config, params, safetensors, index, gguf, calibration, text, arguments)
}


def main() -> None:
    """Fuzz the door that the first argument names; the rest is libFuzzer's."""
    door = DOORS[sys.argv[1]]

    def one(data: bytes) -> None:
        try:
            door(data)
        except RopeError as error:
            on_one_line(error)

    corpus = Path(__file__).parent / "corpus" / sys.argv[1]
    found = Path(tempfile.mkdtemp(prefix=f"ropecli-fuzz-{sys.argv[1]}-"))
    options = ["-timeout=5", "-rss_limit_mb=500", "-max_len=4096", f"-artifact_prefix={found}/", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *options, str(found), str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
