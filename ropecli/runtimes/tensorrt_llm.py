"""TensorRT-LLM, PyTorch backend: every key has a default of its own, 1024 tokens for the original length among them.

Source: NVIDIA/TensorRT-LLM `_torch/attention_backend/interface.py` (51ea5c96), `functional.py` `RopeEmbeddingUtils`
(2026), `infer_max_seq_len`; read, never run.
"""

import math

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.runtimes.formulas import (
    divided,
    each_magnitude,
    index_ramp,
    linear,
    longrope_magnitude,
    ntk,
    plain,
    rotation_ramp,
    unscaled,
)
from ropecli.runtimes.keys import block, ignored, length, local_layer, max_positions, number, numbers, rope_type
from ropecli.runtimes.reading import Computed, Keys, Reading, Refused, Request, Runtime
from ropecli.spec import RopeSpec

_YARN = ("factor", ORIGINAL, "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def rule(request: Request) -> Reading:
    """`RopeParams.from_config` and the tables made from it, at the length that it derives."""
    scaling = _scaling(request.config)
    longest = max_positions(request)
    kind = rope_type(scaling, "type" if scaling.get("type") else "rope_type")
    context = longest
    if kind not in {"default", "su", "longrope", "llama3", "yarn"}:
        context = math.ceil(longest * number(scaling, "factor", 1.0))
    if local_layer(request):
        return Reading(plain(request.rope.spec), 1.0, context)
    base = unscaled(request, _theta(request, scaling))
    inv_freq, attention_factor, notes = _compute(kind, scaling, base, longest, _original(request.config, scaling))
    return Reading(inv_freq, attention_factor, context, notes)


def _scaling(config: Keys) -> Keys:
    """`rope_scaling`, else `rope_parameters`; the `full_attention` entry where it is nested."""
    whole = block(config, "rope_scaling") or block(config, "rope_parameters")
    return block(whole, "full_attention") or whole


def _theta(request: Request, scaling: Keys) -> float:
    if "rope_theta" in scaling:
        return number(scaling, "rope_theta")
    if isinstance(request.config.get("rope_theta"), int | float):
        return number(request.config, "rope_theta")
    return request.default_rope_theta


def _original(config: Keys, scaling: Keys) -> int:
    for place in (config, scaling):
        if place.get(ORIGINAL):
            return length(place, ORIGINAL)
    return 1024


def _compute(kind: str, scaling: Keys, base: RopeSpec, longest: int, original: int) -> Computed:
    computed: Computed
    match kind:
        case "default" | "mrope":
            computed = plain(base), 1.0, ()
        case "linear":
            notes = (f"serves factor · {longest} tokens, but its table has {longest} rows",)
            computed = linear(base, number(scaling, "factor", 1.0)), 1.0, notes
        case "dynamic":
            idle = () if "factor" not in scaling else ("factor ignored: only alpha counts",)
            computed = ntk(base, number(scaling, "alpha", 1.0)), 1.0, idle
        case "llama3":
            low, high = number(scaling, "low_freq_factor", 1.0), number(scaling, "high_freq_factor", 4.0)
            computed = rotation_ramp(base, number(scaling, "factor", 1.0), original, low, high), 1.0, ()
        case "yarn":
            factor = number(scaling, "factor", 1.0)
            fast, slow = number(scaling, "beta_fast", 32.0), number(scaling, "beta_slow", 1.0)
            inv_freq = index_ramp(base, factor, original, fast, slow, truncate=True)
            computed = inv_freq, each_magnitude(factor, scaling), ignored(scaling, *_YARN)
        case "longrope":
            computed = _longrope(scaling, base, longest, original)
        case other:
            raise Refused(f"unknown scaling type {other!r}")
    return computed


def _longrope(scaling: Keys, base: RopeSpec, longest: int, original: int) -> Computed:
    short, long = numbers(scaling, "short_factor"), numbers(scaling, "long_factor")
    notes = ignored(scaling, ORIGINAL, "short_factor", "long_factor", "short_mscale", "long_mscale")
    if short != long:
        notes += (f"long_factor at every length where max_seq_len is above {original}, else short_factor",)
    return divided(base, long if longest > original else short), longrope_magnitude(longest / original, original), notes


RUNTIME = Runtime("tensorrt-llm", "51ea5c96 (2026)", rule, frozenset(("mscale", "mscale_all_dim")))
