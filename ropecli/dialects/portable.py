"""A rotary embedding → the Hugging Face keys that make every runtime compute it.

Both schemas are written with equal content: transformers 5 saves `rope_parameters` alone, which most other readers do
not look at, and a `rope_scaling` beside it replaces it whole. The measured behaviour behind every key is in
`ropecli/runtimes/`.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, assert_never

from ropecli.errors import BadUsage
from ropecli.frequencies import ntk_base, snapped_betas, yarn_corners
from ropecli.json_edit import ABSENT
from ropecli.spec import (
    Dynamic,
    Linear,
    Llama3,
    Longrope,
    Ntk,
    NtkByParts,
    Plain,
    Proportional,
    RopeSpec,
    Yarn,
    default_attention_factor,
)

Schema = Literal["both", "v4", "v5"]
ORIGINAL = "original_max_position_embeddings"
KEPT = ("partial_rotary_factor", "mrope_section", "mrope_interleaved")
"""Members of a scaling dict that say how wide or how split the rotation is; they survive every rewrite."""

SMALL = 1e-6
"""The lesser half of an mscale pair: so small that its own magnitude is 1, and not 0, which readers take for absent."""


def mscale_pair(factor: float, attention_factor: float) -> tuple[float, float]:
    """(mscale, mscale_all_dim), both positive, with mag(s, mscale) / mag(s, mscale_all_dim) = `attention_factor`.

    mag(s, k) = 1 + 0.1·k·ln s is DeepSeek's magnitude; for s ≤ 1 it is 1 and only the factor 1 can be written.
    """
    unit = 0.1 * math.log(factor) if factor > 1 else 0.0
    if attention_factor == 1 or unit == 0:
        return 1.0, 1.0
    if attention_factor > 1:
        return (attention_factor * (1 + unit * SMALL) - 1) / unit, SMALL
    return SMALL, ((1 + unit * SMALL) / attention_factor - 1) / unit


def whole_corners(spec: RopeSpec, yarn: Yarn) -> tuple[int, int] | None:
    """The whole corners (low, high) that this YaRN's ramp has, or None where its corners are fractional.

    α and β that were snapped just inside whole corners count as whole whether or not they are truncated.
    """
    low, high = yarn_corners(spec, yarn)
    nearest = round(low), round(high)
    tolerance = 2e-4
    whole = abs(low - nearest[0]) <= tolerance and abs(high - nearest[1]) <= tolerance
    return nearest if whole and nearest[0] < nearest[1] else None


def portable_yarn(spec: RopeSpec, yarn: Yarn) -> dict[str, Any]:
    """The YaRN dict on which every runtime agrees that can: α and β snapped, the temperature in every spelling.

    A ramp with fractional corners is written as it is with `truncate: false`, which only some runtimes honour.
    """
    corners = whole_corners(spec, yarn)
    beta_fast, beta_slow, extra = yarn.beta_fast, yarn.beta_slow, {}
    if corners is None:
        extra = {"truncate": False}
    else:
        beta_fast, beta_slow = snapped_betas(spec, *corners)
    mscale, mscale_all_dim = mscale_pair(yarn.factor, yarn.attention_factor)
    return {
        "rope_type": "yarn",
        "factor": float(yarn.factor),
        ORIGINAL: spec.original_length,
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "attention_factor": yarn.attention_factor,
        "attn_factor": yarn.attention_factor / default_attention_factor(yarn.factor),
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
    } | extra


def scaling_dict(spec: RopeSpec) -> dict[str, Any] | None:
    """The members of `rope_scaling` for a spec, without the base; None where the base alone says it.

    Raises BadUsage for what no config can say.
    """
    scaling = spec.scaling
    match scaling:
        case Plain() | Ntk():
            return None
        case Linear():
            return {"rope_type": "linear", "factor": float(scaling.factor), ORIGINAL: spec.original_length}
        case Dynamic():
            return {"rope_type": "dynamic", "factor": float(scaling.factor)}
        case Yarn():
            return portable_yarn(spec, scaling)
        case NtkByParts():
            if scaling.attention_factor != 1:
                raise BadUsage(
                    "ntk-by-parts is carried by llama3, which has no temperature",
                    hint="leave --attention-factor out, or use --rope-type yarn",
                )
            return _llama3(spec, scaling.factor, scaling.beta_slow, scaling.beta_fast)
        case Llama3():
            return _llama3(spec, scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor)
        case Longrope():
            return {
                "rope_type": "longrope",
                "factor": float(scaling.factor),
                ORIGINAL: spec.original_length,
                "short_factor": list(scaling.short_factor),
                "long_factor": list(scaling.long_factor),
                "attention_factor": scaling.attention_factor,
            }
        case Proportional():
            raise BadUsage("proportional rotation is part of an architecture, not an extension")
        case _:
            assert_never(scaling)


def _llama3(spec: RopeSpec, factor: float, low: float, high: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": float(factor),
        ORIGINAL: spec.original_length,
        "low_freq_factor": float(low),
        "high_freq_factor": float(high),
    }


def written_theta(spec: RopeSpec) -> float:
    """The base that the config must state: NTK-aware scaling is nothing but another base."""
    if isinstance(spec.scaling, Ntk):
        return ntk_base(spec.rope_theta, spec.rotary_dim, spec.scaling.factor)
    return spec.rope_theta


def served_length(spec: RopeSpec) -> int:
    """`max_position_embeddings`. For `dynamic` transformers reads it as the original length."""
    return spec.original_length if isinstance(spec.scaling, Dynamic) else spec.max_length


def flat_changes(text: Mapping[str, Any], spec: RopeSpec, schema: Schema) -> dict[str, Any]:
    """Members of the language model's config to set (or ABSENT, to remove) so that it means `spec`.

    text    the config object that holds the rotary keys now
    schema  "both", "v4" (`rope_scaling` and a top-level `rope_theta`) or "v5" (`rope_parameters`)
    """
    theta = written_theta(spec)
    old = [text.get(key) for key in ("rope_parameters", "rope_scaling")]
    kept = {key: block[key] for block in old if isinstance(block, Mapping) for key in KEPT if key in block}
    scaling = scaling_dict(spec)
    v5 = {"rope_theta": theta} | (scaling or {"rope_type": "default"}) | kept
    v4 = None if scaling is None and not kept else (scaling or {"rope_type": "default"}) | kept
    changes: dict[str, Any] = {"max_position_embeddings": served_length(spec)}
    if schema != "v5":
        changes |= {"rope_theta": theta, "rope_scaling": v4}
        if "partial_rotary_factor" in kept:
            changes["partial_rotary_factor"] = kept["partial_rotary_factor"]
    elif "rope_scaling" in text:
        changes["rope_scaling"] = ABSENT
    if schema != "v4":
        changes["rope_parameters"] = v5
    elif "rope_parameters" in text:
        changes["rope_parameters"] = ABSENT
    if ORIGINAL in text:
        # transformers lets the top-level value win over the one in the dict
        changes[ORIGINAL] = spec.original_length
    return changes


def nested_changes(text: Mapping[str, Any], specs: Mapping[str, RopeSpec]) -> dict[str, Any]:
    """The same for a config whose `rope_parameters` are nested by layer type; other layer types stay as they are."""
    nested = dict(text["rope_parameters"])
    for name, spec in specs.items():
        old = nested.get(name) or {}
        kept = {key: old[key] for key in KEPT if key in old}
        nested[name] = {"rope_theta": written_theta(spec)} | (scaling_dict(spec) or {"rope_type": "default"}) | kept
    longest = max(served_length(spec) for spec in specs.values())
    changes: dict[str, Any] = {"rope_parameters": nested, "max_position_embeddings": longest}
    if text.get("rope_scaling"):
        changes["rope_scaling"] = nested
    return changes
