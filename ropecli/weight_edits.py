"""Scale rows of tensors in safetensors files; what is not edited is copied as bytes."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ropecli.byte_copy import copy_range
from ropecli.errors import BadCheckpoint
from ropecli.safetensors_header import TensorInfo, read_header
from ropecli.stored_floats import BYTES, decoded, encoded

BLOCK_VALUES = 2**18
"""Values that are scaled at a time: 2 MiB of float64."""


@dataclass(frozen=True, slots=True)
class TensorEdit:
    """Rows of one tensor that become w · multiplier + offset. rows: (start, stop) along dimension 0, ascending."""

    tensor: str
    rows: tuple[tuple[int, int], ...]
    multiplier: float
    offset: float = 0.0


def edits_by_file(headers: Mapping[str, TensorInfo], edits: Iterable[TensorEdit]) -> dict[Path, tuple[TensorEdit, ...]]:
    """The files that have to be rewritten, each with its edits; all others stay as they are."""
    grouped: dict[Path, list[TensorEdit]] = {}
    for edit in edits:
        grouped.setdefault(headers[edit.tensor].file, []).append(edit)
    return {file: tuple(grouped[file]) for file in sorted(grouped)}


def rewrite_shard(source: Path, target: Path, edits: Iterable[TensorEdit]) -> None:
    """Copy a safetensors file with some rows scaled; every other byte, the header included, stays as it is.

    Rows are scaled in float64 and rounded to the tensor's own type, a block at a time, so that memory does not grow
    with the file. `target` must not exist. Raises BadCheckpoint for a damaged source or a value that becomes too large
    for its type; OSError as the disk does.
    """
    header = read_header(source)
    if header.problems:
        raise header.problems[0].error
    infos = {info.name: info for info in header.tensors}
    ordered = sorted(edits, key=lambda edit: infos[edit.tensor].begin)
    with source.open("rb") as reader, target.open("xb") as writer:
        for edit in ordered:
            info = infos[edit.tensor]
            row_bytes = (info.end - info.begin) // info.shape[0]
            for start, stop in edit.rows:
                copy_range(reader, writer, reader.tell(), info.begin + start * row_bytes)
                _scale(reader, writer, (stop - start) * row_bytes, info, edit)
        copy_range(reader, writer, reader.tell(), source.stat().st_size)
        writer.flush()
        os.fsync(writer.fileno())


def _scale(reader: BinaryIO, writer: BinaryIO, size: int, info: TensorInfo, edit: TensorEdit) -> None:
    import numpy as np  # noqa: PLC0415 - start-up does not pay for it

    block = BLOCK_VALUES * BYTES[info.dtype]
    for done in range(0, size, block):
        data = reader.read(min(block, size - done))
        if len(data) != min(block, size - done):
            raise BadCheckpoint("the file became shorter while it was read", where=f"{info.file}: {info.name}")
        old = decoded(data, info.dtype)
        new = encoded(old * edit.multiplier + edit.offset, info.dtype)
        if not np.array_equal(np.isfinite(decoded(new, info.dtype)), np.isfinite(old)):
            raise BadCheckpoint(
                f"a weight times {edit.multiplier:g} is too large for {info.dtype}", where=f"{info.file}: {info.name}"
            )
        writer.write(new)
