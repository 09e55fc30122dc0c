"""Is a difference real? Paired by document, because documents differ far more than methods do."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from calibrate.score import Counts, Floats


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference in nats a token (after − before), its 95 % interval, and the documents it rests on.

    low and high are infinite when there is only one document, which says nothing about the next one, and when a loss is
    not a finite number.
    """

    delta: float
    low: float
    high: float
    documents: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_difference(after: Floats, before: Floats, tokens: Counts) -> Difference:
    """Difference of two sums of nats over the same documents, all arrays [documents].

    delta is the ratio estimate Σ(after − before) / Σ tokens; its variance is the linearised one for a ratio of sums
    with documents as clusters (Cochran, Sampling Techniques, 3rd ed., section 6.3; Miller, arXiv 2411.00640, section
    2.2), and the interval is Student's t with documents − 1 degrees of freedom.
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
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    return Difference(delta, delta - reach, delta + reach, count)


def standard_error(nats: Floats, tokens: Counts) -> float:
    """Standard error of Σ nats / Σ tokens over documents; NaN where there is none. Arrays are [documents]."""
    count = len(tokens)
    if count < 2 or not np.isfinite(nats).all():
        return float("nan")
    residual = (nats - nats.sum() / tokens.sum() * tokens) / tokens.mean()
    return float(np.sqrt(residual.var(ddof=1) / count))
