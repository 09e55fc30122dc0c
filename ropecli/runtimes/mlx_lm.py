"""MLX-LM: one rope module, but each model decides which keys reach it, and many let none through.

Source: mlx-lm 0.32.2 `models/rope_utils.py` and the `ModelArgs` of its models.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.dialects.portable import OTHER_BASES
from ropecli.runtimes.formulas import (
    divided,
    each_magnitude,
    index_ramp,
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
    ignored,
    length,
    local_layer,
    max_positions,
    nested,
    number,
    numbers,
    rope_type,
)
from ropecli.runtimes.reading import Computed, Keys, Reading, Refused, Request, Runtime
from ropecli.runtimes.serving import (
    Serving,
    lengths,
    must_agree,
    must_have_config,
    must_not_be_latent,
    must_not_switch,
    one_line,
    parameters,
    placed,
    refused,
)
from ropecli.spec import LayerRope, Longrope, RopeSpec

_YARN = ("factor", ORIGINAL, "beta_fast", "beta_slow", "mscale", "mscale_all_dim")

UNSCALED = {
    *("Klear", "baichuan_m1", "cohere", "cohere2", "dbrx", "deepseek", "gemma", "gemma2", "gemma3n", "glm", "glm4"),
    *("glm4_moe", "gpt_neox", "helium", "lfm2", "lfm2_moe", "lille-130m", "mimo_v2_flash", "minimax", "minimax_m2"),
    *("mixtral", "muse_glimmer", "muse_spark", "nemotron", "olmo", "openelm", "phi", "phi3small", "phixtral", "plamo"),
    *("plamo2", "plamo3", "qwen", "qwen2_moe", "qwen3_moe", "recurrent_gemma", "spark2_5", "stablelm", "starcoder2"),
}
"""Model types that rotate with a plain embedding, whatever the scaling; but see `LINEAR`."""

UNPASSED = {"ernie4_5", "ernie4_5_moe", "gptj", "olmo_hybrid"}
"""Model types whose rope module could scale, but is never told how."""

LINEAR = {"deepseek", "nemotron"}
"""Of the first, those that heed `linear`."""

CHECKED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "deepseek": (("type",), ()),
    "hunyuan": (("factor", "type"), ()),
    "hunyuan_v1_dense": (("alpha", "factor", "type"), ()),
    "internlm2": (("factor", "type"), ("linear", "dynamic")),
    "internlm3": (("factor", "rope_type"), ("linear", "dynamic")),
    "nemotron": (("factor",), ("linear",)),
    "qwen2_moe": (("factor", "type"), ("linear",)),
}
"""Model types that do not load without these keys in a scaling object, and with another type than these, if any."""

REQUIRED_THETA = {
    *("Klear", "apertus", "baichuan_m1", "bailing_hybrid", "bailing_moe", "bailing_moe_linear", "dots1", "ernie4_5"),
    *("ernie4_5_moe", "exaone", "exaone4", "gemma3n", "glm4", "glm4_moe", "granite", "granitemoe", "helium", "hunyuan"),
    *("kimi_linear", "lille-130m", "llama4", "longcat_flash", "longcat_flash_ngram", "mimo_v2_flash", "minimax"),
    *("olmo3", "qwen3_moe", "qwen3_next", "recurrent_gemma", "solar_open", "stablelm", "telechat3"),
}
"""Model types that do not load without a top-level `rope_theta`."""

DEFAULT_THETA: Mapping[str, float] = {
    "afm7": 5e4,
    "bailing_moe_v3": 6e6,
    "cohere": 8e6,
    "cohere2": 5e4,
    "exaone_moe": 1e6,
    "falcon_h1": 1e11,
    "gear": 1e6,
    "gemma3_text": 1e6,
    "glm4_moe_lite": 1e6,
    "gpt_oss": 150000.0,
    "iquestloopcoder": 5e5,
    "lfm2": 1e6,
    "lfm2_moe": 1e6,
    "minicpm": 1e6,
    "minicpm3": 1e6,
    "minimax_m3_vl": 5e6,
    "mixtral": 1e6,
    "muse_glimmer": 5e5,
    "nemotron-nas": 5e5,
    "plamo3": 1e6,
    "qwen2": 1e6,
    "qwen2_moe": 1e6,
    "qwen3_5": 1e5,
    "starcoder2": 1e5,
    "talkie": 1e6,
    "youtu_llm": 1.6e6,
}
"""Base of the model types that do not default to 10000."""

_INNER_THETA = {"exaone_moe", "granitemoehybrid", "lfm2", "lfm2_moe", "muse_glimmer", "muse_spark", "olmo_hybrid"}
_WHOLE = {"glm_moe_dsa", "minimax_m3_vl", "ministral3", "mistral4", "qwen3_5"}
_BY_LAYER = {"gemma4_text", "laguna", "mellum", "spark2_5"}
_SAME = {
    "gemma3n_text": "gemma3n",
    "llama4_text": "llama4",
    "mistral": "llama",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_5_moe": "qwen3_5",
    "qwen3_5_moe_text": "qwen3_5",
    "qwen3_5_text": "qwen3_5",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
}
"""Model types that another one's module serves."""


def rule(request: Request) -> Reading:
    """`initialize_rope` with what the model's arguments keep of the file."""
    model = _SAME.get(request.model_type, request.model_type)
    scaling, notes = _scaling(request, model)
    base = unscaled(request, _theta(request, model, scaling))
    if model == "glm":
        base = replace(base, rotary_dim=base.head_dim)  # it does not know that GLM rotates half of the head
    if local_layer(request) and model not in _BY_LAYER:
        return Reading(plain(base), 1.0, None, notes)
    _check_model(model, scaling)
    if model in UNSCALED | UNPASSED:
        kind = _type(scaling)
        if model in LINEAR and kind == "linear":
            return Reading(linear(base, number(scaling, "factor")), 1.0, None, notes)
        dropped = () if kind in {"default", "mrope"} else (f"{kind} ignored: this model type never scales",)
        return Reading(plain(base), 1.0, None, notes + dropped)
    if model.startswith("hunyuan"):
        alpha = number(scaling, "alpha", 1.0 if model == "hunyuan_v1_dense" else None)
        return Reading(ntk(base, alpha), 1.0, None, notes + ignored(scaling, "alpha", "factor"))
    if model == "phi3":
        scaling = _phi3(request, scaling)
    if model == "deepseek_v2":
        scaling = _deepseek_v2(scaling)
    inv_freq, attention_factor, more = _compute(request, scaling, base)
    return Reading(inv_freq, attention_factor, None, notes + more, _type(scaling) == "dynamic")


def _check_model(model: str, scaling: Keys) -> None:
    """Raises Refused for what the model's own arguments refuse."""
    keys, types = CHECKED.get(model, ((), ()))
    missing = [key for key in keys if key not in scaling]
    if scaling and missing:
        raise Refused(f"ValueError: rope_scaling must contain {' and '.join(keys)}")
    kind = scaling["rope_type"] if "rope_type" in keys and scaling else _type(scaling)
    if scaling and types and kind not in types:
        raise Refused(f"ValueError: rope_scaling's type must be {' or '.join(types)}")


def _deepseek_v2(scaling: Keys) -> Keys:
    """DeepSeek-V2's module is YaRN, whatever the object calls itself, and needs one."""
    if not scaling:
        raise Refused("AttributeError: it needs a rope_scaling")
    return {**scaling, "type": "yarn"}


def _scaling(request: Request, model: str) -> tuple[Keys, tuple[str, ...]]:
    """The object that reaches the rope module, and a note where the other one is there unread."""
    scaling, parameters = block(request.config, "rope_scaling"), block(request.config, "rope_parameters")
    if model in _BY_LAYER:
        return nested(parameters, request.layer_type) or {}, ()
    if model in _WHOLE or (model == "qwen3" and request.config.get("rope_scaling") is None):
        return parameters, ()
    unread = parameters and model not in _INNER_THETA and model != "qwen3"
    return scaling, ("rope_parameters is not read",) if unread else ()


def _theta(request: Request, model: str, scaling: Keys) -> float:
    parameters = block(request.config, "rope_parameters")
    if model in _BY_LAYER | _WHOLE and "rope_theta" in scaling:
        return number(scaling, "rope_theta")
    if model in _INNER_THETA and "rope_theta" in parameters:
        return number(parameters, "rope_theta")
    if request.layer_type == "sliding_attention" and model in {"gemma3_text", "gemma3n"}:
        return number(request.config, LOCAL_THETAS[0], 10_000.0)
    if model == "gptj":
        return 10_000.0
    if model == "dbrx":
        return number(block(request.config, "attn_config"), "rope_theta")
    if request.config.get("rope_theta") is not None:
        return number(request.config, "rope_theta")
    if model == "qwen3":
        return number(parameters, "rope_theta")
    if model in REQUIRED_THETA:
        raise Refused("TypeError: this model type needs a top-level rope_theta")
    return DEFAULT_THETA.get(model, 10_000.0)


def _type(scaling: Keys) -> str:
    """`type` wins over `rope_type`."""
    return rope_type(scaling, "type" if scaling.get("type") else "rope_type")


def _phi3(request: Request, scaling: Keys) -> Keys:
    """Phi-3's own filter: longrope, su and linear by `type`, the original length from the top level."""
    if not scaling:
        return scaling
    if "type" not in scaling or "long_factor" not in scaling:
        raise Refused("ValueError: rope_scaling must contain type and long_factor")
    kind = rope_type(scaling, "type")
    if kind not in {"longrope", "su", "linear"}:
        return {}
    original = length(request.config, ORIGINAL, 4096)
    return {**scaling, "type": "linear" if kind == "linear" else "longrope", ORIGINAL: original}


def _compute(request: Request, scaling: Keys, base: RopeSpec) -> Computed:
    computed: Computed
    match _type(scaling):
        case "default":
            computed = plain(base), 1.0, ()
        case "mrope":
            if len(numbers(scaling, "mrope_section")) != 3:
                raise Refused("mrope_section needs 3 sections")
            computed = plain(base), 1.0, ()
        case "linear":
            computed = linear(base, number(scaling, "factor")), 1.0, ()
        case "dynamic":
            number(scaling, "factor")
            notes = ("the base grows with the sequence; keys in the cache keep the base that they were made with",)
            computed = plain(base), 1.0, notes
        case "llama3":
            low, high = number(scaling, "low_freq_factor", 1.0), number(scaling, "high_freq_factor", 4.0)
            original = length(scaling, ORIGINAL, 8192)
            computed = rotation_ramp(base, number(scaling, "factor"), original, low, high), 1.0, ()
        case "yarn" | "deepseek_yarn" | "telechat3-yarn":
            computed = _yarn(scaling, base)
        case "longrope":
            computed = _longrope(request, scaling, base)
        case "proportional":
            share = number(scaling, "partial_rotary_factor", 1.0)
            computed = proportional(base, number(scaling, "factor", 1.0), share), 1.0, ()
        case other:
            raise Refused(f"unsupported RoPE type {other}")
    return computed


def _yarn(scaling: Keys, base: RopeSpec) -> Computed:
    factor = number(scaling, "factor")
    fast, slow = number(scaling, "beta_fast", 32.0), number(scaling, "beta_slow", 1.0)
    inv_freq = index_ramp(base, factor, length(scaling, ORIGINAL, 4096), fast, slow, truncate=True)
    notes = ignored(scaling, *_YARN)
    if ORIGINAL not in scaling:
        notes += ("assumes an original length of 4096",)
    return inv_freq, each_magnitude(factor, scaling), notes


def _longrope(request: Request, scaling: Keys, base: RopeSpec) -> Computed:
    original, longest = length(scaling, ORIGINAL), max_positions(request)
    short, long = numbers(scaling, "short_factor"), numbers(scaling, "long_factor")
    notes = ignored(scaling, ORIGINAL, "short_factor", "long_factor")
    if short != long:
        notes += ("long_factor at every length, short_factor never used",)
    return divided(base, long), longrope_magnitude(longest / original, original), notes


RUNTIME = Runtime("mlx-lm", "0.32.2", rule, frozenset(("mscale", "mscale_all_dim")))


_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": _YARN,
    "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "longrope": (ORIGINAL, "short_factor", "long_factor"),
}


def flags(serving: Serving) -> tuple[str, ...]:
    """One JSON object for `mlx_lm.load(MODEL, model_config=…)`; the programs of mlx-lm 0.32.2 have no flag for it.

    `load_model` replaces top-level members, so that an inner config is given whole.
    Raises BadUsage for what MLX-LM cannot do.
    """
    must_have_config(serving)
    must_not_be_latent("mlx-lm", serving)
    must_not_switch("mlx-lm", serving, dynamic=True)
    changes = _changes(serving)
    must_agree(RUNTIME, serving, changes)
    return (one_line(placed(serving.config, serving.path, changes, merged=0)),)


def _changes(serving: Serving) -> dict[str, Any]:
    model = _SAME.get(serving.model_type, serving.model_type)
    blocks = {rope.name: _written(serving, rope) for rope in serving.ropes}
    changes = lengths(serving)
    for spec in serving.intent.values():
        if isinstance(spec.scaling, Longrope):
            changes |= dict.fromkeys(changes, _carrying(spec.scaling.attention_factor, spec.max_length)[0])
    if model in _BY_LAYER:
        return changes | {"rope_parameters": block(serving.text, "rope_parameters") | blocks}
    full = next((rope for rope in serving.ropes if rope.sliding_window is None), serving.ropes[0])
    if serving.layered and set(serving.intent) != {full.name}:
        raise refused("mlx-lm scales the full-attention layers alone", "use --layers full")
    scaling = blocks[full.name]
    theta = scaling["rope_theta"]
    changes |= {key: theta for key in OTHER_BASES if key in serving.text}
    changes |= {"rope_theta": theta, "rope_scaling": None if scaling["rope_type"] == "default" else scaling}
    local = next((rope.spec for rope in serving.ropes if rope.sliding_window is not None and rope is not full), None)
    if local is not None:
        changes[LOCAL_THETAS[0]] = local.rope_theta
    if model in _WHOLE | _INNER_THETA or (model == "qwen3" and changes["rope_scaling"] is None):
        changes["rope_parameters"] = scaling
    if ORIGINAL in scaling and (ORIGINAL in serving.text or model == "phi3"):
        changes[ORIGINAL] = scaling[ORIGINAL]
    return changes


def _written(serving: Serving, rope: LayerRope) -> dict[str, Any]:
    """A kind of layer's object, with `type`, which some models insist on and all prefer."""
    written = parameters(serving, rope, _NEEDED)
    spec = serving.intent.get(rope.name)
    if spec is not None and isinstance(spec.scaling, Longrope):
        written[ORIGINAL] = _carrying(spec.scaling.attention_factor, spec.max_length)[1]
    return {"type": written["rope_type"], **written}


def _carrying(attention_factor: float, length: int) -> tuple[int, int]:
    """Lengths (M, L) from which longrope's sqrt(1 + ln(M/L)/ln L) gives this attention factor: L = M^(1/m²).

    mlx-lm uses neither for anything else there. M is the least multiple of `length` by a power of two that gives it
    to 5e-5, as L is a whole number; (length, length), which gives 1, where none does.
    """
    for longest in (length << doublings for doublings in range(32)):
        original = round(longest ** (1 / max(attention_factor, 1.0) ** 2))
        if original > 1 and abs(longrope_magnitude(longest / original, original) - attention_factor) <= 5e-5:
            return longest, original
    return length, length
