"""transformers 4: knows `rope_scaling` and a top-level `rope_theta`, and nothing that version 5 writes instead.

Source: transformers 4.57.6 `modeling_rope_utils.py`, `models/llama/configuration_llama.py`.
"""

from collections.abc import Mapping
from typing import Any

from ropecli.runtimes.formulas import (
    divided,
    index_ramp,
    linear,
    longrope_magnitude,
    ntk,
    pair_magnitude,
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
from ropecli.runtimes.transformers5 import KNOWN
from ropecli.spec import RopeSpec

_ORIGINAL = "original_max_position_embeddings"


def rule(request: Request) -> Reading:
    """The frequencies of `ROPE_INIT_FUNCTIONS`, at the original length."""
    base = unscaled(request, outer_theta(request))
    notes = rope_parameters_unread(request)
    given = request.config.get("rope_scaling")
    if not isinstance(given, Mapping) or local_layer(request):
        return Reading(plain(base), 1.0, max_positions(request), notes)
    if request.model_type == "phi3" and set(given) != {"type", "short_factor", "long_factor"}:
        raise Refused("ValueError: Phi-3's rope_scaling must hold type, short_factor and long_factor, and no other key")
    scaling = _scaling(given, request)
    inv_freq, attention_factor, more = _compute(scaling, base, request)
    warned = ignored(scaling, *KNOWN.get(scaling["rope_type"], scaling))
    return Reading(inv_freq, attention_factor, max_positions(request), notes + warned + more)


def rope_parameters_unread(request: Request) -> tuple[str, ...]:
    """The note for a runtime that does not know the key of transformers 5."""
    return ("rope_parameters is not read",) if request.config.get("rope_parameters") else ()


def _scaling(given: Keys, request: Request) -> dict[str, Any]:
    """`type` wins over `rope_type`; the model classes rename what older checkpoints called otherwise."""
    scaling = dict(given)
    if "type" not in scaling and "rope_type" not in scaling:
        raise Refused("KeyError: rope_scaling names no rope_type")
    kind = rope_type(scaling, "type", "rope_type")
    if request.model_type.startswith("phi3") and kind in {"su", "yarn"}:
        kind = "longrope"
    if kind == "mrope" and "mrope_section" in scaling:
        kind = "default"
    return scaling | {"rope_type": kind}


def _compute(scaling: Keys, base: RopeSpec, request: Request) -> Computed:
    computed: Computed
    match scaling["rope_type"]:
        case "default":
            computed = plain(base), 1.0, ()
        case "linear":
            computed = linear(base, number(scaling, "factor")), 1.0, ()
        case "dynamic":
            ntk(base, number(scaling, "factor"))
            computed = plain(base), 1.0, (f"the base grows with the sequence beyond {max_positions(request)} tokens",)
        case "yarn":
            computed = _yarn(scaling, base, max_positions(request))
        case "longrope":
            computed = _longrope(scaling, base, request)
        case "llama3":
            original, factor = length(scaling, _ORIGINAL), number(scaling, "factor")
            low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
            computed = rotation_ramp(base, factor, original, low, high), 1.0, ()
        case other:
            raise Refused(f"KeyError: {other!r} when the model is built")
    return computed


def _yarn(scaling: Keys, base: RopeSpec, longest: int) -> Computed:
    factor, given = number(scaling, "factor"), optional(scaling, "attention_factor")
    original = length(scaling, _ORIGINAL) if scaling.get(_ORIGINAL) else longest
    fast, slow = optional(scaling, "beta_fast") or 32.0, optional(scaling, "beta_slow") or 1.0
    inv_freq = index_ramp(base, factor, original, fast, slow, truncate=scaling.get("truncate", True))
    return inv_freq, pair_magnitude(factor, scaling) if given is None else given, ()


def _longrope(scaling: Keys, base: RopeSpec, request: Request) -> Computed:
    """The original length stands at the top level or is M; the one in the dict is not read."""
    short, long = numbers(scaling, "short_factor"), numbers(scaling, "long_factor")
    longest, given = max_positions(request), optional(scaling, "attention_factor")
    if request.config.get(_ORIGINAL):
        original = length(request.config, _ORIGINAL)
        factor: float | None = longest / original
    else:
        original, factor = longest, optional(scaling, "factor")
    if given is None:
        if factor is None:
            raise Refused("TypeError: longrope has neither a top-level original_max_position_embeddings nor a factor")
        given = longrope_magnitude(factor, original)
    notes = (
        () if short == long else (f"long_factor for every position of a call that reaches beyond {original} tokens",)
    )
    return divided(base, short), given, notes


RUNTIME = Runtime("transformers-4", "4.57.6", rule)
