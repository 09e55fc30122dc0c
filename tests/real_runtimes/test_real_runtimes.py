"""One converted checkpoint, the real transformers 5, transformers 4 and MLX-LM: the numbers that were calibrated."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from tiny_cases import OPTIONS, TOLERANCE, agreement, same

pytestmark = pytest.mark.runtimes

Scores = dict[str, np.ndarray]
RUNTIMES = {"transformers-5": "5.", "transformers-4": "4.57.", "mlx": "0."}


def test_the_cases_are_far_from_each_other(reference: Scores) -> None:
    """A runtime that ignored a corner, the temperature or everything would miss the tolerance by a hundred times."""
    for one, other in permutations(reference, 2):
        assert agreement(reference[one], reference[other]).kl > 100 * TOLERANCE["bfloat16"].kl, (one, other)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_runtime_is_the_one_that_is_named(runtime: str, scores: Callable[[str], Scores]) -> None:
    """What is compared below is another program, not ours under another name."""
    assert str(scores(runtime)["version"]).startswith(RUNTIMES[runtime])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_converted_checkpoint_is_the_calibrators_model(
    runtime: str, case: str, dtype: str, reference: Scores, scores: Callable[[str], Scores]
) -> None:
    """Beyond L it predicts what the calibrator's model predicts, and not what plain RoPE does."""
    found = scores(runtime)[f"{case}.{dtype}"]
    assert same(agreement(reference[case], found), dtype), agreement(reference[case], found)
    assert agreement(reference["plain"], found).kl > 0.05


def test_transformers_5_reads_what_it_saves(reference: Scores, scores: Callable[[str], Scores]) -> None:
    """Loaded and saved again, the YaRN is in `rope_parameters` alone, and that is enough for transformers 5."""
    assert same(agreement(reference["yarn"], scores("transformers-5")["resaved.float32"]))


@pytest.mark.parametrize("runtime", ["transformers-4", "mlx"])
def test_others_lose_the_yarn_that_transformers_5_saves(
    runtime: str, reference: Scores, scores: Callable[[str], Scores]
) -> None:
    """Those that do not look at `rope_parameters` serve plain RoPE, without a word."""
    assert same(agreement(reference["plain"], scores(runtime)["resaved.float32"]))
