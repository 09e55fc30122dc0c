"""The few formulas that runtimes share: a base spec and numbers in, frequencies out.

`base` is always the unscaled embedding with the base that the runtime found. Every function may raise BadParameter.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from ropecli.frequencies import frequencies
from ropecli.runtimes.keys import number, optional
from ropecli.runtimes.reading import Keys, Request
from ropecli.spec import (
    Linear,
    Llama3,
    Longrope,
    Ntk,
    Plain,
    Proportional,
    RopeSpec,
    Scaling,
    Yarn,
    default_attention_factor,
    mscale_ratio,
)


def unscaled(request: Request, rope_theta: float) -> RopeSpec:
    """The request's widths and layout with a runtime's own base, and no scaling."""
    return replace(request.rope.spec, rope_theta=rope_theta, scaling=Plain())


def scaled(base: RopeSpec, scaling: Scaling) -> tuple[float, ...]:
    """inv_freq of the base under a scaling that needs no original length."""
    return frequencies(replace(base, scaling=scaling)).inv_freq


def plain(base: RopeSpec) -> tuple[float, ...]:
    """inv_freq with no scaling."""
    return scaled(base, Plain())


def linear(base: RopeSpec, factor: float) -> tuple[float, ...]:
    """inv_freq / factor."""
    return scaled(base, Linear(factor))


def ntk(base: RopeSpec, factor: float) -> tuple[float, ...]:
    """The base replaced by base·factor^(D/(D−2)); `alpha` in some runtimes."""
    return scaled(base, Ntk(factor))


def proportional(base: RopeSpec, factor: float, share: float) -> tuple[float, ...]:
    """The first `share` of the pairs turns, divided by factor; the rest stands still."""
    return scaled(base, Proportional(factor, share))


def index_ramp(
    base: RopeSpec, factor: float, original: int, beta_fast: float = 32.0, beta_slow: float = 1.0, *, truncate: object
) -> tuple[float, ...]:
    """YaRN's ramp, linear in the pair index. `truncate` counts as Python counts it: anything truthy."""
    yarn = Yarn(factor, 1.0, beta_fast, beta_slow, truncate=bool(truncate))
    return frequencies(replace(base, original_length=original, scaling=yarn)).inv_freq


def rotation_ramp(base: RopeSpec, factor: float, original: int, low: float, high: float) -> tuple[float, ...]:
    """llama3's ramp, linear in rotations."""
    return frequencies(replace(base, original_length=original, scaling=Llama3(factor, low, high))).inv_freq


def divided(base: RopeSpec, divisors: Sequence[float]) -> tuple[float, ...]:
    """inv_freq with one divisor a pair."""
    factors = tuple(divisors)
    return scaled(base, Longrope(1.0, factors, factors, 1.0, 1.0))


def pair_magnitude(factor: float, parameters: Keys) -> float:
    """transformers' rule: the ratio of `mscale` and `mscale_all_dim` where both are truthy, else the default."""
    top, bottom = optional(parameters, "mscale"), optional(parameters, "mscale_all_dim")
    if top and bottom:
        return mscale_ratio(factor, top, bottom)
    return default_attention_factor(factor)


def each_magnitude(factor: float, parameters: Keys) -> float:
    """DeepSeek's rule: the ratio of `mscale` (1 where missing) and `mscale_all_dim` (0 where missing)."""
    return mscale_ratio(factor, number(parameters, "mscale", 1.0), number(parameters, "mscale_all_dim", 0.0))


def longrope_magnitude(factor: float, original: int) -> float:
    """sqrt(1 + ln s / ln L), and 1 where s ≤ 1 (LongRoPE, as in Phi-3's own code)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
