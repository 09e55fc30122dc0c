"""`calibrate.model`: a checkpoint is loaded as it is or refused; the fence puts frequencies in and takes them out."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, LENGTH, NESTED, PLAIN, build, config, logits, random_ids, rotary_tables
from safetensors.torch import load_file, save_file

from calibrate.model import Settings, as_loaded, load, pick_device, rotating_with, without_weights
from calibrate.run import extensible
from calibrate.score import token_nll
from ropecli.checkpoint import read_checkpoint
from ropecli.errors import BadCheckpoint, BadUsage, Inconclusive, RopeError
from ropecli.frequencies import Frequencies, frequencies
from ropecli.spec import Dynamic, Linear, Llama3, Longrope, Plain, RopeSpec, Scaling, Yarn

TINY = Path(__file__).parents[2] / "examples" / "tiny"

ONE_TABLE = tuple(FAMILIES)
EVERY = (*FAMILIES, *NESTED)
CALIBRATED = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma2", "gpt_neox", "stablelm")

SCALINGS: dict[str, tuple[Scaling, dict[str, Any]]] = {
    "plain": (Plain(), PLAIN),
    "linear": (Linear(4.0), {"rope_type": "linear", "factor": 4.0}),
    "yarn": (Yarn.default(4.0), {"rope_type": "yarn", "factor": 4.0}),
    "yarn, warm": (
        Yarn(4.0, 1.3, 20.0, 0.5, False),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "attention_factor": 1.3,
            "beta_fast": 20.0,
            "beta_slow": 0.5,
            "truncate": False,
        },
    ),
    "llama3": (
        Llama3(8.0, 1.0, 4.0),
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
}

_DIVISORS = (1.0, 1.5, 3.0, 4.0)
LONGROPE: dict[str, tuple[Scaling, dict[str, Any]]] = {
    "longrope": (
        Longrope(4.0, _DIVISORS, _DIVISORS, 1.2, 1.2),
        {
            "rope_type": "longrope",
            "factor": 4.0,
            "attention_factor": 1.2,
            "short_factor": list(_DIVISORS),
            "long_factor": list(_DIVISORS),
        },
    )
}


def layer_of(family: str) -> str:
    return "full_attention" if family in NESTED else "default"


def spec_of(model: Any, layer: str, scaling: Scaling) -> RopeSpec:
    """The geometry that the model's own table has."""
    name = "full_attention_inv_freq" if layer == "full_attention" else "inv_freq"
    width = 2 * len(next(table for key, table in rotary_tables(model).items() if key.endswith(f".{name}")))
    return RopeSpec(10000.0, width, width, LENGTH, round(LENGTH * scaling.factor), scaling)


def other_table(model: Any, layer: str) -> Frequencies:
    return frequencies(spec_of(model, layer, Yarn(4.0, 1.2)))


def in_config(parameters: dict[str, Any]) -> dict[str, Any]:
    needs_length = parameters["rope_type"] in {"yarn", "llama3", "longrope"}
    extra = {"original_max_position_embeddings": LENGTH} if needs_length else {}
    return PLAIN | extra | parameters


def state(model: Any) -> dict[str, Any]:
    """Everything of the rotary modules that a forward pass can depend on."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if name.endswith("rotary_emb"):
            found |= {f"{name}.{key}": value for key, value in module.__dict__.items() if not key.startswith("_")}
            found |= {f"{name}.{key}": value.clone() for key, value in module.named_buffers()}
            found[f"{name} non-persistent"] = set(module._non_persistent_buffers_set)
    return found


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b or a == b

    return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)


# ------------------------------------------------------------------------------------------------ the fence


@pytest.mark.parametrize("family", EVERY)
def test_the_fence_leaves_no_trace(family: str) -> None:
    """Inside, the logits change; after, they are equal bit for bit, and so is every table and attribute."""
    model, layer, ids = build(config(family)), layer_of(family), random_ids(2, 24)
    before, tables = logits(model, ids), state(model)
    with rotating_with(model, {layer: other_table(model, layer)}):
        inside = logits(model, ids)
    assert float((inside - before).abs().max()) > 0.05
    assert torch.equal(logits(model, ids), before)
    assert same(state(model), tables)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_fence_leaves_no_trace_after_an_error(family: str) -> None:
    """An exception inside the block takes the frequencies out all the same, and is not swallowed."""
    model, layer, ids = build(config(family)), layer_of(family), random_ids(1, 24)
    before, tables = logits(model, ids), state(model)
    table = other_table(model, layer)

    def fail() -> None:
        with rotating_with(model, {layer: table}):
            logits(model, ids)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(logits(model, ids), before)
    assert same(state(model), tables)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_fences_nest(family: str) -> None:
    """An inner fence gives way to the outer one, and the outer one to the model's own table."""
    model, layer, ids = build(config(family)), layer_of(family), random_ids(1, 24)
    outer, inner = other_table(model, layer), frequencies(spec_of(model, layer, Linear(3.0)))
    before, tables = logits(model, ids), state(model)
    with rotating_with(model, {layer: inner}):
        alone = logits(model, ids)
    with rotating_with(model, {layer: outer}):
        first = logits(model, ids)
        with rotating_with(model, {layer: inner}):
            assert torch.equal(logits(model, ids), alone)
        assert torch.equal(logits(model, ids), first)
    assert torch.equal(logits(model, ids), before)
    assert same(state(model), tables)


def own_table(model: Any, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(inv_freq, attention factor) as transformers computed them from the model's config, in float32."""
    module = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
    prefix = f"{layer}_" if hasattr(module, f"{layer}_inv_freq") else ""
    return getattr(module, f"{prefix}inv_freq"), torch.tensor(getattr(module, f"{prefix}attention_scaling"))


# transformers 5.23 refuses every scaling but longrope for Phi-3, and for nested layer types it reads `truncate` from
# the wrong level, so that the corners are always rounded
SAME_AS_CONFIG = [
    *((family, scaling) for family in CALIBRATED for scaling in SCALINGS if family != "phi3"),
    *((family, scaling) for family in NESTED for scaling in SCALINGS if scaling != "yarn, warm"),
    ("phi3", "plain"),
    ("phi3", "longrope"),
    ("llama", "longrope"),
]


@pytest.mark.parametrize(("family", "scaling"), SAME_AS_CONFIG)
def test_inside_the_model_is_the_one_whose_config_says_so(family: str, scaling: str) -> None:
    """A plain model with a table put in is the model of a config with that scaling: full-attention layers alone.

    With the very table of that config the logits are equal bit for bit. Our own table, from float64, is the same to the
    rounding of float32, which two layers of large random weights make visible in the sixth digit.
    """
    kind, parameters = (SCALINGS | LONGROPE)[scaling]
    layer, ids = layer_of(family), random_ids(2, 48)
    plain, scaled = build(config(family)), build(config(family, in_config(parameters)))
    expected = logits(scaled, ids)
    if scaling != "plain":
        assert float((logits(plain, ids) - expected).abs().max()) > 0.05
    table, m = own_table(scaled, layer)
    with rotating_with(plain, {layer: (table, m)}):
        assert torch.equal(logits(plain, ids), expected)
    ours = frequencies(spec_of(plain, layer, kind))
    assert ours.inv_freq == pytest.approx(table.tolist(), rel=2e-7)
    assert ours.attention_factor == pytest.approx(float(m), rel=1e-7)
    with rotating_with(plain, {layer: ours}):
        found = logits(plain, ids)
    assert float((found - expected).abs().max()) < 2e-5
    assert abs(float((found.log_softmax(-1) - expected.log_softmax(-1)).mean())) < 1e-6


@pytest.mark.parametrize("family", NESTED)
def test_the_table_of_sliding_window_layers_stays(family: str) -> None:
    """Where layer types have tables of their own, the sliding-window one is the same tensor inside the fence."""
    model = build(config(family))
    sliding = next(table for name, table in rotary_tables(model).items() if "sliding" in name)
    with rotating_with(model, {"full_attention": other_table(model, "full_attention")}):
        assert any(buffer is sliding for buffer in model.buffers())


def test_two_names_of_one_table_are_undone_in_order() -> None:
    """Two layer types that share a table: the later one holds inside, and the model's own comes back."""
    model, ids = build(config("llama")), random_ids(1, 24)
    before, tables = logits(model, ids), state(model)
    first, second = other_table(model, "default"), frequencies(spec_of(model, "default", Linear(3.0)))
    with rotating_with(model, {"default": second}):
        expected = logits(model, ids)
    with rotating_with(model, {"default": first, "full_attention": second}):
        assert torch.equal(logits(model, ids), expected)
    assert torch.equal(logits(model, ids), before)
    assert same(state(model), tables)


def test_both_layer_types_can_be_set_at_once() -> None:
    """Each layer type takes its own table."""
    model, ids = build(config("gemma3")), random_ids(1, 24)
    spec = spec_of(model, "full_attention", Plain())
    full, sliding = frequencies(spec), frequencies(RopeSpec(500.0, 16, 16, LENGTH, LENGTH))
    before = logits(model, ids)
    with rotating_with(model, {"full_attention": full, "sliding_attention": sliding}):
        assert float((logits(model, ids) - before).abs().max()) < 1e-5
    with rotating_with(model, {"full_attention": full, "sliding_attention": full}):
        assert float((logits(model, ids) - before).abs().max()) > 0.05


def test_a_table_of_another_width_is_refused() -> None:
    """A table with the wrong number of pairs is Inconclusive, and the model stays as it was."""
    model, ids = build(config("llama")), random_ids(1, 24)
    before, tables = logits(model, ids), state(model)
    with (
        pytest.raises(Inconclusive, match="4 pairs, the new one has 3"),
        rotating_with(model, {"default": Frequencies((1.0, 0.1, 0.01), 1.0)}),
    ):
        pytest.fail("the block must not run")
    assert torch.equal(logits(model, ids), before)
    assert same(state(model), tables)


def test_a_model_without_a_rotary_table_is_inconclusive() -> None:
    """GPT-2 learns its positions: there is nothing to put frequencies into, and no block is run."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2))
    with (
        pytest.raises(Inconclusive, match="no rotary table for default was found in GPT2LMHeadModel"),
        rotating_with(model, {"default": Frequencies((1.0,), 1.0)}),
    ):
        pytest.fail("the block must not run")


def test_a_layer_type_that_is_not_there_is_inconclusive() -> None:
    """A nested model has no table for all layers; asking for one changes nothing."""
    model = build(config("gemma3"))
    tables = state(model)
    with (
        pytest.raises(Inconclusive, match="no rotary table for default"),
        rotating_with(model, {"full_attention": other_table(model, "full_attention"), "default": Frequencies((), 1.0)}),
    ):
        pytest.fail("the block must not run")
    assert same(state(model), tables)


LENGTH_DEPENDENT: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.0, 1.1, 1.2],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}


@pytest.mark.parametrize("kind", LENGTH_DEPENDENT)
def test_the_fence_holds_tables_that_depend_on_the_length(kind: str) -> None:
    """Inside, a model whose table follows the length rotates with the given one at any length, as a plain one does."""
    parameters = in_config(LENGTH_DEPENDENT[kind])
    model, plain = build(config("llama", parameters, max_position_embeddings=4 * LENGTH)), build(config("llama"))
    table = other_table(plain, "default")
    for length in (3 * LENGTH, 24, 2 * LENGTH):
        ids = random_ids(1, length)
        with rotating_with(model, {"default": table}):
            inside = logits(model, ids)
        with rotating_with(plain, {"default": table}):
            assert torch.equal(inside, logits(plain, ids))


@pytest.mark.parametrize("kind", LENGTH_DEPENDENT)
def test_after_the_fence_the_table_follows_the_length_again(kind: str) -> None:
    """Passes of any length inside the fence leave a length-dependent model in the state it was in."""
    parameters = in_config(LENGTH_DEPENDENT[kind])
    fenced, untouched = (
        build(config("llama", parameters, max_position_embeddings=4 * LENGTH)),
        build(config("llama", parameters, max_position_embeddings=4 * LENGTH)),
    )
    table = other_table(build(config("llama")), "default")
    for length in (24, 3 * LENGTH, 4 * LENGTH, 2 * LENGTH, 24, 3 * LENGTH):
        with rotating_with(fenced, {"default": table}):
            logits(fenced, random_ids(1, 4 * LENGTH))
        ids = random_ids(1, length)
        assert torch.equal(logits(fenced, ids), logits(untouched, ids))


@pytest.mark.parametrize("kind", [Linear(3.0), Dynamic(1.0)])
def test_tensors_may_stand_for_frequencies(kind: Scaling) -> None:
    """A table may be given as two tensors; gradients then flow to both."""
    model, ids = build(config("llama")), random_ids(1, 24)
    table = frequencies(spec_of(model, "default", kind), 3 * LENGTH)
    inv_freq = torch.tensor(table.inv_freq, requires_grad=True)
    m = torch.tensor(table.attention_factor, requires_grad=True)
    with rotating_with(model, {"default": (inv_freq, m)}):
        found = model(input_ids=ids, use_cache=False).logits
        found.logsumexp(-1).sum().backward()
    with rotating_with(model, {"default": table}):
        assert torch.equal(found.detach(), logits(model, ids))
    assert inv_freq.grad is not None
    assert m.grad is not None
    assert bool((inv_freq.grad != 0).all())
    assert float(m.grad) != 0


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_tables_stay_float32_under_bfloat16_weights(family: str, tmp_path: Path) -> None:
    """bfloat16 would round the angle of a far token by whole turns: weights have it, tables do not."""
    build(config(family)).to(torch.bfloat16).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    layer, ids = layer_of(family), random_ids(1, 24)
    assert model.dtype == torch.bfloat16
    before = logits(model, ids)
    table = other_table(model, layer)
    with rotating_with(model, {layer: table}):
        module = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
        held = getattr(module, "full_attention_inv_freq" if layer == "full_attention" else "inv_freq")
        assert held.dtype == torch.float32
        assert held.tolist() == torch.tensor(table.inv_freq, dtype=torch.float32).tolist()
        assert logits(model, ids).dtype == torch.bfloat16
    assert torch.equal(logits(model, ids), before)
    assert all(t.dtype == torch.float32 for t in rotary_tables(model).values())


def _llava() -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**tower, image_size=28, patch_size=14)
    return transformers.LlavaConfig(text_config=config("llama", vocab_size=2048), vision_config=vision)


def _qwen2_vl() -> Any:
    text = config("qwen2", PLAIN | {"mrope_section": [1, 1, 2]}, vocab_size=2048).to_dict()
    tower = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return transformers.Qwen2VLConfig(text_config=text | {"model_type": "qwen2_vl_text"}, vision_config=tower)


@pytest.mark.parametrize("made", [_llava, _qwen2_vl])
def test_a_model_that_sees_images_is_measured_on_text(made: Callable[[], Any], tmp_path: Path) -> None:
    """What transformers has only with a tower for images is loaded whole, scored as text, and rotates as it is told."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(made())
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path / name)
    loaded, ids = load(str(tmp_path), Settings("cpu")), random_ids(2, 2 * LENGTH)
    log_p = logits(model.eval(), ids)[:, :-1].log_softmax(-1)
    assert torch.equal(token_nll(loaded.model, ids), -log_p.gather(-1, ids[:, 1:, None])[..., 0])
    rope, plain = extensible(read_checkpoint(str(tmp_path)), None)
    with rotating_with(loaded.model, {rope.name: frequencies(replace(plain, scaling=Linear(2.0)))}):
        assert not torch.equal(token_nll(loaded.model, ids), token_nll(model, ids))
    shape, dtype = without_weights(str(tmp_path), Settings("cpu"))
    assert (shape.parameters, dtype) == (sum(p.numel() for p in model.parameters()), "float32")


def test_nothing_is_made_on_a_default_device() -> None:
    """Whatever torch's default device is, the new table lies where the old one lay."""
    model = build(config("llama"))
    table = other_table(model, "default")
    torch.set_default_device("meta")
    try:
        with rotating_with(model, {"default": table}):
            assert model.model.rotary_emb.inv_freq.device.type == "cpu"
    finally:
        torch.set_default_device(None)


# ------------------------------------------------------------------------------------------------ devices


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` asks the machine in this order."""
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=cuda: here)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda here=mps: here)
        assert pick_device("auto").type == expected
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("wanted", ["cuda:99", "meta", "toaster", "", "cuda:", "cuda:-3"])
def test_a_device_that_is_not_here_is_bad_usage(wanted: str) -> None:
    """An unknown device, or one that this machine lacks, is the user's mistake, told in one line."""
    with pytest.raises(BadUsage) as caught:
        pick_device(wanted)
    assert caught.value.where == "--device"
    assert caught.value.hint


# ------------------------------------------------------------------------------------------------ loading


@pytest.fixture
def copy_of_tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pickled(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


QUERY = "model.layers.0.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncated, "the header places tensors up to byte"),
    "empty": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "expected a safetensors file, found 0 bytes",
    ),
    "lacking": (lambda folder: _weights(folder, lambda w: w.pop(QUERY)), f"the weights lack {QUERY}"),
    "reshaped": (
        lambda folder: _weights(folder, lambda w: w.update({QUERY: w[QUERY][:10].clone()})),
        "expected the shape [192, 192], found [10, 192]",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "expected safetensors weights, found none"),
    "pickle": (_pickled, "expected safetensors weights, found only pickles such as pytorch_model.bin"),
    "bad tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot load it"),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "no tokenizer lies beside the weights",
    ),
    "bad config": (lambda folder: (folder / "config.json").write_text('{"model_type": "llama",'), "not JSON"),
    "unknown type": (lambda folder: (folder / "config.json").write_text('{"model_type": "x"}'), "cannot load it"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_one_line(copy_of_tiny: Path, kind: str) -> None:
    """Whatever is wrong with the files, the error is BadCheckpoint, on one line, with the folder and a reason."""
    break_it, problem = BROKEN[kind]
    break_it(copy_of_tiny)
    with pytest.raises(BadCheckpoint) as caught:
        load(str(copy_of_tiny), Settings())
    assert problem in caught.value.problem
    assert caught.value.where.startswith(str(copy_of_tiny))
    assert "\n" not in caught.value.problem


def test_a_loaded_checkpoint_keeps_its_dtype_and_needs_no_gradients() -> None:
    """`auto` keeps bfloat16 weights; a named dtype replaces it; tables are float32 in both, nothing trains."""
    for wanted, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        loaded = load(str(TINY), Settings(dtype=wanted, device="cpu"))
        assert loaded.model.dtype == expected
        assert loaded.dtype == str(expected).removeprefix("torch.")
        assert not loaded.model.training
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
        assert {table.dtype for table in rotary_tables(loaded.model).values()} == {torch.float32}
        assert loaded.device == torch.device("cpu")


def test_text_is_encoded_without_special_tokens() -> None:
    """The encoder adds nothing, and `bos` is set only for tokenizers that put one in front themselves."""
    loaded = load(str(TINY), Settings(device="cpu"))
    ids = loaded.encode("To the Senate and House of Representatives:")
    assert len(ids) > 5
    assert 0 not in ids
    assert loaded.encode("") == []
    assert loaded.bos is None


def test_a_tokenizer_that_opens_with_bos_says_so(copy_of_tiny: Path) -> None:
    """A tokenizer whose template starts with the beginning-of-sequence token gives its id as `bos`."""
    from tokenizers import Tokenizer, processors  # noqa: PLC0415

    path = str(copy_of_tiny / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    tokenizer.save(path)
    loaded = load(str(copy_of_tiny), Settings(device="cpu"))
    assert loaded.bos == 0
    assert 0 not in loaded.encode("a b c")


@pytest.mark.parametrize(("settings", "where"), [({"dtype": "float8"}, "--dtype"), ({"device": "x"}, "--device")])
def test_bad_settings_are_found_before_anything_is_loaded(settings: dict[str, str], where: str) -> None:
    """A dtype or device that does not exist is told before the checkpoint is even looked for."""
    with pytest.raises(RopeError) as caught:
        load("/there/is/no/such/folder", Settings(**settings))
    assert isinstance(caught.value, BadUsage)
    assert caught.value.where == where


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gemma2"])
def test_a_table_as_loaded_is_that_of_the_config_to_the_last_bit(family: str, scaling: str) -> None:
    """What `convert` writes, transformers rounds in its own way: logits inside the fence are those after loading."""
    kind, parameters = SCALINGS[scaling]
    plain, scaled, ids = build(config(family)), build(config(family, in_config(parameters))), random_ids(1, 48)
    spec = spec_of(plain, "default", kind)
    ours = as_loaded(spec, 48)
    assert ours.inv_freq == pytest.approx(frequencies(spec, 48).inv_freq, rel=1e-6)
    if scaling != "llama3":
        assert list(ours.inv_freq) == own_table(scaled, "default")[0].tolist()
        with rotating_with(plain, {"default": ours}):
            assert torch.equal(logits(plain, ids), logits(scaled, ids))


def test_the_rounding_of_a_table_is_that_of_float32() -> None:
    """A float64 table is rounded once, to the nearest float32."""
    model = build(config("llama"))
    table = Frequencies((math.pi / 3, math.e / 10, 1 / 3, 1e-4 / 3), 1.1)
    with rotating_with(model, {"default": table}):
        held = model.model.rotary_emb.inv_freq
        assert torch.equal(held, torch.tensor(table.inv_freq, dtype=torch.float64).to(torch.float32))
        assert model.model.rotary_emb.attention_scaling == 1.1


@pytest.mark.parametrize("name", ["vision_tower", "visual", "image_encoder", "audio_tower"])
def test_a_tower_that_sees_no_text_keeps_its_table(name: str) -> None:
    """Its rotary embedding is another one, here of another width."""
    model, tower = build(config("llama")), torch.nn.Module()
    tower.register_buffer("inv_freq", torch.ones(3))
    model.add_module(name, tower)
    with rotating_with(model, {"default": Frequencies((1.0, 0.5, 0.25, 0.125), 1.0)}):
        assert torch.equal(tower.inv_freq, torch.ones(3))


def test_a_device_map_loads_the_same_model() -> None:
    """`--device-map auto` puts everything on the CPU where there is nothing else; the loss is the same."""
    ids = torch.arange(5, 69, device="cpu")[None]
    plain, mapped = (load(str(TINY), Settings(device_map=device_map)) for device_map in (None, "auto"))
    assert mapped.device == torch.device("cpu")
    assert torch.equal(token_nll(plain.model, ids), token_nll(mapped.model, ids))


def test_dynamic_ntk_is_no_scaling_up_to_the_original_length() -> None:
    """To the last bit, so that it is not told apart from no scaling by how its table was rounded."""
    spec = RopeSpec(10000.0, 32, 32, 256, 1024, Dynamic(1.0))
    plain = as_loaded(replace(spec, scaling=Plain()))
    assert as_loaded(spec, 100) == as_loaded(spec, 256) == plain
    assert as_loaded(spec, 257) != plain
