"""Safetensors files by their headers: names, types, shapes and byte ranges; never a pickle, never all the data.

Layout (safetensors, README "Format"): 8 bytes N, little-endian; N bytes of JSON, name → {dtype, shape, data_offsets};
then the data. Offsets count from the end of the header, leave no hole and do not overlap.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ropecli.errors import BadCheckpoint
from ropecli.strict_json import parse_json, read_json

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

HEADER_BYTES = 100_000_000
"""The longest header that the safetensors library reads."""

HEADER_VALUES = 2**21
"""The most values in one header or index: about 230,000 tensors a file, or two million in an index."""

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
        raise BadCheckpoint(problems[0].problem, where=problems[0].where, hint=problems[0].hint)
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
    index = folder / INDEX_NAME
    single = folder / SINGLE_NAME
    if _present(single) or not _present(index):
        files = [single] if _present(single) else sorted(folder.glob("*.safetensors"))
        if not files:
            return {}, (_no_weights(folder),)
        tensors, problems = _merged(_shards(folder, [file.name for file in files]))
        return tensors, _first(problems, str(folder))
    try:
        weight_map = _weight_map(index)
    except BadCheckpoint as error:
        return {}, (Problem(error.where, error.problem, error.hint),)
    shards = _shards(folder, sorted(set(weight_map.values())))
    tensors, problems = _merged(shards)
    problems += _index_against_headers(folder, weight_map, tensors, problems)
    return tensors, _first(problems, str(folder))


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


def _weight_map(index: Path) -> dict[str, str]:
    data, _ = read_json(index, max_bytes=2 * HEADER_BYTES, max_values=HEADER_VALUES)
    weight_map = data.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise BadCheckpoint(
            "expected an object of tensor name → file name", where=f"{index}: weight_map", hint="rebuild the index"
        )
    return weight_map


def _shards(folder: Path, names: Sequence[str]) -> list[Header]:
    """The headers of all these files; none is read twice, or a thousand links to one would cost a thousand reads."""
    first: dict[tuple[int, int], str] = {}
    headers = []
    for name in names:
        try:
            status = (folder / name).stat()
        except (OSError, ValueError):
            headers.append(_shard(folder, name))
            continue
        before = first.setdefault((status.st_dev, status.st_ino), name)
        same = Problem(str(folder / name), f"is the same file as {before}", "remove one of them")
        headers.append(_shard(folder, name) if before == name else Header((), {}, (same,)))
    return headers


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


def _first(problems: Sequence[Problem], where: str) -> tuple[Problem, ...]:
    """At most `MAX_PROBLEMS`, and the number of those left out."""
    if len(problems) <= MAX_PROBLEMS:
        return tuple(problems)
    return (*problems[:MAX_PROBLEMS], Problem(where, f"and {len(problems) - MAX_PROBLEMS:,} more problems"))


def _merged(headers: list[Header]) -> tuple[dict[str, TensorInfo], list[Problem]]:
    tensors: dict[str, TensorInfo] = {}
    problems = [problem for header in headers for problem in header.problems]
    for header in headers:
        for info in header.tensors:
            first = tensors.setdefault(info.name, info)
            if first is not info:
                problems.append(
                    Problem(
                        f"{info.file}: {info.name}",
                        f"the tensor is also in {first.file.name}",
                        "readers disagree on which one counts; remove one",
                    )
                )
    return tensors, problems


def _index_against_headers(
    folder: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo], found: Sequence[Problem]
) -> list[Problem]:
    index = folder / INDEX_NAME
    unread = {problem.where for problem in found}
    places = {shard: folder / shard for shard in set(weight_map.values())}
    problems: list[Problem] = []
    for name, shard in weight_map.items():
        info = tensors.get(name)
        if info is None and not _escapes(shard) and str(places[shard]) not in unread:
            problems.append(
                Problem(f"{index}: {name}", f"the tensor is not in {shard}", "download the checkpoint again")
            )
        elif info is not None and info.file != places[shard]:
            problem = f"expected in {shard}, found in {info.file.name}"
            problems.append(Problem(f"{index}: {name}", problem, "rebuild the index"))
    strays = [info for name, info in tensors.items() if name not in weight_map]
    return problems + [
        Problem(f"{info.file}: {info.name}", "the index does not name this tensor", "rebuild the index")
        for info in strays
    ]


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
    metadata = entries.pop("__metadata__", {})
    problems: list[Problem] = []
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        problems.append(Problem(f"{file}: __metadata__", "expected an object of strings"))
        metadata = {}
    tensors: list[TensorInfo] = []
    for name, entry in entries.items():
        found = _tensor(name, entry, file, 8 + length)
        if isinstance(found, TensorInfo):
            tensors.append(found)
        else:
            problems.append(Problem(f"{file}: {name}", found))
    tensors.sort(key=lambda info: (info.begin, info.end))
    problems += _coverage(tensors, file, 8 + length, size, bool(problems))
    return Header(tuple(tensors), metadata, _first(problems, str(file)))


def _tensor(name: str, entry: Any, file: Path, start: int) -> TensorInfo | str:
    """One entry of a header, or what is wrong with it."""
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
    return TensorInfo(name, file, dtype, tuple(shape), start + begin, start + end)


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
