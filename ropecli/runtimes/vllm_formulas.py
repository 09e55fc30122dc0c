"""Formulas that vLLM has and SGLang took over, key by key.

Source: vLLM 8d9b52f7 (2026-08-07) and SGLang 623300a5 (2026-06-25), `layers/rotary_embedding/`.
"""

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.runtimes.formulas import each_magnitude, index_ramp, linear, proportional
from ropecli.runtimes.keys import ignored, length, number
from ropecli.runtimes.reading import Computed, Keys
from ropecli.spec import RopeSpec, default_attention_factor


def yarn_ramp(parameters: Keys, base: RopeSpec, *, truncate: object = None) -> tuple[float, ...]:
    """The index ramp with the file's betas; `truncate` as in the file unless given."""
    return index_ramp(
        base,
        number(parameters, "factor"),
        length(parameters, ORIGINAL),
        number(parameters, "beta_fast", 32.0),
        number(parameters, "beta_slow", 1.0),
        truncate=parameters.get("truncate", True) if truncate is None else truncate,
    )


def extrapolated(parameters: Keys, base: RopeSpec, inv_freq: tuple[float, ...]) -> tuple[float, ...]:
    """`extrapolation_factor` weighs how much of the ramp is applied: w/s + e·(ramped − w/s)."""
    share = number(parameters, "extrapolation_factor", 1.0)
    if share == 1:
        return inv_freq
    divided_all = linear(base, number(parameters, "factor"))
    return tuple(low + share * (w - low) for w, low in zip(inv_freq, divided_all, strict=True))


def magnified(parameters: Keys) -> float:
    """The default temperature times `attn_factor`, as YaRN was before `attention_factor` was read."""
    return default_attention_factor(number(parameters, "factor")) * number(parameters, "attn_factor", 1.0)


def deepseek_yarn(parameters: Keys, base: RopeSpec) -> Computed:
    """Always truncated, an mscale pair with a default for each key, times `attn_factor`: for latent attention."""
    factor = number(parameters, "factor")
    attention_factor = each_magnitude(factor, parameters) * number(parameters, "attn_factor", 1.0)
    keys = ("factor", ORIGINAL, "extrapolation_factor", "attn_factor", "beta_fast", "beta_slow")
    notes = ignored(parameters, *keys, "mscale", "mscale_all_dim", "apply_yarn_scaling")
    inv_freq = extrapolated(parameters, base, yarn_ramp(parameters, base, truncate=True))
    return inv_freq, attention_factor, notes


def gemma4_proportional(parameters: Keys, base: RopeSpec) -> Computed:
    """`partial_rotary_factor` alone; the factor is not read."""
    return proportional(base, 1.0, number(parameters, "partial_rotary_factor", 1.0)), 1.0, ignored(parameters)
