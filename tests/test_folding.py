"""The attention factor in the weights: the same logits as with the attention factor in the config."""

import json
import math
import re
import shutil
import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ropecli.checkpoint import TensorInfo, read_checkpoint, tensor_headers
from ropecli.errors import BadCheckpoint, BadUsage
from ropecli.folding import BY_HEAD, BY_KIND, ONE_PLUS, SEPARATE, edits_by_file, plan_folding, rewrite_shard
from ropecli.spec import LayerRope, Longrope, RopeSpec, Yarn
from ropecli.weight_edits import TensorEdit

M = 1.3
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
BOTH: dict[str, Any] = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
}
HALF: dict[str, Any] = {"partial_rotary_factor": 0.5}

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("afmoe", {"head_dim": 8, "num_shared_experts": 1, **BOTH}),
    ("apertus", {}),
    ("arcee", {}),
    ("bamba", {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8}),
    ("cohere", {}),
    ("cohere", {"use_qk_norm": True}),
    ("cohere2", {"head_dim": 16, **BOTH}),
    ("cwm", {"head_dim": 8}),
    ("dots1", {"head_dim": 8, "n_shared_experts": 1, "routed_scaling_factor": 1.0}),
    ("ernie4_5", {"head_dim": 8}),
    ("ernie4_5_moe", {}),
    ("exaone4", BOTH),
    ("falcon", {"alibi": False}),
    ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"alibi": False, "multi_query": False, "bias": True}),
    ("falcon_h1", {"head_dim": 8, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "key_multiplier": 0.7}),
    ("flex_olmo", {}),
    ("gemma", {"head_dim": 16}),
    ("gemma2", {"head_dim": 16}),
    ("gemma3_text", {"head_dim": 16, **BOTH}),
    ("glm", {"head_dim": 8, "attention_bias": True, **HALF}),
    ("glm4", {"head_dim": 16, **HALF}),
    ("glm4_moe", {"head_dim": 16, **HALF}),
    ("glm4_moe", {"head_dim": 16, "use_qk_norm": True, **HALF}),
    ("gpt_neox", HALF),
    ("gpt_oss", {"head_dim": 16, **BOTH}),
    ("granite", {}),
    ("granitemoe", {}),
    (
        "granitemoehybrid",
        {
            "position_embedding_type": "rope",
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "shared_intermediate_size": 16,
        },
    ),
    ("granitemoeshared", {}),
    ("helium", {"head_dim": 8}),
    ("hy_v3", {"head_dim": 8, "num_shared_experts": 1}),
    ("jais2", {}),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    ("lfm2_moe", {"layer_types": ["conv", "full_attention"]}),
    ("llama", {}),
    ("llama", {"attention_bias": True}),
    ("minimax_m2", {"head_dim": 16, "rotary_dim": 8}),
    ("ministral", {"head_dim": 8, **BOTH}),
    ("ministral3", {"head_dim": 8}),
    ("mistral", {"sliding_window": None}),
    ("mixtral", {"head_dim": 8}),
    ("nemotron", HALF),
    ("olmo", {}),
    ("olmo2", {}),
    ("olmo3", BOTH),
    ("olmoe", {}),
    ("persimmon", HALF),
    ("persimmon", {"qk_layernorm": False, **HALF}),
    ("phi", HALF),
    ("phi", {"qk_layernorm": True, **HALF}),
    ("phi3", {}),
    ("phi3", HALF),
    ("qwen2", {}),
    ("qwen2_moe", {}),
    ("qwen3", {"head_dim": 16}),
    ("qwen3_5_moe_text", {"shared_expert_intermediate_size": 16, **LINEAR}),
    ("qwen3_5_text", LINEAR),
    ("qwen3_moe", {"head_dim": 16}),
    ("qwen3_next", LINEAR),
    ("seed_oss", {"head_dim": 8}),
    ("smollm3", {"no_rope_layers": [1, 0]}),
    ("solar_open", {"head_dim": 8, "n_shared_experts": 1}),
    ("stablelm", {"use_qkv_bias": True, **HALF}),
    ("stablelm", {"qk_layernorm": True, **HALF}),
    ("starcoder2", {}),
]
"""model_type and what its config says beyond `SHAPE`; a type twice where it has weights of two kinds."""

VISION = {"gemma3"}
"""Multimodal configs that hold a tested language model without naming its type."""


def scaled(rope: dict[str, Any], pairs: int, *, longrope: bool) -> dict[str, Any]:
    """Rope parameters of a scaling that carries the attention factor M."""
    if longrope:
        ones = [1.0] * pairs
        kind: dict[str, Any] = {"rope_type": "longrope", "short_factor": ones, "long_factor": ones}
    else:
        kind = {"rope_type": "yarn"}
    return rope | kind | {"factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": M}


def config_of(model_type: str, own: dict[str, Any]) -> Any:
    """A tiny config of this type, whose full-attention layers have the attention factor M."""
    settings = SHAPE | EXPERTS | own
    partial = settings.pop("partial_rotary_factor", None)
    config = transformers.AutoConfig.for_model(model_type, **settings)
    rope = dict(config.rope_parameters)
    if partial is not None:
        rope["partial_rotary_factor"] = partial
    head_dim = getattr(config, "head_dim", None) or SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
    pairs = int(head_dim * rope.get("partial_rotary_factor", 1.0)) // 2
    if "full_attention" in rope:
        rope["full_attention"] = scaled(dict(rope["full_attention"]), pairs, longrope=False)
    else:
        rope = scaled(rope, pairs, longrope=model_type == "phi3")
    # a config validates its rope parameters when it is built, so it is built from them
    return transformers.AutoConfig.for_model(model_type, **settings, rope_parameters=rope)


def random_model(config: Any) -> Any:
    """A float32 model whose norms and biases are random too, so that a mistaken row shows."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: Any) -> Any:
    ids = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def fold(source: Path, target: Path) -> None:
    """The checkpoint with its attention factors in the weights, and 1 in the config."""
    checkpoint, headers = read_checkpoint(str(source)), tensor_headers(source)
    edits: list[TensorEdit] = []
    for rope in checkpoint.ropes:
        edits += plan_folding(headers, rope, checkpoint.config, rope.spec.scaling.attention_factor)
    changed = edits_by_file(headers, edits)
    target.mkdir()
    for file in source.iterdir():
        if file in changed:
            rewrite_shard(file, target / file.name, changed[file])
        elif file.name == "config.json":
            text = file.read_text().replace(f'"attention_factor": {M}', '"attention_factor": 1.0')
            (target / file.name).write_text(text)
        else:
            shutil.copyfile(file, target / file.name)


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity_warning()


@pytest.mark.parametrize(("model_type", "own"), MODELS, ids=[f"{n}-{name}" for n, (name, _) in enumerate(MODELS)])
def test_folded_weights_say_what_the_config_said(model_type: str, own: dict[str, Any], tmp_path: Path) -> None:
    """With the attention factor in the weights and 1 in the config, transformers computes the same logits."""
    model = random_model(config_of(model_type, own))
    model.save_pretrained(tmp_path / "source")
    fold(tmp_path / "source", tmp_path / "folded")
    wanted, found = logits(model), logits(loaded(tmp_path / "folded"))
    shutil.copyfile(tmp_path / "folded" / "config.json", tmp_path / "source" / "config.json")
    plain = logits(loaded(tmp_path / "source"))
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() < 3e-5 * scale
    assert (plain - wanted).abs().max() > 1e-3 * scale


def test_every_model_type_that_is_folded_is_tested() -> None:
    """No type is on the lists without a comparison of logits."""
    assert {name for name, _ in MODELS} | VISION == SEPARATE | BY_HEAD | BY_KIND
    assert ONE_PLUS <= SEPARATE


def rope(layers: int = 2, **changes: Any) -> LayerRope:
    spec = RopeSpec(10000.0, 8, 8, 16, 64, Yarn(4.0, M))
    return replace(LayerRope("default", layers, spec, {}), **changes)


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}
FILE = Path("model.safetensors")


def headers_of(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32") -> dict[str, TensorInfo]:
    """Headers of a checkpoint that is nowhere."""
    return {
        name: TensorInfo(name, FILE, dtype, shape, 0, math.prod(shape) * (4 if dtype == "F32" else 1))
        for name, shape in shapes.items()
    }


def llama_shapes(stack: str = "model.layers", layers: int = 2) -> dict[str, tuple[int, ...]]:
    names = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
    return {f"{stack}.{i}.self_attn.{name}.weight": shape for i in range(layers) for name, shape in names.items()}


def test_a_factor_of_one_needs_no_edit() -> None:
    """m = 1 is what the weights say already."""
    assert plan_folding(headers_of(llama_shapes()), rope(), CONFIG, 1.0) == ()


def test_only_queries_and_keys_are_edited_and_only_where_they_rotate() -> None:
    """With half of a head of 8 rotating, the first 4 rows of each head are scaled."""
    spec = RopeSpec(10000.0, 8, 4, 16, 64, Yarn(4.0, M))
    edits = plan_folding(headers_of(llama_shapes()), rope(spec=spec), CONFIG, M)
    assert [edit.tensor for edit in edits] == [
        f"model.layers.{i}.self_attn.{n}_proj.weight" for i in (0, 1) for n in "kq"
    ]
    assert edits[0].rows == ((0, 4), (8, 12))
    assert edits[1].rows == ((0, 4), (8, 12), (16, 20), (24, 28))
    assert {(edit.multiplier, edit.offset) for edit in edits} == {(M, 0.0)}


def test_whole_heads_are_one_range() -> None:
    """Where the whole head rotates, neighbouring heads are joined, so that a tensor is scaled in one go."""
    edits = plan_folding(headers_of(llama_shapes()), rope(), CONFIG, M)
    assert [edit.rows for edit in edits] == [((0, 16),), ((0, 32),)] * 2


def test_image_encoders_are_left_alone() -> None:
    """A vision tower has queries and keys too, which rotate in another way or not at all."""
    norms = {f"language_model.model.layers.{i}.self_attn.{n}_norm.weight": (8,) for i in (0, 1) for n in "qk"}
    shapes = llama_shapes("language_model.model.layers") | norms | llama_shapes("vision_tower.encoder.layers")
    layer_types = ["full_attention"] * 2
    config = {
        "model_type": "gemma3",
        "text_config": {"num_hidden_layers": 2, "head_dim": 8, "layer_types": layer_types},
    }
    edits = plan_folding(headers_of(shapes), rope(name="full_attention"), config, M)
    assert {edit.tensor for edit in edits} == set(norms)
    assert {edit.offset for edit in edits} == {M - 1}


@pytest.mark.parametrize("stack", ["mtp.layers", "model.layers"])
def test_layers_that_predict_further_tokens_are_folded(stack: str) -> None:
    """They stand beside the counted layers or after them, and use the same rotary embedding."""
    further = {name.replace(".0.", ".2."): shape for name, shape in llama_shapes(stack, 1).items()}
    edits = plan_folding(headers_of(llama_shapes() | further), rope(), CONFIG, M)
    assert f"{stack}.2.self_attn.q_proj.weight" in {edit.tensor for edit in edits}
    assert len(edits) == 6


def without(part: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in llama_shapes().items() if part not in name}


LISTS = {"short_factor": (1.0,) * 4, "long_factor": (2.0,) * 4}
REFUSED: dict[str, tuple[dict[str, Any], LayerRope, dict[str, TensorInfo], str]] = {
    "latent attention": ({}, rope(mla=True), headers_of(llama_shapes()), "latent attention"),
    "norm after the rotation": ({"model_type": "nanochat"}, rope(), headers_of(llama_shapes()), "not tested"),
    "unknown type": ({"model_type": "own"}, rope(), headers_of(llama_shapes()), "not tested for model_type 'own'"),
    "clipped": ({"model_type": "olmo", "clip_qkv": 8.0}, rope(), headers_of(llama_shapes()), "clips"),
    "two attention factors": (
        {},
        rope(
            spec=RopeSpec(10000.0, 8, 8, 16, 64, Longrope(4.0, **LISTS, attention_factor=M, short_attention_factor=1.0))
        ),
        headers_of(llama_shapes()),
        "depends on the length",
    ),
    "quantised": ({}, rope(), headers_of(llama_shapes(), "I8"), "expected weights or biases of floats, found I8"),
    "packed": ({}, rope(), headers_of(without("q_proj")), "q_proj.weight, found none"),
    "scaled": (
        {},
        rope(),
        headers_of(llama_shapes() | {"model.layers.0.self_attn.q_proj.weight_scale": (1,)}),
        "weight_scale",
    ),
    "missing layer": ({}, rope(), headers_of(without("layers.1")), "layers 0 to 1"),
    "other names": ({}, rope(), headers_of({"h0.attn.weight": (8, 8)}), "found none"),
    "two decoders": ({}, rope(), headers_of(llama_shapes() | llama_shapes("other.layers")), "other.layers"),
    "gated queries": (
        {},
        rope(),
        headers_of(llama_shapes() | {"model.layers.0.self_attn.q_proj.weight": (64, 32)}),
        r"4 heads of 8, found the shape \[64, 32\]",
    ),
    "a norm of another width": (
        {"model_type": "qwen3"},
        rope(),
        headers_of(
            llama_shapes() | {f"model.layers.{i}.self_attn.{n}_norm.weight": (5,) for i in (0, 1) for n in "qk"}
        ),
        r"found the shape \[5\]",
    ),
    "one norm of two": (
        {"model_type": "qwen3"},
        rope(),
        headers_of(llama_shapes() | {f"model.layers.{i}.self_attn.q_norm.weight": (8,) for i in (0, 1)}),
        "k_norm.weight, found none",
    ),
    "layers of another kind": (
        {"layer_types": ["full_attention", "sliding_attention"]},
        rope(name="chunked_attention"),
        headers_of(llama_shapes()),
        "cannot tell which layers",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_folded_is_refused(case: str) -> None:
    """Each case is a usage error that says what was found, before anything is written."""
    changes, layer, headers, message = REFUSED[case]
    with pytest.raises(BadUsage) as caught:
        plan_folding(headers, layer, CONFIG | changes, M)
    assert re.search(message, caught.value.message)
    assert caught.value.where.startswith("--bake attention-factor")


def test_further_layers_are_refused_where_not_all_layers_rotate_alike() -> None:
    """SmolLM3 has layers without a rotary embedding; what a layer beyond them does, no config says."""
    shapes = llama_shapes() | llama_shapes("mtp.layers", 1)
    config = CONFIG | {"model_type": "smollm3", "no_rope_layers": [1, 0]}
    with pytest.raises(BadUsage, match="further tokens"):
        plan_folding(headers_of(shapes), rope(1), config, M)


def shard(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A file of three tensors, the middle one to be edited."""
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(12, 5, generator=generator).to(dtype) for name in ("a", "b", "c")}
    save_file(tensors, path, {"format": "pt", "own": "kept"})
    return tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_are_scaled_in_their_own_type(dtype: torch.dtype, tmp_path: Path) -> None:
    """The edited rows are the float64 product rounded once; every other value is as it was."""
    tensors = shard(tmp_path / "a.safetensors", dtype)
    rewrite_shard(tmp_path / "a.safetensors", tmp_path / "b.safetensors", [TensorEdit("b", ((2, 5), (7, 8)), M, M - 1)])
    found = load_file(tmp_path / "b.safetensors")
    wanted = tensors["b"].clone()
    for rows in (slice(2, 5), slice(7, 8)):
        wanted[rows] = (tensors["b"][rows].double() * M + (M - 1)).to(dtype)
    assert torch.equal(found["b"], wanted)
    assert torch.equal(found["a"], tensors["a"])
    assert torch.equal(found["c"], tensors["c"])


def test_every_other_byte_is_copied(tmp_path: Path) -> None:
    """Header, metadata and the tensors around the edit are the same bytes."""
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    shard(source, torch.float32)
    rewrite_shard(source, target, [TensorEdit("b", ((0, 12),), 2.0)])
    old, new = source.read_bytes(), target.read_bytes()
    changed = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    length = 8 + int.from_bytes(old[:8], "little")
    begin, end = json.loads(old[8:length])["b"]["data_offsets"]
    assert changed
    assert length + begin <= changed[0]
    assert changed[-1] < length + end


def test_no_edit_is_a_copy(tmp_path: Path) -> None:
    """A file without edits comes out byte for byte."""
    shard(tmp_path / "a.safetensors", torch.float16)
    rewrite_shard(tmp_path / "a.safetensors", tmp_path / "b.safetensors", [])
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_only_shards_with_queries_and_keys_are_rewritten(checkpoint: Path) -> None:
    """Of a sharded model, the files without attention weights are not touched."""
    headers = tensor_headers(checkpoint)
    (layer,) = read_checkpoint(str(checkpoint)).ropes
    edits = plan_folding(headers, layer, read_checkpoint(str(checkpoint)).config, M)
    files = edits_by_file(headers, edits)
    assert sum(len(own) for own in files.values()) == len(edits) == 4
    assert {headers[edit.tensor].file for edit in edits} == set(files)
    assert len(files) < len({info.file for info in headers.values()})


def test_a_weight_that_becomes_too_large_is_refused(tmp_path: Path) -> None:
    """float16 ends at 65504; an infinite weight would be silent."""
    save_file({"b": torch.full((2, 2), 60000.0, dtype=torch.float16)}, tmp_path / "a.safetensors")
    with pytest.raises(BadCheckpoint, match="too large for F16"):
        rewrite_shard(tmp_path / "a.safetensors", tmp_path / "b.safetensors", [TensorEdit("b", ((0, 2),), M)])


def test_weights_that_are_not_numbers_stay(tmp_path: Path) -> None:
    """A NaN or an infinity of the source is not ours to judge: it stays, also in bfloat16."""
    odd = torch.tensor([[math.nan, math.inf], [-math.inf, 1.0]], dtype=torch.bfloat16)
    save_file({"b": odd}, tmp_path / "a.safetensors")
    rewrite_shard(tmp_path / "a.safetensors", tmp_path / "b.safetensors", [TensorEdit("b", ((0, 2),), 2.0)])
    found = load_file(tmp_path / "b.safetensors")["b"]
    assert torch.isnan(found[0, 0])
    assert found.flatten()[1:].tolist() == [math.inf, -math.inf, 2.0]


def test_a_damaged_source_is_refused(tmp_path: Path) -> None:
    """A file that ends early gives no file that looks whole."""
    shard(tmp_path / "a.safetensors", torch.float32)
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-8])
    with pytest.raises(BadCheckpoint):
        rewrite_shard(tmp_path / "a.safetensors", tmp_path / "b.safetensors", [TensorEdit("b", ((0, 2),), M)])
    assert not (tmp_path / "b.safetensors").exists()


def test_an_existing_target_is_not_replaced(tmp_path: Path) -> None:
    """The target must be new."""
    shard(tmp_path / "a.safetensors", torch.float32)
    with pytest.raises(FileExistsError):
        rewrite_shard(tmp_path / "a.safetensors", tmp_path / "a.safetensors", [])


def test_a_large_tensor_takes_little_memory(tmp_path: Path) -> None:
    """A tensor of 96 MiB is scaled in blocks."""
    save_file({"b": torch.ones(3 * 2**12, 2**11)}, tmp_path / "a.safetensors")
    tracemalloc.start()
    rewrite_shard(tmp_path / "a.safetensors", tmp_path / "b.safetensors", [TensorEdit("b", ((0, 3 * 2**12),), M)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * 2**20
    assert load_file(tmp_path / "b.safetensors")["b"].unique().tolist() == [pytest.approx(M)]
