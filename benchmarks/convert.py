"""What `ropecli convert` costs: a large checkpoint whose weights are linked, copies against `cp -r`, baked tables.

    python benchmarks/convert.py --folder /disk/with/room

The fastest of interleaved runs (A B A B …): what else a machine does can only add to a time, and does so to all of them
alike. Bytes are those that the kernel counted (Linux). Nothing is asserted.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TINY = Path(__file__).resolve().parent.parent / "examples" / "tiny"
TOOL = [sys.executable, "-m", "ropecli"]
YARN = ["--rope-type", "yarn", "--factor", "4", "-q"]
SHARDS, GIGABYTES = 200, 64
TENSOR = 1 << 26
POSITIONS, HEAD_DIM = 1 << 20, 128

WRAPPER = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
written = next(line for line in open("/proc/self/io") if line.startswith("wchar")).split()[1]
print(json.dumps([int(written), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def seconds(command: list[str]) -> float:
    """Wall time of one run of a command, its output thrown away."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def written_and_peak(command: list[str]) -> tuple[int, int]:
    """(bytes that a command wrote, bytes of memory that it had at most)."""
    run = subprocess.run([sys.executable, "-c", WRAPPER, *command], check=True, stdout=subprocess.PIPE, text=True)
    written, peak = json.loads(run.stdout)
    return written, peak


def remove(folder: Path) -> None:
    """Take the output away, and let the disk finish what it has to write."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def side_by_side(commands: dict[str, list[str]], out: Path, runs: int) -> dict[str, float]:
    """Fewest seconds of each command over interleaved runs, after one warm-up of each; all write to `out`."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs + 1):
        for name, command in commands.items():
            remove(out)
            times[name].append(seconds(command))
    remove(out)
    return {name: min(found[1:]) for name, found in times.items()}


def write_checkpoint(folder: Path, shards: int, tensors: int, fill: Callable[[int], bytes] | None = None) -> None:
    """Write a checkpoint with `tensors` of 64 MiB in each shard; without `fill` they are holes that take no space."""
    folder.mkdir()
    config = json.loads((TINY / "config.json").read_text())
    config |= {"head_dim": HEAD_DIM, "max_position_embeddings": POSITIONS // 4}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = [f"model.layers.{shard}.experts.{i}.weight" for i in range(tensors)]
        header = {
            tensor: {"dtype": "BF16", "shape": [8192, 4096], "data_offsets": [i * TENSOR, (i + 1) * TENSOR]}
            for i, tensor in enumerate(names)
        }
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            if fill is None:
                file.truncate(8 + len(text) + tensors * TENSOR)
            else:
                file.writelines(fill(TENSOR) for _ in names)
        weight_map |= dict.fromkeys(names, name)
    total = {"total_size": shards * tensors * TENSOR}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": total, "weight_map": weight_map}))


def config_alone(place: Path, runs: int) -> None:
    """A large checkpoint whose weights are linked."""
    source, out = place / "large", place / "out"
    tensors = GIGABYTES * 10**9 // TENSOR // SHARDS
    write_checkpoint(source, SHARDS, tensors)
    large = [*TOOL, "convert", str(source), "-o", str(out), *YARN]
    fastest = side_by_side(
        {
            "ropecli --version": [*TOOL, "--version"],
            "ropecli convert examples/tiny": [*TOOL, "convert", str(TINY), "-o", str(out), *YARN],
            f"ropecli convert, {GIGABYTES} GB (sparse) in {SHARDS} shards": large,
        },
        out,
        runs,
    )
    for name, took in fastest.items():
        print(f"{name:50} {took:7.3f} s")
    start, *_, took = fastest.values()
    written, peak = written_and_peak(large)
    print(
        f"beyond start-up: {took - start:.3f} s; {written / 1e6:.2f} MB written; {peak / 1e6:.0f} MB resident at most"
    )
    remove(out)


def baked(place: Path) -> None:
    """Tables of a million positions, on the checkpoint of `config_alone`."""
    out = place / "out"
    command = [*TOOL, "convert", str(place / "large"), "-o", str(out), *YARN, "--bake", "cos-sin"]
    took = seconds(command)
    remove(out)
    written, peak = written_and_peak(command)
    print(
        f"--bake cos-sin, {POSITIONS:,} positions of {HEAD_DIM} dimensions: {took:.1f} s; {written / 1e6:.0f} MB "
        f"written; {peak / 1e6:.0f} MB resident at most"
    )
    remove(out)


def copies(place: Path, gigabytes: float, runs: int) -> None:
    """Copied weights against `cp -r`, on real data."""
    source, out = place / "real", place / "out"
    shards = 4
    tensors = max(1, round(gigabytes * 1e9 / TENSOR / shards))
    write_checkpoint(source, shards, tensors, os.urandom)
    start, *names = "ropecli convert examples/tiny", "ropecli convert --weights copy", "cp -r"
    fastest = side_by_side(
        {
            start: [*TOOL, "convert", str(TINY), "-o", str(out), *YARN],
            names[0]: [*TOOL, "convert", str(source), "-o", str(out), *YARN, "--weights", "copy"],
            names[1]: ["cp", "-r", str(source), str(out)],
        },
        out,
        runs,
    )
    size = shards * tensors * TENSOR / 1e6
    for name in names:
        print(f"{f'{name}, {size / 1000:.1f} GB':50} {fastest[name]:7.3f} s  {size / fastest[name]:6.0f} MB/s")
    ours, theirs = (fastest[name] for name in names)
    print(f"speed against cp -r: {theirs / ours:.2f}; beyond start-up: {theirs / (ours - fastest[start]):.2f}")


def main() -> None:
    """Print every figure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--folder", help="where to work; default: the folder for temporary files")
    options.add_argument("--gigabytes", type=float, default=4.0, help="real data to copy")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        place = Path(folder)
        config_alone(place, given.runs)
        baked(place)
        copies(place, given.gigabytes, given.runs)


if __name__ == "__main__":
    main()
