"""The deed: stage beside the target, read it back, rename. An output folder is complete or absent.

The source is only ever read. Weights of the output are reflinks, hard links, symbolic links or copies of the source's,
whichever `--weights` and the file system allow. Small files are never links: a tool that later writes a tokenizer into
the output must not reach the source through them.
"""

import errno
import filecmp
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ropecli.byte_copy import FULL, copy_file
from ropecli.checkpoint import Checkpoint, read_checkpoint, read_json, tensor_headers, verify
from ropecli.conversion import Conversion
from ropecli.errors import BadCheckpoint, BadUsage, CheckFailed, NoResource, OutputExists, RopeError
from ropecli.frequencies import TOLERANCE, frequencies, largest_difference
from ropecli.safetensors_header import HEADER_VALUES, INDEX_BYTES, INDEX_NAME
from ropecli.spec import RopeSpec
from ropecli.staging import is_staging, private_folder, staged, write_new
from ropecli.strict_json import read_text
from ropecli.tables import SHARD, SIDECAR, verify_tables, write_tables
from ropecli.weight_edits import rewrite_shard

Weights: TypeAlias = Literal["auto", "hardlink", "reflink", "symlink", "copy", "none"]
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".h5", ".msgpack", ".onnx")
LEFT_BEHIND = (".git", ".cache", "__pycache__")

FACTOR_TOLERANCE = 1e-6
"""Largest difference of an attention factor that is read back from one that was written."""

_FICLONE = 0x40049409


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was written: the folder, its files by how they came there, and how many bytes are new on the disk."""

    path: Path
    files: Mapping[str, str]
    new_bytes: int
    table_error: float | None = None


def carried_files(source: Path) -> dict[str, Path]:
    """Relative name → file, for everything that goes along; links are followed, folders of tools are left behind.

    Raises BadCheckpoint for a link that leads nowhere, or in a circle, and for what cannot be looked at.
    """
    try:
        return dict(_walk(source, source, (source.resolve(),)))
    except OSError as error:
        raise BadCheckpoint(f"cannot be read ({error.strerror})", where=str(error.filename or source)) from error


def _walk(source: Path, folder: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists():
            raise BadCheckpoint("the link leads nowhere", where=str(path), hint="download the checkpoint again")
        if path.is_symlink() and path.is_file() and _leaks(source, path):
            raise BadCheckpoint(
                f"is a link out of the folder, to {path.resolve()}, whose content would go into the output",
                where=str(path),
                hint="replace it by a copy, if it belongs to the checkpoint",
            )
        if path.is_dir() and path.name not in LEFT_BEHIND and not is_staging(path.name):
            real = path.resolve()
            if real in above:
                raise BadCheckpoint("the link leads back to a folder around it", where=str(path), hint="remove it")
            yield from _walk(source, path, (*above, real))
        elif path.is_file():
            yield str(path.relative_to(source)), path
        elif not path.is_dir():
            raise BadCheckpoint("expected a file or a folder, found a device or a pipe", where=str(path))


def _leaks(source: Path, link: Path) -> bool:
    """Whether a link leads to what is no part of a checkpoint, such as a key of the user's.

    Parts of another checkpoint keep their names, and the blobs of a Hub cache have names of their own. Weights have a
    rule of their own (`safetensors_header`).
    """
    target = link.resolve()
    home = source.resolve() in target.parents
    return (
        not home and target.name != link.name and target.parent.name != "blobs" and link.suffix not in WEIGHT_SUFFIXES
    )


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
                copy_file(source, target)
    except OSError as error:
        if error.errno in FULL:
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


def _ways(name: str, weights: Weights) -> tuple[str, ...]:
    """How a file may come into the output, the best way first."""
    if not name.endswith(WEIGHT_SUFFIXES):
        return ("copy",) if weights == "copy" else ("reflink", "copy")
    return ("reflink", "hardlink", "copy") if weights == "auto" else (weights,)


def place(source: Path, target: Path, weights: Weights) -> str:
    """Put one file of the source at `target`; returns how. Raises NoResource where the chosen way is impossible."""
    for how in _ways(source.name, weights):
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
    """(files that go along, bytes that would be written at most); looks, and touches nothing.

    Raises what `write` would before it writes, but does not mind an output that exists. Where none is named, a lone
    config is looked at by itself.
    """
    source = conversion.checkpoint.path
    lone = out is None and source is not None and source.is_file()
    files = {} if lone else _carried(conversion, weights)
    if out is not None:
        _check_target(source or out, out, force=True)
    place_of_out = out or (source or Path()).absolute()
    return len(files), _most_bytes(conversion, files, place_of_out, weights)


def _most_bytes(conversion: Conversion, files: Mapping[str, Path], out: Path, weights: Weights) -> int:
    """What is written at most: copies, texts, tables, and shards whose weights are scaled."""
    copied = {name: path for name, path in files.items() if name not in conversion.scaled}
    shards = sum(files[name].stat().st_size for name in conversion.scaled if name in files)
    tables = conversion.tables.size if conversion.tables is not None else 0
    return _copied_bytes(copied, out, weights) + shards + _text_bytes(conversion) + tables


def _text_bytes(conversion: Conversion) -> int:
    return sum(len(text.encode()) for text in conversion.texts.values())


def index_text(folder: Path) -> str | None:
    """The text of model.safetensors.index.json, not yet parsed, where there is one. Raises BadCheckpoint."""
    path = folder / INDEX_NAME
    return read_text(path, max_bytes=INDEX_BYTES, max_values=HEADER_VALUES) if path.is_file() else None


def _copied_bytes(files: Mapping[str, Path], out: Path, weights: Weights) -> int:
    """What the copies take on the disk of `out`, if it makes no reflinks."""
    device = out.parent.stat().st_dev
    sizes = [
        path.stat().st_size
        for name, path in files.items()
        if "copy" in (ways := _ways(name, weights)) and ("hardlink" not in ways or path.stat().st_dev != device)
    ]
    return sum(sizes)


def _carried(conversion: Conversion, weights: Weights) -> dict[str, Path]:
    source = conversion.checkpoint.path
    if source is None:
        raise BadUsage("a config on standard input cannot be converted", hint="name a checkpoint folder")
    if not source.is_dir():
        raise BadUsage("expected a checkpoint folder", where=str(source), hint=f"try {source.parent}")
    typed = Path(conversion.checkpoint.source)
    if typed.is_dir() and not typed.samefile(source):
        raise BadUsage(
            f"is an adapter, whose base model is {source}",
            where=str(typed),
            hint="merge it into its base, or convert the base",
        )
    files = {name: path for name, path in carried_files(source).items() if name not in conversion.texts}
    files.pop(SIDECAR, None)  # it says what the old config meant
    if INDEX_NAME in conversion.texts or not (source / INDEX_NAME).exists():
        files.pop(SHARD, None)
    if conversion.tables is not None:
        files.pop(conversion.tables.name, None)
    if weights == "none":
        if conversion.scaled:
            raise BadUsage("the attention factor goes into the weights, which none leaves out", where="--weights")
        return {name: path for name, path in files.items() if not name.endswith(WEIGHT_SUFFIXES)}
    entries = [path.name for path in source.iterdir()]  # a folder of such a name is none of the files
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in entries):
        tensor_headers(source)
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
    if out.is_symlink() and not out.exists():
        raise OutputExists("is a link that leads nowhere", where=str(out), hint="remove it, or choose another name")
    if out.exists() and not (out.is_dir() and (out / "config.json").exists()):
        raise OutputExists("is not a checkpoint, so it is not replaced", where=str(out), hint="choose another name")


def _check_unchanged(path: Path, before: os.stat_result) -> None:
    now = path.stat()
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise BadCheckpoint("the file changed while it was copied", where=str(path), hint="wait until it is complete")


def _check_space(needed: int, out: Path) -> None:
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise NoResource(
            f"the output needs {needed:,} bytes, {free:,} are free",
            where=str(out.parent),
            hint="free some space, or write to the source's file system, where weights are linked instead of copied",
        )


def prove(folder: Path, intent: Mapping[str, RopeSpec], name: str) -> None:
    """Read the written checkpoint and recompute. Raises CheckFailed if it does not mean what was asked.

    folder  where it lies now; name  what errors call it
    """
    report = "ropecli writes this architecture wrongly: try --schema v5, and please report it"
    try:
        ropes = {rope.name: rope.spec for rope in read_checkpoint(str(folder)).ropes}
    except RopeError as error:
        problem = error.message.replace(str(folder), name)
        raise CheckFailed(f"the written config cannot be read: {problem}", where=name, hint=report) from error
    for layers, spec in intent.items():
        if layers not in ropes:
            raise CheckFailed(f"the written config has no layers {layers!r}", where=name, hint=report)
        for length in (spec.original_length, spec.max_length):
            found, wanted = frequencies(ropes[layers], length), frequencies(spec, length)
            off = largest_difference(found, wanted)
            if off > TOLERANCE or abs(found.attention_factor - wanted.attention_factor) > FACTOR_TOLERANCE:
                raise CheckFailed(
                    f"the written config means other numbers than asked: frequencies differ by {off:.2g}, attention "
                    f"factor {found.attention_factor:g} instead of {wanted.attention_factor:g}",
                    where=f"{name}: {layers}",
                    hint=report,
                )


def _prove_weights(folder: Path, conversion: Conversion, name: str, weights: Weights) -> None:
    """Read back what was baked. Raises CheckFailed where a table is not the config's, or a shard is not whole."""
    resharded = bool(conversion.scaled) or INDEX_NAME in conversion.texts
    if conversion.tables is None and not resharded:
        return
    written = read_checkpoint(str(folder))
    shards = verify(written) if resharded and weights != "none" else ()
    for problem in (*verify_tables(folder, written), *shards):
        raise CheckFailed(problem.problem, where=problem.where.replace(str(folder), name), hint="please report it")


def write(conversion: Conversion, out: Path, *, weights: Weights = "auto", force: bool = False) -> Receipt:
    """Carry out a conversion. Everything that can be checked is checked before the first byte is written.

    Raises BadUsage, OutputExists, BadCheckpoint, NoResource; CheckFailed where the read-back disagrees. After any of
    them `out` is as it was.
    """
    files = _carried(conversion, weights)
    _check_target(conversion.checkpoint.path or out, out, force=force)
    _check_space(_most_bytes(conversion, files, out, weights), out)
    ways: dict[str, str] = {}
    new_bytes = 0
    table_error: float | None = None
    try:
        with staged(out, force=force) as stage:
            stage.mkdir()
            # copies last: an fsync after them would wait, on ext4, until all of their data is on the disk
            for name, text in conversion.texts.items():
                new_bytes += _write_text(stage / name, text)
                ways[name] = "rewritten"
            if conversion.tables is not None:
                table_error = write_tables(conversion.tables, stage / conversion.tables.name)
                ways[conversion.tables.name] = "baked"
                new_bytes += conversion.tables.size
            for name in sorted(files, key=lambda name: name not in conversion.scaled):
                path, target = files[name], stage / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if name in conversion.scaled:
                    rewrite_shard(path, target, conversion.scaled[name])
                    ways[name] = "rewritten"
                else:
                    before = path.stat()
                    ways[name] = place(path, target, weights)
                    _check_unchanged(path, before)
                new_bytes += path.stat().st_size if ways[name] in ("copy", "rewritten") else 0
            prove(stage, conversion.intent, str(out))
            _prove_weights(stage, conversion, str(out), weights)
    except OSError as error:
        raise not_written(error, out) from error
    return Receipt(out, ways, new_bytes, table_error)


def rewrite_in_place(conversion: Conversion, *, force: bool = False) -> Receipt:
    """Replace the rewritten texts in the source folder itself; each old file stays beside the new one as NAME.backup.

    The new config is proved before anything is touched, and config.json is replaced last: a run that is cut off can be
    started again.
    Raises BadUsage for a source that is not a plain folder, or a conversion that is more than texts; OutputExists where
    a backup is there already.
    """
    folder, targets = _in_place(conversion, force=force)
    try:
        with private_folder(folder / "config.json") as stage:
            for target in targets:
                _write_text(stage / target.name, conversion.texts[target.name])
            prove(stage, conversion.intent, str(folder))
            for target in targets:
                kept = stage / f"{target.name}.backup"
                shutil.copy2(target, kept)
                kept.replace(target.with_name(kept.name))
            for target in targets:
                shutil.copymode(target, stage / target.name)
                (stage / target.name).replace(target)
    except OSError as error:
        raise not_written(error, folder) from error
    return Receipt(folder, dict.fromkeys(conversion.texts, "rewritten"), _text_bytes(conversion))


def survey_in_place(conversion: Conversion, *, force: bool = False) -> int:
    """Bytes that `rewrite_in_place` would write. Touches nothing, and raises what that would before it writes."""
    _in_place(conversion, force=force)
    return _text_bytes(conversion)


def _in_place(conversion: Conversion, *, force: bool) -> tuple[Path, list[Path]]:
    """The folder and the files in it to rewrite, config.json last. Raises BadUsage and OutputExists."""
    folder = conversion.checkpoint.path
    if folder is None or not folder.is_dir():
        raise BadUsage("expected a checkpoint folder", where=conversion.checkpoint.source)
    if conversion.tables is not None or conversion.scaled:
        raise BadUsage("baking writes a new folder", where="--in-place", hint="give --output instead")
    for name in (SIDECAR, SHARD):
        if (folder / name).exists():
            raise BadUsage(
                "holds tables of the old config", where=str(folder / name), hint="use --output, or delete it"
            )
    targets = [folder / name for name in sorted(conversion.texts, key=lambda name: name == "config.json")]
    for target in targets:
        backup = target.with_name(target.name + ".backup")
        if target.is_symlink() or folder.is_symlink():
            raise BadUsage(
                "a link, as in a Hub cache, is never written through", where=str(target), hint="use --output"
            )
        if os.path.lexists(backup) and not force and not _is_copy(backup, target):
            raise OutputExists("already exists", where=str(backup), hint="move it away, or replace it with --force")
    return folder, targets


def _is_copy(backup: Path, target: Path) -> bool:
    """Whether a backup holds what it is the backup of: an earlier run was cut off before it replaced anything."""
    return backup.is_file() and not backup.is_symlink() and filecmp.cmp(backup, target, shallow=False)


def _write_text(path: Path, text: str) -> int:
    """Write a new file of text; returns its bytes."""
    data = text.encode("utf-8")
    write_new(path, data)
    return len(data)


def not_written(error: OSError, out: Path) -> NoResource:
    """Why an output is not there, in words."""
    problem = "the disk is full" if error.errno in FULL else f"cannot be written ({error.strerror})"
    return NoResource(problem, where=str(out), hint="check space and rights")
