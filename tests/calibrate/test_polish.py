"""`calibrate.polish`: from the best YaRN to a divisor for each pair, on losses whose bottom is known."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from calibrate import polish
from calibrate.corpus import Document
from calibrate.fence import as_loaded
from calibrate.gradient import Slope, SlopeOf
from calibrate.objective import Objective, Point, Space, method
from calibrate.polish import LARGEST_DIVISOR, OFTEN, WITHIN_WEIGHT, Polished
from calibrate.score import Bands, Floats
from calibrate.search import GRADIENTS
from calibrate.verdict import finer_if_proved
from ropecli.frequencies import Frequencies, base_frequencies, frequencies, rotations
from ropecli.spec import Longrope, RopeSpec

PLAIN = RopeSpec(10000.0, 32, 32, 256, 256)
SPACE = Space(PLAIN, 4.0)
START = method("yarn", PLAIN, 4.0)
BASE = np.array(base_frequencies(PLAIN.rope_theta, PLAIN.rotary_dim))
HELD = int(sum(rotations(w, PLAIN.original_length) >= OFTEN for w in BASE))
OBJECTIVE = Objective("beyond")
BANDS = OBJECTIVE.bands(256, 1024)
DOCUMENTS = tuple(Document(f"d{i}", ((i,) * 1024,)) for i in range(12))
GREATEST_M = SPACE.factor_bounds[1]


def divisors_of(spec: RopeSpec) -> Floats:
    return BASE / np.array(frequencies(spec).inv_freq)


def bowl(target: Floats, m: float) -> SlopeOf:
    """A loss with its bottom at these divisors and this attention factor, and its slope by frequency and m."""

    def slope_of(table: Frequencies, _: Sequence[Document], bands: Bands, weights: Sequence[float]) -> Slope:
        assert (bands, len(weights)) == (BANDS, 2)
        inv_freq = np.array(table.inv_freq)
        away = np.log(BASE / inv_freq) - np.log(target)
        beside = table.attention_factor - m
        return Slope(3.0 + float((away**2).sum()) + 4 * beside**2, -2 * away / inv_freq, 8 * beside)

    return slope_of


def polished(slope_of: SlopeOf, stopped: Callable[[], bool] = lambda: False, told: list[str] | None = None) -> Polished:
    tell = [] if told is None else told
    return polish.divisors(slope_of, SPACE, START, DOCUMENTS, BANDS, OBJECTIVE, tell.append, stopped)


RISING = np.array([*[1.0] * 4, 1.05, 1.3, 2.0, 2.5, 3.0, 3.2, 3.6, 3.7, 4.1, 4.2, 4.4, 4.6])


def test_it_walks_to_the_bottom() -> None:
    """Divisors that rise from pair to pair inside the bounds are found, with m, and carried by longrope."""
    told: list[str] = []
    found = polished(bowl(RISING, 1.07), told=told)
    assert divisors_of(found.spec) == pytest.approx(RISING, rel=0.01)
    scaling = found.spec.scaling
    assert isinstance(scaling, Longrope)
    assert scaling.attention_factor == pytest.approx(1.07, abs=2e-3)
    assert (found.spec.original_length, found.spec.max_length) == (256, 1024)
    assert found.complete
    assert found.gradients == len(told)
    assert 1 < found.gradients <= GRADIENTS
    assert told[0].startswith("gradient 1: m 1.1386: ")
    assert f"{WITHIN_WEIGHT:g} of those within L" in told[0]


def test_divisors_never_fall_and_often_turning_pairs_stay() -> None:
    """Where the loss asks for divisors that fall or slow the fastest pairs, the answer is monotone and those are 1."""
    zigzag = np.where(np.arange(16) % 2, RISING, 1.5 * RISING)
    found = divisors_of(polished(bowl(zigzag, 1.07)).spec)
    assert HELD >= 1
    assert found[:HELD] == pytest.approx(1.0, abs=1e-12)
    assert (np.diff(found) >= -1e-9).all()
    assert found.max() <= LARGEST_DIVISOR * 4 * (1 + 1e-9)


def test_often_turning_pairs_that_yarn_slows_stay_as_they_are() -> None:
    """Where the ramp begins at the first pair, the search starts from that very table and moves the others alone."""
    space = Space(RopeSpec(100_000.0, 64, 64, 8192, 8192), 4.0)
    start = replace(space.spec, scaling=space.scaling(Point(0, 25, 1.08)), max_length=32_768)
    base = np.array(base_frequencies(100_000.0, 64))
    held = int(sum(rotations(w, 8192) >= OFTEN for w in base))
    begun = base / np.array(frequencies(start).inv_freq)
    assert begun[held - 1] > 1.2
    asked = []

    def slope_of(table: Frequencies, *_: object) -> Slope:
        asked.append(base / np.array(table.inv_freq))
        away = np.log(asked[-1] / begun) - np.linspace(0, 0.1, 32)
        return Slope(float((away**2).sum()), -2 * away / np.array(table.inv_freq), 0.0)

    bands = OBJECTIVE.bands(8192, 32_768)
    found = polish.divisors(slope_of, space, start, DOCUMENTS, bands, OBJECTIVE, lambda _: None, lambda: False)
    assert asked[0] == pytest.approx(begun, rel=1e-6)
    ended = base / np.array(frequencies(found.spec).inv_freq)
    assert ended[:held] == pytest.approx(begun[:held], rel=1e-6)
    assert ended[-1] > 1.05 * begun[-1]


@pytest.mark.parametrize(
    ("target", "m", "expected"),
    [
        (RISING + 0.2, 1.07, ()),
        (RISING, 1.07, ("a divisor of 1",)),
        (RISING + 2.0, 1.07, ("a divisor of 5",)),
        (RISING + 0.2, 3.0, (f"an attention factor of {GREATEST_M:.4g}",)),
        (RISING + 0.2, 0.1, ("an attention factor of 0.8",)),
        (
            np.where(RISING == 1, 1, 2 * RISING),
            3.0,
            ("a divisor of 1", "a divisor of 5", "an attention factor of 1.489"),
        ),
    ],
)
def test_every_bound_that_the_best_lies_on_is_told(target: Floats, m: float, expected: tuple[str, ...]) -> None:
    """The lower and the upper bound of the divisors and of m, each by name; none where the best lies inside."""
    assert polished(bowl(target, m)).on_bounds == expected


def test_a_loss_that_is_lowest_at_the_start_keeps_it() -> None:
    """Nothing is worse than the start: where it is the bottom, the divisors are YaRN's own."""
    found = polished(bowl(divisors_of(START), frequencies(START).attention_factor))
    assert divisors_of(found.spec) == pytest.approx(divisors_of(START), rel=1e-6)


def test_a_search_without_an_end_costs_no_more_than_its_gradients() -> None:
    """A valley that bends (Rosenbrock's, in each two pairs): it is not at the bottom when the gradients are spent."""

    def valley(table: Frequencies, *_: object) -> Slope:
        x = np.log(BASE / np.array(table.inv_freq))
        bend = x[1:] - x[:-1] ** 2
        slope = np.zeros(16)
        slope[1:] += 200 * bend
        slope[:-1] += -400 * x[:-1] * bend - 2 * (1 - x[:-1])
        nats = float((100 * bend**2 + (1 - x[:-1]) ** 2).sum())
        return Slope(nats, -slope / np.array(table.inv_freq), 0.0)

    told: list[str] = []
    found = polished(valley, told=told)
    assert found.gradients == len(told) == GRADIENTS
    assert found.complete


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_search_that_is_stopped_has_the_best_it_saw(after: int) -> None:
    """So many gradients and no more; without any, the embedding that it started from."""
    asked: list[float] = []
    true = bowl(RISING, 1.07)

    def counted(*arguments: object) -> Slope:
        found = true(*arguments)  # type: ignore[arg-type]
        asked.append(found.nats)
        return found

    found = polished(counted, lambda: len(asked) >= after)
    assert not found.complete
    assert found.gradients == len(asked) == after
    if after == 0:
        assert found.spec == START
    else:
        table = frequencies(found.spec, 1024)
        assert true(table, DOCUMENTS, BANDS, (0.0, 0.0)).nats == pytest.approx(min(asked), abs=1e-9)


# ------------------------------------------------------------------------------------------------ what replaces what


def scored(effect: float, spread: float, *, documents: int = 12) -> tuple[RopeSpec, str]:
    """Held-out documents on which the divisors change the loss beyond L by `effect` ± `spread` nats a token."""
    draw = np.random.default_rng(0)
    held = DOCUMENTS[:documents]
    before = 768 * draw.normal(3.5, 0.4, documents)
    changes = draw.normal(0, spread, documents)
    after = before + 768 * (changes - changes.mean() + effect)
    finer = polished(bowl(RISING, 1.07)).spec
    nats = {as_loaded(START): before, as_loaded(finer): after}
    nats_of = lambda table, _: np.stack([np.full(documents, 700.0), nats[table]], axis=1)  # noqa: E731
    return finer_if_proved(nats_of, held, START, finer, BANDS, OBJECTIVE)


@pytest.mark.parametrize(
    ("effect", "spread", "documents", "replaces"),
    [
        (-0.02, 0.02, 12, True),
        (-0.02, 0.06, 12, False),
        (0.0, 0.02, 12, False),
        (0.02, 0.02, 12, False),
        (-0.02, 0.0, 1, False),
        (math.nan, 0.02, 12, False),
    ],
)
def test_divisors_replace_yarn_only_where_the_interval_excludes_zero(
    effect: float, spread: float, documents: int, *, replaces: bool
) -> None:
    """A proved gain replaces; one that may be chance, none, a loss, one document, or no number at all does not."""
    spec, note = scored(effect, spread, documents=documents)
    assert isinstance(spec.scaling, Longrope) == replaces
    assert spec == START or replaces
    assert ("is better on held-out text" in note) == replaces
    assert ("is not proved better on held-out text" in note) != replaces
    assert f"against YaRN {effect:+.4f} nats a token" in note
