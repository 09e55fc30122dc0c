"""ONNX Runtime GenAI's model builder: YaRN only where `beta_fast` is spelt out, and never for the Llama class.

Source: microsoft/onnxruntime-genai a0c04eb1 (2026-08-22), `src/python/py/models/builders/`.
"""

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.frequencies import corner
from ropecli.runtimes.formulas import (
    divided,
    index_ramp,
    linear,
    longrope_magnitude,
    ntk,
    plain,
    rotation_ramp,
    unscaled,
)
from ropecli.runtimes.keys import ignored, length, local_layer, max_positions, number, numbers
from ropecli.runtimes.reading import Computed, Keys, Reading, Refused, Request, Runtime
from ropecli.runtimes.standardised import standardised
from ropecli.spec import RopeSpec, default_attention_factor, mscale_ratio

_LENGTHS = ("seq_length", "max_position_embeddings")
_LLAMA = {"LlamaForCausalLM", "NemotronForCausalLM", "SmolLM3ForCausalLM"}
_PHI3 = {"Phi3ForCausalLM", "PhiMoEForCausalLM", "Phi3SmallForCausalLM", "Phi3VForCausalLM", "Phi4MMForCausalLM"}
_HUNYUAN = {"HunYuanDenseV1ForCausalLM"}


def rule(request: Request) -> Reading:
    """The cos and sin caches that `make_rotary_embedding_caches_from_scratch` writes into the ONNX model."""
    keys = standardised(request)
    longest = max_positions(request, _LENGTHS)
    nested = keys.outer is not keys.parameters and not local_layer(request)
    parameters: Keys = {} if nested else keys.parameters
    base = unscaled(request, number(keys.parameters, "rope_theta"))
    notes = ("scaling by layer type is not read",) if nested and keys.rope_type != "default" else ()
    inv_freq, attention_factor, more = _compute(request, parameters, base, longest)
    return Reading(inv_freq, attention_factor, longest, notes + more)


def _original(request: Request, parameters: Keys, longest: int) -> int:
    """The top level's original length, else the dict's, else M."""
    if ORIGINAL in request.config:
        return length(request.config, ORIGINAL)
    return length(parameters, ORIGINAL, longest)


def _compute(request: Request, parameters: Keys, base: RopeSpec, longest: int) -> Computed:
    original, kind = _original(request, parameters, longest), parameters.get("rope_type", "default")
    dropped = () if kind == "default" else (f"{kind} silently ignored",)
    computed: Computed = plain(base), 1.0, dropped
    if request.architecture in _LLAMA:
        if "low_freq_factor" in parameters:
            computed = _llama3(parameters, base, original)
    elif request.architecture in _PHI3:
        if "short_factor" in parameters:
            computed = _phi3(parameters, base, longest, original)
    elif request.architecture in _HUNYUAN:
        computed = ntk(base, number(parameters, "alpha", 1.0)), 1.0, ignored(parameters, "alpha")
    elif "beta_fast" in parameters:
        computed = _yarn(parameters, base, original)
    elif kind == "linear" and "factor" in parameters:
        computed = linear(base, number(parameters, "factor")), 1.0, ()
    elif kind == "yarn":
        computed = plain(base), 1.0, ("yarn silently ignored: there is no beta_fast",)
    return computed


def _llama3(parameters: Keys, base: RopeSpec, original: int) -> Computed:
    low, high = number(parameters, "low_freq_factor"), number(parameters, "high_freq_factor", 0.0)
    return rotation_ramp(base, number(parameters, "factor", 0.0), original, low, high), 1.0, ()


def _yarn(parameters: Keys, base: RopeSpec, original: int) -> Computed:
    """The index ramp over the whole head, corners never rounded; stops unless 0 < lo < hi < D/2 − 1."""
    factor, slow = number(parameters, "factor"), number(parameters, "beta_slow", 0.0)
    if slow == 0:
        raise Refused("division by zero: beta_fast without beta_slow")
    if base.rotary_dim != base.head_dim:
        raise Refused("its ramp has one value a pair of the whole head, but only a part rotates")
    _assert_inside(base, original, number(parameters, "beta_fast"), slow)
    inv_freq = index_ramp(base, factor, original, number(parameters, "beta_fast"), slow, truncate=False)
    notes = ignored(parameters, "factor", ORIGINAL, "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    return inv_freq, _magnitude(parameters, factor, original), (*notes, "corners are never rounded")


def _assert_inside(base: RopeSpec, original: int, beta_fast: float, beta_slow: float) -> None:
    place = (base.rope_theta, base.rotary_dim, original)
    low, high = corner(beta_fast, *place), corner(beta_slow, *place)
    if not 0 < low < high < base.pairs - 1:
        raise Refused(f"AssertionError: the ramp from pair {low:.2f} to {high:.2f} is not inside the head")


def _magnitude(parameters: Keys, factor: float, original: int) -> float:
    """Both mscale keys: their ratio; `mscale` alone: itself; else by type, the factor itself for an unknown one."""
    top, bottom = number(parameters, "mscale", 0.0), number(parameters, "mscale_all_dim", 0.0)
    if top > 0 and bottom > 0:
        return mscale_ratio(factor, top, bottom)
    if top > 0:
        return top
    if parameters["rope_type"] in {"su", "longrope"}:
        return longrope_magnitude(factor, original)
    return default_attention_factor(factor) if parameters["rope_type"] == "yarn" else factor


def _phi3(parameters: Keys, base: RopeSpec, longest: int, original: int) -> Computed:
    """Two caches, switched by the length of the sequence."""
    if "type" not in parameters:
        raise Refused("KeyError: 'type'")
    short, long = numbers(parameters, "short_factor"), numbers(parameters, "long_factor")
    given = number(parameters, "short_mscale", 0.0)
    notes = () if short == long else (f"long_factor for a sequence beyond {original} tokens",)
    return divided(base, short), given if given > 0 else longrope_magnitude(longest / original, original), notes


RUNTIME = Runtime("onnxruntime-genai", "a0c04eb1 (2026-08-22)", rule, frozenset(("mscale", "mscale_all_dim")))
