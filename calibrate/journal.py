"""Every score on disk the moment it is known, so that a run that was cut off goes on where it stopped.

A journal is JSON lines: first the identity of the run, then a line for each batch of documents that a table was scored
on, or the slope of the loss taken at. Floats are written so that they read back to the same bits. A last line that was
cut off is no line.
"""

import functools
import hashlib
import json
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from calibrate.corpus import Document
from calibrate.gradient import Slope, SlopeOf
from calibrate.parallel import ALONE, Ranks
from calibrate.score import Bands, Floats, batches
from calibrate.trials import NatsOf
from ropecli.errors import BadCalibration, BadUsage
from ropecli.frequencies import Frequencies

KIND = "ropecli.journal"
WHOLE_BYTES = 2**30
"""A file of weights up to this size is read whole for its fingerprint."""
_STRIDE, _BLOCK_BYTES = 2**16, 4096


def journal_path(output: Path) -> Path:
    """Where the journal of a calibration file lies: beside it."""
    return output.with_name(output.name + ".journal")


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file's size and its bytes; above `WHOLE_BYTES`, of 4 KiB in every 64, and of the last 4."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            for block in iter(functools.partial(file.read, 2**20), b""):
                digest.update(block)
        else:
            for start in (*range(0, size, _STRIDE), max(size - _BLOCK_BYTES, 0)):
                file.seek(start)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _key(table: Frequencies, documents: Sequence[Document], *more: object) -> str:
    # one text gives other windows at another length, and tables without scaling are the same for every factor
    texts = [(document.name, len(document.windows), len(document.windows[0])) for document in documents]
    content = repr((table.inv_freq, table.attention_factor, texts, *more))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class Journal:
    """The scores and slopes of one run, in a file that only grows.

    path      None: remembered while the program runs
    identity  what must be the same for the scores to be of use again, as flat JSON: settings, data, checkpoint
    resume    read what is there; without it an existing journal is replaced
    ranks     of which the first has the file; what it knows all of them know, and so they compute the same

    `computed` counts the entries that were not there.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any], *, resume: bool, ranks: Ranks = ALONE) -> None:
        path = path if ranks.leads else None
        self._known = _read(path, identity) if resume and path is not None and path.exists() else {}
        self._known = ranks.from_first(self._known)
        self.computed = 0
        self._file: TextIO | None = None
        if path is not None:
            complete = "".join(_line({"key": key} | entry) for key, entry in self._known.items())
            stage = path.with_name(path.name + ".partial")
            stage.unlink(missing_ok=True)  # of a run that was killed, or a link that leads elsewhere
            with stage.open("x", encoding="utf-8") as file:
                file.write(_line({"kind": KIND, "schema_version": 1, "identity": dict(identity)}) + complete)
            stage.replace(path)
            self._file = path.open("a", encoding="utf-8")

    def remembering(self, nats_of: NatsOf, windows: int) -> NatsOf:
        """The same scorer, which looks into the journal first and writes down what it had to compute.

        windows  in one batch: what is lost when the program is killed
        """

        def scored(table: Frequencies, documents: Sequence[Document]) -> Floats:
            def computed(batch: Sequence[Document]) -> dict[str, Any]:
                return {"nats": nats_of(table, batch).tolist()}

            rows = [
                np.array(self._entry(_key(table, batch), functools.partial(computed, batch))["nats"], dtype=np.float64)
                for batch in batches(documents, windows)
            ]
            return np.concatenate(rows)

        return scored

    def remembering_slopes(self, slope_of: SlopeOf, windows: int) -> SlopeOf:
        """The same for slopes, which add up over batches."""

        def sloped(table: Frequencies, documents: Sequence[Document], bands: Bands, weights: Sequence[float]) -> Slope:
            def computed(batch: Sequence[Document]) -> dict[str, Any]:
                slope = slope_of(table, batch, bands, weights)
                return {"slope": [slope.nats, slope.inv_freq.tolist(), slope.attention_factor]}

            parts = []
            for batch in batches(documents, windows):
                key = _key(table, batch, "slope", bands.edges, tuple(weights))
                nats, inv_freq, attention_factor = self._entry(key, functools.partial(computed, batch))["slope"]
                parts.append(Slope(nats, np.array(inv_freq, dtype=np.float64), attention_factor))
            return functools.reduce(operator.add, parts)

        return sloped

    def _entry(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self._known:
            self._known[key] = compute()
            self.computed += 1
            if self._file is not None:
                self._file.write(_line({"key": key} | self._known[key]))
                self._file.flush()
        return self._known[key]

    def close(self) -> None:
        """Leave the journal for a later run."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def _line(data: Mapping[str, Any]) -> str:
    return json.dumps(data) + "\n"


def _read(path: Path, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        lines = path.read_text("utf-8").split("\n")[:-1]
        header, *entries = [json.loads(line) for line in lines]
        had = dict(header["identity"]) if header["kind"] == KIND else None
        known = {str(entry.pop("key")): _checked(entry) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadCalibration("not a journal of a calibration", where=str(path), hint="run without --resume") from error
    changed = None if had is None else [key for key in identity if had.get(key) != identity[key]]
    if changed is None or changed:
        what = "its format" if changed is None else ", ".join(changed)
        raise BadUsage(
            f"the run that wrote it differs in: {what}",
            where=str(path),
            hint="resume with the same checkpoint, text and settings, or start again without --resume",
        )
    return known


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry as it was written: nats [documents, bands], or a slope. Raises ValueError and TypeError for another."""
    if "nats" in entry:
        if np.array(entry["nats"], dtype=np.float64).ndim != 2:
            raise ValueError("expected a list of lists of numbers")
    else:
        nats, inv_freq, attention_factor = entry["slope"]
        np.array([nats, *inv_freq, attention_factor], dtype=np.float64)
    return entry
