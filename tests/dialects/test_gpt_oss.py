"""gpt-oss's original `config.json`: against its own formulas, its defaults, and every value that is refused."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropecli.dialects.gpt_oss import matches, read
from ropecli.errors import BadParameter, RopeError
from ropecli.frequencies import frequencies
from ropecli.spec import LayerRope, Plain, Yarn

ORIGINAL: dict[str, Any] = {
    "num_hidden_layers": 24, "num_experts": 32, "experts_per_token": 4, "vocab_size": 201088, "hidden_size": 2880,
    "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64, "num_attention_heads": 64,
    "num_key_value_heads": 8, "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000,
    "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1, "rope_ntk_beta": 32,
}  # fmt: skip


def only(config: dict[str, Any]) -> LayerRope:
    (rope,) = read(config)
    return rope


def test_the_original() -> None:
    """The shipped config is YaRN without rounded corners, in halves, for every layer."""
    rope = only(ORIGINAL)
    assert rope.spec.scaling == Yarn(32.0, 0.1 * math.log(32) + 1, 32.0, 1.0, truncate=False)
    assert (rope.spec.original_length, rope.spec.max_length, rope.spec.layout) == (4096, 131072, "half")
    assert (rope.name, rope.layers) == ("default", 24)
    assert (rope.sources["beta_slow"], rope.sources["beta_fast"]) == ("rope_ntk_alpha", "rope_ntk_beta")


@pytest.mark.parametrize("changes", [{}, {"rope_ntk_alpha": 2, "rope_ntk_beta": 20}, {"rope_scaling_factor": 1.0}])
def test_against_its_own_formulas(changes: dict[str, Any]) -> None:
    """Frequencies and concentration equal gpt-oss's `RotaryEmbedding._compute_concentration_and_inv_freq`."""
    config = ORIGINAL | changes
    base, dim, factor = config["rope_theta"], config["head_dim"], config["rope_scaling_factor"]
    expected, concentration = [base ** (-i / dim) for i in range(0, dim, 2)], 1.0
    if factor > 1:
        concentration = 0.1 * math.log(factor) + 1.0
        low, high = (
            dim / 2 * math.log(config["initial_context_length"] / (turns * 2 * math.pi)) / math.log(base)
            for turns in (config["rope_ntk_beta"], config["rope_ntk_alpha"])
        )
        for i, plain in enumerate(expected):
            mask = 1 - min(max((i - low) / (high - low), 0), 1)
            expected[i] = plain / factor * (1 - mask) + plain * mask
    found = frequencies(only(config).spec)
    assert found.inv_freq == pytest.approx(expected, rel=1e-12)
    assert found.attention_factor == pytest.approx(concentration)


def test_defaults() -> None:
    """What the file leaves out is as in gpt-oss's own ModelConfig."""
    silent = only({"initial_context_length": 4096, "rope_scaling_factor": 32.0})
    assert silent.spec == only(ORIGINAL).spec
    assert silent.layers == 36
    assert silent.sources["rope_theta"] == "default of gpt-oss"
    assert only(ORIGINAL | {"rope_scaling_factor": 1}).spec.scaling == Plain()


def test_matches() -> None:
    """The config that Hugging Face made of it has a model_type and is read there."""
    assert matches(ORIGINAL)
    assert not matches(ORIGINAL | {"model_type": "gpt_oss"})
    assert not matches({"initial_context_length": 4096})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_scaling_factor", 0),
        ("rope_scaling_factor", math.nan),
        ("rope_scaling_factor", 1e299),
        ("initial_context_length", 0),
        ("initial_context_length", 1.5),
        ("head_dim", 63),
        ("rope_theta", -1),
        ("rope_theta", 1),
        ("rope_ntk_alpha", 0),
        ("rope_ntk_beta", "32"),
        ("num_hidden_layers", {}),
    ],
)
def test_refused(key: str, value: object) -> None:
    """A value of the wrong kind or out of range is named by its key in the file."""
    with pytest.raises(BadParameter) as caught:
        read(ORIGINAL | {key: value})
    assert caught.value.where == key


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from(sorted(ORIGINAL)),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        max_size=4,
    )
)
def test_anything(changes: dict[str, Any]) -> None:
    """Whatever the values are, an embedding or an error with a place comes out."""
    try:
        read(ORIGINAL | changes)
    except RopeError as error:
        found = error.where
    else:
        found = "read"
    assert found
