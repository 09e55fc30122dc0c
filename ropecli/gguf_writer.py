"""GGUF in, GGUF out: a file with another rotary embedding, everything else byte for byte as it was.

The new file is a list of pieces: a few new bytes, and ranges of the source that are copied in blocks, the quantised
weights among them. Staged beside the target, read back, renamed; the source is only ever read.
"""

import os
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from ropecli.byte_copy import copy_range, reserve
from ropecli.checkpoint import Checkpoint, is_gguf
from ropecli.conversion import Edit, what_was_trained
from ropecli.dialects import gguf, gguf_write
from ropecli.dialects.gguf_write import NotCarried, Value
from ropecli.errors import BadCheckpoint, BadUsage, CheckFailed, NoResource, OutputExists, RopeError
from ropecli.gguf_header import (
    ARRAY,
    SCALAR_CODES,
    STRING,
    GgufHeader,
    GgufTensor,
    parts,
    read_floats,
    read_gguf,
    verify_gguf,
)
from ropecli.runtimes.emit import emit
from ropecli.runtimes.serving import Serving
from ropecli.spec import RopeSpec
from ropecli.staging import staged
from ropecli.writer import Receipt, not_written, prove

SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
"""What the first part of a split model says about its parts; the output is one file."""

_UINT32, _FLOAT32, _F32 = 4, 6, 0
_FIXED_BYTES = 24


@dataclass(frozen=True, slots=True)
class GgufConversion:
    """What will be written.

    intent    layer type → the rotary embedding that the written file must mean
    settings  metadata key → its new value, or None where the key goes
    tensors   name → divisors, one a rotary pair, in float32; the source's own divisors go
    edits     the same as changes, for people
    notes     what else a user should know
    """

    checkpoint: Checkpoint
    intent: Mapping[str, RopeSpec]
    settings: Mapping[str, Value | None]
    tensors: Mapping[str, tuple[float, ...]]
    edits: tuple[Edit, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Range:
    """Bytes of a file, from `begin` up to `end`."""

    file: Path
    begin: int
    end: int


_Piece: TypeAlias = bytes | _Range


def plan_gguf(checkpoint: Checkpoint, intent: Mapping[str, RopeSpec]) -> GgufConversion:
    """What to write so that the layers named in `intent` rotate as it says, and all others as before.

    Reads headers alone. Raises BadUsage for what the architecture cannot carry, with the launch flags that do it, and
    BadCheckpoint for a source that is damaged or incomplete.
    """
    headers = _headers(checkpoint)
    try:
        changes = gguf_write.changes(checkpoint.config, checkpoint.ropes, intent)
    except RopeError as error:
        if isinstance(error, NotCarried):
            error.hint = _launch_hint(checkpoint, intent)
        error.at(checkpoint.source)
        raise
    settings = dict(changes.settings)
    notes = [*changes.notes, *what_was_trained(checkpoint, intent)]
    if len(headers) > 1:
        settings |= dict.fromkeys(key for key in SPLIT_KEYS if key in checkpoint.config)
        notes.append(f"the {len(headers)} parts of the model become one file")
    edits = [Edit(key, checkpoint.config.get(key), value) for key, value in settings.items()]
    old = {name: _old_divisors(headers, name) for name in gguf.TENSORS}
    for name, values in old.items():
        if values != changes.tensors.get(name):
            edits.append(Edit(f"tensor {name}", _described(values), _described(changes.tensors.get(name))))
    return GgufConversion(checkpoint, changes.intent, settings, changes.tensors, tuple(edits), tuple(notes))


def _launch_hint(checkpoint: Checkpoint, intent: Mapping[str, RopeSpec]) -> str:
    try:
        flags = emit("llama.cpp", Serving(checkpoint.config, checkpoint.ropes, intent))
    except BadUsage as error:
        return f"no launch flags do it, either: {error.problem}"
    return f"llama.cpp does it with the unchanged file and the flags {flags}"


def size_of(conversion: GgufConversion, out: Path | None = None) -> int:
    """Bytes of the file that would be written; reads headers alone.

    Raises what `write_gguf` would before it writes to `out`, but does not mind a GGUF that is there.
    """
    headers = _headers(conversion.checkpoint)
    if out is not None:
        _check_target(conversion.checkpoint, [header.file for header in headers], out, force=True)
    return sum(_size(piece) for piece in _pieces(conversion, headers))


def write_gguf(conversion: GgufConversion, out: Path, *, force: bool = False) -> Receipt:
    """Carry out a conversion. Everything that can be checked is checked before the first byte is written.

    force  replace a GGUF file that is already there
    Raises BadUsage, OutputExists, BadCheckpoint, NoResource; CheckFailed where the read-back disagrees. After any of
    them `out` is as it was.
    """
    headers = _headers(conversion.checkpoint)
    _check_target(conversion.checkpoint, [header.file for header in headers], out, force=force)
    pieces = _pieces(conversion, headers)
    size = sum(_size(piece) for piece in pieces)
    free = shutil.disk_usage(out.parent).free
    if size > free:
        raise NoResource(f"the file needs {size:,} bytes, {free:,} are free", where=str(out.parent))
    try:
        with staged(out, force=force) as stage:
            with stage.open("xb") as writer:
                reserve(writer, size)
                _write(pieces, writer)
                writer.flush()
                os.fsync(writer.fileno())
            _prove(stage, conversion.intent, str(out))
    except OSError as error:
        raise not_written(error, out) from error
    return Receipt(out, {out.name: "rewritten"}, size)


def _headers(checkpoint: Checkpoint) -> list[GgufHeader]:
    """The headers of all parts, checked so far that copying can rely on them."""
    if checkpoint.path is None or checkpoint.format != "gguf":
        raise BadUsage("expected a GGUF file", where=checkpoint.source)
    first = read_gguf(checkpoint.path)
    headers = [first, *(read_gguf(part) for part in parts(first) if part != checkpoint.path)]
    seen: set[str] = set()
    for header in headers:
        if (header.byte_order, header.alignment) != (first.byte_order, first.alignment):
            raise BadCheckpoint("the parts of this model differ in alignment or byte order", where=str(header.file))
        size = header.file.stat().st_size
        for tensor in header.tensors.values():
            where = f"{header.file}: {tensor.name}"
            if max(tensor.begin, tensor.end or 0) > size:
                problem = f"the tensor ends at byte {tensor.end or tensor.begin}, the file has {size}"
                raise BadCheckpoint(problem, where=where, hint="the file is cut short; download it again")
            if tensor.name in seen or "�" in tensor.name:
                problem = "two parts have it" if tensor.name in seen else "the name is not UTF-8"
                raise BadCheckpoint(problem, where=where)
            seen.add(tensor.name)
    return headers


def _old_divisors(headers: Sequence[GgufHeader], name: str) -> tuple[float, ...] | None:
    for header in headers:
        if name in header.tensors:
            return read_floats(header.tensors[name], header.byte_order)
    return None


def _described(divisors: tuple[float, ...] | None) -> str | None:
    return None if divisors is None else f"{len(divisors)} divisors, {min(divisors):g} to {max(divisors):g}"


def _check_target(checkpoint: Checkpoint, sources: Sequence[Path], out: Path, *, force: bool) -> None:
    if out.suffix != ".gguf":
        raise BadUsage("expected the name of a .gguf file", where=str(out), hint=f"try {out}.gguf")
    if not out.parent.is_dir():
        raise BadUsage("the folder to write into does not exist", where=str(out.parent), hint=f"mkdir -p {out.parent}")
    typed, real = Path(checkpoint.source), out.resolve()
    if any(real == path.resolve() or (out.exists() and out.samefile(path)) for path in sources):
        raise BadUsage("the output is the source", where=str(out), hint="choose another name")
    if typed.is_dir() and typed.resolve() in real.parents:
        raise BadUsage("the output lies in the source", where=str(out), hint="choose another folder")
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise OutputExists("already exists", where=str(out), hint="choose another name, or replace it with --force")
    if out.exists() and not is_gguf(out):
        raise OutputExists("is not a GGUF file, so it is not replaced", where=str(out), hint="choose another name")


def _prove(stage: Path, intent: Mapping[str, RopeSpec], name: str) -> None:
    """The written file lies as GGUF files do and means what was asked. Raises CheckFailed."""
    prove(stage, intent, name)
    known = all(tensor.end is not None for tensor in read_gguf(stage).tensors.values())
    for problem in verify_gguf(stage) if known else ():
        raise CheckFailed(problem.problem, where=problem.where.replace(str(stage), name), hint="please report it")


def _pieces(conversion: GgufConversion, headers: Sequence[GgufHeader]) -> list[_Piece]:
    """The new file from its first byte to its last."""
    first = headers[0]
    order, alignment = first.byte_order, first.alignment
    infos, data, offset = [], list[_Piece](), 0
    for name, type_id, shape, content in _tensors(headers, conversion.tensors):
        infos.append(_tensor_info(order, name, type_id, shape, offset))
        padding = -_size(content) % alignment
        data += [content, bytes(padding)]
        offset += _size(content) + padding
    pairs = _pairs(first, conversion.settings)
    counts = struct.pack(f"{order}QQ", len(infos), len(pairs))
    head: list[_Piece] = [_Range(first.file, 0, 8), counts, *pairs, *infos]
    padding = -sum(_size(piece) for piece in head) % alignment
    return _joined([*head, bytes(padding), *data])


def _tensors(
    headers: Sequence[GgufHeader], divisors: Mapping[str, tuple[float, ...]]
) -> Iterator[tuple[str, int, tuple[int, ...], _Piece]]:
    """Name, type, shape and data of every tensor: the source's but for its divisors, then the new divisors."""
    for header in headers:
        size = header.file.stat().st_size
        begins = sorted(tensor.begin for tensor in header.tensors.values())
        following = dict(zip(begins, [*begins[1:], size], strict=True))
        for tensor in header.tensors.values():
            if tensor.name not in gguf.TENSORS:
                end = _padded_end(tensor, header.alignment, following[tensor.begin], size)
                yield tensor.name, tensor.type_id, tensor.shape, _Range(header.file, tensor.begin, end)
    order = headers[0].byte_order
    for name, values in divisors.items():
        yield name, _F32, (len(values),), struct.pack(f"{order}{len(values)}f", *values)


def _padded_end(tensor: GgufTensor, alignment: int, following: int, size: int) -> int:
    """Where the tensor and its padding end, so that neighbours are copied in one go.

    A type that is not known here has no size; its bytes reach to the next tensor.
    """
    return following if tensor.end is None else min(tensor.end + -tensor.end % alignment, size)


def _tensor_info(order: str, name: str, type_id: int, shape: tuple[int, ...], offset: int) -> bytes:
    numbers = struct.pack(f"{order}I{len(shape)}QIQ", len(shape), *shape, type_id, offset)
    return _text(order, name) + numbers


def _pairs(header: GgufHeader, settings: Mapping[str, Value | None]) -> list[_Piece]:
    """The metadata: pairs that stay are the source's bytes, new ones follow the architecture's own."""
    order = header.byte_order
    pairs: list[_Piece] = []
    after = 0
    prefix = f"{gguf.architecture(header.metadata)}."
    ranges = _pair_ranges(header)
    for key, place in ranges.items():
        if key in settings:
            value = settings[key]
            pairs += [] if value is None else [_pair(order, key, value)]
        else:
            pairs.append(place)
        after = len(pairs) if key.startswith(prefix) else after
    new = [_pair(order, key, value) for key, value in settings.items() if key not in ranges and value is not None]
    return [*pairs[:after], *new, *pairs[after:]]


def _pair(order: str, key: str, value: Value) -> bytes:
    match value:
        case str():
            return _text(order, key) + struct.pack(f"{order}I", STRING) + _text(order, value)
        case int():
            return _text(order, key) + struct.pack(f"{order}II", _UINT32, value)
        case _:
            return _text(order, key) + struct.pack(f"{order}If", _FLOAT32, value)


def _text(order: str, text: str) -> bytes:
    data = text.encode()
    return struct.pack(f"{order}Q", len(data)) + data


def _pair_ranges(header: GgufHeader) -> dict[str, _Range]:
    """Key → the bytes of the whole pair. `read_gguf` has checked every count and type on the way."""
    ranges: dict[str, _Range] = {}
    try:
        with header.file.open("rb") as file:
            file.seek(_FIXED_BYTES)
            for _ in range(len(header.metadata) + len(header.skipped)):
                begin = file.tell()
                key = file.read(_number(file, header.byte_order, "Q")).decode("utf-8", "replace")
                _skip_value(file, header.byte_order, _number(file, header.byte_order, "I"))
                ranges[key] = _Range(header.file, begin, file.tell())
    except (OSError, struct.error, KeyError) as error:
        raise BadCheckpoint("the file changed while it was read", where=str(header.file)) from error
    return ranges


def _number(file: BinaryIO, order: str, code: str) -> Any:
    return struct.unpack(order + code, file.read(struct.calcsize(order + code)))[0]


def _skip_value(file: BinaryIO, order: str, kind: int) -> None:
    count = 1
    if kind == ARRAY:
        kind, count = _number(file, order, "I"), _number(file, order, "Q")
    if kind != STRING:
        file.seek(count * struct.calcsize(order + SCALAR_CODES[kind]), os.SEEK_CUR)
        return
    unpack, read = struct.Struct(f"{order}Q").unpack, file.read
    for _ in range(count):
        read(unpack(read(8))[0])


def _size(piece: _Piece) -> int:
    return piece.end - piece.begin if isinstance(piece, _Range) else len(piece)


def _joined(pieces: Sequence[_Piece]) -> list[_Piece]:
    """The same bytes in fewer pieces: neighbouring ranges of one file as one."""
    joined: list[_Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else b""
        if (
            isinstance(piece, _Range)
            and isinstance(last, _Range)
            and (last.file, last.end) == (piece.file, piece.begin)
        ):
            joined[-1] = _Range(last.file, last.begin, piece.end)
        elif _size(piece):
            joined.append(piece)
    return joined


def _write(pieces: Sequence[_Piece], writer: BinaryIO) -> None:
    for piece in pieces:
        if isinstance(piece, bytes):
            writer.write(piece)
            continue
        with piece.file.open("rb") as reader:
            copy_range(reader, writer, piece.begin, piece.end)
