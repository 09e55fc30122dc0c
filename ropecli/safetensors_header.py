"""Safetensors files by their headers: names, types, shapes and byte ranges; never a pickle, never all the data.

Layout (safetensors, README "Format"): 8 bytes N, little-endian; N bytes of JSON, name → {dtype, shape, data_offsets};
then the data. Offsets count from the end of the header, leave no hole and do not overlap.
"""

import gc
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ropecli.errors import BadCheckpoint, RopeError
from ropecli.strict_json import parse_json, read_member

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

HEADER_BYTES = 100_000_000
"""The longest header that the safetensors library reads."""

HEADER_VALUES = 2**21
"""The most values in one header or index: about 230,000 tensors a file, or two million in an index."""

INDEX_BYTES = 150_000_000
"""The longest index that is read; a million tensors take about 100 bytes each."""

MAX_SHARDS = 10_000
"""The most files that an index may name. Real ones stay below 1,000."""

DTYPE_BITS: Mapping[str, int] = (
    {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    | dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
    | dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)
    | dict.fromkeys(("I32", "U32", "F32"), 32)
    | dict.fromkeys(("I64", "U64", "F64", "C64"), 64)
)
"""Bits of one element, by the names of safetensors 0.8."""

MAX_PROBLEMS = 100
"""How many problems of a file or a folder are listed; of the rest, their number is."""

_METADATA = re.compile(rb'\A\s*\{\s*"__metadata__"\s*:\s*\{([^{}]*)\}')


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `begin` and `end` are absolute byte offsets in `file`, `dtype` is safetensors' name."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the files of a checkpoint: `where` names the file and the tensor, `hint` what to do."""

    where: str
    problem: str
    hint: str = ""

    @classmethod
    def of(cls, error: RopeError) -> "Problem":
        """What an error says."""
        return cls(error.where, error.problem, error.hint)

    @property
    def error(self) -> BadCheckpoint:
        """The same, to be raised by whoever cannot go on."""
        return BadCheckpoint(self.problem, where=self.where, hint=self.hint)


@dataclass(frozen=True, slots=True)
class Header:
    """One file's tensors in the order of their data, its own metadata, and what is wrong with it."""

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    problems: tuple[Problem, ...]


def read_header(file: Path) -> Header:
    """The header of a safetensors file. What is wrong with it is listed, not raised."""
    try:
        return _read_header(file)
    except BadCheckpoint as error:
        return Header((), {}, (Problem(": ".join(filter(None, (str(file), error.where))), error.problem, error.hint),))
    except OSError as error:
        return Header((), {}, (Problem(str(file), f"cannot be read: {error.strerror or error}"),))


def peek_metadata(file: Path) -> bytes:
    """The raw text of a header's metadata, or nothing. Cheap: reads four KiB, where writers put it first."""
    try:
        if not file.is_file():
            return b""
        with file.open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return b""
    found = _METADATA.match(head[8:])
    return found[1] if found else b""


def tensor_headers(folder: Path) -> dict[str, TensorInfo]:
    """Name → place of every tensor in a folder's safetensors files, those that transformers would load.

    `model.safetensors` if it is there, else the shards that the index names, else every `*.safetensors`.

    Raises BadCheckpoint at the first problem.
    """
    tensors, problems = survey(folder)
    if problems:
        raise problems[0].error
    return tensors


def read_tensor(info: TensorInfo) -> bytes:
    """The raw little-endian bytes of one tensor.

    Raises BadCheckpoint where the file has become shorter or unreadable.
    """
    try:
        with info.file.open("rb") as file:
            file.seek(info.begin)
            data = file.read(info.end - info.begin)
    except OSError as error:
        raise BadCheckpoint(f"cannot be read: {error.strerror or error}", where=f"{info.file}: {info.name}") from error
    if len(data) != info.end - info.begin:
        raise BadCheckpoint(
            f"expected {info.end - info.begin} bytes at offset {info.begin}, found {len(data)}",
            where=f"{info.file}: {info.name}",
            hint="the file changed while it was read, or is cut short",
        )
    return data


def survey(folder: Path) -> tuple[dict[str, TensorInfo], tuple[Problem, ...]]:
    """Every tensor of a folder, and everything that is wrong with its safetensors files."""
    with _uncollected():
        return _survey(folder)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the search for cycles, of which headers have none: it takes a third of the time of a million tensors."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _survey(folder: Path) -> tuple[dict[str, TensorInfo], tuple[Problem, ...]]:
    index = folder / INDEX_NAME
    single = folder / SINGLE_NAME
    if _present(single) or not _present(index):
        files = [single] if _present(single) else sorted(folder.glob("*.safetensors"))
        if not files:
            return {}, (_no_weights(folder),)
        merged = _Merged()
        merged.add(_shards(folder, [file.name for file in files]))
        return merged.tensors, _first(merged.problems(), str(folder))
    try:
        weight_map = _weight_map(index)
    except BadCheckpoint as error:
        return {}, (Problem.of(error),)
    merged = _Merged(folder, weight_map)
    merged.add(_shards(folder, sorted(set(weight_map.values()))))
    return merged.tensors, _first(merged.problems(), str(folder))


def _present(file: Path) -> bool:
    return file.is_symlink() or file.exists()


def _no_weights(folder: Path) -> Problem:
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        return Problem(
            str(folder),
            f"expected safetensors weights, found only pickles such as {pickles[0]}",
            "pickles can run code and are never opened; convert them to safetensors first",
        )
    return Problem(str(folder), "expected safetensors weights, found none", f"{SINGLE_NAME} or {INDEX_NAME} is needed")


def as_weight_map(value: object, index: str) -> dict[str, str]:
    """The member `weight_map` of an index. Raises BadCheckpoint where it is not tensor name → file name."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise BadCheckpoint(
            "expected an object of tensor name → file name", where=f"{index}: weight_map", hint="rebuild the index"
        )
    return value


def _weight_map(index: Path) -> dict[str, str]:
    found = read_member(index, "weight_map", max_bytes=INDEX_BYTES, max_values=HEADER_VALUES)
    weight_map = as_weight_map(found, str(index))
    shards = len(set(weight_map.values()))
    if shards > MAX_SHARDS:
        raise BadCheckpoint(
            f"expected at most {MAX_SHARDS:,} files, found {shards:,}",
            where=f"{index}: weight_map",
            hint="rebuild the index",
        )
    return weight_map


def _shards(folder: Path, names: Sequence[str]) -> Iterator[Header]:
    """The headers of all these files; none is read twice, or a thousand links to one would cost a thousand reads."""
    first: dict[tuple[int, int], str] = {}
    for name in names:
        try:
            status = (folder / name).stat()
        except (OSError, ValueError):
            yield _shard(folder, name)
            continue
        before = first.setdefault((status.st_dev, status.st_ino), name)
        same = Problem(str(folder / name), f"is the same file as {before}", "remove one of them")
        yield _shard(folder, name) if before == name else Header((), {}, (same,))


def _shard(folder: Path, name: str) -> Header:
    """The header of a file that the folder or its index names; a name that leads out of the folder is not followed."""
    where = str(folder / INDEX_NAME)
    if _escapes(name):
        return Header((), {}, (Problem(where, f"expected a file inside the folder, found {name!r}"),))
    file = folder / name
    try:
        target = file.resolve(strict=True)
        home = folder.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        problem = "is a link that leads nowhere" if os.path.islink(file) else "is missing"  # noqa: PTH114 - never raises
        return Header((), {}, (Problem(str(file), problem, "download the checkpoint again"),))
    if home not in target.parents and not _lawful_link(target):
        return Header(
            (), {}, (Problem(str(file), f"is a link out of the folder, to {target}", "replace it by a copy"),)
        )
    return read_header(file)


def _escapes(name: str) -> bool:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    rooted = posix.is_absolute() or windows.is_absolute() or bool(windows.drive)
    return not name or "\0" in name or rooted or ".." in posix.parts or ".." in windows.parts


def _lawful_link(target: Path) -> bool:
    """Weights are shared by links to other safetensors files and into the Hub cache, whose blobs have no suffix."""
    return target.suffix == ".safetensors" or target.parent.name == "blobs"


def _first(problems: Iterable[Problem], where: str, more: int = 0) -> tuple[Problem, ...]:
    """At most `MAX_PROBLEMS`, and the number of those left out, `more` of which nobody made."""
    rest = iter(problems)
    first = tuple(islice(rest, MAX_PROBLEMS))
    more += sum(1 for _ in rest)
    return (*first, Problem(where, f"and {more:,} more problems")) if more else first


class _Merged:
    """The tensors of many headers, and what is wrong between them.

    Of an index, a name is forgotten once its tensor is found where it should be: a million names are held once.
    """

    def __init__(self, folder: Path = Path(), weight_map: dict[str, str] | None = None) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self._folder, self._indexed, self._unplaced = folder, weight_map is not None, weight_map or {}
        self._places = {shard: folder / shard for shard in set(self._unplaced.values())}
        self._unread: list[Problem] = []
        self._again: list[TensorInfo] = []
        self._strays: list[TensorInfo] = []

    def add(self, headers: Iterable[Header]) -> None:
        """Take in these headers, of which the first that has a tensor counts."""
        for header in headers:
            self._unread += header.problems
            for info in header.tensors:
                if self.tensors.setdefault(info.name, info) is not info:
                    self._again.append(info)
                    continue
                shard = self._unplaced.get(info.name)
                if shard is None:
                    self._strays.append(info)
                elif self._places[shard] == info.file:
                    del self._unplaced[info.name]

    def problems(self) -> Iterator[Problem]:
        """Of the files, of tensors in two of them, and of the index."""
        yield from self._unread
        for info in self._again:
            yield Problem(
                f"{info.file}: {info.name}",
                f"the tensor is also in {self.tensors[info.name].file.name}",
                "readers disagree on which one counts; remove one",
            )
        index = self._folder / INDEX_NAME
        unread = {problem.where for problem in self._unread}
        for name, shard in self._unplaced.items():
            found = self.tensors.get(name)
            if found is not None:
                problem = f"expected in {shard}, found in {found.file.name}"
                yield Problem(f"{index}: {name}", problem, "rebuild the index")
            elif not _escapes(shard) and str(self._places[shard]) not in unread:
                yield Problem(f"{index}: {name}", f"the tensor is not in {shard}", "download the checkpoint again")
        for info in self._strays if self._indexed else ():
            yield Problem(f"{info.file}: {info.name}", "the index does not name this tensor", "rebuild the index")


def _read_header(file: Path) -> Header:
    if not file.is_file():
        raise BadCheckpoint("expected a regular file, found something else")
    size = file.stat().st_size
    again = "the file is cut short or is no safetensors file; download it again"
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise BadCheckpoint(f"expected a safetensors file, found {size} bytes", hint=again)
        length = int.from_bytes(prefix, "little")
        if length > size - 8:
            raise BadCheckpoint(f"the header says it has {length} bytes, the file has {size}", hint=again)
        if length > HEADER_BYTES:
            raise BadCheckpoint(f"expected a header of at most {HEADER_BYTES} bytes, found {length}", hint=again)
        blob = stream.read(length)
    entries, _ = parse_json(blob, max_bytes=HEADER_BYTES, max_values=HEADER_VALUES)
    del blob
    metadata = entries.pop("__metadata__", {})
    problems: list[Problem] = []
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        problems.append(Problem(f"{file}: __metadata__", "expected an object of strings"))
        metadata = {}
    tensors: list[TensorInfo] = []
    more = 0
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    for name, entry in entries.items():
        found = _tensor(name, entry, file, 8 + length, shapes)
        if isinstance(found, TensorInfo):
            tensors.append(found)
        elif len(problems) < MAX_PROBLEMS:
            problems.append(Problem(f"{file}: {name}", found))
        else:
            more += 1
    tensors.sort(key=lambda info: (info.begin, info.end))
    found_between = _coverage(tensors, file, 8 + length, size, bool(problems))
    return Header(tuple(tensors), metadata, _first(chain(problems, found_between), str(file), more))


def _tensor(
    name: str, entry: Any, file: Path, start: int, shapes: dict[tuple[int, ...], tuple[int, ...]]
) -> TensorInfo | str:
    """One entry of a header, or what is wrong with it; equal shapes are one in `shapes`, for there are few."""
    if not isinstance(entry, dict):
        return "expected an object with dtype, shape and data_offsets"
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        return f"expected one of {', '.join(DTYPE_BITS)}, found dtype {dtype!r:.60}"
    if not isinstance(shape, list) or len(shape) > 64 or not all(map(_is_size, shape)):
        return f"expected a shape of whole numbers, found {shape!r:.60}"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        return f"expected two data_offsets, found {offsets!r:.60}"
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if (end - begin) * 8 != bits:
        taken = f"{-(-bits // 8)} bytes" if bits < 2**66 else "more bytes than a file can have"
        return f"{dtype} {shape!r:.60} takes {taken}, its data_offsets span {end - begin}"
    once = shapes.setdefault(tuple(shape), tuple(shape))
    return TensorInfo(name, file, sys.intern(dtype), once, start + begin, start + end)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _coverage(tensors: list[TensorInfo], file: Path, start: int, size: int, incomplete: bool) -> Iterator[Problem]:
    """Holes, overlaps and ranges outside the file; `tensors` in the order of their data."""
    reached = start
    for info in tensors:
        if info.begin < reached:
            yield Problem(
                f"{file}: {info.name}", f"the tensor overlaps the one before it by {reached - info.begin} bytes"
            )
        elif info.begin > reached and not incomplete:
            yield Problem(f"{file}: {info.name}", f"{info.begin - reached} bytes before the tensor belong to none")
        reached = max(reached, info.end)
    if reached > size:
        yield Problem(
            str(file), f"the header places tensors up to byte {reached}, the file has {size}", "download it again"
        )
    elif reached < size and not incomplete:
        yield Problem(str(file), f"{size - reached} bytes at the end belong to no tensor", "download it again")
