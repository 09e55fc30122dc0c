"""The keys as transformers 5 standardises them, for itself and for the runtimes that load configs through it.

Source: transformers 5.24.0 `RotaryEmbeddingConfigMixin.convert_rope_params_to_dict` and `standardize_rope_params`, and
the classes that override them (Phi-3, Gemma-3, Olmo-3, Qwen2-VL).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.runtimes.keys import block, local_layer, max_positions, nested, number, rope_type
from ropecli.runtimes.reading import Keys, Refused, Request

NEEDS_ORIGINAL = ("yarn", "llama3", "longrope")
"""Types whose dict gets an original length: from the top level where the dict is flat, else M."""

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""Keys without which the config does not load."""

PHI3 = {"phi3", "phi3_v", "phi4_multimodal"}
"""Model types whose class has an original length of its own, and calls longrope `su` or `yarn` too."""

_PHI3_ORIGINAL = 4096
_MROPE = {"qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"}


@dataclass(frozen=True, slots=True)
class Standardised:
    """One kind of layer's rotary parameters after transformers 5 has filled them in.

    parameters  `rope_type`, `rope_theta`, and for yarn, llama3 and longrope `original_max_position_embeddings`, always
    outer       the object around them where it is nested by layer type, else the same object
    entries     the parameters of every kind of layer in the config, this one's first
    notes       which of two spellings won
    """

    parameters: Keys
    outer: Keys
    entries: tuple[Keys, ...]
    notes: tuple[str, ...]

    @property
    def rope_type(self) -> str:
        """The scaling's name as transformers passes it on, known or not."""
        return str(self.parameters["rope_type"])


def standardised(
    request: Request, *, rename: Callable[[Keys], str] | None = None, top_level: bool = True
) -> Standardised:
    """The rotary parameters of the requested kind of layer. Raises Refused.

    rename     how a runtime calls the type of some parameters before it standardises them once more
    top_level  whether a top-level original length replaces the one in a flat dict, as it does when a model of
               transformers asks for its frequencies
    """
    complete = partial(_complete, request=request, rename=rename or _own_name, top_level=top_level)
    scaling, parameters = block(request.config, "rope_scaling"), block(request.config, "rope_parameters")
    notes = _conflict(scaling, parameters)
    for outer in (scaling, parameters):
        entry = nested(outer, request.layer_type)
        if entry is not None:
            if outer is parameters and request.layer_type == "full_attention":
                entry |= scaling
            others = [value for name, value in outer.items() if name != request.layer_type]
            entries = [complete(value) for value in others if isinstance(value, Mapping)]
            mine = complete(entry)
            return Standardised(mine, outer, (mine, *entries), notes)
        if request.layer_type in outer:
            raise Refused(f"{request.layer_type} has no rotary embedding")
    flat = scaling or parameters
    if local_layer(request):
        local = {"rope_type": "default", "rope_theta": request.rope.spec.rope_theta}
        return Standardised(local, {}, (local, complete(flat)) if flat else (local,), notes)
    flat = flat or request.class_defaults.get("rope_parameters", {})
    mine = complete(flat)
    return Standardised(mine, mine if request.layer_type is None else {}, (mine,), notes)


def _conflict(scaling: Keys, parameters: Keys) -> tuple[str, ...]:
    """A note where both spellings are there with different content."""
    if not scaling or not parameters:
        return ()
    names = {*scaling, *parameters} - {"rope_theta", "type", "rope_type", "partial_rotary_factor"}
    same = all(scaling.get(name) == parameters.get(name) for name in names)
    return () if same else ("rope_scaling replaces rope_parameters",)


def check_required(entry: Keys, kind: str) -> None:
    """As transformers validates a config when it loads it, from version 4 on. Raises Refused."""
    for name in REQUIRED.get(kind, ()):
        if name not in entry:
            raise Refused(f"KeyError: {kind} needs {name}")


def _own_name(entry: Keys) -> str:
    return rope_type(entry, "rope_type", "type")


def _complete(given: Keys, *, request: Request, rename: Callable[[Keys], str], top_level: bool) -> dict[str, Any]:
    """A copy of an entry with type, base and original length filled in."""
    entry = dict(given)
    entry.setdefault("rope_theta", _theta(request))
    if request.model_type in PHI3 and _own_name(entry) == "su" and ORIGINAL not in entry:
        # it becomes longrope after the original length has been filled in for the types that are called so by then
        raise Refused(f"KeyError: su, which becomes longrope, needs {ORIGINAL} beside it")
    entry["rope_type"] = rename(entry)
    if request.model_type in PHI3 and entry["rope_type"] in {"su", "yarn"}:
        entry["rope_type"] = "longrope"
    if request.model_type in _MROPE and entry["rope_type"] == "mrope":
        entry["rope_type"] = "default"
    check_required(entry, entry["rope_type"])
    if entry["rope_type"] in NEEDS_ORIGINAL:
        _fill_original(entry, request, top_level=top_level)
    return entry


def _fill_original(entry: dict[str, Any], request: Request, *, top_level: bool) -> None:
    flat = request.layer_type is None
    if flat and top_level and ORIGINAL in request.config:
        entry[ORIGINAL] = request.config[ORIGINAL]
    elif flat and request.model_type in PHI3:
        entry[ORIGINAL] = _PHI3_ORIGINAL
    else:
        entry.setdefault(ORIGINAL, max_positions(request))


def _theta(request: Request) -> float:
    top = request.config.get("rope_theta")
    unread = request.rope.sources.get("rope_theta", "").startswith("default of")  # as GPT-NeoX's class leaves it
    if request.layer_type is None and isinstance(top, int | float) and not unread:
        return number(request.config, "rope_theta")
    return request.rope.spec.rope_theta
