"""From the best YaRN to a divisor for each pair, by the exact slope of the loss."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from calibrate import search
from calibrate.corpus import Document
from calibrate.gradient import slope
from calibrate.model import LoadedModel
from calibrate.objective import Objective, Space
from calibrate.score import Bands, Floats, tokens_by_band
from ropecli.frequencies import Frequencies, base_frequencies, frequencies, rotations
from ropecli.spec import Longrope, RopeSpec

LARGEST_DIVISOR = 1.25
"""Divisors are searched up to this times the factor (LongRoPE, arXiv 2402.13753, section 3.2)."""

OFTEN = 32.0
"""Pairs that turn at least this often inside the original length keep the divisor 1; the loss is wild in them."""

WITHIN_WEIGHT = 0.3
"""What the loss within the original length counts beside the objective's own positions."""


def divisors(
    loaded: LoadedModel,
    layer: str,
    space: Space,
    spec: RopeSpec,
    documents: Sequence[Document],
    bands: Bands,
    objective: Objective,
    tell: Callable[[str], None],
) -> tuple[RopeSpec, int]:
    """(the embedding with a divisor for each pair, gradients that it cost), started from `spec`.

    What is minimised is the objective's loss plus 0.3 times that within the original length, over all `documents`.
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
    gradients = 0

    def value_and_slope(log_divisors: Floats, m: float) -> tuple[float, Floats, float]:
        nonlocal gradients
        gradients += 1
        inv_freq = base * np.exp(-log_divisors)
        found = slope(loaded, layer, Frequencies(tuple(inv_freq.tolist()), m), documents, bands, weights.tolist())
        tell(f"gradient {gradients}: m {m:.4f}: {found.nats:.4f} nats with {WITHIN_WEIGHT:g} of those within L")
        return found.nats, -found.inv_freq * inv_freq, found.attention_factor

    bounds = search.Bounds(float(np.log(LARGEST_DIVISOR * space.factor)), space.factor_bounds)
    logs = np.log(base / np.array(start.inv_freq))
    logs[:held] = 0.0
    best, m = search.divisors(value_and_slope, logs, start.attention_factor, held, bounds)
    found = tuple(float(np.exp(value)) for value in best)
    return replace(spec, scaling=Longrope(space.factor, found, found, m, m)), gradients


def on_bound(spec: RopeSpec) -> bool:
    """Whether a divisor lies on the upper bound of the search."""
    scaling = spec.scaling
    return isinstance(scaling, Longrope) and max(scaling.long_factor) >= 0.999 * LARGEST_DIVISOR * scaling.factor
