"""How quick `ropecli inspect` is: start-up, a thousand configs, a hundred thousand tensors.

    python benchmarks/inspect_speed.py

Prints medians of interleaved runs (A B C A B C …), so that a noisy machine is noisy for all of them alike. Nothing is
asserted.
"""

import argparse
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELLO = "import typer; app = typer.Typer(); app.command('a')(lambda: None); app.command('b')(lambda: None); app(['a'])"
TINY = Path(__file__).resolve().parent.parent / "examples" / "tiny"
CONFIGS = 1000
SHARDS, TENSORS = 200, 100_000


def seconds(command: list[str]) -> float:
    """Wall time of one run of a command, its output thrown away."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def side_by_side(commands: dict[str, list[str]], runs: int) -> dict[str, float]:
    """Median seconds of each command over interleaved runs, after one warm-up of each."""
    for command in commands.values():
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(seconds(command))
    return {name: statistics.median(found) for name, found in times.items()}


def many_configs(folder: Path) -> list[str]:
    """Paths of a thousand configs of many lengths."""
    config = json.loads((TINY / "config.json").read_text())
    for index in range(CONFIGS):
        config["max_position_embeddings"] = 256 + index
        (folder / f"{index}.json").write_text(json.dumps(config))
    return sorted(str(path) for path in folder.iterdir())


def many_tensors(folder: Path) -> int:
    """Write a checkpoint of 200 sparse shards with 500 tensors each; returns the bytes of its headers."""
    (folder / "config.json").write_bytes((TINY / "config.json").read_bytes())
    weight_map, headers, size = {}, 0, 1 << 20
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = [f"model.layers.{shard}.experts.{i}.weight" for i in range(TENSORS // SHARDS)]
        header = {
            tensor: {"dtype": "BF16", "shape": [512, 1024], "data_offsets": [i * size, (i + 1) * size]}
            for i, tensor in enumerate(tensors)
        }
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + len(tensors) * size)
        headers += 8 + len(text)
        weight_map |= dict.fromkeys(tensors, name)
    total = {"total_size": TENSORS * size}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": total, "weight_map": weight_map}))
    return headers


def bytes_read(command: list[str]) -> int:
    """Bytes that a command read from files, as the kernel counted them (Linux)."""
    program = f"import subprocess, sys; subprocess.run({command!r}, check=True, stdout=subprocess.DEVNULL)"
    counter = "import resource; print([l for l in open('/proc/self/io') if l.startswith('rchar')][0].split()[1])"
    run = subprocess.run([sys.executable, "-c", f"{program}; {counter}"], check=True, capture_output=True, text=True)
    return int(run.stdout)


def main() -> None:
    """Print every figure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=7)
    runs = options.parse_args().runs
    python, tool = sys.executable, [sys.executable, "-m", "ropecli"]
    auto = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(TINY)!r})"
    medians = side_by_side(
        {
            'python -c "import typer, rich"': [python, "-c", "import typer, rich"],
            "a typer app of two empty commands": [python, "-c", HELLO],
            "ropecli --help": [*tool, "--help"],
            "ropecli inspect --json": [*tool, "inspect", "--json", str(TINY)],
            "AutoConfig.from_pretrained": [python, "-c", auto],
        },
        runs,
    )
    for name, median in medians.items():
        print(f"{name:35} {median:7.3f} s")
    ours = medians["ropecli inspect --json"]
    print(f"inspect against import typer, rich: {ours / medians[next(iter(medians))]:.2f} ×")
    print(f"inspect against an empty typer app: {ours / medians['a typer app of two empty commands']:.2f} ×")
    print(f"AutoConfig against inspect:         {medians['AutoConfig.from_pretrained'] / ours:.1f} ×")

    with tempfile.TemporaryDirectory() as folder:
        took = seconds([*tool, "inspect", "--json", *many_configs(Path(folder))]) - ours
        print(f"{CONFIGS} configs in one call: {1000 * took / CONFIGS:.2f} ms each beyond start-up")
    with tempfile.TemporaryDirectory() as folder:
        headers = many_tensors(Path(folder))
        command = [*tool, "inspect", "--verify", folder]
        took, without = seconds(command), bytes_read([*tool, "inspect", folder])
        read = bytes_read(command) - without
        gigabytes = TENSORS * (1 << 20) / 1e9
        print(
            f"--verify of {SHARDS} shards, {TENSORS:,} tensors, {gigabytes:.0f} GB (sparse): {took:.2f} s; "
            f"{read / 1e6:.1f} MB read, of which the headers are {headers / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
