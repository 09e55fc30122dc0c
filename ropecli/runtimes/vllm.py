"""vLLM: loads the config through transformers, then has formulas of its own; here with the YaRN of the later tree.

Source: vllm-project/vllm 0cd57848 (undated, after 2026-08) for YaRN; hmellor/vllm 8d9b52f7 (2026-08-07) for the rest:
`model_executor/layers/rotary_embedding/`, `transformers_utils/config.py`, `config/model.py`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.frequencies import base_frequencies
from ropecli.runtimes.formulas import (
    divided,
    linear,
    longrope_magnitude,
    ntk,
    pair_magnitude,
    plain,
    rotation_ramp,
    unscaled,
)
from ropecli.runtimes.keys import SCALED_AS_STATED, ignored, length, max_positions, number, numbers, optional, rope_type
from ropecli.runtimes.reading import Computed, Keys, Reading, Refused, Request, Runtime
from ropecli.runtimes.serving import (
    Serving,
    filled,
    must_agree,
    must_not_be_latent,
    must_not_switch,
    one_line,
    override,
    parameters,
    placed,
    scaling_object,
)
from ropecli.runtimes.standardised import Standardised, standardised
from ropecli.runtimes.vllm_formulas import deepseek_yarn, extrapolated, gemma4_proportional, yarn_ramp
from ropecli.spec import LayerRope, Longrope, RopeSpec, default_attention_factor

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
"""Keys that hold a longest sequence, beside `model_max_length`."""

Yarn: TypeAlias = Callable[[Keys, RopeSpec], Computed]
"""How a version of vLLM computes `yarn` from the parameters and the unscaled base."""


def rule(request: Request, yarn: Yarn) -> Reading:
    """`get_rope` after `patch_rope_parameters`, at the original length, with no --max-model-len."""
    keys = standardised(request, rename=_type)
    base = unscaled(request, number(keys.parameters, "rope_theta"))
    context = context_length(request, keys)
    inv_freq, attention_factor, notes = _compute(request, keys, base, yarn, context)
    return Reading(inv_freq, attention_factor, context, keys.notes + _nesting(keys) + notes)


def later_yarn(parameters: Keys, base: RopeSpec) -> Computed:
    """`attention_factor` is final, else transformers' rule; `attn_factor` is gone."""
    factor, given = number(parameters, "factor"), optional(parameters, "attention_factor")
    attention_factor = pair_magnitude(factor, parameters) if given is None else given
    read = ("factor", ORIGINAL, "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate")
    return yarn_ramp(parameters, base), attention_factor, ignored(parameters, *read)


def context_length(request: Request, keys: Standardised) -> int:
    """`_get_and_verify_max_len`: L·s for yarn, M for llama3 and longrope, M·s for all else, Gemma-3 exempt."""
    derived, factor = _stated_length(request), 1.0
    if "gemma3" in request.model_type:
        return derived
    types = [entry["rope_type"] for entry in keys.entries]
    for entry, kind in zip(keys.entries, types, strict=True):
        if kind in {"longrope", "llama3"}:
            continue
        factor = number(entry, "factor", factor) if entry.get("factor") is not None else factor
        if kind == "yarn":
            derived = length(entry, ORIGINAL)
    if "longrope" in types and ORIGINAL in request.config:
        return length(request.config, ORIGINAL)
    return int(derived * factor)


def _stated_length(request: Request) -> int:
    """M: the shortest length that the config states, but `model_max_length` (Command-R) wins. Raises Refused."""
    if request.config.get("model_max_length"):
        return length(request.config, "model_max_length")
    stated = [length(request.config, name) for name in _LENGTHS if request.config.get(name) is not None]
    return min(stated) if stated else max_positions(request)


def _type(entry: Keys) -> str:
    """The type after `patch_legacy_rope_type`. Raises Refused."""
    kind, legacy = rope_type(entry, "rope_type", "type"), rope_type(entry, "type", "rope_type")
    if legacy != kind and (legacy, kind) not in {("su", "longrope"), ("mrope", "default")}:
        raise Refused(f"type is {legacy!r} and rope_type is {kind!r}")
    if kind == "mrope" and "mrope_section" not in entry:
        raise Refused("mrope needs mrope_section")
    return {"su": "longrope", "mrope": "default"}.get(kind, kind)


def _nesting(keys: Standardised) -> tuple[str, ...]:
    stray = [name for name, value in keys.outer.items() if not isinstance(value, dict)]
    if keys.outer is keys.parameters or not stray:
        return ()
    return (f"{stray[0]} beside the layer types: without its own model class it takes the object for a flat one",)


def _compute(request: Request, keys: Standardised, base: RopeSpec, yarn: Yarn, context: int) -> Computed:
    parameters, kind = keys.parameters, keys.rope_type
    if request.rope.mla and kind != "default" and request.model_type not in SCALED_AS_STATED:
        kind = "deepseek_yarn"
    computed: Computed
    match kind:
        case "default":
            computed = plain(base), 1.0, ()
        case "proportional":
            computed = gemma4_proportional(parameters, base)
        case "linear":
            computed = _linear(parameters, base, request)
        case "ntk" | "xdrope":
            computed = _static_ntk(parameters, base, kind), 1.0, ()
        case "dynamic":
            computed = _dynamic(parameters, base, max_positions(request))
        case "yarn" if "mrope_section" in parameters:
            computed = _mrope_yarn(parameters, base, yarn)
        case "yarn":
            computed = yarn(parameters, base)
        case "deepseek_yarn" | "deepseek_llama_scaling":
            computed = deepseek_yarn(parameters, base)
        case "telechat3-yarn":
            computed = _telechat3(parameters, base, max_positions(request))
        case "llama3":
            computed = _llama3(parameters, base)
        case "longrope":
            computed = _longrope(parameters, base, max_positions(request), context)
        case other:
            raise Refused(f"unknown RoPE scaling type {other!r}")
    return computed


def _llama3(parameters: Keys, base: RopeSpec) -> Computed:
    low, high = number(parameters, "low_freq_factor"), number(parameters, "high_freq_factor")
    factor, original = number(parameters, "factor"), length(parameters, ORIGINAL)
    return rotation_ramp(base, factor, original, low, high), 1.0, ()


def _linear(parameters: Keys, base: RopeSpec, request: Request) -> Computed:
    if not isinstance(parameters.get("factor"), float):
        number(parameters, "factor")
        raise Refused(f"TypeError: factor must be a JSON float, such as {number(parameters, 'factor'):.1f}")
    notes = (f"serves factor · {max_positions(request)} tokens: it takes max_position_embeddings for the original",)
    return linear(base, number(parameters, "factor")), 1.0, notes


def _mrope_yarn(parameters: Keys, base: RopeSpec, yarn: Yarn) -> Computed:
    if "factor" in parameters and parameters["factor"] is None:
        return plain(base), 1.0, ("a factor of null turns YaRN off",)
    longer = {**parameters, ORIGINAL: 4 * length(parameters, ORIGINAL)}
    inv_freq, attention_factor, notes = yarn(longer, base)
    return inv_freq, attention_factor, (*notes, "with mrope the ramp is computed for 4 times the length")


def _static_ntk(parameters: Keys, base: RopeSpec, kind: str) -> tuple[float, ...]:
    """Hunyuan's `alpha`; fixed NTK, (b·s)^(−2d/D) / s^(2/D); or the mixed one, theta_d / exp(a·(d+1)^mixed_b)."""
    if kind == "xdrope":
        return ntk(base, number(parameters, "alpha"))
    factor, mixed = number(parameters, "factor"), optional(parameters, "mixed_b")
    if mixed is None:
        return linear(replace(base, rope_theta=base.rope_theta * factor), factor ** (2 / base.rotary_dim))
    rate = math.log(factor) / base.pairs**mixed
    theta = base_frequencies(base.rope_theta, base.rotary_dim)
    return tuple(w / math.exp(rate * (d + 1) ** mixed) for d, w in enumerate(theta))


def _dynamic(parameters: Keys, base: RopeSpec, longest: int) -> Computed:
    if "alpha" in parameters:
        return ntk(base, number(parameters, "alpha")), 1.0, ignored(parameters, "alpha")
    factor, trained = number(parameters, "factor"), number(parameters, "max_trained_positions", longest)
    inv_freq = ntk(base, factor * longest / trained - (factor - 1))
    idle = () if "max_trained_positions" in parameters else ("factor has no effect without max_trained_positions",)
    return inv_freq, 1.0, (*idle, "one base for all lengths")


def _telechat3(parameters: Keys, base: RopeSpec, longest: int) -> Computed:
    if "mscale" in parameters or "mscale_all_dim" in parameters:
        raise Refused("TypeError: telechat3-yarn takes no mscale")
    factor = number(parameters, "factor")
    if ORIGINAL in parameters:
        factor = longest / length(parameters, ORIGINAL)
    filled = {**parameters, "factor": factor, ORIGINAL: parameters.get(ORIGINAL, longest)}
    attention_factor = default_attention_factor(factor, 0.07) * number(parameters, "attn_factor", 1.0)
    return extrapolated(filled, base, yarn_ramp(filled, base, truncate=True)), attention_factor, ()


def _longrope(parameters: Keys, base: RopeSpec, longest: int, context: int) -> Computed:
    if base.layout == "interleaved":
        raise Refused("longrope is for the half layout alone")
    original = length(parameters, ORIGINAL)
    short, long = numbers(parameters, "short_factor"), numbers(parameters, "long_factor")
    beyond, default = context > original, longrope_magnitude(longest / original, original)
    mscale = optional(parameters, "long_mscale" if beyond else "short_mscale")
    notes = ignored(parameters, ORIGINAL, "short_factor", "long_factor", "short_mscale", "long_mscale")
    if short != long:
        notes += (f"long_factor at every length where --max-model-len is above {original}, else short_factor",)
    return divided(base, long if beyond else short), default if mscale is None else mscale, notes


RUNTIME = Runtime("vllm", "0cd57848 (after 2026-08)", lambda request: rule(request, later_yarn))


NEEDED = {
    "linear": ("factor",),
    # versions differ in which of the two they read, and each ignores the other
    "yarn": ("factor", ORIGINAL, "beta_fast", "beta_slow", "truncate", "attention_factor", "attn_factor"),
    "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "longrope": (ORIGINAL, "short_factor", "long_factor", "attention_factor"),
}
"""The scaling keys of each type that vLLM or SGLang reads."""

_NEUTRAL = {"truncate": True, "extrapolation_factor": 1.0, "apply_yarn_scaling": True}
"""Keys that YaRN reads, and the value that changes nothing."""


def flags(serving: Serving) -> tuple[str, ...]:
    """`--hf-overrides` and `--max-model-len`.

    `ModelConfig._apply_dict_overrides` replaces a top-level object, and merges into an inner config's at any depth, so
    that keys of the old object have to be neutralised there.
    Raises BadUsage for what vLLM cannot do.
    """
    must_not_be_latent("vLLM", serving)
    must_not_switch("vLLM", serving, dynamic=False)
    changes = filled(override(serving, NEEDED), serving, longrope_temperature)
    if serving.loaded_path:
        changes = filled(changes, serving, lambda rope: _neutral(serving, rope))
    must_agree(RUNTIME, serving, changes)
    overrides = placed(serving.config, serving.loaded_path, changes, merged=len(serving.loaded_path))
    return ("--hf-overrides", one_line(overrides), "--max-model-len", str(serving.length))


def longrope_temperature(rope: LayerRope) -> Keys:
    """The keys that vLLM and SGLang read longrope's attention factors from."""
    scaling = rope.spec.scaling
    if not isinstance(scaling, Longrope):
        return {}
    return {"short_mscale": scaling.short_attention_factor, "long_mscale": scaling.attention_factor}


def _neutral(serving: Serving, rope: LayerRope) -> Keys:
    """What the old object's keys have to become, so that they say nothing beside the new ones."""
    old, kind = scaling_object(serving, rope.name), parameters(serving, rope, NEEDED)["rope_type"]
    neutral = _NEUTRAL if kind == "yarn" else {}
    return {key: value for key, value in {"type": kind, **neutral}.items() if key in old}
