"""Meta's `params.json` → the rotary embedding of its layers.

Keys and what they mean: meta-llama/llama-models `models/llama3/{args,model}.py` and `models/llama4/args.py`. The file
says whether the frequencies are scaled, not by how much: that stands in Meta's code, and is reported as assumed.
"""

from collections.abc import Mapping
from typing import Any

from ropecli.dialects.params import Params
from ropecli.spec import LayerRope, Llama3, Plain, RopeSpec, Scaling

LENGTHS: Mapping[float, tuple[int, str]] = {
    500_000.0: (8192, "assumed: 8192, as in Llama 3"),
    1_000_000.0: (16384, "assumed: 16384, as in Code Llama"),
}
"""The trained length that goes with a base, as no key holds it; every other base is Llama 2's."""

LLAMA2_LENGTH = (4096, "assumed: 4096, as in Llama 2")


def matches(config: Mapping[str, Any]) -> bool:
    """Whether a config is Meta's: dim and n_heads, and the width of the MLP derived instead of stated."""
    return "model_type" not in config and {"dim", "n_heads"} <= config.keys() and "hidden_dim" not in config


def read(config: Mapping[str, Any]) -> tuple[LayerRope, ...]:
    """The one embedding of all layers that rotate, whose weights are in interleaved order.

    Raises BadParameter.
    """
    params = Params(config)
    with params.naming_keys():
        return (_layer_rope(params),)


def _layer_rope(params: Params) -> LayerRope:
    head_dim = params.head_dim("dim", "n_heads")
    theta = params.number("rope_theta")
    if theta is None:
        theta = params.default("rope_theta", 10000.0, "assumed: 10000, as in Llama 1 and 2")
    layers = params.whole("layers", "n_layers")
    if layers is None:
        raise params.required("n_layers")
    still = params.whole("still", "nope_layer_interval")
    if still is not None:
        layers -= layers // still
        params.sources["layers"] = f"n_layers, {params.sources.pop('still')}"
    params.sources |= {"rotary_dim": "head_dim", "layout": "default of Meta's weights"}
    scaling, original, longest = _scaling(params, theta)
    spec = RopeSpec(
        rope_theta=theta,
        head_dim=head_dim,
        rotary_dim=head_dim,
        original_length=original,
        max_length=longest,
        scaling=scaling,
        layout="interleaved",
    )
    return LayerRope("default", layers, spec, params.sources)


def _scaling(params: Params, theta: float) -> tuple[Scaling, int, int]:
    """The scaling, the original length and the longest one."""
    stated = params.whole("max_length", "max_seq_len")
    if params.data.get("use_scaled_rope") is not True:
        original, why = LENGTHS.get(theta, LLAMA2_LENGTH)
        params.sources |= {"rope_type": "assumed: default", "original_length": params.sources.get("max_length", why)}
        params.sources["max_length"] = params.sources["original_length"]
        return Plain(), stated or original, stated or original
    params.sources |= {
        "rope_type": "use_scaled_rope",
        "low_freq_factor": "default of Meta's code",
        "original_length": "default of Meta's code",
    }
    params.sources.setdefault("max_length", "assumed: 131072, as in Llama 3.1")
    return Llama3(_factor(params), 1.0, _high_freq_factor(params)), 8192, stated or 131072


def _factor(params: Params) -> float:
    stated = params.number("factor", "rope_scaling_factor")
    if stated is not None:
        return stated
    if "moe_args" in params.data:
        return params.default("factor", 16.0, "assumed: 16, as in Llama 4 Scout")
    width = params.data.get("dim")
    if isinstance(width, int) and width <= 3072:
        return params.default(
            "factor",
            32.0,
            "assumed: 32, as in Hugging Face's Llama 3.2 1B and 3B; the file does not say, and could mean 8",
        )
    return params.default(
        "factor", 8.0, "assumed: 8, as in Llama 3.1; the file does not say, and could mean 32 as in Llama 3.2"
    )


def _high_freq_factor(params: Params) -> float:
    stated = params.number("high_freq_factor", "rope_high_freq_factor")
    if stated is not None:
        return stated
    if "moe_args" in params.data:
        return params.default("high_freq_factor", 1.0, "assumed: 1, as in Llama 4 Scout")
    return params.default("high_freq_factor", 4.0, "default of Meta's code")
