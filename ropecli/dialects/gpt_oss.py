"""The config.json that OpenAI ships in gpt-oss's `original/` folder → the rotary embedding of its layers.

Keys and formulas: openai/gpt-oss `gpt_oss/torch/model.py`, `RotaryEmbedding`: YaRN whose corners are not rounded,
`rope_ntk_alpha` is beta_slow, `rope_ntk_beta` is beta_fast, and the pairs lie half a head apart.
"""

from collections.abc import Mapping
from typing import Any

from ropecli.dialects.params import Params, extended
from ropecli.spec import LayerRope, Plain, RopeSpec, Scaling, Yarn, default_attention_factor

DEFAULTS: Mapping[str, float] = {
    "head_dim": 64,
    "num_hidden_layers": 36,
    "initial_context_length": 4096,
    "rope_theta": 150_000.0,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1.0,
    "rope_ntk_beta": 32.0,
}
"""What gpt-oss's `ModelConfig` has where the file is silent."""


def matches(config: Mapping[str, Any]) -> bool:
    """Whether a config is OpenAI's own: it has no model_type, and its scaling lies at the top level."""
    return "model_type" not in config and {"initial_context_length", "rope_scaling_factor"} <= config.keys()


def read(config: Mapping[str, Any]) -> tuple[LayerRope, ...]:
    """The one embedding that sliding and full layers share.

    Raises BadParameter.
    """
    params = Params(config)
    with params.naming_keys():
        return (_layer_rope(params),)


def _layer_rope(params: Params) -> LayerRope:
    factor = _number(params, "factor", "rope_scaling_factor")
    original = _whole(params, "original_length", "initial_context_length")
    head_dim = _whole(params, "head_dim", "head_dim")
    layers = _whole(params, "layers", "num_hidden_layers")
    scaling: Scaling = Plain()
    params.sources |= {"rotary_dim": "head_dim", "layout": "default of gpt-oss", "rope_type": "rope_scaling_factor"}
    if factor > 1:
        beta_fast = _number(params, "beta_fast", "rope_ntk_beta")
        beta_slow = _number(params, "beta_slow", "rope_ntk_alpha")
        params.sources |= {"attention_factor": "0.1·ln(factor) + 1", "truncate": "default of gpt-oss"}
        scaling = Yarn(factor, default_attention_factor(factor), beta_fast, beta_slow, truncate=False)
    params.sources["max_length"] = "rope_scaling_factor · initial_context_length"
    spec = RopeSpec(
        rope_theta=_number(params, "rope_theta", "rope_theta"),
        head_dim=head_dim,
        rotary_dim=head_dim,
        original_length=original,
        max_length=max(original, extended(factor, original)),
        scaling=scaling,
        layout="half",
    )
    return LayerRope("default", layers, spec, params.sources)


def _number(params: Params, name: str, key: str) -> float:
    found = params.number(name, key)
    return params.default(name, DEFAULTS[key], "default of gpt-oss") if found is None else found


def _whole(params: Params, name: str, key: str) -> int:
    found = params.whole(name, key)
    return int(params.default(name, DEFAULTS[key], "default of gpt-oss")) if found is None else found
