"""Rules 107 and 108: a base, and a share of the head that rotates, which stand in several places and differ."""

from collections.abc import Iterator, Mapping

from ropecli.dialects.hf_keys import NAMES, Json
from ropecli.findings.context import SCHEMAS, Context, number, shown
from ropecli.findings.rule import Checks, Finding, Rule

PARTIAL = "partial_rotary_factor"

TWO_BASES = Rule(
    id="ROPE107",
    severity="error",
    title="Two different bases",
    what="rope_theta stands in more than one place, with different values.",
    effect=(
        "Which base a reader takes depends on the reader: transformers 5 prefers the one in the object that it "
        "reads, version 4's readers the top level. The wrong base costs quality at every position."
    ),
    fix="Write one value of rope_theta everywhere.",
    source="vllm#42624, DeepSpeed#8345: a base of 500000 met a default of 10000.",
)

TWO_WIDTHS = Rule(
    id="ROPE108",
    severity="error",
    title="partial_rotary_factor stands in one place only",
    what="partial_rotary_factor is inside the scaling object and missing or different at the top level.",
    effect=(
        "Readers of version 4's keys look at the top level alone: they rotate another number of dimensions, and "
        "every token comes out wrong."
    ),
    fix="Write partial_rotary_factor at the top level too.",
    source="transformers 4.57.6 reads config.partial_rotary_factor; transformers 5.23 moves it into rope_parameters.",
)


def stated_bases(ctx: Context, *, beside: bool = False) -> dict[str, float]:
    """Key path → base, for every place of the file that states one; `beside`: not inside the scaling objects."""
    groups: Mapping[str, Json] = ctx.facts.data.get("groups", {})
    keys = [*NAMES["rope_theta"], *(key for group in groups.values() for key in group.get("theta_keys", ()))]
    read = {key: ctx.text.get(key) for key in keys if key not in ctx.facts.unread}
    found = {ctx.at(key): value for key in read if (value := number(read[key])) is not None}
    if not beside:
        for schema in SCHEMAS:
            scaling = ctx.text.get(schema)
            value = number(scaling.get("rope_theta")) if isinstance(scaling, Mapping) else None
            if value is not None:
                found[ctx.at(f"{schema}.rope_theta")] = value
    return found


def _two_bases(ctx: Context) -> Iterator[Finding]:
    stated = stated_bases(ctx)
    nested = [block for block in ctx.blocks if block.layer]
    flat = {path: value for path, value in stated.items() if path.rpartition(".")[2] == "rope_theta"}
    if nested:
        inside = {block.at("rope_theta"): block.number("rope_theta") for block in nested if "rope_theta" in block.data}
        top = number(ctx.text.get("rope_theta"))
        if top is not None and inside and top not in inside.values():
            yield TWO_BASES.found(_listed({ctx.at("rope_theta"): top, **inside}))
    elif len(set(flat.values())) > 1:
        read = [ctx.at(f"{ctx.schema}.rope_theta"), ctx.at("rope_theta"), *flat]
        base = next(flat[path] for path in read if path in flat)
        yield TWO_BASES.found(_listed(flat), dict.fromkeys(flat, base))
    elif flat and ctx.ropes and ctx.schema == "rope_scaling":
        (base,) = set(flat.values())
        taken = ctx.ropes[0].spec.rope_theta
        if len(ctx.ropes) == 1 and base != taken and "default" in ctx.ropes[0].sources.get("rope_theta", ""):
            message = f"{_listed(flat)}, but transformers 5 reads rope_scaling alone and takes {shown(taken)}"
            yield TWO_BASES.found(message, {ctx.at("rope_theta"): base})


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{path} = {shown(value)}" for path, value in values.items())


def _two_widths(ctx: Context) -> Iterator[Finding]:
    block = next((block for block in ctx.blocks if not block.layer and block.kind != "proportional"), None)
    share = block.number(PARTIAL) if block else None
    if block is None or share is None or not 0 < share <= 1 or (ctx.only_version_5 and PARTIAL not in ctx.text):
        return
    beside = number(ctx.text.get(PARTIAL))
    seen = beside if beside is not None else number(ctx.facts.data.get(PARTIAL)) or 1.0
    if seen != share:
        found = f"{block.says(PARTIAL)}, but {ctx.at(PARTIAL)} " + (
            "is missing" if beside is None else f"= {shown(beside)}"
        )
        yield TWO_WIDTHS.found(found, {ctx.at(PARTIAL): share})


CHECKS: Checks = ((TWO_BASES, _two_bases), (TWO_WIDTHS, _two_widths))
