"""Find the best point, given only a loss: a race over the lattice, the temperature alone, and scipy's own methods.

A loss function goes in, a point comes out. Nothing here knows a model, a text or a rotary embedding, only the bounds
of `Space`. The caller keeps every trial, may stop the search at any time by raising, and picks the best of what it saw.
"""

import math
from collections.abc import Callable, Iterable
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
FINALISTS = 3
GRADIENT_ITERATIONS = 30
FEW_DOCUMENTS = 3
TEMPERATURE_TRIALS = 7
POLISH_TRIALS, POLISH_REACH = 3, 0.03
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
    """Passes over the whole calibration set that a race costs at most: what a progress bar needs to know."""
    few = min(FEW_DOCUMENTS, documents)
    sweep = sum(1 for _ in space.cells(coarse_step(space)))
    levels = math.ceil(math.log2(coarse_step(space)))
    neighbours = 8 * FINALISTS * levels + 8
    some = sweep + few * (neighbours + TEMPERATURE_TRIALS)
    return some / documents + FINALISTS + 1 + POLISH_TRIALS


def _finite(value: float) -> float:
    """scipy's parabolas and slopes need numbers: a loss that is none is worse than any that is."""
    return min(value, HOPELESS)


def _best(loss: Loss, points: Iterable[Point], documents: int, count: int) -> list[Point]:
    scored = sorted((loss(point, documents), point) for point in dict.fromkeys(points))
    return [point for _, point in scored[:count]]


def _around(space: Space, point: Point, step: int) -> list[Point]:
    cells = product((-step, 0, step), repeat=2)
    moved = ((int(point.low) + i, int(point.high) + j) for i, j in cells)
    return [point._replace(low=low, high=high) for low, high in moved if space.allows(low, high)]


def race(loss: Loss, space: Space, documents: int) -> Point:
    """The integer lattice of corners, coarse to fine, then the temperature, then the corners again at that temperature.

    Cells are dropped on few documents and decided on all: the sweep runs on one, the neighbours of the best three on
    three, the last three on all. On one model's whole lattice, scored cell by cell, this order found the optimum in
    nearly every order of the documents.
    """
    few = min(FEW_DOCUMENTS, documents)
    step = coarse_step(space)
    start = space.default
    leaders = _best(loss, [start._replace(low=i, high=j) for i, j in space.cells(step)], 1, FINALISTS)
    while step > 1:
        step = math.ceil(step / 2)
        near = [start, *(cell for leader in leaders for cell in _around(space, leader, step))]
        leaders = _best(loss, near, few, FINALISTS)
    warm = temperature(loss, space, leaders[0], few)
    near = [*(leader._replace(attention_factor=warm.attention_factor) for leader in leaders), *_around(space, warm, 1)]
    finalists = _best(loss, near, few, FINALISTS)
    best = _best(loss, [start, *finalists], documents, 1)[0]
    m = best.attention_factor
    return temperature(loss, space, best, documents, (m - POLISH_REACH, m + POLISH_REACH), POLISH_TRIALS)


def temperature(
    loss: Loss,
    space: Space,
    point: Point,
    documents: int,
    bounds: tuple[float, float] | None = None,
    trials: int = TEMPERATURE_TRIALS,
) -> Point:
    """The attention factor alone, by scipy's bounded Brent, at the point's own corners; never worse than its start."""
    seen = {point.attention_factor: loss(point, documents)}

    def at(attention_factor: float) -> float:
        seen[attention_factor] = loss(point._replace(attention_factor=attention_factor), documents)
        return _finite(seen[attention_factor])

    optimize.minimize_scalar(
        lambda m: at(float(m)),
        bounds=bounds or space.factor_bounds,
        method="bounded",
        options={"maxiter": trials, "xatol": TEMPERATURE_TOLERANCE},
    )
    return point._replace(attention_factor=min(seen, key=lambda m: seen[m]))


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
    held              this many first pairs, which turn often, keep the divisor 1
    bounds            of ln λ (upper; the lower is 0) and of m

    λ never falls from pair to pair: what is searched are its steps in log space, each at least 0. Returns the best that
    was seen, which may be the start.
    """
    pairs = len(start)
    seen: list[tuple[float, Floats, float]] = []

    def unpacked(x: Floats) -> tuple[Floats, float]:
        steps = np.concatenate([np.zeros(held), np.maximum(x[:-1], 0.0)])
        return np.minimum(np.cumsum(steps), bounds.log_divisor), float(x[-1])

    def at(x: Floats) -> tuple[float, Floats]:
        log_divisors, m = unpacked(x)
        loss, slope, slope_m = value_and_slope(log_divisors, m)
        seen.append((loss, log_divisors, m))
        # a step moves its own pair and all slower ones
        by_step = np.cumsum(slope[::-1])[::-1][held:]
        return loss, np.concatenate([by_step, [slope_m]])

    steps = np.diff(np.concatenate([[0.0], start]))[held:]
    total = {
        "type": "ineq",
        "fun": lambda x: bounds.log_divisor - x[:-1].sum(),
        "jac": lambda x: np.concatenate([-np.ones(len(x) - 1), [0.0]]),
    }
    optimize.minimize(
        at,
        np.concatenate([steps, [attention_factor]]),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, bounds.log_divisor)] * (pairs - held) + [bounds.attention_factor],
        constraints=[total],
        options={"maxiter": GRADIENT_ITERATIONS, "ftol": 1e-5},
    )
    _, best, m = min(seen, key=lambda entry: entry[0])
    return best, m
