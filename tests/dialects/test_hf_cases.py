"""Every spelling of a rotary embedding in a Hugging Face config: one JSON file in `tests/cases` a shape.

note      where the shape was seen, and what is particular about it
config    the config
expect    what each kind of layer must be read as, in order: fields of the spec and of its scaling (a subset)
sources   where values of the first kind of layer were found (a subset)
error     instead of both: the key path that the error names, and words in its message
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ropecli.dialects import hf
from ropecli.errors import BadCheckpoint
from ropecli.spec import LayerRope

CASES = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.glob("../cases/*.json")
}
READ = sorted(name for name, case in CASES.items() if "expect" in case)
REFUSED = sorted(name for name, case in CASES.items() if "error" in case)


def described(rope: LayerRope) -> dict[str, Any]:
    """A layer's embedding as flat data, lists for tuples."""
    parts = (rope.spec.scaling, rope.spec, rope)
    flat = {field.name: getattr(part, field.name) for part in parts for field in fields(part)}
    flat |= {"rope_type": rope.spec.rope_type, "factor": rope.spec.scaling.factor}
    flat |= {"attention_factor": rope.spec.scaling.attention_factor}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}


def test_there_are_cases_of_both_kinds() -> None:
    """The folder is found, so that the tests below do not pass by being empty."""
    assert len(READ) > 100
    assert len(REFUSED) > 20


@pytest.mark.parametrize("name", READ)
def test_a_shape_is_read_as_what_it_means(name: str) -> None:
    """Each case gives the kinds of layers that it names, with the values that it names."""
    ropes = hf.read(CASES[name]["config"])
    expected = CASES[name]["expect"]
    assert [rope.name for rope in ropes] == [one["name"] for one in expected]
    for rope, one in zip(ropes, expected, strict=True):
        found = described(rope)
        for key, value in one.items():
            if isinstance(value, float) or (isinstance(value, list) and any(isinstance(v, float) for v in value)):
                assert found[key] == pytest.approx(value, rel=1e-8), (rope.name, key)
            else:
                assert found[key] == value, (rope.name, key)


@pytest.mark.parametrize("name", READ)
def test_every_value_says_where_it_was_found(name: str) -> None:
    """Sources name the key, the default or the assumption; a key path leads to a value in the file."""
    ropes = hf.read(CASES[name]["config"])
    for key, source in CASES[name].get("sources", {}).items():
        assert ropes[0].sources[key] == source, key
    for rope in ropes:
        needed = {
            "rope_theta",
            "head_dim",
            "rotary_dim",
            "original_length",
            "max_length",
            "layout",
            "layers",
            "rope_type",
        }
        assert needed <= rope.sources.keys()
        for key in needed:
            assert rope.sources[key]


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_shape_is_refused_by_key(name: str) -> None:
    """The error names the key path and says what was found."""
    with pytest.raises(BadCheckpoint) as caught:
        hf.read(CASES[name]["config"])
    assert caught.value.where == CASES[name]["error"]["where"]
    assert CASES[name]["error"]["contains"] in caught.value.problem


@pytest.mark.parametrize("name", READ)
def test_reading_does_not_change_the_config(name: str) -> None:
    """A reader only reads."""
    config = CASES[name]["config"]
    before = json.dumps(config)
    hf.read(config)
    assert json.dumps(config) == before


@pytest.mark.parametrize("name", READ)
def test_as_many_layers_are_named_as_counted(name: str) -> None:
    """The indices of a kind of layer are as many as its count says, and no layer belongs to two kinds."""
    config = CASES[name]["config"]
    ropes = hf.read(config)
    indices = [hf.layer_indices(config, rope.name) for rope in ropes]
    assert [len(one) for one in indices] == [rope.layers for rope in ropes]
    assert len(set().union(*indices)) == sum(rope.layers for rope in ropes)


@pytest.mark.parametrize(
    ("name", "kind", "indices"),
    [
        ("smollm_3_interval_from_class", "default", (0, 1, 2, 4, 5, 6)),
        ("bamba", "default", (9, 18, 27)),
        ("gemma_3_1b_local_base", "full_attention", (5, 11, 17, 23)),
        ("modernbert", "full_attention", (0, 3, 6, 9, 12, 15, 18, 21)),
        ("recurrent_gemma", "default", (2, 5, 8, 11, 14, 17, 20, 23)),
        ("deepseek_v4", "main", (0,)),
        ("granite_layer_rope_theta", "layers from 1", (1, 2)),
        ("llama_3_1", "full_attention", ()),
    ],
)
def test_a_kind_of_layer_is_found_by_index(name: str, kind: str, indices: tuple[int, ...]) -> None:
    """Layers are counted from 0, as weights are named."""
    assert hf.layer_indices(CASES[name]["config"], kind) == indices
