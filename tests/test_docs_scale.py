"""`docs/scale.md` is what its script prints today, and its claims of measured runs are those of the file beside it."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that writes the page."""
    specification = importlib.util.spec_from_file_location("make_scale", DOCS / "make_scale.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_what_was_predicted_on_the_gpu_is_what_the_model_says(script: ModuleType) -> None:
    """The file's predictions are those of today's model."""
    for one in json.loads((DOCS / "scale_gpu.json").read_text("utf-8"))["windows"]:
        assert one["flops"] == script.window_flops(script.shape(one["checkpoint"]), one["length"]).total
        assert one["predicted_bytes"] == script._memory(one["checkpoint"], one["length"]).total


def test_the_page_is_not_stale(script: ModuleType) -> None:
    """`python docs/make_scale.py` writes it."""
    assert script.page() == (DOCS / "scale.md").read_text("utf-8")


def test_sizes_are_those_that_the_models_are_known_by(script: ModuleType) -> None:
    """8, 70, 405 and 480 billion parameters; 35 billion of the last meet a token, as its name says."""
    billions = [script.shape(name).parameters / 1e9 for name in script.MODELS]
    assert billions == pytest.approx([8.03, 70.6, 405.9, 480.2], rel=0.005)
    sparse = script.shape(list(script.MODELS)[-1])
    assert sparse.sparse
    assert (sparse.active + sparse.hidden * sparse.vocabulary) / 1e9 == pytest.approx(35, rel=0.03)
    assert not script.shape(next(iter(script.MODELS))).sparse


@pytest.mark.parametrize(("file", "checkpoints"), [("scale_measured.json", 2), ("scale_gpu.json", 1)])
def test_the_model_predicts_what_was_measured(file: str, checkpoints: int) -> None:
    """Within a fifth for time, from the rate of another length; memory is never more than a tenth too little."""
    measured = json.loads((DOCS / file).read_text("utf-8"))["windows"]
    rates: dict[str, float] = {}
    for one in measured:
        first = rates.setdefault(one["checkpoint"], one["flops"] / one["seconds"])
        assert one["flops"] / first == pytest.approx(one["seconds"], rel=0.2)
        assert one["predicted_bytes"] > 0.9 * one["bytes"]
    assert len(rates) == checkpoints
