"""Rules 101 to 106: version 4's keys and version 5's, and what is left to the model class.

"Readers of version 4's keys" are transformers 4, MLX-LM for most models, ExLlamaV2 and TGI: they look at `rope_scaling`
and at keys beside it, and know no `rope_parameters`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ropecli.dialects.hf_keys import ORIGINAL, Json
from ropecli.dialects.hf_scaling import SAME_TYPE
from ropecli.findings.bases import stated_bases
from ropecli.findings.context import SCHEMAS, Block, Context, kind_of, layer_entries, shown
from ropecli.findings.keys import KNOWN, most_like
from ropecli.findings.rule import Checks, Finding, Rule
from ropecli.spec import LayerRope

BESIDE = ("rope_theta", "partial_rotary_factor")
"""Keys that version 5 keeps inside the object, and version 4 beside it."""

HARMLESS = (*BESIDE, "type", "rope_type", "mrope_section", "mrope_interleaved")
"""Keys that an object without a scaling may hold."""

DEFAULTS: Mapping[str, Json] = {"yarn": {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}}
"""What every reader takes where a key is missing, so that leaving it out is no difference."""

VERSION_4_LOSES = Rule(
    id="ROPE101",
    severity="error",
    title="Only readers of rope_parameters see this embedding",
    what=(
        "The scaling or the base stands where version 5 of transformers looks, and nowhere that version 4's "
        "readers look."
    ),
    effect=(
        "transformers 4, MLX-LM, ExLlamaV2 and TGI load the model without a word and rotate it otherwise: with "
        "another base the loss is worse at every position and grows with it; without the scaling the text falls "
        "apart beyond the trained length."
    ),
    fix=(
        "Write the same content in both schemas: rope_scaling, and rope_theta at the top level, beside rope_parameters."
    ),
    source=(
        "transformers 5.23 saves rope_parameters alone; transformers 4.57.6 and MLX-LM 0.32.2 were run on such a "
        "config (vllm#42624, marin#7156: published checkpoints were hit)."
    ),
)

CONTENTS_DIFFER = Rule(
    id="ROPE102",
    severity="error",
    title="rope_scaling and rope_parameters differ",
    what="Both schemas are there and do not say the same.",
    effect=(
        "transformers 5, vLLM and ExLlamaV3 take rope_scaling whole; llama.cpp's converter takes rope_parameters. "
        "The same file is two models."
    ),
    fix="Write the same content in both.",
    source="transformers 5.23 convert_rope_params_to_dict; llama.cpp conversion/base.py (2026-08).",
)

BASE_ASSUMED = Rule(
    id="ROPE103",
    severity="warning",
    title="The base is left to the model class",
    what=(
        "rope_theta does not stand where version 4's readers look, and the model class defaults to something "
        "other than 10000."
    ),
    effect="Readers that do not know this model class's default take 10000.",
    fix="Write rope_theta at the top level, and in rope_parameters where that is there.",
    source=(
        "transformers 5.23 fills the base of the class in silently; ExLlamaV2, ExLlamaV3 and llama.cpp's "
        "converter fall back to 10000."
    ),
)

SCALING_ASSUMED = Rule(
    id="ROPE104",
    severity="warning",
    title="The scaling is left to the model class",
    what="The config names no scaling, but its model class has one by default.",
    effect="transformers scales; readers that go by the file alone do not.",
    fix="Write the scaling out, in both schemas.",
    source="transformers 5.23: Apertus (llama3) and gpt-oss (yarn) default to a scaling.",
)

NOT_AN_OBJECT = Rule(
    id="ROPE105",
    severity="error",
    title="The scaling is no object",
    what="rope_scaling or rope_parameters holds something other than a JSON object.",
    effect="No reader can load this.",
    fix="Write an object, or remove the key.",
    source="transformers 5.23, vLLM and MLX-LM index it like a dict.",
)

NO_TYPE = Rule(
    id="ROPE106",
    severity="error",
    title="The scaling has no type",
    what="The scaling object has parameters, but no rope_type that the model class reads.",
    effect="transformers 5 takes it for no scaling at all, silently; transformers 4 stops with a KeyError.",
    fix="Add rope_type.",
    source="transformers 5.23 standardize_rope_params: rope_type defaults to type, and that to default.",
)


def _version_4_loses(ctx: Context) -> Iterator[Finding]:
    losses = _losses(ctx)
    if losses:
        message = f"{ctx.at(ctx.schema)} says it in version 5's way; to readers of version 4's keys {'; '.join(losses)}"
        yield VERSION_4_LOSES.found(message, _for_version_4(ctx, losses))


def _losses(ctx: Context) -> list[str]:
    """What readers of version 4's keys see otherwise, one text for each kind of layer."""
    nested = any(block.layer for block in ctx.blocks)
    by_nature = nested and "groups" not in ctx.facts.data  # layer types came with version 5
    readable = ctx.schema == "rope_scaling" and not nested and not any("rope_theta" in b.data for b in ctx.blocks)
    if not ctx.schema or not ctx.ropes or by_nature or readable or ctx.only_version_5:
        return []
    flat = ctx.blocks[0].data if ctx.schema == "rope_scaling" and not nested else {}
    old = {key: value for key, value in flat.items() if key != "rope_theta"} or None
    seen = ctx.read_with({"rope_parameters": None, "rope_scaling": old})
    return [] if seen is None else [loss for rope in ctx.ropes if (loss := _loss(ctx, rope, seen))]


def _loss(ctx: Context, rope: LayerRope, seen: tuple[LayerRope, ...]) -> str:
    """How an embedding looks without version 5's key; "" where it is the same."""
    other = next((old for old in seen if old.name == rope.name), seen[0] if len(seen) == 1 else None)
    if other is None:
        return ""
    changes = []
    if other.spec.rope_theta != rope.spec.rope_theta and not stated_bases(ctx, beside=True):
        changes.append(f"the base is {shown(other.spec.rope_theta)}, not {shown(rope.spec.rope_theta)}")
    if other.spec.scaling != rope.spec.scaling:
        changes.append(f"the scaling is {_named(other)}, not {_named(rope)}")
    if other.mrope_section != rope.mrope_section:
        changes.append(f"mrope_section is {list(other.mrope_section)}, not {list(rope.mrope_section)}")
    layers = f" ({rope.name})" if changes and rope.name != "default" else ""
    return " and ".join(changes) + layers


def _named(rope: LayerRope) -> str:
    scaling = rope.spec.scaling
    return "none" if rope.spec.rope_type == "default" else f"{rope.spec.rope_type} with factor {scaling.factor:g}"


def _for_version_4(ctx: Context, losses: list[str]) -> dict[str, Any]:
    """The keys that version 4's readers look at; nested objects stay for version 5's."""
    groups: Mapping[str, Json] = ctx.facts.data.get("groups", {})
    fix: dict[str, Any] = {}
    for rope in ctx.ropes or ():
        keys = groups.get(rope.name, {}).get("theta_keys", ["rope_theta"] if rope.name == "default" else [])
        fix |= {ctx.at(key): rope.spec.rope_theta for key in keys[:1]}
    nested = any(block.layer for block in ctx.blocks)
    if ctx.schema == "rope_scaling" and nested:
        fix[ctx.at("rope_parameters")] = ctx.text["rope_scaling"]
    for block in ctx.blocks:
        scaled = groups.get(block.layer, {}).get("scaled") if block.layer else ctx.schema == "rope_parameters"
        if scaled and any("scaling" in loss or "mrope" in loss for loss in losses):
            fix[ctx.at("rope_scaling")] = {k: v for k, v in block.data.items() if k not in BESIDE}
    return fix if all(not block.layer or block.layer in groups for block in ctx.blocks) else {}


def _contents_differ(ctx: Context) -> Iterator[Finding]:
    old, new = ctx.text.get("rope_scaling"), ctx.text.get("rope_parameters")
    if not (isinstance(old, Mapping) and isinstance(new, Mapping) and old and new):
        return
    pairs = _pairs(layer_entries(old), layer_entries(new))
    for layer, (one, other) in pairs.items():
        left, right = _plainly(ctx, one, layer), _plainly(ctx, other, layer)
        keys = [key for key in sorted({*left, *right}) if left.get(key) != right.get(key)]
        if keys:
            inside = f"{layer}: " if layer else ""
            told = "; ".join(f"{key} is {_or_none(left, key)} against {_or_none(right, key)}" for key in keys[:4])
            message = f"{ctx.at('rope_scaling')} and {ctx.at('rope_parameters')} differ: {inside}{told}"
            yield CONTENTS_DIFFER.found(message, _equal(ctx, old, new) if pairs.keys() == {""} else {})


def _pairs(old: Mapping[str, Json], new: Mapping[str, Json]) -> dict[str, tuple[Json, Json]]:
    """Objects of the two schemas that describe the same layers; a flat one describes the layers that attend to all."""
    if "" in old and "" not in new:
        return {"full_attention": (old[""], new["full_attention"])} if "full_attention" in new else {}
    if "" in new and "" not in old:
        return {"full_attention": (old["full_attention"], new[""])} if "full_attention" in old else {}
    return {layer: (old.get(layer, {}), new.get(layer, {})) for layer in {**old, **new}}


def _plainly(ctx: Context, block: Json, layer: str) -> dict[str, Any]:
    """The object with aliases resolved and what goes without saying filled in, to be compared."""
    kind = kind_of(block, ctx.facts) or "default"
    original = ctx.text.get(ORIGINAL) if not layer else None
    filled = {**DEFAULTS.get(kind, {}), **({ORIGINAL: original} if original is not None else {})}
    given = {k: v for k, v in block.items() if v is not None and k not in (*BESIDE, "type", "rope_type")}
    return {"rope_type": kind, **filled, **given}


def _or_none(block: Json, key: str) -> str:
    return shown(block[key]) if key in block else "missing"


def _equal(ctx: Context, old: Json, new: Json) -> dict[str, Any]:
    """Version 5's object with version 4's content, which is what transformers 5 reads anyway."""
    kept = {key: new[key] for key in BESIDE if key in new}
    return {ctx.at("rope_parameters"): {**kept, **old}}


def _base_assumed(ctx: Context) -> Iterator[Finding]:
    if not ctx.text or stated_bases(ctx, beside=True):
        return
    for rope in ctx.ropes or ():
        source = rope.sources.get("rope_theta", "")
        by_class = source.startswith("default of ")
        inside = ctx.schema != "" and ctx.schema in source and not ctx.only_version_5
        if rope.spec.rope_theta != 10_000 and (by_class or inside) and "base" not in "".join(_losses(ctx)):
            where = "nowhere in the file" if by_class else f"at {source} alone"
            layers = f" of {rope.name}" if rope.name != "default" else ""
            message = f"the base{layers}, {shown(rope.spec.rope_theta)}, stands {where}"
            yield BASE_ASSUMED.found(message, _base_written(ctx, rope))


def _base_written(ctx: Context, rope: LayerRope) -> dict[str, Any]:
    group: Json = ctx.facts.data.get("groups", {}).get(rope.name, {"theta_keys": ["rope_theta"]})
    keys = group.get("theta_keys", ())[:1]
    own = [block for block in ctx.blocks if block.rope is rope and ctx.schema == "rope_parameters"]
    inside = own[0].set({"rope_theta": rope.spec.rope_theta}) if own else {}
    return {ctx.at(key): rope.spec.rope_theta for key in keys} | inside


def _scaling_assumed(ctx: Context) -> Iterator[Finding]:
    for rope in ctx.ropes or ():
        if rope.spec.rope_type != "default" and rope.sources.get("rope_type", "").startswith("default of "):
            scaling = {k: v for k, v in ctx.facts.data.get("rope_parameters", {}).items() if k != "rope_theta"}
            theta = rope.spec.rope_theta
            fix = {
                ctx.at("rope_theta"): theta,
                ctx.at("rope_scaling"): scaling,
                ctx.at("rope_parameters"): {**scaling, "rope_theta": theta},
            }
            message = f"no scaling in the file, but {rope.sources['rope_type']} is {_named(rope)}"
            yield SCALING_ASSUMED.found(message, fix if scaling else {})


def _not_an_object(ctx: Context) -> Iterator[Finding]:
    for key in SCHEMAS:
        value = ctx.text.get(key)
        if value and not isinstance(value, Mapping):
            message = f"{ctx.at(key)} = {shown(value)}: expected an object"
            yield NOT_AN_OBJECT.found(message, {ctx.at(key): None})


def _no_type(ctx: Context) -> Iterator[Finding]:
    for block in ctx.blocks:
        parameters = sorted(key for key in block.data if key not in HARMLESS)
        if parameters and not block.kind and block.data.get("rope_type") is None:
            message = f"{block.paths[0]} holds {', '.join(parameters[:4])}, but no rope_type"
            kind, misspelt = _likely_kind(block), _misspelt_type(block)
            if misspelt:
                fix = block.set({misspelt: None, "rope_type": block.data[misspelt]})
                yield NO_TYPE.found(f"{message}; is {misspelt} meant for it?", fix)
            else:
                yield NO_TYPE.found(message, block.set({"rope_type": kind}) if kind else {})


def _misspelt_type(block: Block) -> str:
    """The key that looks like rope_type and holds a scaling's name; "" where there is none."""
    names = {*KNOWN, *SAME_TYPE}
    held = (key for key, value in block.data.items() if isinstance(value, str) and value in names)
    return next((key for key in held if key != "type" and most_like(key, ["rope_type"], 0.8)), "")


def _likely_kind(block: Block) -> str:
    """The only scaling that has such parameters; "" where there are several."""
    if isinstance(block.data.get("type"), str):
        return str(block.data["type"])
    telling = {"long_factor": "longrope", "low_freq_factor": "llama3", "beta_fast": "yarn", "attention_factor": "yarn"}
    return next((kind for key, kind in telling.items() if key in block.data), "")


CHECKS: Checks = (
    (VERSION_4_LOSES, _version_4_loses),
    (CONTENTS_DIFFER, _contents_differ),
    (BASE_ASSUMED, _base_assumed),
    (SCALING_ASSUMED, _scaling_assumed),
    (NOT_AN_OBJECT, _not_an_object),
    (NO_TYPE, _no_type),
)
