"""JSON from strangers: one object, no key twice, bounded in size and depth; every refusal says where."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ropecli.errors import BadCheckpoint

CONFIG_BYTES = 32 * 2**20
"""The largest config that is read. Real ones stay below 5 MiB."""

CONFIG_VALUES = 2**20
"""The most values that a config may hold; together with `CONFIG_BYTES` it bounds the memory."""

MAX_DEPTH = 64
"""The deepest nesting of objects and lists that is read. Real configs stay below 10."""

_NESTS = (dict, list)
_SPACE = re.compile(r"[ \t\n\r]*")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")


def read_json(
    path: Path, *, max_bytes: int = CONFIG_BYTES, max_values: int = CONFIG_VALUES
) -> tuple[dict[str, Any], str]:
    """The object in a JSON file, and the file's exact text (without a byte order mark).

    Raises BadCheckpoint, which names the file and, where the text is not JSON, the line and the column.
    """
    text = read_text(path, max_bytes=max_bytes, max_values=max_values)
    try:
        return _top(text), text
    except BadCheckpoint as error:
        error.at(str(path))
        raise


def read_text(path: Path, *, max_bytes: int, max_values: int) -> str:
    """The text of a JSON file, bounded but not yet parsed, without a byte order mark.

    Raises BadCheckpoint, which names the file.
    """
    try:
        return _text(_first_bytes(path, max_bytes + 1), max_bytes, max_values)
    except BadCheckpoint as error:
        error.at(str(path))
        raise
    except OSError as error:
        raise BadCheckpoint(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def parse_json(
    blob: bytes, *, max_bytes: int = CONFIG_BYTES, max_values: int = CONFIG_VALUES
) -> tuple[dict[str, Any], str]:
    """The object that these bytes spell in UTF-8, and their text without a byte order mark.

    Repeated keys, more than `MAX_DEPTH` levels and anything but an object at the top are refused. `NaN` and `Infinity`
    pass, as Python's own reader lets them: hybrid models carry them in fields that are none of RoPE's business.

    Raises BadCheckpoint.
    """
    text = _text(blob, max_bytes, max_values)
    return _top(text), text


def _text(blob: bytes, max_bytes: int, max_values: int) -> str:
    # A text that is not plain ASCII may take four bytes a character once decoded.
    if len(blob) * (1 if blob.isascii() else 4) > max_bytes:
        raise BadCheckpoint(
            f"expected at most {max_bytes // 2**20} MiB of JSON, found more", hint="is this really a JSON file?"
        )
    values = blob.count(b",") + blob.count(b"[") + blob.count(b"{")
    if values > max_values:
        raise BadCheckpoint(f"expected at most {max_values} values, found about {values}")
    text = _decoded(blob)
    if not text.strip():
        raise BadCheckpoint("expected a JSON object, found nothing", hint="download the file again")
    return text


def _top(text: str) -> dict[str, Any]:
    value = _loaded(text)
    if not isinstance(value, dict):
        raise BadCheckpoint(f"expected a JSON object at the top, found {_kind(value)}")
    return value


def read_member(path: Path, key: str, *, max_bytes: int, max_values: int) -> Any:
    """The value of one member of the object in a JSON file, read as `members` does; None where there is none.

    Raises BadCheckpoint, which names the file.
    """
    text = read_text(path, max_bytes=max_bytes, max_values=max_values)
    try:
        return members(text, key).get(key)
    except BadCheckpoint as error:
        error.at(str(path))
        raise


def members(text: str, *keys: str) -> dict[str, Any]:
    """The members of these names, as far as they are there, of the object that a JSON text holds.

    What is refused is what `read_json` refuses. Where a value is an object, its members are read one by one, and equal
    strings among its values are one string: a million members take a third of what `read_json` takes.

    Raises BadCheckpoint.
    """
    strings: dict[str, str] = {}

    def shared(_: str, at: int) -> tuple[Any, int]:
        value, end = _value_at(text, at, 2)
        return (strings.setdefault(value, value) if isinstance(value, str) else value), end

    def wanted(name: str, at: int) -> tuple[Any, int]:
        if name not in keys:
            return None, _value_at(text, at, 1)[1]
        return _members(text, at, shared) if text.startswith("{", at) else _value_at(text, at, 1)

    start = _past(_SPACE, text, 0)
    if not text.startswith("{", start):
        return _top(text)  # which refuses it
    found, end = _members(text, start, wanted)
    end = _past(_SPACE, text, end)
    if end < len(text):
        raise _not_json(json.JSONDecodeError("Extra data", text, end))
    return {key: found[key] for key in keys if key in found}


def non_finite_keys(value: Mapping[str, Any] | list[Any]) -> Iterator[str]:
    """The dotted keys of all NaN and infinite numbers: Python reads them, but JSON does not have them."""
    pairs = enumerate(value) if isinstance(value, list) else value.items()
    for key, inner in pairs:
        name = f"[{key}]" if isinstance(value, list) else str(key)
        if isinstance(inner, float) and not math.isfinite(inner):
            yield name
        elif isinstance(inner, dict | list):
            for rest in non_finite_keys(inner):
                yield name + rest if rest.startswith("[") else f"{name}.{rest}"


def _first_bytes(path: Path, count: int) -> bytes:
    # Opening a pipe would wait for a writer, and a device may never end.
    if path.exists() and not path.is_file():
        raise BadCheckpoint("expected a regular file, found something else")
    with path.open("rb") as file:
        return file.read(count)


def _decoded(blob: bytes) -> str:
    try:
        return blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = blob.count(b"\n", 0, error.start) + 1
        raise BadCheckpoint(
            f"expected UTF-8 text, found byte 0x{blob[error.start]:02x} on line {line}",
            hint="a JSON config is text; download the file again",
        ) from error


def _loaded(text: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_int)
    except json.JSONDecodeError as error:
        raise _not_json(error) from error
    except RecursionError:
        raise _too_deep() from None
    if isinstance(value, dict | list) and _is_deeper_than(MAX_DEPTH, value):
        raise _too_deep()
    return value


def _value_at(text: str, at: int, depth: int) -> tuple[Any, int]:
    """The value that begins at `at`, inside of `depth` objects, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _not_json(error) from error
    except RecursionError:
        raise _too_deep() from None
    if isinstance(value, dict | list) and _is_deeper_than(MAX_DEPTH - depth, value):
        raise _too_deep()
    return value, end


def _members(text: str, brace: int, member: Callable[[str, int], tuple[Any, int]]) -> tuple[dict[str, Any], int]:
    """The object that opens at `brace`, each value read by `member(key, at)`, and where the object ends."""
    found: dict[str, Any] = {}
    at = _past(_SPACE, text, brace + 1)
    if text.startswith("}", at):
        return found, at + 1
    while True:
        if not text.startswith('"', at):
            raise _not_json(json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at))
        key, end = _value_at(text, at, 0)
        at = _past(_COLON, text, end, "Expecting ':' delimiter")
        value, end = member(key, at)
        if key in found:
            raise _repeated(key, found[key], value)
        found[key] = value
        if text.startswith("}", comma := _past(_SPACE, text, end)):
            return found, comma + 1
        at = _past(_COMMA, text, comma, "Expecting ',' delimiter")
        if text.startswith("}", at) and sys.version_info >= (3, 13):
            # as json has it since then
            raise _not_json(json.JSONDecodeError("Illegal trailing comma before end of object", text, comma))


def _past(pattern: re.Pattern[str], text: str, at: int, expected: str = "") -> int:
    """Where what `pattern` matches at `at` ends."""
    match = pattern.match(text, at)
    if match is None:
        raise _not_json(json.JSONDecodeError(expected, text, _past(_SPACE, text, at)))
    return match.end()


def _not_json(error: json.JSONDecodeError) -> BadCheckpoint:
    return BadCheckpoint(
        f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}",
        hint="the file is cut short or was edited by hand; download it again or mend that line",
    )


def _too_deep() -> BadCheckpoint:
    return BadCheckpoint(f"expected at most {MAX_DEPTH} levels of nesting, found more")


def _int(digits: str) -> int:
    # Longer ones overflow a float, and Python takes quadratic time for them or refuses.
    if len(digits) > 300:
        raise BadCheckpoint(f"expected a number of reasonable size, found {len(digits)} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _repeated(key, seen[key], value)
        seen[key] = value
    return result


def _repeated(key: str, first: Any, second: Any) -> BadCheckpoint:
    return BadCheckpoint(
        f"the key appears twice, as {_brief(first)} and as {_brief(second)}",
        where=_brief(key).strip("'"),
        hint="readers disagree on which one counts; delete one",
    )


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_int)


def _is_deeper_than(limit: int, value: Any) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, _NESTS)
        ]
        if not level:
            return False
    return True


def _brief(value: object) -> str:
    text = repr(value) if not isinstance(value, dict | list) else _kind(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
