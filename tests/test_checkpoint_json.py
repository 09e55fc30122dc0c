"""`ropecli.strict_json`: one object, no key twice, bounded in size and depth, and every refusal says where."""

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropecli.errors import BadCheckpoint
from ropecli.strict_json import MAX_DEPTH, non_finite_keys, parse_json, read_json, read_member

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


def outcome(blob: bytes) -> dict[str, Any] | BadCheckpoint:
    try:
        return parse_json(blob)[0]
    except BadCheckpoint as error:
        return error


def problem(blob: bytes) -> BadCheckpoint:
    with pytest.raises(BadCheckpoint) as caught:
        parse_json(blob)
    return caught.value


@settings(max_examples=60)
@given(json_objects)
def test_reads_what_json_writes(value: dict[str, object]) -> None:
    """Every object that Python's json writes is read back equal, with its exact text."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        blob = text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value)
        blob = text.encode()
    assert parse_json(blob) == (value, text)


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (b"", "found nothing"),
        (b" \n\t", "found nothing"),
        (b"\0" * 100, "not JSON at line 1, column 1"),
        (b'{"a": 1', "not JSON at line 1, column 8"),
        (b'{\n "a": 1,\n "b" 2}', "not JSON at line 3, column 6"),
        (b'{"a": 1} trailing', "not JSON at line 1, column 10"),
        (b"{'a': 1}", "not JSON at line 1, column 2"),
        (b'{"a": "\n"}', "not JSON at line 1, column 8"),
        (b"[]", "found a list"),
        (b'"x"', "found a string"),
        (b"3", "found a number"),
        (b"true", "found true or false"),
        (b"null", "found null"),
        (b"\xff\xfe{\x00}\x00", "found byte 0xff on line 1"),
        (b'{"a":\n"\xe9"}', "found byte 0xe9 on line 2"),
        (b'{"a": ' + b"1" * 400 + b"}", "found 400 digits"),
        (b'{"a": ' + b"1" * 5000 + b"}", "found 5000 digits"),
        (b"[" * 10_000, "levels of nesting"),
        (b'{"a":' * 10_000, "levels of nesting"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "levels of nesting"),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "levels of nesting"),
        (b'{"a": [' + b"1," * 2_000_000 + b"1]}", "at most 1048576 values"),
    ],
    ids=range(22),
)
def test_refused(blob: bytes, expected: str) -> None:
    """What is not one reasonable JSON object is refused, with the line and column where there is one."""
    assert expected in problem(blob).problem


def test_deepest_allowed() -> None:
    """Nesting up to the limit is read."""
    assert parse_json(b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")[0]


@pytest.mark.parametrize(
    ("text", "where", "values"),
    [
        ('{"rope_theta": 1e4, "x": 2, "rope_theta": 5e5}', "rope_theta", "10000.0 and as 500000.0"),
        ('{"a": {"b": 1, "b": [2]}}', "b", "1 and as a list"),
        ('{"a": 1, "a": 1}', "a", "1 and as 1"),
        ('{"": "' + "x" * 500 + '", "": {}}', "", "..."),
    ],
    ids=range(4),
)
def test_repeated_keys(text: str, where: str, values: str) -> None:
    """A key that appears twice in one object is refused with both its values, even where they are equal."""
    error = problem(text.encode())
    assert error.where == where
    assert values in error.problem
    assert len(error.problem) < 250


def test_same_key_in_different_objects() -> None:
    """The neighbour of a repeated key is the same key in different objects."""
    assert parse_json(b'{"a": {"k": 1}, "b": {"k": 1}}')[0] == {"a": {"k": 1}, "b": {"k": 1}}


def test_not_finite() -> None:
    """NaN and infinities are read as Python does, and found by their keys, overflown numbers among them."""
    value, _ = parse_json(b'{"a": NaN, "b": {"c": [0, Infinity, {"d": -Infinity}]}, "e": 1e999, "f": 1.0}')
    assert list(non_finite_keys(value)) == ["a", "b.c[1]", "b.c[2].d", "e"]


def test_files(tmp_path: Path) -> None:
    """Of a file, the errors name the path."""
    missing = tmp_path / "config.json"
    for make, expected in ((missing.parent.exists, "No such file"), (missing.mkdir, "regular file")):
        make()
        with pytest.raises(BadCheckpoint, match=expected) as caught:
            read_json(missing)
        assert caught.value.where.startswith(str(missing))


def test_gigabyte_of_zeros(tmp_path: Path) -> None:
    """A huge file is refused after reading no more than the limit."""
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**30)
    tracemalloc.start()
    try:
        with pytest.raises(BadCheckpoint, match="at most 32 MiB"):
            read_json(path)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "blob",
    [b'{"a":[' + b"[],[]," * 250_000 + b"0]}", b'{"a":"' + b"\\u0041" * 5_000_000 + b'"}', b'{"' + b"k" * 30_000_000],
    ids=["many lists", "many escapes", "long key"],
)
def test_hostile_texts_are_cheap(blob: bytes) -> None:
    """Texts made to be slow or large are over in seconds, and take a bounded amount of memory."""
    started = time.process_time()
    tracemalloc.start()
    result = outcome(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(result, dict) or len(result.message) < 500
    assert peak < 400 * 2**20
    assert time.process_time() - started < 30


@settings(max_examples=150)
@given(
    st.binary(max_size=200) | st.text(alphabet='{}[]",:0123456789eE+-.\\ntrufalsINy \n', max_size=60).map(str.encode)
)
def test_only_our_error_comes_out(blob: bytes) -> None:
    """Whatever the bytes, the result is an object or a BadCheckpoint of one line."""
    result = outcome(blob)
    assert isinstance(result, dict) or "\n" not in result.message


LIMITS = {"max_bytes": 2**20, "max_values": 2**16}


def member(path: Path, blob: bytes) -> Any:
    path.write_bytes(blob)
    try:
        return read_member(path, "k", **LIMITS)
    except BadCheckpoint as error:
        return error.message


def whole(path: Path, blob: bytes) -> Any:
    path.write_bytes(blob)
    try:
        return read_json(path, **LIMITS)[0].get("k")
    except BadCheckpoint as error:
        return error.message


@settings(max_examples=100)
@given(json_objects | st.dictionaries(st.sampled_from(["k", "other"]), json_objects), st.sampled_from([None, 1]))
def test_a_member_is_that_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, object], indent: int | None
) -> None:
    """Read alone, a member is what it is in the object that `read_json` reads."""
    path = tmp_path_factory.mktemp("m") / "index.json"
    assert member(path, json.dumps(value, indent=indent).encode()) == value.get("k")


@settings(max_examples=300)
@given(st.integers(0, 60), st.sampled_from(['"', "{", "}", ",", ":", "[", " ", "\\", "\x01", "1", ""]))
def test_a_damaged_member_is_refused_as_the_whole_is(
    tmp_path_factory: pytest.TempPathFactory, place: int, sign: str
) -> None:
    """One character put in the place of another: the same value, or the same refusal on the same line."""
    text = '{"m": {"a": [1, {}]}, \n"k": {"a.b": "x", "b": "x", "c": ""}}'
    blob = (text[:place] + sign + text[place + 1 :]).encode()
    path = tmp_path_factory.mktemp("d") / "index.json"
    found, wanted = member(path, blob), whole(path, blob)
    assert found == wanted or found.split(", column")[0] == wanted.split(", column")[0]


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b" \n",
        b"[]",
        b"3",
        b'{"k": {}} trailing',
        b'{"k": {"a": 1, "a": 2}}',
        b'{"k": {}, "k": {}}',
        b'{"m": {"a": 1, "a": 2}, "k": {}}',
        b'\xef\xbb\xbf{"k": {"a": "b"}}',
        b'{"k": "\xff"}',
        b'{"k": {"a" 1}}',
        b'{"k": {"a": }}',
        b'{"k": {"a": 1',
        b'{"k": {"a": "',
        b'{"k": ' + b"1" * 400 + b"}",
        b'{"k": {"a": ' + b"[" * (MAX_DEPTH - 2) + b"]" * (MAX_DEPTH - 2) + b"}}",
        b'{"k": {"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}}",
        b'{"m": ' + b"[" * 10_000 + b"}",
        b'{"k": [' + b"1," * 70_000 + b"1]}",
        b'{"k": "' + b"a" * 2**20 + b'"}',
        b'{"k": NaN, "m": 1}',
    ],
    ids=range(21),
)
def test_a_member_is_refused_as_the_whole_is(tmp_path: Path, blob: bytes) -> None:
    """What is no reasonable JSON object is refused in the same words, also where it is beside the member."""
    assert repr(member(tmp_path / "index.json", blob)) == repr(whole(tmp_path / "index.json", blob))


def test_a_large_member_is_held_once(tmp_path: Path) -> None:
    """The many names of an index cost their text, themselves and a table; equal values are one string."""
    names = [f"model.layers.{n}.mlp.experts.{n}.up_proj.weight" for n in range(30_000)]
    text = json.dumps({"metadata": {}, "k": {name: f"model-{n // 10_000:05}" for n, name in enumerate(names)}})
    path = tmp_path / "index.json"
    path.write_text(text)
    tracemalloc.start()
    found = read_member(path, "k", max_bytes=2**23, max_values=2**20)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 30_000
    assert len({id(value) for value in found.values()}) == 3
    assert held < 30_000 * 200
    assert peak < held + 2.5 * len(text)
