"""llama.cpp: a converter writes what it knows into a GGUF, and the loader reads less than that.

Source: ngxson/llama.cpp 3f545bec (2026-08-22), `conversion/base.py` and its models, `src/llama-model.cpp`,
`src/llama-context.cpp`, `ggml/src/ggml.c`; run as xllamacpp 2026.10.
"""

from dataclasses import replace

from ropecli.dialects.gguf_archs import LOG_MULTIPLIER, SLIDING
from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.dialects.hf_scaling import portable_yarn, written_theta
from ropecli.frequencies import frequencies, ramp_frequencies, yarn_corners
from ropecli.runtimes.comparison import compare
from ropecli.runtimes.formulas import (
    divided,
    linear,
    longrope_magnitude,
    ntk,
    plain,
    proportional,
    rotation_ramp,
    unscaled,
)
from ropecli.runtimes.keys import (
    LOCAL_THETAS,
    block,
    length,
    local_layer,
    max_positions,
    number,
    numbers,
    optional,
    rope_type,
)
from ropecli.runtimes.llama_cpp_archs import ARCHITECTURES
from ropecli.runtimes.reading import Computed, Keys, Reading, Request, Runtime
from ropecli.runtimes.serving import Serving, must_not_be_latent, refused
from ropecli.spec import Dynamic, LayerRope, Linear, Ntk, Plain, RopeSpec, Yarn, default_attention_factor, mscale_ratio

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
    if request.config.get(ORIGINAL) is not None:
        whole.setdefault(ORIGINAL, request.config[ORIGINAL])
    return whole


def _theta(request: Request, parameters: Keys) -> float:
    if request.layer_type == "sliding_attention":
        nested = block(block(request.config, "rope_parameters"), "sliding_attention")
        for place, names in ((nested, ("rope_theta",)), (request.config, LOCAL_THETAS)):
            for name in names:
                if place.get(name) is not None:
                    return number(place, name)
    of_attention = block(request.config, "attn_config") if request.architecture == "DbrxForCausalLM" else {}
    if "rope_theta" in of_attention:
        return number(of_attention, "rope_theta")
    if "rope_theta" in parameters:
        return number(parameters, "rope_theta")
    for name in _THETAS:
        if isinstance(request.config.get(name), int | float):
            return number(request.config, name)
    return request.default_rope_theta


def _compute(request: Request, parameters: Keys, base: RopeSpec, longest: int) -> Computed:
    kind = "default" if parameters.get("rope_type") is None else rope_type(parameters, "rope_type")
    factor = optional(parameters, "factor")
    computed: Computed
    match kind.lower():
        case "linear" if factor is not None:
            computed = linear(base, factor), 1.0, ()
        case "yarn" if factor is not None:
            computed = _yarn(request, parameters, base, factor)
        case "llama3" if request.architecture in LLAMA3_ARCHITECTURES:
            low, high = number(parameters, "low_freq_factor", 1.0), number(parameters, "high_freq_factor", 4.0)
            original = length(parameters, ORIGINAL, 8192)
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
    attention_factor = default_attention_factor(factor)
    all_dim = optional(parameters, "mscale_all_dim")
    if all_dim and (read or request.rope.mla):
        attention_factor = mscale_ratio(factor, 1.0, all_dim) if read else 1.0
    else:
        notes += [f"{name} not converted" for name in ("mscale", "mscale_all_dim") if name in parameters]
    if "truncate" in parameters:
        notes.append("truncate not converted")
    spec = replace(base, original_length=length(parameters, ORIGINAL))
    low, high = yarn_corners(spec, Yarn(factor, 1.0, fast, slow))
    return ramp_frequencies(spec, factor, low, max(low, high)), attention_factor, tuple(notes)


def _longrope(request: Request, parameters: Keys, base: RopeSpec, longest: int) -> Computed:
    """Two tensors of divisors; the long one for a context above the original length, whatever the sequence."""
    original = length(parameters, ORIGINAL, longest)
    short, long = numbers(parameters, "short_factor"), numbers(parameters, "long_factor")
    temperature = longrope_magnitude(longest / original, original) if request.architecture in _PHI3 else 1.0
    notes = () if short == long else (f"long_factor at every length where the context is above {original}",)
    return divided(base, long if longest > original else short), temperature, notes


RUNTIME = Runtime("llama.cpp", "3f545bec (2026-08-22)", rule)


def flags(serving: Serving) -> tuple[str, ...]:
    """Flags for llama-server and llama-cli, for the GGUF of the checkpoint.

    `{arch}.rope.scaling.attn_factor` is the one key of the temperature that is read beside YaRN, and llama-server cuts
    every slot to `{arch}.context_length`.
    Raises BadUsage for what llama.cpp cannot do.
    """
    arch = serving.gguf_architecture or ARCHITECTURES.get(serving.architecture)
    if arch is None:
        raise refused(
            f"llama.cpp's name for the architecture {serving.architecture or serving.model_type!r} is not known",
            "name the .gguf file, which says it",
        )
    must_not_be_latent("llama.cpp", serving)
    rope = _reached(serving, arch)
    words, attn_factor = _scaling_flags(rope.spec)
    if written_theta(rope.spec) != _as_it_is(serving, rope).rope_theta:
        words += ("--rope-freq-base", repr(written_theta(rope.spec)))
    if serving.layered and attn_factor != 1:
        raise refused(
            "llama.cpp would apply the attention factor to the sliding-window layers, too",
            f"use --attention-factor {default_attention_factor(rope.spec.scaling.factor):.10g}",
        )
    pairs = _overrides(serving, arch, rope.spec, attn_factor)
    return (*words, "--override-kv", ",".join(pairs), "-c", str(serving.length))


def _as_it_is(serving: Serving, rope: LayerRope) -> RopeSpec:
    return next(found.spec for found in serving.ropes if found.name == rope.name)


def _reached(serving: Serving, arch: str) -> LayerRope:
    """The one kind of layer that is asked for; raises BadUsage where flags reach fewer layers, or more."""
    window = serving.config.get(f"{arch}.attention.sliding_window", serving.text.get("sliding_window"))
    beyond = any(rope.sliding_window is not None for rope in serving.asked)
    if beyond or len(serving.asked) != 1 or (arch in SLIDING and window and not serving.layered):
        raise refused(
            "llama.cpp scales the full-attention layers alone by flags",
            "write a GGUF with --output" if serving.gguf_architecture else "use --layers full",
        )
    return serving.asked[0]


def _scaling_flags(spec: RopeSpec) -> tuple[tuple[str, ...], float]:
    """The flags, and what the temperature has to be multiplied by. Raises BadUsage."""
    scaling = spec.scaling
    match scaling:
        case Plain() | Ntk():
            return ("--rope-scaling", "none"), 1.0
        case Linear():
            return ("--rope-scaling", "linear", "--rope-scale", repr(float(scaling.factor))), 1.0
        case Yarn():
            return _yarn_flags(spec, scaling), scaling.attention_factor / default_attention_factor(scaling.factor)
        case Dynamic():
            raise refused("llama.cpp has one base for all lengths", "use --rope-type ntk")
        case _:
            raise refused(
                f"llama.cpp has no flag for {spec.rope_type}: divisors for each pair are a tensor of the GGUF",
                "write a GGUF that has it: ropecli convert MODEL.gguf --output OUT.gguf",
            )


def _yarn_flags(spec: RopeSpec, yarn: Yarn) -> tuple[str, ...]:
    written = portable_yarn(spec, yarn)
    fast, slow = written["beta_fast"], written["beta_slow"]
    low, high = yarn_corners(spec, replace(yarn, beta_fast=fast, beta_slow=slow, truncate=True))
    found = Reading(ramp_frequencies(spec, yarn.factor, low, max(low, high)), yarn.attention_factor, None)
    if not compare(found, frequencies(spec))[1]:
        raise refused(
            "llama.cpp rounds the corners of the ramp outwards, to whole pairs",
            "leave --no-truncate out, or write a GGUF with --output, which has a divisor for each pair",
        )
    return (
        *("--rope-scaling", "yarn", "--rope-scale", repr(float(yarn.factor))),
        *("--yarn-orig-ctx", str(spec.original_length)),
        *("--yarn-beta-fast", repr(float(fast)), "--yarn-beta-slow", repr(float(slow))),
    )


def _overrides(serving: Serving, arch: str, spec: RopeSpec, attn_factor: float) -> list[str]:
    """`KEY=TYPE:VALUE` of metadata; older builds read only the first of a list, so the temperature comes first."""
    key = f"{arch}.rope.scaling.attn_factor"
    pairs = [f"{key}=float:{attn_factor!r}"] if attn_factor != 1 or key in serving.config else []
    if arch in LOG_MULTIPLIER and isinstance(spec.scaling, Yarn):
        pairs.append(f"{arch}.rope.scaling.yarn_log_multiplier=float:0.0")
    return [*pairs, f"{arch}.context_length=int:{serving.length}"]
