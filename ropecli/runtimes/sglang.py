"""SGLang: loads the config through transformers; its own defaults are for configs with code of their own.

Source: JustinTong0323/sglang 623300a5 (2026-06-25), `srt/layers/rotary_embedding/`,
`srt/utils/hf_transformers/common.py`.
"""

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.runtimes.formulas import (
    divided,
    linear,
    longrope_magnitude,
    ntk,
    plain,
    rotation_ramp,
    unscaled,
)
from ropecli.runtimes.keys import SCALED_AS_STATED, ignored, length, max_positions, number, numbers, optional
from ropecli.runtimes.reading import Computed, Keys, Reading, Refused, Request, Runtime
from ropecli.runtimes.serving import (
    Serving,
    filled,
    must_agree,
    must_not_be_latent,
    must_not_switch,
    one_line,
    override,
    placed,
    refused,
)
from ropecli.runtimes.standardised import PHI3, standardised
from ropecli.runtimes.vllm import NEEDED, longrope_temperature
from ropecli.runtimes.vllm_formulas import deepseek_yarn, extrapolated, gemma4_proportional, magnified, yarn_ramp
from ropecli.spec import Dynamic, RopeSpec

_LENGTHS = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", "max_position_embeddings")
_TOP_LEVEL = {
    *("LlamaForCausalLM", "MistralForCausalLM", "Ministral3ForCausalLM", "InternLM3ForCausalLM", "Phi3ForCausalLM"),
    *("ApertusForCausalLM", "ArceeForCausalLM", "ExaoneForCausalLM", "Exaone4ForCausalLM", "ExaoneMoEForCausalLM"),
    *("GraniteForCausalLM", "HunYuanMoEV1ForCausalLM", "HunYuanDenseV1ForCausalLM", "DeciLMForCausalLM"),
    *("SolarForCausalLM", "XverseForCausalLM", "IQuestCoderForCausalLM", "TeleFLMForCausalLM"),
}
_YARN = ("factor", ORIGINAL, "extrapolation_factor", "attn_factor", "beta_fast", "beta_slow", "truncate")


def rule(request: Request) -> Reading:
    """`get_rope`, at the original length, with no --context-length."""
    keys = standardised(request, top_level=request.model_type in PHI3)
    parameters, notes = _with_top_level(request, keys.parameters)
    kind = keys.rope_type
    if request.rope.mla and kind != "default" and request.model_type not in SCALED_AS_STATED:
        kind = "deepseek_yarn"
    base = unscaled(request, number(parameters, "rope_theta"))
    inv_freq, attention_factor, more = _compute(kind, parameters, base, max_positions(request, _LENGTHS))
    return Reading(inv_freq, attention_factor, _context_length(request, keys.parameters), keys.notes + notes + more)


def _with_top_level(request: Request, parameters: Keys) -> tuple[Keys, tuple[str, ...]]:
    """Some model files copy a top-level original length into the parameters; the others never see it."""
    top = request.config.get(ORIGINAL)
    if not top or request.layer_type is not None or request.model_type in PHI3:
        return parameters, ()
    if request.architecture in _TOP_LEVEL:
        return {**parameters, ORIGINAL: top}, ()
    return parameters, (f"the top-level {ORIGINAL} is not read for this architecture",)


def _context_length(request: Request, parameters: Keys) -> int:
    """`get_context_length`: M, times the factor where the parameters name no original length and are not llama3's."""
    longest = max_positions(request, _LENGTHS)
    unscaled_length = ORIGINAL in parameters or parameters["rope_type"] == "llama3" or request.layer_type is not None
    return longest if unscaled_length else int(number(parameters, "factor", 1.0) * longest)


def _compute(kind: str, parameters: Keys, base: RopeSpec, longest: int) -> Computed:
    computed: Computed
    match kind:
        case "default":
            computed = plain(base), 1.0, ()
        case "proportional":
            computed = gemma4_proportional(parameters, base)
        case "linear":
            if not isinstance(parameters.get("factor", 1.0), float):
                raise Refused(f"TypeError: factor must be a JSON float, such as {number(parameters, 'factor'):.1f}")
            computed = linear(base, number(parameters, "factor", 1.0)), 1.0, ()
        case "dynamic" if "alpha" in parameters:
            computed = ntk(base, number(parameters, "alpha")), 1.0, ignored(parameters, "alpha")
        case "dynamic":
            factor = number(parameters, "factor", 1.0)
            notes = (f"one base for all lengths, that of {factor * longest:g} tokens",)
            computed = ntk(base, factor * factor - (factor - 1)), 1.0, notes
        case "yarn":
            computed = _yarn(parameters, base, longest)
        case "deepseek_yarn":
            computed = deepseek_yarn({"factor": 1.0, ORIGINAL: longest, **parameters}, base)
        case "llama3":
            low, high = number(parameters, "low_freq_factor", 1.0), number(parameters, "high_freq_factor", 4.0)
            original = length(parameters, ORIGINAL, longest)
            computed = rotation_ramp(base, number(parameters, "factor", 1.0), original, low, high), 1.0, ()
        case "longrope":
            computed = _longrope(parameters, base, longest)
        case other:
            raise Refused(f"unknown RoPE scaling type {other!r}")
    return computed


def _yarn(parameters: Keys, base: RopeSpec, longest: int) -> Computed:
    filled = {"factor": 1.0, ORIGINAL: longest, **parameters}
    served = number(filled, "factor") * number(filled, ORIGINAL)
    notes = ignored(parameters, *_YARN)
    if longest > served:
        notes += (f"before 2026-09 positions beyond factor · original = {served:g} are rotated wrongly",)
    return extrapolated(filled, base, yarn_ramp(filled, base)), magnified(filled), notes


def _longrope(parameters: Keys, base: RopeSpec, longest: int) -> Computed:
    original = length(parameters, ORIGINAL, longest)
    short, long = numbers(parameters, "short_factor"), numbers(parameters, "long_factor")
    if base.layout == "interleaved":
        raise Refused("longrope is for the half layout alone")
    mscale = optional(parameters, "short_mscale")
    notes = ignored(parameters, ORIGINAL, "short_factor", "long_factor", "short_mscale", "long_mscale")
    if short != long:
        notes += (f"long_factor for every position of a batch that reaches beyond {original} tokens",)
    return divided(base, short), longrope_magnitude(longest / original, original) if mscale is None else mscale, notes


RUNTIME = Runtime("sglang", "623300a5 (2026-06-25)", rule, frozenset(("attn_factor",)))


def flags(serving: Serving) -> tuple[str, ...]:
    """`--json-model-override-args` and `--context-length`.

    `get_config` replaces top-level objects; from August 2026 it merges one level of inner configs, and before that an
    inner one stops it.
    Raises BadUsage for what SGLang cannot do.
    """
    must_not_be_latent("SGLang", serving)
    if len(serving.loaded_path) > 1:
        raise refused(
            f"SGLang replaces {serving.loaded_path[0]} whole, and the language model lies deeper in it",
            "write a checkpoint with --output",
        )
    if any(isinstance(spec.scaling, Dynamic) for spec in serving.intent.values()):
        must_not_switch("SGLang", serving, dynamic=False)
    changes = filled(override(serving, NEEDED), serving, longrope_temperature)
    must_agree(RUNTIME, serving, changes)
    overrides = placed(serving.config, serving.loaded_path, changes, merged=1)
    return ("--json-model-override-args", one_line(overrides), "--context-length", str(serving.length))
