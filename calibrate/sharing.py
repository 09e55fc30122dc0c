"""What several factors have in common: one ramp, unless held-out text asks for one each, and a law of the temperature.

The corners of YaRN's ramp say which pairs of the model are slowed, which has nothing to do with how far; so the same
corners for every factor are the simpler answer, and the one that gives the law of the temperature a meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibrate import search
from calibrate.fence import as_loaded
from calibrate.fit import Found, Prepared
from calibrate.objective import Point
from calibrate.score import Floats, tokens_by_band
from calibrate.statistics import Difference, paired_difference


@dataclass(frozen=True, slots=True)
class Sharing:
    """The corners that all factors could share, and what corners of their own are worth on held-out text.

    founds      the fits with those corners, in the order that was given
    difference  own minus shared, nats a token over the objective's positions of all factors, paired by document;
                None where the searches had ended on the same corners
    """

    founds: tuple[Found, ...]
    difference: Difference | None

    @property
    def supported(self) -> bool:
        """Whether the shared corners are to be used: corners of their own are not proved better."""
        return self.difference is None or not self.difference.high < 0

    @property
    def note(self) -> str:
        """What came out, in a sentence."""
        low, high, _ = self.founds[0].point
        if self.difference is None:
            return f"the search found the same corners, {low:g} and {high:g}, for every factor"
        span = self.difference.in_words
        if self.supported:
            return f"every factor has the corners {low:g} and {high:g}: own ones are not proved better ({span})"
        return (
            f"each factor has corners of its own, which held-out text proves better than {low:g} and {high:g} ({span})"
        )


def share_corners(founds: Sequence[Found]) -> tuple[Point, ...]:
    """For each factor the point on the corners that all share.

    Of the corners that the searches found and those of default YaRN, the ones whose losses add up to the least over all
    factors and documents; then m is settled again for each factor. Raises SearchStopped when the budget is spent.
    """
    everyone = [(found, len(found.task.found)) for found in founds]
    options = dict.fromkeys(point[:2] for found in founds for point in (found.point, found.task.space.default))

    def total(corners: tuple[float, float]) -> float:
        low, high = corners
        return sum(
            found.trials.loss(found.point._replace(low=low, high=high), documents) for found, documents in everyone
        )

    low, high = min(options, key=total)
    return tuple(
        search.temperature(
            found.trials.loss,
            found.task.space,
            found.point._replace(low=low, high=high),
            documents,
            step=search.POLISH_STEP,
            trials=search.WARM_TRIALS,
        )
        for found, documents in everyone
    )


def shared(prepared: Prepared, founds: Sequence[Found]) -> Sharing:
    """Find corners for all factors, and judge them against each factor's own on held-out documents.

    Every factor must have the same documents. Raises SearchStopped when the budget is spent before it is done.
    """
    if len({found.point[:2] for found in founds}) == 1:
        return Sharing(tuple(founds), None)
    together = tuple(replace(found, point=point) for found, point in zip(founds, share_corners(founds), strict=True))

    tokens = np.sum([_judged(prepared, tokens_by_band(f.task.held, f.task.finer), f) for f in founds], axis=0)
    own, common = (
        np.sum([_judged(prepared, _held_out_nats(prepared, f), f) for f in some], axis=0) for some in (founds, together)
    )
    return Sharing(together, paired_difference(own, common, tokens))


def against_default_law(prepared: Prepared, founds: Sequence[Found]) -> Difference:
    """What the attention factors that were found are worth against YaRN's 0.1·ln s + 1, at the corners that were found.

    Over the objective's positions of all factors, nats a token, paired by document; below zero they are better.
    """
    tokens = np.sum([_judged(prepared, tokens_by_band(f.task.held, f.task.finer), f) for f in founds], axis=0)
    default = [
        replace(f, point=f.point._replace(attention_factor=f.task.space.default.attention_factor)) for f in founds
    ]
    own, yarn = (
        np.sum([_judged(prepared, _held_out_nats(prepared, f), f) for f in some], axis=0) for some in (founds, default)
    )
    return paired_difference(own, yarn, tokens)


def _held_out_nats(prepared: Prepared, found: Found) -> Floats:
    return found.held_out(as_loaded(found.spec(prepared.plain)), found.task.held)


def _judged(prepared: Prepared, by_band: Any, found: Found) -> Any:
    """Sums over the objective's positions, [documents], of numbers by held-out band."""
    columns, _ = prepared.objective.columns(found.task.finer, prepared.plain.original_length)
    return by_band[:, columns].sum(axis=1)
