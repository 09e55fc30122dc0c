"""How far what a runtime computes is from what a config means."""

from ropecli.frequencies import TOLERANCE, Frequencies
from ropecli.runtimes.reading import Reading

ATTENTION_FACTOR_TOLERANCE = 1e-4
"""Largest difference of the attention factor that still agrees; a longrope list carries it to 4e-5."""


def compare(reading: Reading, intent: Frequencies) -> tuple[float | None, bool]:
    """The largest relative difference over the rotary pairs, and whether the reading agrees with what is meant.

    A pair that is meant to stand still (frequency 0) is compared absolutely. The difference is None where the runtime
    stops or turns another number of pairs.
    """
    if reading.inv_freq is None or reading.attention_factor is None:
        return None, False
    if len(reading.inv_freq) != len(intent.inv_freq):
        return None, False
    pairs = zip(reading.inv_freq, intent.inv_freq, strict=True)
    difference = max((abs(found - meant) / (abs(meant) or 1.0) for found, meant in pairs), default=0.0)
    temperature = abs(reading.attention_factor - intent.attention_factor)
    return difference, difference <= TOLERANCE and temperature <= ATTENTION_FACTOR_TOLERANCE
