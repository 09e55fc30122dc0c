"""Is a difference real, and is a law? Differences are paired by document: documents differ more than methods do."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from calibrate.score import Counts, Floats

MANY_DOCUMENTS = 30.0
"""From this many effective documents on an interval is bootstrapped; below it is Student's t."""

RESAMPLES, RESAMPLING_SEED = 9999, 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference in nats a token (after − before), its 95 % interval, and the documents it rests on.

    low and high are infinite when there is only one document, which says nothing about the next one, and when a loss is
    not a finite number. `interval` says how they were found.
    """

    delta: float
    low: float
    high: float
    documents: int
    interval: Literal["t", "bootstrap"] = "t"

    @property
    def in_words(self) -> str:
        """The difference with its interval, for a sentence."""
        known = f"95 % interval {self.low:+.4f} to {self.high:+.4f}"
        return f"{self.delta:+.4f} nats a token, {known if math.isfinite(self.low) else 'without an interval'}"


def effective_documents(tokens: Counts) -> float:
    """How many documents of equal length say as much about a mean as these, (Σ tokens)² / Σ tokens².

    tokens [documents]; between 1 and their number. Source: Kish, Weighting for unequal P_i, Journal of Official
    Statistics 8 (1992), p. 183–200.
    """
    weights = tokens.astype(np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum())


def paired_difference(after: Floats, before: Floats, tokens: Counts) -> Difference:
    """Difference of two sums of nats over the same documents, all arrays [documents].

    delta is the ratio estimate Σ(after − before) / Σ tokens. For few documents its variance is the linearised one for a
    ratio of sums with documents as clusters (Cochran, Sampling Techniques, 3rd ed., section 6.3; Miller, arXiv
    2411.00640, section 2.2), and the interval is Student's t with effective documents − 1 degrees of freedom: with as
    many as there are documents, eight of one to eight windows would claim a gain by chance in 3.6 % of all runs instead
    of 2.5 %, with these in 3.0 %. From `MANY_DOCUMENTS` effective ones on it is the bias-corrected and accelerated
    bootstrap over documents (Efron, Journal of the American Statistical Association 82 (1987), p. 171–185), with a
    fixed seed: the same numbers give the same interval.
    """
    count = len(tokens)
    with np.errstate(invalid="ignore"):  # ∞ − ∞, which is answered below
        difference = after - before
    delta = float(difference.sum() / tokens.sum())
    if count < 2:
        return Difference(delta, -np.inf, np.inf, count)
    if not np.isfinite(difference).all():
        return Difference(delta, -np.inf, np.inf, count)
    residual = (difference - delta * tokens) / tokens.mean()
    error = float(np.sqrt(residual.var(ddof=1) / count))
    effective = effective_documents(tokens)
    # where all documents agree to the rounding of a sum there is nothing to resample
    if effective >= MANY_DOCUMENTS and error > 1e-12 * abs(delta):
        low, high = _bootstrapped(difference, tokens)
        return Difference(delta, low, high, count, "bootstrap")
    reach = float(stats.t.ppf(0.975, effective - 1)) * error
    return Difference(delta, delta - reach, delta + reach, count)


def _bootstrapped(difference: Floats, tokens: Counts) -> tuple[float, float]:
    """95 % BCa interval of Σ difference / Σ tokens, whole documents resampled."""
    found = stats.bootstrap(
        (difference, tokens),
        lambda nats, weights, axis: nats.sum(axis=axis) / weights.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(RESAMPLING_SEED),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def standard_error(nats: Floats, tokens: Counts) -> float:
    """Standard error of Σ nats / Σ tokens over documents; NaN where there is none. Arrays are [documents]."""
    count = len(tokens)
    if count < 2 or not np.isfinite(nats).all():
        return float("nan")
    residual = (nats - nats.sum() / tokens.sum() * tokens) / tokens.mean()
    return float(np.sqrt(residual.var(ddof=1) / count))


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line y = slope·x + intercept with its 95 % intervals (low, high).

    against_rejected  whether the pair (slope, intercept) that it was tested against is rejected at the 5 % level

    Two points leave nothing to judge the line by: the last three are None.
    """

    slope: float
    intercept: float
    slope_ci95: tuple[float, float] | None
    intercept_ci95: tuple[float, float] | None
    against_rejected: bool | None


def fitted_line(x: Floats, y: Floats, against: tuple[float, float], *, resolution: float) -> Line:
    """The least-squares line through points of equal weight, x and y [points], tested against another line.

    against     (slope, intercept) to test, both at once: F = (β − β₀)ᵀ XᵀX (β − β₀) / (2 σ²) with 2 and points − 2
                degrees of freedom (Draper and Smith, Applied Regression Analysis, 3rd ed., chapter 5)
    resolution  how finely y is known; σ, the standard deviation around the line, is never taken to be less

    The intervals are Student's t with points − 2 degrees of freedom (the same, chapter 1), one coefficient at a time.
    Raises ValueError for fewer than two different x.
    """
    count, centre = len(x), float(x.mean())
    spread = float(((x - centre) ** 2).sum())
    if spread == 0:
        raise ValueError("a line needs two different x")
    slope = float(((x - centre) * (y - y.mean())).sum()) / spread
    intercept = float(y.mean()) - slope * centre
    if count < 3:
        return Line(slope, intercept, None, None, None)
    around = float(((y - slope * x - intercept) ** 2).sum()) / (count - 2)
    variance = max(around, resolution**2)
    reach = float(stats.t.ppf(0.975, count - 2)) * math.sqrt(variance)
    of_slope, of_intercept = reach / math.sqrt(spread), reach * math.sqrt(1 / count + centre**2 / spread)
    # (β − β₀)ᵀ XᵀX (β − β₀) is the squared distance between the two lines, summed over the points
    apart = float((((slope - against[0]) * x + intercept - against[1]) ** 2).sum())
    rejected = apart > 2 * variance * float(stats.f.ppf(0.95, 2, count - 2))
    return Line(
        slope,
        intercept,
        (slope - of_slope, slope + of_slope),
        (intercept - of_intercept, intercept + of_intercept),
        rejected,
    )
