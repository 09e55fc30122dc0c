"""transformers 5: the reference that the others are measured by, with its own two traps.

Source: transformers 5.24.0 `modeling_rope_utils.py`, `models/llama/modeling_llama.py`.
"""

from dataclasses import replace
from functools import partial

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
    proportional,
    rotation_ramp,
    unscaled,
)
from ropecli.runtimes.keys import length, max_positions, number, numbers, optional, rope_type
from ropecli.runtimes.reading import Computed, Keys, Reading, Refused, Request, Runtime
from ropecli.runtimes.serving import Serving, must_agree, one_line, override, placed, refused
from ropecli.runtimes.standardised import Standardised, standardised
from ropecli.spec import Longrope, RopeSpec

KNOWN: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {
        *("factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    },
    "longrope": {"short_factor", "long_factor", ORIGINAL, "attention_factor", "factor"},
    "llama3": {"factor", ORIGINAL, "low_freq_factor", "high_freq_factor"},
}
"""Keys that each type knows, beside type and base; it warns of every other key."""

DEFAULT_ONLY = {"ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "recurrent_gemma"}
"""Model types whose rotary module stops at any scaling."""

OWN_KEYS: dict[str, set[str]] = {
    "phimoe": {"short_mscale", "long_mscale"},
    **{f"hunyuan_{name}": {"alpha"} for name in ("v1_dense", "v1_moe", "vl", "vl_text")},
}
"""Keys that only these model types read."""

THETA_OF_ATTENTION, THETA_UNREAD = ("dbrx",), "attn_config.rope_theta"
"""Model types whose attention keeps a base of its own in version 5 and rotates by `rope_parameters` alone."""

WHOLE_HEAD = ("minimax",)
"""Model types whose weights were trained with a `rotary_dim` that their class does not read, in version 4 neither."""

_NO_COMPLAINT = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}


def rule(request: Request) -> Reading:
    """The frequencies of `ROPE_INIT_FUNCTIONS`, at the original length."""
    keys = standardised(request, rename=partial(_named, request))
    base, unread = heeded(request, unscaled(request, number(keys.parameters, "rope_theta")))
    if request.model_type in THETA_OF_ATTENTION and request.rope.sources.get("rope_theta") == THETA_UNREAD:
        base = replace(base, rope_theta=number(request.class_defaults, "rope_theta", 10_000.0))
        unread = (f"{THETA_UNREAD} is not read: the base is {base.rope_theta:g}",)
    inv_freq, attention_factor, notes = _compute(keys, base, request)
    if request.model_type in DEFAULT_ONLY and keys.rope_type != "default":
        raise Refused(f"ValueError: {request.model_type} does not support the scaling {keys.rope_type!r}")
    if keys.rope_type in NEEDS_HEAD_DIM and _head_dim_is_null(request.model_type, request.config):
        raise Refused(f"TypeError: {keys.rope_type} needs a head_dim in the file, which this model's class leaves null")
    known = KNOWN.get(keys.rope_type, set(keys.parameters)) | OWN_KEYS.get(request.model_type, set())
    unknown = sorted(set(keys.parameters) - _NO_COMPLAINT - known)
    warned = tuple(f"{name} ignored, with a warning" for name in unknown)
    grows = keys.rope_type == "dynamic" and not own_alpha(request, keys.parameters)
    return Reading(inv_freq, attention_factor, max_positions(request), keys.notes + unread + warned + notes, grows)


def _named(request: Request, entry: Keys) -> str:
    """The type after the class has renamed it: HunYuan-VL's calls xdrope dynamic."""
    kind = rope_type(entry, "rope_type", "type")
    return "dynamic" if kind == "xdrope" and request.model_type.startswith("hunyuan_vl") else kind


def heeded(request: Request, base: RopeSpec) -> tuple[RopeSpec, tuple[str, ...]]:
    """The base as the class sees it: MiniMax-Text-01's rotates the whole head, whatever its `rotary_dim` says."""
    if request.model_type in WHOLE_HEAD and request.rope.sources.get("rotary_dim") == "rotary_dim":
        return replace(base, rotary_dim=base.head_dim), ("rotary_dim is not read: the whole head rotates",)
    return base, ()


def _compute(keys: Standardised, base: RopeSpec, request: Request) -> Computed:
    parameters = keys.parameters
    computed: Computed
    match keys.rope_type:
        case "default":
            computed = plain(base), 1.0, ()
        case "linear":
            computed = linear(base, number(parameters, "factor")), 1.0, ()
        case "dynamic" if own_alpha(request, parameters):
            computed = ntk(base, number(parameters, "alpha")), 1.0, ()
        case "dynamic":
            ntk(base, number(parameters, "factor"))
            computed = plain(base), 1.0, (f"the base grows with the sequence beyond {max_positions(request)} tokens",)
        case "yarn":
            computed = _yarn(keys, base, request)
        case "longrope":
            computed = _longrope(parameters, base, request)
        case "llama3":
            original, factor = length(parameters, ORIGINAL), number(parameters, "factor")
            low, high = number(parameters, "low_freq_factor"), number(parameters, "high_freq_factor")
            computed = rotation_ramp(base, factor, original, low, high), 1.0, ()
        case "proportional":
            share = number(parameters, "partial_rotary_factor", 1.0)
            computed = proportional(base, number(parameters, "factor", 1.0), share), 1.0, ()
        case other:
            raise Refused(f"KeyError: {other!r} when the model is built")
    return computed


def own_alpha(request: Request, parameters: Keys) -> bool:
    """Hunyuan's classes take `dynamic` with an alpha for a static base (`HunYuanDenseV1RotaryEmbedding`)."""
    return request.model_type.startswith("hunyuan") and bool(parameters.get("alpha"))


def own_mscale(request: Request, parameters: Keys) -> float | None:
    """Phi-3.5-MoE multiplies by `short_mscale`, or `long_mscale`, whatever the attention factor is."""
    return number(parameters, "short_mscale") if request.model_type == "phimoe" else None


def _yarn(keys: Standardised, base: RopeSpec, request: Request) -> Computed:
    parameters = keys.parameters
    original = length(parameters, ORIGINAL)
    implied = max_positions(request) / original
    factor = optional(parameters, "factor")
    notes: tuple[str, ...] = ()
    if factor is None:
        factor = implied
    elif implied not in {factor, 1.0}:
        notes += (f"warns that the lengths imply a factor of {implied:g}, and uses {factor:g}",)
    truncate = keys.outer.get("truncate", True)
    if parameters.get("truncate", truncate) != truncate:
        notes += ("truncate ignored: it is read from outside the layer type",)
    given = optional(parameters, "attention_factor")
    attention_factor = pair_magnitude(factor, parameters) if given is None else given
    fast, slow = optional(parameters, "beta_fast") or 32.0, optional(parameters, "beta_slow") or 1.0
    return index_ramp(base, factor, original, fast, slow, truncate=truncate), attention_factor, notes


def _longrope(parameters: Keys, base: RopeSpec, request: Request) -> Computed:
    original = length(parameters, ORIGINAL)
    short, long = numbers(parameters, "short_factor"), numbers(parameters, "long_factor")
    factor, given = optional(parameters, "factor"), optional(parameters, "attention_factor")
    if factor is None:
        factor = max_positions(request) / original
    attention_factor = own_mscale(request, parameters)
    if attention_factor is None:
        attention_factor = longrope_magnitude(factor, original) if given is None else given
    same = short == long
    notes = () if same else (f"long_factor for every position of a call that reaches beyond {original} tokens",)
    return divided(base, short), attention_factor, notes


RUNTIME = Runtime("transformers", "5.24.0", rule)


_NEEDED = {kind: keys - {"mscale", "mscale_all_dim"} for kind, keys in KNOWN.items()}
"""An attention factor is final; on latent attention `mscale_all_dim` would scale the softmax, too."""

NEEDS_HEAD_DIM = ("dynamic", "longrope", "yarn")
"""Types that multiply `head_dim` as it stands in the config, null where a class leaves it so."""

_UNSCALED = {"codegen", "gptj", "roformer"}
"""Model types whose classes have no `rope_parameters`: they would pass the object on to the model, which stops."""


def _head_dim_is_null(model_type: str, text: Keys) -> bool:
    # Mistral's class fills it in from version 5 on
    return model_type in UNSTATED_HEAD - {"mistral"} and text.get("head_dim") is None


def flags(serving: Serving) -> tuple[str, ...]:
    """One JSON object: keyword arguments for `AutoConfig.from_pretrained` or a model's `from_pretrained`.

    `PreTrainedConfig.from_dict` sets each on the loaded config; it merges one level of inner configs.
    Raises BadUsage for what transformers cannot do.
    """
    if serving.model_type in _UNSCALED:
        raise refused(f"{serving.model_type} rotates as its class says, whatever the config", "use another runtime")
    for spec in serving.intent.values():
        scaling = spec.scaling
        if isinstance(scaling, Longrope) and scaling.attention_factor != scaling.short_attention_factor:
            raise refused(
                "transformers has one attention factor for both lists, found "
                f"{scaling.short_attention_factor:g} and {scaling.attention_factor:g}",
                "give both lists the same attention factor",
            )
    changes = override(serving, {kind: tuple(keys) for kind, keys in _NEEDED.items()})
    if _head_dim_is_null(serving.model_type, serving.text):
        changes["head_dim"] = serving.ropes[0].spec.head_dim
    must_agree(RUNTIME, serving, changes)
    return (one_line(placed(serving.config, serving.loaded_path, changes, merged=1)),)
