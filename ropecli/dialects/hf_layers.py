"""Which layers of a Hugging Face model have attention, of which type, and which of them rotate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ropecli.dialects.hf_keys import LAYERS_LIMIT, Found, Place, items, nearest, numbers, whole
from ropecli.dialects.hf_types import TypeFacts
from ropecli.errors import BadParameter

WITHOUT_ATTENTION = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "moe", "mlp", "cross_attention"}
"""Layer types that have no attention to the text itself, so nothing to rotate."""

RENAMED = {"attention": "full_attention", "mamba": "linear_attention", "deepseek_sparse_attention": "indexed_attention"}
"""Older names of layer types (transformers 5.23 `_LEGACY_LAYER_TYPE_REMAP`)."""

ATTENTION_LAYERS = ("attn_layer_indices", "full_attn_idxs", "attn_layer_idxs")
"""Keys with the indices of the layers that have attention (Bamba, LFM2, StripedHyena); the others have none."""

INTERVALS: Mapping[str, tuple[str, int]] = {
    "sliding_window_pattern": ("sliding_attention", 1),  # Gemma-3, Cohere-2, EXAONE-4
    "_sliding_window_pattern": ("sliding_attention", 1),
    "full_attention_interval": ("linear_attention", 1),  # Qwen3-Next
    "global_attn_every_n_layers": ("sliding_attention", 0),  # ModernBERT
}
"""Key with a number n → the type of the layers between two full ones, and where counting starts: layer i is full where
(i + start) % n is 0."""

COMPRESSION: Mapping[float, str] = {
    0: "sliding_attention",
    4: "compressed_sparse_attention",
    128: "heavily_compressed_attention",
}
"""DeepSeek-V4's `compress_ratios`, one a layer → the type of the layer (transformers 5.23 `DeepseekV4Config`)."""


@dataclass(frozen=True, slots=True)
class Layers:
    """For each layer its type ("" where the config does not say) and whether it rotates; and the keys that say so."""

    kinds: tuple[str, ...]
    rotates: tuple[bool, ...]
    count_source: str
    kinds_source: str
    rotates_source: str

    @property
    def told(self) -> bool:
        """Whether any layer has a type."""
        return any(self.kinds)

    def untyped(self) -> "Layers":
        """The same layers where no scaling object is named after a layer type: any layer may use any of them."""
        return replace(self, kinds=("",) * len(self.kinds), kinds_source="assumed: every layer")

    def of(self, kinds: Sequence[str]) -> list[int]:
        """Indices of the layers of these types that rotate; of all that rotate where no layer has a type."""
        return [i for i, kind in enumerate(self.kinds) if self.rotates[i] and (not self.told or kind in kinds)]

    def counted(self, indices: Sequence[int]) -> Found:
        """How many layers these are, and the key that made them so few."""
        if len(indices) == len(self.kinds):
            return Found(len(indices), self.count_source)
        return Found(len(indices), self.kinds_source if len(indices) < sum(self.rotates) else self.rotates_source)


def read_layers(chain: tuple[Place, ...], facts: TypeFacts) -> Layers:
    """The layers of the model whose keys stand in `chain`, its own first and the class defaults last.

    Raises BadParameter with the key path as `where`.
    """
    count = nearest(chain, "layers")
    listed = nearest(chain[:1], "layer_types")
    if count is None and listed is not None:
        count = Found(len(items(listed)), listed.source)
    count = count or Found(1, "assumed: 1 layer")
    total = whole(count, most=LAYERS_LIMIT)
    kinds = _kinds(chain, total) or Found(("",) * total, count.source)
    flags = _flags(chain, total) or Found((True,) * total, kinds.source)
    only = facts.data.get("rope_layers") if window(chain) is not None else None
    rotates = tuple(
        flag and kind not in WITHOUT_ATTENTION and (only is None or kind in only or not kind)
        for kind, flag in zip(kinds.value, flags.value, strict=True)
    )
    return Layers(kinds.value, rotates, count.source, kinds.source, flags.source)


def window(chain: tuple[Place, ...]) -> int | None:
    """Tokens that a sliding layer attends to; none where the config says null or switches the window off."""
    switch = nearest(chain, "use_sliding_window")
    if (switch is not None and switch.value is False) or chain[0].data.get("sliding_window", 1) is None:
        return None
    found = nearest(chain, "sliding_window")
    return whole(found) if found is not None and isinstance(found.value, int) and found.value > 0 else None


def _kinds(chain: tuple[Place, ...], total: int) -> Found | None:
    """The type of each layer: a list of names, a list of something else, an interval; else what the class defaults."""
    for place in chain:
        found = _named(place, total) or _told(place, total) or _every(place, total)
        if found is not None:
            return found
    return None


def _named(place: Place, total: int) -> Found | None:
    """`layer_types` and its other names; a class default and `block_types` repeat."""
    found = nearest((place,), "layer_types")
    if found is None:
        return None
    names = items(found)
    repeats = bool(place.origin) or found.source.endswith("block_types")
    if not names or not all(isinstance(name, str) for name in names) or (len(names) < total and not repeats):
        raise BadParameter(f"expected {total} names, one a layer, found a list of {len(names)}", where=found.source)
    repeated = [names[i % len(names)] for i in range(total)]
    return Found(tuple(RENAMED.get(name, name) for name in repeated), found.source)


def _told(place: Place, total: int) -> Found | None:
    """Indices, flags or blocks that say which layers have attention; compression; Qwen2's first layer with a window."""
    found = _with_attention(place, total)
    if found is not None:
        return found
    found = place.find("compress_ratios")
    if found is not None and len(items(found)) >= total:
        ratios = numbers(found)[:total]
        return Found(tuple(COMPRESSION.get(r, "compressed_sparse_attention") for r in ratios), found.source)
    found = place.find("max_window_layers")
    if found is not None and place.data.get("use_sliding_window") is True and isinstance(found.value, int):
        first = found.value
        return Found(tuple("sliding_attention" if i >= first else "full_attention" for i in range(total)), found.source)
    return None


def _with_attention(place: Place, total: int) -> Found | None:
    """Which layers attend to the text: lists of indices, MiniMax's list of ones, Nemotron-NAS's blocks."""
    found = place.find(*ATTENTION_LAYERS)
    if found is not None:
        full = items(found)
        return Found(tuple("full_attention" if i in full else "linear_attention" for i in range(total)), found.source)
    found = place.find("cross_attention_layers")  # Mllama: these attend to the image
    if found is not None:
        across = items(found)
        return Found(tuple("cross_attention" if i in across else "full_attention" for i in range(total)), found.source)
    found = place.find("attn_type_list")
    if found is not None and len(items(found)) >= total:
        flags = numbers(found)[:total]
        return Found(tuple("full_attention" if flag else "linear_attention" for flag in flags), found.source)
    found = place.find("mamba_step")  # PLaMo-2: one layer of a step has attention, most of them with a window
    if found is not None and place.data.get("mamba_enabled") is not False:
        step, listed = whole(found, most=LAYERS_LIMIT), place.find("full_attention_idx")
        full = [] if listed is None else items(listed)
        attends = ("full_attention" if i in full else "sliding_attention" for i in range(total))
        kinds = tuple(kind if i % step == step // 2 else "mamba" for i, kind in enumerate(attends))
        return Found(kinds, found.source)
    found = place.find("block_configs")
    blocks = items(found) if found is not None else []
    if found is None or len(blocks) < total or not all(isinstance(block, Mapping) for block in blocks):
        return None
    attention = [block.get("attention") for block in blocks[:total]]
    gone = [isinstance(own, Mapping) and (own.get("no_op") or own.get("replace_with_linear")) for own in attention]
    return Found(tuple("linear_attention" if none else "full_attention" for none in gone), found.source)


def _every(place: Place, total: int) -> Found | None:
    """Full layers at an interval: a number, or EXAONE's "LLLG", local layers up to a global one."""
    for key, (between, start) in INTERVALS.items():
        found = place.find(key)
        if found is not None and found.value:
            letters = isinstance(found.value, str) and found.value.strip("L") == "G"
            n = len(found.value) if letters else whole(found, most=LAYERS_LIMIT)
            kinds = tuple("full_attention" if (i + start) % n == 0 else between for i in range(total))
            return Found(kinds, found.source)
    return None


def _flags(chain: tuple[Place, ...], total: int) -> Found | None:
    """Whether each layer rotates: `no_rope_layers` (1 rotates), a base of 0 for the layer, `no_rope_layer_interval`."""
    for place in chain:
        for key in ("no_rope_layers", "layer_rope_theta"):
            found = place.find(key)
            if found is not None and items(found):
                flags = items(found)
                return Found(tuple(bool(flags[i % len(flags)]) for i in range(total)), found.source)
        found = place.find("no_rope_layer_interval")
        if found is not None and found.value:
            n = whole(found, most=LAYERS_LIMIT)
            return Found(tuple((i + 1) % n != 0 for i in range(total)), found.source)
    return None
