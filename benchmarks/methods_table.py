"""Held-out perplexity of every method on a checkpoint, as the Markdown table of the README.

    python benchmarks/methods_table.py examples/tiny --factors 2,4,8
    python benchmarks/methods_table.py calibration.json

For each factor: `ropecli calibrate` on one set of documents, then `ropecli evaluate` of every method on another that
neither the model nor the calibration has seen. Of a calibration file: its own held-out check, nothing is computed.
Differences are from default YaRN, paired by document.
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


def row(factor: float, label: str, nats: tuple[float, float], change: str = "", cost: str = "") -> str:
    """A line of the table; nats a token within and beyond L."""
    within, beyond = (f"{math.exp(value):.2f}" for value in nats)
    return f"| {factor:g} | {label} | {within} | {beyond} | {change} | {cost} |"


def interval(delta: float, ci95: list[float]) -> str:
    """A difference and its 95 % interval."""
    return f"{delta:+.4f} ({ci95[0]:+.4f} to {ci95[1]:+.4f})"


def last_label(result: dict[str, Any]) -> str:
    """What the line of the result is called."""
    if result["decision"] != "calibrated":
        return "search result (default kept)"
    return "calibrated, divisors" if result["rope"]["rope_type"] == "longrope" else "calibrated"


def held_out_check(result: dict[str, Any]) -> list[str]:
    """The Markdown rows of a calibration file."""
    fits = result.get("fits") or [result]
    return [line for fit in fits for line in _of_one_factor(result["validation"], fit)]


def _of_one_factor(validation: list[dict[str, Any]], fit: dict[str, Any]) -> list[str]:
    factor = fit["rope"].get("factor")
    checks = {check["positions"]: check for check in validation if factor in (check["factor"], None)}
    within, beyond = checks["within"], checks["beyond"]
    factor = beyond["factor"]
    rows = []
    for name, label in METHODS.items():
        if name == "yarn":
            rows.append(row(factor, label, (within["default_nll"], beyond["default_nll"])))
        else:
            change = interval(**beyond["differences"][name])
            rows.append(row(factor, label, (within["baselines"][name], beyond["baselines"][name]), change))
    gain = interval(beyond["delta"], beyond["ci95"])
    cost = f"{fit['cost']['forward_equivalents']:.1f}"
    return [*rows, row(factor, last_label(fit), (within["nll"], beyond["nll"]), gain, cost)]


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
    rows: dict[str, Any] = {line["method"]: line for line in map(json.loads, lines)}
    cost = f"{result['cost']['forward_equivalents']:.1f}"
    table = []
    for name, label in [*METHODS.items(), (file, last_label(result))]:
        found = rows[name]
        gain = found["beyond_difference"]
        change = "" if gain is None else interval(gain["delta"], gain["ci95"])
        nats = found["within_nll"], found["beyond_nll"]
        table.append(row(factor, label, nats, change, cost if name == file else ""))
    return table


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", help="a checkpoint, or a calibration file")
    options.add_argument("--factors", default="2,4,8")
    options.add_argument("--calibration", default="examples/text/calibration")
    options.add_argument("--held-out", default="examples/text/heldout")
    options.add_argument("--documents", type=int)
    given = options.parse_args()
    print("| factor | method | ppl within L | ppl beyond L | nats beyond L against default YaRN (95 %) | cost |")
    print("| --- | --- | --- | --- | --- | --- |")
    if given.model.endswith(".json"):
        print("\n".join(held_out_check(json.loads(Path(given.model).read_text("utf-8")))))
        return
    for factor in given.factors.split(","):
        rows = measure(given.model, float(factor), given.calibration, given.held_out, given.documents)
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
