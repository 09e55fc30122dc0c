"""Rules 501 to 511: unknown scalings, missing and impossible parameters, dynamic, longrope's lists, llama3's bounds."""

from collections.abc import Iterator

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.dialects.hf_scaling import READERS, SAME_TYPE
from ropecli.findings.context import Block, Context, number, shown
from ropecli.findings.keys import most_like
from ropecli.findings.rule import Checks, Finding, Rule

OF_TRANSFORMERS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "axial")
"""Scalings that transformers 5.23 has for every model (`ROPE_INIT_FUNCTIONS`, `default`)."""

OF_VENDORS = ("mllama4", "openpangu", "deepseek_llama_scaling")
"""Scalings of single models, which are not computed here."""

UNKNOWN_TYPE = Rule(
    id="ROPE501",
    severity="error",
    title="An unknown scaling",
    what="rope_type names no scaling that any known runtime has.",
    effect=(
        "transformers logs a line when it reads the config and stops with a KeyError when it builds the model; "
        "vLLM stops, ExLlamaV2 ignores the scaling."
    ),
    fix="Correct the name.",
    source="transformers 5.23 ROPE_INIT_FUNCTIONS; vLLM 8d9b52f7 get_rope; ExLlamaV2 da07facd.",
)

FOREIGN_TYPE = Rule(
    id="ROPE502",
    severity="warning",
    title="A scaling that transformers does not have",
    what="rope_type is a name that only some runtimes, or the model's own code, know.",
    effect=(
        "transformers stops with a KeyError unless the model's class knows the name; Phi-3's knows su, and stops all "
        "the same where original_max_position_embeddings stands outside."
    ),
    fix="Write the name that transformers has, where there is one.",
    source="transformers 5.23 ROPE_INIT_FUNCTIONS; vLLM and ExLlamaV3 know su, vLLM alone ntk and deepseek_yarn.",
)

NO_FACTOR = Rule(
    id="ROPE503",
    severity="error",
    title="No factor",
    what="The scaling needs a factor, and has none.",
    effect=(
        "transformers and MLX-LM stop with a KeyError or TypeError; llama.cpp's converter drops the scaling; "
        "SGLang takes 1."
    ),
    fix="Write factor: the extended length divided by the original one.",
    source=(
        "transformers 5.23 requires the key (a null becomes the ratio of the lengths for yarn alone); FastChat#3907."
    ),
)

FACTOR_BELOW_1 = Rule(
    id="ROPE504",
    severity="error",
    title="A factor below 1",
    what="The factor is below 1.",
    effect=(
        "It shortens the context instead of extending it. Often it is the inverse of the factor, as llama.cpp's "
        "--rope-freq-scale wants it."
    ),
    fix="Write the extended length divided by the original one.",
    source="transformers 5.23 warns: a float of at least 1.",
)

DYNAMIC = Rule(
    id="ROPE505",
    severity="warning",
    title="dynamic means something else in every runtime",
    what="The scaling is dynamic NTK, whose base grows with the length of the text.",
    effect=(
        "transformers, TGI and MLX-LM change the base while they read, each in its own way; SGLang takes one base "
        "for all lengths; vLLM does not scale at all; llama.cpp, ExLlamaV2 and ONNX Runtime ignore it, ExLlamaV3 "
        "stops."
    ),
    fix=(
        "Freeze it: `ropecli convert --rope-type ntk` writes one base that every runtime reads, and yarn is "
        "usually better."
    ),
    source="vLLM 8d9b52f7, SGLang 623300a5, MLX-LM, ExLlamaV2, ExLlamaV3, executed (transformers#25104, vllm#41236).",
)

LIST_MISSING = Rule(
    id="ROPE506",
    severity="error",
    title="longrope without its lists",
    what="The longrope object lacks short_factor or long_factor, or one of them is no list.",
    effect="No reader can load it.",
    fix="Write both lists, one divisor for each rotary pair; the same list twice where one will do.",
    source="transformers 5.23 requires both keys.",
)

LIST_LENGTH = Rule(
    id="ROPE507",
    severity="error",
    title="A longrope list of the wrong length",
    what="short_factor or long_factor has not one number for each rotary pair.",
    effect="Readers stop with a shape error when the model runs.",
    fix="Write rotary_dim / 2 numbers.",
    source="transformers 5.23 warns when it reads the config, and fails when it computes the frequencies.",
)

LIST_VALUES = Rule(
    id="ROPE508",
    severity="error",
    title="A longrope divisor that is not above 0",
    what="short_factor or long_factor holds something that is no number above 0.",
    effect="The pair gets an infinite, reversed or meaningless frequency, and every score is wrong.",
    fix="Write a number above 0: 1 keeps a pair, the factor slows it down fully.",
    source="Each frequency is the base frequency divided by its number, in every runtime.",
)

LISTS_DIFFER = Rule(
    id="ROPE509",
    severity="info",
    title="Two sets of frequencies, switched by length",
    what="short_factor and long_factor differ.",
    effect=(
        "When the long list takes over depends on the runtime: transformers by the length of a call, TGI by "
        "position, SGLang by the batch, vLLM, TensorRT-LLM, llama.cpp and the ExLlamas by the configured length; "
        "MLX-LM always uses the long list."
    ),
    fix="A model that was trained so (Phi-3) must keep it; for your own, write the same list twice.",
    source="transformers 5.23, TGI db931fcf, SGLang 623300a5, vLLM 8d9b52f7, MLX-LM 0.32.2.",
)

LLAMA3_BOUNDS = Rule(
    id="ROPE510",
    severity="error",
    title="llama3 without its bounds",
    what="The llama3 object lacks low_freq_factor or high_freq_factor.",
    effect="transformers and MLX-LM stop with a KeyError; SGLang, llama.cpp and TensorRT-LLM assume 1 and 4.",
    fix="Write low_freq_factor: 1.0 and high_freq_factor: 4.0, as Llama 3.1 has them.",
    source="transformers 5.23 _validate_llama3_rope_parameters, run.",
)

LLAMA3_SWAPPED = Rule(
    id="ROPE511",
    severity="error",
    title="llama3's bounds are swapped",
    what="low_freq_factor is above high_freq_factor.",
    effect="The ramp between slowed and kept pairs runs backwards. Equal bounds are a step, as Llama-4-Scout has it.",
    fix="Write the larger number as high_freq_factor.",
    source="transformers 5.23 only warns.",
)


def _names(ctx: Context) -> Iterator[tuple[Block, str]]:
    """The objects that name a scaling, and the name that counts."""
    for block in ctx.blocks:
        name = block.data.get("rope_type", block.data.get("type"))
        if isinstance(name, str):
            yield block, name


def _known(block: Block, name: str) -> bool:
    return bool({block.kind, name} & {*READERS, *SAME_TYPE, *OF_TRANSFORMERS, *OF_VENDORS})


def _unknown_type(ctx: Context) -> Iterator[Finding]:
    for block, name in _names(ctx):
        if not _known(block, name):
            near = most_like(name, OF_TRANSFORMERS, 0.6)
            message = block.says("rope_type", "type") + (f"; is {near} meant?" if near else "")
            yield UNKNOWN_TYPE.found(message, block.set({"rope_type": near, "type": None}) if near else {})


def _foreign_type(ctx: Context) -> Iterator[Finding]:
    for block, name in _names(ctx):
        by_class = name in ctx.facts.data.get("rope_types", {}) or (name == "mrope" and "mrope_section" in block.data)
        # Phi-3's class renames su after the original length has been filled in, so that it must stand inside
        by_class &= name != "su" or block.data.get(ORIGINAL) is not None
        if _known(block, name) and name not in OF_TRANSFORMERS and not by_class:
            same = SAME_TYPE.get(name, "")
            fix = (
                block.set({"rope_type": same, "type": None})
                if same in OF_TRANSFORMERS and name != "telechat3-yarn"
                else {}
            )
            yield FOREIGN_TYPE.found(block.says("rope_type", "type"), fix)


def _no_factor(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("linear", "dynamic", "yarn", "llama3", "ntk"):
        if block.data.get("factor") is None:
            original, longest = ctx.original(block), ctx.longest
            ratio = longest[1] / original[1] if original and longest and block.kind == "yarn" else 1.0
            yield NO_FACTOR.found(f"{block.at('factor')} is missing", block.set({"factor": ratio}) if ratio > 1 else {})


def _factor_below_1(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("linear", "dynamic", "yarn", "llama3", "longrope", "ntk"):
        factor = block.number("factor")
        if factor is not None and factor < 1:
            inverse = 1 / factor if factor >= 1e-6 else 0.0
            yield FACTOR_BELOW_1.found(block.says("factor"), block.set({"factor": inverse}) if inverse else {})


def _dynamic(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("dynamic"):
        yield DYNAMIC.found(block.says("rope_type", "type", "factor"))


def _lists(ctx: Context) -> Iterator[tuple[Block, str, object]]:
    for block in ctx.of_kind("longrope"):
        for name in ("short_factor", "long_factor"):
            yield block, name, block.data.get(name)


def _list_missing(ctx: Context) -> Iterator[Finding]:
    for block, name, value in _lists(ctx):
        if not isinstance(value, list):
            found = "is missing" if value is None else f"= {shown(value)}"
            other = block.data.get("long_factor" if name == "short_factor" else "short_factor")
            fix = block.set({name: other}) if value is None and isinstance(other, list) else {}
            yield LIST_MISSING.found(f"{block.at(name)} {found}", fix)


def _list_length(ctx: Context) -> Iterator[Finding]:
    for block, name, value in _lists(ctx):
        pairs = _pairs(ctx, block)
        if isinstance(value, list) and pairs is not None and len(value) != pairs:
            yield LIST_LENGTH.found(f"{block.at(name)} has {len(value)} numbers, and there are {pairs} rotary pairs")


def _pairs(ctx: Context, block: Block) -> int | None:
    """Rotary pairs, also of a config that cannot be read for its lists; None where the widths are missing too."""
    if block.rope is not None:
        return block.rope.spec.pairs
    linear = {"rope_type": "linear", "factor": 1.0}  # scaled, for some classes heed a partial rotation only then
    if "partial_rotary_factor" in block.data:
        linear["partial_rotary_factor"] = block.data["partial_rotary_factor"]
    ropes = ctx.read_with({"rope_scaling": linear, "rope_parameters": None}) if not block.layer else None
    return ropes[0].spec.pairs if ropes and len(ropes) == 1 else None


def _list_values(ctx: Context) -> Iterator[Finding]:
    for block, name, value in _lists(ctx):
        bad = [i for i, item in enumerate(value) if (number(item) or 0) <= 0] if isinstance(value, list) else []
        if bad and isinstance(value, list):
            yield LIST_VALUES.found(f"{block.at(name)}[{bad[0]}] = {shown(value[bad[0]])}")


def _lists_differ(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("longrope"):
        short, long = block.data.get("short_factor"), block.data.get("long_factor")
        if isinstance(short, list) and isinstance(long, list) and short != long:
            original = ctx.original(block)
            beyond = f"beyond {original[1]:.0f} tokens " if original else ""
            yield LISTS_DIFFER.found(f"{block.paths[0]}: {beyond}long_factor takes over from short_factor")


def _llama3_bounds(ctx: Context) -> Iterator[Finding]:
    usual = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for block in ctx.of_kind("llama3"):
        missing = {name: value for name, value in usual.items() if block.data.get(name) is None}
        if missing:
            yield LLAMA3_BOUNDS.found(f"{block.paths[0]} has no {' and no '.join(missing)}", block.set(missing))


def _llama3_swapped(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("llama3"):
        low, high = block.number("low_freq_factor"), block.number("high_freq_factor")
        if low is not None and high is not None and low > high:
            fix = block.set({"low_freq_factor": high, "high_freq_factor": low})
            yield LLAMA3_SWAPPED.found(block.says("low_freq_factor", "high_freq_factor"), fix)


CHECKS: Checks = (
    (UNKNOWN_TYPE, _unknown_type),
    (FOREIGN_TYPE, _foreign_type),
    (NO_FACTOR, _no_factor),
    (FACTOR_BELOW_1, _factor_below_1),
    (DYNAMIC, _dynamic),
    (LIST_MISSING, _list_missing),
    (LIST_LENGTH, _list_length),
    (LIST_VALUES, _list_values),
    (LISTS_DIFFER, _lists_differ),
    (LLAMA3_BOUNDS, _llama3_bounds),
    (LLAMA3_SWAPPED, _llama3_swapped),
)
