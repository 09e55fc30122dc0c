"""The keys as transformers 5 standardises them, for itself and for the runtimes that load configs through it.

Source: transformers 5.23.0 `RotaryEmbeddingConfigMixin.convert_rope_params_to_dict` and `standardize_rope_params`, and
the classes that override them (Phi-3, Gemma-3, Olmo-3, Qwen2-VL).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ropecli.runtimes.keys import block, local_layer, max_positions, nested, number, rope_type
from ropecli.runtimes.reading import Keys, Refused, Request

NEEDS_ORIGINAL = ("yarn", "llama3", "longrope")
"""Types whose dict gets an original length: from the top level where the dict is flat, else M."""

_PHI3 = ("phi3", "phi3_v", "phi4_multimodal")
_PHI3_ORIGINAL = 4096


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
        return rope_type(self.parameters, "rope_type")


def standardised(request: Request) -> Standardised:
    """The rotary parameters of the requested kind of layer. Raises Refused."""
    scaling, parameters = block(request.config, "rope_scaling"), block(request.config, "rope_parameters")
    notes = _conflict(scaling, parameters)
    for outer in (scaling, parameters):
        entry = nested(outer, request.layer_type)
        if entry is not None:
            if outer is parameters and request.layer_type == "full_attention":
                entry |= scaling
            others = [value for name, value in outer.items() if name != request.layer_type]
            entries = [_complete(value, request) for value in others if isinstance(value, Mapping)]
            mine = _complete(entry, request)
            return Standardised(mine, outer, (mine, *entries), notes)
        if request.layer_type in outer:
            raise Refused(f"{request.layer_type} has no rotary embedding")
    flat = scaling or parameters
    if local_layer(request):
        local = {"rope_type": "default", "rope_theta": request.rope.spec.rope_theta}
        return Standardised(local, {}, (local, _complete(flat, request)) if flat else (local,), notes)
    mine = _complete(flat, request)
    return Standardised(mine, mine if request.layer_type is None else {}, (mine,), notes)


def _conflict(scaling: Keys, parameters: Keys) -> tuple[str, ...]:
    """A note where both spellings are there with different content."""
    if not scaling or not parameters:
        return ()
    names = {*scaling, *parameters} - {"rope_theta", "type", "rope_type", "partial_rotary_factor"}
    same = all(scaling.get(name) == parameters.get(name) for name in names)
    return () if same else ("rope_scaling replaces rope_parameters",)


def _complete(given: Keys, request: Request) -> dict[str, Any]:
    """A copy of an entry with type, base and original length filled in."""
    entry = dict(given)
    entry.setdefault("rope_theta", _theta(request))
    entry.setdefault("rope_type", entry.get("type", "default"))
    if request.model_type in _PHI3 and entry["rope_type"] in {"su", "yarn"}:
        entry["rope_type"] = "longrope"
    if entry["rope_type"] == "mrope" and "mrope_section" in entry:
        entry["rope_type"] = "default"
    if entry["rope_type"] in NEEDS_ORIGINAL:
        key = "original_max_position_embeddings"
        if request.layer_type is None and key in request.config:
            entry[key] = request.config[key]
        elif request.layer_type is None and request.model_type in _PHI3:
            entry[key] = _PHI3_ORIGINAL
        else:
            entry.setdefault(key, max_positions(request))
    return entry


def _theta(request: Request) -> float:
    top = request.config.get("rope_theta")
    if request.layer_type is None and isinstance(top, int | float):
        return number(request.config, "rope_theta")
    return request.rope.spec.rope_theta
