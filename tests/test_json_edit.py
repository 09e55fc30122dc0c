"""Editing JSON in its text: the same meaning as editing the parsed value, and no other byte touched."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropecli.json_edit import ABSENT, with_members

KEYS = st.sampled_from(["a", "b", "rope_theta", "rope_scaling", "ключ", 'quo"te', "tab\t", "\U0001f600", "{", ",", ":"])
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=5)
CHANGES = st.dictionaries(KEYS, VALUES | st.just(ABSENT), max_size=4)
LAYOUTS = st.fixed_dictionaries(
    {
        "indent": st.sampled_from([None, 0, 1, 2, 4, "\t"]),
        "separators": st.sampled_from([None, (",", ":"), (" , ", " : "), (", ", ":\t")]),
        "ensure_ascii": st.booleans(),
    }
)


def equal(left: Any, right: Any) -> bool:
    """Equal as JSON, where 1, 1.0 and true are three different values."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def edited(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """What an edit of the parsed value gives."""
    removed = {key for key, value in changes.items() if value is ABSENT}
    set_to = {key: value for key, value in changes.items() if value is not ABSENT}
    return {key: value for key, value in (data | set_to).items() if key not in removed}


@given(OBJECTS, CHANGES, LAYOUTS)
def test_an_edit_of_the_text_means_an_edit_of_the_value(data, changes, layout):
    """The edited text parses to what editing the parsed object gives, whatever its layout."""
    text = json.dumps(data, **layout)
    assert equal(json.loads(with_members(text, (), changes)), edited(data, changes))


@given(OBJECTS, CHANGES, LAYOUTS)
def test_an_edit_under_a_path_reaches_that_object_alone(data, changes, layout):
    """A path leads into nested objects, and what lies around them keeps its value."""
    outer = {"before": [1.50, {"a": 1}], "text_config": {"x": 1e5, "inner": data, "y": {}}, "after": None}
    text = json.dumps(outer, **layout)
    result = json.loads(with_members(text, ("text_config", "inner"), changes))
    wanted = {**outer, "text_config": {**outer["text_config"], "inner": edited(data, changes)}}
    assert equal(result, wanted)


@given(OBJECTS, LAYOUTS)
def test_an_edit_that_changes_nothing_gives_the_same_bytes(data, layout):
    """Setting every member to the value that it has leaves the text as it was."""
    text = json.dumps(data, **layout)
    assert with_members(text, (), data) == text
    assert with_members(text, (), {"not there": ABSENT}) == text


@given(OBJECTS, CHANGES, LAYOUTS)
def test_an_edit_twice_is_an_edit_once(data, changes, layout):
    """A second run of the same edit finds nothing to do."""
    once = with_members(json.dumps(data, **layout), (), changes)
    assert with_members(once, (), changes) == once


@given(OBJECTS, st.integers(0, 4), LAYOUTS)
def test_members_that_are_not_named_keep_their_bytes_and_their_order(data, position, layout):
    """Around a member that is replaced, the text before and after it is the same, byte for byte."""
    members = list(data.items())
    position = min(position, len(members))
    marked = dict([*members[:position], ("marked", "\0old\0"), *members[position:]])
    text = json.dumps(marked, **layout)
    before, after = text.split(json.dumps("\0old\0"))
    assert with_members(text, (), {"marked": 7}) == f"{before}7{after}"


@given(OBJECTS.filter(bool), st.data())
def test_a_diff_of_an_indented_file_shows_one_line(data, choice):
    """In a file with one scalar a line, the lines of an edit are the member's own, or the comma before a new one."""
    text = json.dumps({"first": 1} | data | {"last": 1}, indent=2)
    key = choice.draw(st.sampled_from(sorted(data)))
    lines = text.splitlines()
    after = with_members(text, (), {key: ABSENT}).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"  {json.dumps(key, ensure_ascii=True)}:"))
    assert lines[:start] == after[:start]
    assert lines[len(lines) - (len(after) - start) :] == after[start:]


SPELLINGS = """{
    "model_type" : "llama",
\t"number kinds": [1, 1.0, 1e0, 10000, 1e4, 0.000001, 1E-06, -0.0, 12345678901234567890],

    "escapes": "\\u00e9 \\/ \\ud83d\\ude00 é",  "same line": {"a":1,"b" :[ ]},
    "rope_scaling": {
        "type": "yarn",
        "factor": 4.00,
        "unknown": 1E2
    },
    "rope_theta": 10000,
    "NaN is Python's": NaN
}
"""


def test_odd_spellings_survive_byte_for_byte():
    """Number spellings, escapes, blank lines, tabs and spaces of other members are left as they were."""
    wanted = SPELLINGS.replace('"rope_theta": 10000,', '"rope_theta": 5000000.0,')
    assert with_members(SPELLINGS, (), {"rope_theta": 5e6}) == wanted


def test_an_object_in_place_of_an_object_keeps_what_they_share():
    """Members that both objects have stay as they were spelled; the others go, and new ones come at the end."""
    result = with_members(SPELLINGS, (), {"rope_scaling": {"factor": 4.0, "unknown": 100.0, "rope_type": "yarn"}})
    wanted = SPELLINGS.replace('        "type": "yarn",\n', "").replace(
        '"unknown": 1E2', '"unknown": 1E2,\n        "rope_type": "yarn"'
    )
    assert result == wanted


@pytest.mark.parametrize("indent", [1, 2, 3, 4, 8, "\t", "\t\t"])
@pytest.mark.parametrize("path", [(), ("text_config",), ("a", "b")])
def test_a_new_member_is_laid_out_like_its_file(indent, path):
    """An object that is added has the indent of the file, as if the file had been written with it."""
    data: dict[str, Any] = {"x": 1}
    block = {"rope_type": "yarn", "lists": [1.5, 2.5], "inner": {"k": 1}}
    wanted: dict[str, Any] = {"x": 1, "rope_scaling": block}
    for key in reversed(path):
        data, wanted = {key: data, "z": 0}, {key: wanted, "z": 0}
    result = with_members(json.dumps(data, indent=indent), path, {"rope_scaling": block})
    assert result == json.dumps(wanted, indent=indent)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("data", [{"a": 1}, {"a": 1, "b": {"c": [1, 2]}}])
def test_a_file_on_one_line_stays_on_one_line(separators, data):
    """Objects that are added to a file on one line have its spacing."""
    block = {"rope_type": "yarn", "lists": [1.5, 2.5]}
    result = with_members(json.dumps(data, separators=separators), (), {"new": block})
    assert result == json.dumps(data | {"new": block}, separators=separators)


def test_windows_line_ends_survive():
    """A file with CR LF gets no lone LF."""
    text = '{\r\n  "a": 1,\r\n  "b": {\r\n    "c": 2\r\n  }\r\n}\r\n'
    result = with_members(text, (), {"new": {"x": [1]}, "b": {"c": 2, "d": 3}})
    assert not re.search(r"(?<!\r)\n", result)
    assert json.loads(result) == {"a": 1, "b": {"c": 2, "d": 3}, "new": {"x": [1]}}


@pytest.mark.parametrize(
    ("text", "changes", "wanted"),
    [
        ("{}", {"a": 1}, '{"a": 1}'),
        ("{ }", {}, "{ }"),
        ('{"a": 1}', {"a": ABSENT}, "{}"),
        ('{"a": 1, "b": 2, "c": 3}', {"a": ABSENT}, '{"b": 2, "c": 3}'),
        ('{"a": 1, "b": 2, "c": 3}', {"b": ABSENT}, '{"a": 1, "c": 3}'),
        ('{"a": 1, "b": 2, "c": 3}', {"c": ABSENT}, '{"a": 1, "b": 2}'),
        ('{"a": 1, "b": 2}', {"a": ABSENT, "b": ABSENT, "z": None}, '{"z": null}'),
        ('{"a": 1}', {"a": True}, '{"a": true}'),
        ('{"a": 1}', {"a": 1.0}, '{"a": 1.0}'),
        ('{"a": {"b": 0}}', {"a": {"b": False}}, '{"a": {"b": false}}'),
        ('{"\\u0061": 1}', {"a": 2}, '{"\\u0061": 2}'),
        ('{"a": "é"}', {"a": "è"}, '{"a": "\\u00e8"}'),
        (' \n{"a": 1}\n\n', {"a": 2}, ' \n{"a": 2}\n\n'),
        ('{"a": {}}', {"a": {"b": 1}}, '{"a": {"b": 1}}'),
        ('{"a": {"b": 1}}', {"a": {}}, '{"a": {}}'),
        ('{"a": {"b": 1}}', {"a": None}, '{"a": null}'),
        ('{"a": "}, {\\"a\\": 1"}', {"b": 1}, '{"a": "}, {\\"a\\": 1", "b": 1}'),
    ],
)
def test_small_edits(text, changes, wanted):
    """Empty objects, first and last members, kinds of numbers, escaped keys and braces inside strings."""
    assert with_members(text, (), changes) == wanted


@pytest.mark.parametrize("path", [("b",), ("a",), ("c", "d")])
def test_a_path_that_leads_to_no_object_is_an_error(path):
    """A key that is not there, or whose value is no object, raises KeyError."""
    with pytest.raises(KeyError):
        with_members('{"a": 1, "c": {"d": [{}]}}', path, {"x": 1})


def test_a_lone_surrogate_stays_escaped():
    """Text that UTF-8 can not carry stays an escape, in an object that is rewritten too."""
    result = with_members(
        '{"a": {"x": "\\ud800", "y": 1}, "b": null}', (), {"a": {"x": "\ud800", "y": 2}, "b": "\ud800"}
    )
    assert result == '{"a": {"x": "\\ud800", "y": 2}, "b": "\\ud800"}'
    assert result.encode("utf-8")
