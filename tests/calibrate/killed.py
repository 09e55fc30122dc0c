"""Calibrate once to the end, and once more while being killed at random moments; test_long_runs.py reads what is left.

A program of its own: it imports torch once and forks a child for each run, so that twenty kills cost no twenty imports.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calibrate import fit, search
from calibrate.journal import _key
from calibrate.model import Settings
from calibrate.run import Observer, Request, calibrate

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCUMENTS = 4
GRADIENTS = 4
LEAST_SECONDS = 0.002


def request(folder: Path, name: str, *, resume: bool) -> Request:
    """A search with gradients, small enough to be run twice in a test."""
    texts = sorted((EXAMPLES / "text" / "calibration").glob("*.txt"))[:DOCUMENTS]
    return Request(
        source=str(EXAMPLES / "tiny"),
        data=tuple(map(str, texts)),
        factors=(1.25,),
        windows=1,
        tune="factors",
        journal=folder / f"{name}.journal",
        resume=resume,
        settings=Settings("cpu"),
    )


def forked(folder: Path, name: str, run: int, *, resume: bool) -> int:
    """The process id of a child that calibrates and writes every question that it begins to compute."""
    child = os.fork()
    if child:
        return child
    try:
        log = (folder / f"{name}.computed").open("a", encoding="utf-8", buffering=1)

        def watched(compute: Callable[..., Any], key: Callable[..., str]) -> Callable[..., Any]:
            def computing(*arguments: Any) -> Any:
                log.write(json.dumps([run, key(*arguments)]) + "\n")
                return compute(*arguments)

            return computing

        scorer, slope = fit.scorer, fit.slope
        fit.scorer = lambda *parts: watched(scorer(*parts), _key)
        fit.slope = watched(
            slope, lambda _, __, table, texts, bands, weights: _key(table, texts, "slope", bands.edges, tuple(weights))
        )
        search.GRADIENTS = GRADIENTS
        observer = Observer(lambda _: None, lambda _: None, lambda *_: None)
        calibration, _ = calibrate(request(folder, name, resume=resume), observer)
        (folder / f"{name}.json").write_text(json.dumps(calibration.to_json()), "utf-8")
    except BaseException:  # noqa: BLE001 - a child must never go on as the parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def keys(path: Path) -> list[str]:
    """Of the whole lines of a journal."""
    lines = path.read_text("utf-8").split("\n")[1:-1] if path.exists() else []
    return [json.loads(line)["key"] for line in lines]


def main(folder: Path, seed: int, kills: int) -> None:
    """Write whole.json and killed.json, their journals, what was computed, and kills.json: the keys at each kill."""
    draw = random.Random(seed)  # noqa: S311 - moments, not secrets
    began = time.monotonic()
    assert os.waitpid(forked(folder, "whole", 0, resume=False), 0)[1] == 0
    lines = len(keys(folder / "whole.journal"))
    each = max((time.monotonic() - began) / lines, LEAST_SECONDS)
    journal, found = folder / "killed.journal", []
    for run, target in enumerate(sorted(draw.choices(range(lines), k=kills))):
        child = forked(folder, "killed", run, resume=True)
        while len(keys(journal)) < target:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                sys.exit(f"run {run} ended by itself")
            time.sleep(LEAST_SECONDS)
        time.sleep(draw.uniform(0, each))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        found.append({"signal": os.WTERMSIG(status), "keys": keys(journal)})
    assert os.waitpid(forked(folder, "killed", kills, resume=True), 0)[1] == 0
    (folder / "kills.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
