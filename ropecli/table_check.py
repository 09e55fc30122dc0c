"""Are the tables in a checkpoint's folder those of its config? A few rows of each are recomputed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropecli.checkpoint import Checkpoint
from ropecli.errors import BadCheckpoint
from ropecli.frequencies import Frequencies
from ropecli.safetensors_header import Problem, TensorInfo, read_tensor
from ropecli.spec import LayerRope, Layout
from ropecli.stored_floats import ROUNDING, decoded
from ropecli.table_file import (
    SHARD,
    SIDECAR,
    TableFile,
    TableLayer,
    TableLayout,
    read_table_file,
    table_block,
    table_rows,
    variant_frequencies,
)

if TYPE_CHECKING:
    from ropecli.stored_floats import Array

NO_TABLES: dict[str, Any] = dict.fromkeys(("path", "kind", "layout", "dtype", "length")) | {
    "config_changed": False,
    "stale": False,
}
"""The members of `Baked.to_json` where there is no table file."""

REBAKE = "bake it again with ropecli convert --bake, or delete it"


@dataclass(frozen=True, slots=True)
class Baked:
    """Tables that lie in a checkpoint's folder.

    path            relative to the folder
    table           what the file's header says; None where it cannot be read
    config_changed  whether the config is another than the one that the tables were computed from, in any key
    problems        how the tables differ from what the config means now
    """

    path: str
    table: TableFile | None
    config_changed: bool
    problems: tuple[Problem, ...]

    @property
    def stale(self) -> bool:
        """Whether the tables are not those of the config. An edit of another key does not make them so."""
        return bool(self.problems)

    def to_json(self) -> dict[str, Any]:
        """The field `baked` of `inspect --json`."""
        table = self.table
        return {
            "path": self.path,
            "kind": table.kind if table else None,
            "layout": table.layout if table else None,
            "dtype": table.dtype if table else None,
            "length": table.length if table else None,
            "layers": [layer.name for layer in table.layers] if table else [],
            "attention_factor": [layer.attention_factor for layer in table.layers] if table else [],
            "config_changed": self.config_changed,
            "stale": self.stale,
        }


def baked(folder: Path, checkpoint: Checkpoint) -> Baked | None:
    """The tables in `folder`, held against the config of `checkpoint`; the sidecar if there is one, else the shard.

    Raises nothing for a damaged file: it is told as a problem.
    """
    return next((_checked(folder, name, checkpoint) for name in (SIDECAR, SHARD) if (folder / name).is_file()), None)


def verify_tables(folder: Path, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    """Everything in which the baked tables of a folder differ from its config; empty where it has none."""
    files = [name for name in (SIDECAR, SHARD) if (folder / name).is_file()]
    return tuple(problem for name in files for problem in _checked(folder, name, checkpoint).problems)


def _checked(folder: Path, name: str, checkpoint: Checkpoint) -> Baked:
    try:
        table = read_table_file(folder / name)
    except BadCheckpoint as error:
        return Baked(name, None, True, (Problem.of(error),))
    changed = table.config_sha256 != checkpoint.config_sha256
    return Baked(name, table, changed, tuple(_differences(table, checkpoint)))


def _differences(table: TableFile, checkpoint: Checkpoint) -> Iterator[Problem]:
    stored = {layer.name: layer for layer in table.layers}
    for rope in checkpoint.ropes:
        where = f"{table.path}: {rope.name}"
        layer = stored.get(rope.name)
        if layer is None:
            yield Problem(where, "the config has such layers, the file no tables for them", REBAKE)
            continue
        try:
            worst = max(_worst(table, layer, rope, index) for index in layer.indices or (None,))
        except BadCheckpoint as error:
            yield Problem.of(error)
            continue
        if worst > 1:
            yield Problem(
                where, f"is stale: not the tables of this config ({worst:.3g} times the rounding error)", REBAKE
            )
    for name in stored:
        if name not in {rope.name for rope in checkpoint.ropes}:
            yield Problem(f"{table.path}: {name}", "the file has tables for such layers, the config none", REBAKE)


def _worst(table: TableFile, layer: TableLayer, rope: LayerRope, index: int | None) -> float:
    """The largest difference from what the config means, in units of what rounding allows; above 1 is stale."""
    wanted = variant_frequencies(rope.spec)
    if set(wanted) != set(table.variants(layer)):
        raise BadCheckpoint(
            "is stale: one of the file and the config has a short and a long table, the other has one for all lengths",
            where=f"{table.path}: {layer.name}",
            hint=REBAKE,
        )
    worst = 0.0
    for variant, frequencies in wanted.items():
        tensors = [table.tensor(layer, variant, leaf, index) for leaf in table.leaves]
        if table.layout is None:
            worst = max(worst, _worst_frequency(tensors, frequencies))
        else:
            rows = table_rows(table.length, variant, rope.spec.original_length)
            worst = max(worst, _worst_row(tensors, frequencies, rows, table.layout, rope.spec.layout))
    return worst


def _worst_frequency(tensors: Sequence[TensorInfo], wanted: Frequencies) -> float:
    """Of the inverse frequencies and the attention factor, relative."""
    if [info.shape for info in tensors] != [(len(wanted.inv_freq),), ()]:
        return math.inf
    found = [float(value) for info in tensors for value in _values(info, 0, info.shape[0] if info.shape else 1)]
    unit = 1.01 * ROUNDING[tensors[0].dtype]
    pairs = zip(found, (*wanted.inv_freq, wanted.attention_factor), strict=True)
    return max((0.0 if a == b else abs(a - b) / (unit * max(abs(b), 1e-300))) for a, b in pairs)


def _worst_row(
    tensors: Sequence[TensorInfo], wanted: Frequencies, rows: int, layout: TableLayout, pairs: Layout
) -> float:
    """Of the rows at both ends and some between them, relative to the attention factor."""
    import numpy as np  # noqa: PLC0415 - only a checkpoint with tables pays for it

    width = len(wanted.inv_freq) * (1 if layout == "half" else 2)
    if any(info.shape != (rows, width) for info in tensors):
        return math.inf
    # cosines of different libraries differ in the last digit, those of large angles in a few more
    unit = (1.01 * ROUNDING[tensors[0].dtype] + 1e-9) * wanted.attention_factor
    worst = 0.0
    for row in sorted({0, min(1, rows - 1), rows // 3, rows // 2, 4 * rows // 5, max(rows - 2, 0), rows - 1}):
        blocks = table_block(wanted, np.asarray([float(row)]), layout, pairs)
        for info, block in zip(tensors, blocks, strict=True):
            off = np.abs(_values(info, row, row + 1) - block[0])
            worst = max(worst, float(np.max(np.where(np.isnan(off), np.inf, off))) / unit)
    return worst


def _values(info: TensorInfo, start: int, stop: int) -> "Array":
    """Rows of a tensor as float64; a scalar is one row. Raises BadCheckpoint."""
    row_bytes = (info.end - info.begin) // (info.shape[0] if info.shape else 1)
    part = replace(info, begin=info.begin + start * row_bytes, end=info.begin + stop * row_bytes)
    return decoded(read_tensor(part), info.dtype)
