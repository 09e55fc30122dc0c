"""Every model type of the data: the reader against the model's own rotary module, on the CPU.

What the installed transformers has no class for is passed over. What is only true of the release that the data was made
from is tested with that release alone, the one that the Makefile pins.
"""

import copy
import importlib.util
import io
import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ropecli.checkpoint import read_checkpoint
from ropecli.dialects import hf, hf_types
from ropecli.errors import BadCheckpoint
from ropecli.frequencies import frequencies
from ropecli.inspection import RuntimeRow, runtime_rows

DATA = json.loads(Path(hf_types.__file__).with_name("model_types.json").read_text(encoding="utf-8"))
REPOSITORY = Path(__file__).parents[2]
STALE = "the data is stale: run `python tests/make_model_types.py` and commit ropecli/dialects/model_types.json"

of_the_data = pytest.mark.skipif(
    transformers.__version__ != DATA["transformers"],
    reason=f"the data was made from transformers {DATA['transformers']}, installed is {transformers.__version__}",
)
"""For what another release may say otherwise: which types there are, and what their classes default."""

TOWERS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "cohere_compass_vision",
            "dots3_note_vision_encoder",
            "edgetam_video",
            "ernie4_5_vl_moe_vision",
            "exaone4_5_vision",
            "gemma4_vision",
            "glm4v_moe_vision",
            "glm4v_vision",
            "glm5_next_vision",
            "glm_ocr_vision",
            "inkling2_vision",
            "kimi_k25_vision",
            "lfm3_vl_vision",
            "minimax_m3_vl_vision",
            "mlcd",
            "mlcd_vision_model",
            "muse_glimmer_vision",
            "muse_spark_vision",
            "paddleocr_vl_vision",
            "pixtral",
            "qwen2_5_omni_vision_encoder",
            "qwen2_5_vl_vision",
            "qwen2_vl_vision",
            "qwen3_5_moe_vision",
            "qwen3_5_vision",
            "qwen3_omni_moe_vision_encoder",
            "qwen3_vl_moe_vision",
            "qwen3_vl_vision",
            "qwen4_exp_vision",
            "sam2_video",
            "sam3_tracker_video",
            "sam3_vit_model",
            "step3p5_vision",
            "video_llama_3_vision",
        ),
        "image encoder: axial, two positions a patch",
    ),
    "efficientloftr": "image matcher: two positions a patch",
    "eomt_dinov3": "image encoder: positions are fractions of the image",
    "llama4_vision_model": "image encoder: two positions a patch",
}
"""Model types with `rope_parameters` that are no language model, and what they are instead."""

SWITCHED_ON: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},  # by default no layer has attention
    "granitemoehybrid": {"position_embedding_type": "rope", "layer_types": ["full_attention"] * 32},
    "zamba2": {"use_mem_rope": True},
    # By default these rotate an odd number of dimensions, which no model with weights does.
    **{name: {"head_dim": 128} for name in ("glm4_moe", "glm4v_moe_text", "qwen3_omni_moe_text")},
}
"""Keys to set on a language model that does not rotate by default, or not so that a checkpoint could."""

REORDERED = {"ernie4_5_vl_moe", "ernie4_5_vl_moe_text"}
"""Their pairs are sorted by section: the same frequencies in another order."""

NOT_FROM_KEYS = {
    "minimax_m3_vl": "its code does not heed its own rotary_dim",
    "minimax_m3_vl_text": "its code does not heed its own rotary_dim",
}
"""Types that cannot be read under a name that nobody knows, since their code contradicts their keys."""

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 20, "beta_slow": 2}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 8.0, "original_max_position_embeddings": 1024}

SPELLINGS: Mapping[str, Mapping[str, Any]] = {
    "nothing": {},
    "theta": {"rope_theta": 12345.0},
    "linear": {"rope_theta": 12345.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "yarn": {"rope_theta": 12345.0, "rope_scaling": YARN},
    "mscale": {
        "rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0, "truncate": False}
    },
    "yarn saved by 5": {"rope_parameters": {**YARN, "rope_theta": 777.0}},
    "yarn, part of the head": {"rope_parameters": {**YARN, "rope_theta": 777.0, "partial_rotary_factor": 0.5}},
    "part of the head": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 777.0, "partial_rotary_factor": 0.5}
    },
    "part at the top": {"rope_theta": 777.0, "partial_rotary_factor": 0.5},
    "llama3": {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "local base": {"rope_theta": 12345.0, "rope_local_base_freq": 777.0},
    "two bases": {"global_rope_theta": 777.0, "local_rope_theta": 55.0},
    "original at the top": {"original_max_position_embeddings": 256, "rope_scaling": YARN},
    "older names": {"rotary_emb_base": 777.0, "rotary_pct": 0.5},
    "width from heads": {"hidden_size": 1536, "num_attention_heads": 12},
    "width in a key": {"head_dim": 96},
}
"""Keys to read beside a model_type, as checkpoints have them; a class may refuse some."""

KEPT_APART: Mapping[str, str] = {
    "dots3_note_text": "with a flat rope_scaling its class drops swa_rope_theta; no checkpoint has both",
    "deepseek_v4": "its class sets compress_rope_theta and the width over what rope_parameters says",
    "mistral4": "without its own rope_parameters its class forgets that a part of the head rotates",
    "mistral_large4_text": "a part of a latent attention's slice",
    "moonshine": "pads its heads",
}
"""Types whose class turns some of these spellings into a model that cannot run, or one that no checkpoint asks for."""

REFUSES_FLAT = {"cohere2_moe"}
"""Types whose class drops a scaling that stands in one object for all layers."""


Computed: TypeAlias = Mapping[str, tuple[list[float], float]]
"""Layer type ("" for all) → the inverse frequencies of a rotary module and its multiplier."""


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The script that makes the data; it also knows how to build a model's rotary module."""
    path = Path(__file__).parents[1] / "make_model_types.py"
    spec = importlib.util.spec_from_file_location("make_model_types", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """transformers warns about every older key that it reads and every default that it refuses."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(level)


@dataclass(frozen=True)
class Model:
    """A model type: its config as JSON, whole and without what the class defaults, and what its module computes."""

    saved: dict[str, Any]
    short: dict[str, Any]
    computed: Computed


@pytest.fixture(scope="module")
def models(maker: ModuleType) -> dict[str, Model]:
    """Every model type with a rotary embedding for text."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, config, text in maker.text_configs(INSTALLED):
            if maker.has_rope(text):
                for key, value in SWITCHED_ON.get(text.model_type, {}).items():
                    setattr(text, key, value)
                saved = json.loads(json.dumps(config.to_dict()))
                found[name] = Model(saved, json.loads(config.to_json_string()), maker.frequencies(text))
    return found


def agree(config: Mapping[str, Any], computed: Computed, *, reordered: bool = False, within: float = 1e-6) -> None:
    """Asserts that a config is read as the module computes it, every kind of layer that rotates."""
    ropes = {rope.name: rope for rope in hf.read(config)}
    assert ropes
    for name, rope in ropes.items():
        inv_freq, attention_factor = computed["" if "" in computed else name]
        found = frequencies(rope.spec)
        order = sorted if reordered else list
        assert order(found.inv_freq) == pytest.approx(order(inv_freq), rel=within, abs=1e-30)
        assert found.attention_factor == pytest.approx(attention_factor, rel=1e-6)


def transformers_row(config: Mapping[str, Any]) -> RuntimeRow:
    """What inspect says that transformers makes of a config."""
    return runtime_rows(read_checkpoint("-", stdin=io.StringIO(json.dumps(config))))["transformers"]


def renamed(config: Any) -> Any:
    """The config under model types that nobody knows."""
    if isinstance(config, dict):
        return {key: "an_unseen_type" if key == "model_type" else renamed(value) for key, value in config.items()}
    return config


REMOTE = {"baichuan", "chatglm", "ernie4_5_moe_vl", "neobert"}
"""Types whose code is in the checkpoint and not in transformers."""
NAMES = sorted({*DATA["types"], *DATA["wrappers"]} - REMOTE - {"gptj", "codegen", "roformer", "esm"})
INSTALLED = [name for name in NAMES if name in CONFIG_MAPPING]


@pytest.mark.parametrize("name", INSTALLED)
def test_a_saved_config_means_what_the_model_computes(models: dict[str, Model], name: str) -> None:
    """Frequencies and attention factor of the JSON that transformers saves equal the rotary module's, by layer type."""
    agree(models[name].saved, models[name].computed, reordered=name in REORDERED)


@of_the_data
@pytest.mark.parametrize("name", INSTALLED)
def test_what_the_class_defaults_may_be_left_out(models: dict[str, Model], name: str) -> None:
    """The same without the keys that are as the class has them, and with no key but the type."""
    agree(models[name].short, models[name].computed, reordered=name in REORDERED)
    inner = DATA["wrappers"].get(name, {}).get("model_type", name)
    if inner not in SWITCHED_ON:
        agree({"model_type": name}, models[name].computed, reordered=name in REORDERED)


@pytest.mark.parametrize("name", [name for name in INSTALLED if name not in NOT_FROM_KEYS])
def test_an_unknown_model_type_is_read_from_its_keys(models: dict[str, Model], name: str) -> None:
    """The saved JSON under a name that nobody knows gives the same numbers: no type is special but by its keys."""
    agree(renamed(models[name].saved), models[name].computed, reordered=name in REORDERED)


@of_the_data
def test_every_model_type_is_read_or_named_as_something_else(maker: ModuleType) -> None:
    """Each type whose text config has rope_parameters is in the data or in the list of towers; there are hundreds."""
    found = {name for name, _, text in maker.text_configs() if getattr(text, "rope_parameters", None)}
    assert len(found) >= 349
    assert found - set(TOWERS) == set(NAMES)
    assert set(TOWERS) <= found


def test_an_image_encoder_is_refused_by_name(maker: ModuleType) -> None:
    """The saved config of an axial tower alone is no language model: the reader says so."""
    refused = set()
    towers = {name for name, what in TOWERS.items() if "axial" in what}.intersection(CONFIG_MAPPING)
    for name, config, _ in maker.text_configs(towers):
        with pytest.raises(BadCheckpoint, match="'axial' is not supported"):
            hf.read(json.loads(json.dumps(config.to_dict())))
        refused.add(name)
    assert refused == towers
    assert len(refused) > 30


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_few_keys_mean_the_same_to_transformers(maker: ModuleType, spelling: str) -> None:
    """A config of a model_type and a few keys is read as the class reads it, for every language model's class."""
    keys, compared, wrong = SPELLINGS[spelling], 0, []
    for name in sorted({DATA["wrappers"].get(name, {}).get("model_type", name) for name in INSTALLED}):
        if name in KEPT_APART or name in SWITCHED_ON or name in REORDERED:
            continue
        latent = "qk_rope_head_dim" in DATA["types"][name]
        if latent and ("part" in spelling or spelling == "width in a key"):
            continue  # transformers then rotates more or less than the slice, and such a model cannot run
        try:
            config = CONFIG_MAPPING[name](**copy.deepcopy(dict(keys)))
            computed = maker.frequencies(config)
        except Exception:  # noqa: BLE001, S112  a class may refuse a key in any way it likes
            continue
        try:
            # float32 leaves a few units in the seventh digit where llama3's ramp subtracts.
            agree({"model_type": name, **keys}, computed, within=4e-6)
            compared += 1
            if name not in REFUSES_FLAT:
                assert transformers_row({"model_type": name, **keys}).agrees
        except (AssertionError, BadCheckpoint) as error:
            wrong.append((name, str(error)[:200]))
    assert not wrong
    assert compared > 100


@of_the_data
def test_the_data_is_what_the_script_makes(maker: ModuleType) -> None:
    """The shipped data is what the release that it names says."""
    fresh = json.loads(maker.rendered(maker.everything()))
    for part in ("types", "wrappers"):
        assert sorted(DATA[part]) == sorted(fresh[part]), STALE
        differing = {name: (DATA[part][name], of) for name, of in fresh[part].items() if DATA[part][name] != of}
        assert not differing, STALE
    assert DATA["without_rope"] == fresh["without_rope"], STALE


def test_the_data_was_made_from_the_pinned_release() -> None:
    """Whoever moves the pin of the Makefile makes the data anew: only so do the tests above say anything about it."""
    pinned = re.search(r"^TRANSFORMERS \?= transformers==(\S+)$", (REPOSITORY / "Makefile").read_text("utf-8"), re.M)
    assert pinned is not None
    assert DATA["transformers"] == pinned[1], STALE
