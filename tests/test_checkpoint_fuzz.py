"""Any config at all, through the front door: a checkpoint, or one line with exit status 3."""

import io
import json
from typing import Any

from configs import LLAMA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.errors import RopeError
from ropecli.frequencies import frequencies

TOP_KEYS = [
    *LLAMA, "head_dim", "partial_rotary_factor", "original_max_position_embeddings", "layer_types", "sliding_window",
    "rope_local_base_freq", "qk_rope_head_dim", "kv_lora_rank", "text_config", "attn_config", "rotary_dim",
    "rotary_pct", "rope_ratio", "no_rope_layers", "no_rope_layer_interval", "quantization", "alibi", "rope_type",
    "position_embedding_type", "rope_interleave", "weight_map", "dim", "n_heads", "hidden_dim", "yarn", "n_layers",
    "initial_context_length", "rope_scaling_factor", "use_scaled_rope", "seq_length", "kv_channels",
]  # fmt: skip
ROPE_KEYS = [
    "rope_type", "type", "factor", "rope_theta", "original_max_position_embeddings", "beta_fast", "beta_slow",
    "attention_factor", "attn_factor", "mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor",
    "low_freq_factor", "high_freq_factor", "mrope_section", "partial_rotary_factor", "alpha", "full_attention",
    "sliding_attention",
]  # fmt: skip
TYPES = ["default", "linear", "dynamic", "yarn", "longrope", "su", "llama3", "mrope", "proportional", "ntk", "x"]
MODELS = ["llama", "gemma3_text", "phi3", "deepseek_v3", "qwen2_vl", "gpt_oss", "gemma4_text", "smollm3", "mpt", "?"]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.sampled_from([0, 1, 2, 10**30, -(10**30), 10**299, 1e-320, 1e-30, 1e30, 1e308, -0.0, 0.5, 4.0])
    | st.floats()
    | st.sampled_from(["", "4", "full_attention", *TYPES])
)


def keys() -> st.SearchStrategy[str]:
    return st.sampled_from([*TOP_KEYS, *ROPE_KEYS]) | st.text(max_size=3)


anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys(), inner, max_size=3), max_leaves=6
)
likely = st.sampled_from([1, 2, 4, 8.0, 16, 64, 0.25, 1.0, 32, 128, 2048, 8192, 10000.0, 1e6])


rope = st.dictionaries(st.sampled_from(ROPE_KEYS), likely | anything, max_size=8).flatmap(
    lambda inner: st.sampled_from(TYPES).map(lambda kind: {"rope_type": kind} | inner)
)
configs = st.builds(
    lambda model, top, schema, inner: LLAMA | {"model_type": model} | top | ({schema: inner} if schema else {}),
    st.sampled_from(MODELS),
    st.dictionaries(st.sampled_from(TOP_KEYS), likely | anything, max_size=3),
    st.sampled_from(["rope_scaling", "rope_parameters", None]),
    rope | anything,
)


def outcome(text: str) -> Checkpoint | RopeError:
    try:
        return read_checkpoint("-", stdin=io.StringIO(text))
    except RopeError as error:
        return error


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs)
def test_any_config(config: dict[str, Any]) -> None:
    """Whatever the values are, a checkpoint whose frequencies can be computed comes out, or one of our errors."""
    result = outcome(json.dumps(config))
    if isinstance(result, RopeError):
        assert result.exit_status == 3
        assert "\n" not in result.message
        assert result.where.startswith("standard input")
    else:
        assert len(result.config_sha256) == 64
        assert all(len(frequencies(layer.spec).inv_freq) == layer.spec.pairs for layer in result.ropes)


@settings(max_examples=200, deadline=None)
@given(anything.map(json.dumps) | st.text(max_size=40))
def test_any_text(text: str) -> None:
    """Whatever the text is, a checkpoint or one of our errors comes out."""
    result = outcome(text)
    assert isinstance(result, Checkpoint) or result.exit_status == 3
