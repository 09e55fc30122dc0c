"""GGUF files by their headers: metadata and where each tensor lies; never all the data, never more than was promised.

Layout (ggml, docs/gguf.md, versions 2 and 3): "GGUF", version, counts of tensors and of metadata pairs; the pairs; the
tensors' names, shapes, types and offsets; then, aligned, the data. Written here with `struct` alone: the `gguf` package
takes longer to import than a whole inspection may take, and allocates what a hostile file tells it to.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ropecli.errors import BadCheckpoint
from ropecli.safetensors_header import Problem

SCALAR_CODES: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
"""GGUF value type → `struct` code of one number."""

STRING, ARRAY = 8, 9

TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
"""ggml tensor type → name, elements in a block, bytes of a block (gguf-py 0.19 `GGML_QUANT_SIZES`)."""

MAX_PAIRS = 2**16
MAX_TENSORS = 2**17
MAX_STRINGS = 2**23
"""Strings in all lists together, which are stepped over one by one; the largest vocabularies have one million."""

MAX_KEPT_BYTES = 2**25
"""Bytes of names and values that are kept; lists longer than `MAX_KEPT_ITEMS` are stepped over."""

MAX_KEPT_ITEMS = 1024

_CHUNK = 2**20
_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies. `shape` is in ggml's order, fastest first; `begin` and `end` are byte offsets in `file`.

    `end` is None where the type is unknown, so that its size is, too.
    """

    name: str
    file: Path
    type_id: int
    shape: tuple[int, ...]
    begin: int
    end: int | None

    @property
    def dtype(self) -> str:
        """ggml's name of the type, or its number."""
        known = TENSOR_TYPES.get(self.type_id)
        return known[0] if known else f"type {self.type_id}"


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself. `metadata` leaves out the long lists, which `skipped` counts."""

    file: Path
    byte_order: str
    metadata: Mapping[str, Any]
    skipped: Mapping[str, int]
    tensors: Mapping[str, GgufTensor]
    alignment: int


def read_gguf(path: Path) -> GgufHeader:
    """The header of a GGUF file, little- or big-endian.

    Raises BadCheckpoint, which names the file, the key or tensor, and the byte offset where it stops making sense.
    """
    try:
        if not path.is_file() and path.exists():
            raise BadCheckpoint("expected a regular file, found something else")
        with path.open("rb") as file:
            return _header(path, _Cursor(file, path.stat().st_size))
    except BadCheckpoint as error:
        error.at(str(path))
        raise
    except OSError as error:
        raise BadCheckpoint(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def read_floats(tensor: GgufTensor, byte_order: str, limit: int = 2**16) -> tuple[float, ...]:
    """The values of a small F32 tensor.

    Raises BadCheckpoint for another type, for more than `limit` values, and where the file is cut short.
    """
    where = f"{tensor.file}: {tensor.name}"
    count = math.prod(tensor.shape)
    if tensor.type_id != 0 or count > limit:
        raise BadCheckpoint(f"expected at most {limit} values in F32, found {count} in {tensor.dtype}", where=where)
    try:
        with tensor.file.open("rb") as file:
            file.seek(tensor.begin)
            data = file.read(4 * count)
    except OSError as error:
        raise BadCheckpoint(f"cannot be read: {error.strerror or error}", where=where) from error
    except (OverflowError, ValueError) as error:
        raise BadCheckpoint(f"no file has an offset of {tensor.begin}", where=where) from error
    if len(data) != 4 * count:
        raise BadCheckpoint(f"expected {4 * count} bytes at offset {tensor.begin}, found {len(data)}", where=where)
    return struct.unpack(f"{byte_order}{count}f", data)


def parts(header: GgufHeader) -> tuple[Path, ...]:
    """All files of a model that is split (`name-00001-of-00003.gguf`), in order; the file alone where it is whole."""
    found = _SPLIT_NAME.fullmatch(header.file.name)
    count = header.metadata.get("split.count")
    if found is None or not isinstance(count, int) or not 1 < count == int(found["count"]):
        return (header.file,)
    return tuple(header.file.with_name(f"{found['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1))


def verify_gguf(path: Path) -> tuple[Problem, ...]:
    """Everything that is wrong with a GGUF file and the other parts of a split one: headers against files, offsets.

    Nothing is raised, so that all of it can be listed.
    """
    try:
        header = read_gguf(path)
    except BadCheckpoint as error:
        return (Problem.of(error),)
    problems = list(_layout_problems(header))
    seen = dict.fromkeys(header.tensors, path)
    for part in parts(header):
        if part == path:
            continue
        try:
            other = read_gguf(part)
        except BadCheckpoint as error:
            problems.append(Problem(error.where, error.problem, "all parts of a split model are needed"))
            continue
        problems += _layout_problems(other)
        twice = [name for name in other.tensors if name in seen]
        problems += [Problem(f"{part}: {name}", f"the tensor is also in {seen[name].name}") for name in twice]
        seen |= dict.fromkeys(other.tensors, part)
    return tuple(problems)


def _layout_problems(header: GgufHeader) -> Iterator[Problem]:
    size = header.file.stat().st_size
    again = "the file is cut short; download it again"
    expected: int | None = None
    for tensor in header.tensors.values():
        where = f"{header.file}: {tensor.name}"
        if tensor.end is None:
            yield Problem(where, f"the tensor's {tensor.dtype} is not known, so its size is not checked")
            expected = None
            continue
        if tensor.end > size:
            yield Problem(where, f"the tensor ends at byte {tensor.end}, the file has {size}", again)
        if expected is not None and tensor.begin != expected:
            yield Problem(where, f"the tensor begins at byte {tensor.begin}, expected {expected}", "convert it again")
        expected = _aligned(tensor.end, header.alignment)


class _Cursor:
    """Reads a header forwards through a small buffer; refuses to pass the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.order = "<"
        self.buffer = b""
        self.position = 0
        self.start = 0
        self.strings_left = MAX_STRINGS
        self.kept_left = MAX_KEPT_BYTES

    @property
    def offset(self) -> int:
        return self.start + self.position

    def _fill(self, count: int) -> None:
        if count > self.size - self.offset:
            raise BadCheckpoint(
                f"expected {count} more bytes at offset {self.offset}, the file has {self.size}",
                hint="the file is cut short or damaged; download it again",
            )
        rest = self.buffer[self.position :]
        self.start, self.position = self.offset, 0
        self.buffer = rest + self.file.read(max(count - len(rest), _CHUNK))
        if len(self.buffer) < count:
            raise BadCheckpoint(f"the file became shorter while it was read, at offset {self.offset}")

    def take(self, count: int) -> bytes:
        if self.position + count > len(self.buffer):
            self._fill(count)
        self.position += count
        return self.buffer[self.position - count : self.position]

    def skip(self, count: int) -> None:
        if self.position + count <= len(self.buffer):
            self.position += count
            return
        target = self.offset + count
        if target > self.size:
            self._fill(count)
        self.file.seek(target)
        self.buffer, self.start, self.position = b"", target, 0

    def number(self, code: str) -> Any:
        return struct.unpack(self.order + code, self.take(struct.calcsize(code)))[0]

    def kept(self, count: int) -> bytes:
        self.kept_left -= count
        if self.kept_left < 0:
            raise BadCheckpoint(f"expected at most {MAX_KEPT_BYTES // 2**20} MiB of metadata, found more")
        return self.take(count)

    def text(self) -> str:
        length = self.number("Q")
        if length > self.size - self.offset:
            self._fill(length)
        return self.kept(length).decode("utf-8", "replace")

    def skip_texts(self, count: int) -> None:
        """Steps over `count` strings: the hot loop of a large vocabulary."""
        self.strings_left -= count
        if self.strings_left < 0:
            raise BadCheckpoint(f"expected at most {MAX_STRINGS} strings in lists, found more")
        unpack = struct.Struct(self.order + "Q").unpack_from
        for _ in range(count):
            if self.position + 8 > len(self.buffer):
                self._fill(8)
            length = unpack(self.buffer, self.position)[0]
            self.position += 8
            if self.position + length <= len(self.buffer):
                self.position += length
            else:
                self.skip(length)


def _header(path: Path, cursor: _Cursor) -> GgufHeader:
    magic = cursor.take(4) if cursor.size >= 4 else b""
    if magic != b"GGUF":
        raise BadCheckpoint(f"expected a GGUF file, found one that starts with {magic!r}")
    version = cursor.number("I")
    if version & 0xFFFF == 0:
        cursor.order = ">"
        version >>= 24
    if version not in {2, 3}:
        raise BadCheckpoint(f"expected GGUF version 2 or 3, found {version}", hint="convert the model again")
    tensor_count, pair_count = cursor.number("Q"), cursor.number("Q")
    # A pair takes 13 bytes at least, a tensor 24.
    for what, count, most, least in (("pairs", pair_count, MAX_PAIRS, 13), ("tensors", tensor_count, MAX_TENSORS, 24)):
        if count > most or count * least > cursor.size:
            raise BadCheckpoint(
                f"the header promises {count} {what}, more than a file of {cursor.size} bytes can have",
                hint="the file is damaged; download it again",
            )
    metadata, skipped = _metadata(cursor, pair_count)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise BadCheckpoint(f"expected a power of two, found {alignment!r:.60}", where="general.alignment")
    tensors = _tensors(path, cursor, tensor_count, alignment)
    return GgufHeader(path, cursor.order, metadata, skipped, tensors, alignment)


def _metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Any], dict[str, int]]:
    metadata: dict[str, Any] = {}
    skipped: dict[str, int] = {}
    for _ in range(count):
        key = cursor.text()
        if key in metadata or key in skipped:
            raise BadCheckpoint("the key appears twice", where=key, hint="readers disagree on which one counts")
        value = _value(cursor, key, cursor.number("I"))
        if isinstance(value, _Skipped):
            skipped[key] = value.count
        else:
            metadata[key] = value
    return metadata, skipped


@dataclass(frozen=True, slots=True)
class _Skipped:
    count: int


def _value(cursor: _Cursor, key: str, kind: int) -> Any:
    if kind == STRING:
        return cursor.text()
    if kind in SCALAR_CODES:
        return cursor.number(SCALAR_CODES[kind])
    if kind != ARRAY:
        raise BadCheckpoint(f"expected a value type from 0 to 12, found {kind}", where=key)
    item, count = cursor.number("I"), cursor.number("Q")
    if item == STRING:
        if count <= MAX_KEPT_ITEMS:
            return [cursor.text() for _ in range(count)]
        if count * 8 > cursor.size:
            raise BadCheckpoint(f"the list promises {count} strings, more than the file can have", where=key)
        cursor.skip_texts(count)
        return _Skipped(count)
    if item not in SCALAR_CODES:
        raise BadCheckpoint(f"expected a list of numbers or strings, found item type {item}", where=key)
    size = struct.calcsize(SCALAR_CODES[item])
    if count <= MAX_KEPT_ITEMS:
        return list(struct.unpack(f"{cursor.order}{count}{SCALAR_CODES[item]}", cursor.kept(count * size)))
    cursor.skip(count * size)
    return _Skipped(count)


def _tensors(path: Path, cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    found: list[tuple[str, int, tuple[int, ...], int]] = []
    for _ in range(count):
        name = cursor.text()
        dimensions = cursor.number("I")
        if dimensions > 4:
            raise BadCheckpoint(f"expected at most 4 dimensions, found {dimensions}", where=name)
        shape = tuple(cursor.number("Q") for _ in range(dimensions))
        type_id, offset = cursor.number("I"), cursor.number("Q")
        if math.prod(shape) >= 2**63:
            raise BadCheckpoint(f"expected fewer than 2^63 elements, found {shape}", where=name)
        if offset % alignment:
            raise BadCheckpoint(f"expected an offset divisible by {alignment}, found {offset}", where=name)
        found.append((name, type_id, shape, offset))
    start = _aligned(cursor.offset, alignment)
    tensors: dict[str, GgufTensor] = {}
    for name, type_id, shape, offset in found:
        if name in tensors:
            raise BadCheckpoint("the tensor appears twice", where=name)
        size = _tensor_bytes(name, type_id, shape)
        end = None if size is None else start + offset + size
        tensors[name] = GgufTensor(name, path, type_id, shape, start + offset, end)
    return tensors


def _tensor_bytes(name: str, type_id: int, shape: tuple[int, ...]) -> int | None:
    if type_id not in TENSOR_TYPES:
        return None
    label, block, size = TENSOR_TYPES[type_id]
    if shape and shape[0] % block:
        raise BadCheckpoint(f"expected rows in blocks of {block} for {label}, found rows of {shape[0]}", where=name)
    return math.prod(shape) // block * size


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
