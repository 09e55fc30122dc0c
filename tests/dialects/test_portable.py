"""What is written for a rotary embedding: read back by ropecli and by the real transformers, it is the same numbers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from ropecli.agreement import as_longrope
from ropecli.dialects import hf, hf_scaling, portable
from ropecli.errors import BadUsage
from ropecli.frequencies import SNAP, Frequencies, frequencies, snapped_betas, yarn_corners
from ropecli.json_edit import with_members
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

SCHEMAS: list[portable.Schema] = ["both", "v4", "v5"]
BASE_KEYS = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}


def llama(spec: RopeSpec, source: str) -> dict[str, Any]:
    """The config before a conversion, in the older or the newer schema."""
    config = BASE_KEYS | {
        "hidden_size": 2 * spec.head_dim,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.original_length,
    }
    if source == "v4":
        return config | {"rope_theta": spec.rope_theta, "rope_scaling": None}
    return config | {"rope_parameters": {"rope_theta": spec.rope_theta, "rope_type": "default"}}


def converted(config: Mapping[str, Any], spec: RopeSpec, schema: portable.Schema = "both") -> dict[str, Any]:
    """The config after a conversion, through the text as a writer does it."""
    changes = portable.flat_changes(config, spec, schema)
    result: dict[str, Any] = json.loads(with_members(json.dumps(config, indent=2), (), changes))
    return result


def worst(found: Frequencies, wanted: Frequencies) -> float:
    """Largest relative difference of two tables."""
    pairs = list(zip(found.inv_freq, wanted.inv_freq, strict=True))
    return max(abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in pairs)


def check_read(config: Mapping[str, Any], spec: RopeSpec) -> None:
    """`ropecli.dialects.hf` finds the numbers of `spec`, within and beyond the original length."""
    (rope,) = hf.read(config)
    assert rope.spec.max_length == spec.max_length
    for length in (spec.original_length, spec.max_length, 4 * spec.max_length):
        found, wanted = frequencies(rope.spec, length), frequencies(spec, length)
        assert worst(found, wanted) <= 5e-5
        assert found.attention_factor == pytest.approx(wanted.attention_factor, abs=1e-6)


def check_module(module: Any, spec: RopeSpec, prefix: str = "") -> None:
    """The buffers of a real rotary module hold the numbers of `spec`, in float32."""
    found = Frequencies(
        tuple(getattr(module, f"{prefix}inv_freq").double().tolist()), getattr(module, f"{prefix}attention_scaling")
    )
    wanted = frequencies(spec)
    assert worst(found, wanted) <= 5e-5
    assert found.attention_factor == pytest.approx(wanted.attention_factor, abs=1e-6)


def loaded(config: Mapping[str, Any], folder: Path) -> PreTrainedConfig:
    """The config as transformers reads it from its file."""
    (folder / "config.json").write_text(json.dumps(config))
    return AutoConfig.from_pretrained(folder)


@st.composite
def places(draw: st.DrawFn) -> tuple[RopeSpec, float]:
    """A plain embedding and a factor: any even width, base, original and target length."""
    dim = 2 * draw(st.integers(2, 128))
    theta = draw(st.floats(2, 1e9) | st.sampled_from([1e4, 5e5, 1e6]))
    original = draw(st.sampled_from([256, 2048, 4096, 8192, 32768, 40960, 131072]) | st.integers(16, 2**20))
    target = draw(st.integers(original, 64 * original) | st.sampled_from([2, 4, 8, 32]).map(lambda s: s * original))
    return RopeSpec(theta, dim, dim, original, original), target / original


def grown(spec: RopeSpec, scaling: Scaling, **changes: Any) -> RopeSpec:
    """`spec` with a scaling and the length that goes with it."""
    length = round(spec.original_length * scaling.factor)
    values = {name: getattr(spec, name) for name in RopeSpec.__slots__}
    return RopeSpec(**{**values, "scaling": scaling, "max_length": length, **changes})


TEMPERATURES = st.floats(0.2, 3.0) | st.sampled_from([1.0, 1.1386294361119891, 0.9])


@st.composite
def yarns(draw: st.DrawFn) -> RopeSpec:
    """YaRN with snapped betas for whole corners, or any betas, rounded."""
    spec, factor = draw(places())
    if draw(st.booleans()):
        low = draw(st.integers(0, spec.rotary_dim - 2))
        high = draw(st.integers(low + 1, spec.rotary_dim - 1))
        fast, slow = snapped_betas(spec, low, high)
    else:
        slow = draw(st.floats(0.01, 50))
        # a ramp that is narrower still is beyond the float32 in which transformers computes it
        fast = slow * draw(st.floats(1.1, 200))
    assume(slow > 1e-20 and fast < 1e20)
    return grown(spec, Yarn(factor, draw(TEMPERATURES), fast, slow, truncate=draw(st.booleans())))


@st.composite
def scalings(draw: st.DrawFn) -> RopeSpec:
    """Every other kind that can be written."""
    spec, factor = draw(places())
    divisors = st.lists(st.floats(1, 64), min_size=spec.pairs, max_size=spec.pairs).map(tuple)
    slow = draw(st.floats(0.1, 8))
    kinds: dict[str, Scaling] = {
        "default": Plain(),
        "linear": Linear(factor),
        "ntk": Ntk(factor),
        "dynamic": Dynamic(factor),
        "ntk-by-parts": NtkByParts(factor, slow * draw(st.floats(1.1, 64)), slow),
        "llama3": Llama3(factor, slow, slow * draw(st.floats(1.1, 64))),
    }
    kind = draw(st.sampled_from([*kinds, "longrope"]))
    if kind == "longrope":
        m = draw(TEMPERATURES)
        return grown(spec, Longrope(factor, draw(divisors), draw(divisors), m, m))
    return grown(spec, kinds[kind])


SPECS = yarns() | scalings()
SOURCES = st.sampled_from(["v4", "v5"])


@given(SPECS, st.sampled_from(SCHEMAS), SOURCES)
def test_what_is_written_is_read_back_as_the_same_numbers(spec, schema, source):
    """Frequencies to 5e-5 and the attention factor to 1e-6, in every schema, at every length."""
    check_read(converted(llama(spec, source), spec, schema), spec)


@given(SPECS, st.sampled_from(SCHEMAS), SOURCES)
@settings(max_examples=60)
def test_transformers_computes_the_same_numbers(spec, schema, source):
    """The real LlamaRotaryEmbedding, from the written config, has the frequencies and the factor that were asked."""
    assume(isinstance(spec.scaling, Plain) or spec.scaling.factor >= 1)
    config = LlamaConfig.from_dict(converted(llama(spec, source), spec, schema))
    assert config.max_position_embeddings == hf_scaling.served_length(spec)
    check_module(LlamaRotaryEmbedding(config), spec)


@given(SPECS, SOURCES)
def test_both_schemas_say_the_same(spec, source):
    """`rope_scaling` with the top-level base is `rope_parameters`, and the served length is factor times original."""
    config = converted(llama(spec, source), spec)
    parameters = dict(config["rope_parameters"])
    assert config["rope_theta"] == parameters.pop("rope_theta")
    assert (config["rope_scaling"] or {"rope_type": "default"}) == parameters
    if isinstance(spec.scaling, Yarn):
        original = parameters["original_max_position_embeddings"]
        assert config["max_position_embeddings"] == pytest.approx(parameters["factor"] * original, rel=1e-12)


@given(SPECS, SOURCES)
def test_each_schema_alone_has_no_key_of_the_other(spec, source):
    """v4 has no `rope_parameters`, v5 has no `rope_scaling`."""
    config = llama(spec, source)
    assert "rope_parameters" not in converted(config, spec, "v4")
    assert not converted(config, spec, "v5").get("rope_scaling")


@given(SPECS, SOURCES)
def test_a_second_conversion_changes_nothing(spec, source):
    """What is written is a fixed point: the same intent on top of it gives the same text."""
    once = converted(llama(spec, source), spec)
    assert json.dumps(converted(once, spec)) == json.dumps(once)


@given(st.floats(1.0001, 1e4), st.floats(0.01, 20))
def test_the_mscale_pair_is_the_attention_factor_as_a_ratio(factor, attention_factor):
    """mag(s, mscale) / mag(s, mscale_all_dim) = A for A above, at and below 1; both are positive, as readers want."""

    def magnitude(k: float) -> float:
        return 0.1 * k * math.log(factor) + 1

    mscale, mscale_all_dim = hf_scaling.mscale_pair(factor, attention_factor)
    assert mscale > 0
    assert mscale_all_dim > 0
    assert magnitude(mscale) / magnitude(mscale_all_dim) == pytest.approx(attention_factor, rel=1e-9)


@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0, 64.0])
@pytest.mark.parametrize("attention_factor", [0.5, 1.0, 2.0])
def test_the_mscale_pair_of_one_is_one(factor, attention_factor):
    """An attention factor of 1 is two equal numbers; at a factor of 1 no pair can say another one."""
    if attention_factor == 1 or factor == 1:
        assert hf_scaling.mscale_pair(factor, attention_factor) == (1.0, 1.0)
    else:
        mscale, mscale_all_dim = hf_scaling.mscale_pair(factor, attention_factor)
        assert (mscale > mscale_all_dim) == (attention_factor > 1)


@given(yarns())
def test_written_betas_are_snapped_or_exact(spec):
    """Whole corners: the written betas mean them rounded or not, to 5e-5 of a pair. Fractional ones stay as asked."""
    written = hf_scaling.portable_yarn(spec, spec.scaling)
    rounded = Yarn(spec.scaling.factor, 1.0, written["beta_fast"], written["beta_slow"], truncate=True)
    exact = Yarn(spec.scaling.factor, 1.0, written["beta_fast"], written["beta_slow"], truncate=False)
    wanted = hf_scaling.whole_corners(spec, spec.scaling)
    if wanted is None:
        assert (written["beta_fast"], written["beta_slow"]) == (spec.scaling.beta_fast, spec.scaling.beta_slow)
        assert written.get("truncate", True) == spec.scaling.truncate
    else:
        assert "truncate" not in written
        assert yarn_corners(spec, rounded) == wanted
        assert yarn_corners(spec, exact) == pytest.approx(wanted, abs=5.01e-5)


@given(yarns())
def test_every_spelling_of_the_temperature_is_there(spec):
    """`attention_factor` is final, `attn_factor` multiplies the default of 0.1·ln s + 1, the pair is a ratio."""
    written, m = hf_scaling.portable_yarn(spec, spec.scaling), spec.scaling.attention_factor
    assert written["attention_factor"] == m
    assert written["attn_factor"] * default_attention_factor(spec.scaling.factor) == pytest.approx(m, rel=1e-12)
    assert all(isinstance(written[key], float) for key in ("factor", "attention_factor", "beta_fast", "beta_slow"))


DEFAULT_YARN = RopeSpec(10000.0, 128, 128, 4096, 16384, Yarn.default(4.0))


def test_default_yarn_is_written_like_this():
    """The whole dict for YaRN as every runtime defaults it, at the size of Llama-2."""
    written = hf_scaling.scaling_dict(DEFAULT_YARN)
    assert written is not None
    assert {key: written[key] for key in written if not key.startswith("beta")} == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": pytest.approx(1.1386294361119891, abs=1e-15),
        "attn_factor": 1.0,
        "mscale": pytest.approx(1.0, abs=1e-5),
        "mscale_all_dim": 1e-6,
    }
    # c(32) = 20.94 and c(1) = 45.03: the corners are 20 and 46
    assert (written["beta_fast"], written["beta_slow"]) == pytest.approx(
        [4096 / (2 * math.pi) * 10000 ** (-2 * pair / 128) for pair in (20 + SNAP, 46 - SNAP)]
    )


FAMILIES = {
    "linear": Linear(4.0),
    "ntk": Ntk(4.0),
    "dynamic": Dynamic(4.0),
    "yarn": Yarn(4.0, 1.2, 20.0, 2.0),
    "yarn-unrounded": Yarn(4.0, 0.8, 20.0, 2.0, truncate=False),
    "llama3": Llama3(4.0, 1.0, 4.0),
    "longrope": Longrope(4.0, (1.0,) * 16, tuple(1 + i / 5 for i in range(16)), 1.1, 1.1),
    "none": Plain(),
}


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_auto_config_reads_the_file_the_same(kind, schema, tmp_path):
    """From a file on disk through AutoConfig, every kind in every schema."""
    spec = grown(RopeSpec(10000.0, 32, 32, 128, 128), FAMILIES[kind])
    for source in ("v4", "v5"):
        config = converted(llama(spec, source), spec, schema)
        check_module(LlamaRotaryEmbedding(loaded(config, tmp_path)), spec)


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "longrope"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_partial_rotation_stays_partial(kind, schema, inside, tmp_path):
    """`partial_rotary_factor` survives, at the top level or in the scaling dict, and transformers rotates that part."""
    spec = grown(RopeSpec(10000.0, 64, 32, 128, 128, layout="interleaved"), FAMILIES[kind])
    config = BASE_KEYS | {"model_type": "glm", "hidden_size": 128, "head_dim": 64, "max_position_embeddings": 128}
    config |= {"rope_theta": 10000.0}
    if inside:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    else:
        config["partial_rotary_factor"] = 0.5
    written = converted(config, spec, schema)
    blocks = [written[key] for key in ("rope_scaling", "rope_parameters") if written.get(key)]
    assert all(block["partial_rotary_factor"] == 0.5 for block in blocks)
    check_read(written, spec)
    check_module(GlmRotaryEmbedding(loaded(written, tmp_path)), spec)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_sections_of_a_multimodal_rotation_stay(schema, tmp_path):
    """`mrope_section` is kept in whichever dict is written, and transformers finds it there."""
    spec = grown(RopeSpec(10000.0, 32, 32, 128, 128), FAMILIES["yarn"])
    config = BASE_KEYS | {"model_type": "qwen2_vl_text", "hidden_size": 64, "max_position_embeddings": 128}
    config |= {"rope_theta": 10000.0, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    written = converted(config, spec, schema)
    (rope,) = hf.read(written)
    assert rope.mrope_section == (4, 6, 6)
    real = loaded(written, tmp_path)
    assert real.rope_parameters["mrope_section"] == [4, 6, 6]
    check_module(Qwen2VLRotaryEmbedding(real), spec)


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("kind", ["ntk", "yarn", "linear"])
def test_an_older_name_of_the_base_follows(kind, schema, tmp_path):
    """GPT-NeoX calls the base `rotary_emb_base` and the share `rotary_pct`: a new base is written under that name."""
    spec = grown(RopeSpec(10000.0, 64, 32, 128, 128), FAMILIES[kind])
    config = BASE_KEYS | {"model_type": "gpt_neox", "hidden_size": 128, "max_position_embeddings": 128}
    config |= {"rotary_pct": 0.5, "rotary_emb_base": 10000}
    written = converted(config, spec, schema)
    check_read(written, spec)
    check_module(GPTNeoXRotaryEmbedding(loaded(written, tmp_path)), spec)


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("kind", ["ntk", "yarn", "none"])
def test_a_base_without_its_older_name_gets_it(kind, schema, tmp_path):
    """A GPT-NeoX as transformers 5 saves it: its class reads no top-level `rope_theta` beside a `rope_scaling`."""
    spec = grown(RopeSpec(10000.0, 64, 32, 128, 128), FAMILIES[kind])
    config = BASE_KEYS | {"model_type": "gpt_neox", "hidden_size": 128, "max_position_embeddings": 128}
    config |= {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}}
    written = converted(config, spec, schema)
    check_read(written, spec)
    check_module(GPTNeoXRotaryEmbedding(loaded(written, tmp_path)), spec)


@pytest.mark.parametrize("model_type", ["phi3", "phimoe"])
@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "llama3"])
def test_a_scaling_that_the_class_refuses_is_refused(kind, model_type):
    """Phi-3 loads with longrope alone, and reads yarn as longrope: the hint names the carrier that works."""
    spec = grown(RopeSpec(10000.0, 32, 32, 128, 128), FAMILIES[kind])
    with pytest.raises(BadUsage, match=model_type) as caught:
        portable.flat_changes(llama(spec, "v5") | {"model_type": model_type}, spec, "both")
    assert "--carrier longrope" in caught.value.hint


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("embedding", [Phi3RotaryEmbedding, PhimoeRotaryEmbedding])
def test_divisors_for_phi_are_what_its_class_computes(embedding, schema, tmp_path):
    """YaRN carried as longrope: the class accepts the dict, and its tables are the frequencies times m."""
    yarn = grown(RopeSpec(10000.0, 32, 32, 128, 128), Yarn(4.0, 1.2, 32.0, 1.0))
    spec = as_longrope(yarn)
    model_type = {Phi3RotaryEmbedding: "phi3", PhimoeRotaryEmbedding: "phimoe"}[embedding]
    config = llama(spec, "v5") | {"model_type": model_type, "pad_token_id": 0, "num_key_value_heads": 2}
    module = embedding(loaded(converted(config, spec, schema), tmp_path))
    check_module(module, spec)
    length = spec.max_length
    cos = module(torch.zeros(1, 1, 1), torch.arange(length)[None])[0].reshape(length, 32)
    wanted = torch.outer(torch.arange(float(length)), torch.tensor(frequencies(yarn).inv_freq)).cos() * 1.2
    assert (cos[:, :16] - wanted).abs().max() <= 1e-3


@pytest.mark.parametrize("model_type", ["gpt_oss", "ministral3"])
@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("scaling", [Plain(), Ntk(4.0)], ids=["none", "ntk"])
def test_no_scaling_is_said_to_a_class_that_scales_by_itself(scaling, schema, model_type):
    """Silence would mean the YaRN that the class defaults."""
    config = {"model_type": model_type, "hidden_size": 512, "num_attention_heads": 8, "head_dim": 64}
    config |= {"num_hidden_layers": 2, "max_position_embeddings": 4096, "rope_theta": 150000.0, "rope_scaling": None}
    spec = RopeSpec(150000.0, 64, 64, 4096, round(4096 * scaling.factor), scaling)
    after = converted(config, spec, schema)
    (rope,) = hf.read(after)
    assert frequencies(rope.spec).inv_freq == pytest.approx(frequencies(spec).inv_freq, rel=1e-12)
    loaded = AutoConfig.for_model(**after)
    assert loaded.rope_parameters["rope_type"] == "default"
    assert loaded.rope_parameters["rope_theta"] == pytest.approx(hf_scaling.written_theta(spec))


def test_a_ratio_of_the_base_is_refused():
    """ChatGLM's own code multiplies the base and reads no scaling: no config could extend it."""
    spec = grown(RopeSpec(10000.0, 32, 32, 128, 128), FAMILIES["yarn"])
    with pytest.raises(BadUsage, match="rope_ratio"):
        portable.flat_changes(llama(spec, "v4") | {"rope_ratio": 50}, spec, "both")


def test_a_whole_number_is_not_respelled():
    """A base of 10000 that does not change stays 10000, not 10000.0."""
    spec = grown(RopeSpec(10000.0, 32, 32, 128, 128), FAMILIES["yarn"])
    config = llama(spec, "v4") | {"rope_theta": 10000}
    changes = portable.flat_changes(config, spec, "both")
    assert repr(changes["rope_theta"]) == "10000"


def test_the_original_length_of_the_model_itself_follows():
    """Phi-3's top-level original length beats the one in the dict, so it must be the same."""
    spec = grown(RopeSpec(10000.0, 32, 32, 64, 64), FAMILIES["yarn"])
    config = llama(spec, "v4") | {"original_max_position_embeddings": 128}
    assert converted(config, spec)["original_max_position_embeddings"] == 64


def test_every_name_of_the_served_length_follows():
    """A model that calls it `n_positions` gets the new length there, and no second name."""
    spec = grown(RopeSpec(10000.0, 32, 32, 128, 128), FAMILIES["yarn"])
    config = {key: v for key, v in llama(spec, "v4").items() if key != "max_position_embeddings"}
    written = converted(config | {"n_positions": 128}, spec)
    assert written["n_positions"] == 512
    assert "max_position_embeddings" not in written


SLIDING = RopeSpec(10000.0, 32, 32, 128, 128)
FULL = RopeSpec(1e6, 32, 32, 128, 128)
LAYERED = BASE_KEYS | {
    "hidden_size": 64,
    "head_dim": 32,
    "num_hidden_layers": 6,
    "sliding_window": 16,
    "max_position_embeddings": 128,
}
NESTED = LAYERED | {
    "model_type": "gemma3_text",
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    },
}
OLDER_GEMMA = LAYERED | {
    "model_type": "gemma3_text",
    "sliding_window_pattern": 6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
}
# Olmo-3's class gives the top-level base to the full layers and its default, 500000, to the others
OLMO = RopeSpec(500000.0, 32, 32, 128, 128)
OLDER_OLMO = LAYERED | {"model_type": "olmo3", "rope_theta": 500000, "rope_scaling": None}


def layered(
    config: Mapping[str, Any], intent: Mapping[str, RopeSpec], schema: portable.Schema = "both"
) -> dict[str, Any]:
    """A config with an embedding for each layer type after its conversion."""
    changes = portable.layered_changes(config, hf.read(config), intent, schema)
    result: dict[str, Any] = json.loads(with_members(json.dumps(config), (), changes))
    return result


def check_layers(config: Mapping[str, Any], wanted: Mapping[str, RopeSpec], folder: Path, kind: type) -> None:
    """Both readers find the numbers of each layer type."""
    found = {rope.name: rope.spec for rope in hf.read(config)}
    module = kind(loaded(config, folder))
    assert found.keys() == wanted.keys()
    for name, spec in wanted.items():
        assert worst(frequencies(found[name]), frequencies(spec)) <= 5e-5
        assert found[name].scaling.attention_factor == pytest.approx(spec.scaling.attention_factor, abs=1e-6)
        check_module(module, spec, prefix=f"{name}_")


@pytest.mark.parametrize("kind", ["yarn", "linear", "ntk", "llama3", "none"])
def test_only_the_named_layers_of_a_nested_config_change(kind, tmp_path):
    """In a config like Gemma-3's the full-attention layers are scaled and the dict of the others is the same."""
    spec = grown(FULL, FAMILIES[kind])
    written = layered(NESTED, {"full_attention": spec})
    assert written["rope_parameters"]["sliding_attention"] == NESTED["rope_parameters"]["sliding_attention"]
    assert "rope_scaling" not in written
    assert written["max_position_embeddings"] == spec.max_length
    check_layers(written, {"sliding_attention": SLIDING, "full_attention": spec}, tmp_path, Gemma3RotaryEmbedding)


def test_all_layers_of_a_nested_config_can_change(tmp_path):
    """Each layer type gets its own scaling on its own base."""
    intent = {"sliding_attention": grown(SLIDING, FAMILIES["linear"]), "full_attention": grown(FULL, FAMILIES["yarn"])}
    check_layers(layered(NESTED, intent), intent, tmp_path, Gemma3RotaryEmbedding)


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("kind", ["yarn", "linear", "llama3"])
@pytest.mark.parametrize(
    ("config", "module", "full", "sliding"),
    [(OLDER_GEMMA, Gemma3RotaryEmbedding, FULL, SLIDING), (OLDER_OLMO, Olmo3RotaryEmbedding, OLMO, OLMO)],
    ids=["gemma3", "olmo3"],
)
def test_older_keys_reach_the_full_attention_layers_alone(config, module, full, sliding, kind, schema, tmp_path):
    """A config from before nested parameters is scaled in its full-attention layers, in every schema."""
    spec = grown(full, FAMILIES[kind])
    written = layered(config, {"full_attention": spec}, schema)
    check_layers(written, {"sliding_attention": sliding, "full_attention": spec}, tmp_path, module)
    assert layered(written, {"full_attention": spec}, schema) == written


@pytest.mark.parametrize("schema", ["both", "v5"])
@pytest.mark.parametrize(
    "older", [{}, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}], ids=["plain", "scaled"]
)
def test_scaled_sliding_layers_are_said_by_the_newer_keys_alone(older, schema, tmp_path):
    """The one `rope_scaling` of the older keys cannot say them; half beside the whole would contradict it."""
    intent = {"full_attention": grown(FULL, FAMILIES["yarn"]), "sliding_attention": grown(SLIDING, FAMILIES["yarn"])}
    written = layered(OLDER_GEMMA | older, intent, schema)
    assert "rope_scaling" not in written
    check_layers(written, intent, tmp_path, Gemma3RotaryEmbedding)
    assert layered(written, intent, schema) == written


def test_a_new_base_goes_where_the_old_one_stood(tmp_path):
    """NTK-aware scaling of Gemma-3's full layers changes `rope_theta` and not `rope_local_base_freq`."""
    spec = grown(FULL, FAMILIES["ntk"])
    written = layered(OLDER_GEMMA, {"full_attention": spec})
    assert written["rope_theta"] == pytest.approx(1e6 * 4 ** (32 / 30))
    assert written["rope_local_base_freq"] == 10000
    check_layers(written, {"sliding_attention": SLIDING, "full_attention": spec}, tmp_path, Gemma3RotaryEmbedding)


@pytest.mark.parametrize("schema", ["both", "v5"])
@pytest.mark.parametrize(
    "config",
    [
        {key: value for key, value in NESTED.items() if key != "rope_parameters"}
        | {"rope_scaling": NESTED["rope_parameters"]},
        OLDER_GEMMA | {"rope_parameters": {"rope_type": "linear", "factor": 8.0}},
    ],
    ids=["nested rope_scaling", "a flat rope_parameters that the class ignores"],
)
def test_odd_places_of_nested_parameters_become_the_usual_one(config, schema, tmp_path):
    """What is written lies where transformers looks for it, and each layer type keeps its meaning."""
    spec = grown(FULL, FAMILIES["yarn"])
    written = layered(config, {"full_attention": spec}, schema)
    check_layers(written, {"sliding_attention": SLIDING, "full_attention": spec}, tmp_path, Gemma3RotaryEmbedding)


@pytest.mark.parametrize(
    ("config", "intent", "schema"),
    [
        (OLDER_GEMMA | {"rope_theta": [1e4, 1e6]}, {"full_attention": FULL}, "both"),
        (NESTED, {"full_attention": grown(FULL, FAMILIES["yarn"])}, "v4"),
        (NESTED, {"full_attention": grown(FULL, FAMILIES["yarn-unrounded"])}, "both"),
        (OLDER_GEMMA, {"sliding_attention": grown(SLIDING, FAMILIES["yarn"])}, "v4"),
    ],
    ids=["a base for each layer", "older schema of nested", "unrounded in nested", "older keys for sliding layers"],
)
def test_what_layer_types_can_not_say_is_refused(config, intent, schema):
    """What a config can not carry is an error that names the place, before anything is written."""
    ropes = hf.read(OLDER_GEMMA if config is OLDER_GEMMA else NESTED)
    with pytest.raises(BadUsage) as caught:
        portable.layered_changes(config, ropes, intent, schema)
    assert caught.value.where


@pytest.mark.parametrize(
    "scaling", [NtkByParts(4.0, 32.0, 1.0, 1.1), Proportional(4.0, 0.5)], ids=["ntk-by-parts with m", "proportional"]
)
def test_what_no_config_can_say_is_refused(scaling):
    """A temperature with `llama3`, and a rotation that is an architecture's own, have no spelling."""
    with pytest.raises(BadUsage):
        hf_scaling.scaling_dict(RopeSpec(10000.0, 32, 32, 128, 512, scaling))
