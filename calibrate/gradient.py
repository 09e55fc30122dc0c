"""The exact slope of the loss with respect to the rotary table: one backward pass, no gradients of weights.

All layers share one small table, so the slope costs a forward pass and the backward pass through the activations,
whatever the number of parameters. What the backbone's layers keep for the backward pass is bounded: the rest is run
again, all but its attention where there is room for that alone. The head is taken a slice at a time, so a window's
activations and logits are never in memory together.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from calibrate.corpus import Document
from calibrate.fence import rotating_with
from calibrate.model import LoadedModel, is_out_of_memory
from calibrate.score import Bands, Floats, sliced_nll
from ropecli.errors import Inconclusive, NoResource
from ropecli.frequencies import Frequencies

KEPT_BYTES = 2**30
"""What the layers keep of a batch for the backward pass, before layers are run again instead."""

ATTENTION_BYTES = 2**30
"""What the attention of the layers that are run again keeps of a batch, before it is run again, too."""

ATTENTION = frozenset(
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}").default
    for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
)
"""What torch's `scaled_dot_product_attention` comes down to: most of a long window's cost, little of what it keeps."""

NO_GRADIENT = "no gradient comes through this model's rotary embedding"


@dataclass(frozen=True, slots=True)
class Slope:
    """A weighted sum of nats and its derivatives.

    nats              Σ over documents, windows and positions of weight · negative log-likelihood
    inv_freq          its derivative with respect to each frequency, per radian a token, float64 [pairs]
    attention_factor  its derivative with respect to the multiplier on cos and sin
    """

    nats: float
    inv_freq: Floats
    attention_factor: float

    def __add__(self, other: "Slope") -> "Slope":
        inv_freq = self.inv_freq + other.inv_freq
        return Slope(self.nats + other.nats, inv_freq, self.attention_factor + other.attention_factor)


SlopeOf = Callable[[Frequencies, Sequence[Document], Bands, Sequence[float]], Slope]
"""The slope at a table on documents, with a weight for each band."""


@contextlib.contextmanager
def _recomputing(model: Any) -> Iterator[None]:
    """Inside the block, once the layers of the backbone keep `KEPT_BYTES`, the others keep their inputs alone.

    Those are run again in the backward pass, which then costs up to a forward pass more: less as long as the results of
    their attention are within `ATTENTION_BYTES`, for these are kept.
    """
    backbone = getattr(model, model.base_model_prefix)
    layers = list(getattr(backbone, "layers", None) or getattr(backbone, "h", None) or ())
    # a model that is spread over devices has forwards of its own in its layers
    had = [layer.__dict__.get("forward") for layer in layers]
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    attended: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    def keep_attention(context: SelectiveCheckpointContext, operation: Any, *args: Any, **_: Any) -> CheckpointPolicy:
        if operation not in ATTENTION:
            return CheckpointPolicy.PREFER_RECOMPUTE
        if not context.is_recompute:
            attended.append(args[0].nbytes)  # its result is as large as the query
        return CheckpointPolicy.MUST_SAVE

    def forward(original: Callable[..., Any], first: bool, *args: Any, **kwargs: Any) -> Any:
        if first:
            kept.clear()
            attended.clear()
        if sum(kept.values()) < KEPT_BYTES:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                return original(*args, **kwargs)
        if sum(attended) < ATTENTION_BYTES:
            selective = functools.partial(create_selective_checkpoint_contexts, keep_attention)
            return checkpoint(original, *args, use_reentrant=False, context_fn=selective, **kwargs)
        return checkpoint(original, *args, use_reentrant=False, **kwargs)

    for layer in layers:
        layer.forward = functools.partial(forward, layer.forward, layer is layers[0])
    try:
        yield
    finally:
        for layer, own in zip(layers, had, strict=True):
            del layer.forward
            if own is not None:
                layer.forward = own


def slope(
    loaded: LoadedModel,
    layer: str,
    table: Frequencies,
    documents: Sequence[Document],
    bands: Bands,
    weights: Sequence[float],
) -> Slope:
    """Σ weight · nats over the documents, and its slope. `weights` has one number a band, and documents add up.

    Several ranks share the windows, and each has the whole result.
    Raises Inconclusive where the attention implementation has no backward pass, or the model does not let one through,
    and NoResource when memory runs out even for one window at a time.
    """
    if loaded.ranks.tensor > 1:
        # each rank would see the slope through its own attention heads alone
        raise Inconclusive("no slope of a model in parts", where="--tensor-parallel", hint="use --tune yarn")
    by_position = torch.zeros(bands.edges[-1] - 1, dtype=torch.float32, device=loaded.device)
    for weight, (low, high) in zip(weights, bands.spans, strict=True):
        by_position[low - 1 : high - 1] = weight
    rows = [window[: bands.edges[-1]] for document in documents for window in document.windows]
    parts = np.zeros((len(rows), len(table.inv_freq) + 2))
    with _recomputing(loaded.model):
        for index in loaded.ranks.mine(len(rows)):
            ids = torch.tensor([rows[index]], device=loaded.device)
            try:
                parts[index] = slope_of_window(loaded.model, layer, table, ids, by_position).cpu().numpy()
            except (RuntimeError, NotImplementedError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise NoResource(
                        f"out of memory on the gradient of one window of {bands.edges[-1]} tokens",
                        hint="try --tune yarn, which needs no gradient, --dtype bfloat16, or a smaller --target-length",
                    ) from error
                raise Inconclusive(
                    f"no backward pass through this model here: {str(error).partition(chr(10))[0]}",
                    hint="try --attn-implementation eager or sdpa, or --tune yarn, which needs none",
                ) from error
    nats, by_factor, *by_frequency = loaded.ranks.total(parts).sum(axis=0).tolist()
    return Slope(nats, np.array(by_frequency), by_factor)


def slope_of_window(
    model: Any, layer: str, table: Frequencies, ids: torch.Tensor, by_position: torch.Tensor
) -> torch.Tensor:
    """Of one window, ids [1, length]: nats, and their slope by the attention factor and by each frequency.

    by_position  weights [length − 1]
    Returns float64 [2 + pairs], on the device of the window.

    Never of several windows at once: the cosines are shared by a batch, in the model's dtype, and a slope that is
    summed over the batch in bfloat16 is off by some per cent.
    """
    inv_freq = torch.tensor(table.inv_freq, dtype=torch.float64, device=ids.device).requires_grad_()
    m = torch.tensor(table.attention_factor, dtype=torch.float64, device=ids.device).requires_grad_()
    total = torch.zeros((), dtype=torch.float64, device=ids.device)
    with rotating_with(model, {layer: (inv_freq, m)}):
        outputs = getattr(model, model.base_model_prefix)(input_ids=ids, use_cache=False)
        hidden = outputs.last_hidden_state
        if not hidden.requires_grad:
            raise Inconclusive(NO_GRADIENT, hint="use --tune yarn, which needs none")
        leaf = hidden.detach().requires_grad_()
        for first, last, losses in sliced_nll(model, ids, outputs, leaf):
            loss = (losses * by_position[first:last]).sum()
            torch.autograd.backward(loss)
            total += loss.detach()
        by_inv_freq, by_m = torch.autograd.grad(hidden, (inv_freq, m), leaf.grad, allow_unused=True)
    if by_inv_freq is None or by_m is None:
        raise Inconclusive(NO_GRADIENT, hint="use --tune yarn, which needs none")
    return torch.cat([torch.stack([total, by_m]), by_inv_freq])
