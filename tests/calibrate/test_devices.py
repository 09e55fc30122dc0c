"""Device-free by construction: nothing that the scorer or the gradient makes lies on a default device.

A model on the meta device has shapes and no numbers: an operation that meets a tensor of another device raises.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from families import FAMILIES, NESTED, build, config, random_ids
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import calibrate
from calibrate.corpus import Document
from calibrate.fence import rotating_with
from calibrate.gradient import slope, slope_of_window
from calibrate.model import LoadedModel
from calibrate.score import Bands, nats_by_band, token_nll
from ropecli.frequencies import Frequencies

OURS = str(Path(calibrate.__file__).parent)
FACTORIES = {
    *(torch.tensor, torch.as_tensor, torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace),
    *(torch.eye, torch.rand, torch.randn, torch.randint, torch.asarray),
}
LENGTH = 24
BANDS = Bands((1, 12, LENGTH))


class ExplicitDevices(TorchFunctionMode):
    """Raises where our own code makes a tensor without saying where; counts those that say it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if function in FACTORIES and sys._getframe(1).f_code.co_filename.startswith(OURS):
            assert named.get("device") is not None, f"{function.__name__} on a default device"
            self.seen += 1
        return function(*args, **named)


class OneDevice(TorchDispatchMode):
    """Records the device of every tensor that an operation gives, below everything that could hide one."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **dict(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            # a number that waits for its operation has no device of its own
            if isinstance(tensor, torch.Tensor) and tensor.ndim:
                self.devices.add(tensor.device.type)
        return result


def table_of(model: Any, layer: str) -> Frequencies:
    name = "inv_freq" if layer == "default" else f"{layer}_inv_freq"
    pairs = next(len(buffer) for key, buffer in model.named_buffers() if key.endswith(name))
    return Frequencies(tuple(0.5**index for index in range(pairs)), 1.1)


def layer_of(family: str) -> str:
    return "full_attention" if family in NESTED else "default"


@pytest.mark.parametrize("family", [*FAMILIES, *NESTED])
def test_everything_follows_the_model_to_the_meta_device(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and slope of every family: all that is made on the way is where the model is."""
    # transformers looks into the numbers for several sequences in one row, which the scorer never has
    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda _: None)
    with torch.device("meta"):
        configured = config(family, attn_implementation="eager")
        model = transformers.AutoModelForCausalLM.from_config(configured, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    ids = torch.zeros(1, LENGTH, dtype=torch.int64, device="meta")
    by_position = torch.ones(LENGTH - 1, device="meta")
    layer = layer_of(family)
    table = table_of(model, layer)
    # the fence computes its table in float64 on the CPU first, as every runtime does
    with rotating_with(model, {layer: table}), OneDevice() as seen, torch.no_grad():
        losses = token_nll(model, ids)
    assert (losses.device.type, losses.shape, seen.devices) == ("meta", (1, LENGTH - 1), {"meta"})
    with OneDevice() as seen:
        found = slope_of_window(model, layer, table, ids, by_position)
    assert (found.device.type, found.shape, seen.devices) == ("meta", (2 + len(table.inv_freq),), {"meta"})


def documents(windows: int) -> list[Document]:
    rows = random_ids(windows, LENGTH).tolist()
    return [Document("one", tuple(tuple(row) for row in rows))]


def loaded(model: Any) -> LoadedModel:
    return LoadedModel(model, lambda text: [ord(c) for c in text], None, torch.device("cpu"))


def test_our_own_code_names_the_device_of_every_tensor_that_it_makes() -> None:
    """From the text to the sums, and from the text to the slope."""
    model = build(config("llama"))
    table = table_of(model, "default")
    with ExplicitDevices() as devices:
        with rotating_with(model, {"default": table}):
            nats_by_band(loaded(model), documents(3), BANDS)
        assert devices.seen == 2
        slope(loaded(model), "default", table, documents(3), BANDS, [1.0, 1.0])
        assert devices.seen == 2 + 1 + 3 * 4
    with pytest.raises(AssertionError, match="zeros on a default device"), ExplicitDevices():
        exec(compile("import torch; torch.zeros(2)", f"{OURS}/__init__.py", "exec"))  # noqa: S102


def test_a_model_that_accelerate_moves_about_gives_the_same_numbers() -> None:
    """What --device-map does: hooks in every module fetch its weights; the scorer and the slope leave them in place."""
    model = build(config("llama"))
    table = table_of(model, "default")

    def numbers() -> list[float]:
        with rotating_with(model, {"default": table}):
            nats = nats_by_band(loaded(model), documents(2), BANDS)
        found = slope(loaded(model), "default", table, documents(2), BANDS, [1.0, 1.0])
        return [*nats.ravel().tolist(), found.nats, found.attention_factor, *found.inv_freq.tolist()]

    before = numbers()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.lm_head.weight.device.type == "meta"
    assert numbers() == before
    assert numbers() == before
