"""What the rules look at: the scaling objects of a config with their key paths, the lengths, and what it all means."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ropecli.dialects import hf
from ropecli.dialects.hf_keys import NAMES, ORIGINAL, Json
from ropecli.dialects.hf_scaling import SAME_TYPE
from ropecli.dialects.hf_types import TypeFacts, type_facts
from ropecli.errors import RopeError
from ropecli.findings.only_v5 import ONLY_IN_V5
from ropecli.spec import LARGEST, LayerRope

SCHEMAS = ("rope_scaling", "rope_parameters")
"""Version 4's key and version 5's; transformers 5.23 takes the first of them that is not empty, whole."""

LONGEST = "max_position_embeddings"


def number(value: object) -> float | None:
    """A finite JSON number as a float; None for anything else, and for what no formula can bear."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -LARGEST <= value <= LARGEST else None


def shown(value: object) -> str:
    """A value from a file, cut to a length that a message can bear."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.7g}"
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 48 else f"{text[:47]}…"


@dataclass(frozen=True, slots=True)
class Block:
    """One scaling object, of one kind of layer where they are nested.

    layer  the layer type that it is for; "" where it is flat
    data   its keys
    paths  the key paths of this object in each schema that has it, the one that transformers 5 reads first
    kind   the canonical name of its scaling; "" where it names none
    rope   what it means; None where the config could not be read
    """

    layer: str
    data: Json
    paths: tuple[str, ...]
    kind: str
    rope: LayerRope | None

    def at(self, key: str) -> str:
        """The key path of a key of this object, cut to a length that a message can bear."""
        return f"{self.paths[0]}.{key if len(key) <= 60 else key[:59] + '…'}"

    def set(self, values: Json) -> dict[str, Any]:
        """The fix that writes (None: removes) these keys, in both schemas where both have the object."""
        return {f"{path}.{key}": value for path in self.paths for key, value in values.items()}

    def says(self, *keys: str) -> str:
        """`path.key = value` of the keys that are present."""
        return ", ".join(f"{self.at(key)} = {shown(self.data[key])}" for key in keys if key in self.data)

    def number(self, key: str) -> float | None:
        """A number among the keys; None where it is missing, null or no number."""
        return number(self.data.get(key))


@dataclass(frozen=True, slots=True)
class Context:
    """A config as the rules see it.

    config     the whole config
    text       the language model's own object; empty for a file that is no Hugging Face config
    path       the keys that lead to it
    facts      what is known of its model type
    schema     the key of the scaling objects that transformers 5 reads; "" where there are none
    blocks     those objects
    ropes      what the config means; None where it could not be read
    tokenizer  tokenizer_config.json, where there is one
    """

    config: Json
    text: Json
    path: tuple[str, ...]
    facts: TypeFacts
    schema: str
    blocks: tuple[Block, ...]
    ropes: tuple[LayerRope, ...] | None
    tokenizer: Json | None

    def at(self, key: str) -> str:
        """The key path of a key of the language model's object."""
        return ".".join((*self.path, key))

    def of_kind(self, *kinds: str) -> Iterator[Block]:
        """The scaling objects of these kinds."""
        return (block for block in self.blocks if block.kind in kinds)

    @property
    def only_version_5(self) -> bool:
        """Whether transformers 4 never had this kind of model, or the wrapper around it."""
        outer = self.config.get("model_type")
        return self.facts.name in ONLY_IN_V5 or (isinstance(outer, str) and outer in ONLY_IN_V5)

    @property
    def longest(self) -> tuple[str, float] | None:
        """The key of the longest sequence and its value."""
        for key in NAMES["max_length"]:
            value = number(self.text.get(key))
            if value is not None and value >= 1:
                return key, value
        return None

    def original(self, block: Block) -> tuple[str, float] | None:
        """The key path of the original length and its value, in the order in which transformers 5 looks."""
        outside, inside = number(self.text.get(ORIGINAL)), block.number(ORIGINAL)
        if outside is not None and outside >= 1 and not block.layer:
            return self.at(ORIGINAL), outside
        return None if inside is None or inside < 1 else (block.at(ORIGINAL), inside)

    def read_with(self, changes: Json) -> tuple[LayerRope, ...] | None:
        """What the config would mean with other keys (None: without them); None where it could not be read."""
        text = {key: value for key, value in {**self.text, **changes}.items() if value is not None}
        try:
            return hf.read(_replaced(self.config, self.path, text))
        except (RopeError, OverflowError):  # the latter for an integer that no float can hold
            return None


def context(config: Json, ropes: tuple[LayerRope, ...] | None, tokenizer: Json | None) -> Context:
    """The view of a Hugging Face config; any JSON object will do."""
    text, path = hf.text_config(config)
    facts = type_facts(hf.model_type(config), alone=not path)
    found = {key: text[key] for key in SCHEMAS if isinstance(text.get(key), Mapping) and text[key]}
    prefix = "".join(f"{key}." for key in path)
    blocks = _blocks(found, prefix, facts, ropes)
    return Context(config, text, path, facts, next(iter(found), ""), blocks, ropes, tokenizer)


def layer_entries(scaling: Json) -> dict[str, Json]:
    """The objects of a nested scaling object by layer type; the flat object itself under ""."""
    nested = {name: entry for name, entry in scaling.items() if isinstance(entry, Mapping)}
    return nested or {"": scaling}


def kind_of(block: Json, facts: TypeFacts) -> str:
    """The canonical name of a scaling, as transformers 5.23 and the model's own class take it; "" where it has none."""
    unread = any(group.get("type_unread") for group in facts.data.get("groups", {}).values())
    name = block.get("rope_type", "" if unread else block.get("type", ""))
    if not isinstance(name, str):
        return ""
    renamed: Mapping[str, str] = facts.data.get("rope_types", {})
    kind = renamed.get(name, SAME_TYPE.get(name, name))
    return "ntk_alpha" if kind == "dynamic" and block.get("alpha") is not None else kind


def _blocks(
    found: Mapping[str, Json], prefix: str, facts: TypeFacts, ropes: tuple[LayerRope, ...] | None
) -> tuple[Block, ...]:
    if not found:
        return ()
    entries = {key: layer_entries(scaling) for key, scaling in found.items()}
    read = next(iter(entries.values()))
    return tuple(
        Block(
            layer,
            data,
            tuple(prefix + key + (f".{layer}" if layer else "") for key, others in entries.items() if layer in others),
            kind_of(data, facts),
            _meaning(layer, ropes),
        )
        for layer, data in read.items()
    )


def _meaning(layer: str, ropes: tuple[LayerRope, ...] | None) -> LayerRope | None:
    """The embedding that a scaling object describes: of its layers, else of those that are scaled at all."""
    named = [rope for rope in ropes or () if rope.name == layer]
    scaled = [rope for rope in ropes or () if rope.spec.rope_type != "default" and not layer]
    return next(iter(named or scaled or ([] if layer else ropes or ())), None)


def _replaced(config: Json, path: tuple[str, ...], text: Json) -> Json:
    """The config with another object at a path."""
    if not path:
        return text
    return {**config, path[0]: _replaced(config[path[0]], path[1:], text)}
