"""Many and large: what `inspect`, `convert` and a search take, beside transformers and cp.

    python benchmarks/load.py [--scale 1.0] [--parts tensors]

`--scale 0.1` does a tenth of it, `--parts` some of it. Seconds are those of the processor, user and system, of all
processes that ran; peak memory is of the largest of them, in MB resident.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = ROOT / "examples" / "tiny"
ENV = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
YARN = ("--rope-type", "yarn", "--factor", "4", "--quiet")


def timed(*command: object) -> tuple[float, float]:
    """Processor seconds, and MB resident at most, of a process and what it starts; its output is thrown away."""
    code = "import resource, subprocess, sys; c = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL);"
    code += "u = resource.getrusage(resource.RUSAGE_CHILDREN); print(c, u.ru_utime + u.ru_stime, u.ru_maxrss)"
    words = [sys.executable, "-c", code, *map(str, command)]
    done = subprocess.run(words, env=ENV, check=True, stdout=subprocess.PIPE, text=True)
    status, seconds, kilobytes = done.stdout.split()
    if status != "0":
        sys.exit(f"{command} ended with {status}")
    return float(seconds), int(kilobytes) / 1024


def ropecli(*arguments: object) -> tuple[float, float]:
    """The same of `ropecli`."""
    return timed(sys.executable, "-m", "ropecli", *arguments)


def line(what: str, seconds: float, megabytes: float, more: str = "") -> None:
    """One result."""
    print(f"{what:<58} {seconds:8.2f} s {megabytes:6.0f} MB{'; ' + more if more else ''}", flush=True)


def header(file: Path, names: Sequence[str], elements: int) -> None:
    """A sparse safetensors file with BF16 tensors of these names, of so many elements each."""
    size = 2 * elements
    entries = {
        name: {"dtype": "BF16", "shape": [elements], "data_offsets": [n * size, (n + 1) * size]}
        for n, name in enumerate(names)
    }
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + len(names) * size)


def many_checkpoints(place: Path, count: int) -> None:
    """One call of inspect for all of them."""
    config = (TINY / "config.json").read_bytes()
    paths = [place / f"{n:05}" for n in range(count)]
    for path in paths:
        path.mkdir()
        (path / "config.json").write_bytes(config)
    line(f"inspect --json of {count:,} checkpoints in one call", *ropecli("inspect", "--json", *paths))
    few = max(count // 100, 1)
    code = "import sys; from transformers import AutoConfig\nfor p in sys.argv[1:]: AutoConfig.from_pretrained(p)"
    line(
        f"AutoConfig.from_pretrained of {few:,} of them",
        *timed(sys.executable, "-W", "ignore", "-c", code, *paths[:few]),
    )


def many_tensors(place: Path, count: int) -> None:
    """An index of a million tensors in a hundred shards, each of 1 MiB: 2 TB, sparse."""
    shards = max(count // 10_000, 1)
    shutil.copy(TINY / "config.json", place)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard:05}-of-{shards:05}.safetensors"
        names = [f"model.layers.{shard}.mlp.experts.{n}.up_proj.weight" for n in range(count // shards)]
        header(place / file, names, 2**20)
        weight_map |= dict.fromkeys(names, file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    what = f"{count:,} tensors, {shards} shards, {size / 1e12:.2f} TB (sparse)"
    line(f"inspect --verify: {what}", *ropecli("inspect", place, "--verify", "--json"))
    out = place.with_name("linked")
    line("convert --weights hardlink of it", *ropecli("convert", place, "-o", out, "--weights", "hardlink", *YARN))
    shutil.rmtree(out)
    line("cp -rl of it", *timed("cp", "-rl", place, out))


def at_once(place: Path, inspects: int, converts: int) -> None:
    """Processes side by side, as many at a time as there are cores, and all that convert from one source."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(4 * cores) as pool:
        found = list(pool.map(lambda _: ropecli("inspect", TINY, "--json"), range(inspects)))
    more = f"{4 * cores} at a time"
    line(f"{inspects} inspects", sum(s for s, _ in found), max(memory for _, memory in found), more)
    with ThreadPoolExecutor(converts) as pool:
        found = list(pool.map(lambda n: ropecli("convert", TINY, "-o", place / str(n), *YARN), range(converts)))
    if len(list(place.iterdir())) != converts:
        sys.exit("a conversion is missing")
    memory = max(memory for _, memory in found)
    line(f"{converts} converts from one source", sum(s for s, _ in found), memory, "all at once")


TRIALS = """
import resource, sys
import numpy as np
from calibrate.corpus import Document
from calibrate.objective import Objective, Point, Space
from calibrate.trials import Budget, Trials
from ropecli.spec import RopeSpec

count = int(sys.argv[1])
objective = Objective.parse("beyond", 0.005)
space = Space(RopeSpec(10000.0, 32, 32, 256, 256), 4.0)
bands = objective.bands(256, 1024)
documents = [Document(str(n), (tuple(range(1024)),)) for n in range(12)]
scorer = lambda table, some: np.full((len(some), len(bands.edges) - 1), 3.0 + table.attention_factor)
trials = Trials(scorer, documents, space, objective, bands, Budget(), lambda *_: None)
marks = []
for n in range(count):
    trials.loss(Point(n % 4, 8 + n % 5, 1 + n / (10 * count)), 12)
    if n in (count // 10, count - 1):
        marks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(f"{marks[0]:.0f} MB after a tenth, {marks[1]:.0f} MB at the end", file=sys.stderr)
"""


def main() -> None:
    """What was asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--parts", default="checkpoints,tensors,at-once,trials", help="default: %(default)s")
    given = parser.parse_args()
    scale, parts = given.scale, given.parts.split(",")

    def some(count: int) -> int:
        return max(round(count * scale), 1)

    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("configs", "tensors", "converts")]
        for place in places:
            place.mkdir()
        if "checkpoints" in parts:
            many_checkpoints(places[0], some(10_000))
        if "tensors" in parts:
            many_tensors(places[1], some(1_000_000))
        if "at-once" in parts:
            at_once(places[2], some(500), some(50))
    if "trials" in parts:
        line(f"{some(5000):,} trials of a search, scores made up", *timed(sys.executable, "-c", TRIALS, some(5000)))


if __name__ == "__main__":
    main()
