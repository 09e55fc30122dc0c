"""The mlx-lm row against mlx-lm itself, where MLX is installed (`pip install "mlx[cpu]" mlx-lm`)."""

import ast
import dataclasses
import importlib
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropecli.runtimes import Request
from ropecli.runtimes.mlx_lm import DEFAULT_THETA, REQUIRED_THETA, RUNTIME, UNSCALED
from ropecli.spec import LayerRope, RopeSpec

mx = pytest.importorskip("mlx.core")
models = pytest.importorskip("mlx_lm.models")

pytestmark = pytest.mark.runtimes

CONFIGS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "configs.json").read_text())
HEAD_DIM = 64
SHAPE = {
    "intermediate_size": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 64,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
SCALERS = ("initialize_rope", "SuScaledRoPE", "YarnRoPE", "Llama3RoPE")
NOT_TABLED = {"llama4_text", "rope_utils"}
"""A name that is also the text part of a model which another module serves; and the rope module itself."""


def real(config: dict[str, Any]) -> tuple[list[float], float] | None:
    """Frequencies and temperature of the model's own module, measured on what it does to unit vectors at position 1."""
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    try:
        rope = module.Attention(module.ModelArgs.from_dict(SHAPE | json.loads(json.dumps(config)))).rope
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AssertionError):
        return None
    unit = mx.concatenate([mx.ones((1, 1, 1, HEAD_DIM // 2)), mx.zeros((1, 1, 1, HEAD_DIM // 2))], axis=-1)
    turned = rope(unit, offset=1).reshape(-1).tolist()
    halves = list(zip(turned[: HEAD_DIM // 2], turned[HEAD_DIM // 2 :], strict=True))
    return [math.atan2(sin, cos) for cos, sin in halves], math.hypot(*halves[0])


def assert_same(config: dict[str, Any]) -> None:
    longest = config["max_position_embeddings"]
    rope = LayerRope("default", 2, RopeSpec(10_000.0, HEAD_DIM, HEAD_DIM, longest, longest), {})
    oracle, reading = real(config), RUNTIME.read(Request(config, rope, "", config["model_type"]))
    if oracle is None:
        assert reading.inv_freq is None
        return
    assert reading.inv_freq is not None, reading.notes
    assert reading.inv_freq == pytest.approx(oracle[0], rel=1e-5)
    assert reading.attention_factor == pytest.approx(oracle[1], rel=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_golden_configs(name: str, model_type: str) -> None:
    """The row does what the model's rope does, for three models that read the file differently."""
    assert_same(CONFIGS[name] | {"model_type": model_type})


POSITIVE = st.floats(1.0, 32.0)
KEYS = {
    "yarn": {
        "factor": POSITIVE,
        "original_max_position_embeddings": st.integers(512, 8192),
        "beta_fast": st.floats(16.0, 64.0),
        "beta_slow": st.one_of(st.none(), st.floats(0.5, 4.0)),
        "mscale": st.floats(0.0, 2.0),
        "mscale_all_dim": st.floats(0.0, 2.0),
        "attention_factor": POSITIVE,
    },
    "linear": {"factor": POSITIVE},
    "dynamic": {"factor": POSITIVE},
    "llama3": {
        "factor": POSITIVE,
        "low_freq_factor": st.floats(0.5, 4.0),
        "high_freq_factor": st.floats(8.0, 64.0),
        "original_max_position_embeddings": st.integers(512, 8192),
    },
    "longrope": {
        "original_max_position_embeddings": st.integers(512, 4096),
        "short_factor": st.just([1.5] * (HEAD_DIM // 2)),
        "long_factor": st.lists(st.floats(1.0, 40.0), min_size=HEAD_DIM // 2, max_size=HEAD_DIM // 2),
    },
    "ntk": {},
}


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(KEYS)))
    scaling: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=KEYS[kind]))
    scaling[draw(st.sampled_from(["rope_type", "type"]))] = kind
    config = CONFIGS["A minimal yarn (factor 4, original 2048, max 8192)"] | {"rope_scaling": scaling}
    return config | {"rope_theta": draw(st.sampled_from([10_000.0, 1_000_000.0]))}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(configs())
def test_any_llama_config(config: dict[str, Any]) -> None:
    """For any scaling of a Llama the row gives what the real rope gives, and stops where it stops."""
    assert_same(config)


SCALINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    "yarn in both keys": {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    "linear": {"rope_type": "linear", "type": "linear", "factor": 4.0},
    "dynamic with alpha": {"type": "dynamic", "factor": 1.0, "alpha": 50.0},
}
OWN_RULES = (
    "deepseek",
    "ernie4_5",
    "ernie4_5_moe",
    "hunyuan",
    "hunyuan_v1_dense",
    "internlm2",
    "internlm3",
    "nemotron",
)
"""Model types that refuse some scalings, heed one alone, or have a rope module that is never told of any."""


def filled(arguments: Any, config: dict[str, Any]) -> Any:
    """The model's arguments from a config, with something in every field that rotates nothing."""
    stand_ins = {"bool": False, "float": 1e-5, "str": "silu", "int": 64}
    missing = {
        field.name: next((value for kind, value in stand_ins.items() if kind in str(field.type)), None)
        for field in dataclasses.fields(arguments)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return arguments.from_dict(missing | SHAPE | json.loads(json.dumps(config)))


def second_pair(model_type: str, config: dict[str, Any]) -> tuple[float, float] | None:
    """(turn of the second pair, multiplier) of the rope in the model's own attention; None where it does not load."""
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    kind = next(kind for name, kind in vars(module).items() if name.endswith("Attention"))
    try:
        arguments = filled(module.ModelArgs, config)
        attention = kind(True, arguments) if "kv_proj" in inspect.signature(kind).parameters else kind(arguments)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    rope = attention.rope
    turned = [rope(mx.ones((1, 1, 2, HEAD_DIM)))[0, 0, position] for position in (0, 1)]
    half = HEAD_DIM // 2
    first, second = (1, 1 + half) if not getattr(rope, "traditional", False) else (2, 3)
    (a, _), (c, d) = ((float(turn[first]), float(turn[second])) for turn in turned)
    return math.atan2(d, c) - math.pi / 4, a


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("model_type", OWN_RULES)
def test_a_model_with_rules_of_its_own(model_type: str, scaling: str) -> None:
    """The row stops where the model's own attention cannot be built, and turns and multiplies as it does elsewhere."""
    config = CONFIGS["A minimal yarn (factor 4, original 2048, max 8192)"] | {"rope_scaling": SCALINGS[scaling]}
    config |= {"model_type": model_type, "partial_rotary_factor": 1.0}
    rope = LayerRope("default", 2, RopeSpec(10_000.0, HEAD_DIM, HEAD_DIM, 8192, 8192), {})
    found = second_pair(model_type, config)
    reading = RUNTIME.read(Request(config, rope, "", model_type))
    assert (found is None) == (reading.inv_freq is None), reading.notes
    if found is not None and reading.inv_freq is not None:
        assert reading.inv_freq[1] == pytest.approx(found[0], rel=1e-4)
        assert reading.attention_factor == pytest.approx(found[1], rel=1e-4)


def base_fields(source: str) -> list[ast.expr | None]:
    """The default of each `rope_theta` field in the argument classes of a model's source, None where it has none."""
    classes = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and ("Args" in node.name or node.name == "TextConfig")
    ]
    fields = [field for node in classes for field in node.body if isinstance(field, ast.AnnAssign)]
    return [field.value for field in fields if ast.unparse(field.target) == "rope_theta"]


def test_the_tables_of_model_types_are_those_of_mlx_lm() -> None:
    """Which models never scale, need a base, or default to another one is what the installed mlx-lm says."""
    unscaled, required, defaults = set(), set(), {}
    for path in Path(models.__path__[0]).glob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "nn.RoPE(" in source and not any(scaler in source for scaler in SCALERS):
            unscaled.add(path.stem)
        for default in base_fields(source):
            if default is None:
                required.add(path.stem)
            elif ast.literal_eval(default) not in {None, 10_000}:
                defaults[path.stem] = ast.literal_eval(default)
    assert unscaled - NOT_TABLED == set(UNSCALED) - {"minimax_m2"}
    assert required - NOT_TABLED == set(REQUIRED_THETA)
    assert defaults == dict(DEFAULT_THETA)
