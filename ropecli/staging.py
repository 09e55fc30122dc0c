"""A private folder beside an output, in which it is made whole, and the one step in which it appears.

A run holds a lock on its folder for as long as it lives. What a killed run left behind has none, and the next run
that writes the same output removes it.
"""

import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ropecli.errors import NoResource, OutputExists

_NAME_BYTES = 150
"""So much of the output's name goes into the folder's: a name may have 255 bytes."""

_MARK = ".ropecli-"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """A name to make a file or a folder at; it becomes `out` when the block ends well, and vanishes when it does not.

    force  take the place of what is there; without it nothing is replaced, also not what appears in the meantime
    Raises OutputExists.
    """
    with private_folder(out) as holder:
        stage = holder / out.name
        yield stage
        with _Signals():
            if force and os.path.lexists(out):
                _replace(stage, out, holder / "replaced")
            else:
                _appear(stage, out)


def write_whole(content: bytes | str, out: Path, *, force: bool) -> None:
    """Write a small file that appears whole or not at all; text as UTF-8.

    force  take the place of a file that is there; without it nothing is replaced
    The folder must exist. Raises OutputExists and NoResource.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with staged(out, force=force) as stage:
            write_new(stage, data)
    except OSError as error:
        raise NoResource(f"cannot be written ({error.strerror})", where=str(out)) from error


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, and see it onto the disk: a name must not outlive what it stands for."""
    with path.open("xb") as writer:
        writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())


@contextmanager
def private_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that only this user can enter; it is gone when the block ends."""
    prefix = f".{os.fsdecode(os.fsencode(out.name)[:_NAME_BYTES])}{_MARK}"
    for left in sorted(out.parent.glob(f"{_literal(prefix)}*")):
        _sweep(left, out)
    with _Signals() as signals:
        holder, lock = _locked_folder(out.parent, prefix)
        try:
            signals.come()
            yield holder
        finally:
            try:
                signals.wait()
            finally:  # also where one came just before
                shutil.rmtree(holder, ignore_errors=True)
                if lock is not None:
                    os.close(lock)


class _Signals:
    """Signals whose handlers end what runs: inside the block they wait, and come at its end or when they are let."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.come()

    def wait(self) -> None:
        """From here on they are only noted; those that nobody handles do what they do."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")):
            if number is not None and callable(signal.getsignal(number)):
                self._handlers[number] = signal.signal(number, lambda number, _: self._came.append(number))

    def come(self) -> None:
        """Their handlers are back, and those that came in the meantime are run."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())
        while self._came:
            signal.raise_signal(self._came.pop(0))


def is_staging(name: str) -> bool:
    """Whether a folder of this name is one of these, of a run that goes on or that was killed."""
    return name.startswith(".") and _MARK in name


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """A new folder and its lock. A run that starts at the same moment may take it for a leftover: then another one."""
    while True:
        holder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        try:
            lock = _lock(holder)
        except (BlockingIOError, FileNotFoundError):
            continue
        if holder.exists():
            return holder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder; None where there are no locks. Raises BlockingIOError where it is held."""
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(left: Path, out: Path) -> None:
    """Remove what a killed run left; an output that it had moved away for a moment goes back first."""
    try:
        lock = _lock(left)
    except OSError:
        return
    if lock is None:
        return
    with suppress(OSError):
        if os.path.lexists(left / "replaced") and not os.path.lexists(out):
            (left / "replaced").rename(out)
    shutil.rmtree(left, ignore_errors=True)
    os.close(lock)


def _appear(stage: Path, out: Path) -> None:
    """Give `stage` the name `out` if nothing has it. Raises OutputExists."""
    taken = OutputExists("appeared while it was being written", where=str(out), hint="choose another name")
    if os.path.lexists(out):
        raise taken
    try:
        if stage.is_dir():
            stage.rename(out)  # which takes the place of nothing but an empty folder
        else:
            out.hardlink_to(stage)
    except OSError as error:
        if os.path.lexists(out):
            raise taken from error
        stage.rename(out)  # a file system without hard links


def _replace(stage: Path, out: Path, aside: Path) -> None:
    """Give `stage` the name of what is at `out`, in one step where the system can."""
    if not stage.is_dir() and not out.is_dir():
        stage.replace(out)
    elif not _exchanged(stage, out):
        out.rename(aside)
        try:
            stage.rename(out)
        except OSError:
            aside.rename(out)
            raise


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two names (renameat2 of Linux); False where the system or the file system cannot."""
    import ctypes  # noqa: PLC0415 - only replacing a folder needs it

    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)
