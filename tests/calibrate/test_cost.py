"""`calibrate.cost`: what is predicted from a shape is what torch counts and what a process needs."""

from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, NESTED, VOCABULARY, build, config
from torch.utils.flop_counter import FlopCounterMode

from calibrate.cost import AttentionKind, Flops, Shape, scoring_memory, shape_of, window_flops

LENGTH = 48
PLAIN = Shape(1000, 600, 50, 8, 64, (AttentionKind(3, 2, 8),))


def on_meta(configured: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(configured).eval()


@pytest.mark.parametrize("family", [*FAMILIES, *NESTED])
def test_operations_are_those_that_torch_counts(family: str) -> None:
    """Of every family: matrices, experts, head and attention. Here attention computes the future, too: n²."""
    model = build(config(family, attn_implementation="eager", experts_implementation="eager"))
    shape = shape_of(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, LENGTH, dtype=torch.int64, device="cpu"), use_cache=False)
    predicted = window_flops(shape, LENGTH)
    square = sum(2.0 * kind.layers * kind.heads * kind.width * LENGTH**2 for kind in shape.attention)
    assert counter.get_total_flops() == pytest.approx(predicted.matrices + square + predicted.head, rel=0.01)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_token_is_multiplied_with_its_own_experts_alone() -> None:
    """Two of four experts: half of their numbers count, all are stored."""
    shape = shape_of(on_meta(config("mixtral")))
    experts = 2 * 4 * (96 * 32 + 32 * 48)
    assert shape.parameters - shape.active == pytest.approx(experts / 2 + 2 * VOCABULARY * 32, rel=0.01)


@pytest.mark.parametrize("family", ["cohere2", "gemma3"])
def test_a_sliding_window_reaches_as_far_as_it_says(family: str) -> None:
    """One layer of each kind; a window of 16 tokens."""
    full, sliding = shape_of(on_meta(config(family))).attention
    assert (full.layers, full.reach, sliding.layers, sliding.reach) == (1, None, 1, 16)
    assert sliding.pairs(16) == full.pairs(16) == 16 * 17 / 2
    assert sliding.pairs(LENGTH) == sum(min(position, 16) for position in range(1, LENGTH + 1))
    assert full.pairs(LENGTH) == sum(range(1, LENGTH + 1))


def test_parts_add_up() -> None:
    """By hand: 2 · 600 · 10, 2 · 3 · 2 · 8 · 55 and 2 · 8 · 50 · 10."""
    assert window_flops(PLAIN, 10) == Flops(12_000, 5_280, 8_000)
    assert window_flops(PLAIN, 10).total == 25_280


def test_memory_by_rank() -> None:
    """Two ranks have half of the weights and of what is inside of a layer each; the stream and the logits are whole."""
    one = scoring_memory(PLAIN, 100, width=2, windows=2, chunk=1000)
    two = scoring_memory(PLAIN, 100, width=2, windows=2, chunk=1000, parts=2)
    assert (one.weights, two.weights) == (2000, 1000)
    assert (one.activations, two.activations) == (200 * (32 + 64) * 2, 200 * (32 + 32) * 2)
    assert one.logits == two.logits == 12_000
    assert (one.attention, two.attention) == (0, 0)
    assert scoring_memory(PLAIN, 100, width=2, windows=2, chunk=1000, eager=True).attention == 2 * 2 * 100**2 * 6
