"""The kinds of layers of a Hugging Face model that rotate alike, and where each finds its scaling, base and widths.

A config says it in one of four ways: one flat object for all; an object for each layer type; older keys, one for each
layer type's base (`rope_local_base_freq`, …); or lists with one value a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropecli.dialects.hf_keys import PER_LAYER, SCALING_OBJECTS, Found, Json, Place
from ropecli.dialects.hf_layers import Layers, read_layers, window
from ropecli.dialects.hf_types import TypeFacts
from ropecli.errors import BadParameter

OLDER_KEYS: Mapping[str, tuple[str, str]] = {
    "rope_local_base_freq": ("full_attention", "sliding_attention"),
    "local_rope_theta": ("full_attention", "sliding_attention"),
    "swa_rope_theta": ("full_attention", "sliding_attention"),
    "rope_local_theta": ("full_attention", "sliding_attention"),  # PLaMo-3
}
"""For model types that are not known: a key with a base → the layers that are scaled, and those that it is for."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share one rotary embedding.

    layers      how many they are, and the key that says so
    indices     which they are, counted from 0; empty where the config does not tell the kinds apart
    rope, text  where the embedding is described (see `hf_keys.Reader`)
    theta_keys  the model's keys that hold the base where the scaling object has none
    outer       where there are several scaling objects, what is around them: transformers 5.23 reads `truncate` there
    """

    name: str
    layers: Found
    indices: tuple[int, ...]
    rope: tuple[Place, ...]
    text: tuple[Place, ...]
    theta_keys: tuple[str, ...] = ("rope_theta",)
    theta_default: Found | None = None
    outer: Place | None = None
    sliding_window: int | None = None


@dataclass(frozen=True, slots=True)
class _Model:
    """What all groups have in common: the model's keys, then its defaults; its layers; its scaling object."""

    chain: tuple[Place, ...]
    facts: TypeFacts
    layers: Layers
    scaling: Place

    @property
    def text(self) -> Place:
        """The model's own keys."""
        return self.chain[0]

    def default(self, data: Json) -> Place:
        """Data of the model type, to be searched like a scaling object."""
        return Place(data, self.scaling.path, self.facts.defaults.origin)


def groups(text: Place, facts: TypeFacts) -> list[Group]:
    """The kinds of layers that rotate; empty where none does.

    Raises BadParameter with the key path as `where`.
    """
    if _does_not_rotate(text, facts):
        return []
    chain = (text, facts.defaults)
    model = _Model(chain, facts, read_layers(chain, facts), _scaling_object(chain))
    named = [name for name, value in model.scaling.data.items() if isinstance(value, Mapping)]
    if named:
        return _by_layer_type(model, named)
    known: Mapping[str, Json] = facts.data.get("groups", {}) if facts.known else _older_groups(text)
    if known and (not model.scaling.data or any(own.get("scaled") for own in known.values())):
        return _by_older_keys(model, known)
    return _flat(model)


def _does_not_rotate(text: Place, facts: TypeFacts) -> bool:
    """ALiBi, another position embedding, or a switch that is off."""
    keys = text.data
    if keys.get("alibi") is True or keys.get("no_rope") is True:
        return True
    if keys.get("use_rope") is False or keys.get("rope") is False:
        return True
    attention = keys.get("attn_config")
    if isinstance(attention, Mapping) and (attention.get("alibi") is True or attention.get("rope") is False):
        return True
    if "rope_if" in facts.data:
        return any(keys.get(key) != value for key, value in facts.data["rope_if"].items())
    kind = keys.get("position_embedding_type")
    return not facts.known and isinstance(kind, str) and not kind.startswith(("rope", "rotary"))


def _scaling_object(chain: tuple[Place, ...]) -> Place:
    """The scaling object; the config itself where its scaling keys stand at the top (Grok)."""
    for place in chain:
        for key in SCALING_OBJECTS:
            found = place.find(key)
            meant = key.startswith("rope_") or isinstance(found and found.value, Mapping)
            if found is not None and found.value and meant:
                return place.inner(key)
        if not place.origin and isinstance(place.data.get("rope_type"), str):
            return place
    return Place({}, chain[0].key("rope_parameters"))


def _older_groups(text: Place) -> Mapping[str, Json]:
    """The groups that an older key means in a model type that is not known."""
    for key, (scaled, own) in OLDER_KEYS.items():
        if text.find(key) is not None:
            return {
                scaled: {"theta_keys": ["global_rope_theta", "rope_theta"], "scaled": True},
                own: {"theta_keys": [key]},
            }
    return {}


def _by_layer_type(model: _Model, names: Sequence[str]) -> list[Group]:
    """An object for each layer type, or for each label that stands for some of them."""
    known: Mapping[str, Json] = model.facts.data.get("groups", {})
    labels = {name: known.get(name, {}).get("layer_types", [name]) for name in names}
    layers = model.layers
    if set(layers.kinds).isdisjoint(kind for kinds in labels.values() for kind in kinds):
        layers = layers.untyped()
    return [
        _group(model, name, layers, indices, (model.scaling.inner(name),), known.get(name, {}), outer=model.scaling)
        for name in names
        if (indices := layers.of(labels[name]))
    ]


def _by_older_keys(model: _Model, known: Mapping[str, Json]) -> list[Group]:
    """A flat object, or none, in a model whose layer types differ: it lands on some of them."""
    flat = model.scaling
    ignored = not flat.data or (model.facts.data.get("flat_ignored") and flat.path.endswith("rope_parameters"))
    result = []
    for name, own in known.items():
        rope: tuple[Place, ...] = (model.default(own.get("rope", {})),)
        if own.get("scaled") and not ignored:
            read = {key: value for key, value in flat.data.items() if key != "type" or not own.get("type_unread")}
            rope = (Place(read, flat.path, flat.origin), model.default(own.get("scaled_defaults", {})))
        indices = model.layers.of(own.get("layer_types", [name]))
        if indices:
            result.append(_group(model, name, model.layers, indices, rope, own, outer=Place({}, flat.path)))
    return result


def _group(
    model: _Model, name: str, layers: Layers, indices: Sequence[int], rope: tuple[Place, ...], own: Json, outer: Place
) -> Group:
    default = own.get("rope_theta")
    return Group(
        name,
        layers.counted(indices),
        tuple(indices) if layers.told else (),
        rope,
        (*_own_places(model, name, indices[0], own), *model.chain),
        theta_keys=tuple(own.get("theta_keys", ("rope_theta",))),
        theta_default=None if default is None else Found(default, model.facts.defaults.origin),
        outer=outer,
        sliding_window=window(model.chain) if "sliding" in name else None,
    )


def _own_places(model: _Model, name: str, first: int, own: Json) -> list[Place]:
    """What the config or the class says of these layers alone: `per_layer_config`, `global_head_dim`, lists."""
    result = []
    per_layer = model.text.inner("per_layer_config")
    for key, entry in per_layer.data.items():
        if key.isdecimal() and int(key) == first and isinstance(entry, Mapping):
            result.append(Place(entry, per_layer.key(key)))
    width = model.text.find("global_head_dim") if name == "full_attention" else None
    if width is not None:
        result.append(Place({"head_dim": width.value}, origin=width.source))
    elif "head_dim" in own and not per_layer.data:
        result.append(model.default({"head_dim": own["head_dim"]}))
    return result + _from_lists(model.text, first)


def _from_lists(text: Place, index: int) -> list[Place]:
    """The values of one layer, from the lists that have one for each."""
    lists = {key: found for key in PER_LAYER if (found := text.find(key)) is not None and isinstance(found.value, list)}
    return [Place({key: _item(found, index)}, origin=f"{found.source}[{index}]") for key, found in lists.items()]


def _item(found: Found, index: int) -> Any:
    if index >= len(found.value):
        raise BadParameter(f"expected a value for layer {index}, found {len(found.value)} values", where=found.source)
    return found.value[index]


def _flat(model: _Model) -> list[Group]:
    """One group; several where lists give layers different values, named by layer type where that tells them apart."""
    split: dict[str, list[int]] = {}
    for i, rotates in enumerate(model.layers.rotates):
        if rotates:
            values = [list(place.data.values()) for place in _from_lists(model.text, i)]
            split.setdefault(repr(values), []).append(i)
    kinds = [{model.layers.kinds[i] for i in indices} for indices in split.values()]
    return [
        Group(
            _flat_name(indices[0], kinds, n),
            model.layers.counted(indices),
            tuple(indices),
            (model.scaling,),
            (*_from_lists(model.text, indices[0]), *model.chain),
            sliding_window=window(model.chain) if all(k == "" or "sliding" in k for k in kinds[n]) else None,
        )
        for n, indices in enumerate(split.values())
    ]


def _flat_name(first: int, kinds: Sequence[set[str]], n: int) -> str:
    others = set().union(*kinds[:n], *kinds[n + 1 :])
    if len(kinds) == 1:
        return "default"
    if len(kinds[n]) == 1 and kinds[n] != {""} and kinds[n].isdisjoint(others):
        return min(kinds[n])
    return f"layers from {first}"
