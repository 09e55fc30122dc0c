"""Pure maths in float64: a `RopeSpec` → the inverse frequency of each pair, and the multiplier on cos and sin.

Symbols: D rotary dimensions, d = 0 … D/2 − 1 the pair, b the base, L the original length, s the factor,
theta_d = b^(−2d/D) radians a token, r_d = L·theta_d / 2π rotations inside L. Nothing here imports a tensor library.
"""

import math
from dataclasses import dataclass

from ropecli.spec import (
    Dynamic,
    Linear,
    Llama3,
    Longrope,
    Ntk,
    NtkByParts,
    Plain,
    Proportional,
    RopeSpec,
    Yarn,
    assert_never,
)

SNAP = 5e-5
"""How far inside an integer corner a snapped β or α lies, in pairs: rounding outwards lands on the integer, and not
rounding at all moves the ramp by at most this much."""


TOLERANCE = 5e-5
"""Largest relative difference of a frequency between tables that are the same: above float32 tables (2e-7) and snapped
corners (2e-5), below the smallest mistake seen in the field (one pair of ramp, 1e-2)."""


@dataclass(frozen=True, slots=True)
class Frequencies:
    """inv_freq: radians a token for each pair, length rotary_dim/2. attention_factor: multiplier on cos and sin (m)."""

    inv_freq: tuple[float, ...]
    attention_factor: float


def largest_difference(one: Frequencies, other: Frequencies) -> float:
    """The largest relative difference of a frequency; pairs that stand still in both do not count.

    Relative to the greater of the two, so at most 1; infinite where the numbers of pairs differ.
    """
    if len(one.inv_freq) != len(other.inv_freq):
        return math.inf
    pairs = zip(one.inv_freq, other.inv_freq, strict=True)
    return max((abs(a - b) / max(abs(a), abs(b)) if a or b else 0.0 for a, b in pairs), default=0.0)


def divisors(spec: RopeSpec, length: int | None = None) -> tuple[float, ...]:
    """λ_d, by which the scaling divides the frequency of each pair, as in `frequencies(spec, length)`.

    1 for a pair that is kept, infinite for one that the scaling makes stand still.
    """
    base, scaled = base_frequencies(spec.rope_theta, spec.rotary_dim), frequencies(spec, length).inv_freq
    return tuple(w / changed if changed else math.inf for w, changed in zip(base, scaled, strict=True))


def base_frequencies(rope_theta: float, rotary_dim: int) -> tuple[float, ...]:
    """theta_d = b^(−2d/D) for each pair (RoFormer, arXiv 2104.09864, equation 15)."""
    return tuple(rope_theta ** (-2 * d / rotary_dim) for d in range(rotary_dim // 2))


def ntk_base(rope_theta: float, rotary_dim: int, factor: float) -> float:
    """b' = b·s^(D/(D−2)): the slowest pair ends at theta/s, the fastest is kept (YaRN, equation 16)."""
    return float(rope_theta * factor ** (rotary_dim / (rotary_dim - 2)))


def rotations(inv_freq: float, length: float) -> float:
    """Full turns that a pair of this frequency makes inside `length` tokens."""
    return length * inv_freq / (2 * math.pi)


def corner(turns: float, rope_theta: float, rotary_dim: int, original_length: float) -> float:
    """The (fractional) pair index that makes `turns` rotations inside the original length; may be negative.

    c(r) = D·ln(L / 2πr) / (2·ln b): jquesnelle/yarn `find_correction_dim`, transformers 5.23 the same.
    """
    return rotary_dim * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(rope_theta))


def turns_at(pair: float, rope_theta: float, rotary_dim: int, original_length: float) -> float:
    """The inverse of `corner`: rotations inside the original length of a (fractional) pair index."""
    return float(original_length / (2 * math.pi) * rope_theta ** (-2 * pair / rotary_dim))


def yarn_corners(spec: RopeSpec, yarn: Yarn) -> tuple[float, float]:
    """(lo, hi): pairs up to lo are kept, pairs from hi on divided by s; clamped to [0, D − 1] as the runtimes do."""
    low = corner(yarn.beta_fast, spec.rope_theta, spec.rotary_dim, spec.original_length)
    high = corner(yarn.beta_slow, spec.rope_theta, spec.rotary_dim, spec.original_length)
    if yarn.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    return max(low, 0.0), min(high, spec.rotary_dim - 1.0)


def snapped_betas(spec: RopeSpec, low: int, high: int) -> tuple[float, float]:
    """(beta_fast, beta_slow) whose corners lie `SNAP` inside the integers low < high.

    Runtimes that round the corners outwards then get exactly (low, high), and those that never round get them to
    5e-5 of a pair. β belongs to `low`, α to `high`.
    """
    place = (spec.rope_theta, spec.rotary_dim, spec.original_length)
    return turns_at(low + SNAP, *place), turns_at(high - SNAP, *place)


def _ramp(x: float, start: float, end: float) -> float:
    """0 before `start`, 1 after `end`, linear between; falling where end < start, as Python runtimes compute it."""
    return min(max((x - start) / (end - start), 0.0), 1.0)


def ramp_frequencies(spec: RopeSpec, factor: float, low: float, high: float) -> tuple[float, ...]:
    """YaRN's index ramp between two corners: kept up to `low`, divided by `factor` from `high` on.

    Equal corners are pulled apart by 0.001, as in jquesnelle/yarn `linear_ramp_mask` and transformers 5.23.
    """
    if low == high:
        high += 0.001
    base = base_frequencies(spec.rope_theta, spec.rotary_dim)
    divided = [_ramp(d, low, high) for d in range(spec.pairs)]
    return tuple(w * (1 - share) + w / factor * share for w, share in zip(base, divided, strict=True))


def _rotation_ramp(spec: RopeSpec, factor: float, alpha: float, beta: float) -> tuple[float, ...]:
    """h(theta_d) = (1 − γ)·theta_d/s + γ·theta_d, γ linear in rotations from α to β (YaRN, equations 17 to 20).

    With α > β the outer pieces win as in transformers' llama3: r < α is divided, else r > β is kept.
    """
    result = []
    for w in base_frequencies(spec.rope_theta, spec.rotary_dim):
        turns = rotations(w, spec.original_length)
        if turns < alpha:
            kept = 0.0
        elif turns > beta or alpha == beta:
            kept = 1.0
        else:
            kept = (turns - alpha) / (beta - alpha)
        result.append((1 - kept) * w / factor + kept * w)
    return tuple(result)


def frequencies(spec: RopeSpec, length: int | None = None) -> Frequencies:
    """The numbers that a model with this spec uses for a sequence of `length` tokens (default: the original length).

    Only `dynamic` and `longrope` depend on the length.
    """
    scaling = spec.scaling
    tokens = spec.original_length if length is None else length
    base = base_frequencies(spec.rope_theta, spec.rotary_dim)
    match scaling:
        case Plain():
            inv_freq = base
        case Linear():
            inv_freq = tuple(w / scaling.factor for w in base)
        case Ntk():
            inv_freq = base_frequencies(ntk_base(spec.rope_theta, spec.rotary_dim, scaling.factor), spec.rotary_dim)
        case Dynamic():
            # s·l'/L − (s−1), written so that no digits cancel
            stretch = 1 + scaling.factor * max(tokens - spec.original_length, 0) / spec.original_length
            inv_freq = base_frequencies(ntk_base(spec.rope_theta, spec.rotary_dim, stretch), spec.rotary_dim)
        case NtkByParts():
            inv_freq = _rotation_ramp(spec, scaling.factor, scaling.beta_slow, scaling.beta_fast)
        case Llama3():
            inv_freq = _rotation_ramp(spec, scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor)
        case Yarn():
            inv_freq = ramp_frequencies(spec, scaling.factor, *yarn_corners(spec, scaling))
        case Longrope():
            beyond = tokens > spec.original_length
            divisors = scaling.long_factor if beyond else scaling.short_factor
            inv_freq = tuple(w / divisor for w, divisor in zip(base, divisors, strict=True))
            return Frequencies(inv_freq, scaling.attention_factor if beyond else scaling.short_attention_factor)
        case Proportional():
            turning = int(scaling.partial_rotary_factor * spec.head_dim / 2)
            inv_freq = tuple(w / scaling.factor if d < turning else 0.0 for d, w in enumerate(base))
        case _:
            assert_never(scaling)
    return Frequencies(inv_freq, scaling.attention_factor)
