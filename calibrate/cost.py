"""What scoring costs, from the shape of a model alone: floating-point operations and memory, before a weight is read.

Counted is what grows: the matrices, the attention, the head. Norms, rotations and activation functions are left out.
One multiplication with its addition is two operations, as everywhere in the field (Kaplan et al., arXiv 2001.08361,
section 2.1).
"""

from dataclasses import dataclass

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
    widest       width of the widest thing inside of a layer, over all experts that a token is sent to
    attention    the kinds of attention; layers without one cost their matrices alone
    """

    parameters: int
    active: int
    vocabulary: int
    hidden: int
    widest: int
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

    Inside of a layer the stream exists three times: as it came, normed, and as the layer's result.
    """
    tokens = windows * length
    inside = 2 * shape.widest / parts
    activations = tokens * (3 * shape.hidden + inside) * width
    scores = windows * shape.heads / parts * length**2 * (width + 4) if eager else 0.0
    entries = min(chunk, tokens * shape.vocabulary)
    return Memory(shape.parameters * width / parts, activations, LOGITS_COPIES * entries * 4.0, scores)
