"""Hugging Face `config.json` → the rotary embedding of each kind of layer, as transformers 5.23 understands it.

    config ─ text_config ─▶ the language model's own keys ─ groups ─▶ one for each kind of layer ─▶ LayerRope

Every value keeps the key path that it came from. Nothing here imports transformers: the config is plain JSON, and what
a class defaults is data.
"""

from collections.abc import Mapping

from ropecli.dialects.hf_groups import Group, groups
from ropecli.dialects.hf_keys import (
    CONTAINERS,
    LAYOUT_KEYS,
    Found,
    Json,
    Place,
    Reader,
    boolean,
    items,
    nearest,
    number,
    whole,
)
from ropecli.dialects.hf_scaling import Task, read_scaling, scaling_kind
from ropecli.dialects.hf_types import TypeFacts, type_facts, without_rope
from ropecli.errors import BadParameter
from ropecli.spec import LayerRope, Layout, RopeSpec


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
    return _name(text) or _name(config)


def class_name(config: Json) -> str:
    """The first name in `architectures`, which is the class that the weights are for; "" where there is none."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def read(config: Json) -> tuple[LayerRope, ...]:
    """The rotary embedding of each kind of layer of the language model; empty where it has none.

    The lengths of a spec: `original_length` is what the scaling calls original, and max_position_embeddings without
    scaling; `max_length` is max_position_embeddings where that is longer, else factor · original_length.
    Raises BadParameter (a value is missing or out of its range) and BadCheckpoint (a scaling that cannot be said in
    numbers), with the key path as `where`.
    """
    facts, found = _groups(config)
    return tuple(_layer_rope(group, facts) for group in found)


def layer_indices(config: Json, name: str) -> tuple[int, ...]:
    """Which layers, counted from 0, the `LayerRope` of this name that `read` gives belongs to.

    Empty where the config names its kinds of layers and does not say which is which. Raises what `read` raises.
    """
    _, found = _groups(config)
    return next((group.indices for group in found if group.name == name), ())


def class_defaults(config: Json, name: str) -> Json:
    """What the class of the model type fills in for the layers of this name where the config is silent.

    `rope_parameters`, `rope_theta` and `max_position_embeddings`, as far as the class has them; empty for a model type
    that transformers does not have.
    """
    _, path = text_config(config)
    data = type_facts(model_type(config), alone=not path).data
    own = data.get("groups", {}).get(name, {})
    found = {
        "rope_parameters": own.get("rope", data.get("rope_parameters")),
        "rope_theta": own.get("rope_theta", data.get("rope_theta")),
        "max_position_embeddings": data.get("max_position_embeddings"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _groups(config: Json) -> tuple[TypeFacts, list[Group]]:
    text, path = text_config(config)
    name = model_type(config)
    facts = type_facts(name, alone=not path)
    if without_rope(name) and not _mentions_rope(text):
        return facts, []
    own = Place({key: value for key, value in text.items() if key not in facts.unread}, ".".join(path))
    return facts, groups(own, facts)


def _name(config: Json) -> str:
    found = config.get("model_type")
    return found if isinstance(found, str) else ""


def _mentions_rope(text: Json) -> bool:
    """Some rotate only where their config says so: MPT, Jina-3, which calls itself `xlm-roberta`, and Grok-2, `git`."""
    if text.get("model_type") == "git" and text.get("rope_theta") is not None:
        return True
    kind = text.get("position_embedding_type")
    if isinstance(kind, str) and kind.startswith(("rope", "rotary")):
        return True
    attention = text.get("attn_config")
    return isinstance(attention, Mapping) and attention.get("rope") is True


def _layer_rope(group: Group, facts: TypeFacts) -> LayerRope:
    reader = Reader(group.rope, group.text)
    reader.note("layers", group.layers)
    try:
        name, kind = scaling_kind(reader, facts.data.get("rope_types", {}))
        theta = _theta(reader, group)
        head_dim, rotary_dim, mla = _widths(reader, name, facts)
        longest = whole(reader.note("max_length", reader.in_text("max_length") or Found(2048, "assumed: 2048")))
        pair_of_mscales = not facts.known or bool(facts.data.get("mscale_pair"))
        task = Task(reader, kind, longest, _original(reader, group), rotary_dim // 2, group.outer, pair_of_mscales)
        scaling, original_length, max_length = read_scaling(name, task)
        layout = _layout(reader, facts, mla=mla)
        spec = RopeSpec(theta, head_dim, rotary_dim, original_length, max_length, scaling, layout)
    except BadParameter as error:
        name, bracket, index = error.where.partition("[")
        error.where = f"{reader.sources.get(name, name)}{bracket}{index}"
        raise
    return LayerRope(
        group.name,
        int(group.layers.value),
        spec,
        reader.sources,
        mrope_section=_mrope_section(reader),
        mla=mla,
        sliding_window=group.sliding_window,
    )


def _theta(reader: Reader, group: Group) -> float:
    """The base: one for the layer, else the scaling object's, else the model's key, else what the class defaults."""
    found = reader.in_text("layer_rope_theta") or reader.in_rope("rope_theta") or nearest(group.text, *group.theta_keys)
    found = found or group.theta_default or Found(10000.0, "assumed: 10000")
    theta, ratio = number(reader.note("rope_theta", found)), reader.in_text("rope_ratio")
    if ratio is None:
        return theta
    reader.sources["rope_theta"] += f" · {ratio.source}"
    return theta * number(ratio)


def _original(reader: Reader, group: Group) -> Found | None:
    """The original length; the model's own key beats one in a flat scaling object, and is not read for nested ones."""
    inside = reader.in_rope("original_length")
    return inside if group.outer else reader.in_text("original_length") or inside


def _widths(reader: Reader, name: str, facts: TypeFacts) -> tuple[int, int, bool]:
    """head_dim, rotary_dim, and whether the head is the rotated slice of a latent attention (`qk_rope_head_dim`)."""
    rotated_slice = reader.in_text("qk_rope_head_dim")
    if rotated_slice is not None:
        reader.note("head_dim", rotated_slice)
        reader.note("rotary_dim", rotated_slice)
        return whole(rotated_slice), whole(rotated_slice), True
    head_dim = _head_dim(reader)
    found = reader.in_rope("partial_rotary_factor")
    named = ("partial_rotary_factor", found) if found else reader.first_in_text("rotary_dim", "partial_rotary_factor")
    if named is None or name == "proportional":
        reader.sources["rotary_dim"] = reader.sources["head_dim"]
        return head_dim, head_dim, False
    key, found = named
    if key == "rotary_dim" and facts.data.get("rotary_dim_ignored"):
        reader.sources["rotary_dim"] = f"head_dim: model_type {facts.name} ignores {found.source}"
        return head_dim, head_dim, False
    reader.note("rotary_dim", found)
    if key == "rotary_dim":
        return head_dim, whole(found), False
    if name == "default" and facts.data.get("whole_head"):
        reader.sources["rotary_dim"] = f"head_dim: model_type {facts.name} ignores {found.source}"
        return head_dim, head_dim, False
    share = number(found)
    if not 0 < share <= 1:
        raise BadParameter(f"expected a share above 0 and at most 1, found {share:g}", where=found.source)
    reader.sources["rotary_dim"] = f"{found.source} · head_dim"
    return head_dim, int(head_dim * share), False


def _head_dim(reader: Reader) -> int:
    found = reader.in_text("head_dim")
    if found is not None:
        return whole(reader.note("head_dim", found))
    hidden, heads = reader.in_text("hidden_size"), reader.in_text("num_attention_heads")
    times = reader.in_text("attention_expand")
    if hidden is None or heads is None:
        model, _defaults = reader.text[-2:]
        problem = "expected head_dim, or hidden_size and num_attention_heads, found neither"
        raise BadParameter(problem, where=model.key("head_dim"))
    reader.sources["head_dim"] = f"{hidden.source} / {heads.source}"
    width = whole(hidden)
    if times is not None:
        reader.sources["head_dim"] = f"{times.value} · {reader.sources['head_dim']}"
        width *= whole(times)
    return whole(Found(width // whole(heads), reader.sources["head_dim"]))


def _layout(reader: Reader, facts: TypeFacts, *, mla: bool) -> Layout:
    found = nearest(reader.text, *LAYOUT_KEYS)
    if found is not None:
        reader.note("layout", found)
        return "interleaved" if boolean(found) else "half"
    if not facts.known:
        reader.sources["layout"] = "assumed: interleaved, as in DeepSeek" if mla else "assumed: half"
        return "interleaved" if mla else "half"
    reader.sources["layout"] = f"model_type {facts.name}"
    return "interleaved" if facts.data.get("layout") == "interleaved" else "half"


def _mrope_section(reader: Reader) -> tuple[int, ...]:
    found = reader.anywhere("mrope_section")
    if found is None:
        return ()
    reader.note("mrope_section", found)
    return tuple(whole(Found(value, f"{found.source}[{i}]")) for i, value in enumerate(items(found)))
