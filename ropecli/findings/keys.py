"""Rules 111 to 120: names that no reader knows, two names for one thing, and values of the wrong kind."""

from collections.abc import Iterator, Mapping, Sequence

from ropecli.dialects.hf_keys import NAMES, ORIGINAL
from ropecli.findings.context import LONGEST, SCHEMAS, Block, Context, number, shown
from ropecli.findings.rule import Checks, Finding, Rule

ANYWHERE = frozenset(
    {
        *("rope_type", "type", "rope_theta", "partial_rotary_factor", "llama_4_scaling_beta"),
        *("mrope_section", "mrope_interleaved", "xdrope_section", "max_position_embeddings", ORIGINAL),
    }
)
"""Keys that any scaling object may hold."""

KNOWN: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor", "max_trained_positions"}),
    "ntk": frozenset({"factor", "mixed_b"}),
    "ntk_alpha": frozenset({"alpha", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}),
    "yarn": frozenset(
        {
            *("factor", "beta_fast", "beta_slow", "attention_factor", "attn_factor", "mscale", "mscale_all_dim"),
            *("truncate", "extrapolation_factor", "apply_yarn_scaling", "finetuned"),
        }
    ),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "longrope": frozenset({"factor", "short_factor", "long_factor", "short_mscale", "long_mscale", "attention_factor"}),
    "proportional": frozenset({"factor"}),
}
"""Canonical name of a scaling → the parameters that some runtime reads for it (`ropecli/runtimes/`)."""

PARAMETERS = frozenset().union(*KNOWN.values())
"""Every parameter of any scaling."""

AT_THE_TOP = (*SCHEMAS, "rope_theta", "partial_rotary_factor", LONGEST, ORIGINAL)
"""Keys beside the scaling object that are worth a guess when one is misspelt."""

NAMED = frozenset(alias for aliases in NAMES.values() for alias in aliases)
"""Every key that means something to the reader of configs."""

NUMBERS = PARAMETERS - {"short_factor", "long_factor", "truncate", "finetuned", "apply_yarn_scaling"} | {
    *("rope_theta", "partial_rotary_factor", ORIGINAL)
}
"""Keys whose values are numbers."""

MISSPELT = Rule(
    id="ROPE111",
    severity="warning",
    title="A misspelt parameter",
    what="The scaling object has a key that no runtime reads, and a known one is spelt almost like it.",
    effect="The value is ignored: every reader takes the default of the key that was meant.",
    fix="Correct the spelling.",
    source="transformers 5.23 logs 'Unrecognized keys' and goes on; others say nothing.",
)

MISSPELT_TOP = Rule(
    id="ROPE112",
    severity="warning",
    title="A misspelt key of the config",
    what="A key beside the scaling object is spelt almost like one that readers look for, which is missing.",
    effect="The value is ignored, and the default of the model class takes its place.",
    fix="Correct the spelling.",
    source="transformers 5.23 keeps unknown keys of a config without a word.",
)

FOREIGN = Rule(
    id="ROPE113",
    severity="warning",
    title="A parameter of another scaling",
    what="The scaling object has a parameter that belongs to another rope_type.",
    effect="It has no effect, though it looks as if it had: llama3 and linear have no temperature, for example.",
    fix="Remove it, or choose the rope_type that it belongs to.",
    source="transformers 5.23 logs 'Unrecognized keys' and ignores it.",
)

UNKNOWN = Rule(
    id="ROPE114",
    severity="info",
    title="A parameter that nobody reads",
    what="The scaling object has a key that no runtime known here reads.",
    effect="Most likely none: it may belong to the model's own code.",
    fix="Leave it, or remove it to get rid of the warning that transformers prints.",
    source="transformers 5.23 logs 'Unrecognized keys'.",
)

TYPES_DIFFER = Rule(
    id="ROPE115",
    severity="error",
    title="type and rope_type differ",
    what="The scaling object names two different scalings.",
    effect="transformers 5 and ExLlamaV3 take rope_type, transformers 4 and MLX-LM take type, vLLM stops.",
    fix="Keep rope_type alone.",
    source="transformers 5.23, transformers 4.57.6, MLX-LM 0.32.2; vLLM patch_legacy_rope_type (2026-08).",
)

TWO_TYPES = Rule(
    id="ROPE116",
    severity="info",
    title="Both type and rope_type",
    what="The scaling object names its scaling twice.",
    effect="ExLlamaV2 refuses to load an object with both keys.",
    fix="Keep rope_type alone.",
    source="ExLlamaV2 config.py (da07facd, 2025-12).",
)

OLD_TYPE = Rule(
    id="ROPE117",
    severity="info",
    title="type instead of rope_type",
    what="The scaling object names its scaling by the older key, type.",
    effect="Every runtime known here still reads it; some model classes of transformers 5 read rope_type alone.",
    fix="Rename type to rope_type.",
    source="transformers 5.23 copies type to rope_type; its Gemma-3, ModernBERT and Olmo-3 classes do not.",
)

INTEGER_FACTOR = Rule(
    id="ROPE118",
    severity="error",
    title="linear with an integer factor",
    what="The factor of linear scaling is written as an integer.",
    effect="vLLM and SGLang stop with a TypeError: they take whatever is no float for a list of factors.",
    fix="Write it with a decimal point.",
    source="vLLM 8d9b52f7 (2026-08) and SGLang 623300a5 (2026-06), LinearScalingRotaryEmbedding, both executed.",
)

INTEGER = Rule(
    id="ROPE119",
    severity="info",
    title="An integer where a float is expected",
    what="A factor, beta or attention factor is written as an integer.",
    effect="The numbers are the same, but transformers warns on every load.",
    fix="Write it with a decimal point.",
    source="transformers 4.57.6 wants floats for factor, betas and attention_factor; 5.23 for attention_factor alone.",
)

NO_NUMBER = Rule(
    id="ROPE120",
    severity="error",
    title="Not a number",
    what="A value that must be a number is text, true, false, a list or not finite.",
    effect='Readers stop, or compute nonsense: JSON\'s "4" is text, and not the number 4.',
    fix="Write a plain number.",
    source="transformers 5.23, vLLM and MLX-LM do arithmetic with the value as it is.",
)


def _misspelt(ctx: Context) -> Iterator[Finding]:
    for block in ctx.blocks:
        for key in _strangers(block):
            meant = _meant(key, block)
            if meant:
                message = f"{block.says(key)}: no runtime reads {key}; is {meant} meant?"
                yield MISSPELT.found(message, block.set({key: None, meant: block.data[key]}))


def _unknown(ctx: Context) -> Iterator[Finding]:
    for block in ctx.blocks:
        for key in _strangers(block):
            if not _meant(key, block):
                yield UNKNOWN.found(block.says(key), block.set({key: None}))


def _strangers(block: Block) -> list[str]:
    """Keys that belong to no scaling; none of a scaling that is itself unknown."""
    return [key for key in block.data if block.kind in KNOWN and key not in ANYWHERE | PARAMETERS]


def _meant(key: str, block: Block) -> str:
    """The missing key that a stranger is most like; "" where it is like none."""
    missing = sorted((ANYWHERE | KNOWN[block.kind]) - block.data.keys())
    return most_like(key, missing, 0.8)


def most_like(key: str, names: Sequence[str], cutoff: float) -> str:
    """The name that a key is most like; "" where it is like none."""
    if not names:
        return ""
    from difflib import get_close_matches  # noqa: PLC0415 - only an unknown key pays for it

    return next(iter(get_close_matches(key.lower(), names, n=1, cutoff=cutoff)), "")


def _misspelt_top(ctx: Context) -> Iterator[Finding]:
    missing = [key for key in AT_THE_TOP if key not in ctx.text]
    for key, value in ctx.text.items():
        near = [name for name in missing if abs(len(key) - len(name)) <= 1 and key[:2] == name[:2] and key not in NAMED]
        meant = most_like(key, near, 0.9)
        if meant:
            message = f"{ctx.at(key)} = {shown(value)}: no reader looks there; is {meant} meant?"
            yield MISSPELT_TOP.found(message, {ctx.at(key): None, ctx.at(meant): value})


def _foreign(ctx: Context) -> Iterator[Finding]:
    for block in ctx.blocks:
        for key in block.data:
            if block.kind in KNOWN and key in PARAMETERS - KNOWN[block.kind] and block.data[key] is not None:
                yield FOREIGN.found(f"{block.says(key)} has no effect on {block.kind}", block.set({key: None}))


def _both(block: Block) -> tuple[object, object]:
    return block.data.get("type"), block.data.get("rope_type")


def _tolerated(block: Block) -> bool:
    """Pairs that every reader takes for the same."""
    return _both(block) in {("su", "longrope"), ("mrope", "default")}


def _types_differ(ctx: Context) -> Iterator[Finding]:
    for block in ctx.blocks:
        old, new = _both(block)
        if isinstance(old, str) and isinstance(new, str) and old != new and not _tolerated(block):
            yield TYPES_DIFFER.found(block.says("type", "rope_type"), block.set({"type": None}))


def _two_types(ctx: Context) -> Iterator[Finding]:
    for block in ctx.blocks:
        old, new = _both(block)
        if isinstance(old, str) and (old == new or (isinstance(new, str) and _tolerated(block))):
            yield TWO_TYPES.found(block.says("type", "rope_type"), block.set({"type": None}))


def _old_type(ctx: Context) -> Iterator[Finding]:
    for block in ctx.blocks:
        old, new = _both(block)
        if isinstance(old, str) and new is None and block.kind:
            yield OLD_TYPE.found(block.says("type"), block.set({"type": None, "rope_type": old}))


def _integer_factor(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("linear"):
        factor = block.data.get("factor")
        if _integer(factor):
            yield INTEGER_FACTOR.found(block.says("factor"), block.set({"factor": block.number("factor")}))


def _integer_elsewhere(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn", "llama3", "longrope", "dynamic"):
        names = ("factor", "beta_fast", "beta_slow", "attention_factor", "low_freq_factor", "high_freq_factor")
        found = {name: block.number(name) for name in names if _integer(block.data.get(name)) and block.data[name] > 0}
        if found:
            yield INTEGER.found(block.says(*found), block.set(found))


def _integer(value: object) -> bool:
    return isinstance(value, int) and number(value) is not None


def _no_number(ctx: Context) -> Iterator[Finding]:
    for block in ctx.blocks:
        for key in block.data:
            if key in NUMBERS and _wrong(block.data[key]):
                yield NO_NUMBER.found(block.says(key), _as_number(block.paths, key, block.data[key]))
    for key in ("rope_theta", "partial_rotary_factor", LONGEST, ORIGINAL):
        value = ctx.text.get(key)
        if _wrong(value) and not (isinstance(value, list) and key == "rope_theta"):
            yield NO_NUMBER.found(f"{ctx.at(key)} = {shown(value)}", _as_number((), ctx.at(key), value))


def _wrong(value: object) -> bool:
    return value is not None and number(value) is None


def _as_number(paths: tuple[str, ...], key: str, value: object) -> dict[str, object]:
    """The number that a text spells; nothing where it spells none."""
    try:
        parsed = number(float(value)) if isinstance(value, str) else None
    except ValueError:
        parsed = None
    if parsed is None:
        return {}
    written = int(parsed) if key.endswith("max_position_embeddings") and parsed.is_integer() else parsed
    return {f"{path}.{key}": written for path in paths} or {key: written}


CHECKS: Checks = (
    (MISSPELT, _misspelt),
    (MISSPELT_TOP, _misspelt_top),
    (FOREIGN, _foreign),
    (UNKNOWN, _unknown),
    (TYPES_DIFFER, _types_differ),
    (TWO_TYPES, _two_types),
    (OLD_TYPE, _old_type),
    (INTEGER_FACTOR, _integer_factor),
    (INTEGER, _integer_elsewhere),
    (NO_NUMBER, _no_number),
)
