"""Next-token log-probabilities by MLX-LM on the CPU; request and result are those of `score_transformers.py`."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model


def log_probs(folder: str, ids: list[int], first: int, dtype: str) -> np.ndarray:
    """Of the token after each position from `first` on: [positions, vocabulary], natural logarithms."""
    model, _ = load_model(Path(folder))
    model.set_dtype(getattr(mx, dtype))
    logits = model(mx.array([ids]))[0, first:].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def main() -> None:
    """Answer the request."""
    mx.set_default_device(mx.cpu)
    # without it, each fused operation is compiled by the machine's C++ compiler
    mx.disable_compile()
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    result = {
        f"{name}.{dtype}": log_probs(folder, request["ids"], request["first"], dtype)
        for name, folder in request["checkpoints"].items()
        for dtype in request["dtypes"]
    }
    np.savez(sys.argv[2], version=version("mlx-lm"), **result)


if __name__ == "__main__":
    main()
