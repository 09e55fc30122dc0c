"""`calibrate.gradient`: the slope of the loss is its derivative, whatever the architecture and the memory."""

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, LENGTH, NESTED, VOCABULARY, build, config, logits, random_ids, rotary_tables
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from calibrate import gradient, score
from calibrate.corpus import Document
from calibrate.fence import rotating_with
from calibrate.gradient import NO_GRADIENT, Slope, slope
from calibrate.model import LoadedModel
from calibrate.score import Bands, nats_by_band
from ropecli.errors import Inconclusive, NoResource
from ropecli.frequencies import Frequencies, frequencies
from ropecli.spec import RopeSpec, Yarn

BANDS, WEIGHTS = Bands((1, 12, 24)), (0.3, 1.0)
WINDOWS = 3
DOCUMENTS = [
    Document("a", tuple(tuple(row) for row in random_ids(2, 24).tolist())),
    Document("b", (tuple(random_ids(1, 24, seed=1)[0].tolist()),)),
]


TABLE = frequencies(RopeSpec(10000.0, 8, 8, LENGTH, 4 * LENGTH, Yarn(4.0, 1.2)))


def loaded(model: Any) -> LoadedModel:
    return LoadedModel(model, lambda text: [ord(c) for c in text], None, torch.device("cpu"))


def layer_of(family: str) -> str:
    return "full_attention" if family in NESTED else "default"


def table_of(model: Any, layer: str) -> Frequencies:
    """YaRN with a temperature, of the width that the model rotates."""
    name = "full_attention_inv_freq" if layer == "full_attention" else "inv_freq"
    width = 2 * len(next(table for key, table in rotary_tables(model).items() if key.endswith(f".{name}")))
    return frequencies(RopeSpec(10000.0, width, width, LENGTH, 4 * LENGTH, Yarn(4.0, 1.2)))


def weighted(model: Any, layer: str, at: np.ndarray) -> float:
    """Σ weight · nats of a table (inv_freq and, last, m), from whole logits, without any gradient."""
    tensors = torch.tensor(at[:-1], dtype=torch.float64), torch.tensor(at[-1], dtype=torch.float64)
    total = 0.0
    for document in DOCUMENTS:
        for window in document.windows:
            ids = torch.tensor([window])
            with rotating_with(model, {layer: tensors}):
                log_p = logits(model, ids)[:, :-1].log_softmax(-1)
            losses = -log_p.gather(-1, ids[:, 1:, None])[0, :, 0]
            for weight, (low, high) in zip(WEIGHTS, BANDS.spans, strict=True):
                total += weight * float(losses[low - 1 : high - 1].sum())
    return total


def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where models and losses step up to float32, they stay in float64, so that small differences mean something."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for name in ("float", "float32"):
        monkeypatch.setattr(torch, name, torch.float64)


@pytest.mark.parametrize("family", [*FAMILIES, *NESTED])
def test_the_slope_is_the_central_difference(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every pair and for m, in float64, through kept and recomputed layers and sliced heads."""
    configured = config(family)
    configured._experts_implementation = "eager"  # the fused one has no float64
    model, layer = build(configured).double(), layer_of(family)
    table = table_of(model, layer)
    in_float64(monkeypatch)
    monkeypatch.setattr(score, "CHUNK_ENTRIES", 7 * VOCABULARY * 2)
    monkeypatch.setattr(gradient, "KEPT_BYTES", 1)
    found = slope(loaded(model), layer, table, DOCUMENTS, BANDS, WEIGHTS)
    at = np.array([*table.inv_freq, table.attention_factor])
    assert found.nats == pytest.approx(weighted(model, layer, at), rel=1e-9)
    slopes = [*found.inv_freq, found.attention_factor]
    for index, expected in enumerate(slopes):
        step = np.zeros(len(at))
        step[index] = 1e-5
        difference = (weighted(model, layer, at + step) - weighted(model, layer, at - step)) / 2e-5
        assert expected == pytest.approx(difference, rel=1e-5, abs=1e-4)
    assert max(map(abs, slopes)) > 1


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3_moe", "gemma3", "deepseek_v3"])
def test_layers_are_run_again_instead_of_kept(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for it each layer runs a second time in the backward pass; the slope is that of kept ones."""
    model, layer = build(config(family)), layer_of(family)
    layers = getattr(model, model.base_model_prefix).layers
    runs: list[int] = []
    layers[-1].register_forward_hook(lambda *_: runs.append(0))
    inner = next(module for module in layers[-1].modules() if isinstance(module, torch.nn.Linear))
    inner.register_forward_hook(lambda *_: runs.append(1))
    before, tables = logits(model, random_ids(1, 24)), {k: t.clone() for k, t in rotary_tables(model).items()}
    runs.clear()
    monkeypatch.setattr(gradient, "KEPT_BYTES", 0)
    found = slope(loaded(model), layer, table_of(model, layer), DOCUMENTS, BANDS, WEIGHTS)
    assert runs.count(1) == 2 * runs.count(0) == 2 * WINDOWS
    assert torch.equal(logits(model, random_ids(1, 24)), before)
    assert all(torch.equal(t, tables[k]) for k, t in rotary_tables(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("forward" in each.__dict__ for each in layers)
    monkeypatch.undo()
    runs.clear()
    kept = slope(loaded(model), layer, table_of(model, layer), DOCUMENTS, BANDS, WEIGHTS)
    assert runs.count(1) == runs.count(0) == WINDOWS
    assert found.nats == pytest.approx(kept.nats, rel=1e-6)
    assert found.inv_freq == pytest.approx(kept.inv_freq, rel=1e-4)
    assert found.attention_factor == pytest.approx(kept.attention_factor, rel=1e-4)


@pytest.mark.parametrize(("room", "again"), [(0, 3), (1, 2), (2**30, 0)])
def test_layers_are_kept_while_there_is_room(room: int, again: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is counted for each window anew, weights do not count, and nothing but the cost depends on it."""
    model = build(config("llama", num_hidden_layers=3))
    runs: list[int] = []
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda *_: runs.append(1))
    monkeypatch.setattr(gradient, "KEPT_BYTES", room)
    found = slope(loaded(model), "default", table_of(model, "default"), DOCUMENTS, BANDS, WEIGHTS)
    assert len(runs) == WINDOWS * (3 + again)
    monkeypatch.setattr(gradient, "KEPT_BYTES", 2**40)
    kept = slope(loaded(model), "default", table_of(model, "default"), DOCUMENTS, BANDS, WEIGHTS)
    assert found.nats == kept.nats
    assert np.array_equal(found.inv_freq, kept.inv_freq)


class AttentionCalls(TorchDispatchMode):
    """How often torch computes attention inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func in gradient.ATTENTION
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("room", "again"), [(0, 3), (1, 2), (2**30, 0)])
def test_attention_is_kept_of_layers_that_are_run_again(room: int, again: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its room, too, is counted for each window anew, and nothing but the cost depends on it."""
    model = build(config("llama", num_hidden_layers=3, attn_implementation="sdpa"))
    table = table_of(model, "default")
    kept = slope(loaded(model), "default", table, DOCUMENTS, BANDS, WEIGHTS)
    monkeypatch.setattr(gradient, "KEPT_BYTES", 0)
    monkeypatch.setattr(gradient, "ATTENTION_BYTES", room)
    with AttentionCalls() as calls:
        found = slope(loaded(model), "default", table, DOCUMENTS, BANDS, WEIGHTS)
    assert calls.number == WINDOWS * (3 + again)
    assert found.nats == kept.nats
    assert np.array_equal(found.inv_freq, kept.inv_freq)


def test_a_slope_is_the_sum_over_its_documents() -> None:
    """Nats are those that the scorer gives, and slopes of parts add up to the slope of the whole."""
    model = build(config("qwen3"))
    table = table_of(model, "default")
    whole = slope(loaded(model), "default", table, DOCUMENTS, BANDS, WEIGHTS)
    parts = [slope(loaded(model), "default", table, [document], BANDS, WEIGHTS) for document in DOCUMENTS]
    added = parts[0] + parts[1]
    assert whole.nats == pytest.approx(added.nats, rel=1e-6)
    assert whole.inv_freq == pytest.approx(added.inv_freq, rel=1e-4, abs=1e-4)
    assert whole.attention_factor == pytest.approx(added.attention_factor, rel=1e-4, abs=1e-4)
    with rotating_with(model, {"default": table}):
        nats = nats_by_band(loaded(model), DOCUMENTS, BANDS)
    assert whole.nats == pytest.approx(float((nats * np.array(WEIGHTS)).sum()), rel=1e-6)


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_out_of_memory_says_what_to_change(way: str) -> None:
    """A slope is taken one window at a time, so there is nothing left to halve."""
    model = build(config("llama"))

    class Full(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, hidden: torch.Tensor) -> torch.Tensor:
            assert len(hidden) == 1
            if way == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
            return hidden.clone()

        @staticmethod
        def backward(_: Any, *__: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    model.model.norm.register_forward_pre_hook(lambda _, args: (Full.apply(args[0]),))
    with pytest.raises(NoResource, match="out of memory on the gradient of one window of 24 tokens") as caught:
        slope(loaded(model), "default", TABLE, DOCUMENTS, BANDS, WEIGHTS)
    assert "--tune yarn" in caught.value.hint


# ------------------------------------------------------------------------------------------------ no way back


class OneWay(torch.autograd.Function):
    """Attention without a backward pass, as fused kernels are that were made for inference."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        del ctx
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return attended.transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        raise NotImplementedError("one_way has no backward\nand a second line")


def one_way(_module: Any, query: Any, key: Any, value: Any, _mask: Any, **_: Any) -> tuple[torch.Tensor, None]:
    """For `AttentionInterface`: no backward pass."""
    return OneWay.apply(query, key, value), None


def refuses_gradients(_module: Any, query: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    """For `AttentionInterface`: like FlexAttention on a CPU, it asks before it computes."""
    assert query.requires_grad
    raise NotImplementedError("FlexAttention has no backward on CPU.")


def detached(_module: Any, query: Any, key: Any, value: Any, _mask: Any, **_: Any) -> tuple[torch.Tensor, None]:
    """For `AttentionInterface`: lets no gradient through, silently."""
    return OneWay.apply(query, key, value).detach(), None


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        (one_way, "no backward pass through this model here: one_way has no backward"),
        (
            refuses_gradients,
            "no backward pass through this model here: FlexAttention has no backward on CPU.",
        ),
        (detached, NO_GRADIENT),
    ],
)
def test_an_attention_without_a_backward_pass_is_told(attention: Any, said: str) -> None:
    """Whether it fails on the way, on the way back, or lets nothing through: one line, and what to try."""
    AttentionInterface.register("tests_attention", attention)
    configured = config("llama")
    configured._attn_implementation = "tests_attention"
    model = build(configured)
    with pytest.raises(Inconclusive) as caught:
        slope(loaded(model), "default", TABLE, DOCUMENTS, BANDS, WEIGHTS)
    assert caught.value.problem == said
    assert "--tune yarn" in caught.value.hint
    assert "forward" not in model.model.layers[0].__dict__


def test_slopes_add_up() -> None:
    """Each part of a sum is the sum of the parts."""
    found = Slope(1.0, np.array([1.0, 2.0]), 3.0) + Slope(0.5, np.array([-1.0, 4.0]), -1.0)
    assert (found.nats, found.inv_freq.tolist(), found.attention_factor) == (1.5, [0.0, 6.0], 2.0)
