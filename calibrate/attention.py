"""Causal attention of a bfloat16 model on a CPU, in float32: quicker there than in bfloat16, and more exact.

torch's `scaled_dot_product_attention` for a CPU goes through a window in tiles. In bfloat16 its matrix products go to
MKL, which is slow on processors that have AVX512-BF16 and no AMX (AMD's Zen 4 and 5); in float32 they can go to oneDNN.
There oneDNN may round their inputs to bfloat16 (`fp32_precision`), which changes nothing for queries, keys and values
that were bfloat16, and does to the weights of the softmax what torch does to them in bfloat16 anyway. Sums are float32.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

ONEDNN: Any = torch.backends.mkldnn  # torch's older name for it

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""As transformers calls it: (module, query, key, value, attention_mask, dropout=, scaling=, is_causal=, …)."""

LONGER_THAN = 1024
"""Tokens. From 512 on it pays, but little of a pass is attention there; shorter windows stay with transformers."""


def pays_here() -> bool:
    """Whether this processor is of the kind on which float32 is the quicker way."""
    able = torch.cpu.get_capabilities()
    return bool(ONEDNN.is_available() and able.get("avx512_bf16") and not able.get("amx_bf16"))


@contextlib.contextmanager
def _products_by_onednn() -> Iterator[None]:
    """Inside the block float32 matrix products on the CPU go to oneDNN, with inputs that may be rounded to bfloat16."""
    had = ONEDNN.matmul.fp32_precision
    ONEDNN.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        ONEDNN.matmul.fp32_precision = had


def _is_plain(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: dict[str, Any]) -> bool:
    """Whether it is causal attention over a whole long window and nothing else, without gradients."""
    causal = how.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    inputs = (query, key, value)
    return (
        causal is True
        and query.shape[2] == key.shape[2] > LONGER_THAN
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and all(x.dtype == torch.bfloat16 and x.device.type == "cpu" for x in inputs)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))
        and not how.get("dropout")
        and how.get("softcap") is None
        # sinks and biases of a layer would meet float32 scores
        and not any(isinstance(x, torch.Tensor) and x.is_floating_point() for x in how.values())
    )


def in_float32(plain: Attention) -> Attention:
    """`plain`, transformers' function for sdpa, on float32 inputs where that is quicker; else as it is, bit for bit.

    The function returned takes query [batch, heads, length, head_dim], key and value [batch, key heads, length,
    head_dim], all bfloat16, and gives bfloat16 [batch, length, heads, head_dim]. Anything but causal attention over a
    whole window longer than `LONGER_THAN` without gradients goes to `plain` unchanged: masks (so sliding windows),
    dropout, biases, other dtypes and devices, queries and keys of different lengths.
    """

    def forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **how: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if attention_mask is not None or not _is_plain(module, query, key, value, how):
            return plain(module, query, key, value, attention_mask, **how)
        with _products_by_onednn():
            output, weights = plain(module, query.float(), key.float(), value.float(), None, **how)
        return output.to(query.dtype), weights

    return forward
