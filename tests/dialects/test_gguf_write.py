"""What a GGUF must say: llama.cpp's arithmetic, written after its source, gives the intent; the rest is refused."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropecli.dialects.gguf import Divisors, read
from ropecli.dialects.gguf_archs import BETAS_READ, FREQS_USED, HALVES, INTERLEAVED, SLIDING
from ropecli.dialects.gguf_write import (
    FREQS,
    FREQS_REQUIRED,
    HEAD_WIDE,
    LISTS,
    SOFTMAX_SCALED,
    UNSURE,
    GgufChanges,
    NotCarried,
    changes,
)
from ropecli.errors import BadUsage
from ropecli.frequencies import frequencies, snapped_betas
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

L, PAIRS, THETA = 4096, 32, 50000.0
SIZES = {"block_count": 4, "context_length": L, "embedding_length": 256, "attention.head_count": 4}
SLOW = tuple(1.0 + d / 8 for d in range(PAIRS))
CORNERS = snapped_betas(RopeSpec(THETA, 64, 64, L, L), 6, 14)
"""β and α of a ramp from pair 6 to pair 14; llama.cpp's own runs from 8 to 20."""


def metadata(arch: str = "llama", **values: Any) -> dict[str, Any]:
    """Metadata of a small model; "__" in a name stands for a dot, None takes a key away."""
    keys = SIZES | {"rope.freq_base": THETA} | {name.replace("__", "."): value for name, value in values.items()}
    return {"general.architecture": arch} | {f"{arch}.{key}": v for key, v in keys.items() if v is not None}


def asked(scaling: Scaling, **geometry: Any) -> RopeSpec:
    """The small model's embedding with another scaling."""
    length = geometry.pop("length", round(L * scaling.factor))
    return RopeSpec(**{"rope_theta": THETA, "head_dim": 64, "rotary_dim": 64, "original_length": L} | geometry,
                    max_length=length, scaling=scaling)  # fmt: skip


def changed(data: Mapping[str, Any], intent: RopeSpec | Mapping[str, RopeSpec], **old: Sequence[float]) -> GgufChanges:
    """What `changes` makes of one embedding for all layers, or of one for each kind."""
    ropes = read(data, Divisors(**{name: tuple(values) for name, values in old.items()}))
    specs = intent if isinstance(intent, Mapping) else {ropes[0].name: intent}
    return changes(data, ropes, specs)


def after(data: Mapping[str, Any], change: GgufChanges) -> dict[str, Any]:
    """The metadata of the changed file."""
    merged = dict(data) | dict(change.settings)
    return {key: value for key, value in merged.items() if value is not None}


def llama_cpp(
    data: Mapping[str, Any], tensors: Mapping[str, Sequence[float]], n_ctx: int, *, sliding: bool = False
) -> tuple[list[float], float]:
    """inv_freq and multiplier of a layer as llama.cpp computes them, after its source and not after ours.

    `load_hparams`, the constructor of `llama_context`, `get_rope_factors`, `ggml_rope_yarn_corr_dims`, `rope_yarn`.
    """
    arch = data["general.architecture"]

    def get(key: str, default: Any) -> Any:
        return data.get(f"{arch}.{key}", default)

    n_rot = get("rope.dimension_count", 64)
    freq_base = get("rope.freq_base", 10000.0)
    kind = get("rope.scaling.type", "linear")
    freq_scale = 1.0 / (get("rope.scaling.factor", 0.0) or 1.0)
    n_ctx_orig = get("rope.scaling.original_context_length", get("context_length", 0))
    beta_fast, beta_slow = 32.0, 1.0
    if arch in {"grok", "mistral3"}:
        beta_fast = get("rope.scaling.yarn_beta_fast", beta_fast)
        beta_slow = get("rope.scaling.yarn_beta_slow", beta_slow)
    ext_factor = 1.0 if kind == "yarn" else 0.0
    attn_factor = 1.0
    if ext_factor:
        factor = 1 / freq_scale
        attn_factor = (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0) / (1.0 + 0.1 * math.log(factor))
    attn_factor *= get("rope.scaling.attn_factor", 1.0)
    lists = kind == "longrope" or arch in {"phi3", "phimoe", "minicpm3"}
    long_or_short = "rope_factors_long.weight" if n_ctx > n_ctx_orig else "rope_factors_short.weight"
    factors = tensors.get("rope_freqs.weight", tensors.get(long_or_short) if lists else None)
    if sliding:
        freq_base, freq_scale, factors = get("rope.freq_base_swa", 10000.0), 1.0, None

    def corner(turns: float) -> float:
        return float(n_rot * math.log(n_ctx_orig / (turns * 2 * math.pi)) / (2 * math.log(freq_base)))

    low = max(0.0, math.floor(corner(beta_fast)))
    high = min(n_rot - 1.0, math.ceil(corner(beta_slow)))
    inv_freq = []
    for pair in range(n_rot // 2):
        extrap = freq_base ** (-2 * pair / n_rot) / (factors[pair] if factors else 1.0)
        mix = (1 - min(1.0, max(0.0, (pair - low) / max(0.001, high - low)))) * ext_factor
        inv_freq.append(freq_scale * extrap * (1 - mix) + extrap * mix)
    return inv_freq, attn_factor * (1.0 + 0.1 * math.log(1 / freq_scale) if ext_factor else 1.0)


def assert_computed(data: Mapping[str, Any], change: GgufChanges, spec: RopeSpec, **where: Any) -> None:
    """llama.cpp computes `spec` from the changed file, in a context of the original length and in a longer one."""
    for n_ctx in (spec.original_length, spec.original_length + 1):
        inv_freq, multiplier = llama_cpp(after(data, change), change.tensors, n_ctx, **where)
        wanted = frequencies(spec, n_ctx)
        assert inv_freq == pytest.approx(wanted.inv_freq, rel=5e-5)
        assert multiplier == pytest.approx(wanted.attention_factor, rel=1e-6)


KEYS_ALONE: dict[str, Scaling] = {
    "none": Plain(),
    "linear": Linear(4.0),
    "ntk": Ntk(4.0),
    "yarn": Yarn.default(4.0),
    "yarn with a temperature": Yarn(4.0, 1.25),
    "yarn below one": Yarn(4.0, 0.9),
    "yarn, snapped": Yarn(4.0, 1.2, *snapped_betas(RopeSpec(THETA, 64, 64, L, L), 8, 20), truncate=False),
}
DIVIDED: dict[str, Scaling] = {
    "yarn, other corners": Yarn(4.0, 1.25, *CORNERS),
    "yarn, not rounded": Yarn(4.0, 1.1, truncate=False),
    "yarn, a ramp without width": Yarn(4.0, 1.1, 4.0, 4.0, truncate=False),
    "llama3": Llama3(8.0, 1.0, 4.0),
    "ntk-by-parts": NtkByParts(4.0, 32.0, 1.0, 1.1),
    "longrope, one list": Longrope(4.0, SLOW, SLOW, 1.19, 1.19),
}
TWO_LISTS = Longrope(4.0, SLOW, tuple(2 * f for f in SLOW), 1.19, 1.19)


class TestCarriers:
    """Which keys and tensors carry which scaling."""

    @pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "phi3", "mistral3", "grok", "gptneox", "minicpm"])
    @pytest.mark.parametrize("scaling", KEYS_ALONE.values(), ids=KEYS_ALONE)
    def test_keys_alone(self, arch: str, scaling: Scaling) -> None:
        """What llama.cpp's own types compute needs no tensor, on any architecture."""
        data = metadata(arch)
        change = changed(data, asked(scaling))
        assert change.tensors == {}
        assert_computed(data, change, asked(scaling))

    @pytest.mark.parametrize("arch", sorted(FREQS - FREQS_REQUIRED - set(SLIDING)))
    @pytest.mark.parametrize("scaling", DIVIDED.values(), ids=DIVIDED)
    def test_divisors(self, arch: str, scaling: Scaling) -> None:
        """Any other frequencies are one tensor, with no scaling type beside it, where the architecture loads it."""
        data = metadata(arch)
        change = changed(data, asked(scaling))
        if arch in BETAS_READ and not change.tensors:
            assert scaling == DIVIDED["yarn, other corners"]
        else:
            assert list(change.tensors) == ["rope_freqs.weight"]
            assert not {f"{arch}.rope.scaling.type", f"{arch}.rope.scaling.factor"} & set(after(data, change))
        assert_computed(data, change, asked(scaling))

    @pytest.mark.parametrize("arch", sorted(LISTS - set(SLIDING)))
    def test_two_lists(self, arch: str) -> None:
        """Lists that differ are two tensors under the type longrope, and a note says when llama.cpp switches."""
        data = metadata(arch)
        change = changed(data, asked(TWO_LISTS))
        assert set(change.tensors) == {"rope_factors_long.weight", "rope_factors_short.weight"}
        assert change.settings[f"{arch}.rope.scaling.type"] == "longrope"
        assert any(f"above {L}" in note for note in change.notes)
        assert_computed(data, change, asked(TWO_LISTS))

    @pytest.mark.parametrize("scaling", [*DIVIDED.values(), TWO_LISTS])
    def test_lists_carry_all_where_there_is_no_single_one(self, scaling: Scaling) -> None:
        """Phi-3 loads two lists and no single one: any frequencies travel in both."""
        data = metadata("phi3")
        change = changed(data, asked(scaling))
        assert set(change.tensors) == {"rope_factors_long.weight", "rope_factors_short.weight"}
        assert_computed(data, change, asked(scaling))

    @pytest.mark.parametrize("scaling", DIVIDED.values(), ids=DIVIDED)
    @pytest.mark.parametrize(
        "arch", ["qwen2", "qwen3", "gemma", "falcon-h1", "cogvlm", "eagle3", "exaone-moe", "mamba9"]
    )
    def test_no_divisors(self, arch: str, scaling: Scaling) -> None:
        """An architecture that loads no divisors, or ignores them, is refused for what needs them."""
        with pytest.raises(NotCarried, match=f"architecture {arch} cannot carry") as caught:
            changed(metadata(arch), asked(scaling))
        assert caught.value.exit_status == 2
        assert caught.value.where == f"{arch}.rope.scaling.type"

    def test_two_lists_where_one_is_loaded(self) -> None:
        """Arcee loads one list; two that differ are refused, and the error says which."""
        with pytest.raises(NotCarried, match="one list of divisors"):
            changed(metadata("arcee"), asked(TWO_LISTS))

    def test_corners_in_the_error(self) -> None:
        """The refusal of a ramp names the corners that are asked for and those that llama.cpp has."""
        with pytest.raises(NotCarried, match="corners 8 and 20, not 6 and 14"):
            changed(metadata("qwen2"), asked(Yarn(4.0, 1.25, *CORNERS)))

    @pytest.mark.parametrize("arch", sorted(BETAS_READ))
    def test_betas_in_the_file(self, arch: str) -> None:
        """Where llama.cpp reads the betas, other corners need no tensor."""
        data = metadata(arch)
        change = changed(data, asked(Yarn(4.0, 1.25, *CORNERS)))
        assert change.tensors == {}
        assert_computed(data, change, asked(Yarn(4.0, 1.25, *CORNERS)))

    @given(
        theta=st.floats(1e3, 1e7),
        original=st.integers(256, 131072),
        factor=st.floats(1.01, 64),
        fast=st.floats(2, 500),
        ratio=st.floats(1.5, 100),
        attention_factor=st.floats(0.5, 2),
        truncate=st.booleans(),
        pairs=st.integers(2, 64),
    )
    @settings(max_examples=150, deadline=None)
    def test_any_yarn(
        self,
        theta: float,
        original: int,
        factor: float,
        fast: float,
        ratio: float,
        attention_factor: float,
        pairs: int,
        *,
        truncate: bool,
    ) -> None:
        """Whatever ramp and temperature are asked for, llama.cpp computes them from a Llama's file."""
        yarn = Yarn(factor, attention_factor, fast, fast / ratio, truncate)
        geometry = {"head_dim": 2 * pairs, "rotary_dim": 2 * pairs, "rope_theta": theta, "original_length": original}
        spec = asked(yarn, length=round(factor * original), **geometry)
        widths: dict[str, Any] = {"attention__key_length": 2 * pairs, "rope__dimension_count": 2 * pairs}
        data = metadata(context_length=original, rope__freq_base=theta, **widths)
        assert_computed(data, changed(data, spec), spec)


class TestMetadata:
    """What else the file says."""

    def test_only_what_differs(self) -> None:
        """Default YaRN on a plain file is three keys and the context; a default factor needs no key of its own."""
        assert changed(metadata(), asked(Yarn.default(4.0))).settings == {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": L,
            "llama.context_length": 4 * L,
        }

    def test_nothing(self) -> None:
        """A plain file that is to be plain is not changed."""
        change = changed(metadata(), asked(Plain()))
        assert (change.settings, change.tensors, change.notes) == ({}, {}, ())

    def test_attention_factor_is_a_multiple_of_the_default(self) -> None:
        """YaRN's temperature is written over the default, every other type's as it is."""
        ratio = changed(metadata(), asked(Yarn(4.0, 1.5))).settings["llama.rope.scaling.attn_factor"]
        assert ratio == pytest.approx(1.5 / default_attention_factor(4.0), rel=1e-7)
        whole = changed(metadata(), asked(NtkByParts(4.0, attention_factor=1.5))).settings
        assert whole["llama.rope.scaling.attn_factor"] == 1.5

    def test_numbers_are_float32(self) -> None:
        """Numbers are rounded as the file will round them, so that a plan shows what is written."""
        base = changed(metadata(), asked(Ntk(3.0))).settings["llama.rope.freq_base"]
        assert base == float(np.float32(THETA * 3 ** (64 / 62)))

    @pytest.mark.parametrize(
        "old",
        [
            {"type": "yarn", "factor": 2.0, "original_context_length": L // 2, "yarn_beta_fast": 16.0},
            {"type": "linear", "factor": 2.0, "attn_factor": 1.4},
            {"type": "longrope", "factor": 2.0, "attn_factor": 1.4, "yarn_attn_factor": 3.0, "yarn_ext_factor": 0.0},
            {"type": "yarn", "factor": 2.0, "yarn_log_multiplier": 0.7, "alpha": 3.0},
        ],
    )
    @pytest.mark.parametrize("scaling", [Plain(), Linear(4.0), Yarn.default(4.0), Llama3(4.0, 1.0, 4.0)])
    @pytest.mark.parametrize("tensors", [{}, {"freqs": SLOW}, {"long": SLOW, "short": SLOW}])
    def test_old_scaling_is_replaced(
        self, old: dict[str, Any], scaling: Scaling, tensors: dict[str, tuple[float, ...]]
    ) -> None:
        """A scaling that the file has, in keys or tensors, leaves nothing behind that would come on top."""
        data = metadata("mistral3", **{f"rope__scaling__{key}": value for key, value in old.items()})
        change = changed(data, asked(scaling), **tensors)
        assert_computed(data, change, asked(scaling))
        left = {key for key in after(data, change) if key.startswith("mistral3.rope.scaling.yarn_")}
        assert not left & {f"mistral3.rope.scaling.yarn_{name}" for name in ("attn_factor", "log_multiplier")}

    def test_old_factor_key(self) -> None:
        """The older name of the factor goes, too."""
        data = metadata(rope__scale_linear=2.0)
        assert changed(data, asked(Yarn.default(4.0))).settings["llama.rope.scale_linear"] is None

    def test_switch_of_the_rotation(self) -> None:
        """`finetuned` stays: for Granite it says whether the model rotates at all."""
        data = metadata("granite", rope__scaling__finetuned=True)
        assert "granite.rope.scaling.finetuned" not in changed(data, asked(Llama3(4.0, 1.0, 4.0))).settings

    def test_default_base(self) -> None:
        """A file without a base keeps llama.cpp's default unwritten, and gets one where it changes."""
        data = metadata(rope__freq_base=None)
        plain = changed(data, asked(Linear(4.0), rope_theta=10000.0))
        assert "llama.rope.freq_base" not in plain.settings
        assert "llama.rope.freq_base" in changed(data, asked(Ntk(4.0), rope_theta=10000.0)).settings

    def test_original_length_of_the_command_line(self) -> None:
        """An original length other than the file's context is written and used."""
        spec = asked(Yarn.default(4.0), original_length=1024, length=4096)
        change = changed(metadata(), spec)
        assert change.settings["llama.rope.scaling.original_context_length"] == 1024
        assert_computed(metadata(), change, spec)


class TestLayers:
    """Layers that see a window keep what they have."""

    GEMMA: Mapping[str, Any] = {
        "attention__sliding_window": 512, "attention__sliding_window_pattern": [True, True, True, False],
    }  # fmt: skip

    def gemma(self, arch: str = "gemma3", **values: Any) -> dict[str, Any]:
        return metadata(arch, **self.GEMMA, **values)

    def test_full_layers_alone(self) -> None:
        """Gemma 3: default YaRN reaches the full layers; the sliding ones keep their base of 10000."""
        spec = asked(Yarn.default(4.0))
        change = changed(self.gemma(), {"full_attention": spec})
        assert_computed(self.gemma(), change, spec)
        plain = asked(Plain(), rope_theta=10000.0)
        assert_computed(self.gemma(), change, plain, sliding=True)
        assert change.intent["sliding_attention"].rope_theta == 10000.0

    def test_temperature_would_reach_all_layers(self) -> None:
        """llama.cpp has one temperature; one that the sliding layers must not get is refused."""
        with pytest.raises(BadUsage, match="would change these layers") as caught:
            changed(self.gemma(), {"full_attention": asked(Yarn(4.0, 1.3))})
        assert caught.value.where == "sliding_attention"

    def test_sliding_layers_cannot_be_scaled(self) -> None:
        """Gemma 3's sliding layers know no factor."""
        data = self.gemma()
        both = {rope.name: asked(Linear(4.0), rope_theta=rope.spec.rope_theta) for rope in read(data, Divisors())}
        with pytest.raises(BadUsage, match="cannot scale") as caught:
            changed(data, both)
        assert "--layers full" in caught.value.hint

    def test_sliding_base(self) -> None:
        """The sliding layers' base is their own: changed where asked, kept where the full layers' changes."""
        data = self.gemma()
        change = changed(data, {"sliding_attention": asked(Ntk(2.0), rope_theta=10000.0)})
        assert change.settings["gemma3.rope.freq_base_swa"] == pytest.approx(10000 * 2 ** (64 / 62), rel=1e-6)
        assert "gemma3.rope.freq_base" not in change.settings
        shared = self.gemma("gpt-oss", rope__freq_base_swa=20000.0)
        kept = changed(shared, {"full_attention": asked(Ntk(2.0))})
        assert kept.intent["sliding_attention"].rope_theta == 20000.0
        assert "gpt-oss.rope.freq_base_swa" not in kept.settings

    def test_layers_that_rotate_alike(self) -> None:
        """gpt-oss scales both kinds of layers, which stay one kind."""
        spec = asked(Yarn(4.0, 1.2))
        change = changed(self.gemma("gpt-oss"), spec)
        assert change.intent == {"default": spec}

    def test_only_the_sliding_layers_rotate(self) -> None:
        """Cohere 2 and Llama 4 rotate the layers that see a window, by the base of the file."""
        spec = asked(Ntk(4.0))
        for arch in ("cohere2", "llama4"):
            change = changed(metadata(arch, attention__sliding_window=512), {"sliding_attention": spec})
            assert_computed(metadata(arch), change, spec)

    def test_required_divisors(self) -> None:
        """Gemma 4 does not load without divisors, and pairs that stand still are not turned."""
        still = (1.0,) * 16 + (9e29,) * 16
        data = self.gemma("gemma4")
        with pytest.raises(BadUsage, match="16 pairs of this model stand still"):
            changed(data, {"full_attention": asked(Yarn.default(4.0))}, freqs=still)
        slower = tuple(4.0 if value == 1 else value for value in still)
        change = changed(data, {"full_attention": asked(Longrope(4.0, slower, slower, 1.0, 1.0))}, freqs=still)
        assert change.tensors["rope_freqs.weight"] == pytest.approx(slower)
        plain = changed(data, {"full_attention": asked(Plain())})
        assert plain.tensors["rope_freqs.weight"] == (1.0,) * 32

    def test_shared_tensor_of_two_widths(self) -> None:
        """Step 3.5 shares one tensor among layers that rotate 32 and 64 dimensions; the rest of it is ones."""
        data = self.gemma("step35", rope__dimension_count=64)
        spec = asked(Llama3(4.0, 1.0, 4.0), rotary_dim=32)
        change = changed(data, {"full_attention": spec})
        values = change.tensors["rope_freqs.weight"]
        assert len(values) == 32
        assert values[16:] == (1.0,) * 16
        assert max(values[:16]) == pytest.approx(4.0)

    def test_divisors_as_wide_as_the_head(self) -> None:
        """Phi-MoE's loader expects a divisor for each pair of the whole head, also where half of it rotates."""
        data = metadata("phimoe", rope__dimension_count=32)
        change = changed(data, asked(Llama3(4.0, 1.0, 4.0), rotary_dim=32))
        assert {name: len(values) for name, values in change.tensors.items()} == {
            "rope_factors_long.weight": 32,
            "rope_factors_short.weight": 32,
        }


class TestRefused:
    """What no GGUF can say, or an architecture would get wrong."""

    @pytest.mark.parametrize(
        ("scaling", "expected"),
        [
            (Dynamic(4.0), "no dynamic"),
            (Proportional(1.0, 0.5), "no proportional"),
            (Longrope(4.0, SLOW, SLOW, 1.2, 1.0), "one attention factor"),
        ],
    )
    def test_kinds(self, scaling: Scaling, expected: str) -> None:
        """Kinds without a GGUF spelling are refused, with the layers as the place."""
        with pytest.raises(BadUsage, match=expected) as caught:
            changed(metadata(), asked(scaling))
        assert caught.value.where == "default"

    @pytest.mark.parametrize("arch", sorted(SOFTMAX_SCALED))
    def test_latent_attention(self, arch: str) -> None:
        """DeepSeek's graphs scale the softmax by factor and temperature as well: the base alone can be changed."""
        data = metadata(arch, attention__kv_lora_rank=512, rope__dimension_count=64)
        with pytest.raises(BadUsage, match="would mean something else"):
            changed(data, asked(Yarn.default(4.0)))
        assert_computed(data, changed(data, asked(Ntk(4.0))), asked(Ntk(4.0)))

    @pytest.mark.parametrize("arch", sorted(UNSURE))
    def test_graphs_of_their_own(self, arch: str) -> None:
        """Where the graph rotates by more than the metadata, nothing is promised."""
        with pytest.raises(BadUsage, match="by more than the metadata"):
            changed(metadata(arch), asked(Ntk(4.0)))

    def test_moved_start_of_sharper_attention(self) -> None:
        """Mistral 3 sharpens its attention beyond the original length, which therefore has to stay."""
        data = metadata("mistral3", attention__temperature_scale=0.1)
        with pytest.raises(BadUsage, match="would move that") as caught:
            changed(data, asked(Yarn.default(4.0), original_length=1024, length=4096))
        assert caught.value.hint == f"use --original-length {L}"
        assert changed(data, asked(Yarn.default(4.0))).settings["mistral3.rope.scaling.original_context_length"] == L

    def test_length(self) -> None:
        """Lengths are 32-bit numbers in a GGUF."""
        with pytest.raises(BadUsage, match="at most 4294967295 tokens"):
            changed(metadata(), asked(Linear(2.0**21)))

    def test_base(self) -> None:
        """A base beyond float32 is refused."""
        with pytest.raises(BadUsage, match="float32"):
            changed(metadata(), asked(Ntk(1e30), rotary_dim=4, length=2**31), freqs=())

    @pytest.mark.parametrize("names", [(), ("full_attention",)])
    def test_layers_that_are_not_there(self, names: tuple[str, ...]) -> None:
        """Layers that the file does not have are named beside those that it has."""
        with pytest.raises(BadUsage, match="among default"):
            changed(metadata(), dict.fromkeys(names, asked(Linear(2.0))))

    def test_no_rotary_embedding(self) -> None:
        """A model that does not rotate has nothing to change."""
        with pytest.raises(BadUsage, match="among none"):
            changes(metadata("mamba"), (), {"default": asked(Linear(2.0))})


def test_tables_name_known_architectures() -> None:
    """Every architecture of the tables is one that rotates."""
    for table in (FREQS, LISTS, FREQS_REQUIRED, SOFTMAX_SCALED, UNSURE, HEAD_WIDE):
        assert table <= INTERLEAVED | HALVES
    assert FREQS < FREQS_USED
