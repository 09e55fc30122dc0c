"""What every test of `calibrate` runs under: one thread, for small models lose by more, and no clock."""

import os
from collections.abc import Iterator

import pytest
import torch

from calibrate import precision


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """In this process and in those that the tests start."""
    had, environment = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(had)
    if environment is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = environment


@pytest.fixture(autouse=True, scope="session")
def _a_processor_that_is_slow_in_nothing() -> Iterator[None]:
    """No test depends on a clock: a model keeps the dtype of its weights, whatever the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "times_slower", lambda _: 1.0)
        yield
