"""Rules 201 to 209: the factor, the original length L and max_position_embeddings M, which must fit together."""

from collections.abc import Iterator

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.dialects.hf_types import trained_for
from ropecli.findings.context import LONGEST, Block, Context, shown
from ropecli.findings.rule import Checks, Finding, Rule

DISAGREE = Rule(
    id="ROPE201",
    severity="error",
    title="factor, original length and maximum disagree",
    what="factor is not max_position_embeddings / original_max_position_embeddings.",
    effect=(
        "Runtimes take different two of the three: ExLlamaV3 takes the ratio of the lengths for the factor, "
        "longrope's temperature is made of either, vLLM serves factor times the original length, and most others "
        "stop at max_position_embeddings."
    ),
    fix="Make max_position_embeddings = factor · original_max_position_embeddings exactly.",
    source=(
        "transformers 5.23 warns and takes factor; ExLlamaV3 4f8ad012 takes the ratio (transformers#38224, vllm#8793)."
    ),
)

ORIGINAL_TOO_LONG = Rule(
    id="ROPE202",
    severity="warning",
    title="llama3 that extends nothing",
    what="The original length of llama3 scaling is not below max_position_embeddings.",
    effect=(
        "Pairs that turn rarely are slowed down although no length is gained; often the two lengths are swapped "
        "or one was forgotten."
    ),
    fix="Write the trained length as the original one, and the extended length as max_position_embeddings.",
    source="transformers 5.23 _validate_llama3_rope_parameters warns.",
)

NOT_RAISED = Rule(
    id="ROPE203",
    severity="warning",
    title="The context length was not raised",
    what="YaRN is on, but max_position_embeddings is still the original length.",
    effect=(
        "SGLang, llama.cpp, TGI, TensorRT-LLM and ONNX Runtime serve no more than before, ExLlamaV2 and ExLlamaV3 "
        "do not scale at all: all cost of YaRN, and none of its use."
    ),
    fix="Set max_position_embeddings to factor · original_max_position_embeddings.",
    source="runtimes read 2025-12 to 2026-09; vllm#10293, sglang#2108, open-r1#645.",
)

NO_ORIGINAL = Rule(
    id="ROPE204",
    severity="error",
    title="No original length",
    what="The scaling needs original_max_position_embeddings, which is nowhere in the file.",
    effect=(
        "Each reader assumes another one: transformers and vLLM max_position_embeddings, MLX-LM 4096, "
        "TensorRT-LLM 1024; llama.cpp's converter and TGI stop."
    ),
    fix="Write the length that the model was trained for as original_max_position_embeddings.",
    source="transformers 5.23, MLX-LM 0.32.2, TensorRT-LLM RopeParams, llama.cpp conversion/base.py (2026-08).",
)

ORIGINAL_OUTSIDE = Rule(
    id="ROPE205",
    severity="warning",
    title="The original length stands outside the scaling",
    what="original_max_position_embeddings is at the top level alone, for a scaling that most readers look into.",
    effect="transformers 4 takes max_position_embeddings for it, MLX-LM 4096, TGI stops.",
    fix="Write it inside the scaling object too.",
    source="transformers 4.57.6 _compute_yarn_parameters, MLX-LM 0.32.2 rope_utils.py.",
)

ORIGINAL_INSIDE = Rule(
    id="ROPE206",
    severity="warning",
    title="longrope without a top-level original length",
    what="original_max_position_embeddings is inside the longrope object alone.",
    effect=(
        "transformers 4 then takes max_position_embeddings for it: it never switches to the long factors, and its "
        "temperature is off. ExLlamaV2 and TGI stop."
    ),
    fix="Write it at the top level too.",
    source="transformers 4.57.6 _compute_longrope_parameters.",
)

ORIGINALS_DIFFER = Rule(
    id="ROPE207",
    severity="error",
    title="Two different original lengths",
    what="original_max_position_embeddings at the top level and inside the scaling object differ.",
    effect=(
        "transformers 5, ONNX Runtime GenAI and TensorRT-LLM take the one at the top level, the others the one inside."
    ),
    fix="Write one value.",
    source="transformers 5.23 standardize_rope_params.",
)

LINEAR_LENGTH = Rule(
    id="ROPE208",
    severity="info",
    title="linear: two readings of the maximum",
    what=(
        "With linear scaling runtimes disagree on whether max_position_embeddings is the original or the extended "
        "length."
    ),
    effect=(
        "vLLM, SGLang and TensorRT-LLM multiply it by the factor and may offer more than the model can do; the "
        "others take it as it is."
    ),
    fix="Give those runtimes the length by flag (vLLM: --max-model-len). No key says it to all.",
    source="vLLM config/model.py (2026-08), SGLang get_context_length (2026-06), TensorRT-LLM infer_max_seq_len.",
)


MORE_THAN_TRAINED = Rule(
    id="ROPE209",
    severity="info",
    title="The maximum is more than the trained length",
    what="The config states more positions than this family was trained for, and no original length.",
    effect=(
        "A factor that is counted from the stated length is too small, and the ramp's L too large: for Qwen3, 128k is "
        "4 times the trained length, and only 3.2 times the stated one."
    ),
    fix="Give --original-length to inspect, calibrate and convert. Qwen's own YaRN has 32768 there, and a factor of 4.",
    source="The model cards of Qwen3: trained for 32,768 tokens, 40,960 in config.json.",
)


def _told(ctx: Context, block: Block) -> str:
    """The factor and the two lengths, as found."""
    original, longest = ctx.original(block), ctx.longest
    parts = [block.says("factor")]
    parts += [f"{original[0]} = {original[1]:.0f}"] if original else []
    parts += [f"{ctx.at(longest[0])} = {longest[1]:.0f}"] if longest else []
    return ", ".join(part for part in parts if part)


def _extended(ctx: Context, factor: float, original: float) -> dict[str, object]:
    """The fix that makes max_position_embeddings fit; none where it would be no whole number."""
    longest = factor * original
    whole = factor >= 1 and abs(longest - round(longest)) <= 1e-6 * longest
    return {ctx.at(LONGEST): round(longest)} if whole else {}


def _disagree(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn", "longrope"):
        factor, original, longest = block.number("factor"), ctx.original(block), ctx.longest
        if factor is None or factor < 1 or original is None or longest is None or longest[1] == original[1]:
            continue
        if abs(longest[1] - factor * original[1]) >= 1:
            message = f"{_told(ctx, block)}: the lengths imply a factor of {longest[1] / original[1]:.4g}"
            yield DISAGREE.found(message, _extended(ctx, factor, original[1]))


def _original_too_long(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("llama3"):
        original, longest = ctx.original(block), ctx.longest
        if original and longest and original[1] >= longest[1]:
            yield ORIGINAL_TOO_LONG.found(_told(ctx, block))


def _not_raised(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        factor, original, longest = block.number("factor"), ctx.original(block), ctx.longest
        if factor is not None and factor > 1 and original and longest and original[1] == longest[1]:
            yield NOT_RAISED.found(_told(ctx, block), _extended(ctx, factor, original[1]))


def _no_original(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn", "llama3", "longrope"):
        stated = block.data.get(ORIGINAL) is not None  # as text, say, which is another finding
        if ctx.original(block) is None and not stated and ORIGINAL not in ctx.facts.data:
            longest, factor = ctx.longest, block.number("factor")
            fix: dict[str, object] = {}
            if block.kind == "yarn" and longest is not None and factor is not None:
                # what transformers 5 takes for it, so that nothing changes there
                fix = block.set({ORIGINAL: int(longest[1])}) | _extended(ctx, factor, longest[1])
            yield NO_ORIGINAL.found(f"{block.at(ORIGINAL)} is missing; {_told(ctx, block)}", fix)


def _original_outside(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn", "llama3"):
        original = ctx.original(block)
        if original is not None and block.data.get(ORIGINAL) is None:
            message = f"{original[0]} = {original[1]:.0f}, but {block.at(ORIGINAL)} is missing"
            yield ORIGINAL_OUTSIDE.found(message, block.set({ORIGINAL: int(original[1])}))


def _original_inside(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("longrope"):
        original = block.number(ORIGINAL)
        same = block.data.get("short_factor") == block.data.get("long_factor") and "attention_factor" in block.data
        if original is not None and not same and not block.layer and ctx.text.get(ORIGINAL) is None:
            message = f"{block.says(ORIGINAL)}, but {ctx.at(ORIGINAL)} is missing"
            yield ORIGINAL_INSIDE.found(message, {ctx.at(ORIGINAL): block.data[ORIGINAL]})


def _originals_differ(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn", "llama3", "longrope"):
        outside, inside = ctx.original(block), block.number(ORIGINAL)
        if outside is not None and inside is not None and outside[1] != inside and not block.layer:
            message = f"{outside[0]} = {outside[1]:.0f}, {block.says(ORIGINAL)}"
            yield ORIGINALS_DIFFER.found(message, block.set({ORIGINAL: int(outside[1])}))


def _linear_length(ctx: Context) -> Iterator[Finding]:
    if ctx.facts.name.startswith("gemma3"):  # vLLM makes an exception of it
        return
    for block in ctx.of_kind("linear"):
        factor, longest = block.number("factor"), ctx.longest
        if factor is not None and factor > 1 and longest is not None:
            served = shown(int(factor * longest[1]))
            yield LINEAR_LENGTH.found(f"{_told(ctx, block)}: vLLM serves {served} tokens")


def _more_than_trained(ctx: Context) -> Iterator[Finding]:
    longest = ctx.longest
    trained = None if longest is None else trained_for(ctx.facts.name, longest[1])
    if longest and trained and any(rope.spec.original_length == longest[1] for rope in ctx.ropes or ()):
        message = f"{ctx.at(longest[0])} = {longest[1]:.0f}, but the model was trained for {trained} tokens"
        yield MORE_THAN_TRAINED.found(f"{message}: give --original-length {trained}")


CHECKS: Checks = (
    (DISAGREE, _disagree),
    (ORIGINAL_TOO_LONG, _original_too_long),
    (NOT_RAISED, _not_raised),
    (NO_ORIGINAL, _no_original),
    (ORIGINAL_OUTSIDE, _original_outside),
    (ORIGINAL_INSIDE, _original_inside),
    (ORIGINALS_DIFFER, _originals_differ),
    (LINEAR_LENGTH, _linear_length),
    (MORE_THAN_TRAINED, _more_than_trained),
)
