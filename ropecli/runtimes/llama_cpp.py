"""llama.cpp: a converter writes what it knows into a GGUF, and the loader reads less than that.

Source: ngxson/llama.cpp 3f545bec (2026-08-22), `conversion/base.py` and its models, `src/llama-model.cpp`,
`src/llama-context.cpp`, `ggml/src/ggml.c`; run as xllamacpp 2026.10.
"""

from dataclasses import replace

from ropecli.frequencies import ramp_frequencies, yarn_corners
from ropecli.runtimes.formulas import (
    divided,
    linear,
    longrope_magnitude,
    magnitude,
    ntk,
    plain,
    proportional,
    rotation_ramp,
    unscaled,
)
from ropecli.runtimes.keys import LOCAL_THETAS, block, length, local_layer, max_positions, number, numbers, optional
from ropecli.runtimes.reading import Computed, Keys, Reading, Request, Runtime
from ropecli.spec import RopeSpec, Yarn

_ORIGINAL = "original_max_position_embeddings"
_LENGTHS = ("max_position_embeddings", "n_ctx", "n_positions", "max_sequence_length", "model_max_length")
_THETAS = (
    *("global_rope_theta", "rope_global_theta", "rope_theta_global"),
    *("rope_theta", "rotary_emb_base"),
)
_MISTRAL3 = {"Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"}
_PHI3 = {"Phi3ForCausalLM", "Phi4ForCausalLMV", "PhiMoEForCausalLM"}
_MINICPM = {"MiniCPMForCausalLM", "MiniCPM3ForCausalLM"}
_HUNYUAN = {"HunYuanMoEV1ForCausalLM", "HunYuanDenseV1ForCausalLM", "HunYuanVLForConditionalGeneration"}

LLAMA3_ARCHITECTURES = _MISTRAL3 | {
    *("LLaMAForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "LlamaModel"),
    *("VLlama3ForCausalLM", "LlavaForConditionalGeneration", "VoxtralForConditionalGeneration"),
    *("IQuestCoderForCausalLM", "NanbeigeForCausalLM", "NemotronHForCausalLM", "ArceeForCausalLM", "AfmoeForCausalLM"),
    *("Llama4ForConditionalGeneration", "Llama4ForCausalLM", "LlamaBidirectionalModel", "SmolLM3ForCausalLM"),
    *("ApertusForCausalLM", "CogVLMForCausalLM", "Sarashina2VisionForCausalLM", "JanusForConditionalGeneration"),
    *("GraniteForCausalLM", "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM", "GraniteMoeHybridForCausalLM"),
    *("GraniteSWAForCausalLM", "GraniteMoeSWAForCausalLM", "GraniteSwitchForCausalLM", "BambaForCausalLM"),
    *("ExaoneForCausalLM", "Exaone4ForCausalLM", "ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"),
    *("Exaone4_5_ForConditionalGeneration", "DeciLMForCausalLM"),
    *("Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"),
}
"""Architectures whose converter turns `llama3` into the tensor `rope_freqs.weight`."""


def rule(request: Request) -> Reading:
    """Conversion to GGUF and loading of it, with no flag."""
    parameters = _parameters(request)
    base = unscaled(request, _theta(request, parameters))
    longest = max_positions(request, _LENGTHS)
    if local_layer(request):
        return Reading(plain(base), 1.0, longest)
    inv_freq, attention_factor, notes = _compute(request, parameters, base, longest)
    return Reading(inv_freq, attention_factor, longest, notes)


def _parameters(request: Request) -> Keys:
    """`rope_parameters` where the key is present, else `rope_scaling`; the `full_attention` entry where nested."""
    name = "rope_parameters" if "rope_parameters" in request.config else "rope_scaling"
    whole = block(request.config, name)
    full = block(whole, "full_attention")
    if full:
        return full
    if "rope_type" not in whole and "type" in whole:
        whole["rope_type"] = whole["type"]
    if request.config.get(_ORIGINAL) is not None:
        whole.setdefault(_ORIGINAL, request.config[_ORIGINAL])
    return whole


def _theta(request: Request, parameters: Keys) -> float:
    if request.layer_type == "sliding_attention":
        nested = block(block(request.config, "rope_parameters"), "sliding_attention")
        for place, names in ((nested, ("rope_theta",)), (request.config, LOCAL_THETAS)):
            for name in names:
                if place.get(name) is not None:
                    return number(place, name)
    if "rope_theta" in parameters:
        return number(parameters, "rope_theta")
    for name in _THETAS:
        if isinstance(request.config.get(name), int | float):
            return number(request.config, name)
    return request.default_rope_theta


def _compute(request: Request, parameters: Keys, base: RopeSpec, longest: int) -> Computed:
    kind = str(parameters.get("rope_type") or "default")
    factor = optional(parameters, "factor")
    computed: Computed
    match kind.lower():
        case "linear" if factor is not None:
            computed = linear(base, factor), 1.0, ()
        case "yarn" if factor is not None:
            computed = _yarn(request, parameters, base, factor)
        case "llama3" if request.architecture in LLAMA3_ARCHITECTURES:
            low, high = number(parameters, "low_freq_factor", 1.0), number(parameters, "high_freq_factor", 4.0)
            original = length(parameters, _ORIGINAL, 8192)
            computed = rotation_ramp(base, number(parameters, "factor", 8.0), original, low, high), 1.0, ()
        case "longrope" | "su" if request.architecture in _PHI3 | _MINICPM:
            computed = _longrope(request, parameters, base, longest)
        case "dynamic" if request.architecture in _HUNYUAN:
            computed = ntk(base, number(parameters, "alpha", 1000.0)), 1.0, ()
        case "proportional" if request.model_type.startswith("gemma4"):
            share = number(parameters, "partial_rotary_factor", 1.0)
            computed = proportional(base, 1.0, share), 1.0, ()
        case "default" | "mrope":
            computed = plain(base), 1.0, ()
        case _:
            computed = plain(base), 1.0, (f"{kind} silently dropped by the converter of this architecture",)
    return computed


def _yarn(request: Request, parameters: Keys, base: RopeSpec, factor: float) -> Computed:
    """ggml's ramp: corners rounded outwards, never narrower than 0.001; betas of the file for Mistral-3 alone."""
    fast, slow, notes = 32.0, 1.0, []
    read = request.architecture in _MISTRAL3
    if read:
        fast, slow = number(parameters, "beta_fast", 32.0), number(parameters, "beta_slow", 1.0)
    written = () if read else ("beta_fast", "beta_slow")
    notes += [f"{name} written to the GGUF, never read" for name in written if parameters.get(name) is not None]
    for name in ("attention_factor", "attn_factor"):
        if parameters.get(name) is not None:
            notes.append(f"{name} written to the GGUF, overwritten when it loads")
    attention_factor = magnitude(factor)
    all_dim = optional(parameters, "mscale_all_dim")
    if all_dim and (read or request.rope.mla):
        attention_factor = magnitude(factor) / magnitude(factor, all_dim) if read else 1.0
    else:
        notes += [f"{name} not converted" for name in ("mscale", "mscale_all_dim") if name in parameters]
    if "truncate" in parameters:
        notes.append("truncate not converted")
    spec = replace(base, original_length=length(parameters, _ORIGINAL))
    low, high = yarn_corners(spec, Yarn(factor, 1.0, fast, slow))
    return ramp_frequencies(spec, factor, low, max(low, high)), attention_factor, tuple(notes)


def _longrope(request: Request, parameters: Keys, base: RopeSpec, longest: int) -> Computed:
    """Two tensors of divisors; the long one for a context above the original length, whatever the sequence."""
    original = length(parameters, _ORIGINAL, longest)
    short, long = numbers(parameters, "short_factor"), numbers(parameters, "long_factor")
    temperature = longrope_magnitude(longest / original, original) if request.architecture in _PHI3 else 1.0
    notes = () if short == long else (f"long_factor at every length where the context is above {original}",)
    return divided(base, long if longest > original else short), temperature, notes


RUNTIME = Runtime("llama.cpp", "3f545bec (2026-08-22)", rule)
