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
    """Where a member stands: its key from `start` to `key_end`, its value from `value_start` to `end`."""

    key: str
    start: int
    key_end: int
    value_start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Style:
    """How an object is laid out, for the members that are new in it.

    glue   what stands between two members, the comma included
    colon  what stands between a key and its value
    line   the line break and margin of a member; "" in an object on one line
    unit   one level of indent
    """

    glue: str
    colon: str
    line: str
    unit: str

    def written(self, value: Any) -> str:
        """`value` as JSON text, its inner lines moved in to where the member stands."""
        if not self.line:
            return json.dumps(value, separators=(self.glue, self.colon))
        return json.dumps(value, indent=self.unit, separators=(",", self.colon)).replace("\n", self.line)


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
        key, key_end = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, key_end) + 1)  # over the colon
        _, end = _DECODER.raw_decode(text, at)
        members.append(_Member(key, start, key_end, at, end))
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


def _style(text: str, brace: int, members: Sequence[_Member], depth: int) -> _Style:
    """The layout of an object with at least one member, `depth` levels deep (1 is the top level)."""
    first = members[0]
    colon = text[first.key_end : first.value_start]
    lead = text[brace + 1 : first.start]
    if "\n" not in lead:
        glue = text[first.end : members[1].start] if len(members) > 1 else "," if colon == ":" else ", "
        return _Style(glue, colon, "", "")
    margin = lead.rpartition("\n")[2]
    line = ("\r\n" if "\r\n" in lead else "\n") + margin
    return _Style("," + line, colon, line, margin[: len(margin) // depth])


def _same(old: Any, new: Any) -> bool:
    """Whether two values are one in JSON; 1, 1.0 and true are three, and the order of keys is nothing."""
    return json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


def _edited(text: str, brace: int, changes: Mapping[str, Any], depth: int) -> tuple[str, int]:
    """The object that opens at `brace`, from brace to brace, with its members changed; and where the old one ends."""
    members, closing = _members(text, brace)
    if not members:
        space = text[brace + 1 : closing]
        added = {key: value for key, value in changes.items() if value is not ABSENT}
        return "{" + (json.dumps(added)[1:-1] or space) + "}", closing + 1
    style = _style(text, brace, members, depth)
    parts: list[str] = []
    previous = brace + 1
    for member in members:
        lead = text[previous : member.start] if parts else text[brace + 1 : members[0].start]
        previous = member.end
        value = changes.get(member.key, ABSENT)
        if member.key not in changes:
            parts.append(lead + text[member.start : member.end])
        elif value is not ABSENT:
            written = _replaced(text, member, value, style, depth)
            parts.append(lead + text[member.start : member.value_start] + written)
    present = {member.key for member in members}
    for key, value in changes.items():
        if key not in present and value is not ABSENT:
            lead = style.glue if parts else text[brace + 1 : members[0].start]
            parts.append(lead + json.dumps(key) + style.colon + style.written(value))
    return "{" + "".join(parts) + text[members[-1].end : closing] + "}", closing + 1


def _replaced(text: str, member: _Member, value: Any, style: _Style, depth: int) -> str:
    """The text of a member's new value: of the old one, what has not changed in it."""
    old_text = text[member.value_start : member.end]
    old = json.loads(old_text)
    if _same(old, value):
        return old_text
    if isinstance(old, dict) and old and isinstance(value, Mapping) and value:
        inner = dict.fromkeys((key for key in old if key not in value), ABSENT) | dict(value)
        return _edited(text, member.value_start, inner, depth + 1)[0]
    return style.written(value)


def with_members(text: str, path: Sequence[str], changes: Mapping[str, Any]) -> str:
    """The text with members of the object at `path` set, added at its end, or removed (`ABSENT`).

    text     a JSON document that parses, that has no key twice, and whose top level is an object
    path     keys from the top level down to the object; () is the top level
    changes  key → value; where an object takes the place of an object, the members that they share stay as written

    Raises KeyError when the path does not lead to an object.
    """
    brace = _object_at(text, path)
    edited, end = _edited(text, brace, changes, len(path) + 1)
    return text[:brace] + edited + text[end:]
