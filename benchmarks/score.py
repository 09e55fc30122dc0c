"""Speed and memory of the scorer and of the gradient, beside what they are made of and what transformers offers.

    python benchmarks/score.py examples/tiny --lengths 1k,2k
    python benchmarks/score.py SmolLM2-135M-Instruct --lengths 2k,8k,16k
    python benchmarks/score.py SmolLM2-135M-Instruct --lengths 8k,16k,64k --device cuda
    python benchmarks/score.py SmolLM2-135M-Instruct --lengths 1k,4k --at-once 8k,16k,32k,64k,128k --device cuda

For one window of each length: the scorer of `ropecli calibrate`; the bare backbone and its head on slices, as plain
PyTorch; `model(ids, labels=ids).loss` of transformers; and the gradient to the rotary table. On a CPU each runs on one
thread of a fresh process, in turns (A B C A B C …), and the least time counts: CPU seconds, so that a busy machine
disturbs them little. The memory is that at the peak beyond what the process had with the model loaded (Linux). On a GPU
one process runs them in the same turns, and a time is that between two looks at an idle GPU. With --at-once: the scorer
alone, on 128k tokens, with so many of them in a batch. Nothing is asserted: whether a target is met is printed.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from unittest import mock

import torch

from calibrate import score
from calibrate.corpus import Document
from calibrate.fit import scorer
from calibrate.gradient import slope
from calibrate.model import LoadedModel, Settings, load
from calibrate.objective import method
from calibrate.run import extensible
from calibrate.score import CHUNK_ENTRIES, Bands
from ropecli.checkpoint import read_checkpoint
from ropecli.frequencies import frequencies

SCORER, BARE, TRANSFORMERS, GRADIENT = WAYS = ("scorer", "backbone and head", "model(labels)", "gradient")
SPEED, SLOPE, GIGABYTES = 0.95, 3.0, 0.5
REPEATED = 2**13
"""Tokens that are enough for a time."""
MANY = 2**17
"""Tokens that are enough for a time on a GPU, in batches."""

Pass = Callable[[], float]
"""One pass over the window; nats, so that all four can be seen to do the same work."""


def passes(source: str, loaded: LoadedModel, length: int) -> dict[str, Pass]:
    """The four ways to score one window of tokens drawn at random."""
    rope, plain = extensible(read_checkpoint(source), None)
    table = frequencies(method("none", plain, 2.0))
    model = loaded.model
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0)).to(loaded.device)
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


@dataclass(frozen=True, slots=True)
class Cost:
    """One pass: seconds, nats, and bytes of memory with the model loaded and at most during the pass."""

    seconds: float
    nats: float
    loaded: int
    most: int


def measure(source: str, name: str, length: int) -> Cost:
    """One way in this process, which must be fresh. Short windows are run more than once, and the least time counts."""
    model = load(source, Settings(device="cpu"))
    passes(source, model, 64)[name]()  # what is allocated once and for all
    way = passes(source, model, length)[name]
    before, seconds = _status("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forget the peak so far: proc(5)
    for _ in range(max(1, REPEATED // length)):
        began = time.process_time()
        nats = way()
        seconds.append(time.process_time() - began)
    return Cost(min(seconds), nats, before, _status("VmHWM"))


def measure_on_gpu(source: str, loaded: LoadedModel, name: str, length: int) -> Cost:
    """The same on the model's GPU, where nothing else may run."""
    passes(source, loaded, 64)[name]()
    way = passes(source, loaded, length)[name]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, began = torch.cuda.memory_allocated(), time.perf_counter()
    nats = way()
    torch.cuda.synchronize()
    return Cost(time.perf_counter() - began, nats, before, torch.cuda.max_memory_allocated())


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def in_its_own_process(source: str, name: str, length: int) -> Cost:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, source, "--lengths", str(length), "--measure", name]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return Cost(*json.loads(run.stdout))


def report(source: str, length: int, ways: Sequence[str], runs: int, cost_of: Callable[[str, int], Cost]) -> None:
    """Print the table of one length and what it says of the targets."""
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(runs):
        for name in ways:
            found[name].append(cost_of(name, length))
    took = {name: min(cost.seconds for cost in costs) for name, costs in found.items()}
    extra = {name: max(cost.most - cost.loaded for cost in costs) / 1e9 for name, costs in found.items()}
    print(f"\n{Path(source).name}, {length:,} tokens:\n")
    print("| | tokens a second | speed against the scorer | nats a token | memory beyond the model, MB |")
    print("| --- | --- | --- | --- | --- |")
    for name, costs in found.items():
        speed = f"{length / took[name]:,.0f} | {took[SCORER] / took[name]:.2f}"
        print(f"| {name} | {speed} | {costs[0].nats / (length - 1):.4f} | {1000 * extra[name]:,.0f} |")
    speed = took[BARE] / took[SCORER]
    print(f"\n- scorer against backbone and head: {speed:.2f} (target {SPEED}): {_word(speed >= SPEED)}")
    if GRADIENT in took:
        cost = took[GRADIENT] / took[SCORER]
        print(f"- gradient against scorer: {cost:.2f} × (target {SLOPE:g}): {_word(cost <= SLOPE)}")
    met = _word(extra[SCORER] <= GIGABYTES)
    print(f"- memory of the scorer beyond the model: {extra[SCORER]:.2f} GB (target {GIGABYTES}): {met}", flush=True)


def batches(loaded: LoadedModel, length: int, at_once: Sequence[int]) -> None:
    """Print how fast the scorer is with so many tokens in a batch."""
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    drawn = torch.randint(vocabulary, (MANY // length, length), generator=torch.Generator().manual_seed(0))
    documents = [Document(str(index), (tuple(window.tolist()),)) for index, window in enumerate(drawn)]
    for tokens in at_once:
        with mock.patch.object(score, "windows_at_once", lambda *_, count=tokens // length: count):
            score.nats_by_band(loaded, documents, Bands((1, length)))
            began = time.perf_counter()
            score.nats_by_band(loaded, documents, Bands((1, length)))  # whose result is on the CPU
        seconds = time.perf_counter() - began
        print(f"| {length:,} | {tokens:,} | {MANY / seconds:,.0f} |", flush=True)


def _word(met: bool) -> str:
    return "met" if met else "missed"


def _length(text: str) -> int:
    return 1024 * int(text[:-1]) if text.endswith("k") else int(text)


def main() -> None:
    """Print every figure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--lengths", default="1k,2k")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--ways", default=",".join(WAYS), help="default: %(default)s")
    options.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")
    options.add_argument("--at-once", help="tokens in a batch, of the scorer alone")
    options.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    given = options.parse_args()
    lengths = [_length(text) for text in given.lengths.split(",")]
    if given.measure:
        torch.set_num_threads(1)
        print(json.dumps(astuple(measure(given.model, given.measure, lengths[0]))))
        return
    ways = [name for name in WAYS if name in {SCORER, BARE, *given.ways.split(",")}]
    cost_of = functools.partial(in_its_own_process, given.model)
    if given.at_once:
        print("| tokens of a window | tokens at once | tokens a second |\n| --- | --- | --- |")
        loaded = load(given.model, Settings(device=given.device))
        for length in lengths:
            batches(loaded, length, [_length(text) for text in given.at_once.split(",")])
        return
    if given.device != "cpu":
        loaded = load(given.model, Settings(device=given.device))
        cost_of = functools.partial(measure_on_gpu, given.model, loaded)
        print(torch.cuda.get_device_name(loaded.device))
    for length in lengths:
        report(given.model, length, ways, given.runs, cost_of)


if __name__ == "__main__":
    main()
