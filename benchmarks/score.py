"""Speed and memory of the scorer and of the gradient, beside what they are made of and what transformers offers.

    python -m benchmarks.score examples/tiny --lengths 1k,2k
    python -m benchmarks.score SmolLM2-135M-Instruct --lengths 2k,8k,16k

For one window of each length, on the CPU: the scorer of `ropecli calibrate`; the bare backbone and its head on slices,
as plain PyTorch; `model(ids, labels=ids).loss` of transformers; and the gradient to the rotary table. Times are CPU
seconds of one thread, the least of interleaved runs (A B C A B C …), so that a busy machine disturbs them little. The
memory is what a fresh process has at its peak beyond what it had with the model loaded (Linux). Nothing is asserted:
whether a target is met is printed.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from calibrate.corpus import Document
from calibrate.fit import scorer
from calibrate.gradient import slope
from calibrate.model import LoadedModel, Settings, load
from calibrate.objective import method
from calibrate.run import extensible
from calibrate.score import CHUNK_ENTRIES, Bands
from ropecli.checkpoint import read_checkpoint
from ropecli.frequencies import frequencies

SCORER, BARE, TRANSFORMERS, GRADIENT = "scorer", "backbone and head", "model(labels)", "gradient"
SPEED, SLOPE, GIGABYTES, LONG = 0.95, 3.0, 0.5, 16384

Pass = Callable[[], float]
"""One pass over the window; nats, so that all four can be seen to do the same work."""


def passes(source: str, loaded: LoadedModel, length: int) -> dict[str, Pass]:
    """The four ways to score one window of tokens drawn at random."""
    rope, plain = extensible(read_checkpoint(source), None)
    table = frequencies(method("none", plain, 2.0))
    model = loaded.model
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    document = Document("drawn", (tuple(ids[0].tolist()),))
    bands = Bands((1, length // 2, length))
    nats_of = scorer(loaded, rope.name, bands)

    def bare() -> float:
        step, total = max(1, CHUNK_ENTRIES // vocabulary), 0.0
        with torch.no_grad():
            hidden = getattr(model, model.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state
            for start in range(0, length - 1, step):
                stop = min(start + step, length - 1)
                logits = model.get_output_embeddings()(hidden[0, start:stop]).float()
                total += float(torch.nn.functional.cross_entropy(logits, ids[0, start + 1 : stop + 1], reduction="sum"))
        return total

    def labelled() -> float:
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids, use_cache=False).loss) * (length - 1)

    return {
        SCORER: lambda: float(nats_of(table, [document]).sum()),
        BARE: bare,
        TRANSFORMERS: labelled,
        GRADIENT: lambda: slope(loaded, rope.name, table, [document], bands, [1.0, 1.0]).nats,
    }


def seconds(ways: dict[str, Pass], runs: int) -> dict[str, float]:
    """Least CPU seconds of each over interleaved runs. Raises ValueError where they do not agree on the loss."""
    least = dict.fromkeys(ways, float("inf"))
    nats = {}
    for _ in range(runs):
        for name, way in ways.items():
            began = time.process_time()
            nats[name] = way()
            least[name] = min(least[name], time.process_time() - began)
    if max(nats.values()) > 1.01 * min(nats.values()):
        raise ValueError(f"the ways differ in what they compute: {nats}")
    return least


def memory_of(source: str, name: str, length: int) -> None:
    """In this process, which must be fresh: print [bytes with the model loaded, bytes at most during one pass]."""
    loaded = load(source, Settings(device="cpu"))
    passes(source, loaded, 64)[name]()  # what is allocated once and for all
    way = passes(source, loaded, length)[name]
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: proc(5)
    way()
    print(json.dumps([before, _status("VmHWM")]))


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def peak(source: str, name: str, length: int) -> tuple[int, int]:
    """`memory_of` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.score", source, "--memory-of", name, "--lengths", str(length)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    before, most = json.loads(run.stdout)
    return before, most


def report(source: str, loaded: LoadedModel, length: int, runs: int) -> None:
    """Print the table of one length and what it says of the targets."""
    took = seconds(passes(source, loaded, length), runs)
    print(f"\n{Path(source).name}, {length:,} tokens, {loaded.dtype}:\n")
    print("| | tokens a second | against the scorer | model, MB | beyond it at most, MB |")
    print("| --- | --- | --- | --- | --- |")
    extra = {}
    for name, least in took.items():
        before, most = peak(source, name, length)
        extra[name] = (most - before) / 1e9
        speed = f"{length / least:,.0f} | {took[SCORER] / least:.2f}"
        print(f"| {name} | {speed} | {before / 1e6:,.0f} | {1000 * extra[name]:,.0f} |")
    speed, cost = took[BARE] / took[SCORER], took[GRADIENT] / took[SCORER]
    print(f"\n- scorer against backbone and head: {speed:.2f} (target {SPEED}): {_word(speed >= SPEED)}")
    print(f"- scorer against transformers' own loss: {took[TRANSFORMERS] / took[SCORER]:.2f}")
    print(f"- gradient against scorer: {cost:.2f} × (target {SLOPE:g}): {_word(cost <= SLOPE)}")
    if length >= LONG:
        met = _word(extra[SCORER] <= GIGABYTES)
        print(
            f"- memory of the scorer beyond the model: {extra[SCORER]:.2f} GB (target {GIGABYTES}): {met}", flush=True
        )


def _word(met: bool) -> str:
    return "met" if met else "missed"


def _length(text: str) -> int:
    return 1024 * int(text[:-1]) if text.endswith("k") else int(text)


def main() -> None:
    """Print every figure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--lengths", default="1k,2k")
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--memory-of", choices=(SCORER, BARE, TRANSFORMERS, GRADIENT), help=argparse.SUPPRESS)
    given = options.parse_args()
    torch.set_num_threads(1)
    lengths = [_length(text) for text in given.lengths.split(",")]
    if given.memory_of:
        memory_of(given.model, given.memory_of, lengths[0])
        return
    loaded = load(given.model, Settings(device="cpu"))
    for length in lengths:
        report(given.model, loaded, length, given.runs)


if __name__ == "__main__":
    main()
