"""Baking: cos and sin, or inverse frequencies, as a safetensors file; and `attach`, which makes a model use them.

    written config ─ plan_tables ─▶ TablePlan (header, offsets, sizes) ─ write_tables ─▶ file, a block of rows at a time

Servers read the config, not these tables: they are for runtimes of one's own, exports and checks.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

from ropecli.checkpoint import Checkpoint
from ropecli.dialects import hf
from ropecli.errors import BadCheckpoint, BadUsage
from ropecli.frequencies import Frequencies
from ropecli.json_edit import ABSENT, with_members
from ropecli.safetensors_header import INDEX_NAME, TensorInfo, as_weight_map
from ropecli.spec import LONGEST, Dynamic, LayerRope, Layout
from ropecli.stored_floats import BYTES, DTYPES, LARGEST, FloatName, decoded, encoded
from ropecli.strict_json import members
from ropecli.table_check import Baked, baked, verify_tables
from ropecli.table_file import (
    LEAVES,
    SHARD,
    SIDECAR,
    TableKind,
    TableLayer,
    TableLayout,
    metadata_of,
    table_block,
    table_rows,
    tensor_name,
    variant_frequencies,
)
from ropecli.table_lookup import attach

__all__ = [
    "SHARD",
    "SIDECAR",
    "BakeRequest",
    "Baked",
    "TablePlan",
    "attach",
    "baked",
    "index_with_tables",
    "index_without_tables",
    "plan_tables",
    "verify_tables",
    "write_tables",
]

Place: TypeAlias = Literal["sidecar", "shards"]

BLOCK_VALUES = 2**18
"""Angles computed at a time: 2 MiB of float64, so that a table of any length takes the same memory."""

SMALLEST_NORMAL_F16 = 2.0**-14


@dataclass(frozen=True, slots=True)
class BakeRequest:
    """What to bake.

    kind       cos and sin for each position, or the inverse frequencies alone
    length     positions, from 0, that cos and sin cover
    dtype      how values are stored; the maths is float64
    layout     of cos and sin: "half", two tensors [length, d/2]; "concat", one [length, d], cos then sin; "full", two
               [length, d] with a column for each rotary dimension, in the order in which the model pairs them
    per_layer  a copy for each layer, named after it, instead of one for each kind of layer
    into       a sidecar in a folder of its own, or a new shard among the weights

    Raises BadUsage for a value out of its range.
    """

    kind: TableKind
    length: int
    dtype: FloatName = "float32"
    layout: TableLayout = "half"
    per_layer: bool = False
    into: Place = "sidecar"

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or not 1 <= self.length <= LONGEST:
            raise BadUsage(
                f"expected a whole number from 1 to {LONGEST}, found {self.length!r:.60}", where="--bake-length"
            )
        for option, value, choices in (
            ("--bake", self.kind, get_args(TableKind)),
            ("--bake-dtype", self.dtype, tuple(DTYPES)),
            ("--bake-layout", self.layout, get_args(TableLayout)),
            ("--bake-into", self.into, get_args(Place)),
        ):
            if value not in choices:
                raise BadUsage(f"expected one of {', '.join(choices)}, found {value!r:.60}", where=option)


@dataclass(frozen=True, slots=True)
class TablePiece:
    """Tensors that are computed together. tensors: absolute offset in the file and bytes a row, one pair a tensor."""

    frequencies: Frequencies
    rows: int
    pairs: Layout
    tensors: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class TablePlan:
    """A table file before it is written.

    name     its path in the checkpoint's folder
    header   its first bytes: length, JSON, padding
    sizes    tensor name → bytes
    """

    request: BakeRequest
    name: str
    header: bytes
    sizes: Mapping[str, int]
    pieces: tuple[TablePiece, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(self.sizes.values())


@dataclass(frozen=True, slots=True)
class _Table:
    """One table to be laid out: its frequencies, rows, and tensor names with dtype and shape."""

    frequencies: Frequencies
    rows: int
    pairs: Layout
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]


def plan_tables(request: BakeRequest, written: Checkpoint) -> TablePlan:
    """What to write so that the tables say what the config of `written` means; touches no disk.

    written  the checkpoint as it will be: its `config` and the `ropes` read from it. Tables of what was asked for
             instead would differ from it by the 5e-5 that snapped corners cost.

    Raises BadUsage for `dynamic`, which has no table; for values that the dtype cannot hold; and for `per_layer` where
    the config does not tell the layers apart. Raises BadCheckpoint for a model without a rotary embedding.
    """
    if not written.ropes:
        raise BadCheckpoint("the model has no rotary embedding", where=written.source)
    layers: list[TableLayer] = []
    tables: list[_Table] = []
    for rope in written.ropes:
        _refuse(request, rope)
        indices = _indices(written, rope) if request.per_layer else ()
        layers.append(_described(rope, indices))
        for index in indices or (None,):
            tables += _tables(request, rope, index)
    layout = request.layout if request.kind == "cos-sin" else None
    metadata = metadata_of(request.kind, layout, request.dtype, request.length, written.config_sha256, layers)
    entries = [entry for table in tables for entry in table.tensors]
    header, begins = _laid_out(metadata, entries)
    pieces = [
        TablePiece(
            table.frequencies,
            table.rows,
            table.pairs,
            tuple((begins[name], _bytes(dtype, shape[1:])) for name, dtype, shape in table.tensors),
        )
        for table in tables
    ]
    sizes = {name: _bytes(dtype, shape) for name, dtype, shape in entries}
    return TablePlan(request, SIDECAR if request.into == "sidecar" else SHARD, header, sizes, tuple(pieces))


def _indices(written: Checkpoint, rope: LayerRope) -> tuple[int, ...]:
    indices = hf.layer_indices(written.config, rope.name)
    if not indices:
        raise BadUsage(
            "cannot tell which layers rotate this way",
            where=f"--bake-per-layer: {rope.name}",
            hint="layer_types has to list the type of each layer, as transformers 5 writes it",
        )
    return indices


def _refuse(request: BakeRequest, rope: LayerRope) -> None:
    spec = rope.spec
    if isinstance(spec.scaling, Dynamic):
        raise BadUsage(
            "dynamic scaling has other frequencies at each length, so no table holds them",
            where=f"--bake: {rope.name}",
            hint="--rope-type ntk freezes it into the base",
        )
    for table in variant_frequencies(spec).values():
        if table.attention_factor > LARGEST[DTYPES[request.dtype]]:
            raise BadUsage(
                f"{request.dtype} cannot hold an attention factor of {table.attention_factor:g}", where="--bake-dtype"
            )
        slowest = min(filter(None, table.inv_freq), default=1.0)
        if request.kind == "inv-freq" and request.dtype == "float16" and slowest < SMALLEST_NORMAL_F16:
            raise BadUsage(
                f"float16 loses inverse frequencies as small as {slowest:.2g}",
                where="--bake-dtype",
                hint="use float32, or bfloat16",
            )


def _described(rope: LayerRope, indices: tuple[int, ...]) -> TableLayer:
    spec, scaling = rope.spec, rope.spec.scaling
    numbers = spec.rope_theta, spec.rotary_dim, scaling.factor, scaling.attention_factor, spec.original_length
    return TableLayer(rope.name, spec.rope_type, *numbers, spec.layout, indices)


def _tables(request: BakeRequest, rope: LayerRope, index: int | None) -> Iterator[_Table]:
    """The tables of one kind of layer, or of one layer: one, or a short and a long one."""
    pairs, dtype = rope.spec.pairs, DTYPES[request.dtype]
    leaves = LEAVES[request.layout if request.kind == "cos-sin" else request.kind]
    for variant, frequencies in variant_frequencies(rope.spec).items():
        names = [tensor_name(rope.name, variant, leaf, index) for leaf in leaves]
        if request.kind == "inv-freq":
            shapes = ((names[0], dtype, (pairs,)), (names[1], "F32", ()))
            yield _Table(frequencies, 1, rope.spec.layout, shapes)
        else:
            rows = table_rows(request.length, variant, rope.spec.original_length)
            shape = (rows, pairs if request.layout == "half" else 2 * pairs)
            yield _Table(frequencies, rows, rope.spec.layout, tuple((name, dtype, shape) for name in names))


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    size = BYTES[dtype]
    for width in shape:
        size *= width
    return size


def _laid_out(
    metadata: Mapping[str, str], entries: list[tuple[str, str, tuple[int, ...]]]
) -> tuple[bytes, dict[str, int]]:
    """The header, and where each tensor begins in the file; wide types first, so that each is aligned to itself."""
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, dtype, shape in sorted(entries, key=lambda entry: -BYTES[entry[1]]):
        size = _bytes(dtype, shape)
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(described, separators=(",", ":")).encode("ascii")
    # safetensors pads with spaces, so that the data starts at a multiple of 8
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    begins = {name: len(header) + described[name]["data_offsets"][0] for name, _, _ in entries}
    return header, begins


def write_tables(plan: TablePlan, file: Path) -> float:
    """Write the file, which must not exist; returns the largest absolute error that storing made.

    Values are computed and written in blocks of rows: the memory does not grow with the length. Folders are made.
    Raises OSError as the disk does.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    worst = 0.0
    with file.open("xb") as stream:
        stream.write(plan.header)
        for piece in plan.pieces:
            error = (
                _write_rows(plan.request, piece, stream)
                if plan.request.kind == "cos-sin"
                else (_write_inv_freq(plan.request, piece, stream))
            )
            worst = max(worst, error)
        stream.flush()
        os.fsync(stream.fileno())
    return worst


def _write_rows(request: BakeRequest, piece: TablePiece, stream: BinaryIO) -> float:
    import numpy as np  # noqa: PLC0415 - start-up does not pay for it

    step = max(1, BLOCK_VALUES // len(piece.frequencies.inv_freq))
    worst = 0.0
    for start in range(0, piece.rows, step):
        positions = np.arange(start, min(start + step, piece.rows), dtype=np.float64)
        blocks = table_block(piece.frequencies, positions, request.layout, piece.pairs)
        for block, (begin, row_bytes) in zip(blocks, piece.tensors, strict=True):
            stream.seek(begin + start * row_bytes)
            worst = max(worst, _store(stream, block, DTYPES[request.dtype]))
    return worst


def _write_inv_freq(request: BakeRequest, piece: TablePiece, stream: BinaryIO) -> float:
    import numpy as np  # noqa: PLC0415

    (table, _), (scalar, _) = piece.tensors
    stream.seek(table)
    worst = _store(stream, np.asarray(piece.frequencies.inv_freq), DTYPES[request.dtype])
    stream.seek(scalar)
    return max(worst, _store(stream, np.asarray([piece.frequencies.attention_factor]), "F32"))


def _store(stream: BinaryIO, values: Any, dtype: str) -> float:
    """Write values where the stream stands; returns the largest absolute error."""
    data = encoded(values, dtype)
    stream.write(data)
    return float(abs(decoded(data, dtype) - values.ravel()).max())


def index_with_tables(plan: TablePlan, index_text: str | None, headers: Mapping[str, TensorInfo]) -> str:
    """The text of `model.safetensors.index.json` with the new shard in it; the other shards stay as they are.

    index_text  the index as it is, whose every other byte is kept; None where the weights are one file, for which an
                index is made
    headers     the tensors of the source; tables baked before, in the shard of the same name, go

    Raises BadCheckpoint for a text that is no index.
    """
    return _index(index_text, headers, plan.name, plan.sizes)


def index_without_tables(index_text: str, headers: Mapping[str, TensorInfo]) -> str:
    """The text of `model.safetensors.index.json` without the shard of tables that were baked before.

    Raises BadCheckpoint for a text that is no index.
    """
    return _index(index_text, headers, SHARD, {})


def _index(index_text: str | None, headers: Mapping[str, TensorInfo], name: str, sizes: Mapping[str, int]) -> str:
    """The index where the shard `name` has these tensors and no others. sizes: tensor name → bytes."""
    kept = {tensor: info for tensor, info in headers.items() if info.file.name != name}
    added, kept_bytes = sum(sizes.values()), sum(info.end - info.begin for info in kept.values())
    if index_text is None:
        weight_map = {tensor: info.file.name for tensor, info in kept.items()} | dict.fromkeys(sizes, name)
        index = {"metadata": {"total_size": kept_bytes + added}, "weight_map": dict(sorted(weight_map.items()))}
        return json.dumps(index, indent=2) + "\n"
    try:
        index = members(index_text, "weight_map", "metadata")
    except BadCheckpoint as error:
        raise error.at(INDEX_NAME) from None
    old = [tensor for tensor, file in as_weight_map(index.get("weight_map"), INDEX_NAME).items() if file == name]
    changes = dict.fromkeys(old, ABSENT) | dict.fromkeys(sizes, name)
    text = with_members(index_text, ("weight_map",), changes)
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, int | float) and math.isfinite(total):
        removed = sum(headers[tensor].end - headers[tensor].begin for tensor in old if tensor in headers)
        total = int(total) - removed + added
    else:
        total = kept_bytes + added
    if isinstance(metadata, dict):
        return with_members(text, ("metadata",), {"total_size": total})
    return with_members(text, (), {"metadata": {"total_size": total}})
