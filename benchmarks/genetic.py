"""A genetic search for a divisor of each pair, as LongRoPE describes it (arXiv 2402.13753, section 3.2, appendix A).

Sixty-four tables around PI, NTK-aware and YaRN, then forty generations of sixteen mutations and sixteen crossovers of
the best thirty-two. Divisors lie in [1, 1.25 s] in steps of 0.01 and never fall from pair to pair. The temperature is
not searched.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Divisors = npt.NDArray[np.float64]
Steps = tuple[int, ...]
"""Divisors in whole steps."""

POPULATION, GENERATIONS, MUTATIONS, CROSSOVERS, PARENTS = 64, 40, 16, 16, 32
PROBABILITY = 0.3
STEPS_PER_UNIT = 100
TRIES = 1000
"""Children that break the order or that were seen before are drawn again, at most so often."""


def _mutated(random: np.random.Generator, parent: Divisors, greatest: int) -> Divisors:
    """Each pair, with the probability, anywhere between its neighbours. All in whole steps."""
    child = parent.copy()
    for pair in np.flatnonzero(random.random(len(child)) < PROBABILITY):
        least = child[pair - 1] if pair else STEPS_PER_UNIT
        most = child[pair + 1] if pair + 1 < len(child) else greatest
        child[pair] = random.integers(least, most + 1)
    return child


def _crossed(random: np.random.Generator, first: Divisors, second: Divisors) -> Divisors:
    """The first parent with each pair, with the probability, of the second."""
    return np.where(random.random(len(first)) < PROBABILITY, second, first)


def search(loss: Callable[[Divisors], float], starts: list[Divisors], factor: float, seed: int) -> Divisors:
    """The best divisors that were seen. `loss` takes divisors [pairs], `starts` are tables to start around."""
    random = np.random.default_rng(seed)
    greatest = round(1.25 * factor * STEPS_PER_UNIT)
    seen: dict[Steps, float] = {}

    def scored(steps: Divisors) -> Steps:
        key = tuple(int(step) for step in steps)
        seen[key] = loss(np.array(key) / STEPS_PER_UNIT)
        return key

    def new(steps: Divisors) -> bool:
        return tuple(steps) not in seen and all(a <= b for a, b in pairwise(steps))

    def mutant(parent: Steps) -> Steps | None:
        children = (_mutated(random, np.array(parent), greatest) for _ in range(TRIES))
        return next((scored(child) for child in children if new(child)), None)

    def cross(first: Steps, second: Steps) -> Steps | None:
        children = (_crossed(random, np.array(first), np.array(second)) for _ in range(TRIES))
        return next((scored(child) for child in children if new(child)), None)

    first = [scored(np.clip(np.round(STEPS_PER_UNIT * start), STEPS_PER_UNIT, greatest)) for start in starts]
    population = [*first, *(mutant(first[i % len(first)]) for i in range(POPULATION - len(first)))]
    for _ in range(GENERATIONS):
        parents = sorted((table for table in population if table is not None), key=seen.__getitem__)[:PARENTS]
        population = list(parents)
        for _ in range(MUTATIONS):
            population.append(mutant(parents[random.integers(len(parents))]))
        for _ in range(CROSSOVERS):
            i, j = sorted(random.choice(len(parents), 2, replace=False))
            # two alike parents have no new child
            population.append(cross(parents[i], parents[j]) or mutant(parents[i]))
    return np.array(min(seen, key=seen.__getitem__)) / STEPS_PER_UNIT
