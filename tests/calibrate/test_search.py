"""`calibrate.search`: the best point of loss functions whose best point is known, for what it promises to cost."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from calibrate import search
from calibrate.objective import Point, Space
from calibrate.search import METHODS, Field, by_name, coarse_step, race, race_passes, temperature, whole_cells
from calibrate.trials import SearchStopped
from ropecli.cli.calibrate import OPTIMIZERS
from ropecli.errors import BadUsage
from ropecli.spec import RopeSpec

TINY = Space(RopeSpec(10000.0, 32, 32, 256, 256), 4.0)
LLAMA = Space(RopeSpec(10000.0, 128, 128, 4096, 4096), 8.0)
SPACES = {
    "tiny": TINY,
    "smollm": Space(RopeSpec(100000.0, 64, 64, 8192, 8192), 2.0),
    "llama2": LLAMA,
    "qwen": Space(RopeSpec(1e6, 128, 128, 32768, 32768), 4.0),
}

Surface = Callable[[Point], float]


def bowl(low: float, high: float, m: float, scale: float = 1.0) -> Surface:
    """Nats around a single best point; `scale` is the width of the lattice in tens of cells."""

    def loss(point: Point) -> float:
        a, b = (point.low - low) / scale, (point.high - high) / scale
        return 3.7 + 0.0025 * a * a + 0.004 * b * b + 0.001 * a * b + 6 * (point.attention_factor - m) ** 2

    return loss


class Documents:
    """A loss function over synthetic documents: the surface, what a document adds, and what it adds to a cell.

    `passes` counts documents scored, in passes over all of them; nothing is scored twice.
    """

    def __init__(self, surface: Surface, count: int, seed: int = 0, spread: float = 0.011) -> None:
        self.surface = surface
        self.count = count
        self.seed = seed
        self.spread = spread
        self.own = np.random.default_rng(seed).normal(0, 0.4, count)
        self.known: dict[tuple[Point, int], float] = {}
        self.asked: list[tuple[Point, int]] = []

    def __call__(self, point: Point, documents: int) -> float:
        assert 1 <= documents <= self.count
        self.asked.append((point, documents))
        return sum(self.one(point, d) for d in range(documents)) / documents

    def one(self, point: Point, document: int) -> float:
        if (point, document) not in self.known:
            cell = [self.seed, document, round(1000 * point.low), round(1000 * point.high)]
            # half of the paired variance each, so that two neighbours differ by `spread` a document
            noise = np.random.default_rng(cell).normal(0, self.spread / math.sqrt(2)) if self.spread else 0.0
            self.known[point, document] = self.surface(point) + self.own[document] + noise
        return self.known[point, document]

    @property
    def passes(self) -> float:
        return len(self.known) / self.count


# ------------------------------------------------------------------------------------------------ the race


def test_the_race_finds_the_best_cell_of_a_noisy_lattice() -> None:
    """Documents that differ by 0.4 nats, cells by 0.011 a document: the race ends on the best cell or beside it.

    The noise of a mean over 12 documents is 0.003 nats, so that nothing could do better; the whole lattice would cost
    66 passes at one temperature alone.
    """
    surface = bowl(6, 7, 1.07)
    regrets, costs = [], []
    for seed in range(40):
        loss = Documents(surface, 12, seed)
        found = race(loss, TINY, 12)
        regrets.append(surface(found) - surface(Point(6, 7, 1.07)))
        costs.append(loss.passes)
    assert np.median(regrets) < 0.001
    assert max(regrets) < 0.02
    assert np.quantile(regrets, 0.9) < 0.005
    assert np.median(costs) < 14
    assert max(costs) <= race_passes(TINY, 12)


def test_a_large_lattice_costs_little_more() -> None:
    """64 pairs, and documents that each like other corners best: near the truth for few passes all the same."""

    class Displaced(Documents):
        def one(self, point: Point, document: int) -> float:
            self.known[point, document] = liked[document](point)
            return self.known[point, document]

    regrets, costs = [], []
    for seed in range(12):
        best = np.random.default_rng(seed).normal((24, 30, 1.07), (4, 4, 0.02), (12, 3))
        liked = [bowl(*at, scale=5.6) for at in best]
        loss = Displaced(lambda _: 0.0, 12)
        found = race(loss, LLAMA, 12)
        costs.append(loss.passes)
        truth = min(loss(found._replace(low=low, high=high), 12) for low, high in LLAMA.cells(1))
        regrets.append(loss(found, 12) - truth)
    assert np.median(costs) < 17
    assert np.median(regrets) < 0.001
    assert max(regrets) < 0.005


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("documents", [1, 2, 3, 8])
def test_without_noise_the_race_finds_the_bottom(name: str, documents: int) -> None:
    """On a smooth bowl anywhere in the lattice it finds the very cell, for no more than it said."""
    space = SPACES[name]
    width = space.high_bounds[1] - space.high_bounds[0]
    for share, m in ((0.25, 1.0), (0.7, 1.1)):
        low, high = (
            space.low_bounds[0] + round(share * width),
            min(space.low_bounds[0] + round(share * width) + round(0.2 * width) + 1, space.high_bounds[1]),
        )
        loss = Documents(bowl(low, high, m, width / 10), documents, spread=0.0)
        found = race(loss, space, documents)
        assert abs(found.low - low) <= 1
        assert abs(found.high - high) <= 1
        assert found.attention_factor == pytest.approx(m, abs=0.01)
        assert loss.passes <= race_passes(space, documents)


@pytest.mark.parametrize("name", ["smollm", "llama2", "qwen"])
@pytest.mark.parametrize("low", [0, 1])
def test_the_race_goes_on_to_faster_pairs_than_its_sweep(name: str, low: int) -> None:
    """Where the best ramp begins at the first pairs, which turn too often for the sweep, it is found all the same."""
    space = SPACES[name]
    assert low < space.low_bounds[0]
    high = space.high_bounds[1] - 4
    loss = Documents(bowl(low, high, 1.05, 2.0), 8, spread=0.0)
    found = race(loss, space, 8)
    assert abs(found.low - low) <= 1
    assert abs(found.high - high) <= 1
    assert loss.passes <= race_passes(space, 8)


@pytest.mark.parametrize("seed", range(8))
def test_the_race_never_ends_above_the_default(seed: int) -> None:
    """On pure noise, and where the default is the best there is, the answer is no worse than default YaRN."""
    draw = np.random.default_rng(seed)
    flat = Documents(lambda _: 3.7, 6, seed, spread=0.05)
    best_at_default = Documents(bowl(*TINY.default), 6, seed, spread=0.002)
    steep = Documents(bowl(draw.integers(0, 10), draw.integers(1, 11), draw.uniform(0.8, 1.4)), 6, seed)
    for loss in (flat, best_at_default, steep):
        found = race(loss, TINY, 6)
        assert loss(found, 6) <= loss(TINY.default, 6)


def test_what_few_documents_like_is_checked_on_all() -> None:
    """Where the first documents like one cell and all the others the default, the answer is the default or better."""

    class Misleading(Documents):
        def one(self, point: Point, document: int) -> float:
            liked = bowl(2, 5, 1.0, 0.3) if document < search.FEW_DOCUMENTS else bowl(*TINY.default, 0.3)
            self.known[point, document] = liked(point)
            return self.known[point, document]

    loss = Misleading(lambda _: 0.0, 12)
    found = race(loss, TINY, 12)
    assert loss(found, search.FEW_DOCUMENTS) > loss(Point(2, 5, 1.0), search.FEW_DOCUMENTS)
    assert loss(found, 12) <= loss(TINY.default, 12)


def test_the_race_looks_inside_the_bounds_alone() -> None:
    """Every cell it asks about is a whole ramp that the space allows, every temperature is near the bounds."""
    loss = Documents(bowl(61, 62, 1.5, 5.6), 5)
    race(loss, LLAMA, 5)
    least, greatest = LLAMA.factor_bounds
    for point, documents in loss.asked:
        assert LLAMA.allows(int(point.low), int(point.high))
        assert (point.low, point.high) == (int(point.low), int(point.high))
        assert least <= point.attention_factor <= greatest
        assert documents in (1, 2, search.FEW_DOCUMENTS, 5)


def test_the_race_is_the_same_every_time() -> None:
    """The same losses give the same questions in the same order."""
    first, second = Documents(bowl(6, 7, 1.07), 6, 3), Documents(bowl(6, 7, 1.07), 6, 3)
    assert race(first, TINY, 6) == race(second, TINY, 6)
    assert first.asked == second.asked


@pytest.mark.parametrize("name", SPACES)
def test_the_first_sweep_is_small_and_the_finest_that_is(name: str) -> None:
    """The coarse step keeps within its number of cells, and a smaller step would not."""
    space = SPACES[name]
    step = coarse_step(space)
    assert len(list(space.cells(step))) <= search.COARSE_CELLS
    assert step == 1 or len(list(space.cells(step - 1))) > search.COARSE_CELLS


def test_whoever_is_surely_behind_costs_no_more_documents() -> None:
    """Of a dozen cells one is clearly better: the others are dropped on the first documents, it runs to the last."""
    loss = Documents(bowl(3, 8, 1.1, 0.2), 12)
    cells = [Point(low, high, 1.1) for low in (1, 3, 5) for high in (6, 8, 10, 11)]
    assert Field(loss).best(cells, 12, 1) == [Point(3, 8, 1.1)]
    by_cell = {cell: max(document for point, document in loss.known if point == cell) + 1 for cell in cells}
    assert by_cell.pop(Point(3, 8, 1.1)) == 12
    assert max(by_cell.values()) <= 2
    assert loss.passes < 2.5


@pytest.mark.parametrize(("spread", "low", "high"), [(0.002, 0.002, 0.007), (0.02, 0.015, 0.025), (0.2, 0.15, 0.25)])
def test_the_field_learns_how_far_documents_scatter(spread: float, low: float, high: float) -> None:
    """After one race of cells that do not differ the spread of a paired difference is known, sooner if it is large."""
    field = Field(Documents(lambda _: 3.7, 24, seed=3, spread=spread))
    field.best([Point(cell, 11, 1.1) for cell in range(11)], 24, 11)
    assert low < field.spread < high


@pytest.mark.parametrize("seed", range(10))
def test_the_best_is_seldom_dropped(seed: int) -> None:
    """One cell is better by half of what a document scatters: it, or one as good on these documents, is left."""
    loss = Documents(lambda p: 3.7 + 0.01 * (p.low != 3), 24, seed, spread=0.02)
    cells = [Point(low, 8, 1.1) for low in range(6)]
    (best,) = Field(loss).best(cells, 24, 1)
    assert loss(best, 24) <= min(loss(cell, 24) for cell in cells) + 0.01


# ------------------------------------------------------------------------------------------------ the temperature


@pytest.mark.parametrize("m", [0.85, 0.97, 1.07, 1.139, 1.3, 1.45])
def test_the_temperature_ends_at_the_bottom_of_a_parabola(m: float) -> None:
    """At given corners, a parabola's bottom is found to a hundredth within its trials; the corners stay."""
    loss = Documents(bowl(0, 7, m), 4)
    found = temperature(loss, TINY, TINY.default, 4)
    assert found.attention_factor == pytest.approx(m, abs=0.01)
    assert (found.low, found.high) == (0, 7)
    assert len({point for point, _ in loss.asked}) <= search.TEMPERATURE_TRIALS + 1


def test_the_temperature_is_never_worse_than_its_start() -> None:
    """On a surface with a needle at the start, the start is kept."""
    start = TINY.default
    loss = Documents(lambda p: 3.0 if p == start else 4.0 + p.attention_factor, 2, spread=0.0)
    assert temperature(loss, TINY, start, 2) == start


def test_the_temperature_keeps_to_its_bounds() -> None:
    """A bottom outside the bounds ends at the bound."""
    loss = Documents(bowl(0, 7, 3.0), 1, spread=0.0)
    assert temperature(loss, TINY, TINY.default, 1).attention_factor == pytest.approx(TINY.factor_bounds[1], abs=0.03)


@pytest.mark.parametrize("m", [0.3, 3.0])
@pytest.mark.parametrize("name", ["race", "temperature", *METHODS])
def test_a_temperature_that_ends_at_its_bound_is_told(name: str, m: float) -> None:
    """Where every step towards a bound lowers the loss, the search ends so close to it that the bound is reported."""
    loss = Documents(bowl(6, 8, m), 4, spread=0.0)
    if name == "race":
        found = race(loss, TINY, 4)
    elif name == "temperature":
        found = temperature(loss, TINY, TINY.default, 4)
    else:
        found = by_name(loss, TINY, 4, name, corners=False, seed=0)
    assert "attention_factor" in TINY.on_bounds(found, raced=name in {"race", "temperature"})
    inside = found._replace(attention_factor=1.1)
    assert "attention_factor" not in TINY.on_bounds(inside, raced=True)


# ------------------------------------------------------------------------------------------------ scipy by name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_by_name_ends_on_whole_corners_below_the_default(name: str) -> None:
    """Each of scipy's methods runs on continuous corners inside the bounds and settles on a whole cell."""
    loss = Documents(bowl(4.3, 8.6, 1.05), 4, spread=0.0)
    found = by_name(loss, TINY, 4, name, corners=True, seed=0)
    TINY.scaling(found)
    assert loss(found, 4) < loss(TINY.default, 4)
    for point, documents in loss.asked:
        assert documents == 4
        assert TINY.low_bounds[0] <= point.low <= TINY.low_bounds[1]
        assert point.low < point.high <= TINY.high_bounds[1] + 0.5
        assert TINY.factor_bounds[0] <= point.attention_factor <= TINY.factor_bounds[1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_by_name_can_leave_the_corners(name: str) -> None:
    """For the temperature alone the corners stay those of the default, and its bottom is found."""
    loss = Documents(bowl(0, 7, 1.02), 2, spread=0.0)
    found = by_name(loss, TINY, 2, name, corners=False, seed=0)
    assert {(point.low, point.high) for point, _ in loss.asked} == {(0, 7)}
    assert found.attention_factor == pytest.approx(1.02, abs=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_by_name_never_ends_above_the_default(name: str) -> None:
    """Where the default is the best there is, it is the answer."""
    start = TINY.default
    loss = Documents(lambda p: 3.0 if p == start else 3.5 + 0.1 * p.low, 2, spread=0.0)
    assert by_name(loss, TINY, 2, name, corners=True, seed=0) == start


def test_the_command_line_knows_every_optimizer() -> None:
    """It has the names without loading scipy."""
    assert list(OPTIMIZERS) == ["auto", *METHODS]


def test_the_seed_decides_a_random_search() -> None:
    """Differential evolution with the same seed asks the same questions; with another, others."""
    asked = []
    for seed in (0, 0, 1):
        loss = Documents(bowl(4, 8, 1.05), 1, spread=0.0)
        by_name(loss, TINY, 1, "differential-evolution", corners=True, seed=seed)
        asked.append(loss.asked)
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


@pytest.mark.parametrize("name", ["race", *METHODS])
def test_losses_that_are_no_numbers_are_walked_around(name: str) -> None:
    """A region of infinite loss stops no search, warns of nothing, and is not the answer."""
    surface = bowl(4, 8, 1.05)
    loss = Documents(lambda p: math.inf if p.attention_factor > 1.2 or p.low > 7 else surface(p), 3, spread=0.0)
    found = race(loss, TINY, 3) if name == "race" else by_name(loss, TINY, 3, name, corners=True, seed=0)
    assert loss(found, 3) <= loss(TINY.default, 3)


def test_an_unknown_method_is_bad_usage() -> None:
    """The hint lists the methods."""
    with pytest.raises(BadUsage, match="unknown optimizer 'adam'") as caught:
        by_name(Documents(bowl(4, 8, 1.05), 1), TINY, 1, "adam", corners=True, seed=0)
    assert caught.value.where == "--optimizer"
    assert all(name in caught.value.hint for name in METHODS)


@pytest.mark.parametrize("name", ["race", "temperature", *METHODS])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_search_that_is_stopped_stops(name: str, after: int) -> None:
    """SearchStopped from the loss comes out of every search, scipy's own included, and no question follows it."""
    loss = Documents(bowl(4, 8, 1.05), 3, spread=0.0)
    questions = 0

    def limited(point: Point, documents: int) -> float:
        nonlocal questions
        questions += 1
        if questions > after:
            raise SearchStopped
        return loss(point, documents)

    searches: dict[str, Callable[[], Point]] = {
        "race": lambda: race(limited, TINY, 3),
        "temperature": lambda: temperature(limited, TINY, TINY.default, 3),
    }
    run = searches.get(name, lambda: by_name(limited, TINY, 3, name, corners=True, seed=0))
    with pytest.raises(SearchStopped):
        run()
    assert questions == after + 1


@pytest.mark.parametrize(
    ("point", "cells"),
    [
        (Point(4.2, 8.7, 1.0), {(4, 8), (4, 9), (5, 8), (5, 9)}),
        (Point(4.0, 8.7, 1.0), {(4, 8), (4, 9)}),
        (Point(4, 8, 1.0), {(4, 8)}),
        (Point(4.5, 5.0, 1.0), {(4, 5)}),
        (Point(10.0, 11.4, 1.0), {(10, 11)}),
    ],
)
def test_the_cells_around_a_point(point: Point, cells: set[tuple[int, int]]) -> None:
    """The whole corners next to a point, inside the bounds, ramps only; the temperature is kept."""
    found = whole_cells(TINY, point)
    assert {(p.low, p.high) for p in found} == cells
    assert len(found) == len(cells) <= search.SETTLING - 1
    assert {p.attention_factor for p in found} == {1.0}
