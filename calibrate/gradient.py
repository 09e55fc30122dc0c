"""The exact slope of the loss with respect to the rotary table: one backward pass, no gradients of weights.

All layers share one small table, so the slope costs a forward pass and the backward pass through the activations,
whatever the number of parameters. The backbone's layers are recomputed in the backward pass instead of kept, and the
head is taken a slice at a time, so a window's activations and logits are never in memory together.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from calibrate.corpus import Document
from calibrate.model import LoadedModel, rotating_with
from calibrate.score import Bands, Floats, sliced_nll, windows_at_once
from ropecli.errors import Inconclusive
from ropecli.frequencies import Frequencies


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


@contextlib.contextmanager
def _recomputing(model: Any) -> Iterator[None]:
    """Inside the block, the layers of the backbone keep their inputs alone and are run again in the backward pass."""
    backbone = getattr(model, model.base_model_prefix)
    layers = list(getattr(backbone, "layers", None) or getattr(backbone, "h", None) or ())
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def slope(
    loaded: LoadedModel,
    layer: str,
    table: Frequencies,
    documents: Sequence[Document],
    bands: Bands,
    weights: Sequence[float],
) -> Slope:
    """Σ weight · nats over the documents, and its slope. `weights` has one number a band, and documents add up.

    Raises Inconclusive where the attention implementation has no backward pass, or the model does not let one through.
    """
    inv_freq = torch.tensor(table.inv_freq, dtype=torch.float64, device=loaded.device).requires_grad_()
    m = torch.tensor(table.attention_factor, dtype=torch.float64, device=loaded.device).requires_grad_()
    by_position = torch.zeros(bands.edges[-1] - 1, dtype=torch.float32, device=loaded.device)
    for weight, (low, high) in zip(weights, bands.spans, strict=True):
        by_position[low - 1 : high - 1] = weight
    rows = [window[: bands.edges[-1]] for document in documents for window in document.windows]
    batch = windows_at_once(bands.edges[-1], loaded.device)
    total = 0.0
    model = loaded.model
    backbone = getattr(model, model.base_model_prefix)
    with rotating_with(model, {layer: (inv_freq, m)}), _recomputing(model):
        for start in range(0, len(rows), batch):
            ids = torch.tensor(rows[start : start + batch], device=loaded.device)
            outputs = backbone(input_ids=ids, use_cache=False)
            hidden = outputs.last_hidden_state
            if not hidden.requires_grad:
                raise Inconclusive(
                    "no gradient comes through this model's rotary embedding",
                    hint="use --tune yarn, which needs none",
                )
            leaf = hidden.detach().requires_grad_()
            for first, last, losses in sliced_nll(model, ids, outputs, leaf):
                loss = (losses * by_position[first:last]).sum()
                torch.autograd.backward(loss)
                total += float(loss.detach())
            try:
                torch.autograd.backward(hidden, leaf.grad)
            except (RuntimeError, NotImplementedError) as error:
                raise Inconclusive(
                    f"the attention has no backward pass here: {str(error).splitlines()[0]}",
                    hint="try --attn-implementation eager or sdpa, or --tune yarn, which needs none",
                ) from error
    if inv_freq.grad is None or m.grad is None:
        raise Inconclusive("no gradient comes through this model's rotary embedding", hint="use --tune yarn")
    return Slope(total, inv_freq.grad.cpu().numpy(), float(m.grad))
