"""Next-token log-probabilities by the transformers that is on the path, 4 or 5.

    python score_transformers.py REQUEST.json RESULT.npz

The request: `ids`, the tokens of one window; `first`, the first position that is wanted; `checkpoints`, name → folder;
`dtypes`. The result: `version`, and for each `name.dtype` an array [positions, vocabulary] in float32.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers


def log_probs(folder: str, ids: list[int], first: int, dtype: str) -> np.ndarray:
    """Of the token after each position from `first` on: [positions, vocabulary], natural logarithms."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, first:]
        return torch.log_softmax(logits.double(), -1).float().numpy()


def main() -> None:
    """Answer the request."""
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    result = {
        f"{name}.{dtype}": log_probs(folder, request["ids"], request["first"], dtype)
        for name, folder in request["checkpoints"].items()
        for dtype in request["dtypes"]
    }
    np.savez(sys.argv[2], version=transformers.__version__, **result)


if __name__ == "__main__":
    main()
