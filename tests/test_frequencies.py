"""`ropecli.frequencies` against transformers itself, published formulas and figures, and laws that must hold."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from transformers import Gemma4TextConfig, LlamaConfig, PhiConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding
from transformers.utils import logging

from ropecli.frequencies import (
    Frequencies,
    base_frequencies,
    corner,
    divisors,
    frequencies,
    largest_difference,
    ntk_base,
    ramp_frequencies,
    rotations,
    snapped_betas,
    turns_at,
    yarn_corners,
)
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
    Scaling,
    Yarn,
    default_attention_factor,
)

# ------------------------------------------------------------------------------------------------ the oracle


class DoublePrecision(TorchFunctionMode):
    """Runs library code in float64 where it asks for float32: its formulas without its rounding."""

    def __enter__(self) -> "DoublePrecision":
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        torch.set_default_dtype(torch.float32)
        super().__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def widened(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        function = torch.Tensor.double if func is torch.Tensor.float else func
        return function(*map(widened, args), **{key: widened(value) for key, value in (kwargs or {}).items()})


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    """transformers logs a line for each unusual setting, and this grid is made of them."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def llama_config(head_dim: int, max_length: int, **parameters: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_length,
        rope_parameters=parameters,
    )


def transformers_frequencies(config: PreTrainedConfig, length: int | None = None) -> Frequencies:
    """What the function of transformers for this kind returns, computed in float64."""
    with DoublePrecision():
        if config.rope_parameters["rope_type"] == "default":
            inv_freq, attention_factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            compute = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
            inv_freq, attention_factor = compute(config, seq_len=length)
    assert inv_freq.dtype == torch.float64
    return Frequencies(tuple(inv_freq.tolist()), attention_factor)


def assert_same(found: Frequencies, expected: Frequencies, rel: float = 1e-12) -> None:
    np.testing.assert_allclose(found.inv_freq, expected.inv_freq, rtol=rel, atol=0)
    assert found.attention_factor == pytest.approx(expected.attention_factor, rel=1e-12)


THETAS = [1e4, 5e5, 1e6, 150000]
# each geometry: the width of a head, and the part of it that rotates
GEOMETRIES = [(32, 1.0), (64, 0.5), (80, 0.4), (96, 0.75), (128, 1.0)]
LENGTHS = [256, 4096, 32768]
FACTORS = [1.0, 1.5, 4.0, 8.0, 40.0]
BETAS = [(32, 1), (32.5939938, 0.7729699), (16, 2), (4, 0.25), (1.5, 1.4), (128, 2), (1, 32), (40, 40), (1e6, 1e-6)]


@pytest.mark.parametrize("theta", THETAS)
def test_default_is_transformers_default(theta: float) -> None:
    """The plain embedding of every width equals that of the Llama module."""
    for head_dim in (2, 32, 64, 80, 96, 128, 256):
        spec = RopeSpec(theta, head_dim, head_dim, 4096, 4096)
        config = llama_config(head_dim, 4096, rope_type="default", rope_theta=theta)
        assert_same(frequencies(spec), transformers_frequencies(config))


@pytest.mark.parametrize("part", [0.25, 0.5, 0.75])
def test_partial_default_is_transformers_default(part: float) -> None:
    """Where only a part of the head rotates, the exponents run over that part (Phi's module)."""
    config = PhiConfig(
        hidden_size=128,
        num_attention_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": part},
    )
    with DoublePrecision():
        inv_freq, attention_factor = PhiRotaryEmbedding.compute_default_rope_parameters(config)
    spec = RopeSpec(10000.0, 64, int(64 * part), 2048, 2048)
    assert_same(frequencies(spec), Frequencies(tuple(inv_freq.tolist()), attention_factor))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("theta", THETAS)
def test_linear_is_transformers_linear(theta: float, geometry: tuple[int, float]) -> None:
    """Position interpolation divides every frequency by the factor, in partial heads too."""
    head_dim, part = geometry
    for factor in FACTORS:
        spec = RopeSpec(theta, head_dim, int(head_dim * part), 4096, 4096, Linear(factor))
        config = llama_config(
            head_dim, 4096, rope_type="linear", rope_theta=theta, factor=factor, partial_rotary_factor=part
        )
        assert_same(frequencies(spec), transformers_frequencies(config))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("theta", THETAS)
def test_dynamic_is_transformers_dynamic(theta: float, geometry: tuple[int, float]) -> None:
    """Dynamic NTK at a length below, at, just above and far above the original length."""
    head_dim, part = geometry
    for length, factor in itertools.product(LENGTHS, FACTORS):
        spec = RopeSpec(theta, head_dim, int(head_dim * part), length, length, Dynamic(factor))
        config = llama_config(
            head_dim, length, rope_type="dynamic", rope_theta=theta, factor=factor, partial_rotary_factor=part
        )
        assert_same(frequencies(spec), transformers_frequencies(config))
        for tokens in (1, length - 1, length, length + 1, 2 * length, 17 * length + 3):
            assert_same(frequencies(spec, tokens), transformers_frequencies(config, tokens))


def test_dynamic_follows_the_forward_pass_of_transformers() -> None:
    """The live module uses the table of the longest sequence since it was last below the original length."""
    spec = RopeSpec(10000.0, 32, 32, 256, 1024, Dynamic(4.0))
    with DoublePrecision():
        module = LlamaRotaryEmbedding(llama_config(32, 256, rope_type="dynamic", rope_theta=10000.0, factor=4.0))
        x = torch.zeros(1, dtype=torch.float64)
        # tokens in the call, and the length whose frequencies the module then has
        for tokens, length in [(100, 256), (257, 257), (900, 900), (512, 900), (256, 900), (255, 255), (512, 512)]:
            module(x, torch.arange(tokens)[None])
            expected = frequencies(spec, length)
            assert_same(Frequencies(tuple(module.inv_freq.tolist()), module.attention_scaling), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("theta", THETAS)
def test_yarn_is_transformers_yarn(theta: float, geometry: tuple[int, float]) -> None:
    """YaRN for ordinary, snapped, narrow, wide, equal and swapped betas, truncated or not, with m given or default."""
    head_dim, part = geometry
    for length, factor, (beta_fast, beta_slow), truncate in itertools.product(LENGTHS, FACTORS, BETAS, [True, False]):
        shared = {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": length,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "truncate": truncate,
            "partial_rotary_factor": part,
        }
        config = llama_config(head_dim, int(factor * length), **shared)
        default = default_attention_factor(factor)
        scaling = Yarn(factor, default, float(beta_fast), float(beta_slow), truncate)
        spec = RopeSpec(theta, head_dim, int(head_dim * part), length, int(factor * length), scaling)
        assert_same(frequencies(spec), transformers_frequencies(config))
    config = llama_config(head_dim, int(factor * length), **shared, attention_factor=1.07)
    spec = replace(spec, scaling=replace(scaling, attention_factor=1.07))
    assert_same(frequencies(spec), transformers_frequencies(config))


def test_equal_corners_leave_a_ramp_as_narrow_as_in_transformers() -> None:
    """With equal betas the ramp is 0.001 pairs wide: a pair in its middle is half interpolated."""
    beta = turns_at(7.9995, 10000.0, 64, 2048)
    config = llama_config(
        64,
        8192,
        rope_type="yarn",
        rope_theta=10000.0,
        factor=4.0,
        original_max_position_embeddings=2048,
        beta_fast=beta,
        beta_slow=beta,
        truncate=False,
    )
    scaling = Yarn(4.0, default_attention_factor(4.0), beta, beta, truncate=False)
    found = frequencies(RopeSpec(10000.0, 64, 64, 2048, 8192, scaling))
    assert_same(found, transformers_frequencies(config), rel=1e-9)
    assert found.inv_freq[8] == pytest.approx(10000.0 ** (-16 / 64) * (1 + 1 / 4) / 2, rel=1e-9)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("theta", THETAS)
def test_llama3_is_transformers_llama3(theta: float, geometry: tuple[int, float]) -> None:
    """Llama 3.1's ramp in rotations, with bounds in the usual order and swapped."""
    head_dim, part = geometry
    bounds = [(1, 4), (1.0, 32.0), (0.5, 100.0), (4, 1), (32, 1), (1e-3, 1e6)]
    for length, factor, (low, high) in itertools.product(LENGTHS, FACTORS, bounds):
        config = llama_config(
            head_dim,
            131072,
            rope_type="llama3",
            rope_theta=theta,
            factor=factor,
            original_max_position_embeddings=length,
            low_freq_factor=low,
            high_freq_factor=high,
            partial_rotary_factor=part,
        )
        spec = RopeSpec(theta, head_dim, int(head_dim * part), length, 131072, Llama3(factor, low, high))
        assert_same(frequencies(spec), transformers_frequencies(config))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("attention_factor", [1.0, 1.19, None])
def test_longrope_is_transformers_longrope(geometry: tuple[int, float], attention_factor: float | None) -> None:
    """The short list up to the original length and the long one beyond it, each pair with its own divisor."""
    head_dim, part = geometry
    pairs = int(head_dim * part) // 2
    # float32 numbers, because transformers stores the lists in single precision
    short = [float(np.float32(1 + 0.1 * d / pairs)) for d in range(pairs)]
    long = [float(np.float32(1 + 31.7 * (d / pairs) ** 2)) for d in range(pairs)]
    config = llama_config(
        head_dim,
        131072,
        rope_type="longrope",
        rope_theta=10000.0,
        factor=32.0,
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=4096,
        partial_rotary_factor=part,
        attention_factor=attention_factor,
    )
    m = attention_factor or math.sqrt(1 + math.log(32) / math.log(4096))
    scaling = Longrope(32.0, tuple(short), tuple(long), m, m)
    spec = RopeSpec(10000.0, head_dim, 2 * pairs, 4096, 131072, scaling)
    assert_same(frequencies(spec), transformers_frequencies(config))
    for tokens in (1, 4096, 4097, 131072):
        assert_same(frequencies(spec, tokens), transformers_frequencies(config, tokens))


def test_longrope_follows_the_forward_pass_of_transformers() -> None:
    """The live module takes the long list for a whole call as soon as one position lies beyond the original length."""
    short, long = (1.0,) * 16, (4.0,) * 16
    spec = RopeSpec(10000.0, 32, 32, 256, 1024, Longrope(4.0, short, long, 1.25, 1.25))
    config = llama_config(
        32,
        1024,
        rope_type="longrope",
        rope_theta=10000.0,
        factor=4.0,
        short_factor=list(short),
        long_factor=list(long),
        original_max_position_embeddings=256,
        attention_factor=1.25,
    )
    with DoublePrecision():
        module = LlamaRotaryEmbedding(config)
        for tokens in (256, 257, 1024, 100):
            module(torch.zeros(1, dtype=torch.float64), torch.arange(tokens)[None])
            found = Frequencies(tuple(module.inv_freq.tolist()), module.attention_scaling)
            assert_same(found, frequencies(spec, tokens))


@pytest.mark.parametrize("part", [1.0, 0.5, 0.25, 0.3])
@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_proportional_is_transformers_proportional(part: float, factor: float) -> None:
    """Gemma-4's kind: the first pairs rotate with exponents over the whole head, the others stand still."""
    parameters = {"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": part, "factor": factor}
    config = Gemma4TextConfig(
        global_head_dim=512,
        head_dim=512,
        rope_parameters={
            "full_attention": parameters,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )
    with DoublePrecision():
        inv_freq, m = ROPE_INIT_FUNCTIONS["proportional"](config, layer_type="full_attention")
    expected = Frequencies(tuple(inv_freq.tolist()), m)
    assert_same(frequencies(RopeSpec(1e6, 512, 512, 131072, 131072, Proportional(factor, part))), expected)


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0, 8.0, 32.0, 64.0])
@pytest.mark.parametrize("theta", THETAS)
def test_single_precision_transformers_stays_within_its_own_rounding(theta: float, factor: float) -> None:
    """As shipped (float32) transformers lies within 1e-6 up to s = 8.

    Beyond that its `1 - ramp` loses digits near the interpolated end, where one rounding (2^-24) is magnified by s.
    """
    for (head_dim, part), length, truncate in itertools.product(GEOMETRIES, LENGTHS, [True, False]):
        config = llama_config(
            head_dim,
            int(factor * length),
            rope_type="yarn",
            rope_theta=theta,
            factor=factor,
            original_max_position_embeddings=length,
            truncate=truncate,
            partial_rotary_factor=part,
        )
        shipped = LlamaRotaryEmbedding(config)
        assert shipped.inv_freq.dtype == torch.float32
        scaling = replace(Yarn.default(factor), truncate=truncate)
        spec = RopeSpec(theta, head_dim, int(head_dim * part), length, int(factor * length), scaling)
        found = Frequencies(tuple(shipped.inv_freq.tolist()), shipped.attention_scaling)
        assert_same(frequencies(spec), found, rel=max(1e-6, factor * 2**-23))


def test_cos_and_sin_of_transformers_are_ours() -> None:
    """A position's table row is m·cos and m·sin of position times frequency, both halves alike."""
    spec = RopeSpec(10000.0, 32, 32, 256, 1024, Yarn.default(4.0))
    config = llama_config(
        32, 1024, rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=256
    )
    positions = [0, 1, 255, 256, 1023]
    with DoublePrecision():
        cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float64), torch.tensor([positions]))
    values = frequencies(spec)
    angles = np.outer(positions, values.inv_freq * 2)
    np.testing.assert_allclose(cos[0].numpy(), values.attention_factor * np.cos(angles), atol=1e-12)
    np.testing.assert_allclose(sin[0].numpy(), values.attention_factor * np.sin(angles), atol=1e-12)


def test_m_on_cos_and_sin_is_a_softmax_temperature() -> None:
    """Multiplying cos and sin by m = sqrt(1/t) multiplies q·k by 1/t: softmax(q·k / (t·sqrt(D)))."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8, 32, dtype=torch.float64, generator=generator)
    angles = torch.outer(torch.arange(8.0).double(), torch.tensor(base_frequencies(1e4, 32) * 2).double())[None]
    m = default_attention_factor(8.0)
    t = 1 / (0.1 * math.log(8) + 1) ** 2

    def logits(scale: float) -> torch.Tensor:
        rotated_q, rotated_k = apply_rotary_pos_emb(q, k, scale * angles.cos(), scale * angles.sin())
        return rotated_q @ rotated_k.mT / math.sqrt(32)

    np.testing.assert_allclose(logits(m).numpy(), (logits(1.0) / t).numpy(), rtol=1e-12)


# ------------------------------------------------------------------------ figures measured in other runtimes

SMALL = RopeSpec(10000.0, 64, 64, 2048, 8192)
PAIRS = (0, 9, 14, 20, 31)
PLAIN = (1.0, 0.07498942093324558, 0.01778279410038923, 0.0031622776601683794, 0.0001333521432163324)
INDEX_RAMP = (1.0, 0.0706631081870968, 0.011627211527177573, 0.0009730085108210397, 3.33380358040831e-05)
ROTATION_RAMP = (1.0, 0.06127860500791243, 0.006509200919200538, 0.000792921404744199, 3.33380358040831e-05)
LINEAR = (0.25, 0.018747355233311395, 0.004445698525097307, 0.0007905694150420948, 3.33380358040831e-05)
UNTRUNCATED = (1.0, 0.07061755378308567, 0.011207951957965694, 0.000811290381701431, 3.33380358040831e-05)
DYNAMIC_AT_8192 = (1.0, 0.0356120596, 0.00558378655, 0.000604403359, 1.02578572e-05)
FOURFOLD_LENGTH = (1.0, 0.0749894157, 0.0157309342, 0.00170276489, 3.33380376e-05)
LENGTH_4096 = (1.0, 0.0749894232, 0.0136790732, 0.00133788679, 3.33380376e-05)
BETAS_16_2 = (1.0, 0.07498942093324558, 0.011114246312743268, 0.0007905694150420948, 3.33380358040831e-05)
FLOAT64, NINE_DIGITS = 1e-12, 1e-7
SERVED = {  # what a runtime computes: the scaling that says so, the L it takes, the length it serves, how exactly
    "plain RoPE": (Plain(), 2048, None, PLAIN, FLOAT64),
    "yarn in transformers, vLLM, SGLang, TGI": (Yarn.default(4.0), 2048, None, INDEX_RAMP, FLOAT64),
    "yarn, truncate false": (replace(Yarn.default(4.0), truncate=False), 2048, None, UNTRUNCATED, FLOAT64),
    "yarn, betas 16 and 2": (Yarn(4.0, 1.0, 16.0, 2.0), 2048, None, BETAS_16_2, FLOAT64),
    "yarn, snapped": (Yarn(4.0, 1.0, 32.593994, 0.7729699), 2048, None, INDEX_RAMP, FLOAT64),
    "yarn, snapped, truncate false": (
        Yarn(4.0, 1.0, 32.593994, 0.7729699, truncate=False),
        2048,
        None,
        INDEX_RAMP,
        1.6e-5,
    ),
    "the paper's ramp": (NtkByParts(4.0, 32.0, 1.0), 2048, None, ROTATION_RAMP, FLOAT64),
    "llama3 with 1 and 32": (Llama3(4.0, 1.0, 32.0), 2048, None, ROTATION_RAMP, FLOAT64),
    "linear": (Linear(4.0), 2048, None, LINEAR, FLOAT64),
    "dynamic at the original length": (Dynamic(4.0), 2048, None, PLAIN, FLOAT64),
    "dynamic in SGLang, always at the full length": (Dynamic(4.0), 2048, 8192, DYNAMIC_AT_8192, NINE_DIGITS),
    "yarn in vLLM with mrope, L = 8192": (Yarn.default(4.0), 8192, None, FOURFOLD_LENGTH, NINE_DIGITS),
    "yarn in MLX-LM without a length, L = 4096": (Yarn.default(4.0), 4096, None, LENGTH_4096, NINE_DIGITS),
}


@pytest.mark.parametrize(("scaling", "original", "length", "expected", "rel"), SERVED.values(), ids=SERVED)
def test_measured_figures(
    scaling: Scaling, original: int, length: int | None, expected: tuple[float, ...], rel: float
) -> None:
    """Frequencies that runtimes were seen to compute (D = 64, θ = 10000, L = 2048, s = 4)."""
    found = frequencies(replace(SMALL, scaling=scaling, original_length=original), length).inv_freq
    assert [found[pair] for pair in PAIRS] == pytest.approx(expected, rel=rel)


def test_measured_corners() -> None:
    """32 rotations lie at pair 8.064001 and one at 20.105201; truncation makes 8 and 21 of them."""
    assert corner(32, 10000.0, 64, 2048) == pytest.approx(8.064001, abs=5e-7)
    assert corner(1, 10000.0, 64, 2048) == pytest.approx(20.105201, abs=5e-7)
    assert yarn_corners(SMALL, Yarn.default(4.0)) == (8.0, 21.0)
    assert yarn_corners(SMALL, replace(Yarn.default(4.0), truncate=False)) == pytest.approx((8.064001, 20.105201))


def test_the_two_ramps_are_far_apart() -> None:
    """The paper's ramp differs from every runtime's `yarn` by up to 44.5 %, untruncated yarn by up to 16.6 %."""
    yarn = np.array(frequencies(replace(SMALL, scaling=Yarn.default(4.0))).inv_freq)
    paper = np.array(frequencies(replace(SMALL, scaling=NtkByParts(4.0))).inv_freq)
    untruncated = np.array(frequencies(replace(SMALL, scaling=replace(Yarn.default(4.0), truncate=False))).inv_freq)
    assert np.max(np.abs(paper / yarn - 1)) == pytest.approx(0.445, abs=5e-4)
    assert np.max(np.abs(untruncated / yarn - 1)) == pytest.approx(0.166, abs=5e-4)


# --------------------------------------------------------------------------------------- published formulas


@pytest.mark.parametrize("s", [2.0, 4.0, 8.0, 32.0])
@pytest.mark.parametrize(("theta", "dims"), [(10000.0, 128), (500000.0, 64), (10000.0, 4)])
def test_ntk_aware_changes_the_base(theta: float, dims: int, s: float) -> None:
    """b' = b·s^(D/(D−2)): the fastest pair is kept, the slowest ends at theta/s, and all others in between."""
    found = frequencies(RopeSpec(theta, dims, dims, 4096, 4096, Ntk(s)))
    base = base_frequencies(theta, dims)
    assert found.attention_factor == 1.0
    assert found.inv_freq[0] == 1.0
    assert found.inv_freq[-1] == pytest.approx(base[-1] / s, rel=1e-12)
    divisors = [w / scaled for w, scaled in zip(base, found.inv_freq, strict=True)]
    assert divisors == pytest.approx([s ** (2 * d / (dims - 2)) for d in range(dims // 2)], rel=1e-12)
    config = llama_config(dims, 4096, rope_type="default", rope_theta=theta * s ** (dims / (dims - 2)))
    assert_same(found, transformers_frequencies(config))


def test_ntk_bases_by_hand() -> None:
    """b' of Llama (b = 10000, D = 128): 20221.26 for s = 2 and 82684.62 for s = 8."""
    assert ntk_base(10000.0, 128, 2.0) == pytest.approx(20221.26, abs=0.005)
    assert ntk_base(10000.0, 128, 8.0) == pytest.approx(82684.62, abs=0.005)
    assert ntk_base(10000.0, 128, 1.0) == 10000.0


def test_wavelengths() -> None:
    """λ_d = 2π·b'^(2d/D) tokens for a full turn, and a pair makes L/λ_d rotations inside L."""
    spec = RopeSpec(10000.0, 128, 128, 4096, 16384, Ntk(4.0))
    changed = 10000.0 * 4.0 ** (128 / 126)
    for d, w in enumerate(frequencies(spec).inv_freq):
        wavelength = 2 * math.pi * changed ** (2 * d / 128)
        assert 2 * math.pi / w == pytest.approx(wavelength, rel=1e-12)
        assert rotations(w, 4096) == pytest.approx(4096 / wavelength, rel=1e-12)


@pytest.mark.parametrize("s", [2.0, 4.0, 16.0])
def test_position_interpolation_squeezes_positions(s: float) -> None:
    """g(m) = m/s: the angle of position m after scaling is the plain angle of position m/s."""
    spec = RopeSpec(10000.0, 128, 128, 4096, int(4096 * s), Linear(s))
    for scaled, w in zip(frequencies(spec).inv_freq, base_frequencies(10000.0, 128), strict=True):
        for position in (1, 4096, int(4096 * s)):
            assert position * scaled == pytest.approx(position / s * w, rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 32.0), (2.0, 128.0)])
def test_ntk_by_parts_is_the_published_ramp(alpha: float, beta: float) -> None:
    """h = (1−γ)·theta/s + γ·theta, γ 0 below α rotations, 1 above β, linear between: kept, mixed and divided pairs."""
    s, length = 4.0, 4096
    spec = RopeSpec(10000.0, 128, 128, length, 16384, NtkByParts(s, beta, alpha))
    seen = set()
    for h, theta in zip(frequencies(spec).inv_freq, base_frequencies(10000.0, 128), strict=True):
        r = length * theta / (2 * math.pi)
        gamma = 0.0 if r < alpha else 1.0 if r > beta else (r - alpha) / (beta - alpha)
        seen.add("divided" if gamma == 0 else "kept" if gamma == 1 else "mixed")
        assert h == pytest.approx((1 - gamma) * theta / s + gamma * theta, rel=1e-12)
    assert seen == {"divided", "kept", "mixed"}


def test_dynamic_ntk_is_ntk_aware_at_the_current_length() -> None:
    """The blog's form, s = l'/L above L and 1 below it, is `dynamic` with factor 1."""
    spec = RopeSpec(10000.0, 128, 128, 4096, 65536, Dynamic(1.0))
    for tokens in (1, 2048, 4096, 4097, 8192, 65536):
        s = max(tokens / 4096, 1.0)
        assert_same(frequencies(spec, tokens), frequencies(replace(spec, scaling=Ntk(s))))


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (1.0, 32.0), (0.3, 77.0), (32.0, 1.0)])
def test_llama3_is_ntk_by_parts(theta: float, low: float, high: float) -> None:
    """`llama3` with low = α and high = β is the blog's NTK-by-parts, to the last bit."""
    spec = RopeSpec(theta, 128, 96, 8192, 65536, Llama3(8.0, low, high))
    assert frequencies(spec) == frequencies(replace(spec, scaling=NtkByParts(8.0, high, low)))


def test_ntk_by_parts_keeps_its_temperature() -> None:
    """The temperature of a scaling reaches the result: by-parts alone has 1, with YaRN's m it is the paper's YaRN."""
    assert frequencies(replace(SMALL, scaling=NtkByParts(4.0))).attention_factor == 1.0
    assert frequencies(replace(SMALL, scaling=NtkByParts(4.0, attention_factor=1.14))).attention_factor == 1.14


def test_longrope_halves_have_their_own_temperature() -> None:
    """Up to L the short list and its temperature count, beyond L the long ones."""
    scaling = Longrope(4.0, (1.0,) * 32, (4.0,) * 32, 1.14, 1.02)
    spec = replace(SMALL, scaling=scaling)
    base = base_frequencies(10000.0, 64)
    assert frequencies(spec) == frequencies(spec, 2048) == Frequencies(base, 1.02)
    assert frequencies(spec, 2049) == Frequencies(tuple(w / 4 for w in base), 1.14)


# -------------------------------------------------------------------------------------------- snapped betas

MODELS = {
    "Llama-2": RopeSpec(10000.0, 128, 128, 4096, 16384),
    "Llama-3": RopeSpec(500000.0, 128, 128, 8192, 32768),
    "Qwen3": RopeSpec(1000000.0, 128, 128, 32768, 131072),
    "gpt-oss": RopeSpec(150000.0, 64, 64, 4096, 131072),
    "tiny": RopeSpec(10000.0, 32, 32, 256, 1024),
}


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_snapped_betas_truncate_to_their_corners(spec: RopeSpec) -> None:
    """Every pair of integer corners comes back from its betas by rounding outwards, in float64 and in float32."""
    constant = np.float32(2 * np.log(np.float32(spec.rope_theta)))
    for low, high in itertools.combinations(range(spec.rotary_dim), 2):
        beta_fast, beta_slow = snapped_betas(spec, low, high)
        assert yarn_corners(spec, Yarn(4.0, 1.0, beta_fast, beta_slow)) == (low, high)
        turns = np.array([beta_fast, beta_slow], dtype=np.float32)
        dims, length = np.float32(spec.rotary_dim), np.float32(spec.original_length)
        single = dims * np.log(length / (turns * np.float32(2 * math.pi))) / constant
        assert (np.floor(single[0]), np.ceil(single[1])) == (low, high)


@pytest.mark.parametrize("factor", [2.0, 4.0, 8.0, 32.0])
@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_snapped_betas_make_truncation_harmless(spec: RopeSpec, factor: float) -> None:
    """With snapped betas, runtimes that truncate and those that do not agree to 5e-5."""
    worst = 0.0
    for low, high in itertools.combinations(range(spec.pairs + 1), 2):
        beta_fast, beta_slow = snapped_betas(spec, low, high)
        smooth = Yarn(factor, 1.0, beta_fast, beta_slow, truncate=False)
        truncated = ramp_frequencies(spec, factor, low, high)
        untruncated = ramp_frequencies(spec, factor, *yarn_corners(spec, smooth))
        worst = max(worst, *(abs(a / b - 1) for a, b in zip(untruncated, truncated, strict=True)))
    assert 0 < worst <= 5e-5


# ----------------------------------------------------------------------------------------------------- laws

factors = st.floats(1.0, 128.0)
turns = st.floats(1e-3, 1e4)
geometries = st.builds(
    lambda theta, pairs, spare, length: RopeSpec(theta, 2 * pairs + spare, 2 * pairs, length, length),
    st.floats(10.0, 1e8),
    st.integers(2, 128),
    st.sampled_from([0, 32]),
    st.integers(16, 2**21),
)
ramps = st.one_of(
    st.builds(Yarn, factors, st.floats(0.5, 2.0), turns, turns, st.booleans()),
    st.builds(lambda s, ends: NtkByParts(s, *ends), factors, st.tuples(turns, turns).filter(lambda x: x[0] != x[1])),
    st.builds(lambda s, ends: Llama3(s, *ends), factors, st.tuples(turns, turns).filter(lambda x: x[0] != x[1])),
)
law = settings(deadline=None, derandomize=True, database=None, max_examples=300)


def in_order(spec: RopeSpec) -> bool:
    """Whether the ramp runs from kept (fast pairs) to divided (slow pairs)."""
    match spec.scaling:
        case Yarn() as yarn:
            low, high = yarn_corners(spec, yarn)
            return low <= high
        case NtkByParts() as parts:
            return parts.beta_slow < parts.beta_fast
        case Llama3() as llama3:
            return llama3.low_freq_factor < llama3.high_freq_factor
        case _:
            return True


@law
@given(geometries, ramps)
def test_a_ramp_stays_between_kept_and_divided(spec: RopeSpec, scaling: Yarn | NtkByParts | Llama3) -> None:
    """For s ≥ 1 every frequency of yarn, ntk-by-parts and llama3 lies between base/s and base, whatever the betas."""
    found = frequencies(replace(spec, scaling=scaling)).inv_freq
    for w, base in zip(found, base_frequencies(spec.rope_theta, spec.rotary_dim), strict=True):
        assert base / scaling.factor * (1 - 1e-12) <= w <= base * (1 + 1e-12)


@law
@given(geometries, ramps | st.builds(Ntk, factors) | st.builds(Dynamic, factors) | st.builds(Linear, factors))
def test_frequencies_fall_from_pair_to_pair(spec: RopeSpec, scaling: Scaling) -> None:
    """Slower pairs stay slower: with bounds in their order no scaling lets one pair overtake the next."""
    scaled = replace(spec, scaling=scaling)
    assume(in_order(scaled))
    found = frequencies(scaled, 4 * spec.original_length).inv_freq
    assert all(following < w for w, following in itertools.pairwise(found))


@law
@given(geometries, st.floats(0.5, 2.0), st.tuples(turns, turns).filter(lambda ends: ends[0] != ends[1]))
def test_factor_one_changes_nothing(spec: RopeSpec, m: float, ends: tuple[float, float]) -> None:
    """With s = 1 every static kind has the plain frequencies, and keeps the temperature that it was given."""
    plain = frequencies(spec).inv_freq
    kinds: list[tuple[Scaling, float]] = [
        (Linear(1.0), 1.0),
        (Ntk(1.0), 1.0),
        (NtkByParts(1.0, *ends, m), m),
        (Yarn(1.0, m, *ends), m),
        (Yarn.default(1.0), 1.0),
        (Llama3(1.0, *ends), 1.0),
        (Longrope(1.0, (1.0,) * spec.pairs, (1.0,) * spec.pairs, m, m), m),
        (Proportional(1.0, 1.0), 1.0),
    ]
    for scaling, temperature in kinds:
        head_dim = spec.rotary_dim if isinstance(scaling, Proportional) else spec.head_dim
        found = frequencies(replace(spec, scaling=scaling, head_dim=head_dim))
        assert found.inv_freq == pytest.approx(plain, rel=1e-12)
        assert found.attention_factor == temperature


@law
@given(geometries, turns, st.floats(-50.0, 300.0))
def test_corner_and_turns_at_are_inverse(spec: RopeSpec, rotation_count: float, pair: float) -> None:
    """The pair of a number of rotations, and the rotations of a pair, undo each other; more rotations, earlier pair."""
    place = (spec.rope_theta, spec.rotary_dim, spec.original_length)
    assert turns_at(corner(rotation_count, *place), *place) == pytest.approx(rotation_count, rel=1e-9)
    assume(abs(pair) < 10 * spec.rotary_dim)
    assert corner(turns_at(pair, *place), *place) == pytest.approx(pair, abs=1e-9 * spec.rotary_dim)
    assert corner(2 * rotation_count, *place) < corner(rotation_count, *place)


@law
@given(geometries, st.integers(0, 127))
def test_corners_count_rotations(spec: RopeSpec, pair: int) -> None:
    """A whole pair index turns exactly as often as its own frequency says."""
    assume(pair < spec.pairs)
    expected = rotations(base_frequencies(spec.rope_theta, spec.rotary_dim)[pair], spec.original_length)
    assert turns_at(pair, spec.rope_theta, spec.rotary_dim, spec.original_length) == pytest.approx(expected, rel=1e-12)


anything = st.floats(1e-30, 1e30)


@law
@given(
    anything.filter(lambda theta: theta != 1),
    st.integers(2, 64),
    st.integers(1, 2**48),
    anything,
    st.tuples(anything, anything).filter(lambda ends: ends[0] != ends[1]),
    st.integers(1, 2**48),
)
def test_no_spec_that_can_be_built_overflows(
    theta: float, pairs: int, length: int, factor: float, ends: tuple[float, float], tokens: int
) -> None:
    """At the ends of the allowed ranges the frequencies are still finite numbers, and nothing raises."""
    spec = RopeSpec(theta, 2 * pairs, 2 * pairs, length, length)
    flat = (factor,) * pairs
    for scaling in (
        Plain(),
        Linear(factor),
        Ntk(factor),
        Dynamic(factor),
        NtkByParts(factor, *ends),
        Yarn(factor, 1.0, *ends),
        Yarn(factor, 1.0, *ends, truncate=False),
        Llama3(factor, *ends),
        Longrope(factor, flat, flat, 1.0, 1.0),
        Proportional(factor, 0.5),
    ):
        found = frequencies(replace(spec, scaling=scaling), tokens).inv_freq
        assert len(found) == pairs
        assert all(math.isfinite(w) and w >= 0 for w in found)


def test_llama3_bounds_that_are_equal_are_a_step():
    """Llama-4-Scout states low = high = 1: pairs that turn less than once are divided, all others kept."""
    spec = RopeSpec(500000.0, 128, 128, 8192, 131072, Llama3(16.0, 1.0, 1.0))
    for w, now in zip(base_frequencies(500000.0, 128), frequencies(spec).inv_freq, strict=True):
        assert now == pytest.approx(w / 16 if 8192 * w / (2 * math.pi) < 1 else w)
    own = rotations(1.0, 8192)
    at_its_own_turns = RopeSpec(500000.0, 128, 128, 8192, 131072, Llama3(16.0, own, own))
    first, second, *_ = zip(base_frequencies(500000.0, 128), frequencies(at_its_own_turns).inv_freq, strict=True)
    assert (first[1], second[1]) == (1.0, second[0] / 16), "the pair on the step is kept"


def test_the_largest_difference_counts_what_turns():
    """Relative, symmetric, and blind to pairs that stand still in both."""
    frequency = frequencies(RopeSpec(10000.0, 8, 8, 128, 128))
    slower = replace(frequency, inv_freq=(*frequency.inv_freq[:-1], frequency.inv_freq[-1] * 0.5))
    still = replace(frequency, inv_freq=(*frequency.inv_freq[:-1], 0.0))
    assert largest_difference(frequency, frequency) == 0
    assert largest_difference(frequency, slower) == largest_difference(slower, frequency) == 0.5
    assert largest_difference(still, still) == 0
    assert largest_difference(still, frequency) == 1
    assert largest_difference(frequency, replace(frequency, inv_freq=frequency.inv_freq[1:])) == math.inf


def test_divisors_are_what_frequencies_were_divided_by() -> None:
    """The lists of longrope themselves; the factor for linear; infinite where a pair of Gemma-4 stands still."""
    plain = RopeSpec(10000.0, 8, 8, 128, 512)
    lists = Longrope(4.0, (1.0, 1.0, 2.0, 3.0), (1.0, 2.0, 3.0, 4.0), 1.0, 1.0)
    assert divisors(replace(plain, scaling=lists)) == pytest.approx(lists.short_factor)
    assert divisors(replace(plain, scaling=lists), 512) == pytest.approx(lists.long_factor)
    assert divisors(replace(plain, scaling=Linear(4.0))) == pytest.approx((4.0,) * 4)
    assert divisors(replace(plain, scaling=Proportional(2.0, 0.5))) == pytest.approx((2.0, 2.0, math.inf, math.inf))
