"""`calibrate.precision`: a CPU that is slow in a dtype computes in float32, and says so."""

from pathlib import Path

import pytest
import torch

from calibrate import precision
from calibrate.corpus import Document
from calibrate.model import Settings, load
from calibrate.precision import MARGIN, float32_pays, times_slower
from calibrate.score import Bands, nats_by_band, picked

TINY = Path(__file__).parents[2] / "examples" / "tiny"


@pytest.mark.parametrize(
    ("own", "slower", "parameters", "pays"),
    [
        (torch.float16, MARGIN * 1.01, 1, True),
        (torch.bfloat16, MARGIN * 1.01, 1, True),
        (torch.bfloat16, MARGIN, 1, False),
        (torch.bfloat16, 0.2, 1, False),
        (torch.float32, 9.0, 1, False),
        (torch.float64, 9.0, 1, False),
        (torch.float16, 9.0, 2**30 // 8, True),
        (torch.float16, 9.0, 2**30 // 8 + 1, False),
    ],
)
def test_when_it_pays(
    own: torch.dtype, slower: float, parameters: int, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision that is slow by the margin, and weights that take up to half of a memory of 1 GiB."""
    monkeypatch.setattr(precision, "times_slower", lambda _: slower)
    monkeypatch.setattr(precision, "_memory", lambda: 2**30)
    assert float32_pays(own, parameters) is pays


def test_it_is_measured_on_this_processor() -> None:
    """Once a process for each dtype."""
    for dtype in (torch.float16, torch.float32):
        measured = times_slower(dtype)
        assert 0 < measured < 1e6
        assert times_slower(dtype) == measured


def test_a_processor_that_is_slow_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is what --dtype float32 loads, and the line before a search says why; a dtype by name is obeyed."""
    documents = [Document("d", (tuple(range(5, 69)),))]
    asked = load(str(TINY), Settings("cpu", dtype="float32"))
    kept = load(str(TINY), Settings("cpu"))
    monkeypatch.setattr(precision, "times_slower", lambda _: 5.0)
    found, named = load(str(TINY), Settings("cpu")), load(str(TINY), Settings("cpu", dtype="bfloat16"))
    assert [model.dtype for model in (asked, kept, found, named)] == ["float32", "bfloat16", "float32", "bfloat16"]
    assert found.model.get_input_embeddings().weight is found.model.get_output_embeddings().weight
    assert picked(found, 64).startswith("cpu, float32 (this processor is slow in bfloat16), sdpa attention")
    assert picked(asked, 64).startswith("cpu, float32, sdpa attention")
    bands = Bands((1, 64))
    assert nats_by_band(found, documents, bands) == nats_by_band(asked, documents, bands)
    assert nats_by_band(named, documents, bands) == nats_by_band(kept, documents, bands)
