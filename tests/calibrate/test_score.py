"""`calibrate.score`: the loss is the cross-entropy of the model's own logits, whatever is held in memory at once."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, NESTED, VOCABULARY, build, config, logits, random_ids

from calibrate import score
from calibrate.corpus import Document
from calibrate.fence import rotating_with
from calibrate.model import LoadedModel, Room
from calibrate.score import Bands, nats_by_band, perplexity, token_nll, tokens_by_band, windows_at_once
from ropecli.errors import NoResource
from ropecli.frequencies import Frequencies

EVERY = (*FAMILIES, *NESTED)


def loaded(model: Any) -> LoadedModel:
    return LoadedModel(model, lambda text: [ord(c) for c in text], None, torch.device("cpu"))


def cross_entropy(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Float64 negative log-likelihoods [windows, length − 1] from the logits of whole windows."""
    log_p = logits(model, ids)[:, :-1].double().log_softmax(-1)
    return -log_p.gather(-1, ids[:, 1:, None])[..., 0]


def documents(counts: list[int], length: int) -> list[Document]:
    """Documents with so many random windows each."""
    rows = random_ids(sum(counts), length, seed=5).tolist()
    found = []
    for index, count in enumerate(counts):
        found.append(Document(f"d{index}", tuple(tuple(row) for row in rows[:count])))
        rows = rows[count:]
    return found


# ------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("family", EVERY)
def test_the_loss_of_a_token_is_the_cross_entropy_of_the_full_logits(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every family, with soft caps and logit scales, in slices that do not divide the window."""
    model, ids = build(config(family)), random_ids(3, 33)
    expected = cross_entropy(model, ids)
    assert float(expected.std()) > 0.1
    for slice_length in (1, 13, 32, 1000) if family == "llama" else (13,):
        monkeypatch.setattr(score, "CHUNK_ENTRIES", slice_length * VOCABULARY * 3)
        found = token_nll(model, ids)
        assert found.shape == (3, 32)
        assert found.dtype == torch.float32
        assert float((found.double() - expected).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("family", "without"),
    [
        ("gemma2", {"final_logit_softcapping": None}),
        ("cohere", {"logit_scale": 1.0}),
        ("granite", {"logits_scaling": 1}),
    ],
)
def test_soft_caps_and_scales_are_not_skipped(family: str, without: dict[str, Any]) -> None:
    """The settings that change logits after the head change the loss: the test above would see them missing."""
    ids = random_ids(1, 33)
    with_it, without_it = token_nll(build(config(family)), ids), token_nll(build(config(family, **without)), ids)
    assert float((with_it - without_it).abs().max()) > 0.1


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "deepseek_v3"])
def test_only_a_slice_of_the_logits_exists_at_a_time(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head never sees more than the slice, the backbone sees every token once."""
    model, ids = build(config(family)), random_ids(2, 41)
    backbone = getattr(model, model.base_model_prefix)
    seen: list[int] = []
    layers: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[2].numel()))
    next(module for module in backbone.modules() if isinstance(module, torch.nn.Embedding)).register_forward_hook(
        lambda *call: layers.append(call[1][0].numel())
    )
    monkeypatch.setattr(score, "CHUNK_ENTRIES", 6 * VOCABULARY * 2)
    token_nll(model, ids)
    assert max(seen) <= 6 * VOCABULARY * 2
    assert sum(seen) == 40 * VOCABULARY * 2
    assert layers == [2 * 41]


def test_scoring_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's forward is its own again afterwards, after an error in the head too."""
    model, ids = build(config("llama")), random_ids(1, 17)
    before = logits(model, ids)
    token_nll(model, ids)
    assert "forward" not in model.model.__dict__
    assert torch.equal(logits(model, ids), before)

    def fail(*_: object) -> None:
        raise RuntimeError("the head is broken")

    hook = model.lm_head.register_forward_hook(fail)
    monkeypatch.setattr(score, "CHUNK_ENTRIES", VOCABULARY)
    with pytest.raises(RuntimeError, match="the head is broken"):
        token_nll(model, ids)
    hook.remove()
    assert torch.equal(logits(model, ids), before)


def test_the_loss_sees_the_fence() -> None:
    """Frequencies that are put in change the loss of every token but those at the start."""
    model, ids = build(config("llama")), random_ids(1, 33)
    table = Frequencies((0.3, 0.1, 0.01, 0.001), 1.2)
    plain = token_nll(model, ids)
    with rotating_with(model, {"default": table}):
        fenced = token_nll(model, ids)
        assert torch.allclose(fenced.double(), cross_entropy(model, ids), atol=1e-5)
    assert float((fenced - plain)[0, 4:].abs().mean()) > 0.05


# ------------------------------------------------------------------------------------------------ sums


@pytest.mark.parametrize("edges", [(1, 32), (1, 8, 32), (1, 2, 8, 9, 31, 32), (8, 16), (1, 20)])
def test_band_sums_are_sums_over_their_positions(edges: tuple[int, ...]) -> None:
    """Band i holds the loss of the tokens at positions e_i … e_{i+1} − 1, of all windows of a document."""
    model, texts = build(config("llama")), documents([1, 3, 2], 32)
    found = nats_by_band(loaded(model), texts, Bands(edges))
    assert found.dtype == np.float64
    for row, document in zip(found, texts, strict=True):
        losses = cross_entropy(model, torch.tensor(document.windows)).numpy()
        for total, (low, high) in zip(row, pairwise(edges), strict=True):
            assert total == pytest.approx(losses[:, low - 1 : high - 1].sum(), abs=1e-4)
    counts = tokens_by_band(texts, Bands(edges))
    widths = [b - a for a, b in pairwise(edges)]
    assert counts.tolist() == [[n * width for width in widths] for n in (1, 3, 2)]


def test_the_batch_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows scored one by one, in pairs across documents or all at once give the same sums."""
    model, texts, bands = build(config("gemma3")), documents([1, 3, 1, 2], 32), Bands((1, 16, 32))
    results = []
    for batch in (1, 2, 3, 7, 100):
        monkeypatch.setattr(score, "windows_at_once", lambda *_, n=batch: n)
        results.append(nats_by_band(loaded(model), texts, bands))
    for result in results[1:]:
        assert np.allclose(result, results[0], rtol=0, atol=1e-4)


def test_a_document_scores_the_same_alone_and_among_others() -> None:
    """The sums of a document do not depend on which others are scored with it."""
    model, texts, bands = build(config("qwen3")), documents([2, 1, 3], 32), Bands((1, 16, 32))
    together = nats_by_band(loaded(model), texts, bands)
    for row, document in zip(together, texts, strict=True):
        assert np.allclose(nats_by_band(loaded(model), [document], bands)[0], row, rtol=0, atol=1e-4)


def test_no_documents_give_no_rows() -> None:
    """An empty list is scored as an empty table of the right width."""
    assert nats_by_band(loaded(build(config("llama"))), [], Bands((1, 8, 16))).shape == (0, 2)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(error: Exception) -> None:
    """Every kind of full memory leads to a smaller batch with the same sums; a single window too many is an error."""
    model, texts, bands = build(config("llama")), documents([1, 3, 4], 32), Bands((1, 16, 32))
    expected = nats_by_band(loaded(model), texts, bands)
    sizes: list[int] = []
    room = 3
    told: list[str] = []
    small = replace(loaded(model), room=Room(told.append))

    def crowded(module: Any, args: Any, kwargs: Any) -> None:
        del module, args
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > room:
            raise error

    model.model.register_forward_pre_hook(crowded, with_kwargs=True)
    assert np.allclose(nats_by_band(small, texts, bands), expected, rtol=0, atol=1e-4)
    assert sizes[:2] == [8, 4]
    assert max(sizes[2:]) <= room
    sizes.clear()
    assert np.allclose(nats_by_band(small, texts, bands), expected, rtol=0, atol=1e-4)
    assert max(sizes) == 2, "what was learnt is forgotten"
    assert len(told) == 1
    assert told[0].startswith("out of memory with 8 windows of 32 tokens at once: goes on with fewer; --dtype bfloat16")
    room = 0
    with pytest.raises(NoResource, match="out of memory on one window of 32 tokens"):
        nats_by_band(loaded(model), texts, bands)


def test_another_error_is_not_taken_for_full_memory() -> None:
    """A RuntimeError that says something else comes through as it is."""
    model = build(config("llama"))

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    model.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        nats_by_band(loaded(model), documents([1], 16), Bands((1, 16)))


@pytest.mark.parametrize("length", [1, 300, 8192, 8193, 100_000])
def test_a_batch_has_at_least_one_window_and_a_bounded_number_of_tokens(length: int) -> None:
    """8k tokens at once on a CPU, 32k elsewhere, and never less than one window."""
    for device, most in (("cpu", 8192), ("cuda", 32768)):
        batch = windows_at_once(length, torch.device(device))
        assert batch == 1 or batch * length <= most
        assert (batch + 1) * length > most


@pytest.mark.parametrize("edges", [(), (1,), (0, 5), (1, 1), (5, 2), (1, 8, 8)])
def test_bands_that_do_not_ascend_cannot_be_made(edges: tuple[int, ...]) -> None:
    """Edges ascend strictly from at least 1: the first token of a window has no prediction."""
    with pytest.raises(ValueError, match="must ascend"):
        Bands(edges)


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize(
    ("nll", "ppl"), [(1.0, math.e), (700.0, math.exp(700)), (800.0, math.inf), (math.inf, math.inf)]
)
def test_perplexity_is_the_exponential_or_infinite(nll: float, ppl: float) -> None:
    """What no float holds is no large number that looks like one."""
    assert perplexity(nll) == ppl
    assert math.isnan(perplexity(math.nan))


@pytest.mark.parametrize("edges", [(1, 256, 1024), (1, 256, 768), (1, 8192, 15000, 16384), (1, 3), (5, 6, 7)])
def test_finer_bands_keep_the_edges(edges: tuple[int, ...]) -> None:
    """Every edge stays; there are about as many as asked for, of nearly equal width, each with a position."""
    fine = Bands(edges).finer(64)
    assert set(edges) <= set(fine.edges)
    assert (fine.edges[0], fine.edges[-1]) == (edges[0], edges[-1])
    if edges[-1] > 256:
        assert 60 <= len(fine.widths) <= 68
        assert max(fine.widths) <= 1.3 * min(fine.widths)
