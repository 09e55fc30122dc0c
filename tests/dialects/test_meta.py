"""Meta's `params.json`: what the files say, what only Meta's code knows, and every value that is refused."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropecli.dialects.meta import matches, read
from ropecli.errors import BadParameter, RopeError
from ropecli.spec import LayerRope, Llama3, Plain, RopeSpec

LLAMA_2: dict[str, Any] = {
    "dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1,
}  # fmt: skip
LLAMA_3_1: dict[str, Any] = {
    "dim": 4096, "ffn_dim_multiplier": 1.3, "multiple_of": 1024, "n_heads": 32, "n_kv_heads": 8, "n_layers": 32,
    "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True, "vocab_size": 128256,
}  # fmt: skip
LLAMA_3_2_1B: dict[str, Any] = LLAMA_3_1 | {"dim": 2048, "n_layers": 16}
SCOUT: dict[str, Any] = LLAMA_3_1 | {
    "dim": 5120, "n_layers": 48, "n_heads": 40, "moe_args": {"num_experts": 16}, "nope_layer_interval": 4,
    "rope_scaling_factor": 16.0, "rope_high_freq_factor": 2.0,
}  # fmt: skip


def only(config: dict[str, Any]) -> LayerRope:
    (rope,) = read(config)
    return rope


@pytest.mark.parametrize(
    ("changes", "theta", "length", "source"),
    [
        ({}, 10000.0, 4096, "assumed: 4096, as in Llama 2"),
        ({"rope_theta": 500000.0}, 500000.0, 8192, "assumed: 8192, as in Llama 3"),
        ({"rope_theta": 1000000}, 1000000.0, 16384, "assumed: 16384, as in Code Llama"),
        ({"max_seq_len": 2048}, 10000.0, 2048, "max_seq_len"),
    ],
)
def test_plain(changes: dict[str, Any], theta: float, length: int, source: str) -> None:
    """Without scaling, the length is the one that goes with the base, and is said to be assumed."""
    rope = only(LLAMA_2 | changes)
    assert rope.spec == RopeSpec(theta, 128, 128, length, length, Plain(), "interleaved")
    assert rope.sources["original_length"] == rope.sources["max_length"] == source
    assert rope.sources["head_dim"] == "dim / n_heads"


def test_llama_3_1() -> None:
    """The scaling's numbers stand in Meta's code; the factor says that it could be another."""
    rope = only(LLAMA_3_1)
    assert rope.spec == RopeSpec(500000.0, 128, 128, 8192, 131072, Llama3(8.0, 1.0, 4.0), "interleaved")
    assert "could mean 32" in rope.sources["factor"]


def test_llama_3_2() -> None:
    """The small models of Llama 3.2 have 32 at Hugging Face, and 8 in Meta's own code."""
    rope = only(LLAMA_3_2_1B)
    assert rope.spec.scaling == Llama3(32.0, 1.0, 4.0)
    assert "could mean 8" in rope.sources["factor"]


def test_stated_scaling() -> None:
    """Numbers that the file states are taken, and layers without a rotation are not counted."""
    rope = only(SCOUT)
    assert rope.spec.scaling == Llama3(16.0, 1.0, 2.0)
    assert rope.layers == 36
    assert rope.sources["factor"] == "rope_scaling_factor"
    assert rope.sources["high_freq_factor"] == "rope_high_freq_factor"


def test_llama_4_defaults() -> None:
    """A mixture of experts without stated numbers has those of Llama 4 Scout."""
    silent = {key: value for key, value in SCOUT.items() if not key.startswith("rope_scaling")}
    assert only(silent).spec.scaling == Llama3(16.0, 1.0, 2.0)
    assert "Llama 4 Scout" in only(silent).sources["factor"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [(LLAMA_2, True), (SCOUT, True), (LLAMA_2 | {"hidden_dim": 1}, False), (LLAMA_2 | {"model_type": "x"}, False)],
)
def test_matches(config: dict[str, Any], expected: bool) -> None:
    """The dialect is known by its keys: Mistral's states the width of the MLP, Meta's does not."""
    assert matches(config) is expected


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"n_layers": None}, "n_layers"),
        ({"n_layers": "32"}, "n_layers"),
        ({"n_heads": 0}, "n_heads"),
        ({"n_heads": 4097}, "dim / n_heads"),
        ({"dim": -1}, "dim"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"rope_scaling_factor": -8}, "rope_scaling_factor"),
        ({"rope_high_freq_factor": []}, "rope_high_freq_factor"),
        ({"max_seq_len": 2**60}, "max_seq_len"),
        ({"nope_layer_interval": 0}, "nope_layer_interval"),
    ],
    ids=range(11),
)
def test_refused(changes: dict[str, Any], where: str) -> None:
    """A value that is missing, of the wrong kind or out of range is named by its key in the file."""
    with pytest.raises(BadParameter) as caught:
        read(LLAMA_3_1 | changes)
    assert caught.value.where == where


numbers = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from([*SCOUT, "max_seq_len", "head_dim"]), numbers, max_size=5))
def test_anything(changes: dict[str, Any]) -> None:
    """Whatever the values are, an embedding or an error with a place comes out."""
    try:
        read(LLAMA_3_1 | changes)
    except RopeError as error:
        found = error.where
    else:
        found = "read"
    assert found
