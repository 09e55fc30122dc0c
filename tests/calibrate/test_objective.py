"""`calibrate.objective`: points are rotary embeddings that can be written, and the objective is what it says."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.objective import GUARD_WEIGHT, Objective, Point, Space, method
from calibrate.score import Bands
from ropecli.errors import BadUsage
from ropecli.frequencies import frequencies, yarn_corners
from ropecli.spec import RopeSpec, Yarn

TINY = RopeSpec(10000.0, 32, 32, 256, 256)
MODELS = {
    "tiny": TINY,
    "llama2": RopeSpec(10000.0, 128, 128, 4096, 4096),
    "llama3": RopeSpec(500000.0, 128, 128, 8192, 8192),
    "qwen": RopeSpec(1e6, 128, 128, 32768, 32768),
    "smollm": RopeSpec(100000.0, 64, 64, 8192, 8192),
    "gpt_oss": RopeSpec(150000.0, 64, 64, 4096, 4096),
    "partial": RopeSpec(10000.0, 80, 32, 2048, 2048),
    "narrow": RopeSpec(200.0, 32, 32, 256, 256),
}

SPACES = st.builds(
    Space,
    st.builds(
        lambda theta, pairs, length: RopeSpec(theta, 2 * pairs, 2 * pairs, length, length),
        st.floats(100.0, 1e7),
        st.integers(4, 64),
        st.integers(128, 2**17),
    ),
    st.floats(1.1, 64.0),
)


def all_cells(space: Space) -> list[tuple[int, int]]:
    return list(space.cells(1))


# ------------------------------------------------------------------------------------------------ the space


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("tiny", 0, 7), ("llama2", 20, 46), ("llama3", 18, 35), ("qwen", 23, 40), ("smollm", 10, 20), ("gpt_oss", 8, 18)],
)
def test_the_default_point_is_the_truncated_ramp_of_yarn(name: str, low: int, high: int) -> None:
    """The default's corners are those that runtimes compute for α = 1 and β = 32; m is 0.1·ln s + 1."""
    point = Space(MODELS[name], 4.0).default
    assert point == Point(low, high, 0.1 * math.log(4) + 1)


@pytest.mark.parametrize("name", MODELS)
def test_the_default_is_a_cell_at_every_step(name: str) -> None:
    """However coarse the lattice, default YaRN is on it; every cell is a ramp inside the bounds, and comes once."""
    space = Space(MODELS[name], 4.0)
    low, high = int(space.default.low), int(space.default.high)
    for step in range(1, 9):
        cells = list(space.cells(step))
        assert (low, high) in cells
        assert len(set(cells)) == len(cells)
        assert all(space.allows(i, j) and i < j for i, j in cells)
        assert all((i - low) % step == 0 and (j - high) % step == 0 for i, j in cells)
    assert set(space.cells(3)) < set(space.cells(1))


@given(SPACES)
def test_bounds_hold_the_default(space: Space) -> None:
    """For any geometry and factor: bounds are ordered, whole, within the table, and hold the default."""
    point = space.default
    for bounds, value in ((space.low_bounds, point.low), (space.high_bounds, point.high)):
        assert 0 <= bounds[0] <= value <= bounds[1] <= space.spec.rotary_dim - 1
    assert space.factor_bounds[0] < point.attention_factor < space.factor_bounds[1]
    assert space.allows(int(point.low), int(point.high))


@given(SPACES, st.data())
def test_a_snapped_scaling_reproduces_the_cell(space: Space, data: st.DataObject) -> None:
    """Any cell, written as YaRN, gives the table of the cell: exactly when truncated, within 1e-4 of a pair if not.

    The default's cell has the default's own α and β, which every runtime rounds as it rounds the default.
    """
    low, high = data.draw(st.sampled_from(all_cells(space)))
    m = data.draw(st.floats(0.8, 1.6))
    point = Point(low, high, m)
    scaling = space.scaling(point)
    spec = replace(space.spec, scaling=scaling, max_length=round(space.spec.original_length * space.factor))
    assert yarn_corners(spec, scaling) == (low, high)
    assert frequencies(spec) == space.frequencies(point)
    if (low, high) == space.default[:2]:
        assert (scaling.beta_slow, scaling.beta_fast) == (1.0, 32.0)
    else:
        fractional = replace(scaling, truncate=False)
        corners = yarn_corners(replace(spec, scaling=fractional), fractional)
        assert corners == pytest.approx((low, high), abs=1.1e-4)
    assert scaling.attention_factor == m
    assert scaling.factor == space.factor


def test_the_default_is_written_as_the_default() -> None:
    """The default point becomes α = 1, β = 32 themselves, not numbers that mean the same."""
    space = Space(TINY, 4.0)
    assert space.scaling(space.default) == Yarn.default(4.0)
    assert space.scaling(space.default._replace(attention_factor=1.07)) == replace(
        Yarn.default(4.0), attention_factor=1.07
    )
    assert frequencies(method("yarn", TINY, 4.0)) == space.frequencies(space.default)


@pytest.mark.parametrize("point", [Point(0.5, 7, 1.0), Point(0, 7.25, 1.0)])
def test_fractional_corners_are_not_written(point: Point) -> None:
    """No runtime rounds the same way: a search must end on whole corners."""
    with pytest.raises(ValueError, match="whole corners"):
        Space(TINY, 4.0).scaling(point)


def test_a_best_point_on_the_edge_is_told() -> None:
    """A parameter on the bound of the search is named; pair 0 is no bound, since there is nothing before it."""
    space = Space(TINY, 4.0)
    inside = Point(3, 9, 1.1)
    for raced in (True, False):
        assert space.on_bounds(inside, raced=raced) == ()
        assert space.on_bounds(inside._replace(low=0), raced=raced) == ()
        assert space.on_bounds(inside._replace(low=space.low_bounds[1]), raced=raced) == ("beta_fast",)
        assert space.on_bounds(inside._replace(high=space.high_bounds[1]), raced=raced) == ("beta_slow",)
        for edge in space.factor_bounds:
            assert space.on_bounds(inside._replace(attention_factor=edge), raced=raced) == ("attention_factor",)
    llama2 = Space(MODELS["llama2"], 4.0)
    assert llama2.low_bounds[0] > 0
    assert llama2.on_bounds(Point(llama2.low_bounds[0], 40, 1.1), raced=False) == ("beta_fast",)
    assert llama2.on_bounds(Point(llama2.low_bounds[0], 40, 1.1), raced=True) == ()


# ------------------------------------------------------------------------------------------------ methods


@pytest.mark.parametrize("name", ["none", "linear", "ntk", "ntk-by-parts", "yarn"])
def test_methods_by_name(name: str) -> None:
    """Every method keeps the geometry, serves factor × L, and leaves or divides the slowest pair as its kind does."""
    spec = method(name, TINY, 4.0)
    assert (spec.rope_theta, spec.rotary_dim, spec.original_length, spec.max_length) == (10000.0, 32, 256, 1024)
    plain, table = frequencies(TINY), frequencies(spec)
    ratio = [a / b for a, b in zip(plain.inv_freq, table.inv_freq, strict=True)]
    assert ratio[0] == pytest.approx(4.0 if name == "linear" else 1.0)
    assert ratio[-1] == pytest.approx(1.0 if name == "none" else 4.0)
    assert table.attention_factor == pytest.approx(1.1386294 if name == "yarn" else 1.0)


def test_an_unknown_method_is_bad_usage() -> None:
    """The hint lists the names that exist."""
    with pytest.raises(BadUsage, match="unknown method 'pi'") as caught:
        method("pi", TINY, 4.0)
    assert "linear" in caught.value.hint


# ------------------------------------------------------------------------------------------------ the objective


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("beyond", Objective("beyond", 0, 0.1)),
        ("all", Objective("all", 0, 0.1)),
        ("last:64", Objective("last", 64, 0.1)),
    ],
)
def test_objectives_by_name(text: str, expected: Objective) -> None:
    """`beyond`, `all` and `last:N` are read with the guard beside them."""
    assert Objective.parse(text, 0.1) == expected


@pytest.mark.parametrize("text", ["", "last", "last:", "last:0", "last:-5", "last:1.5", "all:3", "beyond:2", "Beyond"])
def test_another_objective_is_bad_usage(text: str) -> None:
    """Anything else is refused with the three forms in the hint."""
    with pytest.raises(BadUsage) as caught:
        Objective.parse(text, 0.0)
    assert caught.value.where == "--objective"


@pytest.mark.parametrize(
    ("text", "edges", "target", "within"),
    [
        ("beyond", (1, 256, 1024), [1], [0]),
        ("all", (1, 256, 1024), [0, 1], [0]),
        ("last:128", (1, 256, 896, 1024), [2], [0]),
        ("last:900", (1, 124, 256, 1024), [1, 2], [0, 1]),
        ("last:768", (1, 256, 1024), [1], [0]),
        ("last:1023", (1, 256, 1024), [0, 1], [0]),
    ],
)
def test_the_columns_that_count(text: str, edges: tuple[int, ...], target: list[int], within: list[int]) -> None:
    """The bands fall on L and on the start of the last N, and each objective takes the bands that it names."""
    objective = Objective.parse(text, 0.005)
    bands = objective.bands(256, 1024)
    assert bands == Bands(edges)
    assert objective.columns(bands, 256) == (target, within)


def test_more_last_positions_than_there_are_is_bad_usage() -> None:
    """A window of n tokens has n − 1 predictions: `last:n` asks for one too many."""
    with pytest.raises(BadUsage, match="fewer than last:1024 needs"):
        Objective.parse("last:1024", 0.0).bands(256, 1024)


TOKENS = np.array([[255, 768], [510, 1536]])
BEFORE = np.array([[800.0, 2500.0], [1500.0, 5200.0]])


def value(text: str, after: np.ndarray, guard: float = 0.01) -> float:
    objective = Objective.parse(text, guard)
    return objective.value(after, BEFORE, TOKENS, objective.columns(objective.bands(256, 1024), 256))


def test_the_objective_is_a_sum_divided_once() -> None:
    """Nats over the target positions of all documents, divided by their tokens; documents with more count for more."""
    assert value("beyond", BEFORE) == pytest.approx((2500 + 5200) / (768 + 1536))
    assert value("all", BEFORE) == pytest.approx((2500 + 5200 + 800 + 1500) / (768 + 1536 + 255 + 510))


@given(st.floats(-50, 50), st.floats(0, 0.1))
def test_the_guard_costs_only_what_exceeds_it(worse: float, guard: float) -> None:
    """Loss within L may grow by the guard for nothing; every nat a token beyond that costs `GUARD_WEIGHT`."""
    after = BEFORE + np.array([[worse, 0.0], [0.0, 0.0]])
    excess = max(worse / (255 + 510) - guard, 0.0)
    assert value("beyond", after, guard) == pytest.approx(value("beyond", BEFORE, guard) + GUARD_WEIGHT * excess)
