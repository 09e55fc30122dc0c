"""Hugging Face `config.json` → the rotary embedding of each kind of layer, as transformers 5.23 understands it.

    config ─ text_config ─▶ the language model's own keys ─ groups ─▶ one scope a layer type ─ spec ─▶ LayerRope

Every value keeps the key path that it came from. Nothing here imports transformers: the config is plain JSON.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ropecli.errors import BadCheckpoint, BadParameter
from ropecli.spec import (
    Dynamic,
    LayerRope,
    Layout,
    Linear,
    Llama3,
    Longrope,
    Plain,
    Proportional,
    RopeSpec,
    Scaling,
    Yarn,
    default_attention_factor,
)

Json: TypeAlias = Mapping[str, Any]

CONTAINERS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Keys under which a multimodal config keeps its language model."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "rope_theta": ("rope_theta", "rotary_emb_base", "rotary_embedding_base", "rope_base"),
    "head_dim": ("head_dim", "kv_channels"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct", "rope_pct"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "max_length": (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "seq_length",
        "max_seq_len",
        "max_sequence_length",
    ),
}
"""Canonical name → the keys that mean it, the first found wins."""


@dataclass(frozen=True, slots=True)
class Found:
    """A value and where it stood: a key path, "default of …" or "assumed: …"."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Place:
    """A JSON object inside the config and the dotted path that leads to it."""

    data: Json
    path: str = ""

    def find(self, *names: str) -> Found | None:
        """The first of these keys that is present and not null."""
        for name in names:
            if self.data.get(name) is not None:
                return Found(self.data[name], self.key(name))
        return None

    def key(self, name: str) -> str:
        """The path of a key of this object."""
        return f"{self.path}.{name}" if self.path else name


def text_config(config: Json) -> tuple[Json, tuple[str, ...]]:
    """The object that describes the language model, and the keys that lead to it (none where it is the top level)."""
    for key in CONTAINERS:
        inner = config.get(key)
        if isinstance(inner, Mapping) and inner:
            text, path = text_config(inner)
            return text, (key, *path)
    return config, ()


def model_type(config: Json) -> str:
    """The `model_type` of the language model, else that of the whole config, else ""."""
    text, _ = text_config(config)
    found = text.get("model_type") or config.get("model_type") or ""
    return found if isinstance(found, str) else ""


def read(config: Json) -> tuple[LayerRope, ...]:
    """The rotary embedding of each kind of layer of a language model; empty where it has none.

    Raises BadParameter (a value is missing or out of its range) and BadCheckpoint (a scaling that cannot be said as
    numbers), with the key path as `where`.
    """
    text, path = text_config(config)
    place = Place(text, ".".join(path))
    return tuple(_layer_rope(place, group) for group in _groups(place))


@dataclass(frozen=True, slots=True)
class _Group:
    """A layer type, the object that holds its rotary embedding, and how many layers use it."""

    name: str
    rope: Place
    layers: Found
    sliding_window: int | None = None


def _groups(text: Place) -> list[_Group]:
    rope = _rope_place(text)
    kinds = text.data.get("layer_types")
    kinds = list(kinds) if isinstance(kinds, Sequence) and not isinstance(kinds, str) else []
    window = text.data.get("sliding_window")
    nested = [name for name in rope.data if name in kinds or isinstance(rope.data[name], Mapping)]
    if not nested:
        return [_Group("default", rope, _layer_count(text))]
    return [
        _Group(
            name,
            Place(rope.data[name], rope.key(name)),
            Found(kinds.count(name), text.key("layer_types")) if kinds else _layer_count(text),
            window if "sliding" in name else None,
        )
        for name in nested
        if rope.data[name] is not None
    ]


def _rope_place(text: Place) -> Place:
    """The scaling object; a non-empty `rope_scaling` replaces `rope_parameters`."""
    for name in ("rope_scaling", "rope_parameters"):
        data = text.data.get(name)
        if not data:
            continue
        if not isinstance(data, Mapping):
            raise BadParameter(f"expected an object, found {data!r}", where=text.key(name))
        return Place(data, text.key(name))
    return Place({}, text.key("rope_parameters"))


def _layer_count(text: Place) -> Found:
    return text.find(*NAMES["layers"]) or Found(1, "assumed: 1 layer")


class _Reader:
    """Looks canonical names up, checks them, and remembers where each was found."""

    def __init__(self, text: Place, rope: Place, label: str) -> None:
        self.text, self.rope, self.label = text, rope, label
        self.sources: dict[str, str] = {}

    def locate(self, name: str) -> Found | None:
        names = NAMES.get(name, (name,))
        return self.rope.find(*names) or self.text.find(*names)

    def note(self, name: str, found: Found) -> float:
        """The number that was found; its source is recorded under the canonical name."""
        self.sources[name] = found.source
        return _number(found)

    def number(self, name: str, default: Found | None = None) -> float:
        found = self.locate(name) or default
        if found is None:
            raise BadParameter(f"{self.label} needs {name}, found none", where=self.rope.key(name))
        return self.note(name, found)

    def whole(self, name: str, default: Found | None = None) -> int:
        value = self.number(name, default)
        if value != int(value):
            raise BadParameter(f"expected a whole number, found {value!r}", where=self.sources[name])
        return int(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        found = self.rope.find(name)
        if found is None:
            raise BadParameter(f"{self.label} needs {name}, found none", where=self.rope.key(name))
        if not isinstance(found.value, Sequence) or isinstance(found.value, str):
            raise BadParameter(f"expected a list of numbers, found {found.value!r}", where=found.source)
        self.sources[name] = found.source
        return tuple(_number(Found(value, f"{found.source}[{i}]")) for i, value in enumerate(found.value))


def _number(found: Found) -> float:
    value = found.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadParameter(f"expected a number, found {value!r}", where=found.source)
    return float(value)


def _layer_rope(text: Place, group: _Group) -> LayerRope:
    kind = group.rope.find("rope_type", "type") or Found("default", "assumed: default")
    if not isinstance(kind.value, str):
        raise BadParameter(f"expected a name, found {kind.value!r}", where=kind.source)
    reader = _Reader(text, group.rope, kind.value)
    reader.sources |= {"rope_type": kind.source, "layers": group.layers.source}
    theta = reader.number("rope_theta", Found(10000.0, "assumed: 10000"))
    head_dim, rotary_dim, mla = _widths(reader)
    layout: Layout = "half"
    reader.sources["layout"] = "assumed: half, as transformers stores its weights"
    scaling, original, longest = _scaling(reader, kind)
    try:
        spec = RopeSpec(theta, head_dim, rotary_dim, original, longest, scaling, layout)
    except BadParameter as error:
        error.where = reader.sources.get(error.where, error.where)
        raise
    return LayerRope(
        group.name,
        int(_number(group.layers)),
        spec,
        reader.sources,
        mla=mla,
        sliding_window=group.sliding_window,
    )


def _widths(reader: _Reader) -> tuple[int, int, bool]:
    """head_dim, rotary_dim, and whether the head is the rotated slice of a latent attention."""
    slice_dim = reader.text.find("qk_rope_head_dim")
    if slice_dim is not None:
        width = int(reader.note("head_dim", slice_dim))
        reader.sources["rotary_dim"] = slice_dim.source
        return width, width, True
    if reader.locate("head_dim") is not None:
        head_dim = reader.whole("head_dim")
    else:
        hidden, heads = reader.text.find(*NAMES["hidden_size"]), reader.text.find(*NAMES["heads"])
        if hidden is None or heads is None:
            raise BadParameter(
                "expected head_dim, or hidden_size and num_attention_heads", where=reader.text.key("head_dim")
            )
        head_dim = int(_number(hidden) // _number(heads))
        reader.sources["head_dim"] = f"{hidden.source} / {heads.source}"
    if reader.locate("rotary_dim") is not None:
        return head_dim, reader.whole("rotary_dim"), False
    if reader.locate("partial_rotary_factor") is None or reader.label == "proportional":
        reader.sources["rotary_dim"] = "head_dim"
        return head_dim, head_dim, False
    share = reader.number("partial_rotary_factor")
    reader.sources["rotary_dim"] = f"{reader.sources.pop('partial_rotary_factor')} · head_dim"
    return head_dim, int(head_dim * share), False


def _scaling(reader: _Reader, kind: Found) -> tuple[Scaling, int, int]:
    """The scaling with its original and its longest length."""
    scaling: Scaling
    longest = reader.whole("max_length", Found(2048, "assumed: 2048"))
    inner = reader.rope.find("original_max_position_embeddings")
    original = reader.text.find("original_max_position_embeddings") or inner
    match kind.value:
        case "default" | "none" | "mrope":
            reader.sources["original_length"] = reader.sources["max_length"]
            scaling, lengths = Plain(), (longest, longest)
        case "linear":
            scaling = Linear(reader.number("factor"))
            assumed = _linear_length(longest, scaling.factor)
            lengths = _lengths(reader, inner or assumed, longest, scaling.factor)
        case "dynamic":
            scaling = Dynamic(reader.number("factor"))
            lengths = longest, round(longest * scaling.factor)
            reader.sources["original_length"] = reader.sources["max_length"]
            reader.sources["max_length"] += " · factor"
        case "yarn":
            factor = _factor(reader, original, longest)
            scaling, lengths = _yarn(reader, factor), _lengths(reader, original, longest, factor)
        case "llama3":
            low, high = reader.number("low_freq_factor"), reader.number("high_freq_factor")
            scaling = Llama3(reader.number("factor"), low, high)
            lengths = _lengths(reader, original, longest, scaling.factor)
        case "longrope" | "su":
            factor = _factor(reader, original, longest)
            lengths = _lengths(reader, original, longest, factor)
            scaling = _longrope(reader, factor, lengths[0])
        case "proportional":
            factor = reader.number("factor", Found(1.0, "default of proportional"))
            share = reader.number("partial_rotary_factor", Found(1.0, "default of proportional"))
            scaling, lengths = Proportional(factor, share), (longest, longest)
            reader.sources["original_length"] = reader.sources["max_length"]
        case _:
            raise BadCheckpoint(
                f"the scaling {kind.value!r} is not supported",
                where=kind.source,
                hint="ropecli reads default, linear, dynamic, yarn, llama3, longrope and proportional",
            )
    return scaling, *lengths


def _linear_length(longest: int, factor: float) -> Found:
    """transformers keeps no original length for `linear`; max_position_embeddings is taken as the extended one."""
    if factor >= 1 and longest % factor == 0:
        return Found(int(longest / factor), "assumed: max_length / factor")
    return Found(longest, "assumed: max_length")


def _factor(reader: _Reader, original: Found | None, longest: int) -> float:
    """The factor; where it is null or missing, max_position_embeddings over the original length."""
    if reader.locate("factor") is None and original is not None:
        return reader.note("factor", Found(longest / _number(original), f"max_position_embeddings / {original.source}"))
    return reader.number("factor")


def _lengths(reader: _Reader, original: Found | None, longest: int, factor: float) -> tuple[int, int]:
    """The original length and the longest one: max_position_embeddings, or factor · original where that is longer."""
    if original is None:
        original = Found(longest, reader.sources["max_length"])
    length = int(reader.note("original_length", original))
    if longest > length:
        return length, longest
    reader.sources["max_length"] = f"factor · {original.source}"
    return length, max(1, round(factor * length))


def _yarn(reader: _Reader, factor: float) -> Yarn:
    beta_fast = reader.number("beta_fast", Found(32.0, "default of yarn"))
    beta_slow = reader.number("beta_slow", Found(1.0, "default of yarn"))
    truncate = reader.rope.find("truncate") or Found(value=True, source="default of yarn")
    reader.sources["truncate"] = truncate.source
    return Yarn(
        factor,
        _yarn_attention_factor(reader, factor),
        beta_fast or 32.0,
        beta_slow or 1.0,
        truncate=bool(truncate.value),
    )


def _yarn_attention_factor(reader: _Reader, factor: float) -> float:
    """`attention_factor` is final; else the ratio of an mscale pair where both are truthy; else 0.1·ln s + 1."""
    given = reader.rope.find("attention_factor")
    if given is not None:
        return reader.note("attention_factor", given)
    pair = [reader.rope.find("mscale"), reader.rope.find("mscale_all_dim")]
    if all(found is not None and found.value for found in pair):
        top, bottom = (default_attention_factor(factor, 0.1 * _number(found)) for found in pair if found is not None)
        reader.sources["attention_factor"] = f"ratio of {reader.rope.key('mscale')} and mscale_all_dim"
        return top / bottom
    reader.sources["attention_factor"] = "0.1·ln(factor) + 1"
    return default_attention_factor(factor)


def _longrope(reader: _Reader, factor: float, original: int) -> Longrope:
    given = reader.rope.find("attention_factor")
    if given is not None:
        attention_factor = reader.note("attention_factor", given)
    else:
        reader.sources["attention_factor"] = "sqrt(1 + ln(factor) / ln(original_length))"
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Longrope(
        factor, reader.numbers("short_factor"), reader.numbers("long_factor"), attention_factor, attention_factor
    )
