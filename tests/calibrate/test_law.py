"""The line m(s) = a·ln s + b through several factors: its numbers, its intervals, and what it may claim."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from calibrate.calibration import Fit, Law
from calibrate.run import law_of, temperature_of
from calibrate.statistics import Difference, Line, fitted_line
from ropecli.spec import RopeSpec, Yarn

YARN = (0.1, 1.0)
FACTORS = np.log([2.0, 4.0, 8.0, 16.0, 32.0])


def line(y: list[float], x: list[float], resolution: float = 1e-9) -> Line:
    return fitted_line(np.array(x), np.array(y), YARN, resolution=resolution)


def test_three_points_by_hand() -> None:
    """A line worked out on paper: slope 1/2, residuals 1/6, −1/3, 1/6 with one degree of freedom."""
    found = line([1.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    assert (found.slope, found.intercept) == (pytest.approx(0.5), pytest.approx(5 / 6))
    sigma, t = math.sqrt(1 / 6), 12.706204736432095
    assert found.slope_ci95 == pytest.approx((0.5 - t * sigma / math.sqrt(2), 0.5 + t * sigma / math.sqrt(2)))
    reach = t * sigma * math.sqrt(1 / 3 + 1 / 2)
    assert found.intercept_ci95 == pytest.approx((5 / 6 - reach, 5 / 6 + reach))


@given(st.lists(st.floats(0.5, 1.5), min_size=3, max_size=5).filter(lambda y: np.ptp(y) > 1e-3))
def test_it_is_the_regression_of_scipy(y: list[float]) -> None:
    """Coefficients and intervals are those of `scipy.stats.linregress` with Student's t."""
    x = FACTORS[: len(y)]
    found, expected = line(y, list(x)), stats.linregress(x, y)
    t = stats.t.ppf(0.975, len(y) - 2)
    assert (found.slope, found.intercept) == (pytest.approx(expected.slope), pytest.approx(expected.intercept))
    for interval, middle, error in (
        (found.slope_ci95, expected.slope, expected.stderr),
        (found.intercept_ci95, expected.intercept, expected.intercept_stderr),
    ):
        assert interval == pytest.approx((middle - t * error, middle + t * error), rel=1e-5, abs=1e-6)


@given(st.lists(st.floats(0.9, 1.4), min_size=4, max_size=5).filter(lambda y: np.ptp(y) > 1e-2))
def test_the_joint_test_is_the_f_test_of_two_models(y: list[float]) -> None:
    """Rejected exactly where the residual sum of squares grows too much when both coefficients are put to YaRN's."""
    x = FACTORS[: len(y)]
    free = np.polynomial.polynomial.polyfit(x, y, 1)
    left = float(((np.array(y) - free[0] - free[1] * x) ** 2).sum())
    fixed = float(((np.array(y) - YARN[1] - YARN[0] * x) ** 2).sum())
    ratio = (fixed - left) / 2 / (left / (len(y) - 2))
    threshold = stats.f.ppf(0.95, 2, len(y) - 2)
    if abs(ratio / threshold - 1) > 1e-6:
        assert line(y, list(x)).against_rejected == (ratio > threshold)


@pytest.mark.parametrize("count", [3, 5])
def test_the_intervals_cover_what_they_promise(count: int) -> None:
    """With normal errors each interval holds the truth in 95 % of 2,000 draws, and the true law is rejected in 5 %."""
    draw = np.random.default_rng(7)
    x = FACTORS[:count]
    found = [line(list(YARN[0] * x + YARN[1] + draw.normal(0, 0.01, count)), list(x)) for _ in range(2000)]
    slopes = [f.slope_ci95 for f in found if f.slope_ci95 is not None]
    intercepts = [f.intercept_ci95 for f in found if f.intercept_ci95 is not None]
    # 0.95 ± 4 standard errors of a share of 2,000
    assert np.mean([low <= YARN[0] <= high for low, high in slopes]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([low <= YARN[1] <= high for low, high in intercepts]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([f.against_rejected for f in found]) == pytest.approx(0.05, abs=0.02)


def test_another_law_is_seen() -> None:
    """Points on YaRN-Mistral's 0.07·ln s + 1, with errors of a hundredth of that, reject 0.1·ln s + 1."""
    draw = np.random.default_rng(1)
    found = line(list(0.07 * FACTORS + 1 + draw.normal(0, 0.001, 5)), list(FACTORS), resolution=0.002)
    assert found.against_rejected
    assert found.slope == pytest.approx(0.07, abs=0.003)


@pytest.mark.parametrize("count", [3, 5])
def test_points_on_the_default_do_not_reject_it(count: int) -> None:
    """Exactly on YaRN's law nothing is around the line; the resolution keeps rounding from being taken for proof."""
    x = FACTORS[:count]
    found = line([0.1 * v + 1 for v in x], list(x), resolution=0.002)
    assert (found.slope, found.intercept) == (pytest.approx(0.1), pytest.approx(1.0))
    assert found.against_rejected is False
    assert found.slope_ci95 is not None
    assert found.slope_ci95[0] < 0.1 < found.slope_ci95[1]


def test_a_line_is_known_no_better_than_its_points() -> None:
    """Three points that lie on a line by luck get the interval of the resolution."""
    x = [0.0, 1.0, 2.0]
    lucky = line([1.0, 1.1, 1.2], x, resolution=0.002)
    assert lucky.slope_ci95 == pytest.approx(
        (0.1 - 12.706204736432095 * 0.002 / math.sqrt(2), 0.1 + 12.706204736432095 * 0.002 / math.sqrt(2))
    )


def test_two_points_give_a_line_and_no_verdict() -> None:
    """Through two points there is one line; what it is worth stays unknown."""
    found = line([1.0, 1.1], [0.0, 2.0])
    assert (found.slope, found.intercept) == (pytest.approx(0.05), pytest.approx(1.0))
    assert (found.slope_ci95, found.intercept_ci95, found.against_rejected) == (None, None, None)


@pytest.mark.parametrize("x", [[1.0], [1.0, 1.0, 1.0]])
def test_one_place_gives_no_line(x: list[float]) -> None:
    """A single factor has no slope."""
    with pytest.raises(ValueError, match="two different x"):
        line([1.0] * len(x), x)


# ------------------------------------------------------------------------------------------------ of fits


def fit(factor: float, found: float, decision: str = "calibrated") -> Fit:
    m = found if decision == "calibrated" else 0.1 * math.log(factor) + 1
    spec = RopeSpec(10000.0, 32, 32, 256, round(256 * factor), Yarn(factor, m))
    return Fit(spec, found, True, decision, "", (), {}, (), {}, ())


def test_the_law_is_of_what_was_found_whatever_was_decided() -> None:
    """A factor whose verdict kept the default gives the m of its search, not the default's."""
    law = law_of([fit(2, 1.05), fit(4, 1.10, "default"), fit(8, 1.15)])
    assert law is not None
    assert law.points == ((2.0, 1.05), (4.0, 1.10), (8.0, 1.15))
    assert (law.a, law.b) == (pytest.approx(0.05 / math.log(2)), pytest.approx(1.0))
    assert law.default_rejected


@pytest.mark.parametrize("decisions", [("default", "default"), ("default", "calibrated"), ("calibrated", "default")])
def test_the_temperature_is_the_default_law_where_nothing_is_calibrated(decisions: tuple[str, str]) -> None:
    """Searches may find any m: where no verdict takes one, what the file stands for is 0.1·ln s + 1."""
    fits = [fit(2, 0.8, decisions[0]), fit(3, 1.19, decisions[1])]
    law = law_of(fits)
    assert law is not None
    assert temperature_of(fits, law) == ((law.a, law.b) if "calibrated" in decisions else YARN)
    assert law.a > 0.9


def test_the_temperature_of_one_factor_gives_its_m() -> None:
    """There b is 1."""
    (a, b), (default, _) = (temperature_of([fit(4, 1.07, word)], None) for word in ("calibrated", "default"))
    assert (a * math.log(4) + b, b, default) == (pytest.approx(1.07), 1.0, 0.1)


def test_one_factor_has_no_law() -> None:
    """A single fit gives none."""
    assert law_of([fit(4, 1.1)]) is None


def test_the_law_as_json() -> None:
    """Unknown intervals are null; YaRN's own law stands beside the one that was found."""
    law = Law(0.07, 1.0, None, (0.9, 1.1), ((2.0, 1.05), (4.0, 1.1)), None)
    assert law.to_json() == {
        "a": 0.07,
        "b": 1.0,
        "a_ci95": None,
        "b_ci95": [0.9, 1.1],
        "points": [{"factor": 2.0, "attention_factor": 1.05}, {"factor": 4.0, "attention_factor": 1.1}],
        "default": {"a": 0.1, "b": 1.0},
        "default_rejected": None,
    }


def test_held_out_text_decides_on_yarns_law_where_it_was_asked() -> None:
    """Three points that scatter too much to tell anything: the losses at the same corners do."""
    fits = [fit(2, 1.00), fit(4, 1.13), fit(8, 1.10)]
    alone = law_of(fits)
    assert alone is not None
    assert not alone.default_rejected
    for high, rejected in ((-0.002, True), (0.001, False)):
        law = law_of(fits, Difference(-0.004, -0.006, high, 12))
        assert law is not None
        assert law.default_rejected is rejected
        assert law.to_json()["default"] == {"a": 0.1, "b": 1.0, "delta": 0.004, "ci95": [-high, 0.006]}
