"""The rotary module of each config's own class, by the transformers that is on the path, 4 or 5.

    python rotate_transformers.py REQUEST.json RESULT.json

The request: name → config. The result, for each name: `inv_freq` and `attention_factor` as the module has them, or null
where the config does not load or the module cannot be built.
"""

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING


def rotary(config: dict[str, Any]) -> dict[str, Any] | None:
    """What the module computes, at the original length; None where it stops."""
    try:
        loaded = CONFIG_MAPPING[config["model_type"]].from_dict(config)
        module = importlib.import_module(type(loaded).__module__.replace("configuration_", "modeling_"))
        (kind,) = (
            value
            for name, value in vars(module).items()
            if name.endswith("RotaryEmbedding") and inspect.isclass(value) and value.__module__ == module.__name__
        )
        rope = kind(loaded)
    except (KeyError, RuntimeError, TypeError, ValueError):
        return None
    return {"inv_freq": rope.inv_freq.tolist(), "attention_factor": float(rope.attention_scaling)}


def main() -> None:
    """Answer the request."""
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(sys.argv[2]).write_text(json.dumps({name: rotary(config) for name, config in request.items()}), "utf-8")


if __name__ == "__main__":
    main()
