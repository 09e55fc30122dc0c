"""`ropecli.safetensors_header`: headers against the safetensors library, and everything that can be wrong with them."""

import gc
import json
import math
import os
import struct
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ropecli.errors import BadCheckpoint
from ropecli.safetensors_header import (
    DTYPE_BITS,
    INDEX_NAME,
    MAX_PROBLEMS,
    MAX_SHARDS,
    SINGLE_NAME,
    peek_metadata,
    read_header,
    read_tensor,
    survey,
    tensor_headers,
)

DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1"}


def raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with exactly this header, whether it makes sense or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def sharded(folder: Path, shards: Mapping[str, list[str]], weight_map: Mapping[str, object] | None = None) -> Path:
    """Shards of one-byte tensors with an index, by default the right one."""
    for file, names in shards.items():
        save_file({name: np.zeros(1, np.uint8) for name in names}, folder / file)
    right = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": 1}, "weight_map": right if weight_map is None else weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    return folder


def problems(folder: Path) -> list[tuple[str, str]]:
    """(place within the folder, problem) of everything that is found."""
    return [(p.where.replace(f"{folder}/", ""), p.problem) for p in survey(folder)[1]]


class TestAgainstTheLibrary:
    """What the safetensors library writes is read as the library reads it."""

    @settings(max_examples=40, deadline=None)
    @given(
        st.dictionaries(
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
            st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
            max_size=6,
        ),
        st.dictionaries(st.sampled_from(["format", "note"]), st.text(st.characters(codec="utf-8"), max_size=5)),
    )
    def test_tensors(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        wanted: dict[str, tuple[str, list[int]]],
        metadata: dict[str, str],
    ) -> None:
        """Names, types, shapes, bytes and metadata are those of the library, and nothing is found wrong."""
        path = tmp_path_factory.mktemp("t") / SINGLE_NAME
        rng = np.random.default_rng(0)
        arrays = {name: rng.integers(0, 100, shape).astype(DTYPES[dtype]) for name, (dtype, shape) in wanted.items()}
        # With no tensors, safetensors 0.8 writes an empty metadata block that it cannot read back.
        save_file(arrays, path, metadata or None)
        header = read_header(path)
        assert header.problems == ()
        assert {info.name: (info.dtype, list(info.shape)) for info in header.tensors} == wanted
        for info in header.tensors:
            assert read_tensor(info) == arrays[info.name].tobytes()
        with safe_open(path, "np") as file:
            assert header.metadata == (file.metadata() or {})

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_damage(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        """Of a file with one damaged byte, or cut short, what the library refuses has problems here, too."""
        path = tmp_path_factory.mktemp("d") / SINGLE_NAME
        save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.int8)}, path, {"format": "pt"})
        blob = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(blob) - 1))
        if data.draw(st.booleans()):
            del blob[place:]
        else:
            blob[place] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(blob))
        found = read_header(path).problems
        try:
            load_file(path)
        except Exception:  # noqa: BLE001 - the library's errors have no common class
            assert found

    def test_every_dtype_has_its_size(self, tmp_path: Path) -> None:
        """Each type is accepted by the library with the size that is used here."""
        for dtype, bits in DTYPE_BITS.items():
            path = raw(tmp_path / "x.safetensors", {"a": entry(0, bits, [8], dtype)}, b"\0" * bits)
            with safe_open(path, "np") as file:
                assert list(file.keys()) == ["a"]
            assert read_header(path).problems == ()
            wrong = raw(tmp_path / "y.safetensors", {"a": entry(0, bits + 8, [8], dtype)}, b"\0" * (bits + 8))
            with pytest.raises(Exception, match="nvalid"):
                safe_open(wrong, "np").__enter__()
            assert read_header(wrong).problems


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: p.write_bytes(b""), "found 0 bytes"),
        (lambda p: p.write_bytes(b"1234567"), "found 7 bytes"),
        (lambda p: raw(p, {}, length=2**63), f"says it has {2**63} bytes"),
        (lambda p: raw(p, {}, length=3), "says it has 3 bytes, the file has 10"),
        (lambda p: raw(p, b"{]"), "not JSON at line 1"),
        (lambda p: raw(p, b"[]"), "found a list"),
        (lambda p: raw(p, b'{"a": 1, "a": 1}'), "appears twice"),
        (lambda p: raw(p, {"a": 1}), "expected an object"),
        (lambda p: raw(p, {"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"12"), "takes 2 bytes"),
        (lambda p: raw(p, {"a": entry(0, 1, dtype="F31")}, b"1"), "found dtype 'F31'"),
        (lambda p: raw(p, {"a": {"dtype": ["F32"], "shape": [], "data_offsets": [0, 4]}}, b"1234"), "found dtype"),
        (lambda p: raw(p, {"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"1"), "expected a shape"),
        (lambda p: raw(p, {"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, b"1"), "expected a shape"),
        (lambda p: raw(p, {"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"1"), "expected a shape"),
        (lambda p: raw(p, {"a": entry(0, 1, [2**62] * 64)}, b"1"), "more bytes than a file can have"),
        (lambda p: raw(p, {"a": entry(0, 1, [1] * 100_000)}, b"1"), "expected a shape"),
        (lambda p: raw(p, {"a": {"dtype": "U8", "shape": [1]}}, b"1"), "expected two data_offsets"),
        (lambda p: raw(p, {"a": entry(0, 2**63, [2**63])}), "expected a shape"),
        (lambda p: raw(p, {"a": entry(0, 2**62)}), f"places tensors up to byte {2**62 + 104}, the file has 104"),
        (lambda p: raw(p, {"a": entry(3, 1, [0])}), "its data_offsets span -2"),
        (lambda p: raw(p, {"a": entry(0, 4), "b": entry(2, 6)}, b"123456"), "overlaps the one before it by 2 bytes"),
        (lambda p: raw(p, {"a": entry(0, 4), "b": entry(0, 4)}, b"1234"), "overlaps the one before it by 4 bytes"),
        (lambda p: raw(p, {"a": entry(0, 2), "b": entry(3, 4)}, b"1234"), "1 bytes before the tensor belong to none"),
        (lambda p: raw(p, {"a": entry(0, 2)}, b"12345"), "3 bytes at the end belong to no tensor"),
        (lambda p: raw(p, {"a": entry(0, 4)}, b"12"), "the file has"),
        (lambda p: raw(p, {"__metadata__": {"format": 1}}), "expected an object of strings"),
        (lambda p: raw(p, {"__metadata__": []}), "expected an object of strings"),
        (lambda p: p.mkdir(), "regular file"),
        (os.mkfifo, "regular file"),
    ],
    ids=range(29),
)
def test_broken_header(tmp_path: Path, make: Callable[[Path], object], expected: str) -> None:
    """Each way to break a file gives a problem that names the file, and makes `tensor_headers` refuse the folder."""
    path = tmp_path / SINGLE_NAME
    make(path)
    found = read_header(path).problems
    assert any(expected in problem.problem for problem in found), found
    assert all(problem.where.startswith(str(path)) and len(problem.problem) < 300 for problem in found)
    with pytest.raises(BadCheckpoint):
        tensor_headers(tmp_path)


def test_many_problems_are_counted(tmp_path: Path) -> None:
    """An index of thousands of tensors that are not there is a list of a hundred and a count."""
    sharded(
        tmp_path, {"1.safetensors": ["a"]}, {"a": "1.safetensors"} | {f"t{n}": "1.safetensors" for n in range(3000)}
    )
    found = problems(tmp_path)
    assert (len(found), found[-1]) == (MAX_PROBLEMS + 1, (str(tmp_path), "and 2,900 more problems"))


def test_all_problems_of_a_file_are_listed(tmp_path: Path) -> None:
    """Several broken tensors are all named, not only the first."""
    path = raw(tmp_path / SINGLE_NAME, {"a": 1, "b": entry(0, 1, dtype="X"), "ok": entry(0, 2)}, b"12")
    assert [problem.where for problem in read_header(path).problems] == [f"{path}: a", f"{path}: b"]


class TestFolders:
    """Which files count, and the index against the headers in both directions."""

    def test_single_file_wins_over_the_index(self, tmp_path: Path) -> None:
        """As in transformers, model.safetensors is loaded where it exists, whatever an index says."""
        sharded(tmp_path, {"x.safetensors": ["b"]})
        save_file({"a": np.zeros(1, np.uint8)}, tmp_path / SINGLE_NAME)
        assert list(tensor_headers(tmp_path)) == ["a"]

    def test_files_without_an_index(self, tmp_path: Path) -> None:
        """Without an index all files of the folder count."""
        for name in "ab":
            save_file({name: np.zeros(1, np.uint8)}, tmp_path / f"{name}.safetensors")
        assert sorted(tensor_headers(tmp_path)) == ["a", "b"]

    def test_whole(self, tmp_path: Path) -> None:
        """A right index over right shards has no problems, in folders below as well."""
        (tmp_path / "sub").mkdir()
        sharded(tmp_path, {"1.safetensors": ["a", "b"], "sub/2.safetensors": ["c"]})
        tensors, found = survey(tmp_path)
        assert (sorted(tensors), found) == (["a", "b", "c"], ())
        assert tensors["c"].file == tmp_path / "sub" / "2.safetensors"

    def test_no_weights(self, tmp_path: Path) -> None:
        """A folder without safetensors says so, and names the pickles that it has."""
        assert "found none" in problems(tmp_path)[0][1]
        (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        assert "only pickles such as pytorch_model.bin" in problems(tmp_path)[0][1]

    def test_missing_shard(self, tmp_path: Path) -> None:
        """A shard that is missing is one problem, not one for each of its tensors."""
        sharded(tmp_path, {"1.safetensors": ["a"], "2.safetensors": ["b", "c"]})
        (tmp_path / "2.safetensors").unlink()
        assert problems(tmp_path) == [("2.safetensors", "is missing")]

    def test_truncated_shard(self, tmp_path: Path) -> None:
        """A shard that is cut short is named with the sizes."""
        sharded(tmp_path, {"1.safetensors": ["a"], "2.safetensors": ["b", "c"]})
        whole = (tmp_path / "2.safetensors").read_bytes()
        (tmp_path / "2.safetensors").write_bytes(whole[:-1])
        assert problems(tmp_path) == [
            ("2.safetensors", f"the header places tensors up to byte {len(whole)}, the file has {len(whole) - 1}")
        ]

    def test_index_and_headers_disagree(self, tmp_path: Path) -> None:
        """A tensor that only one side knows, or that lies elsewhere, is found from both sides."""
        weight_map = {"a": "1.safetensors", "c": "1.safetensors", "gone": "2.safetensors"}
        sharded(tmp_path, {"1.safetensors": ["a", "extra"], "2.safetensors": ["c"]}, weight_map)
        assert problems(tmp_path) == [
            (f"{INDEX_NAME}: c", "expected in 1.safetensors, found in 2.safetensors"),
            (f"{INDEX_NAME}: gone", "the tensor is not in 2.safetensors"),
            ("1.safetensors: extra", "the index does not name this tensor"),
        ]

    def test_tensor_twice(self, tmp_path: Path) -> None:
        """A tensor in two shards is named with both."""
        sharded(tmp_path, {"1.safetensors": ["a", "b"], "2.safetensors": ["a"]})
        assert ("2.safetensors: a", "the tensor is also in 1.safetensors") in problems(tmp_path)

    @pytest.mark.parametrize(
        "name",
        ["../x.safetensors", "a/../../x", "/etc/passwd", "..\\x", "C:\\x", "\\\\host\\x", "", "a\0b", "..", "\ud800"],
    )
    def test_index_that_escapes(self, tmp_path: Path, name: str) -> None:
        """An index that leads out of its folder is refused, and what it names is not looked at."""
        folder = tmp_path / "model"
        folder.mkdir()
        save_file({"a": np.zeros(1, np.uint8)}, tmp_path / "x.safetensors")
        sharded(folder, {"1.safetensors": ["b"]}, {"a": name, "b": "1.safetensors"})
        tensors, found = survey(folder)
        assert "a" not in tensors
        assert len(found) == 1
        with pytest.raises(BadCheckpoint):
            tensor_headers(folder)

    def test_links(self, tmp_path: Path) -> None:
        """A link to another safetensors file or into the Hub's blobs is followed; any other link out is not."""
        folder = tmp_path / "model"
        for place in (folder, tmp_path / "blobs", tmp_path / "other"):
            place.mkdir()
        save_file({"a": np.zeros(1, np.uint8)}, tmp_path / "other" / "a.safetensors")
        save_file({"b": np.zeros(1, np.uint8)}, tmp_path / "blobs" / "0123abcd")
        (tmp_path / "secret").write_text("secret")
        links = {"a": "other/a.safetensors", "b": "blobs/0123abcd", "c": "secret", "d": "nothing", "e": "model/e"}
        for name, target in links.items():
            (folder / f"{name}.safetensors").symlink_to(tmp_path / target)
        (folder / "e").symlink_to(folder / "e.safetensors")
        sharded(folder, {}, {name: f"{name}.safetensors" for name in links})
        tensors, _ = survey(folder)
        assert sorted(tensors) == ["a", "b"]
        assert problems(folder) == [
            ("c.safetensors", f"is a link out of the folder, to {tmp_path / 'secret'}"),
            ("d.safetensors", "is a link that leads nowhere"),
            ("e.safetensors", "is a link that leads nowhere"),
        ]

    @pytest.mark.parametrize(
        "index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": {}}}']
    )
    def test_broken_index(self, tmp_path: Path, index: str) -> None:
        """An index that is none is one problem that names it."""
        (tmp_path / INDEX_NAME).write_text(index)
        assert [where.split(":")[0] for where, _ in problems(tmp_path)] == [INDEX_NAME]


def test_a_thousand_problems_are_counted(tmp_path: Path) -> None:
    """Of many problems of one kind the first hundred are listed, and the number of the others."""
    sharded(
        tmp_path, {"1.safetensors": ["a"]}, {"a": "1.safetensors"} | {f"t{n}": "1.safetensors" for n in range(1000)}
    )
    found = problems(tmp_path)
    assert len(found) == MAX_PROBLEMS + 1
    assert found[0] == (f"{INDEX_NAME}: t0", "the tensor is not in 1.safetensors")
    assert found[-1][1] == "and 900 more problems"


def test_an_index_of_too_many_files(tmp_path: Path) -> None:
    """Each file is looked for, so there is a bound on them."""
    sharded(tmp_path, {}, {f"t{n}": f"{n}.safetensors" for n in range(MAX_SHARDS + 1)})
    assert problems(tmp_path) == [(f"{INDEX_NAME}: weight_map", "expected at most 10,000 files, found 10,001")]


def test_cycles_are_collected_again(tmp_path: Path) -> None:
    """Python's collector, which a survey does without, is as it was before, also where it was off."""
    survey(tmp_path)
    assert gc.isenabled()
    gc.disable()
    try:
        survey(tmp_path)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_file_that_shrinks(tmp_path: Path) -> None:
    """A tensor whose bytes are no longer there is refused instead of being short."""
    save_file({"a": np.zeros(8, np.uint8)}, tmp_path / SINGLE_NAME)
    info = tensor_headers(tmp_path)["a"]
    with (tmp_path / SINGLE_NAME).open("r+b") as file:
        file.truncate(info.end - 1)
    with pytest.raises(BadCheckpoint, match="expected 8 bytes"):
        read_tensor(info)
    (tmp_path / SINGLE_NAME).unlink()
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        read_tensor(info)


def test_only_the_header_is_read(tmp_path: Path) -> None:
    """A sparse file of two terabytes is verified in no time and with no memory."""
    size = 2**41
    path = raw(tmp_path / SINGLE_NAME, {"a": entry(0, size)})
    start = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(start + size)
    tracemalloc.start()
    found = survey(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[1] == ()
    assert peak < 2**20


def test_metadata_at_the_front(tmp_path: Path) -> None:
    """The peek at the metadata gives the text that the library wrote, and nothing for any other file."""
    save_file({"a": np.zeros(1, np.uint8)}, tmp_path / "a", {"format": "mlx"})
    assert json.loads(b"{" + peek_metadata(tmp_path / "a") + b"}") == {"format": "mlx"}
    (tmp_path / "b").write_bytes(b"12345678" + b'{"a": {"format": "mlx"}}')
    assert peek_metadata(tmp_path / "b") == peek_metadata(tmp_path / "missing") == peek_metadata(tmp_path) == b""


def test_hostile_header_is_cheap(tmp_path: Path) -> None:
    """A header of many small tensors up to the limit of values is read, or refused, in bounded time and memory."""
    text = b"{" + b",".join(b'"%d":{}' % n for n in range(200_000)) + b"}"
    started = time.process_time()
    found = read_header(raw(tmp_path / "x", text)).problems
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1].problem == "and 199,900 more problems"
    assert time.process_time() - started < 30
    assert "at most" in read_header(raw(tmp_path / "x", b'{"a":[' + b"0," * 3_000_000 + b"0]}")).problems[0].problem


header_texts = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", ""]),
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from([*DTYPE_BITS, "X", None, 3]),
            "shape": st.lists(st.integers(-1, 2**64) | st.floats() | st.booleans(), max_size=3) | st.none(),
            "data_offsets": st.lists(st.integers(-1, 2**64) | st.integers(0, 16), max_size=3) | st.text(max_size=2),
        },
    )
    | st.integers()
    | st.lists(st.integers(), max_size=2),
)


@settings(max_examples=200, deadline=None)
@given(header_texts | st.binary(max_size=60), st.binary(max_size=16), st.none() | st.integers(0, 2**64 - 1))
def test_only_problems_come_out(
    tmp_path_factory: pytest.TempPathFactory, header: object, data: bytes, length: int | None
) -> None:
    """Whatever a file holds, it gives tensors that lie inside it, or problems; never an exception."""
    path = raw(tmp_path_factory.mktemp("f") / SINGLE_NAME, header, data, length)
    found = read_header(path)
    assert found.problems or all(info.end <= path.stat().st_size for info in found.tensors)
    assert all(math.prod(info.shape) * DTYPE_BITS[info.dtype] == 8 * (info.end - info.begin) for info in found.tensors)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=6), st.text(max_size=8) | st.sampled_from(["1.safetensors", "..", "/"])))
def test_any_index(tmp_path_factory: pytest.TempPathFactory, weight_map: dict[str, str]) -> None:
    """Whatever names an index holds, only files of the folder are read, and problems are listed."""
    folder = sharded(tmp_path_factory.mktemp("i"), {"1.safetensors": ["a"]}, weight_map)
    tensors, _ = survey(folder)
    assert all(info.file.resolve().parent == folder.resolve() for info in tensors.values())
