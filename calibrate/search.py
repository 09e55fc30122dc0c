"""Find the best point, given only a loss: a race over the lattice, the temperature alone, and scipy's own methods.

A loss function goes in, a point comes out. Nothing here knows a model, a text or a rotary embedding, only the bounds
of `Space`. The caller keeps every trial, may stop the search at any time by raising, and picks the best of what it saw.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import optimize

from calibrate.objective import Point, Space
from calibrate.score import Floats
from ropecli.errors import BadUsage

Loss = Callable[[Point, int], float]
"""The loss of a point over the first `n` calibration documents; remembers what it has scored."""

METHODS = {
    "nelder-mead": "Nelder-Mead",
    "powell": "Powell",
    "cobyqa": "COBYQA",
    "l-bfgs-b": "L-BFGS-B",
    "differential-evolution": "differential-evolution",
}
COARSE_CELLS = 36
"""The first sweep uses the smallest step that visits at most this many cells."""
LEADERS, FINALISTS = 2, 3
"""How many cells go on from the sweep, and into the last heat; between the two the best one alone leads."""
GRADIENTS = 36
"""What a search for divisors costs at most, 108 passes. The tiny model's gained 0.0014 nats or less by going on, and a
loss in bfloat16 is no surer than 0.0002."""
FEW_DOCUMENTS = 3
CERTAIN = 2.0
"""A candidate is dropped when it is behind by this many standard errors of a paired difference."""
USUAL_SPREAD, USUAL_COUNT = 0.02, 4
"""What two cells are taken to differ by on one document, nats a token, before the race has seen for itself; it then
counts as much as this many differences. 0.011 was measured between neighbours near the best of a small model."""
TEMPERATURE_TRIALS, TEMPERATURE_STEP = 7, 0.1
WARM_TRIALS = 5
POLISH_TRIALS, POLISH_STEP = 3, 0.05
"""The last look at the temperature, on all documents: this many trials, this far around what few documents said."""
TEMPERATURE_TOLERANCE = 2e-3
HOPELESS = 1e3
"""Nats a token above any loss that a model has."""
SETTLING = 5
"""What settling on whole corners costs at most after a search on continuous ones: the default and `whole_cells`."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a search over divisors: the greatest ln λ, and (least, greatest) attention factor."""

    log_divisor: float
    attention_factor: tuple[float, float]


def coarse_step(space: Space) -> int:
    """The smallest step between cells that keeps the first sweep within `COARSE_CELLS`."""
    step = 1
    while sum(1 for _ in space.cells(step)) > COARSE_CELLS:
        step += 1
    return step


def race_passes(space: Space, documents: int) -> float:
    """Passes over the whole calibration set that a race costs at most: what a plan and a progress bar need to know."""
    few = min(FEW_DOCUMENTS, documents)
    sweep = sum(1 for _ in space.cells(coarse_step(space)))
    levels = math.ceil(math.log2(coarse_step(space)))
    neighbours = 1 + 5 * LEADERS + 5 * max(levels - 1, 0) + 9
    some = sweep + few * (neighbours + len(_faster(space)) + WARM_TRIALS)
    return some / documents + FINALISTS + 1 + POLISH_TRIALS


def _finite(value: float) -> float:
    """scipy's parabolas and slopes need numbers: a loss that is none is worse than any that is."""
    return min(value, HOPELESS)


def _best(loss: Loss, points: Iterable[Point], documents: int, count: int) -> list[Point]:
    scored = sorted((loss(point, documents), point) for point in dict.fromkeys(points))
    return [point for _, point in scored[:count]]


class Field:
    """Candidates in a race: whoever is surely behind is dropped before it has cost all documents.

    The test is paired: on one document two candidates differ by far less than two documents do. The spread of such a
    difference is pooled over all candidates that the race has seen on a second document.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._squares, self._differences = USUAL_COUNT * USUAL_SPREAD**2, float(USUAL_COUNT)

    @property
    def spread(self) -> float:
        """Standard deviation of the difference between two candidates on one document, nats a token."""
        return math.sqrt(self._squares / self._differences)

    def best(self, points: Iterable[Point], documents: int, count: int) -> list[Point]:
        """The best `count` of the points, the very best first, judged on at most so many documents."""
        alive, before, seen = list(dict.fromkeys(points)), dict[Point, float](), 0
        for upto in _stages(documents):
            losses = {point: self._loss(point, upto) for point in alive}
            alive.sort(key=lambda point: (losses[point], point))
            if seen:
                self._learn(before, losses, alive, 1 / seen - 1 / upto)
            if len(alive) > count:
                limit = losses[alive[count - 1]] + CERTAIN * self.spread / math.sqrt(upto)
                alive = [point for i, point in enumerate(alive) if i < count or losses[point] <= limit]
            before, seen = losses, upto
        return alive[:count]

    def _learn(
        self, before: dict[Point, float], now: dict[Point, float], alive: Sequence[Point], variance: float
    ) -> None:
        """The mean difference from the leader has moved, over more documents; its variance is in units of spread²."""
        leader = alive[0]
        for point in alive[1:]:
            moved = (now[point] - now[leader]) - (before[point] - before[leader])
            if math.isfinite(moved):
                self._squares += moved**2 / variance
                self._differences += 1


def _stages(documents: int) -> list[int]:
    """1, 2, 3, 6, 12, … and at last all documents: when a race looks who is behind."""
    stages, upto = [1, 2], FEW_DOCUMENTS
    while upto < documents:
        stages.append(upto)
        upto *= 2
    return sorted({*(stage for stage in stages if stage < documents), documents})


def _around(space: Space, point: Point, step: int, *, diagonal: bool) -> list[Point]:
    """The point and its neighbours that lie inside the bounds: four, or eight with the diagonal ones."""
    cells = [(i, j) for i, j in product((-step, 0, step), repeat=2) if diagonal or not (i and j)]
    moved = ((int(point.low) + i, int(point.high) + j) for i, j in cells)
    return [point._replace(low=low, high=high) for low, high in moved if space.allows(low, high)]


def _faster(space: Space) -> list[int]:
    """Pairs before the first that the sweep looks at, ever farther: half of them, a quarter, …, and pair 0."""
    low = space.low_bounds[0]
    pairs = []
    while low > 0:
        low //= 2
        pairs.append(low)
    return pairs


def race(loss: Loss, space: Space, documents: int) -> Point:
    """The integer lattice of corners, coarse to fine, then the temperature, then the corners again at that temperature.

    The sweep runs on one document, the neighbours of its best on up to three, the last three on up to all; each time
    whoever is surely behind is dropped (`Field`). Where the best begins at the fastest pair of the sweep, faster ones
    are looked at, too. Until the last look at the corners a cell has four neighbours: the loss is smooth over steps of
    several pairs, and eight would make the search of a model with 64 pairs a third dearer without a better end. The
    winner is then compared with default YaRN on all documents.

    Windows are scored whole, for short ones mislead. Over the 66 cells of the tiny model at s = 4, the loss beyond L
    correlates by −0.09 with that over [L, 1.25 L) and by 0.74 with that over [L, 2 L); a margin wide enough to keep the
    best there (0.1 nats) drops two cells of five, which does not pay for the half windows.
    """
    few = min(FEW_DOCUMENTS, documents)
    step = coarse_step(space)
    start = space.default
    field = Field(loss)
    leaders = field.best([start._replace(low=i, high=j) for i, j in space.cells(step)], 1, LEADERS)
    while step > 1:
        step = math.ceil(step / 2)
        near = [start, *(cell for leader in leaders for cell in _around(space, leader, step, diagonal=False))]
        leaders = field.best(near, few, 1)
    warm = temperature(loss, space, leaders[0], few, trials=WARM_TRIALS)
    if 0 < space.low_bounds[0] >= warm.low:
        warm = field.best([warm, *(warm._replace(low=low) for low in _faster(space))], few, 1)[0]
    finalists = field.best(_around(space, warm, 1, diagonal=True), few, FINALISTS)
    winner = field.best(finalists, documents, 1)[0]
    best = _best(loss, [start, winner], documents, 1)[0]
    return temperature(loss, space, best, documents, step=POLISH_STEP, trials=POLISH_TRIALS)


def temperature(
    loss: Loss,
    space: Space,
    point: Point,
    documents: int,
    *,
    step: float = TEMPERATURE_STEP,
    trials: int = TEMPERATURE_TRIALS,
) -> Point:
    """The attention factor alone, at the point's own corners; never worse than its start.

    The loss is close to a parabola in it. So walk downhill, in steps that double, until the least loss has a neighbour
    on both sides; then go to the bottom of the parabola through the three, again and again, until that is no news.
    """
    least, greatest = space.factor_bounds
    seen = {point.attention_factor: _finite(loss(point, documents))}

    def next_question() -> float:
        tried = sorted(seen)
        best = tried.index(min(tried, key=lambda m: seen[m]))
        if 0 < best < len(tried) - 1:
            return _bottom(*((m, seen[m]) for m in tried[best - 1 : best + 2]))
        reach = math.ldexp(step, max(len(tried) - 2, 0))
        # downwards first: the default is more often too hot than too cold
        if best == 0 and tried[0] > least:
            return tried[0] - reach
        if best == len(tried) - 1 and tried[-1] < greatest:
            return tried[-1] + reach
        return (tried[best] + (tried[1] if best == 0 else tried[-2])) / 2

    for _ in range(trials):
        m = min(max(next_question(), least), greatest)
        if min(abs(m - tried) for tried in seen) < TEMPERATURE_TOLERANCE:
            break
        seen[m] = _finite(loss(point._replace(attention_factor=m), documents))
    return point._replace(attention_factor=min(seen, key=lambda m: seen[m]))


def _bottom(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Where the parabola through three points (x, y) is least; b's y is the least of them, x ascend."""
    left, right = (b[0] - a[0]) * (b[1] - c[1]), (b[0] - c[0]) * (b[1] - a[1])
    if left == right:
        return b[0]
    return b[0] - ((b[0] - a[0]) * left - (b[0] - c[0]) * right) / (2 * (left - right))


def whole_cells(space: Space, point: Point) -> list[Point]:
    """The cells of the lattice around a point, at most four."""
    lows = sorted({math.floor(point.low), math.ceil(point.low)})
    highs = sorted({math.floor(point.high), math.ceil(point.high)})
    return [point._replace(low=i, high=j) for i, j in product(lows, highs) if space.allows(i, j)]


def by_name(loss: Loss, space: Space, documents: int, name: str, *, corners: bool, seed: int) -> Point:
    """One of scipy's own methods on continuous corners and the attention factor, started at default YaRN.

    The ramp must be writable, so the whole corners around the end point are scored last and the best is returned.
    Raises BadUsage for an unknown name.
    """
    if name not in METHODS:
        raise BadUsage(f"unknown optimizer {name!r}", where="--optimizer", hint=f"auto, {', '.join(METHODS)}")
    start = space.default
    lower = np.array([space.low_bounds[0], space.high_bounds[0], space.factor_bounds[0]], dtype=float)
    upper = np.array([space.low_bounds[1], space.high_bounds[1], space.factor_bounds[1]], dtype=float)
    free = [0, 1, 2] if corners else [2]

    def point_at(x: Floats) -> Point:
        values = list(start)
        for index, unit in zip(free, np.clip(x, 0, 1), strict=True):
            values[index] = float(lower[index] + unit * (upper[index] - lower[index]))
        # a ramp needs some width, and the optimisers know only box bounds
        return Point(values[0], max(values[1], values[0] + 0.5), values[2])

    def at(x: Floats) -> float:
        return _finite(loss(point_at(x), documents))

    begin = ((np.array(start) - lower) / (upper - lower))[free]
    box = [(0.0, 1.0)] * len(free)
    if name == "differential-evolution":
        found = optimize.differential_evolution(at, box, x0=begin, rng=seed, popsize=8, maxiter=20, polish=False)
    else:
        # the loss changes with a corner over whole pairs, so numeric slopes need steps of that size
        options = {"eps": 0.02} if name == "l-bfgs-b" else {}
        found = optimize.minimize(at, begin, method=METHODS[name], bounds=box, options=options)
    return _best(loss, [start, *whole_cells(space, point_at(found.x))], documents, 1)[0]


class _Spent(Exception):
    """All gradients are spent."""


def divisors(
    value_and_slope: Callable[[Floats, float], tuple[float, Floats, float]],
    start: Floats,
    attention_factor: float,
    held: int,
    bounds: Bounds,
) -> tuple[Floats, float]:
    """A divisor for each pair and the attention factor, by scipy's SLSQP with the exact slope.

    value_and_slope   (ln λ [pairs], m) → (loss, its slope by ln λ, its slope by m)
    start             ln λ of the point to start from; must not fall from pair to pair
    held              this many first pairs, which turn often, keep the divisors that they start with
    bounds            of ln λ (upper; the lower is 0) and of m

    λ never falls from pair to pair: what is searched are its steps in log space, each at least 0. Ends after
    `GRADIENTS` at the latest. Returns the best that was seen, which may be the start.
    """
    pairs = len(start)
    fixed, steps = np.split(np.diff(start, prepend=0.0), [held])
    seen: list[tuple[float, Floats, float]] = []

    def unpacked(x: Floats) -> tuple[Floats, float]:
        steps = np.concatenate([fixed, np.maximum(x[:-1], 0.0)])
        return np.minimum(np.cumsum(steps), bounds.log_divisor), float(x[-1])

    def at(x: Floats) -> tuple[float, Floats]:
        if len(seen) == GRADIENTS:
            raise _Spent
        log_divisors, m = unpacked(x)
        loss, slope, slope_m = value_and_slope(log_divisors, m)
        seen.append((loss, log_divisors, m))
        # a step moves its own pair and all slower ones
        by_step = np.cumsum(slope[::-1])[::-1][held:]
        return loss, np.concatenate([by_step, [slope_m]])

    total = {
        "type": "ineq",
        "fun": lambda x: bounds.log_divisor - fixed.sum() - x[:-1].sum(),
        "jac": lambda x: np.concatenate([-np.ones(len(x) - 1), [0.0]]),
    }
    with suppress(_Spent):
        optimize.minimize(
            at,
            np.concatenate([steps, [attention_factor]]),
            jac=True,
            method="SLSQP",
            bounds=[(0.0, bounds.log_divisor)] * (pairs - held) + [bounds.attention_factor],
            constraints=[total],
            options={"ftol": 1e-5},
        )
    _, best, m = min(seen, key=lambda entry: entry[0])
    return best, m
