"""Held-out perplexity of every method on a checkpoint, as the Markdown table of the README.

    python benchmarks/methods_table.py examples/tiny --factors 2,4,8

For each factor: `ropecli calibrate` on one set of documents, then `ropecli evaluate` of every method on another that
neither the model nor the calibration has seen. Differences are from default YaRN, paired by document.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
METHODS = {
    "none": "no scaling",
    "linear": "PI (`linear`)",
    "ntk": "NTK-aware",
    "ntk-by-parts": "NTK-by-parts",
    "yarn": "default YaRN",
}


def ropecli(*arguments: str) -> str:
    """Standard output of one run of the tool; its progress goes to our standard error."""
    command = [sys.executable, "-m", "ropecli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE).stdout


def measure(model: str, factor: float, calibration: str, held_out: str, documents: int | None) -> list[str]:
    """The Markdown rows for one factor."""
    limit = [] if documents is None else ["--documents", str(documents)]
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/calibrated.json"
        ropecli("calibrate", model, "--data", calibration, "--factor", str(factor), "-o", file, "-q", *limit)
        result = json.loads(Path(file).read_text())
        length = result["validation"][0]["length"]
        methods = ",".join(["yarn", *(m for m in METHODS if m != "yarn"), file])
        wanted = ["--lengths", str(length), "--methods", methods, "--json", "-q", *limit]
        lines = ropecli("evaluate", model, "--data", held_out, *wanted).splitlines()
    rows: dict[str, Any] = {row["method"]: row for row in map(json.loads, lines)}
    cost = f"{result['cost']['forward_equivalents']:.1f}"
    table = []
    last = "calibrated" if result["decision"] == "calibrated" else "search result (default kept)"
    for name, label in [*METHODS.items(), (file, last)]:
        row = rows[name]
        gain = row["beyond_difference"]
        change = "" if gain is None else f"{gain['delta']:+.4f} ({gain['ci95'][0]:+.4f} to {gain['ci95'][1]:+.4f})"
        cells = [f"{factor:g}", label, f"{math.exp(row['within_nll']):.2f}", f"{math.exp(row['beyond_nll']):.2f}"]
        table.append(f"| {' | '.join([*cells, change, cost if name == file else ''])} |")
    return table


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--factors", default="2,4,8")
    options.add_argument("--calibration", default="examples/text/calibration")
    options.add_argument("--held-out", default="examples/text/heldout")
    options.add_argument("--documents", type=int)
    given = options.parse_args()
    print("| factor | method | ppl within L | ppl beyond L | nats beyond L against default YaRN (95 %) | cost |")
    print("| --- | --- | --- | --- | --- | --- |")
    for factor in given.factors.split(","):
        rows = measure(given.model, float(factor), given.calibration, given.held_out, given.documents)
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
