"""What the tiny Llama is converted to here, and how two models' next-token distributions are compared."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ropecli.checkpoint import read_checkpoint
from ropecli.conversion import extended
from ropecli.spec import Longrope, Yarn

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "examples" / "tiny"
TEXT = ROOT / "examples" / "text" / "heldout" / "1819-Monroe-1.txt"

FACTOR = 4.0
WINDOW = 1024
"""Tokens of the window: the extended length, four times the original one."""

BETA_FAST, BETA_SLOW, YARN_M = 7.2451, 0.40745, 1.056
"""YaRN with the corners (3, 8), where the defaults give (0, 7), and another temperature than the default 1.1386."""

DIVISORS = (1.0, 1.0, 1.05, 1.1, 1.25, 1.5, 1.9, 2.4, 2.9, 3.3, 3.6, 3.8, 4.0, 4.1, 4.2, 4.3)
LONGROPE_M = 1.06

OPTIONS = {
    "default": ("--rope-type", "yarn", "--factor", "4"),
    "yarn": (
        *("--rope-type", "yarn", "--factor", "4", "--attention-factor", str(YARN_M)),
        *("--beta-fast", str(BETA_FAST), "--beta-slow", str(BETA_SLOW)),
    ),
    "longrope": (
        *("--rope-type", "longrope", "--factor", "4", "--attention-factor", str(LONGROPE_M)),
        *("--factors", ",".join(map(str, DIVISORS))),
    ),
}
"""Case → options of `ropecli convert`."""

PLAIN = read_checkpoint(str(TINY)).ropes[0].spec

INTENT = {
    "plain": PLAIN,
    "default": extended(PLAIN, Yarn.default(FACTOR)),
    "yarn": extended(PLAIN, Yarn(FACTOR, YARN_M, BETA_FAST, BETA_SLOW)),
    "longrope": extended(PLAIN, Longrope(FACTOR, DIVISORS, DIVISORS, LONGROPE_M, LONGROPE_M)),
}
"""Case → the embedding that it means; `default` is YaRN as every runtime defaults it."""


def convert(source: Path, out: Path, case: str) -> None:
    """Run `ropecli convert` with the options of a case."""
    command = [sys.executable, "-m", "ropecli", "convert", str(source), "-o", str(out), "-q", *OPTIONS[case]]
    subprocess.run(command, check=True)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Between two models on the same positions: mean KL divergence, nats; share of positions with one favourite."""

    kl: float
    top1: float


TOLERANCE = {"float32": Agreement(1e-5, 0.995), "bfloat16": Agreement(1e-3, 0.97)}
"""The worst that still counts as the same model. bfloat16 has 8 bits of mantissa, in weights and activations alike."""


def agreement(reference: np.ndarray, found: np.ndarray) -> Agreement:
    """Of log-probabilities [positions, vocabulary]; KL(reference ‖ found)."""
    expected, got = _normalised(reference), _normalised(found)
    assert expected.shape == got.shape
    divergence = (np.exp(expected) * (expected - got)).sum(-1)
    return Agreement(float(divergence.mean()), float((expected.argmax(-1) == got.argmax(-1)).mean()))


def _normalised(log_probs: np.ndarray) -> np.ndarray:
    """In float64; sums of probabilities in float32 are off by some 1e-6, as much as the tolerance."""
    exact = log_probs.astype(np.float64)
    total = np.log(np.exp(exact).sum(-1, keepdims=True))
    assert np.abs(total).max() < 1e-3, "not the logarithms of the probabilities of a whole vocabulary"
    return exact - total


def same(found: Agreement, dtype: str = "float32") -> bool:
    """Whether two models are the same within the tolerance of the less exact one's dtype."""
    return found.kl < TOLERANCE[dtype].kl and found.top1 >= TOLERANCE[dtype].top1
