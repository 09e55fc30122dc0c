"""Change some members of a JSON object in its text, and leave every other byte as it was.

A config that went through `json.loads` and `json.dumps` comes back with other number spellings, another indent or
another escaping, and its diff is unreadable. Here a diff shows the members that were meant.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


class _Absent:
    """The value that removes a member."""


ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class _Member:
    key: str
    start: int
    value_start: int
    end: int


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _members(text: str, brace: int) -> tuple[list[_Member], int]:
    """The members of the object that opens at `brace`, and the index of its closing brace."""
    members: list[_Member] = []
    at = _skip(text, brace + 1)
    while text[at] != "}":
        start = at
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # over the colon
        _, end = _DECODER.raw_decode(text, at)
        members.append(_Member(key, start, at, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return members, at


def _object_at(text: str, path: Sequence[str]) -> int:
    brace = text.index("{")
    for key in path:
        members, _ = _members(text, brace)
        found = [member for member in members if member.key == key]
        if not found or text[found[-1].value_start] != "{":
            raise KeyError(key)
        brace = found[-1].value_start
    return brace


def _written(value: Any, separator: str, *, indented: bool) -> str:
    """`value` as JSON text, its inner lines moved in to where the member stands."""
    if not indented:
        return json.dumps(value, ensure_ascii=False)
    margin = separator.rpartition("\n")[2]
    unit = "\t" if margin.startswith("\t") else 2
    return json.dumps(value, indent=unit, ensure_ascii=False).replace("\n", "\n" + margin)


def with_members(text: str, path: Sequence[str], changes: Mapping[str, Any]) -> str:
    """The text with members of the object at `path` set, added at its end, or removed (`ABSENT`).

    text  a JSON document that parses and whose top level is an object
    path  keys from the top level down to the object; () is the top level

    Raises KeyError when the path does not lead to an object.
    """
    brace = _object_at(text, path)
    members, closing = _members(text, brace)
    separator = text[brace + 1 : members[0].start] if members else ""
    indented = "\n" in separator
    wanted = {key: value for key, value in changes.items() if value is not ABSENT}
    parts: list[str] = []
    for member in members:
        if member.key not in changes:
            parts.append(text[member.start : member.end])
        elif member.key in wanted:
            old = text[member.value_start : member.end]
            value = wanted.pop(member.key)
            same = json.loads(old) == value and type(json.loads(old)) is type(value)
            written = old if same else _written(value, separator, indented=indented)
            parts.append(text[member.start : member.value_start] + written)
    parts += [f"{json.dumps(key)}: {_written(value, separator, indented=indented)}" for key, value in wanted.items()]
    tail = text[members[-1].end : closing] if members else ""
    glue = "," + separator if indented else ", "
    return text[: brace + 1] + separator + glue.join(parts) + tail + text[closing:]
