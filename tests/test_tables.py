"""Baked tables: the right numbers in the right layout, found stale when they are, and used by a model as its own."""

import copy
import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ropecli.checkpoint import Checkpoint, read_checkpoint, tensor_headers, verify
from ropecli.errors import BadCheckpoint, BadUsage
from ropecli.frequencies import Frequencies, frequencies
from ropecli.safetensors_header import INDEX_NAME
from ropecli.spec import Dynamic, Plain, RopeSpec, Yarn
from ropecli.stored_floats import decoded, encoded
from ropecli.tables import (
    SHARD,
    SIDECAR,
    BakeRequest,
    attach,
    baked,
    index_with_tables,
    plan_tables,
    verify_tables,
    write_tables,
)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rope_scaling": YARN,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYERED: dict[str, Any] = {
    "model_type": "gemma3_text",
    "head_dim": 16,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_scaling": None,
    "rope_parameters": {
        "full_attention": YARN | {"rope_theta": 10000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "attention_factor": 1.2,
    "short_factor": [1.0, 1.0, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity_warning()


def checkpoint_of(folder: Path, **changes: Any) -> Checkpoint:
    """A folder with this config, read; None removes a key."""
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return read_checkpoint(str(folder))


def bake(folder: Path, request: BakeRequest, **changes: Any) -> Path:
    """A folder with a config and its tables."""
    plan = plan_tables(request, checkpoint_of(folder, **changes))
    write_tables(plan, folder / plan.name)
    return folder / plan.name


def by_hand(table: Frequencies, length: int) -> tuple[Any, Any]:
    """cos and sin [length, d/2] by the mathematics library alone."""
    m, rows = table.attention_factor, range(length)
    cos = [[m * math.cos(p * w) for w in table.inv_freq] for p in rows]
    sin = [[m * math.sin(p * w) for w in table.inv_freq] for p in rows]
    return torch.tensor(cos, dtype=torch.float64), torch.tensor(sin, dtype=torch.float64)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["half", "concat", "full"])
def test_tables_are_the_rounded_cosines(layout: Any, dtype: Any, tmp_path: Path) -> None:
    """safetensors reads what was written: m·cos and m·sin of position · inv_freq, rounded once, in each layout."""
    file = bake(tmp_path, BakeRequest("cos-sin", 50, dtype, layout))
    (rope,) = read_checkpoint(str(tmp_path)).ropes
    cos, sin = by_hand(frequencies(rope.spec), 50)
    found = load_file(file)
    wanted = {
        "half": {"cos_cached": cos, "sin_cached": sin},
        "concat": {"cos_sin_cache": torch.cat((cos, sin), 1)},
        "full": {"cos_cached": torch.cat((cos, cos), 1), "sin_cached": torch.cat((sin, sin), 1)},
    }[layout]
    assert set(found) == {f"default.rotary_emb.{leaf}" for leaf in wanted}
    unit = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for leaf, values in wanted.items():
        tensor = found[f"default.rotary_emb.{leaf}"]
        assert tensor.dtype == getattr(torch, dtype)
        torch.testing.assert_close(tensor.double(), values, rtol=0, atol=1.2 * unit * 1.01)


def test_columns_of_an_interleaved_model_stand_in_its_own_order(tmp_path: Path) -> None:
    """Cohere rotates neighbours: in the full layout each value stands twice side by side."""
    file = bake(tmp_path, BakeRequest("cos-sin", 5, layout="full"), model_type="cohere", rope_scaling=None)
    cos = load_file(file)["default.rotary_emb.cos_cached"]
    assert torch.equal(cos[:, 0::2], cos[:, 1::2])
    assert not torch.equal(cos[:, :4], cos[:, 4:])


def test_metadata_says_what_the_tables_are(tmp_path: Path) -> None:
    """Everything that a reader needs is in `__metadata__`, as strings; lists follow the order of the layers."""
    file = bake(tmp_path, BakeRequest("cos-sin", 40, "bfloat16", "concat"), **LAYERED)
    with safe_open(file, "pt") as opened:
        found = opened.metadata()
    assert found["format"] == "pt"
    assert (found["ropecli.kind"], found["ropecli.layout"]) == ("cos-sin", "concat")
    assert (found["ropecli.dtype"], found["ropecli.length"]) == ("bfloat16", "40")
    assert found["ropecli.config_sha256"] == read_checkpoint(str(tmp_path)).config_sha256
    assert json.loads(found["ropecli.layers"]) == ["full_attention", "sliding_attention"]
    assert json.loads(found["ropecli.factor"]) == [4.0, 1.0]
    assert json.loads(found["ropecli.attention_factor"]) == [1.2, 1.0]
    assert json.loads(found["ropecli.rope_theta"]) == [10000.0, 500.0]
    assert json.loads(found["ropecli.rotary_dim"]) == [16, 16]


def test_inverse_frequencies_come_with_their_attention_factor(tmp_path: Path) -> None:
    """`inv-freq`: one vector, and the attention factor as a scalar beside it."""
    file = bake(tmp_path, BakeRequest("inv-freq", 64))
    found = load_file(file)
    (rope,) = read_checkpoint(str(tmp_path)).ropes
    assert set(found) == {"default.rotary_emb.inv_freq", "default.rotary_emb.attention_factor"}
    wanted = torch.tensor(frequencies(rope.spec).inv_freq, dtype=torch.float64).float()
    assert torch.equal(found["default.rotary_emb.inv_freq"], wanted)
    assert found["default.rotary_emb.attention_factor"].shape == ()
    assert found["default.rotary_emb.attention_factor"].item() == pytest.approx(1.2)


def test_two_lists_give_two_tables(tmp_path: Path) -> None:
    """Longrope with differing lists: a short table up to the original length, and a long one."""
    found = load_file(bake(tmp_path, BakeRequest("cos-sin", 64), rope_scaling=LONGROPE))
    (rope,) = read_checkpoint(str(tmp_path)).ropes
    assert found["default.short.rotary_emb.cos_cached"].shape == (16, 4)
    assert found["default.long.rotary_emb.cos_cached"].shape == (64, 4)
    for variant, length in (("short", 16), ("long", 64)):
        cos, _ = by_hand(frequencies(rope.spec, length), length)
        stored = found[f"default.{variant}.rotary_emb.cos_cached"].double()
        torch.testing.assert_close(stored, cos, rtol=0, atol=1e-7)


def test_equal_lists_give_one_table(tmp_path: Path) -> None:
    """Longrope whose two lists are one says the same at every length."""
    scaling = LONGROPE | {"short_factor": LONGROPE["long_factor"]}
    found = load_file(bake(tmp_path, BakeRequest("cos-sin", 64), rope_scaling=scaling))
    assert set(found) == {"default.rotary_emb.cos_cached", "default.rotary_emb.sin_cached"}


def test_a_copy_for_each_layer(tmp_path: Path) -> None:
    """`per_layer` names a table after each layer, which has the values of its kind."""
    each = load_file(bake(tmp_path / "each", BakeRequest("cos-sin", 30, per_layer=True), **LAYERED))
    kinds = load_file(bake(tmp_path / "kinds", BakeRequest("cos-sin", 30), **LAYERED))
    assert len(each) == 4
    for i, kind in enumerate(LAYERED["layer_types"]):
        for leaf in ("cos_cached", "sin_cached"):
            found = each[f"model.layers.{i}.self_attn.rotary_emb.{leaf}"]
            assert torch.equal(found, kinds[f"{kind}.rotary_emb.{leaf}"])


def test_layers_that_cannot_be_told_apart_have_no_copies(tmp_path: Path) -> None:
    """Without `layer_types` nobody knows which layer takes which table; the error names the option."""
    untold = checkpoint_of(tmp_path, **LAYERED | {"layer_types": None, "model_type": "unknown"})
    with pytest.raises(BadUsage) as caught:
        plan_tables(BakeRequest("cos-sin", 8, per_layer=True), untold)
    assert caught.value.where.startswith("--bake-per-layer: ")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_largest_error_is_measured(dtype: Any, tmp_path: Path) -> None:
    """What `write_tables` returns is the largest difference from the float64 values, over all tensors."""
    plan = plan_tables(BakeRequest("cos-sin", 60, dtype), checkpoint_of(tmp_path))
    error = write_tables(plan, tmp_path / plan.name)
    (rope,) = read_checkpoint(str(tmp_path)).ropes
    cos, sin = by_hand(frequencies(rope.spec), 60)
    found = load_file(tmp_path / plan.name)
    off = [
        (found[f"default.rotary_emb.{name}_cached"].double() - values).abs().max().item()
        for name, values in (("cos", cos), ("sin", sin))
    ]
    assert error == pytest.approx(max(off), rel=1e-5)
    assert error > 0


@pytest.mark.parametrize("request_", [BakeRequest("cos-sin", 33, "bfloat16"), BakeRequest("inv-freq", 1)], ids=str)
def test_the_size_is_known_beforehand(request_: BakeRequest, tmp_path: Path) -> None:
    """The plan's size is the file's, so that space can be checked and shown before anything is written."""
    plan = plan_tables(request_, checkpoint_of(tmp_path, **LAYERED))
    write_tables(plan, tmp_path / plan.name)
    assert (tmp_path / plan.name).stat().st_size == plan.size


def test_a_long_table_takes_little_memory(tmp_path: Path) -> None:
    """A table of 64 MiB is written in blocks."""
    checkpoint = checkpoint_of(tmp_path, head_dim=64)
    plan = plan_tables(BakeRequest("cos-sin", 2**18), checkpoint)
    np.cos(np.zeros(1))
    tracemalloc.start()
    write_tables(plan, tmp_path / plan.name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.size > 64 * 2**20
    assert peak < 24 * 2**20
    assert verify_tables(tmp_path, checkpoint) == ()


def test_blocks_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows written in blocks of three are those written in one."""
    one = bake(tmp_path / "one", BakeRequest("cos-sin", 50, "float16", "concat")).read_bytes()
    monkeypatch.setattr("ropecli.tables.BLOCK_VALUES", 12)
    assert bake(tmp_path / "many", BakeRequest("cos-sin", 50, "float16", "concat")).read_bytes() == one


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    """The file must be new."""
    bake(tmp_path, BakeRequest("inv-freq", 1))
    with pytest.raises(FileExistsError):
        bake(tmp_path, BakeRequest("inv-freq", 1))


def test_dynamic_scaling_has_no_table(tmp_path: Path) -> None:
    """Its frequencies change with every length; the error says what to do instead."""
    checkpoint = checkpoint_of(tmp_path, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(BadUsage, match="no table holds") as caught:
        plan_tables(BakeRequest("cos-sin", 8), checkpoint)
    assert "ntk" in caught.value.hint


def spec_of(scaling: Any, theta: float = 10000.0) -> RopeSpec:
    return RopeSpec(theta, 8, 8, 16, 64, scaling)


@pytest.mark.parametrize(
    ("request_", "scaling", "theta", "message"),
    [
        (BakeRequest("inv-freq", 8, "float16"), Plain(), 1e8, "float16 loses"),
        (BakeRequest("cos-sin", 8, "float16"), Yarn(4.0, 1e5), 1e4, "attention factor of 100000"),
        (BakeRequest("cos-sin", 8), Dynamic(2.0), 1e4, "dynamic"),
    ],
)
def test_what_a_type_cannot_hold_is_refused(
    request_: BakeRequest, scaling: Any, theta: float, message: str, tmp_path: Path
) -> None:
    """Frequencies that would vanish and factors that would be infinite are no tables."""
    checkpoint = checkpoint_of(tmp_path)
    (rope,) = checkpoint.ropes
    with pytest.raises(BadUsage, match=message):
        plan_tables(request_, replace(checkpoint, ropes=(replace(rope, spec=spec_of(scaling, theta)),)))


def test_a_model_without_rotary_embedding_has_no_tables(tmp_path: Path) -> None:
    """Nothing to bake is an error, not an empty file."""
    with pytest.raises(BadCheckpoint, match="no rotary embedding"):
        plan_tables(BakeRequest("cos-sin", 8), replace(checkpoint_of(tmp_path), ropes=()))


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"kind": "cosine"}, "--bake"),
        ({"length": 0}, "--bake-length"),
        ({"length": 2**60}, "--bake-length"),
        ({"length": True}, "--bake-length"),
        ({"dtype": "float8"}, "--bake-dtype"),
        ({"layout": "whole"}, "--bake-layout"),
        ({"into": "weights"}, "--bake-into"),
    ],
)
def test_a_request_out_of_range_is_refused(values: dict[str, Any], option: str) -> None:
    """A wrong value is refused where it is built, and names its option."""
    with pytest.raises(BadUsage) as caught:
        BakeRequest(**({"kind": "cos-sin", "length": 8} | values))
    assert caught.value.where == option


REQUESTS = [
    BakeRequest("cos-sin", 64),
    BakeRequest("cos-sin", 64, "bfloat16", "concat"),
    BakeRequest("cos-sin", 64, "float16", "full", per_layer=True),
    BakeRequest("cos-sin", 3, into="shards"),
    BakeRequest("cos-sin", 1),
    BakeRequest("inv-freq", 64),
    BakeRequest("inv-freq", 64, "bfloat16", per_layer=True),
]


@pytest.mark.parametrize("changes", [{}, LAYERED, {"rope_scaling": LONGROPE}], ids=["yarn", "layered", "longrope"])
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_fresh_tables_are_not_stale(request_: BakeRequest, changes: dict[str, Any], tmp_path: Path) -> None:
    """What was just baked is what the config means, whatever kind, dtype and layout; and inspect can say what it is."""
    file = bake(tmp_path, request_, **changes)
    checkpoint = read_checkpoint(str(tmp_path))
    assert verify_tables(tmp_path, checkpoint) == ()
    found = baked(tmp_path, checkpoint)
    assert found is not None
    assert found.to_json() == {
        "path": str(file.relative_to(tmp_path)),
        "kind": request_.kind,
        "layout": request_.layout if request_.kind == "cos-sin" else None,
        "dtype": request_.dtype,
        "length": request_.length,
        "layers": [rope.name for rope in checkpoint.ropes],
        "attention_factor": [rope.spec.scaling.attention_factor for rope in checkpoint.ropes],
        "config_changed": False,
        "stale": False,
    }


STALE: dict[str, dict[str, Any]] = {
    "base": {"rope_theta": 10001.0},
    "factor": {"rope_scaling": YARN | {"factor": 4.01}},
    "attention factor": {"rope_scaling": YARN | {"attention_factor": 1.2001}},
    "no scaling": {"rope_scaling": None},
    "width": {"head_dim": 16},
    "two tables": {"rope_scaling": LONGROPE},
    "layers": LAYERED,
}


@pytest.mark.parametrize("kind", ["cos-sin", "inv-freq"])
@pytest.mark.parametrize("change", STALE)
def test_tables_of_another_config_are_stale(change: str, kind: Any, tmp_path: Path) -> None:
    """Each rotary number that changes after baking is found by recomputing."""
    bake(tmp_path, BakeRequest(kind, 64))
    checkpoint = checkpoint_of(tmp_path, **STALE[change])
    found = baked(tmp_path, checkpoint)
    assert found is not None
    assert found.stale
    assert found.config_changed
    assert found.problems == verify_tables(tmp_path, checkpoint)
    assert all(SIDECAR in problem.where and problem.hint for problem in found.problems)


def test_an_edit_of_another_key_makes_no_table_stale(tmp_path: Path) -> None:
    """The hash differs, the numbers do not: that is told apart."""
    bake(tmp_path, BakeRequest("cos-sin", 64))
    found = baked(tmp_path, checkpoint_of(tmp_path, transformers_version="5.0.0"))
    assert found is not None
    assert (found.config_changed, found.stale) == (True, False)


@pytest.mark.parametrize("row", [0, 63])
def test_a_damaged_value_is_found(row: int, tmp_path: Path) -> None:
    """A value of the first or the last row that is not a number is no table, though the header is whole."""
    file = bake(tmp_path, BakeRequest("cos-sin", 64))
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors["default.rotary_emb.sin_cached"][row, 2] = math.nan
    save_file(tensors, file, metadata)
    (problem,) = verify_tables(tmp_path, read_checkpoint(str(tmp_path)))
    assert "stale" in problem.problem


def broken(file: Path, how: str) -> None:
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif how == "not ours":
        save_file(tensors, file, {"format": "pt"})
    elif how == "tensor missing":
        save_file({"default.rotary_emb.cos_cached": tensors["default.rotary_emb.cos_cached"]}, file, metadata)
    elif how == "integers":
        save_file({name: tensor.to(torch.int32) for name, tensor in tensors.items()}, file, metadata)
    else:
        key, _, value = how.partition("=")
        save_file(tensors, file, metadata | {f"ropecli.{key}": value})


BROKEN = (
    *("cut", "not ours", "tensor missing", "integers", "version=2", "layout=round", "kind=tables", "length=many"),
    *(
        "length=0",
        "factor=[NaN]",
        "layers=[",
        'rotary_dim=["wide"]',
        'pairs=["quarter"]',
        "factor=[1.0, 2.0]",
        "layer_indices=[7]",
    ),
    f"layers={'[' * 100_000}",
)


@pytest.mark.parametrize("how", BROKEN, ids=[how[:20] for how in BROKEN])
def test_a_broken_file_is_a_problem_and_no_traceback(how: str, tmp_path: Path) -> None:
    """inspect lists it with its place; attach refuses it."""
    file = bake(tmp_path, BakeRequest("cos-sin", 8))
    broken(file, how)
    checkpoint = read_checkpoint(str(tmp_path))
    problems = verify_tables(tmp_path, checkpoint)
    found = baked(tmp_path, checkpoint)
    assert found is not None
    assert found.problems == problems
    assert str(file) in problems[0].where
    json.dumps(found.to_json())
    with pytest.raises(BadCheckpoint):
        attach(model_of(tmp_path), file)


def test_a_folder_without_tables(tmp_path: Path) -> None:
    """There is nothing to say, and nothing to attach."""
    checkpoint = checkpoint_of(tmp_path)
    assert baked(tmp_path, checkpoint) is None
    assert verify_tables(tmp_path, checkpoint) == ()
    with pytest.raises(BadCheckpoint, match="found neither"):
        attach(model_of(tmp_path), tmp_path)


def model_of(folder: Path, **changes: Any) -> Any:
    """A random float32 model of the config in a folder, with weights large enough that positions matter."""
    config = transformers.AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.7 * parameter.shape[-1] ** -0.5, generator=generator)
    return model


def logits(model: Any, length: int) -> Any:
    ids = torch.randint(3, 60, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def assert_same(found: Any, wanted: Any) -> None:
    """Logits equal to 1e-6 of the largest."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"model_type": "mistral", "sliding_window": 16, "head_dim": 8},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "gemma2": {"model_type": "gemma2", "head_dim": 16},
    "gemma3": LAYERED,
    "cohere, which rotates neighbours": {"model_type": "cohere"},
    "gpt-oss, whose module returns half": {"model_type": "gpt_oss", "head_dim": 16, **EXPERTS},
    "stablelm, half of the head": {"model_type": "stablelm", "partial_rotary_factor": 0.5},
    "phi3, a short and a long table": {"model_type": "phi3", "rope_scaling": LONGROPE},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_tables_says_what_it_says_without(family: str, tmp_path: Path) -> None:
    """Logits agree to 1e-6 with those computed from the config, within the original length and beyond it."""
    file = bake(tmp_path, BakeRequest("cos-sin", 64), **FAMILIES[family])
    model = model_of(tmp_path)
    wanted = [logits(model, length) for length in (12, 60)]
    assert attach(model, tmp_path) is model
    for length, values in zip((12, 60), wanted, strict=True):
        assert_same(logits(model, length), values)
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({name: tensor * 1.1 for name, tensor in tensors.items()}, file, metadata)
    assert (logits(attach(model, file), 60) - wanted[1]).abs().max() > 1e-3


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("layout", ["half", "concat", "full"])
@pytest.mark.parametrize("family", ["gemma3", "cohere, which rotates neighbours", "phi3, a short and a long table"])
def test_every_layout_can_be_attached(family: str, layout: Any, per_layer: bool, tmp_path: Path) -> None:
    """A table says the same in each layout, whatever form the model wants."""
    bake(tmp_path, BakeRequest("cos-sin", 64, "float32", layout, per_layer, "shards"), **FAMILIES[family])
    model = model_of(tmp_path)
    wanted = logits(model, 40)
    assert_same(logits(attach(model, tmp_path), 40), wanted)


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3, a short and a long table"])
def test_inverse_frequencies_can_be_attached(family: str, tmp_path: Path) -> None:
    """They serve texts of any length, as the config does."""
    bake(tmp_path, BakeRequest("inv-freq", 1), **FAMILIES[family])
    model = model_of(tmp_path)
    wanted = logits(model, 60)
    assert_same(logits(attach(model, tmp_path), 60), wanted)


def test_tables_win_over_the_config(tmp_path: Path) -> None:
    """A model of the source config with the converted checkpoint's tables is the converted model."""
    bake(tmp_path / "yarn", BakeRequest("cos-sin", 64))
    checkpoint_of(tmp_path / "plain", rope_scaling=None)
    wanted, plain = logits(model_of(tmp_path / "yarn"), 60), logits(model_of(tmp_path / "plain"), 60)
    found = logits(attach(model_of(tmp_path / "plain"), tmp_path / "yarn"), 60)
    assert_same(found, wanted)
    assert (plain - wanted).abs().max() > 1e-3


def test_tables_keep_their_precision_when_the_model_is_cast(tmp_path: Path) -> None:
    """`model.to(bfloat16)` rounds cos and sin once, at the end, and never the tables."""
    bake(tmp_path, BakeRequest("cos-sin", 64))
    model = attach(model_of(tmp_path), tmp_path).to(torch.bfloat16)
    x, positions = torch.zeros(1, 1, 8, dtype=torch.bfloat16), torch.arange(64)[None]
    cos, sin = model.model.rotary_emb(x, positions)
    assert cos.dtype == sin.dtype == torch.bfloat16
    (rope,) = read_checkpoint(str(tmp_path)).ropes
    wanted, _ = by_hand(frequencies(rope.spec), 64)
    assert torch.equal(cos[0, :, :4], wanted.float().bfloat16())
    assert model.model.rotary_emb(x.float(), positions)[0].dtype == torch.float32


def test_tables_follow_the_hidden_states_to_their_device(tmp_path: Path) -> None:
    """The meta device stands for any other than the one that the tables were read to."""
    bake(tmp_path, BakeRequest("cos-sin", 64))
    rotary = attach(model_of(tmp_path), tmp_path).model.rotary_emb
    cos, _ = rotary(torch.zeros(1, 1, 8, device="meta"), torch.arange(4)[None])
    assert cos.device.type == "meta"


def test_attached_models_can_be_copied(tmp_path: Path) -> None:
    """A deep copy of the model keeps the tables."""
    bake(tmp_path, BakeRequest("cos-sin", 64))
    model = attach(model_of(tmp_path), tmp_path)
    assert torch.equal(logits(copy.deepcopy(model), 40), logits(model, 40))


def test_a_text_beyond_the_table_is_refused(tmp_path: Path) -> None:
    """Not a wrong row and not an index error: the message says both lengths and what to do."""
    bake(tmp_path, BakeRequest("cos-sin", 20))
    model = attach(model_of(tmp_path), tmp_path)
    logits(model, 20)
    with pytest.raises(BadUsage, match="have 20 positions, the text needs 21") as caught:
        logits(model, 21)
    assert "--bake-length" in caught.value.hint


def test_generation_reads_the_rows_of_its_positions(tmp_path: Path) -> None:
    """Token by token with a cache, the positions go on where the prompt ended."""
    bake(tmp_path, BakeRequest("cos-sin", 64))
    model = model_of(tmp_path)
    ids = torch.arange(3, 15)[None]
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    attach(model, tmp_path)
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert torch.equal(found, wanted)


def test_the_import_is_light() -> None:
    """inspect looks for tables in every checkpoint, and starts in a blink: nothing heavy is imported."""
    code = "import sys, ropecli.tables, ropecli.folding; print({'numpy', 'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_what_cannot_take_tables_is_refused(tmp_path: Path) -> None:
    """Other widths, other layers and models without a rotary module; each time the model stays as it was."""
    file = bake(tmp_path / "half", BakeRequest("cos-sin", 64))
    checkpoint_of(tmp_path / "wide", head_dim=16)
    model = model_of(tmp_path / "wide")
    before = logits(model, 8)
    with pytest.raises(BadCheckpoint, match=r"tables of 8 rotary pairs for model\.rotary_emb, found 4"):
        attach(model, file)
    assert torch.equal(logits(model, 8), before)
    layered = bake(tmp_path / "layered", BakeRequest("cos-sin", 64), **LAYERED)
    with pytest.raises(BadUsage, match="needs tables for default"):
        attach(model, layered)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=9))
    with pytest.raises(BadUsage, match="module with inv_freq, found none in GPT2LMHeadModel"):
        attach(gpt2, file)


def test_modules_that_return_something_else_are_refused(tmp_path: Path) -> None:
    """Llama-4 rotates with complex numbers, Qwen3-VL mixes positions in three directions: no table stands for these."""
    file = bake(tmp_path, BakeRequest("cos-sin", 64))
    shape = {key: CONFIG[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")}
    small = shape | {"num_hidden_layers": 1, "head_dim": 8, "num_key_value_heads": 2, "pad_token_id": 0}
    llama4 = transformers.Llama4TextConfig(**small, intermediate_size_mlp=8, num_local_experts=1)
    with pytest.raises(BadUsage, match="Llama4TextRotaryEmbedding"):
        attach(transformers.AutoModelForCausalLM.from_config(llama4), file)
    qwen = transformers.models.qwen3_vl.Qwen3VLTextConfig(**small)
    with pytest.raises(BadUsage, match="Qwen3VLTextRotaryEmbedding"):
        attach(transformers.models.qwen3_vl.modeling_qwen3_vl.Qwen3VLTextModel(qwen), file)


def into_shards(folder: Path, length: int = 32) -> None:
    """Bake into the shards of a checkpoint as `convert` does."""
    index = folder / "model.safetensors.index.json"
    plan = plan_tables(BakeRequest("cos-sin", length, into="shards"), read_checkpoint(str(folder)))
    text = index_with_tables(plan, index.read_text() if index.exists() else None, tensor_headers(folder))
    (folder / SHARD).unlink(missing_ok=True)
    write_tables(plan, folder / plan.name)
    index.write_text(text)


def test_a_new_shard_joins_the_index(checkpoint: Path) -> None:
    """The index names the tables, counts their bytes, and is otherwise as it was; transformers loads the same model."""
    index = checkpoint / "model.safetensors.index.json"
    old, before = json.loads(index.read_text()), {p.name: p.read_bytes() for p in checkpoint.glob("model-0*")}
    model = logits(transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), 8)
    into_shards(checkpoint)
    new = json.loads(index.read_text())
    names = {f"default.rotary_emb.{leaf}_cached" for leaf in ("cos", "sin")}
    assert new["weight_map"] == old["weight_map"] | dict.fromkeys(names, SHARD)
    assert new["metadata"] == old["metadata"] | {"total_size": old["metadata"]["total_size"] + 2 * 32 * 16 * 4}
    assert {p.name: p.read_bytes() for p in checkpoint.glob("model-0*")} == before
    assert verify(read_checkpoint(str(checkpoint))) == ()
    assert names <= set(tensor_headers(checkpoint))
    assert torch.equal(
        logits(transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), 8), model
    )


def test_baking_again_replaces_the_tables_before(checkpoint: Path) -> None:
    """Their bytes are counted once, and a name that is no longer written leaves the index."""
    index = checkpoint / "model.safetensors.index.json"
    into_shards(checkpoint, 32)
    once = index.read_text()
    into_shards(checkpoint, 8)
    into_shards(checkpoint, 32)
    assert index.read_text() == once
    stray = json.loads(once)
    stray["weight_map"]["default.rotary_emb.cos_sin_cache"] = SHARD
    plan = plan_tables(BakeRequest("cos-sin", 8, into="shards"), read_checkpoint(str(checkpoint)))
    again = json.loads(index_with_tables(plan, json.dumps(stray), tensor_headers(checkpoint)))
    assert "default.rotary_emb.cos_sin_cache" not in again["weight_map"]


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a'])
def test_what_is_no_index_is_named(index: str, checkpoint: Path) -> None:
    """Beside a model.safetensors nobody has read the index before it is edited."""
    plan = plan_tables(BakeRequest("cos-sin", 8, into="shards"), read_checkpoint(str(checkpoint)))
    with pytest.raises(BadCheckpoint) as caught:
        index_with_tables(plan, index, {})
    assert INDEX_NAME in caught.value.where


@pytest.mark.parametrize("metadata", [None, {}, {"total_size": 10.0}, {"total_size": math.nan}])
def test_an_index_without_a_total_gets_one(metadata: Any, checkpoint: Path) -> None:
    """Indexes of other tools have no metadata, no total or one that is no number, or a float."""
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    data = {"weight_map": index["weight_map"]} | ({} if metadata is None else {"metadata": metadata})
    plan = plan_tables(BakeRequest("cos-sin", 32, into="shards"), read_checkpoint(str(checkpoint)))
    found = json.loads(index_with_tables(plan, json.dumps(data), tensor_headers(checkpoint)))
    size = 10 if metadata == {"total_size": 10.0} else index["metadata"]["total_size"]
    assert found["metadata"]["total_size"] == size + 2 * 32 * 16 * 4


def test_a_single_file_gets_an_index(tmp_path: Path) -> None:
    """`model.safetensors` stays, and an index beside it names both files."""
    checkpoint_of(tmp_path)
    save_file({"b": torch.zeros(3), "a": torch.zeros(5)}, tmp_path / "model.safetensors")
    into_shards(tmp_path)
    found = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert found["weight_map"]["a"] == found["weight_map"]["b"] == "model.safetensors"
    assert found["weight_map"]["default.rotary_emb.cos_cached"] == SHARD
    assert found["metadata"]["total_size"] == 4 * 8 + 2 * 32 * 4 * 4
    assert verify_tables(tmp_path, read_checkpoint(str(tmp_path))) == ()


@given(st.lists(st.floats(width=32), min_size=1), st.sampled_from(["F32", "F16", "BF16", "F64"]))
def test_floats_are_stored_as_torch_stores_them(values: list[float], dtype: str) -> None:
    """Rounding to the nearest, ties to even, infinities and NaN: torch is the oracle, bit for bit but for NaN."""
    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}[dtype]
    data = encoded(np.array(values), dtype)
    wanted = torch.tensor(values, dtype=torch.float64).to(torch.float32 if dtype != "F64" else kind).to(kind)
    found = torch.frombuffer(bytearray(data), dtype=kind)
    assert torch.equal(torch.isnan(found), torch.isnan(wanted))
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
    back = decoded(data, dtype)
    assert np.array_equal(back, wanted.double().numpy(), equal_nan=True)
