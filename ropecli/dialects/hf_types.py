"""What transformers itself knows about a `model_type`: the defaults of its class, and how its code rotates.

The facts are data: `model_types.json`, made from the installed transformers by `tests/make_model_types.py`.

    types         model_type → its defaults as config keys, and the facts below
      layout      "interleaved" where the code rotates neighbours; half-split elsewhere
      whole_head  the code rotates the whole head whatever `partial_rotary_factor` says, unless it is scaled
      reads       of the keys in `hf_keys.ELSEWHERE`, those that this type reads
      unread      keys that nearly every type reads and this one does not
      groups      its default is nested: layer type → default dict, fallback θ, the keys that set θ, whether a flat
                  `rope_scaling` lands there, and whether its `type` is then not read (`rope_type` is)
      rope_layers the layer types that rotate, where others do not
      attention_expand  how many times as wide as the hidden state all heads together are, where not once
      rope_if     a key and the value it must have for the model to rotate at all
      rope_types  a `rope_type` that means another one in this model
    wrappers      model_type of a multimodal config → the model type of its language model, and other defaults for it
    without_rope  model types with no rotary embedding in their language model
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ropecli.dialects.hf_keys import ELSEWHERE, Json, Place

ROOM_FOR_ANSWERS: Mapping[str, tuple[int, int]] = dict.fromkeys(("qwen3", "qwen3_moe", "qwen3moe"), (40_960, 32_768))
"""Model type, or a GGUF's architecture → a `max_position_embeddings` of its checkpoints, and the shorter length that
they were trained for.

Source: the cards of Qwen3-8B and its sisters: 32,768 tokens natively, YaRN from there, 40,960 in the file.
"""


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """A model type's entry in the data; empty for a type that is not there."""

    name: str
    known: bool
    data: Json

    @property
    def defaults(self) -> Place:
        """The defaults of the class, to be searched like a config."""
        return Place(self.data, origin=f"default of model_type {self.name}")

    @property
    def unread(self) -> frozenset[str]:
        """Keys that mean something elsewhere, and that this model type does not read; none for an unknown type."""
        foreign = ELSEWHERE.difference(self.data.get("reads", ())) if self.known else ()
        return frozenset((*foreign, *self.data.get("unread", ())))


@cache
def _data() -> Mapping[str, Any]:
    data: Mapping[str, Any] = json.loads(Path(__file__).with_name("model_types.json").read_bytes())
    return data


def type_facts(model_type: str, *, alone: bool) -> TypeFacts:
    """The facts for a language model's type; for a multimodal type, those of the language model that it holds.

    `alone`: the config has no inner object, so that what the multimodal class defaults for it holds too.
    """
    types, wrappers = _data()["types"], _data()["wrappers"]
    if model_type in types:
        return TypeFacts(model_type, known=True, data=types[model_type])
    if model_type in wrappers:
        inner = wrappers[model_type]["model_type"]
        own = wrappers[model_type] if alone else {}
        return TypeFacts(inner, known=True, data={**types[inner], **own})
    return TypeFacts(model_type, known=False, data={})


def without_rope(model_type: str) -> bool:
    """Whether transformers has this model type and it has no rotary embedding."""
    return model_type in _data()["without_rope"]


def trained_for(model_type: str, longest: float) -> int | None:
    """The trained length in tokens, where it is known that the config states more; None elsewhere."""
    stated, trained = ROOM_FOR_ANSWERS.get(model_type, (None, None))
    return trained if stated == longest else None
