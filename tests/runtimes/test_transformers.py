"""The transformers row against the installed transformers itself."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.frequencies import frequencies
from ropecli.inspection import runtime_rows
from ropecli.runtimes import Reading, Request
from ropecli.runtimes.transformers5 import RUNTIME
from ropecli.spec import LayerRope, Plain, RopeSpec, Yarn

CONFIGS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "configs.json").read_text())
ROUNDING = 2.0**-20
"""transformers computes in float32: at the end of a ramp its error is one of w, not of the small w/s."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What transformers warns of in each odd config is not of interest here."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def real(config: dict[str, Any]) -> tuple[list[float], float] | None:
    """inv_freq and attention factor of the real module; None where it does not load."""
    from transformers import LlamaConfig  # noqa: PLC0415
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: PLC0415

    try:
        module = LlamaRotaryEmbedding(LlamaConfig.from_dict(json.loads(json.dumps(config))))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RuntimeError):
        return None
    return module.inv_freq.double().tolist(), float(module.attention_scaling)


def ours(config: dict[str, Any], rotary_dim: int) -> Reading:
    head_dim, longest = config["head_dim"], config["max_position_embeddings"]
    spec = RopeSpec(10_000.0, head_dim, rotary_dim, longest, longest)
    return RUNTIME.read(Request(config, LayerRope("default", 2, spec, {}), "LlamaForCausalLM", "llama"))


def assert_same(config: dict[str, Any], rotary_dim: int) -> None:
    oracle, reading = real(config), ours(config, rotary_dim)
    if oracle is None:
        assert reading.inv_freq is None, reading
        return
    assert reading.inv_freq is not None, reading.notes
    assert reading.attention_factor == pytest.approx(oracle[1], rel=1e-9)
    assert len(reading.inv_freq) == len(oracle[0])
    theta = config.get("rope_theta") or scaling_of(config).get("rope_theta", 10_000.0)
    for pair, (found, expected) in enumerate(zip(reading.inv_freq, oracle[0], strict=True)):
        unscaled = theta ** (-2 * pair / rotary_dim)
        assert found == pytest.approx(expected, rel=1e-6, abs=ROUNDING * unscaled), pair


def scaling_of(config: dict[str, Any]) -> dict[str, Any]:
    scaling: dict[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return scaling


@pytest.mark.parametrize("name", CONFIGS)
def test_the_golden_configs(name: str) -> None:
    """On the 16 golden configs the row is the real module's answer, to what float32 keeps."""
    assert_same(CONFIGS[name], 64)
    oracle, reading = real(CONFIGS[name]), ours(CONFIGS[name], 64)
    assert oracle is not None
    assert reading.inv_freq == pytest.approx(oracle[0], rel=1e-6)


def test_a_real_module_that_differs_is_noticed() -> None:
    """The comparison with the oracle can fail: another theta is not the same."""
    changed = CONFIGS["A minimal yarn (factor 4, original 2048, max 8192)"] | {"rope_theta": 10_001.0}
    oracle, reading = real(changed), ours(CONFIGS["A minimal yarn (factor 4, original 2048, max 8192)"], 64)
    assert oracle is not None
    assert reading.inv_freq != pytest.approx(oracle[0], rel=1e-6)


FACTOR = st.floats(1.0, 64.0)
ORIGINAL, LONGEST = st.integers(64, 4096), st.integers(4096, 65_536)
BETA = st.one_of(st.just(0), st.none(), st.floats(0.1, 64.0))
MSCALE = st.one_of(st.just(0), st.none(), st.floats(0.1, 2.0))
KEYS = {
    "yarn": {
        "factor": st.one_of(FACTOR, st.none(), st.integers(1, 32)),
        "original_max_position_embeddings": ORIGINAL,
        "beta_fast": BETA,
        "beta_slow": BETA,
        "attention_factor": st.one_of(st.none(), st.floats(0.0, 2.0)),
        "attn_factor": st.floats(0.5, 2.0),
        "mscale": MSCALE,
        "mscale_all_dim": MSCALE,
        "truncate": st.booleans(),
    },
    "linear": {"factor": FACTOR, "alpha": FACTOR},
    "dynamic": {"factor": FACTOR},
    "llama3": {
        "factor": FACTOR,
        "low_freq_factor": st.floats(0.1, 4.0),
        "high_freq_factor": st.floats(8.0, 64.0),
        "original_max_position_embeddings": ORIGINAL,
    },
    "longrope": {
        "factor": st.one_of(st.none(), FACTOR),
        "attention_factor": st.one_of(st.none(), st.floats(0.5, 2.0)),
        "original_max_position_embeddings": ORIGINAL,
    },
    "proportional": {"factor": FACTOR},
    "default": {"factor": FACTOR},
    "su": {},
}


@st.composite
def configs(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A Llama config with any scaling, spelt either way, keys left out at random; and its rotary width."""
    kind = draw(st.sampled_from(sorted(KEYS)))
    head_dim = draw(st.sampled_from([16, 64, 128]))
    scaling: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=KEYS[kind]))
    scaling[draw(st.sampled_from(["rope_type", "type"]))] = kind
    rotary_dim = head_dim
    if kind not in {"proportional", "default"} and draw(st.booleans()):
        scaling["partial_rotary_factor"], rotary_dim = 0.5, head_dim // 2
    if kind == "longrope":
        lists = st.lists(st.floats(1.0, 40.0), min_size=rotary_dim // 2, max_size=rotary_dim // 2)
        scaling |= {"short_factor": draw(lists), "long_factor": draw(lists)}
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 4 * head_dim,
        "num_attention_heads": 4,
        "head_dim": head_dim,
        "max_position_embeddings": draw(LONGEST),
        draw(st.sampled_from(["rope_scaling", "rope_parameters"])): scaling,
    }
    theta = draw(st.sampled_from([None, 10_000.0, 500_000.0, 1_000_000]))
    if theta is not None:
        draw(st.sampled_from([config, scaling]))["rope_theta"] = theta
    if draw(st.booleans()):
        config["original_max_position_embeddings"] = draw(ORIGINAL)
    return config, rotary_dim


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(configs())
def test_any_llama_config(case: tuple[dict[str, Any], int]) -> None:
    """For any scaling of a Llama the row gives what the real module gives, and stops where it stops."""
    assert_same(*case)


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 1024, "truncate": False}
BY_LAYER = {
    "rope_scaling": {"rope_scaling": YARN, "rope_theta": 500_000.0},
    "rope_parameters": {
        "rope_parameters": {
            "full_attention": YARN | {"rope_theta": 500_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        }
    },
    "both": {
        "rope_scaling": {"beta_fast": 20.0},
        "rope_parameters": {
            "full_attention": YARN | {"rope_theta": 500_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
}


@pytest.mark.parametrize("layer_type", ["full_attention", "sliding_attention"])
@pytest.mark.parametrize("spelling", BY_LAYER)
def test_a_model_with_two_kinds_of_layers(spelling: str, layer_type: str) -> None:
    """Gemma-3's two embeddings are read from either spelling, and `truncate` inside a layer type is lost."""
    from transformers import Gemma3TextConfig  # noqa: PLC0415
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding  # noqa: PLC0415

    shape = {"head_dim": 64, "num_attention_heads": 4, "hidden_size": 256, "num_hidden_layers": 6}
    config = shape | {"max_position_embeddings": 8192, "model_type": "gemma3_text"} | BY_LAYER[spelling]
    module = Gemma3RotaryEmbedding(Gemma3TextConfig.from_dict(json.loads(json.dumps(config))))
    sliding = layer_type == "sliding_attention"
    scaling = Plain() if sliding else Yarn.default(8.0)
    spec = RopeSpec(10_000.0 if sliding else 500_000.0, 64, 64, 1024, 8192, scaling)
    request = Request(config, LayerRope(layer_type, 3, spec, {}), "Gemma3ForCausalLM", "gemma3_text", layer_type)
    reading = RUNTIME.read(request)
    assert reading.inv_freq is not None, reading.notes
    oracle = getattr(module, f"{layer_type}_inv_freq").double().tolist()
    assert reading.inv_freq == pytest.approx(oracle, rel=2e-6)
    assert reading.attention_factor == pytest.approx(getattr(module, f"{layer_type}_attention_scaling"))
    assert any("truncate" in note for note in reading.notes) is not sliding


def test_dbrx_rotates_by_another_base_than_its_attention_states() -> None:
    """databricks/dbrx-instruct has the base in `attn_config` alone, where version 5 keeps it and does not use it."""
    from transformers import DbrxConfig  # noqa: PLC0415
    from transformers.models.dbrx.modeling_dbrx import DbrxRotaryEmbedding  # noqa: PLC0415

    config = {"model_type": "dbrx", "d_model": 256, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}
    config |= {"architectures": ["DbrxForCausalLM"], "attn_config": {"kv_n_heads": 2, "rope_theta": 500000.0}}
    oracle = DbrxRotaryEmbedding(DbrxConfig.from_dict(json.loads(json.dumps(config)))).inv_freq.double().tolist()
    rows = runtime_rows(read_config(config))
    row = rows["transformers"]
    assert not row.agrees
    assert rows["llama.cpp"].agrees  # conversion/dbrx.py looks nowhere else
    assert row.notes == ("attn_config.rope_theta is not read: the base is 10000",)
    meant = frequencies(RopeSpec(500000.0, 64, 64, 512, 512)).inv_freq
    worst = max(abs(a - b) / b for a, b in zip(oracle, meant, strict=True))
    assert row.max_rel_diff == pytest.approx(worst, rel=1e-5)
    assert runtime_rows(read_config(config | {"rope_theta": 500000.0}))["transformers"].agrees


def read_config(config: dict[str, Any]) -> Checkpoint:
    return read_checkpoint("-", stdin=io.StringIO(json.dumps(config)))


def test_minimax_rotates_the_whole_head_whatever_its_rotary_dim() -> None:
    """MiniMaxAI/MiniMax-Text-01-hf was trained with half of it; vLLM reads `rotary_dim`, this class does not."""
    from transformers import MiniMaxConfig  # noqa: PLC0415
    from transformers.models.minimax.modeling_minimax import MiniMaxRotaryEmbedding  # noqa: PLC0415

    config = {"model_type": "minimax", "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
    config |= {"head_dim": 64, "rotary_dim": 32, "max_position_embeddings": 512, "rope_theta": 10000.0}
    assert len(MiniMaxRotaryEmbedding(MiniMaxConfig.from_dict(dict(config))).inv_freq) == 32
    checkpoint = read_config(config)
    assert checkpoint.ropes[0].spec.rotary_dim == 32
    rows = runtime_rows(checkpoint)
    for name in ("transformers", "transformers-4"):
        assert not rows[name].agrees
        assert rows[name].notes == ("rotary_dim is not read: the whole head rotates",)
    assert rows["vllm"].agrees


def test_hunyuan_vl_calls_xdrope_dynamic() -> None:
    """tencent/HunyuanOCR: the class renames the type, and its rotary module takes alpha for a static base."""
    from transformers import HunYuanVLTextConfig  # noqa: PLC0415
    from transformers.models.hunyuan_vl import modeling_hunyuan_vl  # noqa: PLC0415

    text = {"model_type": "hunyuan_vl_text", "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
    text |= {"head_dim": 64, "max_position_embeddings": 512, "rope_theta": 10000.0}
    text |= {"rope_scaling": {"type": "xdrope", "alpha": 1000.0, "factor": 1.0, "xdrope_section": [8, 8, 8, 8]}}
    module = modeling_hunyuan_vl.HunYuanVLRotaryEmbedding(HunYuanVLTextConfig(**json.loads(json.dumps(text))))
    checkpoint = read_config({"model_type": "hunyuan_vl", "text_config": text})
    meant = frequencies(checkpoint.ropes[0].spec).inv_freq
    assert module.inv_freq.tolist() == pytest.approx(meant, rel=1e-6)
    assert runtime_rows(checkpoint)["transformers"].agrees
