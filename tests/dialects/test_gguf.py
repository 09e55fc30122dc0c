"""GGUF: the header against the `gguf` package, the meaning against ggml's own formulas, and damaged files."""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGUFEndian, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from ropecli.checkpoint import read_checkpoint
from ropecli.dialects.gguf import Divisors, notes, read
from ropecli.dialects.gguf_archs import (
    BETAS_READ,
    FREQS_IGNORED,
    FREQS_USED,
    HALVES,
    INTERLEAVED,
    LOG_MULTIPLIER,
    SLIDING,
    UNROTATED,
)
from ropecli.errors import BadCheckpoint, RopeError
from ropecli.frequencies import frequencies
from ropecli.gguf_header import MAX_KEPT_ITEMS, SCALAR_CODES, TENSOR_TYPES, parts, read_gguf, verify_gguf
from ropecli.spec import LayerRope, Linear, Longrope, Ntk, Plain, Yarn

Result = TypeVar("Result")

SIZES = {"block_count": 4, "context_length": 4096, "embedding_length": 256, "attention.head_count": 4}


def metadata(arch: str = "llama", **values: Any) -> dict[str, Any]:
    """Metadata of a small model; "__" in a name stands for a dot, None takes a key away."""
    keys = SIZES | {name.replace("__", "."): value for name, value in values.items()}
    return {"general.architecture": arch} | {f"{arch}.{key}": v for key, v in keys.items() if v is not None}


def outcome(call: Callable[[], Result]) -> Result | RopeError:
    try:
        return call()
    except RopeError as error:
        return error


def yarn(**values: Any) -> dict[str, Any]:
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 1024} | values
    return {f"rope__scaling__{key}": value for key, value in scaling.items()}


def only(data: Mapping[str, Any], divisors: Divisors | None = None) -> LayerRope:
    (rope,) = read(data, divisors or Divisors())
    return rope


def write(
    path: Path,
    data: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    endian: GGUFEndian = GGUFEndian.LITTLE,
) -> Path:
    """A real GGUF file, written by the gguf package."""
    writer = gguf.GGUFWriter(path, data["general.architecture"], endianess=endian)
    for key, value in data.items():
        if key == "general.architecture":
            continue
        kind = GGUFValueType.get_type(value)
        writer.add_key_value(key, value, GGUFValueType.UINT32 if kind == GGUFValueType.INT32 else kind)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ggml_rope(
    data: Mapping[str, Any], arch: str, n_rot: int, freq_factors: Sequence[float] | None
) -> tuple[list[float], float]:
    """inv_freq and multiplier as llama.cpp computes them, written after its source and not after ours.

    `llama_model::load_hparams`, the constructor of `llama_context`, `ggml_rope_yarn_corr_dims` and `rope_yarn`.
    """
    get = lambda key, default: data.get(f"{arch}.{key}", default)  # noqa: E731
    freq_base = get("rope.freq_base", 10000.0)
    rope_scaling = get("rope.scaling.type", "linear")
    ropescale = get("rope.scaling.factor", get("rope.scale_linear", 0.0))
    freq_scale = 1.0 if ropescale == 0.0 else 1.0 / ropescale
    n_ctx_orig = get("rope.scaling.original_context_length", get("context_length", 0))
    beta_fast, beta_slow, ext_factor, log_mul = 32.0, 1.0, -1.0, 0.0
    if arch == "mistral3":
        beta_fast = get("rope.scaling.yarn_beta_fast", beta_fast)
        beta_slow = get("rope.scaling.yarn_beta_slow", beta_slow)
        log_mul = get("rope.scaling.yarn_log_multiplier", 0.0)
    if arch in {"deepseek2", "deepseek32"}:
        log_mul = get("rope.scaling.yarn_log_multiplier", 0.0) / 0.1
    if rope_scaling == "none":
        freq_scale = 1.0
    if ext_factor < 0:
        ext_factor = 1.0 if rope_scaling == "yarn" else 0.0
    attn_factor = 1.0
    if ext_factor != 0:
        get_mscale = lambda scale, mscale: 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0  # noqa: E731
        factor = 1 / freq_scale
        if log_mul != 0:
            mscale = log_mul if arch == "deepseek2" and log_mul != 1 else 1.0
            attn_factor = get_mscale(factor, mscale) / get_mscale(factor, log_mul)
        else:
            attn_factor = get_mscale(factor, 1.0)
        attn_factor *= 1.0 / (1.0 + 0.1 * math.log(factor))
    attn_factor *= get("rope.scaling.attn_factor", 1.0)

    def corr_dim(n_rotations: float) -> float:
        return n_rot * math.log(n_ctx_orig / (n_rotations * 2 * math.pi)) / (2 * math.log(freq_base))

    low = max(0.0, math.floor(corr_dim(beta_fast)))
    high = min(n_rot - 1.0, math.ceil(corr_dim(beta_slow)))
    inv_freq = []
    mscale = attn_factor
    for i0 in range(0, n_rot, 2):
        extrap = freq_base ** (-i0 / n_rot) / (freq_factors[i0 // 2] if freq_factors else 1.0)
        interp = freq_scale * extrap
        theta = interp
        mscale = attn_factor
        if ext_factor != 0:
            y = (i0 // 2 - low) / max(0.001, high - low)
            ramp_mix = (1 - min(1.0, max(0.0, y))) * ext_factor
            theta = interp * (1 - ramp_mix) + extrap * ramp_mix
            mscale = attn_factor * (1.0 + 0.1 * math.log(1.0 / freq_scale))
        inv_freq.append(theta)
    return inv_freq, mscale


@pytest.mark.parametrize(
    ("arch", "values", "layers"),
    [
        ("lfm2", {"attention__head_count_kv": [0, 0, 8, 0]}, 1),
        ("granitehybrid", {"attention__head_count_kv": [0, 2, 0, 2], "rope__scaling__finetuned": True}, 2),
        ("deci", {"attention__head_count": [4, 0, 4, 4], "attention__head_count_kv": [2, 0, 0, 2]}, 2),
        ("qwen3next", {"block_count": 8}, 2),
        ("qwen35", {"block_count": 9, "nextn_predict_layers": 1, "full_attention_interval": 2}, 4),
        ("qwen35moe", {"attention__recurrent_layers": [True, False, True, True]}, 1),
        ("glm4moe", {"block_count": 5, "nextn_predict_layers": 1}, 4),
        ("llama", {}, 4),
    ],
)
def test_only_layers_with_attention_are_counted(arch: str, values: dict[str, Any], layers: int) -> None:
    """No heads, no heads for keys, a recurrent layer or one that predicts further tokens: nothing rotates there."""
    assert only(metadata(arch, **values)).layers == layers


def test_fewer_layers_than_blocks_say_why() -> None:
    """The key that took layers away, or what llama.cpp knows of the architecture."""
    named = only(metadata("lfm2", attention__head_count_kv=[0, 0, 8, 0]))
    assert named.sources["layers"] == "lfm2.attention.head_count_kv"
    assert only(metadata("qwen3next")).sources["layers"] == "default of architecture qwen3next"
    assert only(metadata("llama")).sources["layers"] == "llama.block_count"


@pytest.mark.parametrize("arch", ["granite", "granitemoe", "granitehybrid"])
def test_granite_rotates_unless_the_file_says_no(arch: str) -> None:
    """llama.cpp takes `rope.scaling.finetuned` for a switch: Granite-4's hybrids have no positions at all."""
    assert read(metadata(arch, rope__scaling__finetuned=False), Divisors()) == ()
    assert only(metadata(arch, rope__scaling__finetuned=True)).layers == 4
    assert only(metadata(arch)).layers == 4
    assert only(metadata("llama", rope__scaling__finetuned=False)).layers == 4


def test_only_baichuan_7b_rotates() -> None:
    """llama.cpp tells the two by the number of layers; the other one has ALiBi."""
    assert only(metadata("baichuan", block_count=32)).layers == 32
    assert read(metadata("baichuan", block_count=40), Divisors()) == ()


class TestMeaning:
    """Frequencies and temperature are those that llama.cpp computes from the same file."""

    @pytest.mark.parametrize("arch", ["llama", "qwen2", "mistral3", "deepseek2", "deepseek32"])
    @pytest.mark.parametrize(
        "scaling",
        [
            {},
            {"rope__scaling__type": "none", "rope__scaling__factor": 4.0},
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
            {"rope__scaling__factor": 2.5},
            {"rope__scale_linear": 3.0},
            {"rope__scaling__factor": 0.0},
            {"rope__scaling__attn_factor": 1.3},
            {"rope__scaling__factor": 4.0, "rope__scaling__attn_factor": 0.8},
            yarn(),
            yarn(factor=32.0, original_context_length=128),
            yarn(factor=1.0),
            yarn(factor=0.5),
            yarn(attn_factor=1.2),
            yarn(yarn_beta_fast=4.0, yarn_beta_slow=0.2, yarn_attn_factor=1.5, yarn_ext_factor=0.3),
            yarn(yarn_log_multiplier=0.1),
            yarn(yarn_log_multiplier=0.0707),
            yarn(yarn_log_multiplier=1.0, attn_factor=0.9),
            {"rope__scaling__type": "longrope", "rope__scaling__attn_factor": 1.19},
        ],
        ids=range(18),
    )
    @pytest.mark.parametrize("divided", [False, True])
    def test_against_ggml(self, arch: str, scaling: dict[str, Any], *, divided: bool) -> None:
        """Every scaling type, with and without divisors, equals ggml's arithmetic to 1e-12."""
        data = metadata(arch, rope__dimension_count=32, rope__freq_base=50000.0, **scaling)
        freqs = tuple(1.0 + d for d in range(16)) if divided else ()
        found = frequencies(only(data, Divisors(freqs)).spec)
        inv_freq, multiplier = ggml_rope(data, arch, 32, freqs)
        assert found.inv_freq == pytest.approx(inv_freq, rel=1e-12)
        assert found.attention_factor == pytest.approx(multiplier, rel=1e-12)

    def test_compiled_ggml(self) -> None:
        """The frequencies are those of ggml's compiled kernel (float32), at its golden configuration."""
        data = metadata(rope__dimension_count=64, **yarn(original_context_length=2048))
        found = frequencies(only(data).spec)
        compiled = {0: 1.0, 9: 0.0706631095, 14: 0.0116272109, 20: 0.000973008477, 31: 3.33380251e-05}
        for pair, value in compiled.items():
            assert found.inv_freq[pair] == pytest.approx(value, rel=1e-6)
        assert found.attention_factor == pytest.approx(1.1386294, rel=1e-7)

    def test_longrope_lists(self) -> None:
        """`longrope` switches from short divisors to long ones behind the original length; a factor joins in."""
        short, long = tuple(1.0 + d / 32 for d in range(32)), tuple(2.0 + d for d in range(32))
        scaling = {"type": "longrope", "original_context_length": 1024, "attn_factor": 1.19, "factor": 2.0}
        data = metadata("phi3", **{f"rope__scaling__{key}": value for key, value in scaling.items()})
        spec = only(data, Divisors(short=short, long=long)).spec
        assert spec.length_dependent
        for length, list_ in ((1024, short), (1025, long)):
            inv_freq, multiplier = ggml_rope(data, "phi3", 64, list_)
            found = frequencies(spec, length)
            assert found.inv_freq == pytest.approx(inv_freq, rel=1e-12)
            assert found.attention_factor == pytest.approx(multiplier)

    def test_lists_are_loaded_for_longrope_alone(self) -> None:
        """The two lists have no effect under any other type, and `rope_freqs` comes before them."""
        lists = {"short": (2.0,) * 32, "long": (2.0,) * 32}
        assert only(metadata(), Divisors(**lists)).spec.scaling == Plain()
        both = Divisors(freqs=(3.0,) * 32, **lists)
        assert only(metadata(rope__scaling__type="longrope"), both).spec.scaling == Longrope(
            1.0, (3.0,) * 32, (3.0,) * 32, 1.0, 1.0
        )

    def test_only_the_first_divisors_are_used(self) -> None:
        """A longer tensor is cut to the rotary pairs, as ggml reads it; a shorter one is refused."""
        data = metadata(rope__dimension_count=32)
        assert only(data, Divisors(freqs=tuple(range(1, 33)))).spec.scaling == Longrope(
            1.0, tuple(range(1, 17)), tuple(range(1, 17)), 1.0, 1.0
        )
        with pytest.raises(BadCheckpoint, match="expected 16 numbers") as caught:
            only(data, Divisors(freqs=(1.0,) * 15))
        assert caught.value.where == "rope_freqs.weight"

    def test_divisors_that_llama_cpp_does_not_use(self) -> None:
        """Some architectures load the tensor and ignore it; most refuse the file; a note says which."""
        divisors = Divisors(freqs=(2.0,) * 32)
        assert only(metadata("falcon-h1"), divisors).spec.scaling == Plain()
        said = {arch: notes(metadata(arch), ["rope_freqs.weight"]) for arch in ("llama", "falcon-h1", "qwen2")}
        assert said["llama"] == ()
        assert "does not use it" in said["falcon-h1"][0]
        assert "does not load a model" in said["qwen2"][0]
        assert notes(metadata("qwen2"), []) == ()

    def test_files_that_are_no_models(self) -> None:
        """An adapter's file says so."""
        assert notes(metadata() | {"general.type": "adapter"}, [])[0].endswith("general.type is adapter")

    def test_hunyuan_alpha(self) -> None:
        """Hunyuan-VL's alpha is NTK-aware scaling of the base; other architectures do not read the key."""
        assert only(metadata("hunyuan_vl", rope__scaling__alpha=1000.0)).spec.scaling == Ntk(1000.0)
        assert only(metadata("hunyuan-dense", rope__scaling__alpha=1000.0)).spec.scaling == Plain()

    def test_lengths(self) -> None:
        """The original length defaults to the context; a scaling ends there, where the factor divides it."""
        pairs = {
            (): (4096, 4096),
            (("rope__scaling__factor", 4.0),): (1024, 4096),
            (("rope__scaling__factor", 3.0),): (4096, 12288),
            tuple(yarn().items()): (1024, 4096),
            (("rope__scaling__original_context_length", 1024),): (1024, 4096),
        }
        for scaling, lengths in pairs.items():
            spec = only(metadata(**dict(scaling))).spec
            assert (spec.original_length, spec.max_length) == lengths


class TestGeometry:
    """Widths, layouts, layer types and where each value was found."""

    def test_sources(self) -> None:
        """Each value names its metadata key, its tensor, or the default that it is."""
        data = metadata(rope__dimension_count=64, **yarn(attn_factor=1.1, yarn_beta_fast=4.0))
        sources = only(data).sources
        assert sources["rope_theta"] == "default of llama.cpp"
        assert sources["rotary_dim"] == "llama.rope.dimension_count"
        assert sources["head_dim"] == "llama.embedding_length / llama.attention.head_count"
        assert sources["original_length"] == "llama.rope.scaling.original_context_length"
        assert sources["attention_factor"] == "(0.1·ln(factor) + 1) · llama.rope.scaling.attn_factor"
        assert sources["beta_fast"] == "default of llama.cpp (llama.rope.scaling.yarn_beta_fast is not read)"
        assert sources["layout"] == "default of architecture llama"
        divided = only(metadata(), Divisors(freqs=(2.0,) * 32)).sources
        assert divided["rope_type"] == divided["long_factor"] == "tensor rope_freqs.weight"
        assert only(metadata("newmodel")).sources["layout"] == "assumed: half"

    @pytest.mark.parametrize(
        ("arch", "layout"),
        [("llama", "interleaved"), ("qwen2", "half"), ("gpt-oss", "half"), ("deepseek2", "interleaved"), ("?", "half")],
    )
    def test_layout(self, arch: str, layout: str) -> None:
        """The layout follows from the architecture: the converter permutes Llama's weights, not Qwen's."""
        assert read(metadata(arch), Divisors())[0].spec.layout == layout

    def test_architectures_of_the_package(self) -> None:
        """The tables know every architecture that the gguf package knows, but for those named here, and none twice."""
        tables = (UNROTATED, INTERLEAVED, HALVES)
        known = frozenset().union(*tables)
        assert sum(map(len, tables)) == len(known)
        assert known >= SLIDING.keys() | LOG_MULTIPLIER.keys() | BETAS_READ | FREQS_USED | FREQS_IGNORED
        missing = set(MODEL_ARCH_NAMES.values()) - known
        assert missing <= {"mmproj", "t5gemma"}

    def test_unrotated(self) -> None:
        """An architecture without a rotary embedding gives an empty tuple."""
        assert read(metadata("mamba"), Divisors()) == ()

    def test_widths(self) -> None:
        """key_length beats width over heads; latent attention rotates its own slice; heads may be listed by layer."""
        assert only(metadata(attention__key_length=128)).spec.head_dim == 128
        partial = only(metadata("gptneox", rope__dimension_count=16)).spec
        assert (partial.head_dim, partial.rotary_dim) == (64, 16)
        latent = only(
            metadata("deepseek2", attention__kv_lora_rank=512, attention__key_length=576, rope__dimension_count=64)
        )
        assert (latent.mla, latent.spec.head_dim, latent.spec.rotary_dim) == (True, 64, 64)
        assert only(metadata("lfm2", attention__head_count=[0, 0, 8, 0])).spec.head_dim == 32

    def test_sections(self) -> None:
        """The sections of a multimodal model are kept, without the empty one at the end."""
        data = metadata("qwen2vl", rope__dimension_sections=[16, 24, 24, 0])
        assert only(data).mrope_section == (16, 24, 24)

    def test_sliding_layers_with_a_base_of_their_own(self) -> None:
        """Gemma 3: five of six layers slide, at a base of 10000, and are not scaled."""
        data = metadata(
            "gemma3", block_count=12, rope__freq_base=1e6, rope__scaling__factor=8.0, attention__sliding_window=512
        )
        full, sliding = read(data, Divisors())
        assert (full.name, full.layers, full.sliding_window) == ("full_attention", 2, None)
        assert (sliding.name, sliding.layers, sliding.sliding_window) == ("sliding_attention", 10, 512)
        assert (full.spec.rope_theta, full.spec.scaling) == (1e6, Linear(8.0))
        assert (sliding.spec.rope_theta, sliding.spec.scaling) == (10000.0, Plain())
        (_, sliding) = read(data | {"gemma3.rope.freq_base_swa": 5e5}, Divisors())
        assert (sliding.spec.rope_theta, sliding.sources["rope_theta"]) == (5e5, "gemma3.rope.freq_base_swa")

    def test_listed_sliding_layers(self) -> None:
        """Gemma 4 lists its sliding layers; they have their own width, and the divisors are for the others."""
        data = metadata(
            "gemma4",
            attention__sliding_window=512,
            attention__sliding_window_pattern=[True, True, True, False],
            attention__key_length=512,
            attention__key_length_swa=256,
            rope__dimension_count=512,
            rope__dimension_count_swa=256,
        )
        full, sliding = read(data, Divisors(freqs=(1.0,) * 64 + (1e30,) * 192))
        assert (full.layers, full.spec.head_dim, full.spec.scaling.rope_type) == (1, 512, "longrope")
        assert (sliding.layers, sliding.spec.head_dim, sliding.spec.scaling) == (3, 256, Plain())
        assert frequencies(full.spec).inv_freq[64] < 1e-29

    def test_layers_that_do_not_rotate(self) -> None:
        """Cohere 2 rotates its sliding layers alone, SmolLM 3 three layers of four."""
        (rope,) = read(metadata("cohere2", block_count=8, attention__sliding_window=4096), Divisors())
        assert (rope.name, rope.layers) == ("sliding_attention", 6)
        assert only(metadata("smollm3", block_count=36)).layers == 27

    def test_sliding_layers_that_rotate_alike(self) -> None:
        """gpt-oss scales both kinds of layer, so that they are one."""
        rope = only(metadata("gpt-oss", attention__sliding_window=128, **yarn()))
        assert (rope.name, rope.layers) == ("default", 4)
        assert isinstance(rope.spec.scaling, Yarn)

    def test_half_width_of_step(self) -> None:
        """Step 3.5 rotates half of the dimensions in its full layers and all of them in its sliding ones."""
        data = metadata(
            "step35", attention__sliding_window=512, attention__sliding_window_pattern=[False, True, True, True]
        )
        assert [rope.spec.rotary_dim for rope in read(data, Divisors())] == [32, 64]


@pytest.mark.parametrize(
    ("data", "where", "expected"),
    [
        ({}, "general.architecture", "expected a name, found None"),
        ({"general.architecture": 3}, "general.architecture", "expected a name"),
        (metadata(block_count=None), "llama.block_count", "expected block_count"),
        (metadata(block_count=0), "llama.block_count", "from 1 to 2^48"),
        (metadata(block_count=2**40), "llama.block_count", "at most 4096"),
        (metadata(block_count=[1, 2]), "llama.block_count", "expected a number"),
        (metadata(context_length=None), "llama.context_length", "expected context_length"),
        (metadata(embedding_length=None), "llama.head_dim", "expected head_dim, or"),
        (metadata(attention__head_count=0), "llama.attention.head_count", "from 1 to 2^48"),
        (metadata(rope__dimension_count=7), "llama.rope.dimension_count", "expected an even number"),
        (metadata(rope__dimension_count=128), "llama.rope.dimension_count", "at most head_dim"),
        (metadata(rope__freq_base=0.0), "llama.rope.freq_base", "above 0"),
        (metadata(rope__freq_base=-1.0), "llama.rope.freq_base", "above 0"),
        (metadata(rope__freq_base=math.nan), "llama.rope.freq_base", "expected a number"),
        (metadata(rope__freq_base=math.inf), "llama.rope.freq_base", "expected a number"),
        (metadata(rope__freq_base="10000"), "llama.rope.freq_base", "expected a number"),
        (metadata(rope__freq_base=True), "llama.rope.freq_base", "expected a number"),
        (metadata(rope__scaling__type="su"), "llama.rope.scaling.type", "found 'su'"),
        (metadata(rope__scaling__type=3), "llama.rope.scaling.type", "found 3"),
        (metadata(rope__scaling__factor=-4.0), "llama.rope.scaling.factor", "expected"),
        (metadata(rope__scaling__factor=1e299), "llama.rope.scaling.factor", "extended length"),
        (metadata(rope__scaling__attn_factor=0.0), "llama.rope.scaling.attn_factor", "above 0"),
        (metadata(**yarn(attn_factor=-1.0)), "(0.1·ln(factor) + 1) · llama.rope.scaling.attn_factor", "above 0"),
        (metadata(rope__freq_base=1.0, **yarn()), "llama.rope.freq_base", "base of 1"),
        (
            metadata("gemma4", attention__sliding_window=512),
            "gemma4.attention.sliding_window_pattern",
            "a list with one value a layer",
        ),
        (
            metadata("gemma3", attention__sliding_window=512, attention__sliding_window_pattern=[True]),
            "gemma3.attention.sliding_window_pattern",
            "expected 4 values",
        ),
    ],
    ids=range(26),
)
def test_refused_values(data: dict[str, Any], where: str, expected: str) -> None:
    """A value that is missing, of the wrong kind or out of range is named by its metadata key."""
    with pytest.raises(RopeError) as caught:
        read(data, Divisors())
    assert (caught.value.where, caught.value.exit_status) == (where, 3)
    assert expected in caught.value.problem


values = (
    st.none()
    | st.booleans()
    | st.integers(-1, 300)
    | st.integers()
    | st.floats()
    | st.sampled_from(["none", "linear", "yarn", "longrope", "x"])
    | st.lists(st.integers(-1, 100) | st.booleans() | st.floats(), max_size=5)
)
rope_keys = [
    "block_count", "context_length", "embedding_length", "attention.head_count", "attention.key_length",
    "attention.key_length_swa", "attention.kv_lora_rank", "attention.sliding_window",
    "attention.sliding_window_pattern", "rope.dimension_count", "rope.dimension_sections", "rope.freq_base",
    "rope.freq_base_swa", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor",
    "rope.scaling.original_context_length", "rope.scaling.alpha", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([*SLIDING, "llama", "grok", "hunyuan_vl", "deepseek2", "mistral3", "smollm3"]),
    st.dictionaries(st.sampled_from(rope_keys), values, max_size=6),
    st.lists(st.floats() | st.floats(0.5, 8), min_size=30, max_size=34) | st.just([]),
)
def test_any_metadata(arch: str, changes: dict[str, Any], freqs: list[float]) -> None:
    """Whatever the metadata holds, the result is a list of embeddings or an error with a place and exit status 3."""
    keys = SIZES | {"rope.dimension_count": 64} | changes
    data = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in keys.items()}
    result = outcome(lambda: read(data, Divisors(tuple(freqs))))
    if isinstance(result, RopeError):
        assert result.where
        assert result.exit_status == 3
    else:
        assert all(rope.layers >= 1 and rope.spec.pairs >= 1 for rope in result)


def test_a_model_with_fewer_layers_than_its_period_has_no_full_ones() -> None:
    """Every sixth layer of Gemma sees all: in a model of four none does, and none is listed."""
    keys = SIZES | {"rope.dimension_count": 64, "attention.key_length_swa": 66, "attention.sliding_window": 4}
    data = {"general.architecture": "gemma-embedding"} | {f"gemma-embedding.{k}": v for k, v in keys.items()}
    assert [(rope.name, rope.layers) for rope in read(data, Divisors())] == [("sliding_attention", 4)]


class TestHeader:
    """The header is read as the gguf package writes and reads it."""

    def test_tables_are_those_of_the_package(self) -> None:
        """Tensor types with their sizes, and value types, are those of the gguf package."""
        types = {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()}
        assert {key: TENSOR_TYPES.get(key) for key in types} == types
        assert SCALAR_CODES.keys() | {8, 9} == {int(kind) for kind in GGUFValueType}

    @pytest.mark.parametrize("endian", [GGUFEndian.LITTLE, GGUFEndian.BIG])
    def test_against_the_reader(self, tmp_path: Path, endian: GGUFEndian) -> None:
        """Every key and tensor is found where the package's own reader finds it; long lists are left out."""
        data = metadata(
            x__string="grüße",
            x__bool=True,
            x__float=0.1,
            x__list=[1, 2, 3],
            x__words=["a", "", "ü"],
            x__negative=[-1, 2],
        ) | {"tokenizer.tokens": [f"t{n}" for n in range(5000)], "tokenizer.scores": [float(n) for n in range(2000)]}
        factors = np.linspace(1, 8, 32, dtype=np.float32)
        tensors = {
            "rope_freqs.weight": factors.copy(),  # gguf 0.17 swaps the bytes of what it is given
            "a": np.zeros((3, 5), np.float16),
            "b": np.arange(7, dtype=np.int32),
        }
        path = write(tmp_path / "m.gguf", data, tensors, endian)
        header = read_gguf(path)
        reader = gguf.GGUFReader(path)
        contents = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert header.skipped == {"tokenizer.tokens": 5000, "tokenizer.scores": 2000}
        assert header.metadata == {key: value for key, value in contents.items() if key not in header.skipped}
        assert {
            t.name: (t.type_id, t.shape, t.begin, t.end) for t in header.tensors.values()
        } == {
            t.name: (int(t.tensor_type), tuple(t.shape.tolist()), t.data_offset, t.data_offset + t.n_bytes)
            for t in reader.tensors
        }  # fmt: skip
        assert verify_gguf(path) == ()
        found = read_checkpoint(str(path)).ropes[0].spec.scaling
        assert isinstance(found, Longrope)
        assert found.long_factor == tuple(factors.tolist())

    def test_list_at_the_limit_is_kept(self, tmp_path: Path) -> None:
        """Lists are kept up to the limit and left out beyond it."""
        lists = {"llama.kept": [1] * MAX_KEPT_ITEMS, "llama.left": [1] * (MAX_KEPT_ITEMS + 1)}
        header = read_gguf(write(tmp_path / "m.gguf", metadata() | lists))
        assert "llama.kept" in header.metadata
        assert header.skipped == {"llama.left": MAX_KEPT_ITEMS + 1}

    def test_vocabulary_larger_than_the_buffer(self, tmp_path: Path) -> None:
        """Strings that lie across the reader's buffers are stepped over right."""
        words = [("x" * (n % 97)) for n in range(60_000)]
        path = write(tmp_path / "m.gguf", metadata() | {"tokenizer.tokens": words, "z.after": 7})
        assert read_gguf(path).metadata["z.after"] == 7

    def test_alignment(self, tmp_path: Path) -> None:
        """A file's own alignment moves its tensors."""
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
        writer.add_custom_alignment(1024)
        writer.add_tensor("a", np.ones(3, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        tensor = read_gguf(tmp_path / "m.gguf").tensors["a"]
        assert tensor.begin == gguf.GGUFReader(tmp_path / "m.gguf").tensors[0].data_offset
        assert tensor.begin % 1024 == 0


def split(folder: Path) -> list[Path]:
    """A model in two parts, the divisors in the second."""
    first = metadata() | {"split.no": 0, "split.count": 2}
    write(folder / "m-00001-of-00002.gguf", first, {"a": np.zeros(2, np.float32)})
    second = {"general.architecture": "llama", "split.no": 1, "split.count": 2}
    freqs = {"rope_freqs.weight": np.full(32, 2, np.float32)}
    write(folder / "m-00002-of-00002.gguf", second, freqs)
    return [folder / f"m-0000{n}-of-00002.gguf" for n in (1, 2)]


class TestSplit:
    """A model in several files is one model."""

    def test_tensors_of_all_parts_count(self, tmp_path: Path) -> None:
        """The first part's metadata and the second part's tensors make one embedding, by folder or by file."""
        paths = split(tmp_path)
        assert parts(read_gguf(paths[0])) == tuple(paths)
        for source in (tmp_path, paths[0]):
            assert read_checkpoint(str(source)).ropes[0].spec.scaling.rope_type == "longrope"
        assert verify_gguf(paths[0]) == ()

    def test_missing_part(self, tmp_path: Path) -> None:
        """A missing part is noted, and is a problem for whoever verifies."""
        first, second = split(tmp_path)
        second.unlink()
        assert read_checkpoint(str(first)).notes == ("1 part of this split model cannot be found",)
        assert [problem.where for problem in verify_gguf(first)] == [str(second)]

    def test_later_part_alone(self, tmp_path: Path) -> None:
        """A later part does not say what the model is; the error says where that stands."""
        _, second = split(tmp_path)
        with pytest.raises(RopeError, match="block_count"):
            read_checkpoint(str(second))

    def test_tensor_in_both_parts(self, tmp_path: Path) -> None:
        """A tensor that two parts have is a problem."""
        first, second = split(tmp_path)
        write(second, {"general.architecture": "llama", "split.count": 2}, {"a": np.zeros(2, np.float32)})
        assert [problem.problem for problem in verify_gguf(first)] == [f"the tensor is also in {first.name}"]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: Sequence[int] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(pairs: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: bytes = b"", **head: int) -> bytes:
    counts = (head.get("version", 3), head.get("tensor_count", len(tensors)), head.get("pair_count", len(pairs)))
    blob = b"GGUF" + struct.pack("<IQQ", *counts) + b"".join(pairs) + b"".join(tensors)
    return blob + b"\0" * (-len(blob) % 32) + data


ALIGNMENT = "general.alignment"


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (b"", "starts with b''"),
        (b"GGU", "starts with b''"),
        (b"GGML" + b"\0" * 40, "starts with b'GGML'"),
        (b"GGUF", "expected 4 more bytes at offset 4"),
        (file(version=1), "found 1"),
        (file(version=4), "found 4"),
        (file(pair_count=2**63), f"promises {2**63} pairs"),
        (file(tensor_count=2**62), f"promises {2**62} tensors"),
        (file(pair_count=3), "promises 3 pairs"),
        (file([pair("a", 4, b"1234")])[:37], "more bytes at offset"),
        (file([struct.pack("<Q", 2**60)]), "more bytes at offset 32"),
        (file([pair("a", 8, struct.pack("<Q", 2**64 - 1))]), "more bytes"),
        (file([pair("a", 13, b"1234")]), "value type from 0 to 12, found 13"),
        (file([pair("a", 9, struct.pack("<IQ", 9, 1))]), "found item type 9"),
        (file([pair("a", 9, struct.pack("<IQ", 77, 1))]), "found item type 77"),
        (file([pair("a", 9, struct.pack("<IQ", 8, 2**61))]), "promises"),
        (file([pair("a", 9, struct.pack("<IQ", 4, 2**61))]), "more bytes"),
        (file([pair("a", 9, struct.pack("<IQ", 4, 1000))]), "more bytes"),
        (file([pair("a", 0, b"1"), pair("a", 0, b"1")]), "appears twice"),
        (file([pair(ALIGNMENT, 4, struct.pack("<I", 3))]), "power of two, found 3"),
        (file([pair(ALIGNMENT, 4, struct.pack("<I", 0))]), "power of two, found 0"),
        (file([pair(ALIGNMENT, 4, struct.pack("<I", 2**31))]), "power of two"),
        (file([pair(ALIGNMENT, 8, text("32"))]), "power of two, found '32'"),
        (file([], [tensor("a", (1, 2, 3, 4, 5))]), "at most 4 dimensions, found 5"),
        (file([], [text("a") + struct.pack("<I", 2**32 - 1)]), "at most 4 dimensions"),
        (file([], [tensor("a", (2**32, 2**32))]), "fewer than 2^63"),
        (file([], [tensor("a", offset=8)]), "divisible by 32, found 8"),
        (file([], [tensor("a", (33,), kind=2)]), "rows in blocks of 32 for Q4_0"),
        (file([], [tensor("a"), tensor("a", offset=32)]), "the tensor appears twice"),
    ],
    ids=range(29),
)
def test_broken_header(tmp_path: Path, blob: bytes, expected: str) -> None:
    """Each way to break a header is refused in one line that names the file, in both doors."""
    path = tmp_path / "m.gguf"
    path.write_bytes(blob)
    with pytest.raises(BadCheckpoint) as caught:
        read_checkpoint(str(path))
    assert expected in caught.value.problem
    assert caught.value.where.startswith(str(path))
    assert len(caught.value.problem) < 200
    assert expected in verify_gguf(path)[0].problem


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (file([], [tensor("a")], b"1234"), "ends at byte 80, the file has 68"),
        (file([], [tensor("a", offset=2**40)]), "the file has 64"),
        (file([], [tensor("a"), tensor("b")], b"\0" * 64), "begins at byte 96, expected 128"),
        (file([], [tensor("a", kind=99)], b"\0" * 64), "type 99 is not known"),
    ],
    ids=range(4),
)
def test_broken_layout(tmp_path: Path, blob: bytes, expected: str) -> None:
    """Tensors outside the file, or over each other, are listed as problems."""
    path = tmp_path / "m.gguf"
    path.write_bytes(blob)
    assert any(expected in problem.problem for problem in verify_gguf(path)), verify_gguf(path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [(np.zeros(32, np.float32), "above 0"), (np.ones(3, np.float32), "expected 32"), (np.ones(32, np.float16), "F32")],
    ids=["zeros", "short", "float16"],
)
def test_broken_divisors(tmp_path: Path, values: np.ndarray[Any, Any], expected: str) -> None:
    """Divisors that cannot be used are refused with the file and the tensor."""
    path = write(tmp_path / "m.gguf", metadata(), {"rope_freqs.weight": values})
    with pytest.raises(RopeError, match=expected) as caught:
        read_checkpoint(str(path))
    assert "rope_freqs.weight" in caught.value.where


def test_divisors_cut_off(tmp_path: Path) -> None:
    """Divisors that lie behind the end of the file are refused."""
    path = write(tmp_path / "m.gguf", metadata(), {"rope_freqs.weight": np.ones(32, np.float32)})
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(BadCheckpoint, match="expected 128 bytes"):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    "blob",
    [
        file([pair(f"k{n}", 9, struct.pack("<IQ", 8, 2**23)) for n in range(64)]),
        file([pair("a", 9, struct.pack("<IQ", 4, 2**38)), pair("b", 8, struct.pack("<Q", 2**38))]),
        file(tensor_count=2**17),
        file(pair_count=2**16),
    ],
    ids=["many empty strings", "huge list and huge string", "many tensors", "many pairs"],
)
def test_sparse_files_are_cheap(tmp_path: Path, blob: bytes) -> None:
    """A sparse terabyte of zeros behind a hostile header ends in an error, not in a long wait or a full memory."""
    path = tmp_path / "m.gguf"
    path.write_bytes(blob)
    with path.open("r+b") as handle:
        handle.truncate(2**40)
    with pytest.raises(BadCheckpoint):
        read_gguf(path)


WHOLE: list[Callable[[], bytes]] = [
    lambda: file([pair("general.architecture", 8, text("llama")), pair("x", 9, struct.pack("<IQ2I", 4, 2, 1, 2))]),
    lambda: file([pair(f"llama.{key}", 4, struct.pack("<I", value)) for key, value in SIZES.items()]),
    lambda: file([], [tensor("a"), tensor("rope_freqs.weight", offset=32)], b"\0" * 64),
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(WHOLE), st.data())
def test_damaged_bytes(
    tmp_path_factory: pytest.TempPathFactory, make: Callable[[], bytes], data: st.DataObject
) -> None:
    """Whatever happens to the bytes, one of our errors comes out, or a checkpoint."""
    blob = bytearray(make())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(blob) - 1))
        if data.draw(st.integers(0, 9)):
            blob[place] = data.draw(st.sampled_from([0, 1, 8, 9, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
        else:
            del blob[place:]
            blob += b"\0"
    path = tmp_path_factory.mktemp("g") / "m.gguf"
    path.write_bytes(bytes(blob))
    verify_gguf(path)
    result = outcome(lambda: read_checkpoint(str(path)))
    if isinstance(result, RopeError):
        assert result.exit_status == 3
        assert "\n" not in result.message


def test_a_linear_scaling_ends_at_the_length_that_llama_cpp_serves() -> None:
    """context_length is never multiplied: where no original length is stated, the factor divides it."""
    scaled = {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}
    spec = only(metadata(**scaled)).spec
    assert (spec.original_length, spec.max_length) == (1024, 4096)
    spec = only(metadata(**scaled, rope__scaling__original_context_length=2048)).spec
    assert (spec.original_length, spec.max_length) == (2048, 4096)
    spec = only(metadata(**scaled, context_length=4095)).spec
    assert (spec.original_length, spec.max_length) == (4095, 16380)
