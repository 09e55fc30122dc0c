"""Values of a config's objects as the Python runtimes take them, where a wrong type stops them, and notes on the rest.

`Refused` stands for the KeyError, TypeError or ValueError that the runtime itself would raise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ropecli.runtimes.reading import Keys, Refused, Request
from ropecli.spec import Plain

LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "n_ctx",
    "max_sequence_length",
    "model_max_length",
)
"""Keys that hold the longest sequence, the most usual first."""

LOCAL_THETAS = ("rope_local_base_freq", "local_rope_theta", "swa_rope_theta", "rope_local_theta")
"""Top-level keys that hold the base of sliding-window layers."""

GLOBAL_THETAS = ("global_rope_theta",)
"""Top-level keys that hold the base of the other layers where `rope_theta` does not (ModernBERT)."""

OWN_LOCAL_THETA = ("gemma3", "t5gemma2")
"""How model types begin whose sliding-window layers never take the base of the others."""

SCALED_AS_STATED = ("minicpm3",)
"""Model types with latent attention whose classes in vLLM and SGLang do not take every scaling for DeepSeek's YaRN."""

_NEVER_NOTED = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved"}


def block(config: Keys, name: str) -> dict[str, Any]:
    """A copy of an object of the config; empty where it is missing, null or empty.

    Raises Refused where it is anything else.
    """
    value = config.get(name)
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise Refused(f"{name} is {shown(value)}, not an object")
    return dict(value)


def nested(parameters: Keys, layer_type: str | None) -> dict[str, Any] | None:
    """A copy of the entry of a layer type, None where the object is not nested by layer type."""
    entry = parameters.get(layer_type) if layer_type is not None else None
    return dict(entry) if isinstance(entry, Mapping) else None


def local_layer(request: Request) -> bool:
    """Whether the model's own class leaves this kind of layer unscaled, as Gemma-3 does with its sliding layers."""
    return request.layer_type is not None and isinstance(request.rope.spec.scaling, Plain)


def number(parameters: Keys, name: str, default: float | None = None) -> float:
    """A number; `default` where the key is missing. Null is not missing: it stops Python arithmetic.

    Raises Refused.
    """
    if name not in parameters and default is not None:
        return float(default)
    if name not in parameters:
        raise Refused(f"{name} is missing")
    value = parameters[name]
    if not isinstance(value, int | float):
        raise Refused(f"{name} is {shown(value)}, not a number")
    return float(value)


def optional(parameters: Keys, name: str) -> float | None:
    """A number, or None where the key is missing or null. Raises Refused."""
    return None if parameters.get(name) is None else number(parameters, name)


def length(parameters: Keys, name: str, default: float | None = None) -> int:
    """A whole number of tokens, like `number`. Raises Refused."""
    value = number(parameters, name, default)
    if not value.is_integer():
        raise Refused(f"{name} is {value:g}, not a whole number")
    return int(value)


def numbers(parameters: Keys, name: str) -> tuple[float, ...]:
    """A list of numbers. Raises Refused."""
    value = parameters.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Refused(f"{name} is {shown(value)}, not a list")
    return tuple(number({name: item}, name) for item in value)


def rope_type(parameters: Keys, *names: str) -> str:
    """The scaling's name under the first of these keys that is present, "default" where none is. Raises Refused."""
    for name in names:
        if name in parameters:
            value = parameters[name]
            if not isinstance(value, str):
                raise Refused(f"{name} is {shown(value)}, not a name")
            return value
    return "default"


def max_positions(request: Request, names: Sequence[str] = LENGTHS, default: int | None = None) -> int:
    """The longest sequence that the config states, M; else `default`, else the class's own, else what the config means.

    Raises Refused.
    """
    for name in names:
        if request.config.get(name) is not None:
            return length(request.config, name)
    meant = request.class_defaults.get("max_position_embeddings", request.rope.spec.max_length)
    return int(meant) if default is None else default


def outer_theta(request: Request) -> float:
    """The base for a runtime that knows neither `rope_parameters` nor a base inside `rope_scaling`.

    A key of its own, else the default of the model's class. Raises Refused.
    """
    source = request.rope.sources.get("rope_theta", "")
    if "rope_parameters" not in source and "rope_scaling" not in source:
        return request.rope.spec.rope_theta
    sliding = request.layer_type == "sliding_attention"
    for name in (*(LOCAL_THETAS if sliding else GLOBAL_THETAS), "rope_theta"):
        if sliding and name == "rope_theta" and request.model_type.startswith(OWN_LOCAL_THETA):
            return number(request.class_defaults, "rope_theta", request.default_rope_theta)
        if request.config.get(name) is not None:
            return number(request.config, name)
    return request.default_rope_theta


def ignored(parameters: Keys, *read: str) -> tuple[str, ...]:
    """A note for each key that none reads."""
    return tuple(f"{name} ignored" for name in parameters if name not in read and name not in _NEVER_NOTED)


def shown(value: object) -> str:
    """A value from a file, cut to a length that a note can bear."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
