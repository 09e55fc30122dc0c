"""Every rule against values computed from the runtimes' sources: 16 configs by 15 runtimes and variants."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ropecli.dialects import hf
from ropecli.frequencies import frequencies, turns_at
from ropecli.runtimes import RUNTIMES, Reading, Request, readings
from ropecli.spec import NtkByParts, RopeSpec, Yarn, default_attention_factor

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "configs.json").read_text())
VALUES: dict[str, dict[str, dict[str, Any]]] = json.loads((GOLDEN / "runtimes.json").read_text())

ROWS = {
    "transformers 5.23": "transformers",
    "vLLM 2026-08-07": "vllm-2026-08",
    "vLLM later tree": "vllm",
    "vLLM deepseek_yarn": "vllm-2026-08",
    "sglang 2026-06-25": "sglang",
    "llama.cpp arch llama": "llama.cpp",
    "mlx-lm": "mlx-lm",
    "exllamav2": "exllamav2",
    "exllamav3": "exllamav3",
    "ort-genai Mistral/Qwen": "onnxruntime-genai",
    "ort-genai Llama": "onnxruntime-genai",
    "TensorRT-LLM torch": "tensorrt-llm",
    "TGI": "tgi",
}
CASES = [(config, variant) for config, values in VALUES.items() for variant in values]
PLAIN_YARN = RopeSpec(10000.0, 64, 64, 2048, 8192, Yarn.default(4.0))
REFERENCES = {
    "jquesnelle/yarn": PLAIN_YARN,
    "paper/EleutherAI blog": replace(
        PLAIN_YARN, scaling=NtkByParts(4.0, attention_factor=default_attention_factor(4.0))
    ),
}


def request(config: dict[str, Any], architecture: str = "LlamaForCausalLM", *, mla: bool = False) -> Request:
    rope = replace(hf.read(config)[0], mla=mla)
    return Request(config, rope, architecture, config["model_type"])


def assert_golden(reading: Reading, expected: dict[str, Any]) -> None:
    assert reading.attention_factor == pytest.approx(expected["af"], rel=1e-9)
    assert reading.inv_freq is not None
    found = {index: reading.inv_freq[int(index)] for index in expected["inv"]}
    assert found == pytest.approx(expected["inv"], rel=1e-9)
    assert reading.context_length == expected["ctx"]


@pytest.mark.parametrize(("config", "variant"), [case for case in CASES if case[1] in ROWS])
def test_a_rule_gives_the_golden_values(config: str, variant: str) -> None:
    """A runtime's frequencies, attention factor and context length are those of its source."""
    architecture = "MistralForCausalLM" if "Mistral" in variant else "LlamaForCausalLM"
    asked = request(CONFIGS[config], architecture, mla=variant == "vLLM deepseek_yarn")
    reading = readings(asked)[ROWS[variant]]
    expected = VALUES[config][variant]
    if "error" in expected:
        assert reading.inv_freq is None
        assert reading.attention_factor is None
        assert reading.notes
    else:
        assert_golden(reading, expected)


@pytest.mark.parametrize(("config", "variant"), [case for case in CASES if case[1] in REFERENCES])
def test_the_references_ignore_the_file(config: str, variant: str) -> None:
    """The YaRN reference and the paper's ramp, with their own defaults, are two of our specs."""
    computed, expected = frequencies(REFERENCES[variant]), VALUES[config][variant]
    assert_golden(Reading(computed.inv_freq, computed.attention_factor, expected["ctx"]), expected)


def test_every_golden_value_is_tested() -> None:
    """All 16 configs and all 15 variants are covered by a row or a reference."""
    assert len(VALUES) == 16
    assert {variant for _, variant in CASES} == set(ROWS) | set(REFERENCES)
    assert len(ROWS) + len(REFERENCES) == 15
    assert list(CONFIGS) == list(VALUES)
    assert set(ROWS.values()) | {"transformers-4"} == {runtime.name for runtime in RUNTIMES}


def test_the_universal_configs_hold_snapped_betas() -> None:
    """The betas of the golden configs lie 1e-4 of a pair inside the corners 8 and 21."""
    for name in ("N universal yarn, attention factor 1.5", "O universal yarn, attention factor 1.0"):
        scaling = CONFIGS[name]["rope_scaling"]
        betas = scaling["beta_fast"], scaling["beta_slow"]
        inside = [turns_at(pair, 10000.0, 64, 2048) for pair in (8 + 1e-4, 21 - 1e-4)]
        assert betas == pytest.approx(inside, rel=1e-12)
