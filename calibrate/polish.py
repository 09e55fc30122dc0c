"""From the best YaRN to a divisor for each pair, by the exact slope of the loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibrate import search
from calibrate.corpus import Document
from calibrate.gradient import SlopeOf
from calibrate.objective import Objective, Space
from calibrate.score import Bands, Floats, tokens_by_band
from calibrate.trials import SearchStopped
from ropecli.frequencies import Frequencies, base_frequencies, frequencies, rotations
from ropecli.spec import Longrope, RopeSpec

LARGEST_DIVISOR = 1.25
"""Divisors are searched up to this times the factor (LongRoPE, arXiv 2402.13753, section 3.2)."""

OFTEN = 32.0
"""Pairs that turn at least this often inside the original length keep the divisor that YaRN gives them, most often 1:
the loss is wild in them."""

WITHIN_WEIGHT = 0.3
"""What the loss within the original length counts beside the objective's own positions."""

DECIMALS = 7
"""Of ln λ and of m; what differs by less is one table."""

NEAR = 1e-3
"""A divisor within this share of a bound, or an attention factor this close to one, lies on it."""


@dataclass(frozen=True, slots=True)
class Polished:
    """What the search for divisors came to.

    spec       the best that was seen, which may be the start
    gradients  that it cost
    complete   whether it ended by itself
    on_bounds  names of the bounds that the best lies on
    """

    spec: RopeSpec
    gradients: int
    complete: bool
    on_bounds: tuple[str, ...]


def divisors(
    slope_of: SlopeOf,
    space: Space,
    spec: RopeSpec,
    documents: Sequence[Document],
    bands: Bands,
    objective: Objective,
    tell: Callable[[str], None],
    stopped: Callable[[], bool],
) -> Polished:
    """A divisor for each pair, started from `spec`, a YaRN.

    What is minimised is the objective's loss plus 0.3 times that within the original length, over all `documents`.
    `stopped` is asked before each gradient.
    """
    base = np.array(base_frequencies(space.spec.rope_theta, space.spec.rotary_dim))
    start = frequencies(spec)
    held = int(sum(rotations(w, space.spec.original_length) >= OFTEN for w in base))
    target, within = objective.columns(bands, space.spec.original_length)
    tokens = tokens_by_band(documents, bands)
    weights = np.zeros(len(bands.widths))
    weights[target] = 1 / tokens[:, target].sum()
    beside = [column for column in within if column not in target]
    if beside:
        weights[beside] = WITHIN_WEIGHT / tokens[:, beside].sum()
    seen: list[tuple[float, Floats, float]] = []

    def value_and_slope(log_divisors: Floats, m: float) -> tuple[float, Floats, float]:
        if stopped():
            raise SearchStopped
        # the last bits of a search depend on the machine's state, and a float32 table has none of them
        log_divisors, m = np.round(log_divisors, DECIMALS), round(m, DECIMALS)
        inv_freq = base * np.exp(-log_divisors)
        found = slope_of(Frequencies(tuple(inv_freq.tolist()), m), documents, bands, weights.tolist())
        seen.append((found.nats, log_divisors, m))
        tell(
            f"gradient {len(seen)}: m {m:.4f}: {found.nats:.4f} nats a token, with {WITHIN_WEIGHT:g} of those within L"
        )
        return found.nats, -found.inv_freq * inv_freq, found.attention_factor

    bounds = search.Bounds(float(np.log(LARGEST_DIVISOR * space.factor)), space.factor_bounds)
    logs = np.log(base / np.array(start.inv_freq))
    complete = True
    try:
        search.divisors(value_and_slope, logs, start.attention_factor, held, bounds)
    except SearchStopped:
        complete = False
    if not seen:
        return Polished(spec, 0, complete, ())
    _, best, m = min(seen, key=lambda entry: entry[0])
    found = tuple(float(np.exp(value)) for value in best)
    finer = replace(spec, scaling=Longrope(space.factor, found, found, m, m))
    return Polished(finer, len(seen), complete, _on_bounds(best[held:], m, bounds))


def _on_bounds(log_divisors: Floats, m: float, bounds: search.Bounds) -> tuple[str, ...]:
    least, greatest = bounds.attention_factor
    reached = {
        "a divisor of 1": float(log_divisors.min()) < NEAR,
        f"a divisor of {np.exp(bounds.log_divisor):g}": float(log_divisors.max()) > bounds.log_divisor - NEAR,
        f"an attention factor of {least:g}": m < least + NEAR,
        f"an attention factor of {greatest:.4g}": m > greatest - NEAR,
    }
    return tuple(name for name, hit in reached.items() if hit)
