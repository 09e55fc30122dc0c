"""What convert writes means the same in every runtime that can compute it at all."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ropecli import agreement
from ropecli.agreement import (
    EMITTED,
    FOLDED,
    FOLDED_LONGROPE,
    FROZEN,
    GGUF,
    LONGROPE,
    NOTHING,
    as_longrope,
    disagreements,
)
from ropecli.baking import without_temperature
from ropecli.checkpoint import Checkpoint
from ropecli.conversion import Conversion, plan
from ropecli.dialects import hf, hf_scaling, portable
from ropecli.errors import BadUsage
from ropecli.frequencies import frequencies, snapped_betas
from ropecli.inspection import runtime_rows, with_text
from ropecli.runtimes import RUNTIMES, Runtime
from ropecli.runtimes.emit import emit
from ropecli.runtimes.serving import Serving
from ropecli.spec import Dynamic, Linear, Longrope, Ntk, Plain, RopeSpec, Scaling, Yarn

YARN_READERS = {
    "transformers",
    "transformers-4",
    "vllm",
    "vllm-2026-08",
    "sglang",
    "mlx-lm",
    "exllamav3",
    "tensorrt-llm",
}
"""Runtimes that honour α, β and some spelling of the temperature; the others have fixed betas or no YaRN for Llama."""

LONGROPE_READERS = YARN_READERS | {"exllamav2", "tgi"}


def llama(spec: RopeSpec, model_type: str = "llama", architecture: str = "LlamaForCausalLM") -> Checkpoint:
    """A checkpoint of this geometry, without any scaling, as its config.json says it."""
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": 4 * spec.head_dim,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.original_length,
        "rope_theta": spec.rope_theta,
    }
    text = json.dumps(config, indent=2)
    return Checkpoint("model", "hf", Path("model"), None, config, text, model_type, hf.read(config))


def written(conversion: Conversion) -> Checkpoint:
    """The source with the config that would be written."""
    return with_text(conversion.checkpoint, conversion.texts["config.json"])


@st.composite
def extensions(draw: st.DrawFn) -> RopeSpec:
    """A YaRN with whole corners and a temperature, for a geometry such as models have."""
    rotary_dim = draw(st.sampled_from([32, 64, 80, 96, 128, 256]))
    rope_theta = draw(st.sampled_from([1e4, 1e5, 1.5e5, 5e5, 1e6, 8e6]))
    length = draw(st.sampled_from([256, 2048, 4096, 8192, 32768, 131072]))
    factor = draw(st.sampled_from([1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]))
    low = draw(st.integers(0, rotary_dim // 2 - 2))
    high = draw(st.integers(low + 1, rotary_dim // 2))
    m = draw(st.floats(0.8, 1.6))
    plain = RopeSpec(rope_theta, rotary_dim, rotary_dim, length, length)
    beta_fast, beta_slow = snapped_betas(plain, low, high)
    return replace(plain, max_length=round(length * factor), scaling=Yarn(factor, m, beta_fast, beta_slow))


@st.composite
def any_yarns(draw: st.DrawFn) -> RopeSpec:
    """A YaRN as a user may type it: any width, base, lengths, α, β and temperature; the corners are rounded."""
    rotary_dim = 2 * draw(st.integers(2, 128))
    rope_theta = draw(st.floats(100, 1e9))
    length = draw(st.integers(64, 2**20))
    longest = draw(st.integers(length + 1, 64 * length))
    slow = draw(st.floats(0.05, 16))
    fast = slow * draw(st.floats(1.01, 200))
    m = draw(st.floats(0.5, 2))
    plain = RopeSpec(rope_theta, rotary_dim, rotary_dim, length, length)
    return replace(plain, max_length=longest, scaling=Yarn(longest / length, m, fast, slow))


@settings(max_examples=150)
@given(extensions() | any_yarns(), st.sets(st.sampled_from(sorted(YARN_READERS))))
def test_portable_yarn_is_the_same_everywhere(spec: RopeSpec, asked: set[str]) -> None:
    """Frequencies within 5e-5 and the attention factor within 1e-4 of the intent, in every runtime that can.

    With `--for`, in those that are named.
    """
    conversion = plan(llama(spec), {"default": spec}, runtimes=asked)
    rows = runtime_rows(written(conversion), conversion.intent)
    assert rows.keys() == {runtime.name for runtime in RUNTIMES}
    assert not {name for name in asked or YARN_READERS if not rows[name].agrees}


@settings(max_examples=60)
@given(extensions() | any_yarns(), st.sampled_from(["llama", "qwen2", "own"]))
def test_every_other_runtime_is_named_with_what_helps(spec: RopeSpec, model_type: str) -> None:
    """Whoever does not agree is told, and what is said to help does: the carrier, the folded weights, the flags."""
    checkpoint = llama(spec, model_type, "LlamaForCausalLM" if model_type == "llama" else "Qwen2ForCausalLM")
    conversion = plan(checkpoint, {"default": spec})
    rows = runtime_rows(written(conversion), conversion.intent)
    told = {other.runtime: other.help for other in disagreements(conversion)}
    assert told.keys() == {name for name, row in rows.items() if not row.agrees}
    folded = without_temperature(spec)
    ways = {
        LONGROPE: agreeing(checkpoint, as_longrope(spec), spec) if spec.scaling.attention_factor >= 1 else set(),
        FOLDED: agreeing(checkpoint, folded, folded),
        FOLDED_LONGROPE: agreeing(checkpoint, as_longrope(folded), folded),
    }
    for name, text in told.items():
        if text in ways:
            assert name in ways[text]
            assert text == LONGROPE or model_type != "own", "weights of an unknown type are not folded"
        elif text == NOTHING:
            assert not any(name in served for way, served in ways.items() if model_type != "own" or way == LONGROPE)
        elif text == GGUF:
            with pytest.raises(BadUsage):
                emit(name, Serving(checkpoint.config, checkpoint.ropes, conversion.intent))
        else:
            assert emit(EMITTED[name], Serving(checkpoint.config, checkpoint.ropes, conversion.intent)), text


def agreeing(checkpoint: Checkpoint, carried: RopeSpec, meant: RopeSpec) -> set[str]:
    """The runtimes that compute `meant` where `carried` is written."""
    rows = runtime_rows(written(plan(checkpoint, {"default": carried})), {"default": meant})
    return {name for name, row in rows.items() if row.agrees}


@settings(max_examples=80)
@given(extensions())
def test_onnx_runtime_agrees_where_it_has_yarn(spec: RopeSpec) -> None:
    """Its base class rounds nothing and needs 0 < low < high < d/2 − 1; snapped corners give it the same ramp."""
    rows = runtime_rows(written(plan(llama(spec, "qwen2", "Qwen2ForCausalLM"), {"default": spec})), {"default": spec})
    row = rows["onnxruntime-genai"]
    assume(row.max_rel_diff is not None)
    assert row.agrees


@settings(max_examples=80, suppress_health_check=[HealthCheck.filter_too_much])
@given(extensions())
def test_longrope_carries_it_to_more(spec: RopeSpec) -> None:
    """The same frequencies as divisors, wherever a whole original length gives the attention factor to 1e-4."""
    m = spec.scaling.attention_factor
    assume(m >= 1)
    carried = as_longrope(spec)
    stated = hf_scaling.stated_original(carried)
    # half a token of the stated length moves the attention factor by this much
    assume(m / (4 * stated * math.log(stated)) < 9e-5)
    rows = runtime_rows(written(plan(llama(spec), {"default": carried})), {"default": spec})
    assert not {name for name in LONGROPE_READERS if not rows[name].agrees}


def test_those_that_cannot_are_named_with_what_helps() -> None:
    """Fixed betas and missing kinds are told, each with flags, a carrier, or the plain word that nothing helps."""
    plain = RopeSpec(1e6, 128, 128, 32768, 32768)
    beta_fast, beta_slow = snapped_betas(plain, 20, 30)
    spec = replace(plain, max_length=131072, scaling=Yarn(4.0, 1.05, beta_fast, beta_slow))
    found = {other.runtime: other.help for other in disagreements(plan(llama(spec), {"default": spec}))}
    assert found.keys() == {"llama.cpp", "exllamav2", "onnxruntime-genai", "tgi"}
    assert "--emit llama.cpp" in found["llama.cpp"]
    assert "--carrier longrope" in found["exllamav2"]
    assert "--carrier longrope" in found["tgi"]
    assert found["onnxruntime-genai"] == NOTHING


@pytest.mark.parametrize(
    ("runtimes", "absent"),
    [
        (("transformers",), {"attn_factor", "mscale", "mscale_all_dim"}),
        (("sglang",), {"mscale", "mscale_all_dim"}),
        (("mlx-lm", "vllm"), {"attn_factor"}),
    ],
)
def test_fewer_runtimes_fewer_keys(runtimes: tuple[str, ...], absent: set[str]) -> None:
    """Only the spellings that the named runtimes read are written, and those runtimes agree."""
    plain = RopeSpec(1e6, 128, 128, 32768, 32768)
    spec = replace(plain, max_length=131072, scaling=Yarn(4.0, 1.05, *snapped_betas(plain, 20, 30)))
    conversion = plan(llama(spec), {"default": spec}, runtimes=runtimes)
    config = json.loads(conversion.texts["config.json"])
    for block in (config["rope_scaling"], config["rope_parameters"]):
        assert not absent & block.keys()
    assert not disagreements(conversion, runtimes)


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.name)
def test_a_runtime_has_all_that_it_needs_in_a_config_for_it_alone(runtime: Runtime) -> None:
    """It computes what it does from the config for all, whatever spelling of the temperature it goes by."""
    plain = RopeSpec(1e6, 128, 128, 32768, 32768)
    spec = replace(plain, max_length=131072, scaling=Yarn(4.0, 1.05, *snapped_betas(plain, 20, 30)))
    checkpoint = llama(spec, "qwen2", "Qwen2ForCausalLM")
    alone, for_all = (
        runtime_rows(written(plan(checkpoint, {"default": spec}, runtimes=names)), {"default": spec})[runtime.name]
        for names in ((runtime.name,), ())
    )
    assert (alone.attention_factor, alone.max_rel_diff) == (for_all.attention_factor, for_all.max_rel_diff)
    assert runtime.temperature <= set(portable.TEMPERATURE)


@pytest.mark.parametrize(
    "scaling",
    [Dynamic(4.0), Linear(4.0), Linear(0.5), Longrope(4.0, (1.0,) * 32, (2.0,) * 32, 1.2, 1.0)],
    ids=lambda scaling: f"{scaling.rope_type} {scaling.factor:g}",
)
def test_longrope_carries_the_frequencies_of_the_longest_text(scaling: Scaling) -> None:
    """Where the frequencies follow the length it is the served one that counts; no list extends by less than 1."""
    spec = RopeSpec(1e4, 64, 64, 4096, round(4096 * scaling.factor), scaling)
    carried = as_longrope(spec)
    wanted = frequencies(spec, spec.max_length)
    assert {frequencies(carried, length).inv_freq for length in (1, 2 * spec.max_length)} == {
        frequencies(carried).inv_freq
    }
    assert frequencies(carried).inv_freq == pytest.approx(wanted.inv_freq, rel=1e-12)
    assert carried.scaling.attention_factor == wanted.attention_factor
    assert carried.scaling.factor == max(scaling.factor, 1.0)


@pytest.mark.parametrize("m", [1.0, 1.2])
def test_what_a_class_refuses_is_carried_by_longrope(m: float) -> None:
    """Phi-3's takes nothing else; the same embedding in a GGUF is written as it is."""
    spec = RopeSpec(1e4, 96, 96, 4096, 16384, Yarn(4.0, m))
    checkpoint = llama(spec, "phi3", "Phi3ForCausalLM")
    intent, why = agreement.carried(checkpoint, {"default": spec}, "auto")
    assert intent == {"default": as_longrope(spec)}
    assert "phi3 with longrope alone" in why
    assert agreement.carried(checkpoint, {"default": spec}, "native") == ({"default": spec}, "")
    assert agreement.carried(replace(checkpoint, format="gguf"), {"default": spec}, "auto") == ({"default": spec}, "")


def test_latent_attention_is_not_sent_to_a_carrier_that_is_refused() -> None:
    """Its runtimes know no longrope: where ExLlamaV2 has no YaRN, nothing helps."""
    plain = RopeSpec(1e4, 64, 64, 4096, 4096)
    latent = {"q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64}
    source = llama(plain, "deepseek_v3", "DeepseekV3ForCausalLM")
    config = {**source.config, **latent}
    checkpoint = replace(source, config=config, config_text=json.dumps(config), ropes=hf.read(config))
    assert checkpoint.ropes[0].mla
    spec = replace(checkpoint.ropes[0].spec, max_length=16384, scaling=Yarn(4.0, 1.1))
    found = {other.runtime: other.help for other in disagreements(plan(checkpoint, {"default": spec}))}
    assert found["exllamav2"] == NOTHING
    assert LONGROPE not in found.values()


def test_what_a_class_refuses_and_longrope_cannot_carry_is_told_with_a_way() -> None:
    """A temperature below 1 goes into the weights, where they can be folded."""
    spec = RopeSpec(1e4, 96, 96, 4096, 16384, Yarn(4.0, 0.9))
    with pytest.raises(BadUsage, match=r"never below 1; 0\.9 would be lost") as caught:
        agreement.carried(llama(spec, "phi3", "Phi3ForCausalLM"), {"default": spec}, "auto")
    assert "--bake attention-factor" in caught.value.hint


def test_longrope_is_refused_where_it_would_lose_the_temperature() -> None:
    """No runtime computes a factor below 1 from lengths, and latent attention has no longrope."""
    spec = RopeSpec(1e4, 64, 64, 4096, 16384, Yarn(4.0, 0.9))
    with pytest.raises(BadUsage, match="never below 1"):
        as_longrope(spec)
    with pytest.raises(BadUsage, match="latent"):
        as_longrope(replace(spec, scaling=Yarn.default(4.0)), mla=True)


def test_a_base_that_grows_is_compared_at_the_served_length_too() -> None:
    """Within L dynamic NTK is plain RoPE, which proves nothing: runtimes that never scale are named, with what helps.

    What helps does: the base that ntk freezes is read by all of them.
    """
    spec = RopeSpec(10000.0, 64, 64, 2048, 8192, Dynamic(4.0))
    conversion = plan(llama(replace(spec, scaling=Plain())), {"default": spec})
    rows = runtime_rows(written(conversion), conversion.intent)
    assert {name for name, row in rows.items() if row.agrees} == {"transformers", "transformers-4", "mlx-lm", "tgi"}
    assert rows["llama.cpp"].max_rel_diff == pytest.approx(12.0)  # the slowest pair: 1 + 4·(8192 − 2048) / 2048 = 13
    assert {other.help for other in disagreements(conversion)} == {FROZEN}
    frozen = plan(llama(replace(spec, scaling=Plain())), {"default": replace(spec, scaling=Ntk(4.0))})
    assert disagreements(frozen) == ()
