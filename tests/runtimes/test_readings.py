"""The traps of each runtime, and that no config however odd makes a reading fail."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropecli.frequencies import Frequencies, base_frequencies, frequencies
from ropecli.runtimes import RUNTIMES, Reading, Request, Runtime, compare, readings
from ropecli.spec import LayerRope, Linear, Longrope, Plain, RopeSpec, Scaling, Yarn

D, L, M = 64, 2048, 8192
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": L}
MEANT = RopeSpec(10_000.0, D, D, L, M, Yarn.default(4.0))
ORIGINAL = "original_max_position_embeddings"


def asked(
    scaling: dict[str, Any] | None = None,
    *,
    spec: RopeSpec = MEANT,
    architecture: str = "LlamaForCausalLM",
    model_type: str = "llama",
    layer_type: str | None = None,
    mla: bool = False,
    sources: dict[str, str] | None = None,
    default_rope_theta: float = 10_000.0,
    **keys: Any,
) -> Request:
    config = {"max_position_embeddings": M, "rope_theta": 10_000.0, "rope_scaling": scaling, **keys}
    rope = LayerRope(layer_type or "default", 2, spec, sources or {}, mla=mla)
    return Request(config, rope, architecture, model_type, layer_type, default_rope_theta)


def ramp(**changes: Any) -> tuple[float, ...]:
    original = changes.pop("original_length", L)
    yarn = Yarn(**{"factor": 4.0, "attention_factor": 1.0} | changes)
    return frequencies(RopeSpec(10_000.0, D, D, original, M, yarn)).inv_freq


PLAIN = base_frequencies(10_000.0, D)
ALL = {runtime.name for runtime in RUNTIMES}


def refusing(request: Request) -> set[str]:
    """The rows that stop at a config; each must say why."""
    stopped = {name: reading for name, reading in readings(request).items() if reading.inv_freq is None}
    for reading in stopped.values():
        assert reading.attention_factor is None
        assert reading.notes
    return set(stopped)


@pytest.mark.parametrize("mscale", [0.0, 1.2])
def test_phimoe_multiplies_by_its_mscale_whatever_it_is(mscale: float) -> None:
    """Zero is a number too, and not the absence of one."""
    lists = {"short_factor": [1.0] * (D // 2), "long_factor": [2.0] * (D // 2)}
    scaling = {"type": "longrope", **lists, "short_mscale": mscale, "long_mscale": 1.3, "attention_factor": 1.1}
    found = readings(asked(scaling, architecture="PhiMoEForCausalLM", model_type="phimoe"))
    assert found["transformers"].attention_factor == found["transformers-4"].attention_factor == mscale


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (YARN, set()),
        ({"rope_type": "linear", "factor": 4.0}, set()),
        ({"rope_type": "linear", "factor": 4}, {"vllm", "vllm-2026-08", "sglang"}),
        ({"type": "yarn", **YARN}, {"exllamav2"}),
        ({"type": "linear", **YARN}, {"vllm", "vllm-2026-08", "exllamav2"}),
        (
            {"rope_type": "yarn", "factor": 4.0},
            {"exllamav2", "llama.cpp", "tgi"},
        ),
        (YARN | {"factor": None}, ALL - {"transformers", "exllamav3", "onnxruntime-genai", "llama.cpp"}),
        (YARN | {"factor": "4"}, ALL - {"onnxruntime-genai"}),
        ({"rope_type": "dynamic", "factor": 4.0}, {"exllamav3"}),
        (
            {"rope_type": "ntk", "factor": 4.0},
            ALL - {"vllm", "vllm-2026-08", "llama.cpp", "exllamav2", "onnxruntime-genai"},
        ),
        ({"rope_type": "su"}, ALL - {"llama.cpp", "onnxruntime-genai"}),
    ],
)
def test_which_runtimes_stop(scaling: dict[str, Any], expected: set[str]) -> None:
    """A config that some runtimes refuse is refused by exactly those whose code raises."""
    assert refusing(asked(scaling)) == expected


@pytest.mark.parametrize(
    ("row", "inv_freq"),
    [
        ("transformers", ramp(original_length=M)),
        ("transformers-4", ramp(original_length=M)),
        ("vllm", ramp(original_length=M)),
        ("sglang", ramp(original_length=M)),
        ("exllamav3", ramp(original_length=M)),
        ("mlx-lm", ramp(original_length=4096)),
        ("tensorrt-llm", ramp(original_length=1024)),
    ],
)
def test_a_missing_original_length(row: str, inv_freq: tuple[float, ...]) -> None:
    """Without an original length each runtime assumes its own."""
    assert readings(asked({"rope_type": "yarn", "factor": 4.0}))[row].inv_freq == pytest.approx(inv_freq, rel=1e-12)


def test_mlx_with_a_missing_original_length_gives_the_published_values() -> None:
    """The ramp for an assumed length of 4096 has the values measured on mlx-lm."""
    inv_freq = readings(asked({"rope_type": "yarn", "factor": 4.0}))["mlx-lm"].inv_freq
    assert inv_freq is not None
    measured = [0.0749894232, 0.0136790732, 0.00133788679, 3.33380376e-05]
    assert [inv_freq[d] for d in (9, 14, 20, 31)] == pytest.approx(measured, rel=2e-7)


def test_vllm_computes_the_ramp_of_mrope_for_four_times_the_length() -> None:
    """A YaRN that carries mrope sections gets the ramp of 4L in vLLM, and that of L in SGLang."""
    rows = readings(asked(YARN | {"mrope_section": [8, 12, 12]}))
    assert rows["vllm"].inv_freq == rows["vllm-2026-08"].inv_freq == ramp(original_length=4 * L)
    assert rows["sglang"].inv_freq == ramp()


SHORT, LONG = (1.5,) * (D // 2), (4.0,) * (D // 2)
LONGROPE = {"rope_type": "longrope", "short_factor": list(SHORT), "long_factor": list(LONG), ORIGINAL: L}
MEANT_LONGROPE = RopeSpec(10_000.0, D, D, L, M, Longrope(4.0, SHORT, LONG, 1.0, 1.0))


@pytest.mark.parametrize(
    ("row", "divisor"),
    [
        ("transformers", 1.5),
        ("transformers-4", 1.5),
        ("vllm", 1.5),
        ("sglang", 1.5),
        ("llama.cpp", 4.0),
        ("mlx-lm", 4.0),
        ("exllamav2", 4.0),
        ("exllamav3", 4.0),
        ("onnxruntime-genai", 1.5),
        ("tensorrt-llm", 4.0),
        ("tgi", 1.5),
    ],
)
def test_which_of_two_longrope_lists_is_used(row: str, divisor: float) -> None:
    """At the original length some runtimes use the short list and some the long one, and say so where they differ."""
    scaling = {**LONGROPE, "type": "longrope"}
    if row == "exllamav2":
        del scaling["rope_type"]
    if row == "transformers-4":
        scaling = {key: scaling[key] for key in ("type", "short_factor", "long_factor")}
    request = asked(scaling, spec=MEANT_LONGROPE, architecture="Phi3ForCausalLM", model_type="phi3", **{ORIGINAL: L})
    reading = readings(request)[row]
    assert reading.inv_freq == pytest.approx([w / divisor for w in PLAIN], rel=1e-12)
    assert reading.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(L)))
    assert any("long_factor" in note for note in reading.notes)


def test_vllm_takes_the_long_list_without_a_top_level_original_length() -> None:
    """With the original length in the dict alone, vLLM serves M tokens and uses the long list at every length."""
    reading = readings(asked(LONGROPE, spec=MEANT_LONGROPE))["vllm"]
    assert reading.context_length == M
    assert reading.inv_freq == pytest.approx([w / 4.0 for w in PLAIN])


CONTEXT = {
    "linear": {"vllm": 4 * M, "vllm-2026-08": 4 * M, "sglang": 4 * M, "tensorrt-llm": 4 * M},
    "yarn": {"vllm": 4 * L, "vllm-2026-08": 4 * L},
    "llama3": {},
    "longrope": {},
}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": YARN,
    "llama3": YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": LONGROPE,
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_the_context_length_of_each_runtime(kind: str) -> None:
    """Who multiplies max_position_embeddings by the factor, who takes factor · original, and who sets no limit."""
    request = asked(SCALINGS[kind], spec=MEANT_LONGROPE if kind == "longrope" else MEANT, max_position_embeddings=9000)
    expected = {name: {4 * M: 36_000}.get(length, length) for name, length in CONTEXT[kind].items()}
    found = {name: reading.context_length for name, reading in readings(request).items() if reading.inv_freq}
    assert found == {name: expected.get(name, None if name == "mlx-lm" else 9000) for name in found}


@pytest.mark.parametrize(
    ("keys", "served"),
    [
        ({}, M),
        ({"model_max_length": 131072}, 131072),  # CohereForAI/c4ai-command-r-v01
        ({"seq_length": 2048}, 2048),
        ({"max_sequence_length": 16384}, M),
    ],
)
def test_which_of_several_lengths_vllm_serves(keys: dict[str, int], served: int) -> None:
    """The shortest, but `model_max_length` wins (vLLM `_get_and_verify_max_len`)."""
    request = asked(None, spec=RopeSpec(10_000.0, D, D, M, M), **keys)
    assert readings(request)["vllm"].context_length == served


def test_an_empty_rope_scaling_hides_rope_parameters_from_exllamav3() -> None:
    """ExLlamaV3 falls back to rope_parameters where rope_scaling is null, not where it is empty."""
    both = {"rope_parameters": YARN | {"rope_theta": 10_000.0}}
    assert readings(asked(None, **both))["exllamav3"].inv_freq == ramp()
    assert readings(asked({}, **both))["exllamav3"].inv_freq == PLAIN
    assert readings(asked({}, **both))["transformers"].inv_freq == ramp()


@pytest.mark.parametrize(("architecture", "original"), [("LlamaForCausalLM", 1024), ("Qwen2ForCausalLM", L)])
def test_sglang_reads_a_top_level_original_length_for_some_architectures(architecture: str, original: int) -> None:
    """A top-level original length wins in transformers and vLLM; in SGLang the model's file must copy it."""
    rows = readings(asked(YARN, architecture=architecture, **{ORIGINAL: 1024}))
    assert rows["transformers"].inv_freq == rows["vllm"].inv_freq == ramp(original_length=1024)
    assert rows["sglang"].inv_freq == ramp(original_length=original)
    assert any("top-level" in note for note in rows["sglang"].notes) is (original == L)


def test_runtimes_that_load_through_transformers_need_its_keys() -> None:
    """llama3 without its bounds does not pass transformers' validation, so not those that load through it either."""
    stopped = refusing(asked({"rope_type": "llama3", "factor": 4.0, ORIGINAL: L}))
    assert stopped == ALL - {"llama.cpp", "mlx-lm", "exllamav3", "tensorrt-llm"}


def test_exllamav3_replaces_the_factor_by_the_ratio_of_the_lengths() -> None:
    """A factor of 2 beside lengths that imply 4 is read as 4, with a note."""
    reading = readings(asked(YARN | {"factor": 2.0}))["exllamav3"]
    assert reading.inv_freq == ramp()
    assert any("factor ignored" in note for note in reading.notes)


@pytest.mark.parametrize(("architecture", "scaled"), [("LlamaForCausalLM", True), ("Qwen2ForCausalLM", False)])
def test_llama_cpp_converts_llama3_for_some_architectures(architecture: str, *, scaled: bool) -> None:
    """The converter writes llama3's divisors for Llama, and drops the type without an error for Qwen."""
    reading = readings(asked(SCALINGS["llama3"], architecture=architecture))["llama.cpp"]
    assert (reading.inv_freq != PLAIN) is scaled
    assert bool(reading.notes) is not scaled


@pytest.mark.parametrize(("architecture", "fast"), [("LlamaForCausalLM", 32.0), ("Ministral3ForCausalLM", 8.0)])
def test_llama_cpp_reads_betas_for_mistral_3_alone(architecture: str, fast: float) -> None:
    """The betas in a GGUF count for Mistral 3; for Llama the defaults hold."""
    scaling = YARN | {"beta_fast": 8.0, "beta_slow": 1.0}
    assert readings(asked(scaling, architecture=architecture))["llama.cpp"].inv_freq == ramp(beta_fast=fast)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"beta_fast": 32.0}, "beta_slow"),
        ({"beta_fast": 32.0, "beta_slow": 0.01}, "inside the head"),
        ({"beta_fast": 1000.0, "beta_slow": 1.0}, "inside the head"),
    ],
)
def test_onnxruntime_stops_at_a_ramp_outside_the_head(change: dict[str, float], reason: str) -> None:
    """ONNX Runtime's builder asserts that the whole ramp lies inside the head."""
    reading = readings(asked(YARN | change, architecture="MistralForCausalLM"))["onnxruntime-genai"]
    assert reading.inv_freq is None
    assert reason in reading.notes[0]


def test_onnxruntime_takes_the_factor_for_the_temperature_of_an_unknown_type() -> None:
    """With beta_fast present any type becomes the ramp, and one that is not yarn gets cos and sin times the factor."""
    scaling = {"rope_type": "default", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, ORIGINAL: L}
    reading = readings(asked(scaling, architecture="MistralForCausalLM"))["onnxruntime-genai"]
    assert reading.attention_factor == 4.0
    assert reading.inv_freq == ramp(original_length=L, truncate=False)


def test_latent_attention_has_a_yarn_of_its_own() -> None:
    """For MLA vLLM and SGLang force DeepSeek's YaRN, ExLlamaV3 does for DeepSeek-V3, llama.cpp drops the ratio."""
    scaling = YARN | {"mscale": 2.0, "mscale_all_dim": 1.0, "attn_factor": 1.25, "truncate": False}
    rows = readings(asked(scaling, mla=True, architecture="DeepseekV3ForCausalLM", model_type="deepseek_v3"))
    s = 0.1 * math.log(4.0)
    ratio = (2 * s + 1) / (s + 1)
    for name in ("vllm", "vllm-2026-08", "sglang"):
        assert rows[name].attention_factor == pytest.approx(1.25 * ratio)
        assert rows[name].inv_freq == ramp()
    assert rows["exllamav3"].attention_factor == pytest.approx(ratio)
    assert rows["llama.cpp"].attention_factor == 1.0


GEMMA3 = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
}


def gemma3(layer_type: str) -> dict[str, Reading]:
    sliding = layer_type == "sliding_attention"
    scaling: Scaling = Plain() if sliding else Linear(8.0)
    spec = RopeSpec(10_000.0 if sliding else 1e6, D, D, L, M, scaling)
    source = {"rope_theta": f"rope_parameters.{layer_type}.rope_theta"}
    return readings(
        Request(
            {"max_position_embeddings": M} | GEMMA3,
            LayerRope(layer_type, 2, spec, source),
            "Gemma3ForCausalLM",
            "gemma3_text",
            layer_type,
            default_rope_theta=1e6,
        )
    )


@pytest.mark.parametrize("row", ["vllm", "vllm-2026-08", "sglang"])
def test_minicpm3_has_latent_attention_and_longrope_as_it_says(row: str) -> None:
    """Its classes in vLLM and SGLang hand `rope_scaling` on; DeepSeek's would compute YaRN, and miss a factor."""
    lists = {"short_factor": [2.0] * (D // 2), "long_factor": [2.0] * (D // 2)}
    scaling = Longrope(1.0, (2.0,) * (D // 2), (2.0,) * (D // 2), attention_factor=1.0, short_attention_factor=1.0)
    request = asked(
        {"type": "longrope", ORIGINAL: M, **lists},
        spec=RopeSpec(10_000.0, D, D, M, M, scaling),
        architecture="MiniCPM3ForCausalLM",
        model_type="minicpm3",
        mla=True,
    )
    assert compare(readings(request)[row], frequencies(request.rope.spec)) == (0.0, True)


def test_a_config_nested_by_layer_type() -> None:
    """Rows that know nesting read the entry of the layer type; the others turn the full layers unscaled."""
    full, sliding = gemma3("full_attention"), gemma3("sliding_attention")
    scaled = tuple(w / 8 for w in base_frequencies(1e6, D))
    knowing = {"transformers", "vllm", "vllm-2026-08", "sglang", "llama.cpp", "tensorrt-llm"}
    assert {name for name, row in full.items() if row.inv_freq == pytest.approx(scaled)} == knowing
    for name in ALL - knowing:
        assert full[name].inv_freq == pytest.approx(base_frequencies(1e6, D)) or full[name].inv_freq == PLAIN
    for name in ("transformers", "vllm", "sglang", "llama.cpp", "mlx-lm", "exllamav3"):
        assert sliding[name].inv_freq == pytest.approx(PLAIN)


def test_vllm_multiplies_the_context_by_the_factor_of_any_layer_type() -> None:
    """The context length is that of the config, whichever kind of layer is asked about; Gemma-3 is exempt."""
    assert gemma3("sliding_attention")["vllm"].context_length == M
    entry = {"full_attention": YARN | {"rope_theta": 1e4}, "sliding_attention": {"rope_type": "default"}}
    local = RopeSpec(10_000.0, D, D, L, M)
    request = asked(None, spec=local, layer_type="sliding_attention", model_type="olmo3", rope_parameters=entry)
    assert readings(request)["vllm"].context_length == 4 * L


def test_what_transformers_5_saves_is_lost_on_others() -> None:
    """Rows that do not know rope_parameters fall back to the base of the model's class, unscaled, and say so."""
    request = asked(
        None,
        sources={"rope_theta": "rope_parameters.rope_theta"},
        default_rope_theta=500_000.0,
        rope_parameters=YARN | {"rope_theta": 10_000.0},
        rope_theta=None,
    )
    rows = readings(request)
    for name in ("transformers-4", "tgi"):
        assert rows[name].inv_freq == base_frequencies(500_000.0, D)
    for name in ("mlx-lm", "exllamav2"):
        assert rows[name].inv_freq == PLAIN
    for name in ("transformers-4", "tgi", "mlx-lm", "exllamav2"):
        assert "rope_parameters is not read" in rows[name].notes
    assert rows["vllm"].inv_freq == rows["sglang"].inv_freq == rows["llama.cpp"].inv_freq == ramp()


@pytest.mark.parametrize(
    ("model_type", "inv_freq"), [("llama", ramp()), ("qwen3", ramp()), ("qwen3_moe", PLAIN), ("mixtral", PLAIN)]
)
def test_mlx_scales_some_models_only(model_type: str, inv_freq: tuple[float, ...]) -> None:
    """Some MLX models hold a plain rope, so that YaRN in the file has no effect there."""
    reading = readings(asked(YARN, model_type=model_type))["mlx-lm"]
    assert reading.inv_freq == inv_freq
    assert any("never scales" in note for note in reading.notes) is (inv_freq == PLAIN)


def test_a_comparison_measures_frequencies_and_temperature() -> None:
    """A reading agrees within 5e-5 of each frequency and 1e-4 of the attention factor, and not beyond."""
    meant = Frequencies((1.0, 0.5, 0.0), 1.1)
    exact = Reading((1.0, 0.5, 0.0), 1.1, None)
    assert compare(exact, meant) == (0.0, True)
    assert compare(Reading((1.0, 0.5 * (1 + 4e-5), 0.0), 1.1, None), meant) == (pytest.approx(4e-5), True)
    assert compare(Reading((1.0, 0.5 * (1 + 6e-5), 0.0), 1.1, None), meant) == (pytest.approx(6e-5), False)
    assert compare(Reading((1.0, 0.5, 0.0), 1.10009, None), meant) == (0.0, True)
    assert compare(Reading((1.0, 0.5, 0.0), 1.10011, None), meant) == (0.0, False)
    assert compare(Reading((1.0, 0.5, 1e-3), 1.1, None), meant) == (pytest.approx(1e-3), False)
    assert compare(Reading((1.0, 0.5), 1.1, None), meant) == (None, False)
    assert compare(Reading(None, None, None, ("does not load",)), meant) == (None, False)


def test_every_row_has_a_name_and_a_version() -> None:
    """Row names are unique, and every rule says what it was read from."""
    assert len(ALL) == len(RUNTIMES) == 12
    assert all(runtime.version for runtime in RUNTIMES)


NAMES = [
    *("rope_type", "type", "factor", ORIGINAL, "beta_fast", "beta_slow", "attention_factor", "attn_factor", "mscale"),
    *("mscale_all_dim", "truncate", "short_factor", "long_factor", "short_mscale", "long_mscale", "low_freq_factor"),
    *("high_freq_factor", "alpha", "mixed_b", "max_trained_positions", "extrapolation_factor", "apply_yarn_scaling"),
    *("partial_rotary_factor", "mrope_section", "llama_4_scaling_beta", "rope_theta", "full_attention"),
]
TYPES = [
    *("default", "linear", "dynamic", "yarn", "longrope", "su", "llama3", "proportional", "ntk", "mrope", "xdrope"),
    *("deepseek_yarn", "deepseek_llama_scaling", "telechat3-yarn", "nonsense"),
]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10),
    st.sampled_from([0, 10**400, 1e308, -1.0, 1e-320, math.nan, math.inf, "8", "", [], {}, [1, "2"], {"a": 1}]),
    st.floats(0.1, 64.0),
    st.lists(st.floats(0.5, 8.0), min_size=8, max_size=8),
)
BLOCK = st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=9)
TYPED = st.builds(lambda block, kind: block | {"rope_type": kind}, BLOCK, st.sampled_from(TYPES))
SCALING = st.one_of(TYPED, BLOCK, JUNK, st.builds(lambda entry: {"full_attention": entry}, TYPED))
ODD_CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "rope_scaling": SCALING,
        "rope_parameters": SCALING,
        "attn_config": SCALING,
        "rope_theta": JUNK,
        "max_position_embeddings": st.one_of(st.integers(1, 10**6), JUNK),
        ORIGINAL: st.one_of(st.integers(1, 10**6), JUNK),
        "rope_local_base_freq": JUNK,
    },
)
MODELS = ["llama", "phi3", "gemma3_text", "qwen3", "deepseek_v3", "ministral3", "laguna", "gemma4_text", ""]
ARCHITECTURES = ["LlamaForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "HunYuanDenseV1ForCausalLM", ""]


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.name)
@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    config=ODD_CONFIGS,
    model_type=st.sampled_from(MODELS),
    architecture=st.sampled_from(ARCHITECTURES),
    layer_type=st.sampled_from([None, "full_attention", "sliding_attention"]),
    mla=st.booleans(),
)
def test_no_config_makes_a_reading_fail(
    runtime: Runtime, config: dict[str, Any], model_type: str, architecture: str, layer_type: str | None, *, mla: bool
) -> None:
    """However odd the config, a reading holds finite numbers for every pair, or none and a note that says why."""
    scaling = Plain() if layer_type == "sliding_attention" else Yarn.default(4.0)
    spec = RopeSpec(10_000.0, 16, 16, L, M, scaling)
    rope = LayerRope(layer_type or "default", 2, spec, {"rope_theta": "rope_parameters.rope_theta"}, mla=mla)
    reading = runtime.read(Request(config, rope, architecture, model_type, layer_type))
    if reading.inv_freq is None:
        assert (reading.attention_factor, reading.context_length) == (None, None)
        assert len(reading.notes) == 1
        return
    assert len(reading.inv_freq) == 8
    assert all(map(math.isfinite, reading.inv_freq))
    assert reading.attention_factor is not None
    assert math.isfinite(reading.attention_factor)
    assert isinstance(reading.context_length, int | None)
    assert all(isinstance(note, str) and len(note) <= 160 for note in reading.notes)


def test_importing_the_rows_imports_no_library() -> None:
    """The package stands on the standard library alone."""
    code = "import sys, json, ropecli.runtimes; print(json.dumps([*sys.modules]))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert not {"torch", "transformers", "numpy", "scipy", "gguf"} & set(loaded)


def test_transformers_4_takes_three_keys_for_phi3_and_no_more() -> None:
    """Its config class raises ValueError for any other key beside type and the two lists."""
    request = asked(LONGROPE, spec=MEANT_LONGROPE, architecture="Phi3ForCausalLM", model_type="phi3", **{ORIGINAL: L})
    reading = readings(request)["transformers-4"]
    assert reading.inv_freq is None
    assert "no other key" in " ".join(reading.notes)
