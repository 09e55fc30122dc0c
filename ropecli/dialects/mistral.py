"""Mistral's `params.json` → the rotary embedding of its layers.

Keys: mistral-inference `TransformerArgs` and vLLM 0.12 `transformers_utils/configs/mistral.py`, where `yarn.alpha` is
beta_slow, `yarn.beta` is beta_fast, and `yarn.apply_scale` says whether YaRN's temperature is applied at all.
"""

from collections.abc import Mapping
from typing import Any

from ropecli.dialects.params import Params, extended
from ropecli.errors import BadParameter
from ropecli.spec import LayerRope, Plain, RopeSpec, Scaling, Yarn, default_attention_factor


def matches(config: Mapping[str, Any]) -> bool:
    """Whether a config is Mistral's: dim and n_heads as in Meta's, but hidden_dim for the MLP's width, or yarn."""
    own = {"hidden_dim", "yarn"} & config.keys()
    return "model_type" not in config and {"dim", "n_heads"} <= config.keys() and bool(own)


def read(config: Mapping[str, Any]) -> tuple[LayerRope, ...]:
    """The one embedding of all layers, whose weights are in interleaved order.

    Raises BadParameter.
    """
    params = Params(config)
    with params.naming_keys():
        return (_layer_rope(params),)


def _layer_rope(params: Params) -> LayerRope:
    mla = params.whole("rotary_dim", "qk_rope_head_dim")
    head_dim = mla or params.head_dim("dim", "n_heads")
    params.sources |= {
        "head_dim": "qk_rope_head_dim" if mla else params.sources["head_dim"],
        "rotary_dim": "qk_rope_head_dim" if mla else "head_dim",
        "layout": "default of mistral",
    }
    theta = params.number("rope_theta")
    if theta is None and params.data.get("sliding_window") is None:
        theta = params.default("rope_theta", 1_000_000.0, "assumed: 1000000, as mistral-inference without a window")
    elif theta is None:
        theta = params.default("rope_theta", 10_000.0, "assumed: 10000, as mistral-inference with a window")
    longest = params.whole("max_length", "max_position_embeddings", "max_seq_len")
    scaling, original = _scaling(params)
    if longest is None:
        longest = int(_default_length(params, scaling, original))
    if original is None:
        original, params.sources["original_length"] = longest, params.sources["max_length"]
    layers = params.whole("layers", "n_layers")
    if layers is None:
        raise params.required("n_layers")
    window = params.data.get("sliding_window")
    spec = RopeSpec(
        rope_theta=theta,
        head_dim=head_dim,
        rotary_dim=head_dim,
        original_length=original,
        max_length=max(longest, original),
        scaling=scaling,
        layout="interleaved",
    )
    return LayerRope(
        "default",
        layers,
        spec,
        params.sources,
        mla=mla is not None,
        sliding_window=window if type(window) is int else None,
    )


def _default_length(params: Params, scaling: Scaling, original: int | None) -> float:
    if original is None:
        return params.default("max_length", 128_000, "assumed: 128000, as vLLM does")
    return params.default(
        "max_length", extended(scaling.factor, original), "factor · yarn.original_max_position_embeddings"
    )


def _scaling(params: Params) -> tuple[Scaling, int | None]:
    """The scaling, and the original length where the file states it."""
    yarn = params.inner("yarn")
    if yarn is None:
        params.sources["rope_type"] = "assumed: default"
        return Plain(), None
    params.sources |= {"rope_type": "yarn", "truncate": "default of yarn"}
    factor = yarn.number("factor")
    if factor is None:
        raise yarn.required("factor")
    original = yarn.whole("original_length", "original_max_position_embeddings")
    beta_fast = yarn.number("beta_fast", "beta")
    beta_slow = yarn.number("beta_slow", "alpha")
    if beta_fast is None:
        beta_fast = yarn.default("beta_fast", 32.0, "default of yarn")
    if beta_slow is None:
        beta_slow = yarn.default("beta_slow", 1.0, "default of yarn")
    apply_scale = yarn.data.get("apply_scale")
    if apply_scale is not None and not isinstance(apply_scale, bool):
        raise BadParameter(f"expected true or false, found {apply_scale!r:.60}", where=yarn.key("apply_scale"))
    if apply_scale is False:
        params.sources["attention_factor"] = yarn.key("apply_scale")
        return Yarn(factor, 1.0, beta_fast, beta_slow), original
    params.sources["attention_factor"] = "0.1·ln(factor) + 1"
    return Yarn(factor, default_attention_factor(factor), beta_fast, beta_slow), original
