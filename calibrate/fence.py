"""A fence around a model: inside it rotates with other frequencies, and afterwards it is as it was, bit for bit."""

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from calibrate import attention
from calibrate.model import LoadedModel
from ropecli.checkpoint import sees_no_text
from ropecli.errors import Inconclusive
from ropecli.frequencies import Frequencies, frequencies
from ropecli.spec import Dynamic, Linear, Plain, RopeSpec, Yarn


def as_loaded(spec: RopeSpec, length: int | None = None) -> Frequencies:
    """`frequencies(spec, length)` with the rounding of a table that transformers computes from a config, in float32.

    In bfloat16 the last bit of a frequency moves a loss by some 1e-4 nats. With this table in the fence the loss is
    that of the checkpoint which `convert` writes.
    """
    match spec.scaling:
        case Dynamic() if length is not None and length <= spec.original_length:
            return as_loaded(replace(spec, scaling=Plain()))
        case Plain():
            kind: dict[str, Any] = {"rope_type": "default"}
        case Linear(factor):
            kind = {"rope_type": "linear", "factor": factor}
        case Yarn(factor, attention_factor, beta_fast, beta_slow, truncate):
            kind = {"rope_type": "yarn", "factor": factor, "attention_factor": attention_factor}
            kind |= {"beta_fast": beta_fast, "beta_slow": beta_slow, "truncate": truncate}
            kind |= {"original_max_position_embeddings": spec.original_length}
        case _:
            return frequencies(spec, length)
    config = transformers.LlamaConfig(
        hidden_size=spec.rotary_dim,
        head_dim=spec.rotary_dim,
        num_attention_heads=1,
        max_position_embeddings=spec.max_length,
        rope_parameters=kind | {"rope_theta": spec.rope_theta},
    )
    with torch.device("cpu"):
        rotary = LlamaRotaryEmbedding(config)
    return Frequencies(tuple(rotary.inv_freq.tolist()), float(rotary.attention_scaling))


def _rotary_modules(model: Any) -> list[Any]:
    """Modules that hold rotary tables of the text model: a buffer `inv_freq`, or one `<layer type>_inv_freq` each."""
    return [
        module
        for name, module in model.named_modules()
        if any(b == "inv_freq" or b.endswith("_inv_freq") for b, _ in module.named_buffers(recurse=False))
        and not sees_no_text(name)
    ]


def _slots(module: Any, layer_type: str) -> tuple[str, str] | None:
    """Names of the (table, multiplier) attributes of a module for a layer type, or None where it has no such table."""
    nested = f"{layer_type}_inv_freq"
    if hasattr(module, nested):
        return nested, f"{layer_type}_attention_scaling"
    return ("inv_freq", "attention_scaling") if hasattr(module, "inv_freq") else None


def _plain_forward(module: Any) -> Callable[..., Any]:
    """The module's forward without `torch.no_grad` and without the update of length-dependent kinds around it."""
    forward = type(module).forward
    while hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
    return types.MethodType(forward, module)


@contextlib.contextmanager
def rotating_with(
    model: Any, tables: Mapping[str, Frequencies] | Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> Iterator[None]:
    """Make the model rotate with the given tables inside the block; afterwards it is as it was, bit for bit.

    tables  layer type (or "default") → Frequencies, or → (inv_freq [pairs], attention factor []) as tensors, which
            may require gradients

    The tables stay what they are whatever the length of the sequence. Raises Inconclusive when the model keeps its
    rotary tables where this fence cannot reach them, or when their width differs.
    """
    undo: list[Callable[[], None]] = []
    found: set[str] = set()
    try:
        for module in _rotary_modules(model):
            here = [(name, slot) for name in tables if (slot := _slots(module, name)) is not None]
            for layer_type, (table, multiplier) in here:
                old = getattr(module, table)
                entry = tables[layer_type]
                if isinstance(entry, Frequencies):
                    inv_freq = torch.tensor(entry.inv_freq, dtype=torch.float64, device="cpu")
                    new = inv_freq.to(device=old.device, dtype=torch.float32)
                    scale: Any = entry.attention_factor
                else:
                    new, scale = entry[0].to(old.device), entry[1].to(old.device)
                if new.shape != old.shape:
                    raise Inconclusive(
                        f"the model's rotary table has {old.shape[-1]} pairs, the new one has {new.shape[-1]}",
                        where=type(module).__name__,
                    )
                undo.append(_setter(module, table, old))
                undo.append(_setter(module, multiplier, getattr(module, multiplier, 1.0)))
                module._buffers.pop(table, None)
                setattr(module, table, new)
                setattr(module, multiplier, scale)
                found.add(layer_type)
            if here:
                had = module.__dict__.get("forward")
                undo.append(_forward_restorer(module, had))
                module.forward = _plain_forward(module)
        missing = set(tables) - found
        if missing:
            raise Inconclusive(
                f"no rotary table for {', '.join(sorted(missing))} was found in {type(model).__name__}",
                hint="the architecture keeps its frequencies elsewhere; its RoPE cannot be calibrated",
            )
        yield
    finally:
        for action in reversed(undo):
            action()


def _setter(module: Any, name: str, value: Any) -> Callable[[], None]:
    def put() -> None:
        module.__dict__.pop(name, None)
        if isinstance(value, torch.Tensor):
            module.register_buffer(name, value, persistent=False)
        else:
            setattr(module, name, value)

    return put


def _forward_restorer(module: Any, had: Any) -> Callable[[], None]:
    def put() -> None:
        module.__dict__.pop("forward", None)
        if had is not None:
            module.forward = had

    return put


@contextlib.contextmanager
def attending(loaded: LoadedModel) -> Iterator[None]:
    """Inside the block transformers' sdpa is `attention.in_float32` where the model was loaded so; then as it was.

    It keeps its name: some architectures build their masks by it.
    """
    if not loaded.float32_attention:
        yield
        return
    plain = transformers.AttentionInterface()["sdpa"]
    transformers.AttentionInterface.register("sdpa", attention.in_float32(plain))
    try:
        yield
    finally:
        transformers.AttentionInterface.register("sdpa", plain)
