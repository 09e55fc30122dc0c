"""`ropecli.spec`: what can be built, what is refused, and the JSON form."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropecli.errors import BadParameter
from ropecli.spec import (
    LONGEST,
    SCALINGS,
    WIDEST_HEAD,
    Dynamic,
    Linear,
    Llama3,
    Longrope,
    Ntk,
    NtkByParts,
    Plain,
    Proportional,
    RopeSpec,
    Scaling,
    Yarn,
    default_attention_factor,
    scaling_from_json,
    scaling_to_json,
)

positive = st.floats(1e-30, 1e30) | st.integers(1, 10**30)
divisors = st.lists(positive, min_size=1, max_size=8).map(tuple)
unequal = st.tuples(positive, positive).filter(lambda pair: pair[0] != pair[1])
SCALING_STRATEGY = st.one_of(
    st.builds(Plain),
    st.builds(Linear, positive),
    st.builds(Ntk, positive),
    st.builds(Dynamic, positive),
    st.builds(lambda s, ramp, m: NtkByParts(s, *ramp, m), positive, unequal, positive),
    st.builds(Yarn, positive, positive, positive, positive, st.booleans()),
    st.builds(lambda s, ramp: Llama3(s, *ramp), positive, unequal),
    st.builds(Longrope, positive, divisors, divisors, positive, positive),
    st.builds(Proportional, positive, st.floats(1e-30, 1)),
)

EXAMPLES: dict[str, Scaling] = {
    kind.rope_type: kind
    for kind in (
        Plain(),
        Linear(4.0),
        Ntk(4.0),
        Dynamic(4.0),
        NtkByParts(4.0),
        Yarn.default(4.0),
        Llama3(8.0, 1.0, 4.0),
        Longrope(4.0, (1.0, 1.0), (1.0, 4.0), 1.1, 1.0),
        Proportional(2.0, 0.25),
    )
}
NUMBERS = [
    (rope_type, field.name)
    for rope_type, scaling in EXAMPLES.items()
    for field in dataclasses.fields(scaling)
    if isinstance(getattr(scaling, field.name), float)
]
WRONG_NUMBERS = [
    math.inf,
    -math.inf,
    math.nan,
    "4",
    "",
    True,
    False,
    None,
    [4.0],
    {},
    0,
    0.0,
    -4.0,
    1e31,
    1e-31,
    10**400,
]


def plain_spec(**changes: Any) -> RopeSpec:
    values: dict[str, Any] = {
        "rope_theta": 10000.0,
        "head_dim": 64,
        "rotary_dim": 64,
        "original_length": 2048,
        "max_length": 8192,
    }
    return RopeSpec(**values | changes)


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(SCALING_STRATEGY)
def test_a_scaling_survives_its_json_form(scaling: Scaling) -> None:
    """Writing a scaling as JSON text and reading it back gives an equal value, of every kind."""
    text = json.dumps(scaling_to_json(scaling), allow_nan=False)
    assert scaling_from_json(json.loads(text)) == scaling


def test_the_examples_cover_every_kind() -> None:
    """The tables below leave no kind of scaling out."""
    assert set(EXAMPLES) == set(SCALINGS)


@pytest.mark.parametrize("rope_type", EXAMPLES)
def test_json_names_the_kind_first(rope_type: str) -> None:
    """A reader that looks at one key learns the kind, and the others are the fields by their names."""
    data = scaling_to_json(EXAMPLES[rope_type])
    assert list(data) == ["rope_type", *(field.name for field in dataclasses.fields(EXAMPLES[rope_type]))]
    assert data["rope_type"] == rope_type


@pytest.mark.parametrize(("rope_type", "name"), NUMBERS)
@pytest.mark.parametrize("value", WRONG_NUMBERS, ids=lambda value: f"{value!r:.12}")
def test_what_is_not_a_usable_number_is_refused(rope_type: str, name: str, value: object) -> None:
    """Infinities, NaN, text, truth values, null, lists, zero, negatives and overflowing numbers are refused by name."""
    data = scaling_to_json(EXAMPLES[rope_type]) | {name: value}
    with pytest.raises(BadParameter, match="expected a") as caught:
        scaling_from_json(data)
    assert caught.value.where == name
    assert len(caught.value.message) < 160


@pytest.mark.parametrize("rope_type", EXAMPLES)
def test_a_key_that_the_kind_does_not_have_is_refused(rope_type: str) -> None:
    """A misspelt parameter is named, with the known ones as the hint, and never silently dropped."""
    with pytest.raises(BadParameter, match="attn_factor") as caught:
        scaling_from_json(scaling_to_json(EXAMPLES[rope_type]) | {"attn_factor": 1.0})
    assert caught.value.hint.startswith("known:")


@pytest.mark.parametrize("rope_type", ["su", "YARN", "", None, 4, ["yarn"], {}])
def test_an_unknown_kind_is_refused(rope_type: object) -> None:
    """The kinds are known by exact name; the hint lists them."""
    with pytest.raises(BadParameter, match="unknown scaling") as caught:
        scaling_from_json({"rope_type": rope_type, "factor": 4.0})
    assert "ntk-by-parts" in caught.value.hint


@pytest.mark.parametrize("rope_type", [name for name in EXAMPLES if name not in {"default", "proportional"}])
def test_a_missing_parameter_is_named(rope_type: str) -> None:
    """A scaling without its factor cannot be built, and the message says which key is missing."""
    data = scaling_to_json(EXAMPLES[rope_type])
    del data["factor"]
    with pytest.raises(BadParameter, match=f"{rope_type} needs .*factor"):
        scaling_from_json(data)


@pytest.mark.parametrize("value", ["false", 0, 1, None, 1.0])
def test_truncate_is_true_or_false(value: object) -> None:
    """The text "false" would count as true in Python: only real truth values pass."""
    with pytest.raises(BadParameter, match="true or false"):
        scaling_from_json(scaling_to_json(Yarn.default(4.0)) | {"truncate": value})


@pytest.mark.parametrize("name", ["short_factor", "long_factor"])
@pytest.mark.parametrize("value", [[], 4.0, "1, 2", None, {"0": 1.0}, [1.0, 0.0], [1.0, math.nan], [1.0, "2"], [[1.0]]])
def test_longrope_wants_lists_of_positive_numbers(name: str, value: object) -> None:
    """Anything but a list of positive numbers is refused, and the message names the list."""
    with pytest.raises(BadParameter) as caught:
        scaling_from_json(scaling_to_json(EXAMPLES["longrope"]) | {name: value})
    assert caught.value.where.startswith(name)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        *(({"rope_theta": value}, "rope_theta") for value in WRONG_NUMBERS),
        *(({name: value}, name) for name in ("head_dim", "rotary_dim", "max_length") for value in (0, -2, 64.0, "64")),
        *(({"original_length": value}, "original_length") for value in (0, True, None, math.inf, 2**48 + 1)),
        ({"head_dim": 10**12, "rotary_dim": 10**12}, "head_dim"),
        ({"rotary_dim": 63}, "rotary_dim"),
        ({"rotary_dim": 66}, "rotary_dim"),
        ({"layout": "neox"}, "layout"),
        ({"rotary_dim": 2, "scaling": Ntk(4.0)}, "rotary_dim"),
        ({"rotary_dim": 2, "scaling": Dynamic(4.0)}, "rotary_dim"),
        ({"rope_theta": 1.0, "scaling": Yarn.default(4.0)}, "rope_theta"),
        ({"scaling": EXAMPLES["longrope"]}, "short_factor"),
    ],
    ids=str,
)
def test_a_geometry_that_cannot_be_is_refused(changes: dict[str, Any], where: str) -> None:
    """Widths, lengths and a base that no model can have are refused, and the message names the key."""
    with pytest.raises(BadParameter) as caught:
        plain_spec(**changes)
    assert caught.value.where == where


def test_the_widest_and_longest_that_are_allowed_can_be() -> None:
    """The upper ends belong to the range, as the messages say."""
    spec = plain_spec(head_dim=WIDEST_HEAD, rotary_dim=WIDEST_HEAD, original_length=LONGEST, max_length=LONGEST)
    assert (spec.pairs, spec.max_length) == (WIDEST_HEAD // 2, LONGEST)


@pytest.mark.parametrize(
    ("build", "where"),
    [
        (lambda: NtkByParts(4.0, 8.0, 8.0), "beta_fast"),
        (lambda: Proportional(1.0, 1.5), "partial_rotary_factor"),
    ],
)
def test_a_ramp_without_width_and_a_part_above_the_whole_are_refused(build: Any, where: str) -> None:
    """Rotation ramps divide by their width, and no more than the whole head can rotate."""
    with pytest.raises(BadParameter) as caught:
        build()
    assert caught.value.where == where


def test_a_spec_cannot_be_changed() -> None:
    """A spec is a value: equal by content, hashable, frozen."""
    assert plain_spec() == plain_spec()
    assert len({plain_spec(), plain_spec(), plain_spec(max_length=4096)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain_spec().rope_theta = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (Plain(), False),
        (Yarn.default(4.0), False),
        (Dynamic(4.0), True),
        (Longrope(4.0, (1.0,), (4.0,), 1.0, 1.0), True),
        (Longrope(4.0, (4.0,), (4.0,), 1.1, 1.0), True),
        (Longrope(4.0, (4.0,), (4.0,), 1.1, 1.1), False),
    ],
    ids=str,
)
def test_length_dependence(scaling: Scaling, expected: bool) -> None:
    """Only dynamic scaling, and longrope whose two halves differ, change with the length of the sequence."""
    spec = plain_spec(head_dim=4, rotary_dim=2 if isinstance(scaling, Longrope) else 4, scaling=scaling)
    assert spec.length_dependent is expected
    assert spec.pairs == spec.rotary_dim // 2
    assert spec.rope_type == scaling.rope_type


@pytest.mark.parametrize(
    ("factor", "a", "b", "expected"),
    [
        (4, 0.1, 1.0, 1.138629436112),
        (8, 0.1, 1.0, 1.207944154168),
        (16, 0.1, 1.0, 1.277258872224),
        (32, 0.1, 1.0, 1.346573590280),
        (16, 0.07, 1.0, 1.194081210557),
        (1, 0.1, 1.0, 1.0),
        (1, 0.1, 0.9, 1.0),
        (0.5, 0.1, 1.0, 1.0),
    ],
)
def test_the_default_temperature(factor: float, a: float, b: float, expected: float) -> None:
    """m = a·ln s + b: a = 0.1 and b = 1 in the paper, a = 0.07 in YaRN-Mistral, and 1 where nothing is extended."""
    assert default_attention_factor(factor, a, b) == pytest.approx(expected, rel=1e-12)
    if (a, b) == (0.1, 1.0):
        assert Yarn.default(factor) == Yarn(factor, default_attention_factor(factor), 32.0, 1.0, truncate=True)
