"""transformers 4: knows `rope_scaling` and a top-level `rope_theta`, and nothing that version 5 writes instead.

Source: transformers 4.57.6 `modeling_rope_utils.py`, `models/llama/configuration_llama.py`.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.dialects.portable import UNSTATED_HEAD
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
from ropecli.runtimes.transformers5 import KNOWN, NEEDS_HEAD_DIM, heeded, own_alpha, own_mscale
from ropecli.spec import RopeSpec

_UNSCALED = {"nemotron"}
"""Model types whose rotary module is always the plain one."""

_TWO_FIELDS = {"chameleon", "fuyu", "olmo", "olmo2"}
"""Model types whose config refuses a `rope_scaling` of more than `type` (linear or dynamic) and `factor`."""

_ROPE_TYPE_ALONE = {
    *("cohere", "cohere2", "gemma3_text", "gemma3n_text", "granite", "granitemoe", "granitemoeshared", "moonshine"),
    *("olmo3", "qwen3_next"),
}
"""Model types whose config does not copy `type` to `rope_type`."""


def _check_class(request: Request, given: Keys, kind: str) -> None:
    """What some model classes refuse. Raises Refused."""
    factor = given.get("factor")
    if request.model_type in _TWO_FIELDS and (
        set(given) != {"type", "factor"} or kind not in {"linear", "dynamic"} or not (_is_float(factor) and factor > 1)
    ):
        raise Refused("ValueError: rope_scaling must hold type, linear or dynamic, and a factor above 1, no more")
    if request.model_type in _ROPE_TYPE_ALONE and "rope_type" not in given:
        raise Refused("KeyError: this model's class reads rope_type, not type")
    if request.model_type.startswith("hunyuan") and kind == "dynamic" and "alpha" not in given:
        raise Refused("KeyError: dynamic needs an alpha in this model")
    no_head_dim = request.model_type in UNSTATED_HEAD and request.config.get("head_dim") is None
    if kind in NEEDS_HEAD_DIM and no_head_dim:
        raise Refused(f"TypeError: {kind} needs a head_dim in the file, which this model's class leaves null")


_SCALED_BY_CLASS = {"apertus", "gpt_oss"}
"""Model types whose class scales where the file has no rope_scaling; a null switches it off."""


def _is_float(value: object) -> TypeGuard[float]:
    return isinstance(value, float)


def rule(request: Request) -> Reading:
    """The frequencies of `ROPE_INIT_FUNCTIONS`, at the original length."""
    base, unread = heeded(request, unscaled(request, outer_theta(request)))
    notes = rope_parameters_unread(request) + unread
    given = request.config.get("rope_scaling")
    if "rope_scaling" not in request.config and request.model_type in _SCALED_BY_CLASS:
        given = {**request.class_defaults.get("rope_parameters", {})}
        given.pop("rope_theta", None)  # the base stands beside it there
    if not isinstance(given, Mapping) or local_layer(request):
        return Reading(plain(base), 1.0, max_positions(request), notes)
    if request.model_type == "phi3" and set(given) != {"type", "short_factor", "long_factor"}:
        raise Refused("ValueError: Phi-3's rope_scaling must hold type, short_factor and long_factor, and no other key")
    if request.model_type in _UNSCALED:
        return Reading(plain(base), 1.0, max_positions(request), (*notes, "rope_scaling ignored: it never scales"))
    scaling = _scaling(given, request)
    _check_class(request, given, scaling["rope_type"])
    inv_freq, attention_factor, more = _compute(scaling, base, request)
    warned = ignored(scaling, *KNOWN.get(scaling["rope_type"], scaling))
    grows = scaling["rope_type"] == "dynamic" and not own_alpha(request, scaling)
    return Reading(inv_freq, attention_factor, max_positions(request), notes + warned + more, grows)


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
        case "dynamic" if own_alpha(request, scaling):
            computed = ntk(base, number(scaling, "alpha")), 1.0, ()
        case "dynamic":
            ntk(base, number(scaling, "factor"))
            computed = plain(base), 1.0, (f"the base grows with the sequence beyond {max_positions(request)} tokens",)
        case "yarn":
            computed = _yarn(scaling, base, max_positions(request))
        case "longrope":
            computed = _longrope(scaling, base, request)
        case "llama3":
            original, factor = length(scaling, ORIGINAL), number(scaling, "factor")
            low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
            computed = rotation_ramp(base, factor, original, low, high), 1.0, ()
        case other:
            raise Refused(f"KeyError: {other!r} when the model is built")
    return computed


def _yarn(scaling: Keys, base: RopeSpec, longest: int) -> Computed:
    factor, given = number(scaling, "factor"), optional(scaling, "attention_factor")
    original = length(scaling, ORIGINAL) if scaling.get(ORIGINAL) else longest
    fast, slow = optional(scaling, "beta_fast") or 32.0, optional(scaling, "beta_slow") or 1.0
    inv_freq = index_ramp(base, factor, original, fast, slow, truncate=scaling.get("truncate", True))
    return inv_freq, pair_magnitude(factor, scaling) if given is None else given, ()


def _longrope(scaling: Keys, base: RopeSpec, request: Request) -> Computed:
    """The original length stands at the top level or is M; the one in the dict is not read."""
    short, long = numbers(scaling, "short_factor"), numbers(scaling, "long_factor")
    longest, given = max_positions(request), optional(scaling, "attention_factor")
    if request.config.get(ORIGINAL):
        original = length(request.config, ORIGINAL)
        factor: float | None = longest / original
    else:
        original, factor = longest, optional(scaling, "factor")
    own = own_mscale(request, scaling)
    given = given if own is None else own
    if given is None:
        if factor is None:
            raise Refused("TypeError: longrope has neither a top-level original_max_position_embeddings nor a factor")
        given = longrope_magnitude(factor, original)
    notes = (
        () if short == long else (f"long_factor for every position of a call that reaches beyond {original} tokens",)
    )
    return divided(base, short), given, notes


RUNTIME = Runtime("transformers-4", "4.57.6", rule)
