"""Text Generation Inference: transformers 4.51 reads the config, `linear` is accepted and not applied.

Source: huggingface/text-generation-inference db931fcf (2026-01-08), `server/text_generation_server/layers/rotary.py`.
"""

from collections.abc import Mapping

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.runtimes.formulas import (
    divided,
    each_magnitude,
    index_ramp,
    longrope_magnitude,
    ntk,
    plain,
    rotation_ramp,
    unscaled,
)
from ropecli.runtimes.keys import (
    ignored,
    length,
    local_layer,
    max_positions,
    number,
    numbers,
    optional,
    outer_theta,
    rope_type,
)
from ropecli.runtimes.reading import Computed, Keys, Reading, Refused, Request, Runtime
from ropecli.runtimes.standardised import check_required
from ropecli.runtimes.transformers4 import rope_parameters_unread
from ropecli.spec import RopeSpec


def rule(request: Request) -> Reading:
    """`PositionRotaryEmbedding.static` with neither --rope-scaling nor --rope-factor, at the original length."""
    base, longest = unscaled(request, outer_theta(request)), max_positions(request)
    notes = rope_parameters_unread(request)
    scaling = request.config.get("rope_scaling")
    if scaling is None or local_layer(request):
        return Reading(plain(base), 1.0, longest, notes)
    if not isinstance(scaling, Mapping) or not ("rope_type" in scaling or "type" in scaling):
        raise Refused("KeyError: rope_scaling names no type")
    inv_freq, attention_factor, more = _compute(request.config, scaling, base, longest)
    grows = rope_type(scaling, "rope_type", "type") == "dynamic"
    return Reading(inv_freq, attention_factor, longest, notes + more, grows)


def _compute(config: Keys, scaling: Keys, base: RopeSpec, longest: int) -> Computed:
    computed: Computed
    kind = rope_type(scaling, "rope_type", "type")
    check_required(scaling, kind)
    match kind:
        case "default" | "mrope":
            computed = plain(base), 1.0, ()
        case "linear":
            computed = plain(base), 1.0, ("linear accepted and not applied",)
        case "dynamic":
            factor = optional(scaling, "factor")
            ntk(base, 1.0 if factor is None else factor)
            computed = plain(base), 1.0, (f"the base grows beyond {longest} tokens and never shrinks again",)
        case "llama3":
            low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
            original = length(scaling, ORIGINAL)
            computed = rotation_ramp(base, number(scaling, "factor"), original, low, high), 1.0, ()
        case "yarn":
            factor = number(scaling, "factor")
            notes = ignored(scaling, "factor", ORIGINAL, "mscale", "mscale_all_dim")
            inv_freq = index_ramp(base, factor, length(scaling, ORIGINAL), truncate=True)
            computed = inv_freq, each_magnitude(factor, scaling), notes
        case "su" | "longrope":
            computed = _longrope(config, scaling, base, longest)
        case other:
            raise Refused(f"rope scaling type {other} is not implemented")
    return computed


def _longrope(config: Keys, scaling: Keys, base: RopeSpec, longest: int) -> Computed:
    """Both lists in one table: short below the original length, long from there on. mscale keys stretch the angles."""
    original = length(config, ORIGINAL)
    short, long = numbers(scaling, "short_factor"), numbers(scaling, "long_factor")
    notes = ignored(scaling, ORIGINAL, "short_factor", "long_factor", "short_mscale", "long_mscale")
    if short != long:
        notes += (f"short_factor for the positions below {original} and long_factor for those beyond, in one sequence",)
    inv_freq, temperature = divided(base, short), longrope_magnitude(longest / original, original)
    if "short_mscale" in scaling and "long_mscale" in scaling:
        stretch = number(scaling, "short_mscale")
        notes += ("short_mscale and long_mscale multiply the angles, not cos and sin",)
        return tuple(w * stretch for w in inv_freq), 1.0, notes
    return inv_freq, temperature, notes


RUNTIME = Runtime("tgi", "db931fcf (2026-01-08)", rule, frozenset(("mscale", "mscale_all_dim")))
