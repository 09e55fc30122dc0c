"""The deed: stage beside the target, read it back, rename. An output folder is complete or absent.

The source is only ever read. A file of the output that is not rewritten is a reflink, a hard link or a copy of the
source's, whichever the file system and `--weights` allow.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ropecli.checkpoint import Checkpoint, read_checkpoint, read_json
from ropecli.conversion import Conversion
from ropecli.errors import BadCheckpoint, BadUsage, CheckFailed, NoResource, OutputExists
from ropecli.frequencies import Frequencies, frequencies
from ropecli.spec import RopeSpec

Weights: TypeAlias = Literal["auto", "hardlink", "reflink", "symlink", "copy", "none"]
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".h5", ".msgpack", ".onnx")
LEFT_BEHIND = (".git", ".cache", "__pycache__")

FREQUENCY_TOLERANCE = 5e-5
"""Relative; snapping α and β moves the ramp by at most this much (DESIGN: every runtime the same numbers)."""
FACTOR_TOLERANCE = 1e-6

_FICLONE = 0x40049409


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was written: the folder, its files by how they came there, and how many bytes are new on the disk."""

    path: Path
    files: Mapping[str, str]
    new_bytes: int


def carried_files(source: Path) -> dict[str, Path]:
    """Relative name → file, for everything that goes along; links are resolved, folders of tools are left behind.

    Raises BadCheckpoint for a link that leads nowhere.
    """
    found: dict[str, Path] = {}
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if name not in LEFT_BEHIND)
        for name in sorted(files):
            path = Path(folder) / name
            if not path.exists():
                raise BadCheckpoint("the link leads nowhere", where=str(path), hint="download the checkpoint again")
            if path.is_file():
                found[str(path.relative_to(source))] = path
    return found


def _link(source: Path, target: Path, how: str) -> bool:
    """Put `source` at `target` in one way; False where the file system cannot."""
    try:
        match how:
            case "reflink":
                with source.open("rb") as reader, target.open("xb") as writer:
                    _clone(reader.fileno(), writer.fileno())
            case "hardlink":
                target.hardlink_to(source.resolve())
            case "symlink":
                target.symlink_to(source.resolve())
            case _:
                with source.open("rb") as reader, target.open("xb") as writer:
                    shutil.copyfileobj(reader, writer, 2**22)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoResource(
                "the disk is full", where=str(target), hint="free some space, or --weights hardlink"
            ) from error
        if how == "copy":
            raise NoResource(f"cannot be copied ({error.strerror})", where=str(source)) from error
        target.unlink(missing_ok=True)
        return False
    return True


def _clone(source: int, target: int) -> None:
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows
    except ImportError as error:
        raise OSError(errno.ENOTSUP, "no reflinks here") from error
    fcntl.ioctl(target, _FICLONE, source)


def place(source: Path, target: Path, weights: Weights) -> str:
    """Put one file of the source at `target`; returns how. Raises NoResource where the chosen way is impossible."""
    ways = {"auto": ("reflink", "hardlink", "copy")}.get(weights, (weights,))
    for how in ways:
        if _link(source, target, how):
            return how
    raise NoResource(
        f"the file system cannot {weights} it", where=str(source), hint="try --weights auto, or --weights copy"
    )


def tokenizer_text(checkpoint: Checkpoint) -> str | None:
    """The text of tokenizer_config.json, where the checkpoint has one."""
    path = checkpoint.path / "tokenizer_config.json" if checkpoint.path is not None else None
    if path is None or not path.is_file():
        return None
    return read_json(path)[1]


def survey(conversion: Conversion, out: Path | None, weights: Weights) -> tuple[int, int]:
    """(files that go along, bytes that would be written); looks, and touches nothing."""
    files = _carried(conversion, weights)
    linked = weights != "copy" and (out is None or all(_same_device(path, out) for path in files.values()))
    copied = 0 if linked else sum(path.stat().st_size for path in files.values())
    return len(files), copied + sum(len(text.encode()) for text in conversion.texts.values())


def _carried(conversion: Conversion, weights: Weights) -> dict[str, Path]:
    source = conversion.checkpoint.path
    if source is None:
        raise BadUsage("a config on standard input cannot be converted", hint="name a checkpoint folder")
    if not source.is_dir():
        raise BadUsage("expected a checkpoint folder", where=str(source), hint=f"try {source.parent}")
    files = {name: path for name, path in carried_files(source).items() if name not in conversion.texts}
    if weights == "none":
        files = {name: path for name, path in files.items() if not name.endswith(WEIGHT_SUFFIXES)}
    return files


def _check_target(source: Path, out: Path, *, force: bool) -> None:
    if not out.parent.is_dir():
        raise BadUsage("the folder to write into does not exist", where=str(out.parent), hint=f"mkdir -p {out.parent}")
    real_source, real_out = source.resolve(), out.resolve()
    if real_out == real_source or real_source in real_out.parents or real_out in real_source.parents:
        raise BadUsage(
            "the output lies in the source, or the source in it", where=str(out), hint="choose another folder"
        )
    if (out.exists() or out.is_symlink()) and not force:
        raise OutputExists("already exists", where=str(out), hint="choose another name, or replace it with --force")
    if out.exists() and not (out.is_dir() and (out / "config.json").exists()):
        raise OutputExists("is not a checkpoint, so it is not replaced", where=str(out), hint="choose another name")


def _check_space(files: Mapping[str, Path], out: Path, weights: Weights) -> None:
    copied = [
        path for path in files.values() if weights == "copy" or (weights != "none" and not _same_device(path, out))
    ]
    needed = sum(path.stat().st_size for path in copied)
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise NoResource(
            f"the copy needs {needed:,} bytes, {free:,} are free",
            where=str(out.parent),
            hint="write to the source's file system, where weights are linked instead of copied",
        )


def _same_device(path: Path, out: Path) -> bool:
    return path.stat().st_dev == out.parent.stat().st_dev


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A private folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not."""
    holder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    stage = holder / out.name
    try:
        stage.mkdir()
        yield stage
        old = holder / "replaced"
        if out.exists():
            out.rename(old)
        try:
            stage.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def worst_difference(found: Frequencies, wanted: Frequencies) -> float:
    """The largest relative difference of two tables; pairs that stand still in both do not count."""
    pairs = zip(found.inv_freq, wanted.inv_freq, strict=True)
    return max(abs(a - b) / max(abs(a), abs(b)) if a or b else 0.0 for a, b in pairs)


def prove(folder: Path, intent: Mapping[str, RopeSpec]) -> None:
    """Read the written checkpoint and recompute. Raises CheckFailed if it does not mean what was asked."""
    ropes = {rope.name: rope.spec for rope in read_checkpoint(str(folder)).ropes}
    for name, spec in intent.items():
        if name not in ropes:
            raise CheckFailed(f"the written config has no layers {name!r}", where=str(folder))
        for length in (spec.original_length, spec.max_length):
            found, wanted = frequencies(ropes[name], length), frequencies(spec, length)
            off = worst_difference(found, wanted) if len(found.inv_freq) == len(wanted.inv_freq) else float("inf")
            if off > FREQUENCY_TOLERANCE or abs(found.attention_factor - wanted.attention_factor) > FACTOR_TOLERANCE:
                raise CheckFailed(
                    f"the written config means other numbers than asked: frequencies differ by {off:.2g}, attention "
                    f"factor {found.attention_factor:g} instead of {wanted.attention_factor:g}",
                    where=f"{folder}: {name}",
                    hint="this is a fault of ropecli or an architecture it misreads; please report it",
                )


def write(conversion: Conversion, out: Path, *, weights: Weights = "auto", force: bool = False) -> Receipt:
    """Carry out a conversion. Everything that can be checked is checked before the first byte is written.

    Raises BadUsage, OutputExists, BadCheckpoint, NoResource; CheckFailed where the read-back disagrees. After any of
    them `out` is as it was.
    """
    files = _carried(conversion, weights)
    _check_target(conversion.checkpoint.path or out, out, force=force)
    _check_space(files, out, weights)
    ways: dict[str, str] = {}
    new_bytes = 0
    try:
        with staged(out) as stage:
            for name, path in files.items():
                target = stage / name
                target.parent.mkdir(parents=True, exist_ok=True)
                small = not name.endswith(WEIGHT_SUFFIXES) and weights == "none"
                ways[name] = place(path, target, "auto" if small else weights)
                new_bytes += path.stat().st_size if ways[name] == "copy" else 0
            for name, text in conversion.texts.items():
                data = text.encode("utf-8")
                with (stage / name).open("xb") as writer:
                    writer.write(data)
                    writer.flush()
                    os.fsync(writer.fileno())
                ways[name] = "rewritten"
                new_bytes += len(data)
            prove(stage, conversion.intent)
    except OSError as error:
        raise NoResource(
            f"cannot be written ({error.strerror})", where=str(out), hint="check space and rights"
        ) from error
    return Receipt(out, ways, new_bytes)
