"""The plan of a conversion: what the options mean, what is refused, and which keys change."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.mistral4.modeling_mistral4 import Mistral4RotaryEmbedding

from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.conversion import chosen_layers, extended, plan, scaling_by_hand
from ropecli.errors import BadCheckpoint, BadUsage
from ropecli.findings import find
from ropecli.frequencies import frequencies
from ropecli.inspection import runtime_rows, with_text
from ropecli.spec import (
    Dynamic,
    Linear,
    Llama3,
    Longrope,
    Ntk,
    NtkByParts,
    Plain,
    RopeSpec,
    Scaling,
    Yarn,
    default_attention_factor,
)

SPEC = RopeSpec(10000.0, 32, 32, 128, 128)
DIVISORS = tuple(1.0 + i for i in range(16))
ROPE_KEYS = {
    "original_max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "max_position_embeddings",
}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000,
    "own_key": {"kept": [1, 2.50]},
}


def checkpoint_of(folder: Path, **changes: Any) -> Checkpoint:
    """A folder with this config, read; None removes a key."""
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    return read_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("rope_type", "options", "wanted"),
    [
        ("none", {}, Plain()),
        ("linear", {}, Linear(4.0)),
        ("ntk", {}, Ntk(4.0)),
        ("dynamic", {}, Dynamic(4.0)),
        ("ntk-by-parts", {}, NtkByParts(4.0, 32.0, 1.0, 1.0)),
        ("ntk-by-parts", {"beta_slow": 2.0, "beta_fast": 8.0}, NtkByParts(4.0, 8.0, 2.0, 1.0)),
        ("yarn", {}, Yarn(4.0, default_attention_factor(4.0), 32.0, 1.0, truncate=True)),
        ("yarn", {"beta_fast": 20.0, "attention_factor": 0.5}, Yarn(4.0, 0.5, 20.0, 1.0)),
        ("yarn", {"truncate": False}, Yarn(4.0, default_attention_factor(4.0), truncate=False)),
        ("yarn", {"truncate": True}, Yarn.default(4.0)),
        ("llama3", {}, Llama3(4.0, 1.0, 4.0)),
        ("llama3", {"low_freq_factor": 0.5, "high_freq_factor": 8.0}, Llama3(4.0, 0.5, 8.0)),
        (
            "longrope",
            {"factors": DIVISORS},
            Longrope(4.0, DIVISORS, DIVISORS, default_attention_factor(4.0), default_attention_factor(4.0)),
        ),
        (
            "longrope",
            {"factors": DIVISORS, "attention_factor": 1.0},
            Longrope(4.0, DIVISORS, DIVISORS, 1.0, 1.0),
        ),
    ],
)
def test_options_make_a_scaling(rope_type, options, wanted):
    """Every kind, with its defaults and with its own options."""
    assert scaling_by_hand(rope_type, SPEC, 1.0 if rope_type == "none" else 4.0, **options) == wanted


OPTIONS: dict[str, Any] = {
    "beta_fast": 8.0,
    "beta_slow": 2.0,
    "attention_factor": 1.0,
    "truncate": True,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "factors": DIVISORS,
}
HAS: dict[str, set[str]] = {
    "none": set(),
    "linear": set(),
    "ntk": set(),
    "dynamic": set(),
    "ntk-by-parts": {"beta_fast", "beta_slow", "attention_factor"},
    "yarn": {"beta_fast", "beta_slow", "attention_factor", "truncate"},
    "llama3": {"low_freq_factor", "high_freq_factor"},
    "longrope": {"factors", "attention_factor"},
}


@pytest.mark.parametrize(
    ("rope_type", "option"), [(kind, option) for kind in HAS for option in OPTIONS if option not in HAS[kind]]
)
def test_an_option_that_a_kind_does_not_have_is_refused(rope_type, option):
    """No option is dropped silently: the error names it, and the hint says what the kind has."""
    with pytest.raises(BadUsage) as caught:
        scaling_by_hand(rope_type, SPEC, 4.0, **{option: OPTIONS[option]})
    assert caught.value.where == "--" + option.replace("_", "-")
    assert all("--" + name.replace("_", "-") in caught.value.hint for name in HAS[rope_type])


@pytest.mark.parametrize("rope_type", HAS)
def test_the_options_of_a_kind_are_enough(rope_type):
    """With exactly the options that it has, every kind can be made."""
    options = {name: OPTIONS[name] for name in HAS[rope_type]}
    assert scaling_by_hand(rope_type, SPEC, 1.0 if rope_type == "none" else 4.0, **options)


@pytest.mark.parametrize(
    ("rope_type", "options", "where"),
    [
        ("no-such", {}, "--rope-type"),
        ("", {}, "--rope-type"),
        ("none", {}, "--factor"),
        ("yarn", {"beta_fast": 0.0}, "--beta-fast"),
        ("yarn", {"beta_slow": 0.0}, "--beta-slow"),
        ("yarn", {"beta_slow": 32.0, "beta_fast": 1.0}, "--beta-slow"),
        ("yarn", {"beta_slow": 4.0, "beta_fast": 4.0}, "--beta-slow"),
        ("yarn", {"beta_slow": -1.0}, "--beta-slow"),
        ("yarn", {"attention_factor": 0.0}, "--attention-factor"),
        ("yarn", {"attention_factor": float("nan")}, "--attention-factor"),
        ("yarn", {"attention_factor": float("inf")}, "--attention-factor"),
        ("ntk-by-parts", {"beta_slow": 40.0}, "--beta-slow"),
        ("llama3", {"low_freq_factor": 0.0}, "--low-freq-factor"),
        ("llama3", {"low_freq_factor": 4.0}, "--low-freq-factor"),
        ("llama3", {"high_freq_factor": 0.5}, "--low-freq-factor"),
        ("longrope", {}, "--factors"),
        ("longrope", {"factors": DIVISORS[1:]}, "--factors"),
        ("longrope", {"factors": (0.0, *DIVISORS[1:])}, "--factors[0]"),
    ],
)
def test_impossible_options_are_bad_usage(rope_type, options, where):
    """Numbers out of range, a ramp upside down and unknown kinds name the option; no default takes their place."""
    with pytest.raises(BadUsage) as caught:
        scaling_by_hand(rope_type, SPEC, 4.0, **options)
    assert caught.value.where == where
    assert caught.value.exit_status == 2


@given(st.integers(1, 2**20), st.integers(1, 2**24))
def test_a_target_length_is_always_a_whole_number(original, target):
    """A factor that comes from a target length leads back to it exactly, whatever the original length."""
    spec = RopeSpec(10000.0, 32, 32, original, original)
    assert extended(spec, Linear(target / original)).max_length == target


@pytest.mark.parametrize(
    ("original", "factor"), [(128, 1.3), (128, 4.001), (131072, 8.000003), (24576, 1.333333), (100, 1.005)]
)
def test_a_length_that_is_not_whole_is_refused(original, factor):
    """Runtimes take the factor or the length for the truth, so the two must agree; the hint has the nearest length."""
    spec = RopeSpec(10000.0, 32, 32, original, original)
    with pytest.raises(BadUsage) as caught:
        extended(spec, Linear(factor))
    assert f"--target-length {round(original * factor)}" in caught.value.hint


@pytest.mark.parametrize("factor", [1e12, 1e29])
def test_a_length_beyond_all_bounds_is_refused(factor):
    """A factor that no model could serve is a mistake in the option, not in the checkpoint."""
    with pytest.raises(BadUsage) as caught:
        extended(RopeSpec(10000.0, 32, 32, 4096, 4096), Linear(factor))
    assert caught.value.where == "--factor"


@pytest.mark.parametrize("scaling", [Plain(), Linear(2.0), Yarn.default(4.0), Ntk(8.0)])
def test_an_extension_starts_at_the_original_length(scaling: Scaling):
    """The served length is factor times the original length, never times a length that was scaled before."""
    before = RopeSpec(10000.0, 32, 32, 128, 1024, Yarn.default(8.0))
    after = extended(before, scaling)
    assert (after.original_length, after.max_length) == (128, round(128 * scaling.factor))
    assert extended(before, scaling, original_length=64).max_length == round(64 * scaling.factor)


YARN_BLOCK = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3_BLOCK = YARN_BLOCK | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE_BLOCK = YARN_BLOCK | {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}


@pytest.mark.parametrize("block", [LLAMA3_BLOCK, LONGROPE_BLOCK], ids=["llama3", "longrope"])
def test_a_checkpoint_trained_with_its_own_scaling_is_refused(block, tmp_path):
    """llama3 and longrope checkpoints were trained so: another scaling would take the place of theirs."""
    with pytest.raises(BadCheckpoint, match="trained with") as caught:
        chosen_layers(checkpoint_of(tmp_path, rope_scaling=block), "full")
    assert caught.value.hint
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("block", [None, YARN_BLOCK, {"rope_type": "linear", "factor": 2.0}])
def test_an_extension_that_was_added_later_can_be_replaced(block, tmp_path):
    """Plain, linear and yarn checkpoints are converted, from their original length."""
    checkpoint = checkpoint_of(tmp_path, rope_scaling=block)
    (rope,) = chosen_layers(checkpoint, "full")
    spec = extended(rope.spec, Yarn.default(2.0))
    assert spec.max_length == 2 * rope.spec.original_length


def test_a_model_without_a_rotary_embedding_is_refused(tmp_path):
    """GPT-2 has nothing to convert."""
    checkpoint = checkpoint_of(tmp_path, model_type="gpt2", rope_theta=None)
    with pytest.raises(BadCheckpoint, match="no rotary embedding"):
        chosen_layers(checkpoint, "full")


GEMMA = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 6,
    "sliding_window": 16,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "rope_theta": None,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    },
}


def test_full_attention_layers_are_chosen_by_default(tmp_path):
    """Layers with a sliding window never see a long distance; `all` takes them as well."""
    checkpoint = checkpoint_of(tmp_path, **GEMMA)
    assert [rope.name for rope in chosen_layers(checkpoint, "full")] == ["full_attention"]
    assert {rope.name for rope in chosen_layers(checkpoint, "all")} == {"full_attention", "sliding_attention"}


def test_a_model_with_nothing_but_windows_is_converted_whole(tmp_path):
    """Mistral-7B slides in every layer: there is nothing else to choose."""
    checkpoint = checkpoint_of(tmp_path, model_type="mistral", sliding_window=64)
    (rope,) = chosen_layers(checkpoint, "full")
    assert rope.sliding_window == 64


SCALINGS: list[Scaling] = [
    Plain(),
    Linear(4.0),
    Ntk(4.0),
    NtkByParts(4.0),
    Yarn.default(4.0),
    Longrope(4.0, DIVISORS, DIVISORS, 1.1, 1.1),
]


@pytest.mark.parametrize("schema", ["both", "v4", "v5"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling.rope_type)
@pytest.mark.parametrize("block", [None, YARN_BLOCK], ids=["plain", "yarn"])
def test_edits_name_rope_keys_alone(block, scaling, schema, tmp_path):
    """No other key changes, each edit is true, and the diff has no line about anything else."""
    checkpoint = checkpoint_of(tmp_path, rope_scaling=block)
    (rope,) = chosen_layers(checkpoint, "full")
    conversion = plan(checkpoint, {"default": extended(rope.spec, scaling)}, schema=schema)
    assert conversion.texts.keys() == {"config.json"}
    before, after = checkpoint.config, json.loads(conversion.texts["config.json"])
    changed = {
        key
        for key in {*before, *after}
        if json.dumps(before.get(key, "absent")) != json.dumps(after.get(key, "absent"))
    }
    assert changed <= ROPE_KEYS
    assert changed == {edit.key for edit in conversion.edits}
    assert all((edit.old, edit.new) == (before.get(edit.key), after.get(edit.key)) for edit in conversion.edits)
    assert list(before)[:8] == [key for key in after if key in before][:8]


def test_the_diff_of_a_small_change_is_small(tmp_path):
    """A served length and a dict: the lines around them are context."""
    checkpoint = checkpoint_of(tmp_path, rope_scaling=YARN_BLOCK)
    (rope,) = chosen_layers(checkpoint, "full")
    conversion = plan(checkpoint, {"default": extended(rope.spec, Plain())}, schema="v4")
    changed = [line for line in conversion.diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert changed == [
        '-    "max_position_embeddings": 128,',
        '+    "max_position_embeddings": 32,',
        '-    "rope_scaling": {',
        '-        "rope_type": "yarn",',
        '-        "factor": 4.0,',
        '-        "original_max_position_embeddings": 32',
        "-    }",
        '+    "rope_scaling": null',
    ]


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("indent", [None, 1])
def test_every_line_of_the_diff_is_a_line_of_its_own(indent, end, tmp_path):
    """Also where the file ends without a line break, or a string holds what Python calls one."""
    config = json.dumps(CONFIG | {"note": "a\u2028b\x85c"}, indent=indent, ensure_ascii=False)
    (tmp_path / "config.json").write_text(config + end)
    checkpoint = read_checkpoint(str(tmp_path))
    diff = plan(checkpoint, {"default": extended(checkpoint.ropes[0].spec, Linear(2.0))}).diff
    *lines, last = diff.split("\n")
    assert last == ""
    assert all(line[:1] in " +-@\\" for line in lines)
    assert ("\\ No newline at end of file" in lines) == (end == "")


def test_the_tokenizer_limit_follows_where_it_was_the_old_limit(tmp_path):
    """`model_max_length` of 128 becomes 512; one that said something else is left alone."""
    checkpoint = checkpoint_of(tmp_path)
    intent = {"default": extended(checkpoint.ropes[0].spec, Yarn.default(4.0))}
    texts = plan(checkpoint, intent, tokenizer_text='{"model_max_length":128,"x":1}').texts
    assert texts["tokenizer_config.json"] == '{"model_max_length":512,"x":1}'
    for other in (
        '{"model_max_length": 64}',
        '{"model_max_length": 1000000000000000019884624838656}',
        "{}",
        '{"x": null}',
    ):
        assert "tokenizer_config.json" not in plan(checkpoint, intent, tokenizer_text=other).texts


def test_the_tokenizer_edit_is_listed(tmp_path):
    """The edit names the other file."""
    checkpoint = checkpoint_of(tmp_path)
    intent = {"default": extended(checkpoint.ropes[0].spec, Yarn.default(4.0))}
    edits = plan(checkpoint, intent, tokenizer_text='{"model_max_length": 128}').edits
    (edit,) = [edit for edit in edits if "tokenizer" in edit.key]
    assert (edit.old, edit.new) == (128, 512)


def test_the_keys_of_a_nested_language_model_are_named_by_their_path(tmp_path):
    """In a multimodal config the edits lie under `text_config`, and nothing else changes."""
    inner = {key: CONFIG[key] for key in CONFIG if key not in ("architectures", "own_key")}
    outer = {"model_type": "llava", "text_config": inner, "vision_config": {"rope_theta": 5.0}}
    (tmp_path / "config.json").write_text(json.dumps(outer, indent=2))
    checkpoint = read_checkpoint(str(tmp_path))
    conversion = plan(checkpoint, {"default": extended(checkpoint.ropes[0].spec, Yarn.default(4.0))})
    after = json.loads(conversion.texts["config.json"])
    assert {edit.key.partition(".")[0] for edit in conversion.edits} == {"text_config"}
    assert after["vision_config"] == outer["vision_config"]
    assert after["text_config"]["max_position_embeddings"] == 512


def test_layers_that_are_not_converted_are_part_of_what_is_checked(tmp_path):
    """The intent has every layer type, so that a read-back also proves that the others stayed."""
    checkpoint = checkpoint_of(tmp_path, **GEMMA)
    (rope,) = chosen_layers(checkpoint, "full")
    conversion = plan(checkpoint, {rope.name: extended(rope.spec, Yarn.default(4.0))})
    assert conversion.intent.keys() == {"full_attention", "sliding_attention"}
    assert frequencies(conversion.intent["sliding_attention"]).attention_factor == 1


@pytest.mark.parametrize(
    "params", [{"dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 128, "n_heads": 4, "rope_theta": 1e6}]
)
def test_other_formats_are_refused(params, tmp_path):
    """A Mistral `params.json` has no place for both schemas: bad usage, not a broken file."""
    (tmp_path / "params.json").write_text(json.dumps(params))
    checkpoint = read_checkpoint(str(tmp_path))
    with pytest.raises(BadUsage, match="mistral"):
        plan(checkpoint, {"default": checkpoint.ropes[0].spec})


def test_dynamic_comes_with_a_warning(tmp_path):
    """Hardly two runtimes mean the same by dynamic."""
    checkpoint = checkpoint_of(tmp_path)
    conversion = plan(checkpoint, {"default": extended(checkpoint.ropes[0].spec, Dynamic(4.0))})
    assert any("dynamic" in note for note in conversion.notes)


def test_a_trained_ramp_is_kept_unless_another_is_asked_for():
    """gpt-oss was trained with a ramp that is not rounded: another factor does not change it silently."""
    trained = RopeSpec(150000.0, 64, 64, 4096, 131072, Yarn(32.0, 1.3466, 24.0, 1.5, truncate=False))
    kept = scaling_by_hand("yarn", trained, 64.0)
    assert isinstance(kept, Yarn)
    assert (kept.beta_fast, kept.beta_slow, kept.truncate) == (24.0, 1.5, False)
    other = scaling_by_hand("yarn", trained, 64.0, beta_fast=32.0, beta_slow=1.0, truncate=True)
    assert other == Yarn.default(64.0)


DEEPSEEK = {"model_type": "deepseek_v3", "qk_rope_head_dim": 64, "num_attention_heads": 4, "rms_norm_eps": None}


@pytest.mark.parametrize("attention_factor", [0.9, 1.0, 1.1, default_attention_factor(4.0), 1.3])
def test_latent_attention_hears_one_temperature(tmp_path: Path, attention_factor: float) -> None:
    """DeepSeek: vLLM and SGLang multiply the mscale pair by attn_factor, so that one of them says the temperature.

    The scores as a whole stay as they are, and inspect has nothing to warn of.
    """
    checkpoint = checkpoint_of(tmp_path, **DEEPSEEK)
    (rope,) = checkpoint.ropes
    spec = extended(rope.spec, scaling_by_hand("yarn", rope.spec, 4.0, attention_factor=attention_factor))
    conversion = plan(checkpoint, {"default": spec})
    written = with_text(checkpoint, conversion.texts["config.json"])
    rows = runtime_rows(written)
    told = {"transformers", "transformers-4", "vllm", "vllm-2026-08", "sglang", "exllamav3"}
    assert told <= {name for name, row in rows.items() if row.agrees}
    if attention_factor >= 1:
        assert {"mlx-lm", "tensorrt-llm", "tgi"} <= {name for name, row in rows.items() if row.agrees}
    assert json.loads(conversion.texts["config.json"])["rope_scaling"].get("mscale_all_dim", 0.0) <= 1e-6
    assert [finding.id for finding in find(written, None) if finding.severity != "info"] == []


def test_a_score_scaling_of_the_class_is_not_extended(tmp_path: Path) -> None:
    """Mistral-4's class defaults to a YaRN with mscale_all_dim, which a config without a scaling has, too."""
    checkpoint = checkpoint_of(tmp_path, model_type="mistral4", max_position_embeddings=None, rope_theta=None)
    with pytest.raises(BadCheckpoint, match="multiplies the attention scores"):
        chosen_layers(checkpoint, "full")


def test_mistral_4_keeps_the_share_of_its_head(tmp_path: Path) -> None:
    """Its class puts the share into rope_parameters alone, which a rope_scaling beside them replaces."""
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    checkpoint = checkpoint_of(tmp_path, model_type="mistral4", rope_theta=None, rope_parameters=plain)
    (rope,) = checkpoint.ropes
    config = json.loads(plan(checkpoint, {"default": extended(rope.spec, Yarn.default(4.0))}).texts["config.json"])
    loaded = CONFIG_MAPPING["mistral4"].from_dict(config)
    rotary = Mistral4RotaryEmbedding(loaded)
    assert rotary.inv_freq.tolist() == pytest.approx(
        frequencies(extended(rope.spec, Yarn.default(4.0))).inv_freq, rel=5e-5
    )


def test_the_base_of_dbrx_is_changed_where_its_readers_look(tmp_path: Path) -> None:
    """vLLM and MLX-LM take attn_config.rope_theta and look nowhere else."""
    checkpoint = checkpoint_of(
        tmp_path, model_type="dbrx", rope_theta=None, attn_config={"clip_qkv": 8, "rope_theta": 500000}
    )
    (rope,) = checkpoint.ropes
    conversion = plan(checkpoint, {"default": extended(rope.spec, Ntk(4.0))})
    written = with_text(checkpoint, conversion.texts["config.json"])
    assert written.config["attn_config"] == {"clip_qkv": 8, "rope_theta": written.config["rope_theta"]}
    assert runtime_rows(written)["mlx-lm"].agrees


@pytest.mark.parametrize("rope_type", ["yarn", "linear", "llama3", "ntk"])
def test_one_rope_scaling_is_not_written_where_it_reaches_other_layers(tmp_path: Path, rope_type: str) -> None:
    """ModernBERT's class gives it to the sliding layers, too: what was asked stands in rope_parameters alone."""
    bases = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "rope_theta": None}
    checkpoint = checkpoint_of(tmp_path, model_type="modernbert", num_hidden_layers=6, **bases)
    full, sliding = checkpoint.ropes
    spec = extended(full.spec, scaling_by_hand(rope_type, full.spec, 4.0))
    written = with_text(checkpoint, plan(checkpoint, {full.name: spec}).texts["config.json"])
    assert frequencies(written.ropes[0].spec).inv_freq == pytest.approx(frequencies(spec).inv_freq, rel=5e-5)
    assert frequencies(written.ropes[1].spec) == frequencies(sliding.spec)
    if rope_type != "ntk":
        with pytest.raises(BadUsage, match="reaches every layer"):
            plan(checkpoint, {full.name: spec}, schema="v4")


def test_mistral_says_its_head_where_transformers_4_multiplies_it(tmp_path: Path) -> None:
    """transformers 4.57 leaves Mistral's head_dim null and multiplies it for YaRN: the config states it."""
    checkpoint = checkpoint_of(tmp_path, model_type="mistral")
    (rope,) = checkpoint.ropes
    written = with_text(
        checkpoint, plan(checkpoint, {"default": extended(rope.spec, Yarn.default(4.0))}).texts["config.json"]
    )
    assert written.config["head_dim"] == rope.spec.head_dim
    assert runtime_rows(written)["transformers-4"].agrees


@pytest.mark.parametrize(
    ("changes", "original", "noted"),
    [
        ({"model_type": "qwen3", "max_position_embeddings": 40960}, None, "give --original-length 32768"),
        ({"model_type": "qwen3", "max_position_embeddings": 40960}, 32768, ""),
        ({"model_type": "qwen3", "max_position_embeddings": 32768}, None, ""),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnLM"}}, None, "code of its own, modeling_own.py"),
        ({"auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}, None, ""),
    ],
)
def test_what_the_config_does_not_tell_is_noted(
    changes: dict[str, Any], original: int | None, noted: str, tmp_path: Path
) -> None:
    """Qwen3 states more than it was trained for, and a model's own code may not read what is written."""
    checkpoint = checkpoint_of(tmp_path, **changes)
    spec = extended(checkpoint.ropes[0].spec, Yarn.default(4.0), original)
    notes = [note for note in plan(checkpoint, {"default": spec}).notes if "attn_factor" not in note]
    assert len(notes) == bool(noted)
    assert noted in "".join(notes)
    assert not [note for note in plan(checkpoint, {"default": replace(spec, scaling=Plain())}).notes if "32768" in note]


def test_a_yarn_that_is_taken_away_is_noted(tmp_path: Path) -> None:
    """gpt-oss was trained with its factor; what stays, or was plain before, says nothing."""
    yarn = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 128}
    checkpoint = checkpoint_of(tmp_path, rope_scaling=yarn, max_position_embeddings=4096)
    spec = checkpoint.ropes[0].spec
    for scaling, noted in ((Yarn.default(8.0), True), (Plain(), True), (spec.scaling, False)):
        notes = plan(checkpoint, {"default": extended(spec, scaling)}).notes
        assert any("own YaRN, of factor 32, is replaced" in note for note in notes) == noted
    plain = checkpoint_of(tmp_path)
    notes = plan(plain, {"default": extended(plain.ropes[0].spec, Yarn.default(8.0))}).notes
    assert not any("is replaced" in note for note in notes)
