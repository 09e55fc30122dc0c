"""Copies are the same bytes, whoever copies: the kernel, or blocks where it does not."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ropecli.byte_copy import BLOCK, copy_file, copy_range, reserve
from ropecli.errors import BadCheckpoint

DATA = os.urandom(BLOCK + 12345)


def failing(number: int) -> Any:
    """A system call that always fails so."""

    def fails(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fails


@pytest.fixture(params=["kernel", "other file system", "no such call", "no reservation"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of more than a block, on a system that copies in one of these ways."""
    if request.param == "other file system":
        monkeypatch.setattr(os, "copy_file_range", failing(errno.EXDEV), raising=False)
    if request.param == "no such call":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    if request.param == "no reservation":
        monkeypatch.setattr(fcntl, "ioctl", failing(errno.ENOTTY))
    (tmp_path / "source").write_bytes(DATA)
    return tmp_path / "source"


def test_a_copy_has_the_same_bytes(source: Path) -> None:
    """Content and size, also of an empty file: space that was reserved does not show."""
    for data in (DATA, b"", b"a"):
        source.write_bytes(data)
        target = source.with_name(f"copy of {len(data)}")
        copy_file(source, target)
        assert target.read_bytes() == data


def test_a_range_goes_where_the_writer_stands(source: Path) -> None:
    """Between bytes that are written by hand, and both files stand behind the range afterwards."""
    target = source.with_name("target")
    with source.open("rb") as reader, target.open("xb") as writer:
        writer.write(b"before")
        copy_range(reader, writer, 100, BLOCK + 200)
        assert reader.read(3) == DATA[BLOCK + 200 : BLOCK + 203]
        writer.write(b"after")
    assert target.read_bytes() == b"before" + DATA[100 : BLOCK + 200] + b"after"


def test_a_file_that_ends_early_is_told(source: Path) -> None:
    """The file became shorter while it was read: its name and the place."""
    with (
        source.open("rb") as reader,
        source.with_name("target").open("xb") as writer,
        pytest.raises(BadCheckpoint, match=f"at offset {len(DATA)}"),
    ):
        copy_range(reader, writer, 0, len(DATA) + 1)


def test_an_existing_target_is_not_replaced(source: Path) -> None:
    """The target must be new."""
    with pytest.raises(FileExistsError):
        copy_file(source, source)


def test_a_full_disk_is_told_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space that can not be reserved is an error; a file system that can not reserve is none."""
    (tmp_path / "source").write_bytes(DATA)
    monkeypatch.setattr(fcntl, "ioctl", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        copy_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b""
    monkeypatch.setattr(fcntl, "ioctl", failing(errno.EOPNOTSUPP))
    with (tmp_path / "other").open("xb") as writer:
        reserve(writer, 1000)
