"""ExLlamaV3: reads the file itself; YaRN's factor is the ratio of the lengths, whatever `factor` says.

Source: turboderp-org/exllamav3 4f8ad012 (2026-08-08), `util/rope.py`, `model/config.py`, `architecture/`.
"""

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.runtimes.formulas import (
    divided,
    index_ramp,
    linear,
    longrope_magnitude,
    pair_magnitude,
    plain,
    proportional,
    rotation_ramp,
    unscaled,
)
from ropecli.runtimes.keys import (
    block,
    ignored,
    length,
    local_layer,
    max_positions,
    nested,
    number,
    numbers,
    optional,
    rope_type,
)
from ropecli.runtimes.reading import Computed, Keys, Reading, Refused, Request, Runtime
from ropecli.spec import RopeSpec, default_attention_factor

_LENGTHS = ("max_position_embeddings",)
_YARN = (ORIGINAL, "factor", "attention_factor", "beta_fast", "beta_slow", "truncate", "llama_4_scaling_beta")
_BY_LAYER = {"laguna", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"}
_MSCALE_RATIO = {"DeepseekV3ForCausalLM"}


def rule(request: Request) -> Reading:
    """`RoPE` with the settings of `read_rope_settings_default`."""
    longest = max_positions(request, _LENGTHS, 8192)
    scaling = _scaling(request)
    if local_layer(request) and request.model_type not in _BY_LAYER:
        return Reading(plain(request.rope.spec), 1.0, longest)
    base = unscaled(request, _theta(request, scaling))
    inv_freq, attention_factor, notes = _compute(request, scaling, base)
    return Reading(inv_freq, attention_factor, longest, _nesting(request, scaling) + notes)


def _scaling(request: Request) -> Keys:
    """`rope_scaling` unless it is null, an empty one too; else `rope_parameters`."""
    name = "rope_parameters" if request.config.get("rope_scaling") is None else "rope_scaling"
    whole = block(request.config, name)
    entry = nested(whole, request.layer_type) if request.model_type in _BY_LAYER else None
    return whole if entry is None else entry


def _nesting(request: Request, scaling: Keys) -> tuple[str, ...]:
    unread = nested(scaling, request.layer_type) is not None
    return ("entries by layer type are not read for this model type",) if unread else ()


def _theta(request: Request, scaling: Keys) -> float:
    places = (scaling, request.config) if request.model_type in _BY_LAYER else (request.config,)
    for place in (*places, block(request.config, "rope_parameters")):
        if isinstance(place.get("rope_theta"), int | float):
            return number(place, "rope_theta")
    return 1e6 if request.model_type.startswith("gemma3") else 10_000.0


def _compute(request: Request, scaling: Keys, base: RopeSpec) -> Computed:
    computed: Computed
    match rope_type(scaling, "rope_type", "type"):
        case "default" | "mrope":
            computed = plain(base), 1.0, ()
        case "proportional":
            share = number(scaling, "partial_rotary_factor", 1.0)
            computed = proportional(base, number(scaling, "factor", 1.0), share), 1.0, ()
        case "linear":
            computed = linear(base, number(scaling, "factor", 1.0)), 1.0, ()
        case "llama3":
            low, high = number(scaling, "low_freq_factor", 1.0), number(scaling, "high_freq_factor", 4.0)
            original = length(scaling, ORIGINAL, 8192)
            computed = rotation_ramp(base, number(scaling, "factor", 8.0), original, low, high), 1.0, ()
        case "yarn":
            computed = _yarn(request, scaling, base)
        case "longrope" | "su":
            computed = _longrope(request, scaling, base)
        case other:
            raise Refused(f"ValueError: unknown rope_type {other}")
    return computed


def _yarn(request: Request, scaling: Keys, base: RopeSpec) -> Computed:
    longest = length(request.config, "max_position_embeddings")
    ratio = request.architecture in _MSCALE_RATIO
    notes = ignored(scaling, *_YARN, *(("mscale", "mscale_all_dim") if ratio else ()))
    if scaling.get(ORIGINAL) is None:
        original, factor = longest, number(scaling, "factor")
    else:
        original = length(scaling, ORIGINAL)
        factor = longest / original
        if optional(scaling, "factor") not in {None, factor}:
            notes += (f"factor ignored: max_position_embeddings / original = {factor:g} is used",)
    given = optional(scaling, "attention_factor")
    if given is None:
        superseded = 1.0 if scaling.get("llama_4_scaling_beta") else default_attention_factor(factor)
        both = ratio and scaling.get("mscale") and scaling.get("mscale_all_dim")
        given = pair_magnitude(factor, scaling) if both else superseded
    fast, slow = number(scaling, "beta_fast", 32.0), number(scaling, "beta_slow", 1.0)
    return index_ramp(base, factor, original, fast, slow, truncate=scaling.get("truncate", True)), given, notes


def _longrope(request: Request, scaling: Keys, base: RopeSpec) -> Computed:
    longest = length(request.config, "max_position_embeddings")
    original = length(scaling if ORIGINAL in scaling else request.config, ORIGINAL)
    used = numbers(scaling, "long_factor" if longest > original else "short_factor")
    notes = ignored(scaling, ORIGINAL, "short_factor", "long_factor")
    if scaling.get("short_factor") != scaling.get("long_factor"):
        notes += (f"long_factor at every length where the configured one is above {original}, else short_factor",)
    return divided(base, used), longrope_magnitude(longest / original, original), notes


RUNTIME = Runtime("exllamav3", "4f8ad012 (2026-08-08)", rule)
