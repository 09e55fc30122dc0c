"""The rotary module of each config's own class, by the transformers that is on the path, 4 or 5.

    python rotate_transformers.py REQUEST.json RESULT.json

The request: name → config. The result, for each name: `inv_freq` and `attention_factor` as the module has them, and
`inv_freq_beyond` once it has rotated position 32,767; or null where the config does not load or the module cannot be
built.
"""

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAST = 32767


def rotary(config: dict[str, Any]) -> dict[str, Any] | None:
    """What the module computes, at the original length and far beyond it; None where it stops."""
    try:
        loaded = CONFIG_MAPPING[config["model_type"]].from_dict(config)
        module = importlib.import_module(type(loaded).__module__.replace("configuration_", "modeling_"))
        (kind,) = (
            value
            for name, value in vars(module).items()
            if name.endswith("RotaryEmbedding") and inspect.isclass(value) and value.__module__ == module.__name__
        )
        rope = kind(loaded)
        found = {"inv_freq": rope.inv_freq.tolist(), "attention_factor": float(rope.attention_scaling)}
        rope(torch.zeros(1), torch.tensor([[LAST]]))
    except (KeyError, RuntimeError, TypeError, ValueError):
        return None
    return found | {"inv_freq_beyond": rope.inv_freq.tolist()}


def main() -> None:
    """Answer the request."""
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(sys.argv[2]).write_text(json.dumps({name: rotary(config) for name, config in request.items()}), "utf-8")


if __name__ == "__main__":
    main()
