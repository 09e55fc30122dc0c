"""Which layers of a Hugging Face model rotate, and which scaling object, base and widths each kind of them reads.

    config ─ layers ─▶ a layer type and a yes or no for each layer ─ groups ─▶ one `Group` for each kind that rotates

A config says it in one of four ways: one flat object for all; an object for each layer type; older keys, one for each
layer type's base (`rope_local_base_freq`, …); or lists with one value a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ropecli.dialects.hf_keys import LAYERS_LIMIT, Found, Json, Place, items, nearest, numbers, whole
from ropecli.dialects.hf_types import TypeFacts
from ropecli.errors import BadParameter

WITHOUT_ATTENTION = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "moe", "mlp"}
"""Layer types that have no attention, so nothing to rotate."""

RENAMED = {"attention": "full_attention", "mamba": "linear_attention", "deepseek_sparse_attention": "indexed_attention"}
"""Older names of layer types (transformers 5.23 `_LEGACY_LAYER_TYPE_REMAP`)."""

INTERVALS: Mapping[str, tuple[str, int]] = {
    "sliding_window_pattern": ("sliding_attention", 1),  # Gemma-3, Cohere-2, EXAONE-4
    "_sliding_window_pattern": ("sliding_attention", 1),
    "full_attention_interval": ("linear_attention", 1),  # Qwen3-Next
    "global_attn_every_n_layers": ("sliding_attention", 0),  # ModernBERT
}
"""Key → the type of the layers between two full ones, and where the count starts: layer i is full where (i + start) % n
is 0."""

COMPRESSION: Mapping[float, str] = {
    0: "sliding_attention",
    4: "compressed_sparse_attention",
    128: "heavily_compressed_attention",
}
"""DeepSeek-V4's `compress_ratios`, one a layer → the type of the layer (transformers 5.23 `DeepseekV4Config`)."""

PER_LAYER = ("layer_rope_theta", "rope_theta", "partial_rotary_factors")
"""Keys that may hold one value a layer; 0 is a layer that does not rotate."""

SCALING_OBJECTS = ("rope_scaling", "rope_parameters", "attn_config.rope_hf_config", "rotary")
"""Where the scaling object may stand; the first that is not empty wins (transformers 5.23, MPT, InternLM-1)."""

OLDER_GROUPS: Sequence[tuple[str, Mapping[str, Json]]] = (
    *(
        (
            key,
            {
                "full_attention": {"theta_keys": ["global_rope_theta", "rope_theta"], "scaled": True},
                "sliding_attention": {"theta_keys": [key], "scaled": False},
            },
        )
        for key in ("rope_local_base_freq", "local_rope_theta", "swa_rope_theta")
    ),
    (
        "compress_rope_theta",
        {
            "main": {"theta_keys": ["rope_theta"], "scaled": False, "layer_types": ["sliding_attention"]},
            "compress": {"theta_keys": ["compress_rope_theta"], "scaled": True},
        },
    ),
)
"""A key that gives some layers a base of their own → the groups that it means, for model types that are not known."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share one rotary embedding, and the places where it is described (see `hf_keys.Reader`).

    theta_keys  the model's keys that hold the base where the scaling object has none
    outer       where there are several scaling objects, what is around them: transformers 5.23 reads `truncate` there
    """

    name: str
    layers: Found
    rope: tuple[Place, ...]
    text: tuple[Place, ...]
    theta_keys: tuple[str, ...] = ("rope_theta",)
    theta_default: Found | None = None
    outer: Place | None = None
    sliding_window: int | None = None


@dataclass(frozen=True, slots=True)
class _Layers:
    """For each layer its type ("" where the config does not say) and whether it rotates."""

    kinds: tuple[str, ...]
    rotates: tuple[bool, ...]
    source: str
    kinds_source: str

    def untyped(self) -> "_Layers":
        """The same layers where the names of the scaling objects are not layer types: any may be in any group."""
        return replace(self, kinds=("",) * len(self.kinds), kinds_source="assumed: every layer")

    def of(self, kinds: Sequence[str]) -> list[int]:
        """Indices of the layers of these types that rotate; of all that rotate where no layer has a type."""
        known = any(self.kinds)
        return [i for i, kind in enumerate(self.kinds) if self.rotates[i] and (not known or kind in kinds)]


def groups(text: Place, facts: TypeFacts) -> list[Group]:
    """The kinds of layers that rotate, in the order of the config; empty where none does.

    Raises BadParameter with the key path as `where`.
    """
    chain = (text, facts.defaults)
    if _does_not_rotate(text, facts):
        return []
    layers = _layers(chain, facts)
    scaling = _scaling_object(chain)
    named = [name for name, value in scaling.data.items() if isinstance(value, Mapping)]
    if named:
        return _by_layer_type(chain, facts, layers, scaling, named)
    older = facts.data.get("groups")
    if not facts.known:
        older = next((own for key, own in OLDER_GROUPS if text.find(key) is not None), None)
    flat_is_read = not scaling.data or any(group.get("scaled") for group in (older or {}).values())
    if older and flat_is_read:
        return _by_older_keys(chain, facts, layers, scaling, older)
    return _flat(chain, layers, scaling)


def _does_not_rotate(text: Place, facts: TypeFacts) -> bool:
    """ALiBi, another position embedding, or a switch that is off."""
    if any(text.data.get(key) is True for key in ("alibi", "no_rope")) or text.data.get("use_rope") is False:
        return True
    mpt = text.data.get("attn_config")
    if isinstance(mpt, Mapping) and (mpt.get("alibi") is True or mpt.get("rope") is False):
        return True
    switch = facts.data.get("rope_if", {})
    if switch:
        return any(text.data.get(key) != value for key, value in switch.items())
    kind = text.data.get("position_embedding_type")
    return not facts.known and isinstance(kind, str) and not kind.startswith(("rope", "rotary"))


def _layers(chain: tuple[Place, ...], facts: TypeFacts) -> _Layers:
    found = nearest(chain, "layers")
    listed = nearest(chain[:1], "layer_types")
    if found is None and listed is not None:
        found = Found(len(items(listed)), listed.source)
    found = found or Found(1, "assumed: 1 layer")
    count = whole(found, most=LAYERS_LIMIT)
    kinds, kinds_source = _kinds(chain, count)
    only = facts.data.get("rope_layers") if _window(chain) is not None else None
    flags = _rope_flags(chain, count)
    rotates = tuple(
        kind not in WITHOUT_ATTENTION and (only is None or kind in only or not kind) and flags[i]
        for i, kind in enumerate(kinds)
    )
    return _Layers(kinds, rotates, found.source, kinds_source or found.source)


def _kinds(chain: tuple[Place, ...], count: int) -> tuple[tuple[str, ...], str]:
    """The type of each layer and the key that says so: a list, an interval, else what the class defaults."""
    for place in chain:
        listed = nearest((place,), "layer_types")
        if listed is not None:
            names = items(listed)
            whole_list = listed.source.endswith("layer_types") and not place.origin
            if not names or not all(isinstance(name, str) for name in names) or (whole_list and len(names) < count):
                raise BadParameter(
                    f"expected {count} names, one a layer, found a list of {len(names)}", where=listed.source
                )
            return tuple(RENAMED.get(names[i % len(names)], names[i % len(names)]) for i in range(count)), listed.source
        special = _special_lists(place, count)
        if special is not None:
            return special
        for key, (between, start) in INTERVALS.items():
            found = place.find(key)
            if found is not None and found.value:
                every = _interval(found)
                return tuple(
                    "full_attention" if (i + start) % every == 0 else between for i in range(count)
                ), found.source
    return ("",) * count, ""


def _special_lists(place: Place, count: int) -> tuple[tuple[str, ...], str] | None:
    """Layer types from a list of something else: Bamba's indices of attention layers, DeepSeek-V4's compression."""
    found = place.find("attn_layer_indices")
    if found is not None:
        full = items(found)
        return tuple("full_attention" if i in full else "linear_attention" for i in range(count)), found.source
    found = place.find("compress_ratios")
    if found is not None and len(items(found)) >= count:
        ratios = numbers(found)[:count]
        return tuple(COMPRESSION.get(ratio, "compressed_sparse_attention") for ratio in ratios), found.source
    return None


def _interval(found: Found) -> int:
    """A number of layers, or EXAONE's "LLLG": local layers up to a global one."""
    pattern = found.value
    if isinstance(pattern, str) and pattern and pattern.strip("L") == "G":
        return len(pattern)
    return whole(found, most=LAYERS_LIMIT)


def _rope_flags(chain: tuple[Place, ...], count: int) -> list[bool]:
    """Whether each layer rotates: `no_rope_layers` (1 rotates), `no_rope_layer_interval`, or a base of 0."""
    for place in chain:
        for key in ("no_rope_layers", "layer_rope_theta"):
            found = place.find(key)
            if found is not None and items(found):
                flags = items(found)
                return [bool(flags[i % len(flags)]) for i in range(count)]
        found = place.find("no_rope_layer_interval")
        if found is not None and found.value:
            every = whole(found, most=LAYERS_LIMIT)
            return [(i + 1) % every != 0 for i in range(count)]
    return [True] * count


def _scaling_object(chain: tuple[Place, ...]) -> Place:
    """The scaling object; the config itself where its scaling keys stand at the top (Grok)."""
    text = chain[0]
    for place in chain:
        for key in SCALING_OBJECTS:
            found = place.find(key)
            strict = key.startswith("rope_")
            if found is not None and found.value and (strict or isinstance(found.value, Mapping)):
                return place.inner(key)
        if place is text and isinstance(text.data.get("rope_type"), str):
            return text
    return Place({}, text.key("rope_parameters"))


def _by_layer_type(
    chain: tuple[Place, ...], facts: TypeFacts, layers: _Layers, scaling: Place, names: Sequence[str]
) -> list[Group]:
    known: Mapping[str, Json] = facts.data.get("groups", {})
    labels = {name: known.get(name, {}).get("layer_types", [name]) for name in names}
    if set(layers.kinds).isdisjoint(kind for kinds in labels.values() for kind in kinds):
        layers = layers.untyped()
    result = []
    for name in names:
        own = known.get(name, {})
        indices = layers.of(labels[name])
        if indices:
            result.append(_group(name, chain, facts, layers, indices, (scaling.inner(name),), own, outer=scaling))
    return result


def _by_older_keys(
    chain: tuple[Place, ...], facts: TypeFacts, layers: _Layers, scaling: Place, known: Mapping[str, Json]
) -> list[Group]:
    ignored = facts.data.get("flat_ignored") and scaling.path.endswith("rope_parameters")
    named = {kind for own in known.values() for kind in own.get("layer_types", ())}
    result = []
    for name, own in known.items():
        default = Place(own.get("rope", {}), scaling.path, facts.defaults.origin)
        extra = Place(own.get("scaled_defaults", {}), scaling.path, facts.defaults.origin)
        flat = Place({k: v for k, v in scaling.data.items() if k != "type"}, scaling.path, scaling.origin)
        flat = flat if own.get("type_unread") else scaling
        rope = (flat, extra) if own.get("scaled") and scaling.data and not ignored else (default,)
        kinds = own.get("layer_types") or ([name] if not named else sorted(set(layers.kinds) - named))
        indices = layers.of(kinds)
        if indices:
            result.append(_group(name, chain, facts, layers, indices, rope, own, outer=Place({}, scaling.path)))
    return result


def _group(
    name: str,
    chain: tuple[Place, ...],
    facts: TypeFacts,
    layers: _Layers,
    indices: Sequence[int],
    rope: tuple[Place, ...],
    own: Json,
    outer: Place,
) -> Group:
    default = own.get("rope_theta")
    return Group(
        name,
        Found(len(indices), layers.kinds_source),
        rope,
        (*_overlays(chain[0], facts, name, indices[0], own), *chain),
        theta_keys=tuple(own.get("theta_keys", ("rope_theta",))),
        theta_default=None if default is None else Found(default, facts.defaults.origin),
        outer=outer,
        sliding_window=_window(chain) if "sliding" in name else None,
    )


def _overlays(text: Place, facts: TypeFacts, name: str, first: int, own: Json) -> list[Place]:
    """What the config or the class says of these layers alone: `per_layer_config`, `global_head_dim`, lists."""
    result = []
    per_layer = text.inner("per_layer_config")
    for key, entry in per_layer.data.items():
        if key.isdecimal() and int(key) == first and isinstance(entry, Mapping):
            result.append(Place(entry, per_layer.key(key)))
    width = text.find("global_head_dim") if name == "full_attention" else None
    if width is not None:
        result.append(Place({"head_dim": width.value}, origin=width.source))
    elif "head_dim" in own and not per_layer.data:
        result.append(Place({"head_dim": own["head_dim"]}, origin=facts.defaults.origin))
    return result + _list_overlays(text, first)


def _list_overlays(text: Place, index: int) -> list[Place]:
    result = []
    for key in PER_LAYER:
        found = text.find(key)
        if found is not None and isinstance(found.value, list):
            result.append(Place({key: _item(found, index)}, origin=f"{found.source}[{index}]"))
    return result


def _item(found: Found, index: int) -> Any:
    if index >= len(found.value):
        raise BadParameter(f"expected a value for layer {index}, found {len(found.value)} values", where=found.source)
    return found.value[index]


def _flat(chain: tuple[Place, ...], layers: _Layers, scaling: Place) -> list[Group]:
    """One group; several where a list gives layers different values."""
    split: dict[tuple[object, ...], list[int]] = {}
    for i, rotates in enumerate(layers.rotates):
        if rotates:
            values = tuple(v for place in _list_overlays(chain[0], i) for v in place.data.values())
            split.setdefault(tuple(map(repr, values)), []).append(i)
    kinds = [{layers.kinds[i] for i in indices} for indices in split.values()]
    distinct = all(len(k) == 1 for k in kinds) and len(set.union(set(), *kinds)) == len(kinds)
    result = []
    for indices in split.values():
        kind = layers.kinds[indices[0]]
        name = "default" if len(split) == 1 else kind if distinct and kind else f"layers from {indices[0]}"
        slides = all("sliding" in layers.kinds[i] for i in indices) or not any(layers.kinds)
        result.append(
            Group(
                name,
                Found(len(indices), layers.source if len(split) == 1 else layers.kinds_source),
                (scaling,),
                (*_list_overlays(chain[0], indices[0]), *chain),
                sliding_window=_window(chain) if slides else None,
            )
        )
    return result


def _window(chain: tuple[Place, ...]) -> int | None:
    """Tokens that a sliding layer attends to; none where the config says null or switches the window off."""
    text = chain[0].data
    if text.get("use_sliding_window") is False or text.get("sliding_window", 1) is None:
        return None
    found = nearest(chain, "sliding_window")
    return whole(found) if found is not None and isinstance(found.value, int) and found.value > 0 else None
