"""Writes docs/scale.md from the cost model: `python docs/make_scale.py`.

    python docs/make_scale.py --measure examples/tiny /work/smol/model

first scores windows of these checkpoints on this machine, each in a fresh process, and keeps what came out in
docs/scale_measured.json, which the page compares with the model. Minutes on two cores.

    python docs/make_scale.py --measure-gpu

does so on a GPU of 40 GB or more for the smallest model of the page, with weights drawn at random, which cost what
others do, and keeps what came out in docs/scale_gpu.json. Half a minute.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from calibrate import search
from calibrate.cost import Memory, Shape, scoring_memory, shape_of, window_flops
from calibrate.objective import Space
from calibrate.score import CHUNK_ENTRIES, token_nll
from calibrate.verdict import TABLES
from ropecli.spec import RopeSpec

HERE = Path(__file__).parent
PAGE = HERE / "scale.md"
MEASURED = HERE / "scale_measured.json"
MEASURED_ON_GPU = HERE / "scale_gpu.json"

PARTS = 8
DOCUMENTS = 12
LENGTHS = {"32k": 2**15, "128k": 2**17, "1M": 2**20}
ORIGINAL, THETA = 8192, 500_000.0

LLAMA = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256, "tie_word_embeddings": False}
MODELS: dict[str, Any] = {
    "8B (Llama 3.1)": transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32, **LLAMA
    ),
    "70B (Llama 3.1)": transformers.LlamaConfig(
        hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64, **LLAMA
    ),
    "405B (Llama 3.1)": transformers.LlamaConfig(
        hidden_size=16_384, intermediate_size=53_248, num_hidden_layers=126, num_attention_heads=128, **LLAMA
    ),
    "480B, 35B a token (Qwen3-Coder)": transformers.Qwen3MoeConfig(
        hidden_size=6144,
        intermediate_size=8192,
        moe_intermediate_size=2560,
        num_hidden_layers=62,
        num_attention_heads=96,
        num_key_value_heads=8,
        head_dim=128,
        num_experts=160,
        num_experts_per_tok=8,
        vocab_size=151_936,
        tie_word_embeddings=False,
    ),
}

HEAD = """# What a calibration costs

Made by `python docs/make_scale.py` from the cost model of `calibrate/cost.py`; `ropecli calibrate … --plan-only` prints
the same for a checkpoint and a text at hand, before a weight is read:

```sh
ropecli calibrate MODEL --data FILES --factor 4 --plan-only --flops 400T
torchrun --nproc-per-node 8 -m ropecli calibrate MODEL --data FILES --factor 4 -o calibration.json
torchrun --nproc-per-node 8 -m ropecli calibrate MODEL --data FILES --factor 4 --tensor-parallel 4 -o calibration.json
```

`--flops` is the rate that one process sustains, in operations a second; without it no time is given.

The second line runs eight processes, a GPU each, with a whole model in each of them, and shares the windows over the
eight. The third cuts the model into four parts, by the plan that transformers has for the architecture (four must
divide the number of key and value heads), so that eight GPUs hold two copies, and shares the windows over the two. For
several machines give torchrun its own `--nnodes` and `--rdzv-endpoint`; the files must lie at the same place on each.
`--device-map auto` spreads whole layers over the GPUs of one process, which then work one after the other.

Every process takes the same steps, and a window's loss is added in the same order whoever computed it, so the result is
that of one process. The first process speaks and writes. When one dies, the first says so and ends with status 4,
torchrun ends the others and itself with 1, and the journal beside `--output` has every score: start the same line again
with `--resume`. Ctrl-C and SIGTERM stop the search and write the best so far, if the held-out check ends within the 30
seconds that torchrun grants; if not, `--resume` goes on from the journal.
"""


@cache
def shape(name: str) -> Shape:
    """Of one of the models below, built without memory for its weights."""
    with torch.device("meta"):
        return shape_of(transformers.AutoModelForCausalLM.from_config(MODELS[name]))


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _big(number: float) -> str:
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} Z"


def _memory(name: str, length: int, parts: int = 1) -> Memory:
    return scoring_memory(shape(name), length, width=2, windows=1, chunk=CHUNK_ENTRIES, parts=parts)


def costs(rate: float) -> Iterator[str]:
    """The table of models and lengths; `rate` is operations a second."""
    memories = "memory, 1 GPU", f"memory, {PARTS} GPUs"
    yield _row("model", "window", "share of attention", "one window", "passes", "in all", "GPU-hours", *memories)
    yield _row(*["---"] * 9)
    for name in MODELS:
        for label, length in LENGTHS.items():
            space = Space(RopeSpec(THETA, 128, 128, ORIGINAL, ORIGINAL), length / ORIGINAL)
            flops = window_flops(shape(name), length)
            passes = search.race_passes(space, DOCUMENTS)
            whole = flops.total * DOCUMENTS * (passes + TABLES)
            alone, shared = (_memory(name, length, parts) for parts in (1, PARTS))
            hours = whole / rate / 3600
            yield _row(
                name,
                label,
                f"{flops.attention / flops.total:.0%}",
                f"{_big(flops.total)}FLOP",
                f"{passes:.1f}",
                f"{_big(whole)}FLOP",
                f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}",
                f"{alone.total / 1e9:,.0f} GB",
                f"{shared.total / 1e9:,.0f} GB",
            )


def comparison(measured: list[dict[str, Any]]) -> Iterator[str]:
    """The table of measured windows: time from the rate of the checkpoint's first window, and memory."""
    yield _row(
        "checkpoint", "window", "operations", "rate", "seconds", "predicted", "off by", "memory", "predicted", "off by"
    )
    yield _row(*["---"] * 10)
    rates: dict[str, float] = {}
    for one in measured:
        rate = one["flops"] / one["seconds"]
        first = rates.setdefault(one["checkpoint"], rate)
        predicted = one["flops"] / first
        off = "" if rate == first else f"{predicted / one['seconds'] - 1:+.0%}"
        yield _row(
            one["checkpoint"],
            f"{one['length']:,}",
            f"{_big(one['flops'])}FLOP",
            f"{_big(rate)}FLOP/s",
            f"{one['seconds']:.2f}",
            f"{predicted:.2f}" if off else "",
            off,
            f"{one['bytes'] / 1e6:,.0f} MB",
            f"{one['predicted_bytes'] / 1e6:,.0f} MB",
            f"{one['predicted_bytes'] / one['bytes'] - 1:+.0%}",
        )


def page() -> str:
    """The whole page."""
    measured, on_gpu = (json.loads(path.read_text("utf-8")) for path in (MEASURED, MEASURED_ON_GPU))
    passes, longest = measured["passes"], on_gpu["windows"][-1]
    rate, gpu = longest["flops"] / longest["seconds"], on_gpu["machine"].partition(",")[0]
    return f"""{HEAD}
## 8B to 480B at 32k to 1M

{DOCUMENTS} documents for the search and {DOCUMENTS} for the held-out check, a window each, in bfloat16, `--tune yarn`.
One pass is a forward pass over the {DOCUMENTS} windows of the search; the held-out check adds {TABLES}
passes. GPU-hours are at {rate / 1e12:.0f} TFLOP/s, at which a window of {longest["length"]:,} tokens of the first model
was scored on one {gpu} (below); several GPUs were not measured. Divide by the number of GPUs for the
time. Memory is that of each GPU when one holds the whole model, or {PARTS} hold it
together (`--tensor-parallel {PARTS}`), and score one window at a time, with attention that keeps no scores (sdpa,
flash).

{chr(10).join(costs(rate))}

What follows from it:

- Between 32k and 1M the attention overtakes the matrices, and from there on four times the window is sixteen times the
  work.
- What is scored together is shared: the held-out check and the last looks use as many GPUs as there are windows. But
  the search looks at one to three documents first, which is most of its passes: with one window a document, copies of
  the model beyond the third wait there. `--windows` gives each document more.
- The stream of activations is not cut over the ranks of one model: at 1M tokens it is most of the memory of an 8B or
  70B model. A shorter window needs less, but says nothing about the positions that it does not reach.
- Where the last column is above what a GPU has, the model does not fit in that form: a larger GPU or weights of fewer
  bits are needed. More than {PARTS} parts are not possible with {PARTS} heads for keys and values.

## How far off is it?

The operations are those that torch counts: `tests/calibrate/test_cost.py` holds the model to within 1 % of torch's own
counter for every architecture that the tests know, experts and latent attention included.

Time and memory of one window, measured by `python docs/make_scale.py --measure` in fresh processes with one CPU thread
each ({measured["machine"]}; seconds of processor time). The rate of the first window of a checkpoint predicts the time
of its others; memory is the peak while scoring, above the loaded model.

{chr(10).join(comparison(measured["windows"]))}

And on a GPU by `python docs/make_scale.py --measure-gpu` ({on_gpu["machine"]}): the weights are
drawn at random, in bfloat16, and count as memory here.

{chr(10).join(comparison(on_gpu["windows"]))}

The search: `calibrate examples/tiny --factor {passes["factor"]:g}` cost {passes["measured"]:.1f} passes. The plan said
{passes["predicted"]:.1f} ({passes["predicted"] / passes["measured"] - 1:+.0%}), which is the most that it can cost: a
search leaves out what its first looks make hopeless.
"""


SCORE = """
import json, resource, sys, time, torch
from calibrate.cost import scoring_memory, shape_of, window_flops
from calibrate.fence import attending
from calibrate.model import Settings, bytes_of, load
from calibrate.score import CHUNK_ENTRIES, token_nll
source, length = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
loaded = load(source, Settings(device="cpu"))
ids = torch.randint(5, 2000, (1, length), device="cpu")
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
with torch.no_grad(), attending(loaded):
    token_nll(loaded.model, ids[:, :64])
    before = resident()
    began = time.process_time()
    token_nll(loaded.model, ids)
    seconds = time.process_time() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
shape = shape_of(loaded.model)
memory = scoring_memory(shape, length, width=bytes_of(loaded.dtype), windows=1, chunk=CHUNK_ENTRIES)
print(json.dumps({"length": length, "flops": window_flops(shape, length).total, "seconds": seconds,
                  "bytes": peak - before, "predicted_bytes": memory.total - memory.weights}))
"""


def measured_windows(sources: list[str]) -> list[dict[str, Any]]:
    """Score windows of each checkpoint."""
    windows = []
    for source in sources:
        original = transformers.AutoConfig.from_pretrained(source).max_position_embeddings
        for length in (2048, 4096, 8192) if original < 2048 else (2048, 4096):
            command = [sys.executable, "-c", SCORE, source, str(length)]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            label = "SmolLM2-135M" if original == 8192 else source
            windows.append({"checkpoint": label, **json.loads(line)})
            print(windows[-1], file=sys.stderr)
    return windows


def windows_on_gpu() -> dict[str, Any]:
    """Score one window of each length with the smallest model, on the GPU."""
    name, windows = next(iter(MODELS)), []
    with torch.device("cuda"), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.bfloat16).eval()
        for length in (2**10, 2**15, 2**16, 2**17):
            ids = torch.randint(5, 2000, (1, length))
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            began = time.perf_counter()
            token_nll(model, ids)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            windows.append(
                {
                    "checkpoint": name,
                    "length": length,
                    "seconds": seconds,
                    "flops": window_flops(shape_of(model), length).total,
                    "bytes": torch.cuda.max_memory_allocated(),
                    "predicted_bytes": _memory(name, length).total,
                }
            )
            print(windows[-1], file=sys.stderr)
    # the first is there to load the kernels
    return {"machine": f"{torch.cuda.get_device_name()}, torch {torch.__version__}", "windows": windows[1:]}


def measured_passes() -> dict[str, Any]:
    """Calibrate the tiny checkpoint, and plan the same."""
    wanted = ["calibrate", "examples/tiny", "--data", "examples/text/calibration", "--factor", "4", "-q"]
    run, plan = (
        json.loads(
            subprocess.run(
                [sys.executable, "-m", "ropecli", *wanted, *options], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
        )
        for options in ([], ["--plan-only", "--json"])
    )
    predicted = plan["factors"][0]["forward_equivalents"]
    return {"factor": 4, "measured": run["cost"]["forward_equivalents"], "predicted": predicted}


def machine() -> str:
    """The processor's name."""
    return next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        found = {"machine": machine(), "windows": measured_windows(sys.argv[2:]), "passes": measured_passes()}
        MEASURED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    elif sys.argv[1:2] == ["--measure-gpu"]:
        MEASURED_ON_GPU.write_text(json.dumps(windows_on_gpu(), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
