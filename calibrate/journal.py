"""Every score on disk the moment it is known, so that a run that was cut off goes on where it stopped.

A journal is JSON lines: first the identity of the run, then one line a score. Floats are written so that they read back
to the same bits. A last line that was cut off is no line.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from calibrate.corpus import Document
from calibrate.score import Floats
from calibrate.trials import NatsOf
from ropecli.errors import BadCalibration, BadUsage
from ropecli.frequencies import Frequencies

KIND = "ropecli.journal"
_BLOCKS, _BLOCK_BYTES = 64, 4096


def journal_path(output: Path) -> Path:
    """Where the journal of a calibration file lies: beside it."""
    return output.with_name(output.name + ".journal")


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file's size and of 64 blocks spread over it.

    Quick for any size, and enough to tell a change of weights, where nearly every block differs.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for index in range(_BLOCKS):
            file.seek(index * max(size - _BLOCK_BYTES, 0) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _key(table: Frequencies, documents: Sequence[Document]) -> str:
    # one text gives other windows at another length, and tables without scaling are the same for every factor
    texts = [(document.name, len(document.windows), len(document.windows[0])) for document in documents]
    content = repr((table.inv_freq, table.attention_factor, texts))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class Journal:
    """The scores of one run, in a file that only grows.

    identity  what must be the same for the scores to be of use again, as flat JSON: settings, data, checkpoint
    resume    read what is there; without it an existing journal is replaced
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self._known = _read(path, identity) if resume and path.exists() else {}
        complete = "".join(_line({"key": key, "nats": nats}) for key, nats in self._known.items())
        stage = path.with_name(path.name + ".partial")
        stage.unlink(missing_ok=True)  # of a run that was killed, or a link that leads elsewhere
        with stage.open("x", encoding="utf-8") as file:
            file.write(_line({"kind": KIND, "schema_version": 1, "identity": dict(identity)}) + complete)
        stage.replace(path)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def remembering(self, nats_of: NatsOf) -> NatsOf:
        """The same scorer, which looks into the journal first and writes down what it had to compute."""

        def scored(table: Frequencies, documents: Sequence[Document]) -> Floats:
            key = _key(table, documents)
            if key not in self._known:
                self._known[key] = nats_of(table, documents).tolist()
                self._file.write(_line({"key": key, "nats": self._known[key]}))
                self._file.flush()
            return np.array(self._known[key], dtype=np.float64)

        return scored

    def close(self) -> None:
        """Leave the journal for a later run."""
        os.fsync(self._file.fileno())
        self._file.close()


def _line(data: Mapping[str, Any]) -> str:
    return json.dumps(data) + "\n"


def _read(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        lines = path.read_text("utf-8").split("\n")[:-1]
        header, *entries = [json.loads(line) for line in lines]
        had = dict(header["identity"]) if header["kind"] == KIND else None
        known = {str(entry["key"]): _table(entry["nats"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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


def _table(nats: Any) -> Any:
    """Nats [documents, bands] as they were written. Raises ValueError and TypeError for anything else."""
    if np.array(nats, dtype=np.float64).ndim != 2:
        raise ValueError("expected a list of lists of numbers")
    return nats
