"""`calibrate.fence`: inside, a model rotates with the frequencies given; afterwards it is as it was, bit for bit."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, LENGTH, NESTED, PLAIN, build, config, logits, random_ids, rotary_tables

from calibrate.fence import as_loaded, rotating_with
from ropecli.errors import Inconclusive
from ropecli.frequencies import Frequencies, frequencies
from ropecli.spec import Dynamic, Linear, Llama3, Longrope, Plain, RopeSpec, Scaling, Yarn

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


def test_dynamic_ntk_is_no_scaling_up_to_the_original_length() -> None:
    """To the last bit, so that it is not told apart from no scaling by how its table was rounded."""
    spec = RopeSpec(10000.0, 32, 32, 256, 1024, Dynamic(1.0))
    plain = as_loaded(replace(spec, scaling=Plain()))
    assert as_loaded(spec, 100) == as_loaded(spec, 256) == plain
    assert as_loaded(spec, 257) != plain
