"""Mistral's `params.json`: real files of each generation, and every value that is refused."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropecli.dialects.mistral import matches, read
from ropecli.errors import BadParameter, RopeError
from ropecli.spec import LayerRope, Plain, RopeSpec, Yarn, default_attention_factor

MISTRAL_7B: dict[str, Any] = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "norm_eps": 1e-05, "sliding_window": 4096, "vocab_size": 32000,
}  # fmt: skip

MINISTRAL_3: dict[str, Any] = {
    "dim": 3072, "n_layers": 26, "head_dim": 128, "hidden_dim": 9216, "n_heads": 32, "n_kv_heads": 8,
    "rope_theta": 1000000.0, "norm_eps": 1e-05, "vocab_size": 131072, "tied_embeddings": True,
    "max_position_embeddings": 262144, "llama_4_scaling": {"original_max_position_embeddings": 16384, "beta": 0.1},
    "yarn": {"original_max_position_embeddings": 16384, "factor": 16, "apply_scale": False, "beta": 32, "alpha": 1},
}  # fmt: skip

LARGE_3: dict[str, Any] = {
    "dim": 7168, "n_layers": 61, "head_dim": 128, "hidden_dim": 16384, "n_heads": 128, "n_kv_heads": 128,
    "rope_theta": 10000.0, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "kv_lora_rank": 512,
    "v_head_dim": 128, "max_position_embeddings": 294912,
    "yarn": {"original_max_position_embeddings": 8192, "factor": 36, "apply_scale": False, "beta": 32, "alpha": 1},
}  # fmt: skip


def only(config: dict[str, Any]) -> LayerRope:
    (rope,) = read(config)
    return rope


def test_first_generation() -> None:
    """Mistral 7B: no base and no length in the file, both reported as assumed."""
    rope = only(MISTRAL_7B)
    assert rope.spec == RopeSpec(10000.0, 128, 128, 128_000, 128_000, Plain(), "interleaved")
    assert (rope.layers, rope.sliding_window) == (32, 4096)
    assert rope.sources["rope_theta"] == "assumed: 10000, as mistral-inference with a window"
    assert rope.sources["max_length"] == "assumed: 128000, as vLLM does"


def test_mixtral_has_another_base_than_mistral_7b() -> None:
    """No file of either states one: mistral-inference takes 1000000 where there is no window."""
    rope = only({key: value for key, value in MISTRAL_7B.items() if key != "sliding_window"})
    assert rope.spec.rope_theta == 1_000_000.0
    assert rope.sources["rope_theta"] == "assumed: 1000000, as mistral-inference without a window"


def test_yarn() -> None:
    """Ministral 3: alpha is beta_slow, beta is beta_fast, and apply_scale false means no temperature."""
    rope = only(MINISTRAL_3)
    assert rope.spec == RopeSpec(1e6, 128, 128, 16384, 262144, Yarn(16.0, 1.0, 32.0, 1.0), "interleaved")
    assert {name: rope.sources[name] for name in ("beta_slow", "beta_fast", "attention_factor")} == {
        "beta_slow": "yarn.alpha",
        "beta_fast": "yarn.beta",
        "attention_factor": "yarn.apply_scale",
    }


def test_latent_attention() -> None:
    """Mistral Large 3 rotates a slice of its latent heads."""
    rope = only(LARGE_3)
    assert (rope.mla, rope.spec.head_dim, rope.spec.rotary_dim) == (True, 64, 64)
    assert rope.sources["head_dim"] == "qk_rope_head_dim"


@pytest.mark.parametrize("changes", [{"apply_scale": True}, {}], ids=["true", "missing"])
def test_temperature(changes: dict[str, Any]) -> None:
    """Unless apply_scale is false, YaRN's default temperature is applied."""
    yarn = {"factor": 4.0, "original_max_position_embeddings": 4096} | changes
    rope = only(MISTRAL_7B | {"yarn": yarn})
    assert rope.spec.scaling == Yarn(4.0, default_attention_factor(4.0))
    assert (rope.spec.original_length, rope.spec.max_length) == (4096, 16384)
    assert rope.sources["max_length"] == "factor · yarn.original_max_position_embeddings"


def test_head_dim_from_the_width() -> None:
    """Without head_dim, the width is shared among the heads."""
    rope = only({key: value for key, value in MISTRAL_7B.items() if key != "head_dim"} | {"n_heads": 64})
    assert (rope.spec.head_dim, rope.sources["head_dim"]) == (64, "dim / n_heads")


@pytest.mark.parametrize("yarn", [None, {}])
def test_yarn_left_empty(yarn: object) -> None:
    """A yarn block that is null or empty is none."""
    assert only(MISTRAL_7B | {"yarn": yarn}).spec.scaling == Plain()


def test_windows_by_layer() -> None:
    """A list of windows, one a layer, is not one window."""
    assert only(MISTRAL_7B | {"sliding_window": [4096, None]}).sliding_window is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MISTRAL_7B, True),
        (MINISTRAL_3, True),
        ({"dim": 4096, "n_heads": 32, "yarn": {"factor": 4}}, True),  # Meta's files have no such key
        ({"dim": 4096, "n_heads": 32}, False),
        (MISTRAL_7B | {"model_type": "llama"}, False),
        ({"dim": 1}, False),
    ],
)
def test_matches(config: dict[str, Any], expected: bool) -> None:
    """The dialect is known by its keys, and leaves everything with a model_type to Hugging Face."""
    assert matches(config) is expected


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"n_layers": None}, "n_layers"),
        ({"n_layers": 0}, "n_layers"),
        ({"n_layers": 2.5}, "n_layers"),
        ({"head_dim": None, "n_heads": 0}, "n_heads"),
        ({"head_dim": None, "dim": None}, "head_dim"),
        ({"head_dim": 7}, "head_dim"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": math.nan}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rope_theta": "1e4"}, "rope_theta"),
        ({"rope_theta": True}, "rope_theta"),
        ({"max_position_embeddings": -1}, "max_position_embeddings"),
        ({"max_position_embeddings": math.inf}, "max_position_embeddings"),
        ({"yarn": 3}, "yarn"),
        ({"yarn": {"alpha": 1}}, "yarn.factor"),
        ({"yarn": {"factor": 0}}, "yarn.factor"),
        ({"yarn": {"factor": 1e299, "original_max_position_embeddings": 4096}}, "yarn.factor"),
        ({"yarn": {"factor": 4, "alpha": 0}}, "yarn.alpha"),
        ({"yarn": {"factor": 4, "beta": -1}}, "yarn.beta"),
        ({"yarn": {"factor": 4, "apply_scale": 1}}, "yarn.apply_scale"),
        ({"yarn": {"factor": 4, "original_max_position_embeddings": "4096"}}, "yarn.original_max_position_embeddings"),
    ],
    ids=range(22),
)
def test_refused(changes: dict[str, Any], where: str) -> None:
    """A value that is missing, of the wrong kind or out of range is named by its key in the file."""
    with pytest.raises(BadParameter) as caught:
        read(MISTRAL_7B | changes)
    assert caught.value.where == where


numbers = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)
yarn_keys = st.sampled_from(["factor", "alpha", "beta", "apply_scale", "original_max_position_embeddings"])


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from([*LARGE_3, "max_seq_len", "sliding_window"]), numbers, max_size=4),
    st.dictionaries(yarn_keys, numbers | st.integers(1, 64), max_size=5) | numbers,
)
def test_anything(changes: dict[str, Any], yarn: object) -> None:
    """Whatever the values are, an embedding or an error with a place comes out."""
    try:
        read(MISTRAL_7B | changes | {"yarn": yarn})
    except RopeError as error:
        found = error.where
    else:
        found = "read"
    assert found
