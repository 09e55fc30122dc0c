"""What scoring costs, from the shape of a model alone: floating-point operations and memory, before a weight is read.

Counted is what grows: the matrices, the attention, the head. Norms, rotations and activation functions are left out.
One multiplication with its addition is two operations, as everywhere in the field (Kaplan et al., arXiv 2001.08361,
section 2.1).
"""

from dataclasses import dataclass
from typing import Any

import torch

from ropecli.checkpoint import sees_no_text

LOGITS_COPIES = 3
"""A slice of logits exists as the head made it, as float32, and once more inside of the cross-entropy."""


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """Layers that attend alike.

    heads    query heads
    width    of a query and of a value together: 2 · head_dim in most models
    reach    tokens that a token attends to, at most; None: all before it
    """

    layers: int
    heads: int
    width: int
    reach: int | None = None

    def pairs(self, length: int) -> float:
        """Query-key pairs of one window in one layer and head, those that a causal kernel computes."""
        if self.reach is None or self.reach >= length:
            return length * (length + 1) / 2
        return self.reach * (self.reach + 1) / 2 + (length - self.reach) * self.reach


@dataclass(frozen=True, slots=True)
class Shape:
    """What the cost of a model depends on.

    parameters   all numbers that are stored
    active       numbers that one token is multiplied with, without the head: of experts those that it is sent to
    vocabulary   rows of the head
    hidden       width of the residual stream
    inside       numbers of a token that exist at once inside of a layer, over all experts that it is sent to: what the
                 widest matrices of one module give, and what is made of it (gate, up and their product)
    attention    the kinds of attention; layers without one cost their matrices alone
    """

    parameters: int
    active: int
    vocabulary: int
    hidden: int
    inside: int
    attention: tuple[AttentionKind, ...]

    @property
    def sparse(self) -> bool:
        """Whether a token meets only a part of what is stored, besides the table that it is looked up in."""
        return self.active + 2 * self.vocabulary * self.hidden < 0.99 * self.parameters

    @property
    def heads(self) -> int:
        """The most query heads of a layer."""
        return max((kind.heads for kind in self.attention), default=0)


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one forward pass over one window."""

    matrices: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.matrices + self.attention + self.head


def window_flops(shape: Shape, length: int) -> Flops:
    """A window of n tokens: 2 · active · n, 2 · pairs · (query + value width) · heads, 2 · hidden · vocabulary · n."""
    attention = sum(2.0 * kind.layers * kind.heads * kind.width * kind.pairs(length) for kind in shape.attention)
    return Flops(2.0 * shape.active * length, attention, 2.0 * shape.hidden * shape.vocabulary * length)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in one rank while it scores."""

    weights: float
    activations: float
    logits: float
    attention: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.activations + self.logits + self.attention


def scoring_memory(
    shape: Shape, length: int, *, width: int, windows: int, chunk: int, parts: int = 1, eager: bool = False
) -> Memory:
    """The largest that a rank needs at once for a pass without gradients.

    width    bytes of a number: 2 for bfloat16
    windows  how many are scored at once
    chunk    entries of a slice of logits
    parts    ranks that hold one model together; each has its part of the weights and of what is inside of a layer
    eager    whether attention keeps whole matrices of scores, in float32 for the softmax, as `eager` does; sdpa and
             flash keep none

    Inside of a layer the stream exists four times: as the embedding gave it, as it came to the layer, after attention,
    and normed (transformers 5.24, Llama).
    """
    tokens = windows * length
    activations = tokens * (4 * shape.hidden + shape.inside / parts) * width
    scores = windows * shape.heads / parts * length**2 * (width + 4) if eager else 0.0
    entries = min(chunk, tokens * shape.vocabulary)
    return Memory(shape.parameters * width / parts, activations, LOGITS_COPIES * entries * 4.0, scores)


def _attention(text: Any) -> tuple[AttentionKind, ...]:
    """The kinds of attention of a text config: full, in a sliding window, or none (a layer of another kind)."""
    layers, heads = text.num_hidden_layers, text.num_attention_heads
    each = getattr(text, "head_dim", None) or text.hidden_size // heads
    latent = getattr(text, "kv_lora_rank", None) is not None
    width = text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim if latent else 2 * each
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * layers
    reaches = {
        "full_attention": None,
        "sliding_attention": getattr(text, "sliding_window", None) or getattr(text, "local_attention", None),
        "chunked_attention": getattr(text, "attention_chunk_size", None),
    }
    return tuple(
        AttentionKind(kinds.count(kind), heads, width, reach) for kind, reach in reaches.items() if kind in kinds
    )


def shape_of(model: Any) -> Shape:
    """What the cost of a model depends on, from the shapes of its own parameters; they may lie on the meta device.

    Of experts, a token sees num_experts_per_tok. Towers for images and sound see no text and are only stored.
    """
    text = model.config.get_text_config()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = model.get_output_embeddings().weight
    chosen = getattr(text, "num_experts_per_tok", None) or 1
    active, inside = 0.0, 0
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        outside = parameter is head or id(parameter) in embeddings or sees_no_text(name)
        if parameter.ndim < 2 or outside:
            continue
        if ".experts." not in name:
            active += parameter.numel()
            rows.setdefault(name.rsplit(".", 2)[0], []).append(parameter.shape[0])
        elif parameter.ndim == 3:
            active += parameter.numel() * chosen / parameter.shape[0]
            inside = max(inside, chosen * max(parameter.shape[1:]))
        elif name.endswith("weight"):  # a module for each expert, as checkpoints with code of their own have it
            active += parameter.numel() * chosen / (getattr(text, "num_experts", None) or text.n_routed_experts)
            inside = max(inside, 2 * chosen * parameter.shape[0])
    inside = max([inside, *(max(of) * (1 + of.count(max(of))) for of in rows.values())])
    stored = sum(parameter.numel() for parameter in model.parameters())
    return Shape(stored, round(active), head.shape[0], head.shape[1], inside, _attention(text))
