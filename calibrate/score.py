"""How well a model predicts windows of text: sums of nats by position, without materialising a window's logits."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from calibrate.corpus import Document
from calibrate.fence import attending
from calibrate.model import LoadedModel, is_out_of_memory
from ropecli.errors import NoResource

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LARGEST_EXPONENT = 709.0

CHUNK_ENTRIES = 2**25
"""Logits held at once, in entries (tokens × vocabulary): 128 MiB as float32."""


def perplexity(nll: float) -> float:
    """exp of nats a token; infinite where no float holds it, NaN for NaN."""
    return inf if nll > LARGEST_EXPONENT else exp(nll)


@dataclass(frozen=True, slots=True)
class Bands:
    """Ranges of positions that are summed apart.

    A token at position p (counted from 0) is predicted from the p tokens before it; position 0 has no prediction.
    edges  ascending positions e_0 < e_1 < … < e_k with 1 ≤ e_0 and e_k ≤ window length; band i is e_i ≤ p < e_{i+1}
    """

    edges: tuple[int, ...]

    def __post_init__(self) -> None:
        if (
            len(self.edges) < 2
            or self.edges[0] < 1
            or any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False))
        ):
            raise ValueError(f"band edges must ascend from at least 1, found {self.edges}")

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(first, last + 1) position of each band."""
        return tuple(pairwise(self.edges))

    @property
    def widths(self) -> tuple[int, ...]:
        """Predicted tokens in each band of one window."""
        return tuple(b - a for a, b in zip(self.edges, self.edges[1:], strict=False))

    def finer(self, count: int) -> "Bands":
        """About `count` bands of nearly equal width; every edge of these is one of theirs."""
        share = count / (self.edges[-1] - self.edges[0])
        edges = [self.edges[0]]
        for low, high in self.spans:
            parts = min(max(round((high - low) * share), 1), high - low)
            edges += [low + (high - low) * part // parts for part in range(1, parts + 1)]
        return Bands(tuple(edges))


@contextlib.contextmanager
def _replayed(backbone: Any, outputs: Any) -> Iterator[None]:
    """Inside the block the backbone returns `outputs` instead of computing."""
    had = backbone.__dict__.get("forward")
    backbone.forward = lambda *_, **__: outputs
    try:
        yield
    finally:
        del backbone.forward
        if had is not None:
            backbone.forward = had


def token_nll(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of every token but the first, in nats.

    ids [windows, length] → float32 [windows, length − 1], column p − 1 for position p. The backbone runs once; the
    model's own forward then runs on slices of the hidden states, so that every architecture's head, soft cap or
    logit scale applies, and only a slice of the logits exists at a time.
    """
    outputs = getattr(model, model.base_model_prefix)(input_ids=ids, use_cache=False)
    hidden = outputs.last_hidden_state
    return torch.cat([losses for _, _, losses in sliced_nll(model, ids, outputs, hidden)], dim=1)


def sliced_nll(
    model: Any, ids: torch.Tensor, outputs: Any, hidden: torch.Tensor
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The head on slices of the hidden states: (first, last, losses) for columns first … last − 1 of `token_nll`.

    hidden [windows, length, width] stands in for the backbone's own `outputs`.
    """
    backbone = getattr(model, model.base_model_prefix)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    step = max(1, CHUNK_ENTRIES // (vocabulary * ids.shape[0]))
    for start in range(0, ids.shape[1] - 1, step):
        stop = min(start + step, ids.shape[1] - 1)
        outputs.last_hidden_state = hidden[:, start:stop]
        with _replayed(backbone, outputs):
            logits = model(input_ids=ids[:, start:stop], use_cache=False).logits  # [windows, slice, vocabulary]
        targets = ids[:, start + 1 : stop + 1]
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        del logits  # before the next slice has its own
        yield start, stop, losses.view_as(targets)


def windows_at_once(length: int, device: torch.device) -> int:
    """How many windows to score in one batch: 8k tokens on a CPU, 32k elsewhere, at least one window.

    A rule and not a measurement, as the dtype is the checkpoint's and the attention transformers' choice: no kernel
    promises the same last bit for every size of a batch, and the same text on the same machine must give the same file,
    however busy the machine is. `benchmarks/` measure the rule.
    """
    return max(1, (2**13 if device.type == "cpu" else 2**15) // length)


def batches(documents: Sequence[Document], windows: int) -> Iterator[Sequence[Document]]:
    """Consecutive documents that hold at most `windows` windows together; a document that holds more is alone."""
    first, held = 0, 0
    for index, document in enumerate(documents):
        if index > first and held + len(document.windows) > windows:
            yield documents[first:index]
            first, held = index, 0
        held += len(document.windows)
    if documents:
        yield documents[first:]


def picked(loaded: LoadedModel, length: int) -> str:
    """How windows of `length` tokens are scored, in a few words."""
    count = windows_at_once(length, loaded.device)
    shared = f", {loaded.ranks.size} processes" if loaded.ranks.size > 1 else ""
    batch = f"{count} windows" if count > 1 else "one window"
    dtype = loaded.dtype
    if loaded.dequantised:
        dtype += " (a GGUF, de-quantised)"
    if loaded.stored_as:
        dtype += f" (this processor is slow in {loaded.stored_as})"
    return f"{loaded.device}, {dtype}, {loaded.attention(length)} attention, {batch} at once{shared}"


def nats_by_band(loaded: LoadedModel, documents: Sequence[Document], bands: Bands) -> Floats:
    """Sums of nats, float64 [documents, bands], over all windows of each document.

    Several ranks share the windows, and each has the whole result.
    Raises NoResource when memory runs out even for one window at a time.
    """
    rows = [(index, window) for index, document in enumerate(documents) for window in document.windows]
    mine = loaded.ranks.mine(len(rows))
    by_row = np.zeros((len(rows), len(bands.widths)))
    length, room = bands.edges[-1], loaded.room
    batch = windows_at_once(length, loaded.device)
    if room.tokens is not None:
        batch = min(batch, max(room.tokens // length, 1))
    start = mine.start
    while start < mine.stop:
        chosen = rows[start : min(start + batch, mine.stop)]
        try:
            with torch.no_grad(), attending(loaded):
                ids = torch.tensor([window[:length] for _, window in chosen], device=loaded.device)
                losses = token_nll(loaded.model, ids).cpu().double().numpy()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # ranks that hold one model between them must go on in step
            if len(chosen) == 1 or loaded.ranks.tensor > 1:
                raise NoResource(
                    f"out of memory on one window of {length} tokens",
                    hint="try --dtype bfloat16, a smaller --target-length, or --device-map auto",
                ) from error
            batch = room.ran_out(len(chosen), length)
            continue
        for offset, row in enumerate(losses):
            by_row[start + offset] = [row[low - 1 : high - 1].sum() for low, high in bands.spans]
        start += len(chosen)
    totals = np.zeros((len(documents), len(bands.widths)))
    # a window's sums come from one rank and are added in one order, so that the ranks are not seen in the result
    for (index, _), sums in zip(rows, loaded.ranks.total(by_row), strict=True):
        totals[index] += sums
    return totals


def tokens_by_band(documents: Sequence[Document], bands: Bands) -> Counts:
    """Predicted tokens, int64 [documents, bands]."""
    counts = np.array([len(document.windows) for document in documents], dtype=np.int64)
    return counts[:, None] * np.array(bands.widths, dtype=np.int64)[None, :]
