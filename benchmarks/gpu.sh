#!/usr/bin/env bash
# The figures of a machine with GPUs: one calibration by one process, and the same by one process a GPU.
#
#     benchmarks/gpu.sh MODEL DATA FACTOR [OPTIONS OF CALIBRATE...]
#     GPUS=2 benchmarks/gpu.sh examples/tiny examples/text/calibration 2 --documents 10 --device cpu    # without any
#
# Prints what the cost model predicts and what was measured. No machine with several GPUs was measured yet.
set -euo pipefail
model=$1 data=$2 factor=$3
shift 3
python=${PYTHON:-.venv/bin/python}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
out=${OUT:-build/gpu}
mkdir -p "$out"
calibrate=(ropecli calibrate "$model" --data "$data" --factor "$factor" --windows 1 --quiet "$@")

"$python" -m "${calibrate[@]}" --plan-only --json > "$out/plan.json"
"$python" -m "${calibrate[@]}" --force --output "$out/one.json"
"$python" -m torch.distributed.run --nproc-per-node "$gpus" -m "${calibrate[@]}" --force --output "$out/all.json"
"$python" - "$out" "$gpus" <<'PYTHON'
import json
import sys
from pathlib import Path

plan, one, several = (json.loads((Path(sys.argv[1]) / f"{name}.json").read_text()) for name in ("plan", "one", "all"))
(part,) = plan["factors"]
print(f"predicted: {part['forward_equivalents']:.1f} passes, {plan['memory_bytes_by_rank']['total'] / 1e9:.2f} GB")
for name, run in (("one process", one), (f"{sys.argv[2]} processes", several)):
    cost = run["cost"]
    work = cost["forward_equivalents"] * part["forward_equivalent_flops"] + part["held_out_flops"]
    print(
        f"{name}: {cost['forward_equivalents']:.1f} passes, {cost['seconds']:.1f} s, at least "
        f"{work / cost['seconds'] / 1e12:.3f} TFLOP/s, {cost['peak_memory_bytes'] / 1e9:.2f} GB"
    )
apart = max(abs(a["nll"] - b["nll"]) for a, b in zip(one["validation"], several["validation"], strict=True))
print(f"speed of {sys.argv[2]} processes against one: {one['cost']['seconds'] / several['cost']['seconds']:.2f}")
print(f"largest difference of a held-out loss: {apart:.1e} nats a token")
PYTHON
