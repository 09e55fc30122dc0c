"""Bytes of one file into another: by the kernel where it copies, in blocks where it does not."""

import errno
import os
import shutil
import struct
from pathlib import Path
from typing import BinaryIO

from ropecli.errors import BadCheckpoint

BLOCK = 2**22
"""Bytes copied at a time, where the kernel does not copy by itself."""

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
"""What the system says where there is no room, or none for this user."""

_RESERVE = 0x4030582A
"""FS_IOC_RESVSP64 of Linux: takes the space, and leaves the file's size. `posix_fallocate` would write it full of zeros
where the file system cannot reserve."""


def reserve(writer: BinaryIO, size: int) -> None:
    """Take the space for an empty file at once, where the file system can: it then writes by a third faster.

    Raises OSError where there is no such space.
    """
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows

        fcntl.ioctl(writer.fileno(), _RESERVE, struct.pack("=hhxxxxqqiI16x", 0, 0, 0, size, 0, 0))
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file; `target` must not exist. Raises OSError as the disk does."""
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        reserve(writer, size)
        reader.seek(_copied_by_kernel(reader, writer, 0, size))
        shutil.copyfileobj(reader, writer, BLOCK)


def copy_range(reader: BinaryIO, writer: BinaryIO, begin: int, end: int) -> None:
    """Copy the bytes from `begin` up to `end` of one file to where the other stands; both then stand behind them.

    Raises BadCheckpoint where the file has become shorter; OSError as the disk does.
    """
    done = _copied_by_kernel(reader, writer, begin, end)
    reader.seek(done)
    while done < end:
        block = reader.read(min(BLOCK, end - done))
        if not block:
            raise BadCheckpoint(f"the file became shorter while it was read, at offset {done}", where=str(reader.name))
        writer.write(block)
        done += len(block)


def _copied_by_kernel(reader: BinaryIO, writer: BinaryIO, begin: int, end: int) -> int:
    """How far in the source the kernel came: nowhere on systems and between file systems where it does not copy."""
    writer.flush()
    done, at = begin, writer.tell()
    if not hasattr(os, "copy_file_range"):
        return done
    try:
        while done < end:
            count = os.copy_file_range(reader.fileno(), writer.fileno(), end - done, done, at)
            if not count:
                break
            done, at = done + count, at + count
    except OSError as error:
        if error.errno in FULL | {errno.EIO}:
            raise
    writer.seek(at)
    return done
