"""`ropecli.findings`: every rule on a config that breaks it and on one a single key away, and on real configs."""

import contextlib
import importlib.util
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.conversion import extended, plan
from ropecli.dialects import hf
from ropecli.errors import RopeError
from ropecli.findings import RULES, Finding, find, find_in_config
from ropecli.frequencies import frequencies
from ropecli.inspection import runtime_rows
from ropecli.spec import Linear, Llama3, Longrope, Ntk, NtkByParts, Plain, Scaling, Yarn

HERE = Path(__file__).parent
CASES = json.loads((HERE / "findings" / "cases.json").read_text(encoding="utf-8"))
REAL = json.loads((HERE / "findings" / "configs.json").read_text(encoding="utf-8"))
GOLDEN = json.loads((HERE / "golden" / "configs.json").read_text(encoding="utf-8"))


def load_page_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_findings", HERE.parent / "docs" / "make_findings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCS = load_page_maker()


def lint(config: Mapping[str, Any]) -> tuple[Finding, ...]:
    """The findings of a config in which a tokenizer's keys may stand beside the others; read where it can be read."""
    tokenizer = {k.removeprefix(DOCS.TOKENIZER): v for k, v in config.items() if k.startswith(DOCS.TOKENIZER)}
    model = {k: v for k, v in config.items() if not k.startswith(DOCS.TOKENIZER)}
    try:
        ropes = hf.read(model)
    except RopeError:
        ropes = None
    return find_in_config(model, ropes, tokenizer or None)


def ids(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.id for finding in findings]


def case_of(rule: str) -> tuple[dict[str, Any], dict[str, Any]]:
    case = CASES["rules"][rule]
    config = DOCS.changed(CASES["bases"][case["base"]], case["change"])
    return config, DOCS.changed(config, case["neighbour"])


def fixed(config: Mapping[str, Any], findings: tuple[Finding, ...]) -> dict[str, Any]:
    """The config with all fixes applied; where two write one key, the graver finding's counts."""
    return DOCS.changed(config, {path: value for f in reversed(findings) for path, value in f.fix.items()})


def yarn_config(**scaling: Any) -> dict[str, Any]:
    return DOCS.changed(CASES["bases"]["yarn"], {f"rope_scaling.{key}": value for key, value in scaling.items()})


EVERY_RULE = pytest.mark.parametrize("rule", [rule.id for rule in RULES])


def test_every_rule_has_a_case() -> None:
    """No rule is without a config that triggers it, and no case is without its rule."""
    assert CASES["rules"].keys() == {rule.id for rule in RULES}


@EVERY_RULE
def test_case_and_neighbour(rule: str) -> None:
    """The case of each rule triggers it; the neighbour, which differs in one key, does not."""
    config, neighbour = case_of(rule)
    assert len(CASES["rules"][rule]["neighbour"]) == 1
    assert rule in ids(lint(config))
    assert rule not in ids(lint(neighbour))


@EVERY_RULE
def test_a_finding_is_its_rules(rule: str) -> None:
    """A finding carries the severity of its rule, a message with what was found, and an effect."""
    config, _ = case_of(rule)
    severity = next(r.severity for r in RULES if r.id == rule)
    for finding in lint(config):
        if finding.id == rule:
            assert finding.severity == severity
            assert finding.message
            assert finding.effect
            assert all(path and isinstance(path, str) for path in finding.fix)


@EVERY_RULE
def test_a_fix_mends(rule: str) -> None:
    """The config with the fix written into it does not trigger the rule again, and the fix can be JSON."""
    config, _ = case_of(rule)
    for finding in lint(config):
        if finding.id == rule and finding.fix:
            mended = DOCS.changed(config, json.loads(json.dumps(dict(finding.fix))))
            assert rule not in ids(lint(mended))


@pytest.mark.parametrize("config", [case_of(rule.id)[0] for rule in RULES] + [real["config"] for real in REAL.values()])
def test_fixes_together_mend_everything(config: dict[str, Any]) -> None:
    """Writing all fixes, a few times over, ends with no error and no warning that has a fix."""
    for _ in range(4):
        config = fixed(config, lint(config))
    assert [f for f in lint(config) if f.fix and f.severity != "info"] == []


@pytest.mark.parametrize("name", CASES["bases"])
def test_bases_are_sound(name: str) -> None:
    """The configs that the cases are made from have nothing graver than an info."""
    assert {finding.severity for finding in lint(CASES["bases"][name])} <= {"info"}


@pytest.mark.parametrize("name", REAL)
def test_real_configs(name: str) -> None:
    """Published configs, and the shapes that tools save, give exactly the findings that they should."""
    assert ids(lint(REAL[name]["config"])) == REAL[name]["findings"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A", ["ROPE401", "ROPE406", "ROPE410"]),
        ("B", ["ROPE401", "ROPE410"]),
        ("C", ["ROPE303", "ROPE401", "ROPE410"]),
        ("D", ["ROPE301", "ROPE401", "ROPE410"]),
        ("E", ["ROPE303", "ROPE401", "ROPE410"]),
        ("F", ["ROPE305", "ROPE401", "ROPE410"]),
        ("G", ["ROPE409", "ROPE410"]),
        ("H", ["ROPE401", "ROPE407", "ROPE410"]),
        ("I", ["ROPE203", "ROPE401", "ROPE406", "ROPE410"]),
        ("J", ["ROPE101", "ROPE401", "ROPE406", "ROPE410"]),
        ("K", []),
        ("L", ["ROPE208"]),
        ("M", ["ROPE505"]),
        ("N", ["ROPE410"]),
        ("O", ["ROPE410"]),
        ("P", []),
    ],
)
def test_golden_configs(name: str, expected: list[str]) -> None:
    """The configs on which runtimes were measured to differ are found, and those on which they agree are clean."""
    (config,) = (config for key, config in GOLDEN.items() if key.startswith(f"{name} "))
    assert ids(lint(config)) == expected


CONVERTED: dict[str, Scaling] = {
    "yarn": Yarn.default(4.0),
    "yarn, cooler": Yarn(4.0, 0.93, 16.0, 2.0),
    "yarn, no temperature": Yarn(8.0, 1.0, 40.0, 0.5),
    "yarn, not rounded": Yarn(4.0, 1.2, 30.0, 1.5, truncate=False),
    "linear": Linear(4.0),
    "ntk": Ntk(4.0),
    "ntk-by-parts": NtkByParts(4.0),
    "llama3": Llama3(8.0, 1.0, 4.0),
    "longrope": Longrope(4.0, (1.0,) * 16 + (4.0,) * 16, (1.0,) * 16 + (4.0,) * 16, 1.1, 1.1),
    "none": Plain(),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", CONVERTED)
def test_converted_configs_are_clean(name: str, wrapped: bool) -> None:
    """What `ropecli convert` writes has neither an error nor a warning, under text_config too."""
    text = {
        "model_type": "llama",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    config = {"model_type": "llava", "text_config": text} if wrapped else text
    checkpoint = read_checkpoint("-", stdin=io.StringIO(json.dumps(config)))
    spec = extended(checkpoint.ropes[0].spec, CONVERTED[name])
    written = json.loads(plan(checkpoint, {"default": spec}).texts["config.json"])
    assert [f for f in lint(written) if f.severity != "info"] == []


@settings(max_examples=60, deadline=None)
@given(
    theta=st.sampled_from([1e4, 5e5, 1e6]),
    factor=st.sampled_from([2.0, 4.0, 16.0]),
    low=st.integers(3, 10),
    width=st.integers(2, 12),
    m=st.floats(0.8, 1.5),
)
def test_snapped_betas_are_not_reported(theta: float, factor: float, low: int, width: int, m: float) -> None:
    """Betas that convert has moved just inside whole pairs are neither fractional nor at an edge, for any ramp."""
    text = {**CASES["bases"]["plain"], "max_position_embeddings": 8192, "rope_theta": theta}
    checkpoint = read_checkpoint("-", stdin=io.StringIO(json.dumps(text)))
    spec = replace(checkpoint.ropes[0].spec, original_length=8192)
    place = spec.original_length / (2 * math.pi)
    fast, slow = place * theta ** (-(low + 0.3) / 32), place * theta ** (-(low + width - 0.3) / 32)
    target = extended(spec, Yarn(factor, m, fast, slow))
    written = json.loads(plan(checkpoint, {"default": target}).texts["config.json"])
    findings = lint(written)
    assert {"ROPE401", "ROPE402"}.isdisjoint(ids(findings))
    assert [f for f in findings if f.severity != "info"] == []


@pytest.mark.parametrize(
    ("beta_fast", "fires"), [(32.5, True), (32.593994, False), (32.61, True), (37.0, False), (43.3, True)]
)
def test_the_edge_of_a_cell(beta_fast: float, fires: bool) -> None:
    """β is at an edge within 0.02 pairs of a whole corner, unless it is snapped just inside it (D = 64, L = 2048)."""
    assert ("ROPE402" in ids(lint(yarn_config(beta_fast=beta_fast)))) is fires


def test_the_edge_says_which_way() -> None:
    """The change that the message names does move the ramp by a pair, and the other direction does not."""
    config = yarn_config(beta_fast=32.5)
    (finding,) = (f for f in lint(config) if f.id == "ROPE402")
    found = re.search(r"([\d.]+) % (more|less)", finding.message)
    assert found is not None
    step = float(found[1]) / 100 * 1.1
    sign = 1 if found[2] == "more" else -1

    def ramp(beta_fast: float) -> tuple[float, ...]:
        return frequencies(hf.read(yarn_config(beta_fast=beta_fast))[0].spec).inv_freq

    assert ramp(32.5 * (1 + sign * step)) != ramp(32.5)
    assert ramp(32.5 * (1 - sign * step)) == ramp(32.5)


def test_how_far_unrounded_corners_are() -> None:
    """The percentage in the message is that between rounded and unrounded corners: 16.6 for the golden config."""
    (finding,) = (f for f in lint(yarn_config(beta_fast=32.0, beta_slow=1.0)) if f.id == "ROPE401")
    assert "up to 17 %" in finding.message


def test_fix_of_attn_factor_is_the_product() -> None:
    """DeepSeek-R1-0528-Qwen3-8B's attn_factor times the default is a multiplier of exactly 1, in every spelling."""
    (finding,) = (f for f in lint(REAL["DeepSeek-R1-0528-Qwen3-8B"]["config"]) if f.id == "ROPE301")
    assert finding.fix["rope_scaling.attention_factor"] == pytest.approx(1.0)
    assert finding.fix["rope_scaling.mscale"] == finding.fix["rope_scaling.mscale_all_dim"]
    assert "1 in SGLang" in finding.effect
    assert "1.139 in transformers" in finding.effect


def test_the_fix_for_version_4_means_the_same() -> None:
    """After the fix of ROPE101 a reader that knows no rope_parameters computes what transformers 5 does."""
    config = REAL["Llama-3.1-8B as transformers 5 saves it"]["config"]
    (finding,) = lint(config)
    mended = DOCS.changed(config, finding.fix)
    old = {key: value for key, value in mended.items() if key != "rope_parameters"}
    assert hf.read(old)[0].spec == hf.read(config)[0].spec == hf.read(mended)[0].spec


def test_both_schemas_are_fixed() -> None:
    """A fix writes to rope_scaling and to rope_parameters where both have the object."""
    config = CASES["bases"]["yarn"]
    both = {**config, "rope_parameters": {**config["rope_scaling"], "rope_theta": 10000.0}}
    (finding,) = (f for f in lint(DOCS.changed(both, {"max_position_embeddings": 2048})) if f.id == "ROPE203")
    assert dict(finding.fix) == {"max_position_embeddings": 8192}
    wrong = DOCS.changed(both, {"rope_scaling.attn_factor": 0.9, "rope_parameters.attn_factor": 0.9})
    (finding,) = (f for f in lint(wrong) if f.id == "ROPE301")
    assert {path.split(".")[0] for path in finding.fix} == {"rope_scaling", "rope_parameters"}


def test_key_paths_reach_into_the_language_model() -> None:
    """In a composite model messages and fixes name the path under text_config."""
    text = DOCS.changed(case_of("ROPE302")[0], {})
    (finding,) = (f for f in lint({"model_type": "llava", "text_config": text}) if f.id == "ROPE302")
    assert "text_config.rope_scaling.attn_factor" in finding.message
    assert list(finding.fix) == ["text_config.rope_scaling.attn_factor"]


def test_layer_types_are_named() -> None:
    """In a nested config messages and fixes name the layer type."""
    (finding,) = (f for f in lint(case_of("ROPE408")[0]) if f.id == "ROPE408")
    assert finding.message.startswith("rope_parameters.full_attention.truncate")
    assert "rope_parameters.full_attention.beta_fast" in finding.fix


def test_model_types_of_version_5_need_no_older_keys() -> None:
    """No reader of version 4's keys knows a model that came with version 5: its rope_parameters alone are enough."""
    config = REAL["Llama-3.1-8B as transformers 5 saves it"]["config"]
    assert ids(lint({**config, "model_type": "hy_v3"})) == []


def test_su_needs_its_original_length_inside() -> None:
    """Phi-3-mini-128k's first config: version 5 fills the length in for longrope, and calls su so too late."""
    lists = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]}
    config = {"model_type": "phi3", "hidden_size": 32, "num_attention_heads": 8, "num_hidden_layers": 2}
    config |= {"max_position_embeddings": 512, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    outside = config | {"rope_scaling": {"type": "su", **lists}}
    inside = config | {"rope_scaling": {"type": "su", "original_max_position_embeddings": 64, **lists}}
    for name, found in ((outside, True), (inside, False)):
        rows = runtime_rows(read_checkpoint("-", stdin=io.StringIO(json.dumps(name))))
        assert ("ROPE502" in ids(lint(name))) is found
        assert (rows["transformers"].max_rel_diff is None) is found
        if found:
            with pytest.raises(KeyError):
                AutoConfig.for_model(**json.loads(json.dumps(name)))
        else:
            assert AutoConfig.for_model(**name).rope_parameters["rope_type"] == "longrope"
    mended = fixed(outside, lint(outside))
    assert AutoConfig.for_model(**mended).rope_parameters["original_max_position_embeddings"] == 64


@pytest.mark.parametrize("theta", [10000.0, 10000])
def test_a_plain_embedding_in_rope_parameters_is_harmless(theta: float) -> None:
    """What transformers 5 saves of an unscaled Llama with a base of 10000 is what every reader assumes anyway."""
    parameters = {"rope_type": "default", "rope_theta": theta}
    assert lint(DOCS.changed(CASES["bases"]["plain"], {"rope_theta": None, "rope_parameters": parameters})) == ()


def test_equal_content_in_other_words_is_no_difference() -> None:
    """Defaults written out, nulls, integers and type for rope_type are no difference between the schemas."""
    old = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 2048, "mscale": None}
    new = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048.0, "rope_theta": 10000.0}
    new |= {"beta_fast": 32, "beta_slow": 1.0, "truncate": True}
    config = {**CASES["bases"]["plain"], "max_position_embeddings": 8192, "rope_scaling": old, "rope_parameters": new}
    assert "ROPE102" not in ids(lint(config))


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("ROPE106", {"rope_scaling.rope_type": None}),
        ("ROPE120", {"rope_scaling.factor": "4"}),
        ("ROPE308", {"rope_scaling.attention_factor": -1.0}),
        ("ROPE501", {"rope_scaling.rope_type": "yarm"}),
        ("ROPE503", {"rope_scaling.factor": None, "rope_scaling.original_max_position_embeddings": None}),
        ("ROPE404", {"rope_scaling.beta_slow": 64.0}),
    ],
)
def test_found_in_what_cannot_be_read(rule: str, change: Mapping[str, Any]) -> None:
    """What the keys alone show is found when nothing is known of their meaning."""
    config = DOCS.changed(CASES["bases"]["yarn"], change)
    assert rule in ids(find_in_config(config, None))


@pytest.mark.parametrize(("scout", "found"), [(1.0, False), (0.5, True)])
def test_a_step_is_no_swap(scout: float, found: bool) -> None:
    """Llama-4-Scout's equal bounds and Kimi-K2's equal betas are what these models were trained with."""
    bounds = {"rope_scaling.low_freq_factor": 1.0, "rope_scaling.high_freq_factor": scout}
    assert ("ROPE511" in ids(lint(DOCS.changed(CASES["bases"]["llama3"], bounds)))) == found
    betas = {"rope_scaling.beta_slow": 1.0, "rope_scaling.beta_fast": scout}
    assert ("ROPE404" in ids(lint(DOCS.changed(CASES["bases"]["yarn"], betas)))) == found


@pytest.mark.parametrize("rule", ["ROPE506", "ROPE507", "ROPE508"])
def test_broken_longrope_lists_are_found(rule: str) -> None:
    """Lists that are missing, too short or not positive are named although the config cannot be read."""
    config, _ = case_of(rule)
    with pytest.raises(RopeError):
        hf.read(config)
    (finding,) = (f for f in find_in_config(config, None) if f.id == rule)
    assert "rope_scaling.long_factor" in finding.message


@pytest.mark.parametrize("share", [{"rope_scaling.partial_rotary_factor": 0.5}, {"partial_rotary_factor": 0.5}])
def test_list_length_heeds_partial_rotation(share: Mapping[str, Any]) -> None:
    """With half of the head rotating, longrope needs half as many divisors."""
    config = DOCS.changed(CASES["bases"]["longrope"], share)
    (finding, *_) = (f for f in find_in_config(config, None) if f.id == "ROPE507")
    assert "has 4 numbers, and there are 2 rotary pairs" in finding.message


def test_odd_keys_and_values_are_made_printable() -> None:
    """Line breaks in a key, a key of a thousand letters and a number of thousands of digits do not spoil a message."""
    wild = {"a\nb\x1b[31m": 1, "k" * 1000: 1, "factor": 10**5000}
    config = {**CASES["bases"]["plain"], "rope_scaling": {"rope_type": "yarn", **wild}}
    for finding in find_in_config(config, None):
        assert finding.message.isprintable()
        assert len(finding.message) < 200


def test_betas_for_a_ramp_outside_the_head() -> None:
    """Where no whole pairs hold the ramp, the fix writes the usual betas."""
    lengths = {"rope_scaling.original_max_position_embeddings": 2**40, "max_position_embeddings": 2**42}
    config = DOCS.changed(case_of("ROPE406")[0], lengths)
    (finding,) = (f for f in lint(config) if f.id == "ROPE406")
    assert dict(finding.fix) == {"rope_scaling.beta_fast": 32.0, "rope_scaling.beta_slow": 1.0}


def test_order() -> None:
    """Findings come by severity, the gravest first, then by id."""
    config = DOCS.changed(
        CASES["bases"]["yarn"],
        {"rope_scaling.type": "linear", "rope_scaling.beta_fast": 0, "max_position_embeddings": 2048},
    )
    findings = lint(config)
    ranks = [(["error", "warning", "info"].index(f.severity), f.id) for f in findings]
    assert ranks == sorted(ranks)
    assert {f.severity for f in findings} == {"error", "warning", "info"}


def test_checkpoints() -> None:
    """`find` judges a Hugging Face checkpoint by its keys, any other by what it means, and takes the tokenizer's."""
    config, _ = case_of("ROPE302")
    checkpoint = read_checkpoint("-", stdin=io.StringIO(json.dumps(config)))
    assert "ROPE302" in ids(find(checkpoint))
    assert "ROPE602" in ids(find(checkpoint, {"model_max_length": 2048}))
    elsewhere = Checkpoint("m.gguf", "gguf", None, None, {"llama.rope.freq_base": 1e4}, "", "llama", checkpoint.ropes)
    assert ids(find(elsewhere)) == ["ROPE410"]


def test_without_rotation_there_is_nothing_to_say() -> None:
    """A model that does not rotate has no findings, whatever its keys say."""
    config = {"model_type": "bloom", "rope_scaling": {"type": "yarm"}}
    assert find_in_config(config, ()) == ()


@pytest.mark.parametrize("limit", [1e30, int(1e30), 0, None, True, "8192", 8192])
def test_tokenizer_limits_that_mean_nothing(limit: Any) -> None:
    """A tokenizer's "no limit", a limit that is no number, and one that suffices are no finding."""
    assert "ROPE602" not in ids(lint({**CASES["bases"]["yarn"], f"{DOCS.TOKENIZER}model_max_length": limit}))


KEYS = [
    *("model_type", "rope_scaling", "rope_parameters", "rope_theta", "max_position_embeddings", "head_dim"),
    *("original_max_position_embeddings", "rope_type", "type", "factor", "beta_fast", "beta_slow", "truncate"),
    *("attention_factor", "attn_factor", "mscale", "mscale_all_dim", "short_factor", "long_factor", "self"),
    *("low_freq_factor", "high_freq_factor", "partial_rotary_factor", "full_attention", "sliding_attention"),
    *("text_config", "hidden_size", "num_attention_heads", "num_hidden_layers", "layer_types", "sliding_window"),
    *("qk_rope_head_dim", "mrope_section", "alpha", "rope_tetha", "beta_fasst", "rope_local_base_freq", ""),
]
WORDS = [
    "llama",
    "gemma3_text",
    "phi3",
    "deepseek_v3",
    "yarn",
    "longrope",
    "llama3",
    "linear",
    "dynamic",
    "su",
    "?",
    "4",
]
NUMBERS = st.sampled_from([0, 1, -1, 4, 4.0, 0.5, 2048, 8192, 1e4, 1e300, 10**400, math.nan, math.inf, -0.0, 1e-300])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(WORDS)),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=9),
    max_leaves=25,
)


def look(config: dict[str, Any], tokenizer: object) -> None:
    """Lint a config, read and unread, and look at all that is said."""
    known = tokenizer if isinstance(tokenizer, dict) else None
    findings = find_in_config(config, None, known)
    with contextlib.suppress(RopeError, OverflowError):
        findings += find_in_config(config, hf.read(config), known)
    for finding in findings:
        assert finding.message
        assert len(finding.message) < 1000


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=10), tokenizer=st.none() | VALUES)
def test_never_raises(config: dict[str, Any], tokenizer: object) -> None:
    """Any JSON object gives findings that can be printed, or none."""
    look(config, tokenizer)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rule=st.sampled_from(sorted(CASES["rules"])),
    inside=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    beside=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=1),
)
def test_never_raises_near_a_real_config(rule: str, inside: dict[str, Any], beside: dict[str, Any]) -> None:
    """A config with any value in any place of its scaling gives findings that can be printed, or none."""
    config = {**case_of(rule)[0], **beside}
    for schema in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(schema), dict):
            config[schema] = {**config[schema], **inside}
    look(config, None)


@pytest.mark.parametrize("place", ["", "NousResearch/Yarn-Mistral-7b-128k--"])
def test_what_yarn_mistral_keeps_in_its_own_code(place: str) -> None:
    """β = 128, α = 2 and 0.07·ln 16 + 1 = 1.1941 are not in its config: found, and the fix brings them to runtimes.

    Also where the code lies in another repository; a config that speaks for itself is believed.
    """
    config = json.loads((HERE / "cases" / "yarn_mistral_stated_length.json").read_text(encoding="utf-8"))["config"]
    config["auto_map"] = {"AutoModelForCausalLM": f"{place}modeling_mistral_yarn.MistralForCausalLM"}
    (finding,) = (f for f in lint(config) if f.id == "ROPE603")
    mended = DOCS.changed(config, {"max_position_embeddings": 131072, "head_dim": 128} | dict(finding.fix))
    (rope,) = hf.read(mended)
    assert rope.spec.scaling == Yarn(16.0, 0.07 * math.log(16) + 1, 128.0, 2.0)
    rows = runtime_rows(read_checkpoint("-", stdin=io.StringIO(json.dumps(mended))))
    told = {"transformers", "transformers-4", "vllm", "vllm-2026-08", "sglang", "mlx-lm", "exllamav3", "tensorrt-llm"}
    assert told <= {name for name, row in rows.items() if row.agrees}
    assert [rows[name].attention_factor for name in told] == pytest.approx([1.1940812] * len(told), abs=1e-4)
    assert "ROPE603" not in ids(lint(DOCS.changed(config, {"rope_scaling.attention_factor": 1.3})))


@pytest.mark.parametrize(
    ("auto_map", "named"),
    [
        ({"AutoModel": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.OwnLM"}, "modeling_own.py"),
        ({"AutoModelForCausalLM": "org/code--sub.modeling.Own"}, "sub/modeling.py of org/code"),
        ({"AutoConfig": "configuration_own.Own", "AutoTokenizer": ["own.Slow", None]}, None),
        (["modeling_own.Own"], None),
    ],
)
def test_own_code_is_named_where_it_is_the_models(auto_map: object, named: str | None) -> None:
    """Code of a tokenizer or a config makes no embedding."""
    found = [f.message for f in lint({**CASES["bases"]["plain"], "auto_map": auto_map}) if f.id == "ROPE604"]
    assert found == ([] if named is None else [f"auto_map names {named}"])


def test_a_misspelt_rope_type_is_corrected() -> None:
    """The key that nearly says it becomes the one that says it."""
    config = {**CASES["bases"]["plain"], "rope_scaling": {"rope_typ": "linear", "factor": 4.0}}
    (finding,) = (f for f in lint(config) if f.id == "ROPE106")
    assert finding.fix == {"rope_scaling.rope_typ": None, "rope_scaling.rope_type": "linear"}
    assert "is rope_typ meant for it?" in finding.message


def test_rules_read_well() -> None:
    """Ids are unique and in order, titles are short, and every text is a sentence."""
    numbers = [rule.id for rule in RULES]
    assert numbers == sorted(set(numbers))
    for rule in RULES:
        assert re.fullmatch(r"ROPE[1-6]\d\d", rule.id)
        assert len(rule.title) <= 60
        assert not rule.title.endswith(".")
        assert rule.source
        assert all(text.endswith(".") for text in (rule.what, rule.effect, rule.fix))


def test_the_page_is_not_stale() -> None:
    """docs/findings.md is what `python docs/make_findings.py` writes, with an anchor for every id."""
    page = DOCS.PAGE.read_text(encoding="utf-8")
    assert page == DOCS.page()
    assert all(f"\n### {rule.id}\n" in page for rule in RULES)


@pytest.mark.parametrize(("attention_factor", "told"), [(1.0, False), (1.1, True)])
def test_a_temperature_of_one_is_not_told_as_a_change(attention_factor, told):
    """DeepSeek's YaRN slows pairs and leaves cos and sin as they are."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config = {"model_type": "llama", "head_dim": 64, "num_hidden_layers": 1, "max_position_embeddings": 2048}
    config |= {"rope_theta": 10000.0, "rope_scaling": yarn | {"attention_factor": attention_factor}}
    (finding,) = (found for found in find_in_config(config, hf.read(config)) if found.id == "ROPE410")
    assert "pairs are slowed" in finding.message
    assert ("multiplied" in finding.message) is told
