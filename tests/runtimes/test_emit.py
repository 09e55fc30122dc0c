"""Flags for serving a checkpoint unchanged: each line is parsed back, applied as its runtime applies it, and read."""

import json
import logging
import math
import shlex
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropecli.dialects import hf
from ropecli.dialects.gguf_archs import HALVES, INTERLEAVED
from ropecli.errors import BadUsage
from ropecli.frequencies import TOLERANCE, Frequencies, base_frequencies, frequencies, ntk_base, yarn_corners
from ropecli.runtimes import RUNTIMES, Reading, Request
from ropecli.runtimes.comparison import ATTENTION_FACTOR_TOLERANCE
from ropecli.runtimes.emit import BARE, FLAGS, USAGE, emit
from ropecli.runtimes.llama_cpp_archs import ARCHITECTURES
from ropecli.runtimes.serving import Serving
from ropecli.spec import (
    Dynamic,
    LayerRope,
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

ROWS = {"transformers": ("transformers",), "vllm": ("vllm", "vllm-2026-08"), "sglang": ("sglang",), "mlx": ("mlx-lm",)}
RUNTIME = {runtime.name: runtime for runtime in RUNTIMES}
L, S = 2048, 4.0
M = int(L * S)
ORIGINAL = "original_max_position_embeddings"

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "head_dim": 64,
    "vocab_size": 64,
}
LLAMA: dict[str, Any] = {
    **SHAPE,
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": L,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
}
LAYERS = ["sliding_attention"] * 5 + ["full_attention"]
GEMMA_OLDER: dict[str, Any] = {
    **SHAPE,
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "max_position_embeddings": L,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10_000.0,
    "sliding_window": 512,
    "layer_types": LAYERS,
}
GEMMA: dict[str, Any] = {key: value for key, value in GEMMA_OLDER.items() if not key.startswith("rope_")} | {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
    }
}
QWEN_VL_FLAT: dict[str, Any] = {
    **SHAPE,
    "model_type": "qwen2_vl",
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "max_position_embeddings": L,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
}
COMPOSITE: dict[str, Any] = {
    "model_type": "mistral3",
    "architectures": ["Mistral3ForConditionalGeneration"],
    "text_config": {**LLAMA, "model_type": "mistral"},
    "vision_config": {"model_type": "pixtral"},
}
OMNI: dict[str, Any] = {
    "model_type": "qwen2_5_omni",
    "architectures": ["Qwen2_5OmniModel"],
    "thinker_config": {
        "model_type": "qwen2_5_omni_thinker",
        "audio_config": {"d_model": 64},
        "text_config": {**LLAMA, "model_type": "qwen2_5_omni_text", "rope_scaling": {"type": "linear", "factor": 2.0}},
    },
}
GPT_NEOX: dict[str, Any] = {
    key: value for key, value in LLAMA.items() if key not in {"head_dim", "rope_theta", "rope_scaling"}
} | {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "rotary_pct": 0.25,
    "rotary_emb_base": 20_000,
}
CONFIGS: Mapping[str, dict[str, Any]] = {
    "llama": LLAMA,
    "saved by transformers 5": {key: value for key, value in LLAMA.items() if key not in {"rope_theta", "rope_scaling"}}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    "older keys": LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}, ORIGINAL: L // 2},
    "yarn with keys of its own": LLAMA
    | {
        "rope_scaling": {"type": "yarn", "factor": 2.0, ORIGINAL: L, "truncate": False, "attention_factor": 3.0}
        | {"extrapolation_factor": 0.5, "apply_yarn_scaling": False, "mscale": 0.7, "llama_4_scaling_beta": 0.1}
    },
    "partial": LLAMA
    | {"model_type": "stablelm", "architectures": ["StableLmForCausalLM"], "partial_rotary_factor": 0.25},
    "text_config": COMPOSITE,
    "text_config with a scaling": COMPOSITE
    | {
        "text_config": COMPOSITE["text_config"]
        | {
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0, ORIGINAL: L, "attn_factor": 2.0}
            | {"truncate": False, "extrapolation_factor": 0.5, "apply_yarn_scaling": False}
        }
    },
    "thinker_config": OMNI,
    "multimodal and flat": QWEN_VL_FLAT,
    "layer types": GEMMA,
    "layer types, older keys": GEMMA_OLDER,
    "layer types in text_config": {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    | {"text_config": GEMMA},
}


def intent_of(rope: LayerRope, scaling: Scaling) -> RopeSpec:
    return replace(rope.spec, scaling=scaling, original_length=L, max_length=round(L * scaling.factor))


def serving(config: Mapping[str, Any], scaling: Scaling) -> Serving:
    """A checkpoint whose full-attention layers are to have a scaling from L on."""
    ropes = hf.read(config)
    full = [rope for rope in ropes if rope.sliding_window is None] or list(ropes)
    return Serving(config, ropes, {rope.name: intent_of(rope, scaling) for rope in full})


def divisors(pairs: int) -> tuple[float, ...]:
    return tuple(1 + 3 * d / pairs for d in range(pairs))


def same_lists(rope: LayerRope, m: float = 1.17) -> Longrope:
    return Longrope(S, divisors(rope.spec.pairs), divisors(rope.spec.pairs), m, m)


SCALINGS: Mapping[str, Scaling] = {
    "none": Plain(),
    "linear": Linear(S),
    "ntk": Ntk(S),
    "yarn": Yarn.default(S),
    "yarn, calibrated": Yarn(S, 1.3, beta_fast=20.0, beta_slow=2.0),
    "yarn, cooler than 1": Yarn(S, 0.8, beta_fast=20.0, beta_slow=2.0),
    "llama3": Llama3(S, 1.0, 4.0),
    "ntk-by-parts": NtkByParts(S),
}


def set_on(config: Mapping[str, Any], changes: Mapping[str, Any], merged: int) -> dict[str, Any]:
    """transformers' `from_dict` and SGLang's `config.update`: objects are replaced, inner configs merged."""
    result = dict(config)
    for key, value in changes.items():
        inner = result.get(key)
        if merged and key.endswith("_config") and isinstance(inner, dict):
            result[key] = loaded(set_on(inner, value, merged - 1))
        else:
            result[key] = value
    return result


def merge_all(target: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's `_update_nested`."""
    result = dict(target)
    for key, value in changes.items():
        deeper = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge_all(result[key], value) if deeper else value
    return result


def loaded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as transformers 5 holds it: one scaling object, `rope_parameters`, with the base in it.

    A flat multimodal one is split. An inner object is loaded likewise.
    """
    result = {
        key: loaded(value) if key.endswith("_config") and key != "vision_config" else value
        for key, value in config.items()
    }
    if result.get("model_type") == "qwen2_vl" and "text_config" not in result:
        inner = loaded({key: value for key, value in result.items() if key != "model_type"})
        return {"model_type": "qwen2_vl", "architectures": result["architectures"], "text_config": inner}
    scaling = result.pop("rope_scaling", None)
    if scaling:
        result["rope_parameters"] = {"rope_type": scaling.get("type"), **scaling}
    if "hidden_size" in result:
        result.setdefault("rope_parameters", {})
        if "full_attention" not in result["rope_parameters"]:
            result["rope_parameters"] = {"rope_theta": result.pop("rope_theta", None), **result["rope_parameters"]}
    return result


def applied(name: str, config: dict[str, Any], line: str) -> tuple[dict[str, Any], int | None]:
    """The config as the runtime has it after the override, and the length that it is told to serve."""
    if name in BARE:
        changes = json.loads(line)
        return (config | changes if name == "mlx" else set_on(loaded(config), changes, 1)), None
    option, overrides, limit, length = shlex.split(line)
    changes = json.loads(overrides)
    if name == "sglang":
        assert (option, limit) == ("--json-model-override-args", "--context-length")
        return set_on(loaded(config), changes, 1), int(length)
    assert (option, limit) == ("--hf-overrides", "--max-model-len")
    result = loaded(config)
    for key, value in changes.items():
        inner = key.endswith("_config") and isinstance(result.get(key), dict)
        result[key] = merge_all(result[key], value) if inner else value
    return result, int(length)


def assert_agrees(reading: Reading, meant: Frequencies) -> None:
    assert reading.inv_freq is not None, reading.notes
    assert reading.attention_factor == pytest.approx(meant.attention_factor, abs=ATTENTION_FACTOR_TOLERANCE)
    assert reading.inv_freq == pytest.approx(meant.inv_freq, rel=TOLERANCE)


def assert_served(name: str, asked: Serving) -> None:
    """Emits, applies and reads; every kind of layer must come out as meant, those not asked for as they were."""
    line = emit(name, asked)
    assert "\n" not in line
    config, length = applied(name, dict(asked.config), line)
    text = hf.text_config(config)[0]
    for rope in asked.ropes:
        meant = replace(rope, spec=asked.intent.get(rope.name, rope.spec))
        layer = rope.name if asked.layered else None
        # a base that the file does not give must not be needed
        hidden = replace(meant, spec=replace(meant.spec, rope_theta=3.0), sources={})
        if asked.layered and isinstance(meant.spec.scaling, Plain):
            hidden = meant
        request = Request({**config, **text}, hidden, asked.architecture, asked.model_type, layer, 3.0)
        for row in ROWS[name]:
            reading = RUNTIME[row].read(request)
            assert_agrees(reading, frequencies(meant.spec))
            if length is not None:
                assert length == asked.length
                assert reading.context_length is not None
                assert reading.context_length >= length


CASES = [
    (config, scaling, name)
    for config in CONFIGS
    for scaling in SCALINGS
    for name in ROWS
    if not (name == "sglang" and config == "thinker_config")
    and not (name == "vllm" and config == "multimodal and flat" and scaling.startswith("yarn"))
    and not (name == "mlx" and config == "partial" and scaling not in {"none", "ntk"})
]


@pytest.mark.parametrize(("config", "scaling", "name"), CASES)
def test_an_override_gives_what_was_asked_for(config: str, scaling: str, name: str) -> None:
    """The line, parsed and applied, makes the runtime compute the frequencies and the temperature that are meant."""
    assert_served(name, serving(CONFIGS[config], SCALINGS[scaling]))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("m", [1.0, 1.02, 1.138629, 1.7])
def test_divisors_for_each_pair(name: str, m: float) -> None:
    """One list of divisors arrives with its temperature, which MLX-LM can only be told by lengths."""
    (rope,) = hf.read(LLAMA)
    assert_served(name, serving(LLAMA, same_lists(rope, m)))


def test_divisors_for_phi3_in_mlx() -> None:
    """Phi-3's own class takes the original length from the top level, also where the file has none there."""
    config = LLAMA | {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    (rope,) = hf.read(config)
    assert_served("mlx", serving(config, same_lists(rope)))


@pytest.mark.parametrize("name", ["transformers", "vllm", "sglang"])
def test_a_ramp_with_fractional_corners(name: str) -> None:
    """Corners between the pairs are kept as they are by the runtimes that need not round them."""
    assert_served(name, serving(LLAMA, Yarn(S, 1.2, beta_fast=20.0, beta_slow=2.0, truncate=False)))


@pytest.mark.parametrize("name", ["transformers", "mlx"])
def test_dynamic_counts_from_the_original_length(name: str) -> None:
    """A base that grows with the sequence starts from the length that the config then states."""
    asked = serving(LLAMA, Dynamic(S))
    config, _ = applied(name, dict(LLAMA), emit(name, asked))
    assert config["max_position_embeddings"] == L
    assert_served(name, asked)


@pytest.mark.parametrize("name", ["transformers", "sglang"])
def test_two_lists_of_divisors(name: str) -> None:
    """Runtimes that switch between two lists get both."""
    (rope,) = hf.read(LLAMA)
    short = (1.0,) * rope.spec.pairs
    asked = serving(LLAMA, Longrope(S, short, divisors(rope.spec.pairs), 1.2, 1.2))
    parameters = applied(name, dict(LLAMA), emit(name, asked))[0]["rope_parameters"]
    assert (parameters["short_factor"], parameters["long_factor"]) == (list(short), list(divisors(rope.spec.pairs)))
    assert_served(name, asked)


@pytest.mark.parametrize("name", ROWS)
def test_a_base_given_by_hand(name: str) -> None:
    """Another base arrives with the scaling and without it."""
    (rope,) = hf.read(LLAMA)
    for scaling in (Plain(), Yarn.default(S)):
        spec = replace(intent_of(rope, scaling), rope_theta=777_777.0)
        assert_served(name, Serving(LLAMA, (rope,), {"default": spec}))


@st.composite
def yarns(draw: st.DrawFn) -> tuple[dict[str, Any], Serving]:
    head_dim = draw(st.sampled_from([32, 64, 80, 128]))
    config = LLAMA | {
        "head_dim": head_dim,
        "rope_theta": draw(st.sampled_from([10_000.0, 500_000.0, 1e6])),
        "max_position_embeddings": draw(st.sampled_from([512, 2048, 8192, 32_768])),
    }
    factor = draw(st.sampled_from([1.5, 2.0, 4.0, 16.0]))
    slow = draw(st.floats(0.5, 4.0))
    yarn = Yarn(factor, draw(st.floats(0.7, 2.0)), beta_fast=slow + draw(st.floats(4.0, 60.0)), beta_slow=slow)
    (rope,) = hf.read(config)
    length = config["max_position_embeddings"]
    spec = replace(rope.spec, scaling=yarn, original_length=length, max_length=round(factor * length))
    return config, Serving(config, (rope,), {"default": spec})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(yarns())
def test_any_yarn_in_any_runtime(case: tuple[dict[str, Any], Serving]) -> None:
    """Whatever the widths, lengths, betas and temperature, all five runtimes get the same embedding."""
    _, asked = case
    for name in ROWS:
        assert_served(name, asked)
    assert_ggml(asked)


def f32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def ggml(line: str, file: RopeSpec, arch: str = "llama") -> tuple[Frequencies, dict[str, float]]:
    """What llama.cpp computes with these flags from a GGUF that has no scaling, and the metadata that they override.

    `common/arg.cpp` for the flags, `llama_context` for the temperature, `ggml_rope_yarn_corr_dims` and `rope_yarn` for
    the frequencies; flags are float32.
    """
    words = shlex.split(line)
    given = dict(zip(words[::2], words[1::2], strict=True))
    overrides = {}
    for pair in given.pop("--override-kv").split(","):
        key, _, value = pair.partition("=")
        kind, _, number = value.partition(":")
        overrides[key] = float(number) if kind == "float" else int(number)
    kind = given.pop("--rope-scaling")
    base = f32(float(given.pop("--rope-freq-base", str(file.rope_theta))))
    scale = 1.0 if kind == "none" else 1 / f32(float(given.pop("--rope-scale")))
    plain = base_frequencies(base, file.rotary_dim)
    m = f32(overrides.pop(f"{arch}.rope.scaling.attn_factor", 1.0))
    assert int(given.pop("-c")) == overrides.pop(f"{arch}.context_length")
    inv_freq = tuple(w * scale for w in plain)
    if kind == "yarn":
        yarn = Yarn(
            1 / scale, 1.0, f32(float(given.pop("--yarn-beta-fast"))), f32(float(given.pop("--yarn-beta-slow")))
        )
        low, high = yarn_corners(
            replace(file, rope_theta=base, original_length=int(given.pop("--yarn-orig-ctx"))), yarn
        )
        kept = [1 - min(max((d - low) / max(0.001, high - low), 0.0), 1.0) for d in range(file.pairs)]
        inv_freq = tuple(w * scale * (1 - k) + w * k for w, k in zip(plain, kept, strict=True))
        m *= 1 + 0.1 * math.log(1 / scale)
    assert not given, "a flag that llama.cpp does not have"
    return Frequencies(inv_freq, m), overrides


def assert_ggml(asked: Serving, arch: str = "llama") -> dict[str, float]:
    (rope,) = asked.asked
    file = next(found.spec for found in asked.ropes if found.name == rope.name)
    found, rest = ggml(emit("llama.cpp", asked), file, arch)
    assert_agrees(Reading(found.inv_freq, found.attention_factor, None), frequencies(rope.spec))
    return rest


@pytest.mark.parametrize("scaling", [name for name in SCALINGS if name not in {"llama3", "ntk-by-parts"}])
def test_llama_cpp_computes_what_was_asked_for(scaling: str) -> None:
    """The flags, put through ggml's formulas in float32, give the frequencies and the temperature that are meant."""
    assert assert_ggml(serving(LLAMA, SCALINGS[scaling])) == {}


def test_llama_cpp_with_another_base() -> None:
    """A base that differs from the file's is a flag; one that does not is none."""
    (rope,) = hf.read(LLAMA)
    spec = replace(intent_of(rope, Yarn.default(S)), rope_theta=777_777.0)
    assert_ggml(Serving(LLAMA, (rope,), {"default": spec}))
    assert "--rope-freq-base" not in emit("llama.cpp", serving(LLAMA, Yarn.default(S)))
    assert f"--rope-freq-base {ntk_base(10_000.0, 64, S)!r}" in emit("llama.cpp", serving(LLAMA, Ntk(S)))


def gguf(arch: str, **metadata: Any) -> dict[str, Any]:
    return {"general.architecture": arch, f"{arch}.context_length": L, **metadata}


def served_gguf(metadata: dict[str, Any], scaling: Scaling) -> Serving:
    rope = LayerRope("default", 4, RopeSpec(10_000.0, 64, 64, L, L), {})
    return Serving(metadata, (rope,), {"default": intent_of(rope, scaling)})


def test_the_metadata_of_a_gguf_names_the_keys() -> None:
    """The keys to override begin with the architecture of the file, and the temperature comes before the length."""
    line = emit("llama.cpp", served_gguf(gguf("qwen2"), Yarn(S, 1.3)))
    (pairs,) = [word for word in shlex.split(line) if word.startswith("qwen2.")]
    first, second = pairs.split(",")
    assert first == f"qwen2.rope.scaling.attn_factor=float:{1.3 / default_attention_factor(S)!r}"
    assert second == f"qwen2.context_length=int:{M}"


def test_a_temperature_in_the_file_is_overridden() -> None:
    """A GGUF with an attention factor of its own gets the one that is meant, even where that is the default."""
    metadata = gguf("llama", **{"llama.rope.scaling.attn_factor": 1.4})
    for scaling in (Linear(S), Yarn.default(S)):
        assert "llama.rope.scaling.attn_factor=float:1.0," in emit("llama.cpp", served_gguf(metadata, scaling))


def test_an_architecture_with_a_rule_of_its_own_for_the_temperature() -> None:
    """Mistral-3 divides by a magnitude from the file, which the flags switch off."""
    rest = assert_ggml(served_gguf(gguf("mistral3"), Yarn(S, 1.3)), "mistral3")
    assert rest == {"mistral3.rope.scaling.yarn_log_multiplier": 0.0}


def test_sliding_layers_of_a_gguf_stay_as_they_are() -> None:
    """With layers of two kinds the flags reach the full ones, and must not change the temperature of the others."""
    ropes = hf.read(GEMMA)
    full = next(rope for rope in ropes if rope.sliding_window is None)
    asked = Serving(GEMMA, ropes, {full.name: intent_of(full, Yarn.default(S))})
    assert_ggml(asked, "gemma3")
    warmer = Serving(GEMMA, ropes, {full.name: intent_of(full, Yarn(S, 1.3))})
    with pytest.raises(BadUsage, match="attention factor to the sliding-window layers"):
        emit("llama.cpp", warmer)


def test_the_table_of_classes_names_architectures_that_exist() -> None:
    """Each architecture of the table is one that llama.cpp rotates."""
    assert set(ARCHITECTURES.values()) <= INTERLEAVED | HALVES
    known = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3", "Gemma3ForConditionalGeneration": "gemma3"}
    assert {name: ARCHITECTURES[name] for name in known} == known


REFUSED = [
    ("vllm", LLAMA, Dynamic(S), "dynamic changes with the length", "--rope-type ntk"),
    ("sglang", LLAMA, Dynamic(S), "dynamic changes with the length", "--rope-type ntk"),
    ("llama.cpp", LLAMA, Dynamic(S), "one base for all lengths", "--rope-type ntk"),
    ("llama.cpp", LLAMA, Llama3(S, 1.0, 4.0), "no flag for llama3", "ropecli convert MODEL.gguf"),
    ("llama.cpp", LLAMA, NtkByParts(S), "no flag for ntk-by-parts", "ropecli convert MODEL.gguf"),
    ("llama.cpp", LLAMA, Longrope(S, (2.0,) * 32, (2.0,) * 32, 1.0, 1.0), "no flag for longrope", "MODEL.gguf"),
    ("llama.cpp", LLAMA, Yarn(S, 1.2, 20.0, 2.0, truncate=False), "rounds the corners", "--no-truncate"),
    ("mlx", LLAMA, Yarn(S, 1.2, 20.0, 2.0, truncate=False), "frequencies off", "--no-truncate"),
    ("mlx", LLAMA, Longrope(S, (2.0,) * 32, (2.0,) * 32, 0.9, 0.9), "instead of 0.9", "another"),
    ("mlx", LLAMA | {"model_type": "mixtral"}, Yarn.default(S), "never scales", "another runtime"),
    ("vllm", LLAMA, Longrope(S, (1.0,) * 32, (2.0,) * 32, 1.0, 1.0), "longrope changes with", "with one list"),
    ("mlx", LLAMA, Longrope(S, (1.0,) * 32, (2.0,) * 32, 1.0, 1.0), "longrope changes with", "with one list"),
    ("transformers", LLAMA, Longrope(S, (1.0,) * 32, (2.0,) * 32, 1.0, 1.1), "one attention factor", "same"),
    ("transformers", LLAMA | {"model_type": "gptj"}, Linear(S), "as its class says", "another runtime"),
    ("vllm", QWEN_VL_FLAT, Yarn.default(S), "4 times the length", "another runtime"),
    ("sglang", OMNI, Yarn.default(S), "the language model lies deeper", "--output"),
    ("transformers", LLAMA, NtkByParts(S, attention_factor=1.1), "no temperature", "--rope-type yarn"),
    ("transformers", LLAMA, Proportional(S), "part of an architecture", ""),
    ("llama.cpp", LLAMA | {"architectures": ["Strange"]}, Linear(S), "'Strange' is not known", ".gguf"),
    ("llama.cpp", LLAMA | {"architectures": None}, Linear(S), "'llama' is not known", ".gguf"),
    ("transformers", gguf("llama"), Linear(S), "a GGUF has no config.json", "--emit llama.cpp"),
    ("vllm", gguf("llama"), Linear(S), "a GGUF has no config.json", "--emit llama.cpp"),
    ("sglang", gguf("llama"), Linear(S), "a GGUF has no config.json", "--emit llama.cpp"),
    ("mlx", gguf("llama"), Linear(S), "a GGUF has no config.json", "--emit llama.cpp"),
    ("llama.cpp", gguf("gpt-oss", **{"gpt-oss.attention.sliding_window": 128}), Linear(S), "alone", "--output"),
    ("tgi", LLAMA, Linear(S), "unknown 'tgi'", "transformers, vllm, sglang, llama.cpp, mlx"),
]


@pytest.mark.parametrize(("name", "config", "scaling", "problem", "hint"), REFUSED)
def test_what_a_runtime_cannot_do_is_refused(
    name: str, config: dict[str, Any], scaling: Scaling, problem: str, hint: str
) -> None:
    """A line that would serve something else is not printed; the error says why, and what to do instead."""
    asked = served_gguf(config, scaling) if "general.architecture" in config else serving(config, scaling)
    with pytest.raises(BadUsage) as caught:
        emit(name, asked)
    assert problem in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["vllm", "sglang", "llama.cpp", "mlx"])
def test_latent_attention_is_scaled_by_transformers_alone(name: str) -> None:
    """Runtimes that scale DeepSeek's softmax by the same keys are refused, but for another base."""
    config = LLAMA | {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 32}
    config |= {"qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32}
    asked = serving(config, Yarn(S, 1.3))
    assert asked.ropes[0].mla
    with pytest.raises(BadUsage, match="latent attention"):
        emit(name, asked)
    assert "mscale" not in emit("transformers", asked)
    assert_served("transformers", asked)
    if name in ROWS:
        assert_served(name, serving(config, Ntk(S)))
    else:
        assert_ggml(serving(config, Ntk(S)), "deepseek2")


ODD = 'full "attention" isn\'t $HOME `id` \\ ; ü\n'


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_odd_names_survive_a_shell(name: str) -> None:
    """Layer types with blanks, quotes, line ends and the shell's own signs come out of a real shell as they went in."""
    plain = {"rope_type": "default", "rope_theta": 10_000.0}
    config = LLAMA | {"layer_types": [ODD] * 6, "rope_parameters": {ODD: plain, "it's": None}, "model_type": "odd"}
    del config["rope_theta"]
    rope = LayerRope(ODD, 6, RopeSpec(10_000.0, 64, 64, L, L), {})
    asked = Serving(config, (rope,), {ODD: intent_of(rope, Yarn(S, 1.3))})
    line = emit(name, asked)
    assert line.isascii()
    assert "\n" not in line
    shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    assert shell.stdout.split("\0")[:-1] == list(FLAGS[name](asked))
    overrides = json.loads(shlex.split(line)[1])
    assert overrides["rope_parameters"][ODD]["attention_factor"] == 1.3
    assert overrides["rope_parameters"]["it's"] is None
    assert_served(name, asked)


def test_a_runtime_without_flags_gets_a_json_object() -> None:
    """Where there is no command line the line is JSON as it stands, and every runtime says where its line goes."""
    for name in FLAGS:
        assert USAGE[name]
        line = emit(name, serving(LLAMA, Yarn.default(S)))
        if name in BARE:
            assert isinstance(json.loads(line), dict)
        else:
            assert shlex.join(shlex.split(line)) == line


def test_other_keys_of_a_scaling_object_stay() -> None:
    """Members that belong to the architecture survive, and those of the old scaling go."""
    line = emit("transformers", serving(CONFIGS["yarn with keys of its own"], Yarn.default(8.0)))
    parameters = json.loads(line)["rope_parameters"]
    assert parameters["llama_4_scaling_beta"] == 0.1
    assert not {"mscale", "extrapolation_factor", "apply_yarn_scaling", "truncate", "type"} & set(parameters)
    sections = json.loads(emit("transformers", serving(QWEN_VL_FLAT, Linear(S))))
    assert sections["text_config"]["rope_parameters"]["mrope_section"] == [8, 12, 12]


def test_only_what_a_runtime_needs() -> None:
    """No runtime is given another one's spelling of the temperature."""
    keys = {
        name: set(applied(name, dict(LLAMA), emit(name, serving(LLAMA, Yarn(S, 1.3))))[0][where])
        for name, where in (("transformers", "rope_parameters"), ("mlx", "rope_scaling"))
    }
    assert not {"attn_factor", "mscale", "mscale_all_dim"} & keys["transformers"]
    assert not {"attn_factor", "attention_factor", "truncate"} & keys["mlx"]


REAL = [
    (config, scaling)
    for config in ("llama", "saved by transformers 5", "older keys", "yarn with keys of its own", "partial")
    for scaling in ("ntk", "yarn, calibrated", "llama3")
] + [
    (config, "yarn, calibrated")
    for config in (
        *("text_config", "text_config with a scaling", "thinker_config", "multimodal and flat"),
        *("layer types", "layer types, older keys", "layer types in text_config"),
    )
]


MIXTRAL = {key: value for key, value in LLAMA.items() if key != "head_dim"} | {"model_type": "mixtral"}
MORE = [("gpt_neox", "yarn, calibrated"), ("gpt_neox", "linear"), ("mixtral", "yarn, calibrated")]


@pytest.mark.parametrize(("config", "scaling"), [*REAL, *MORE])
def test_transformers_itself_takes_the_object(config: str, scaling: str, tmp_path: Path) -> None:
    """`AutoConfig.from_pretrained` with the object as keyword arguments gives a config whose rotary module is meant."""
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    asked = serving(({"gpt_neox": GPT_NEOX, "mixtral": MIXTRAL} | dict(CONFIGS))[config], SCALINGS[scaling])
    (tmp_path / "config.json").write_text(json.dumps(asked.config))
    logging.disable(logging.WARNING)
    try:
        real, unused = transformers.AutoConfig.from_pretrained(
            tmp_path, return_unused_kwargs=True, **json.loads(emit("transformers", asked))
        )
    finally:
        logging.disable(logging.NOTSET)
    assert not unused
    for key in asked.loaded_path:
        real = getattr(real, key)
    assert real.max_position_embeddings == asked.length
    for rope in asked.ropes:
        meant = frequencies(asked.intent.get(rope.name, rope.spec))
        parameters = real.rope_parameters[rope.name] if asked.layered else real.rope_parameters
        if parameters["rope_type"] == "default":
            share = parameters.get("partial_rotary_factor", 1.0)
            width = int(getattr(real, "head_dim", 64) * share)
            found, m = list(base_frequencies(parameters["rope_theta"], width)), 1.0
        else:
            compute = rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
            tensor, m = compute(real, "cpu", **({"layer_type": rope.name} if asked.layered else {}))
            found = tensor.double().tolist()
        assert found == pytest.approx(meant.inv_freq, rel=TOLERANCE)
        assert m == pytest.approx(meant.attention_factor, abs=ATTENTION_FACTOR_TOLERANCE)
