"""A rotary embedding → the Hugging Face keys that make every runtime compute it.

Both schemas are written with equal content: transformers 5 saves `rope_parameters` alone, which most other readers do
not look at, and a `rope_scaling` beside it replaces it whole. The measured behaviour behind every key is in
`ropecli/runtimes/`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from ropecli.dialects.hf_keys import NAMES, ORIGINAL, PER_LAYER
from ropecli.dialects.hf_scaling import SMALL, scaling_dict, served_length, stated_original, written_theta
from ropecli.dialects.hf_types import type_facts
from ropecli.errors import BadUsage
from ropecli.json_edit import ABSENT
from ropecli.spec import (
    Dynamic,
    LayerRope,
    Longrope,
    Ntk,
    Plain,
    Proportional,
    RopeSpec,
)

Schema = Literal["both", "v4", "v5"]
KEPT = ("partial_rotary_factor", "mrope_section", "mrope_interleaved")
"""Members of a scaling dict that say how wide or how split the rotation is; they survive every rewrite."""

OTHER_BASES = tuple(key for key in NAMES["rope_theta"] if key.endswith(("_base", "_constant")))
"""What older model types call the base."""

LONGROPE_ONLY = frozenset(("phi3", "phi3_v", "phi4_multimodal", "phi4mm", "phimoe"))
"""Model types whose class in transformers 5.24 refuses every scaling but longrope; Phi-3's takes yarn for longrope."""

UNSTATED_HEAD = frozenset(
    (
        *("hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl", "hunyuan_vl_text"),
        *("minimax", "ministral", "mistral", "mixtral"),
    )
)
"""Model types whose class in transformers 5.24, or 4.57 as Mistral's, leaves head_dim null where the file has none;
most scalings then multiply by it."""

TEMPERATURE = ("attn_factor", "mscale", "mscale_all_dim")
"""Spellings of YaRN's temperature beside `attention_factor`, which is always written."""


def flat_changes(text: Mapping[str, Any], spec: RopeSpec, schema: Schema) -> dict[str, Any]:
    """Members of the language model's config to set (or ABSENT, to remove) so that all layers mean `spec`.

    text    the config object that holds the rotary keys now
    schema  "both", "v4" (`rope_scaling` and a top-level `rope_theta`) or "v5" (`rope_parameters`)

    Raises BadUsage for what such a config cannot say.
    """
    if text.get("rope_ratio") is not None:
        raise BadUsage(
            "the base is multiplied by rope_ratio, and the model's own code reads no scaling",
            where="rope_ratio",
            hint="convert it to a config that transformers knows (model_type glm)",
        )
    model_type = str(text.get("model_type"))
    theta = written_theta(spec)
    kept = _class_share(model_type) | _kept(text, text.get("rope_parameters"), text.get("rope_scaling"))
    scaling = _scaling_of(text, spec)
    v5 = {"rope_theta": theta} | (scaling or {"rope_type": "default"}) | kept
    silent = scaling is None and not kept and not _class_scales(model_type)
    v4 = None if silent else (scaling or {"rope_type": "default"}) | kept
    changes = _lengths(text, served_length(spec))
    changes |= {key: theta for key in OTHER_BASES if key in text}
    attention = text.get("attn_config")
    if isinstance(attention, Mapping) and "rope_theta" in attention:
        changes["attn_config"] = {**attention, "rope_theta": theta}  # DBRX and MPT look nowhere else
    if scaling is not None and model_type in UNSTATED_HEAD and text.get("head_dim") is None:
        changes["head_dim"] = spec.head_dim
    if schema != "v5":
        changes |= {"rope_theta": theta, "rope_scaling": v4}
        changes |= {key: kept[key] for key in ("partial_rotary_factor",) if key in kept}
        changes |= _unusual_keys(model_type, theta, kept)
    elif "rope_scaling" in text:
        changes["rope_scaling"] = ABSENT
    if schema != "v4":
        changes["rope_parameters"] = v5
    elif "rope_parameters" in text:
        changes["rope_parameters"] = ABSENT
    if ORIGINAL in text or isinstance(spec.scaling, Longrope):
        # transformers lets the top-level value win over the one in the dict; ExLlamaV2 and TGI read no other
        changes[ORIGINAL] = stated_original(spec)
    return _without_respelling(text, changes)


def needs_longrope(text: Mapping[str, Any], spec: RopeSpec) -> bool:
    """Whether a language model's class refuses this scaling and one list of divisors can carry it.

    None can carry `dynamic`, whose frequencies follow the length of the text.
    """
    native = isinstance(spec.scaling, Plain | Ntk | Longrope | Dynamic | Proportional)
    return not native and text.get("model_type") in LONGROPE_ONLY


def _scaling_of(text: Mapping[str, Any], spec: RopeSpec) -> dict[str, Any] | None:
    """`scaling_dict` for a model type. Raises BadUsage for a scaling that its class refuses, or takes for another."""
    scaling = scaling_dict(spec)
    model_type = str(text.get("model_type"))
    latent = text.get("qk_rope_head_dim") or type_facts(model_type, alone=True).data.get("qk_rope_head_dim")
    if scaling is not None and latent and "mscale" in scaling:
        scaling = _for_latent_attention(scaling, spec.scaling.attention_factor)
    if scaling is None or model_type not in LONGROPE_ONLY:
        return scaling
    if scaling["rope_type"] != "longrope":
        raise BadUsage(
            f"transformers loads {model_type} with longrope alone, not with {scaling['rope_type']}",
            where="--rope-type",
            hint="add --carrier longrope: the same frequencies and temperature, written as longrope",
        )
    if model_type != "phimoe":
        return scaling
    # its class insists on both, and multiplies cos and sin by them instead of by the attention factor
    m = scaling["attention_factor"]
    return scaling | {"short_mscale": m, "long_mscale": m}


def _for_latent_attention(scaling: Mapping[str, Any], attention_factor: float) -> dict[str, Any]:
    """YaRN's keys where scores are multiplied by mag(s, mscale_all_dim)², and cos and sin by pair ratio · attn_factor.

    The pair says the temperature from 1 on, with an `mscale_all_dim` that is next to nothing, and `attn_factor` would
    say it a second time (vLLM, SGLang `deepseek_yarn`); below 1 no pair leaves the scores alone: `attn_factor` stays.
    """
    said_twice = ("attn_factor",) if attention_factor >= 1 else ("mscale", "mscale_all_dim")
    plain = {"mscale": SMALL, "mscale_all_dim": SMALL} if attention_factor == 1 else {}
    return {key: value for key, value in (dict(scaling) | plain).items() if key not in said_twice}


def _unusual_keys(model_type: str, theta: float, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The base and the share of the head under the names that GPT-NeoX's classes read in the older schema."""
    reads = type_facts(model_type, alone=True).data.get("reads", ())
    values = {"rotary_emb_base": theta, "rotary_pct": kept.get("partial_rotary_factor")}
    return {key: value for key, value in values.items() if key in reads and value is not None}


def layered_changes(
    text: Mapping[str, Any], ropes: Sequence[LayerRope], intent: Mapping[str, RopeSpec], schema: Schema
) -> dict[str, Any]:
    """The same for a config whose layer types rotate differently; those that `intent` does not name stay as they are.

    Nested `rope_parameters` are edited in place. A config with the older keys (Gemma-3's `rope_local_base_freq`) has
    one `rope_scaling`, which its classes apply to the full-attention layers alone.
    Raises BadUsage for what such a config cannot say.
    """
    _refuse_unsayable(text, intent)
    blocks = {key: text.get(key) or {} for key in ("rope_parameters", "rope_scaling")}
    nested = {key: block for key, block in blocks.items() if any(isinstance(v, Mapping) for v in block.values())}
    parameters = nested.get("rope_parameters") or nested.get("rope_scaling") or {}
    flat = bool(blocks["rope_scaling"]) and "rope_scaling" not in nested
    if schema == "v4" and parameters and not flat:
        raise BadUsage(
            "the layer types rotate differently, which this config says in rope_parameters alone",
            where="--schema",
            hint="use --schema both",
        )
    changes = _lengths(text, max(served_length(spec) for spec in intent.values()))
    if "rope_scaling" in text and (schema == "v5" or "rope_scaling" in nested):
        changes["rope_scaling"] = ABSENT
    elif schema != "v5" and (flat or not parameters):
        changes |= _older_keys(text, ropes, intent, schema)
        if changes.get("rope_scaling") and not _scaled_by(str(text.get("model_type"))) <= set(intent):
            if schema == "v4":
                raise BadUsage(
                    "rope_scaling reaches every layer of this model type",
                    where="--schema",
                    hint="use --schema both, or --layers all",
                )
            changes["rope_scaling"] = ABSENT
    if schema != "v4":
        specs = intent if parameters else {rope.name: intent.get(rope.name, rope.spec) for rope in ropes}
        edited = {name: _nested(spec, parameters.get(name)) for name, spec in specs.items()}
        changes["rope_parameters"] = dict(parameters) | edited
    elif "rope_parameters" in text:
        changes["rope_parameters"] = ABSENT
    return _without_respelling(text, changes)


def _refuse_unsayable(text: Mapping[str, Any], intent: Mapping[str, RopeSpec]) -> None:
    """What no config with several kinds of layers can say. Raises BadUsage."""
    for key in PER_LAYER:
        if isinstance(text.get(key), list):
            raise BadUsage("one value for each layer leaves no place for a scaling", where=key)
    for name, spec in intent.items():
        if "truncate" in (scaling_dict(spec) or {}):
            raise BadUsage(
                "the ramp of one layer type is always rounded: transformers reads truncate beside the layer types",
                where=name,
                hint="leave --no-truncate out",
            )


def _scaled_by(model_type: str) -> set[str]:
    """The kinds of layers that one `rope_scaling` scales in a model type that has several (ModernBERT: all of them)."""
    groups: Mapping[str, Mapping[str, Any]] = type_facts(model_type, alone=True).data.get("groups", {})
    return {name for name, own in groups.items() if own.get("scaled")}


def _nested(spec: RopeSpec, old: object) -> dict[str, Any]:
    """One layer type's dict in `rope_parameters`."""
    kept = _kept({}, old)
    if old is None and spec.rotary_dim != spec.head_dim:
        kept = {"partial_rotary_factor": spec.rotary_dim / spec.head_dim}
    return {"rope_theta": written_theta(spec)} | (scaling_dict(spec) or {"rope_type": "default"}) | kept


def _older_keys(
    text: Mapping[str, Any], ropes: Sequence[LayerRope], intent: Mapping[str, RopeSpec], schema: Schema
) -> dict[str, Any]:
    """The one `rope_scaling` and its base; none where it would say less than the newer keys beside it."""
    scaled = [rope for rope in ropes if rope.name in intent and rope.spec != intent[rope.name]]
    if any(rope.sliding_window is not None for rope in scaled):
        if schema == "v4":
            raise BadUsage(
                "rope_scaling reaches the full-attention layers alone",
                where="--layers",
                hint="use --layers full, or --schema both",
            )
        return {"rope_scaling": ABSENT}
    changes: dict[str, Any] = {}
    for rope in scaled:
        changes["rope_scaling"] = scaling_dict(intent[rope.name])
        if written_theta(intent[rope.name]) != rope.spec.rope_theta:
            key = rope.sources.get("rope_theta", "").rpartition(".")[2]
            changes[key if key in text else "rope_theta"] = written_theta(intent[rope.name])
    return changes


def with_temperature(changes: Mapping[str, Any], needed: Collection[str]) -> dict[str, Any]:
    """The changes without the spellings of YaRN's temperature that are not needed."""

    def kept(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: kept(inner) for key, inner in value.items() if key not in TEMPERATURE or key in needed}

    return {key: kept(value) for key, value in changes.items()}


def _kept(text: Mapping[str, Any], *blocks: object) -> dict[str, Any]:
    """What a rewritten dict must still say about the width and the split of the rotation."""
    kept = {key: text[key] for key in ("partial_rotary_factor",) if text.get(key) is not None}
    return kept | {key: block[key] for block in blocks if isinstance(block, Mapping) for key in KEPT if key in block}


def _class_share(model_type: str) -> dict[str, Any]:
    """What Mistral-4's class puts into its own default alone, so that it would be lost beside a new `rope_scaling`."""
    data = type_facts(model_type, alone=True).data
    share = data.get("rope_parameters", {}).get("partial_rotary_factor", data.get("partial_rotary_factor"))
    return {"partial_rotary_factor": share} if share is not None and "qk_rope_head_dim" in data else {}


def _class_scales(model_type: str) -> bool:
    """Whether the class scales where the file is silent (gpt-oss), so that no scaling must be said in so many words."""
    own: Mapping[str, Any] = type_facts(model_type, alone=True).data.get("rope_parameters", {})
    return bool(own.get("rope_type", "default") != "default")


def _lengths(text: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The served length, under every name that the config has for it."""
    names = [key for key in NAMES["max_length"] if text.get(key) is not None]
    return dict.fromkeys(names or ["max_position_embeddings"], length)


def _without_respelling(text: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes without those from 10000 to 10000.0."""
    numbers = (int, float)
    return {
        key: text[key] if isinstance(value, numbers) and key in text and text[key] == value else value
        for key, value in changes.items()
    }
