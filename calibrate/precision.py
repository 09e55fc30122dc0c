"""The dtype that a model is computed in on a CPU: its own, unless this processor is far slower in it than in float32.

Float16 has no fast matrix products on most processors, bfloat16 none on older ones; torch then takes several times as
long as in float32, which holds every number of both. What decides is measured, not looked up: the instructions that a
processor has do not tell which of them torch uses.
"""

import functools
import os
import time

import torch

MARGIN = 1.5
"""So many times slower than float32 is far slower. Processors lie well to both sides: each answers alike each time."""

TOKENS, WIDTH, TIMES = 512, 1024, 8
"""The product that is timed: tokens × width by width × width. The quickest of so many counts."""

HALF = (torch.bfloat16, torch.float16)

SHARE_OF_MEMORY = 0.5
"""Of the machine's memory, that weights in float32 may take."""


def _seconds(dtype: torch.dtype) -> float:
    # processor time: other work on the machine does not count
    hidden, weight = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    taken = []
    for _ in range(TIMES):
        began = time.process_time()
        torch.nn.functional.linear(hidden, weight)
        taken.append(time.process_time() - began)
    return min(taken)


@functools.cache
def times_slower(dtype: torch.dtype) -> float:
    """Processor time of a matrix product in a dtype, over that in float32; measured once a process."""
    return _seconds(dtype) / _seconds(torch.float32)


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def float32_pays(own: torch.dtype, parameters: int) -> bool:
    """Whether a model whose weights are of a dtype is better computed in float32 on this processor.

    Never where so many parameters would take more than `SHARE_OF_MEMORY` as float32.
    """
    fits = 4 * parameters <= SHARE_OF_MEMORY * _memory()
    return own in HALF and fits and times_slower(own) > MARGIN
