"""ExLlamaV2: reads the file itself; its YaRN ramp is computed for the extended length.

Source: turboderp-org/exllamav2 da07facd (2025-12-09), `config.py`, `rope.py`, `device.py`.
"""

import math

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.runtimes.formulas import divided, index_ramp, linear, longrope_magnitude, plain, rotation_ramp, unscaled
from ropecli.runtimes.keys import block, ignored, length, local_layer, max_positions, number, numbers, rope_type
from ropecli.runtimes.reading import Computed, Keys, Reading, Refused, Request, Runtime
from ropecli.runtimes.transformers4 import rope_parameters_unread
from ropecli.spec import RopeSpec

_LENGTHS = ("max_sequence_length", "model_max_length", "max_position_embeddings", "max_seq_len", "n_positions")


def rule(request: Request) -> Reading:
    """`get_rope_params` with no -l, -rs, -ra or -ry."""
    scaling, longest = block(request.config, "rope_scaling"), max_positions(request, _LENGTHS, 2048)
    notes = rope_parameters_unread(request)
    if local_layer(request):
        return Reading(plain(request.rope.spec), 1.0, longest, notes)
    base = unscaled(request, _theta(request.config))
    if scaling.get("type") and scaling.get("rope_type"):
        raise Refused("rope_scaling has both type and rope_type")
    inv_freq, attention_factor, more = _compute(request.config, scaling, base, longest)
    return Reading(inv_freq, attention_factor, longest, notes + more)


def _theta(config: Keys) -> float:
    for place in (config, block(config, "attn_config")):
        if place.get("rope_theta") is not None:
            return number(place, "rope_theta")
    return 10_000.0


def _compute(config: Keys, scaling: Keys, base: RopeSpec, longest: int) -> Computed:
    computed: Computed
    match rope_type(scaling, "type" if scaling.get("type") else "rope_type"):
        case "linear":
            computed = linear(base, number(scaling, "factor")), 1.0, ()
        case "llama3":
            low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
            original = length(scaling, ORIGINAL)
            computed = rotation_ramp(base, number(scaling, "factor"), original, low, high), 1.0, ()
        case "su" | "longrope":
            computed = _longrope(config, scaling, base, longest)
        case "yarn":
            computed = _yarn(scaling, base, longest)
        case "default" | "mrope":
            computed = plain(base), 1.0, ()
        case other:
            computed = plain(base), 1.0, (f"{other} ignored",)
    return computed


def _yarn(scaling: Keys, base: RopeSpec, longest: int) -> Computed:
    factor, original = number(scaling, "factor"), length(scaling, ORIGINAL)
    notes = ignored(scaling, "factor", ORIGINAL)
    if longest <= original:
        return plain(base), 1.0, (*notes, f"yarn is off: {longest} tokens are not more than the original {original}")
    inv_freq = index_ramp(base, factor, longest, truncate=True)
    notes = (*notes, "the ramp is computed for the extended length, or that of -l")
    return inv_freq, 0.1 * math.log(factor) + 1, notes


def _longrope(config: Keys, scaling: Keys, base: RopeSpec, longest: int) -> Computed:
    if ORIGINAL not in config:
        raise Refused(f"longrope needs a top-level {ORIGINAL}")
    original = length(config, ORIGINAL)
    short, long = numbers(scaling, "short_factor"), numbers(scaling, "long_factor")
    notes = ignored(scaling, ORIGINAL, "short_factor", "long_factor")
    if short != long:
        notes += (f"long_factor at every length where -l is above {original}, else short_factor",)
    return divided(base, long if longest > original else short), longrope_magnitude(longest / original, original), notes


RUNTIME = Runtime("exllamav2", "da07facd (2025-12-09)", rule)
