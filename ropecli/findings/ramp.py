"""Rules 401 to 412: YaRN's ramp, its two betas, and whether its corners are rounded.

The ramp runs from the pair that turns beta_fast (β) times inside the original length to the one that turns beta_slow
(α) times. Most runtimes round these two corners outwards to whole pairs, some never do.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from ropecli.dialects.hf_scaling import whole_corners
from ropecli.findings.context import Block, Context, shown
from ropecli.findings.rule import Checks, Finding, Rule
from ropecli.frequencies import base_frequencies, corner, frequencies, snapped_betas, yarn_corners
from ropecli.spec import LayerRope, RopeSpec, Yarn

EDGE = 0.02
"""Pairs between a corner and a whole number within which a small change of a beta moves the ramp by a whole pair."""

SNAPPED = (1e-5, 2e-4)
"""Pairs inside a whole number at which a corner was put on purpose: rounding outwards lands on that number for sure, in
single precision too, and not rounding hardly moves the ramp."""

WORTH_SAYING = 1e-3
"""Relative difference of a frequency below which two ramps count as the same."""

FRACTIONAL = Rule(
    id="ROPE401",
    severity="info",
    title="Corners between two pairs",
    what="The ramp's corners are no whole pairs, and rounding them is left to the runtime.",
    effect="Runtimes that round agree with each other; ONNX Runtime GenAI never rounds and gets other frequencies.",
    fix=(
        "Move the betas so that the corners are whole pairs, as `ropecli convert` writes them: then rounding does "
        "nothing."
    ),
    source=(
        "ONNX Runtime GenAI a0c04eb1 make_inv_freq_rescaled_with_ntk; transformers 5.23 rounds unless truncate is "
        "false."
    ),
)

EDGE_OF_A_CELL = Rule(
    id="ROPE402",
    severity="info",
    title="A beta at the edge",
    what=(
        "A corner lies within 0.02 pairs of a whole number, so that hardly any change of the beta rounds it to "
        "another pair."
    ),
    effect="A beta rounded to fewer digits, or computed in single precision, can move the ramp by a whole pair.",
    fix="Write the beta of the fix: the same ramp, a safe distance from the edge.",
    source="transformers 5.23 and ggml floor one corner and ceil the other: the ramp is a staircase in its betas.",
)

BETA_UNSET = Rule(
    id="ROPE403",
    severity="error",
    title="A beta of 0 or null",
    what="beta_fast or beta_slow is 0 or null.",
    effect=(
        "transformers takes its default, 32 or 1, silently; MLX-LM and ONNX Runtime stop on a division by zero or "
        "a null."
    ),
    fix="Write the number, or remove the key for the default.",
    source="transformers 5.23 `beta_fast or 32`; MLX-LM 0.32.2, ONNX Runtime GenAI a0c04eb1.",
)

SWAPPED = Rule(
    id="ROPE404",
    severity="error",
    title="The betas are swapped",
    what="beta_slow (α) is above beta_fast (β).",
    effect=(
        "The ramp runs backwards: fast pairs, which tell neighbours apart, are slowed down, and slow pairs are "
        "kept. ggml clamps the ramp to a step instead."
    ),
    fix="Write the larger number as beta_fast.",
    source="transformers 5.23 only warns; torchtitan had the two swapped for months (its pull request 3787).",
)

FAST_ALONE = Rule(
    id="ROPE405",
    severity="warning",
    title="One beta without the other",
    what="Only one of beta_fast and beta_slow is written.",
    effect="ONNX Runtime GenAI divides by zero without beta_slow, and ignores YaRN without beta_fast.",
    fix="Write both.",
    source="ONNX Runtime GenAI a0c04eb1 builders/base.py, executed.",
)

NO_BETAS = Rule(
    id="ROPE406",
    severity="info",
    title="YaRN without betas",
    what="Neither beta is written, so that each runtime takes its default.",
    effect=(
        "All known runtimes default to 32 and 1, but ONNX Runtime GenAI switches YaRN on by the key beta_fast: "
        "without it the model is unscaled there."
    ),
    fix="Write both: 32.0 and 1.0, or the numbers of the fix, whose corners are the same whole pairs.",
    source="ONNX Runtime GenAI a0c04eb1 builders/base.py, executed.",
)

BETAS_UNREAD = Rule(
    id="ROPE407",
    severity="info",
    title="Betas that some runtimes do not read",
    what="The betas give another ramp than 32 and 1.",
    effect="llama.cpp (but for Mistral-3), TGI and ExLlamaV2 always use 32 and 1.",
    fix="Give llama.cpp --yarn-beta-fast and --yarn-beta-slow, or a GGUF with the divisors in rope_freqs.weight.",
    source=(
        "llama.cpp 3f545bec, run as xllamacpp 2026.10: the betas in the file change nothing; TGI db931fcf, "
        "ExLlamaV2 da07facd."
    ),
)

NESTED_TRUNCATE = Rule(
    id="ROPE408",
    severity="warning",
    title="truncate inside a layer type",
    what="truncate: false stands inside an object for one layer type.",
    effect="transformers 5.23 looks for truncate in the object around it, and rounds; vLLM and SGLang do not.",
    fix="Remove it and move the betas so that the corners are whole pairs.",
    source=(
        "transformers 5.23 _compute_yarn_parameters reads config.rope_parameters; run on Olmo-3, Gemma-3, Ministral-3."
    ),
)

NOT_ROUNDED = Rule(
    id="ROPE409",
    severity="info",
    title="Corners that are not rounded",
    what="truncate is false, and the corners are no whole pairs.",
    effect=(
        "transformers, vLLM, SGLang, ExLlamaV3 and ONNX Runtime do not round; llama.cpp, MLX-LM, TensorRT-LLM, "
        "TGI and ExLlamaV2 have no such key and round."
    ),
    fix="A model trained so (gpt-oss) must keep it; else move the betas so that the corners are whole pairs.",
    source="MLX-LM 0.32.2 and ggml, executed; TensorRT-LLM RopeEmbeddingUtils, TGI db931fcf.",
)

SHORT_TEXTS = Rule(
    id="ROPE410",
    severity="info",
    title="YaRN also changes short texts",
    what="The scaling is static: it applies to texts of every length.",
    effect=(
        "Texts within the original length are read with the slowed pairs of long ones, and usually a little worse."
    ),
    fix=(
        "Choose the smallest factor that reaches the length you need. A model that was trained with its scaling "
        "(DeepSeek, gpt-oss) must keep it."
    ),
    source="Qwen's model cards; exllamav3#29, sglang#6030, Kimi-K2#55.",
)

MROPE = Rule(
    id="ROPE411",
    severity="warning",
    title="YaRN with mrope",
    what="The object has both YaRN and mrope_section.",
    effect="vLLM computes the ramp for four times the original length, so that more pairs are kept than elsewhere.",
    fix="No key mends it.",
    source="vLLM 8d9b52f7 mrope.py, executed: an original length of 2048 gave the ramp of 8192.",
)

STEP = Rule(
    id="ROPE412",
    severity="warning",
    title="A step instead of a ramp",
    what="beta_fast and beta_slow are equal.",
    effect=(
        "Readers that round make a step between two neighbouring pairs of it; ONNX Runtime GenAI, which does not, "
        "stops; llama.cpp, TGI and ExLlamaV2 read no betas and make the usual ramp."
    ),
    fix="A model trained so (Kimi-K2) must keep it; else give beta_fast the larger number.",
    source="transformers 5.24 and MLX-LM 0.32.2, executed; ONNX Runtime GenAI a0c04eb1, whose assertion it is.",
)


def _yarns(ctx: Context) -> Iterator[tuple[Block, LayerRope, Yarn]]:
    """The YaRN objects that could be read, with their meaning."""
    for block in ctx.of_kind("yarn"):
        if block.rope is not None and isinstance(block.rope.spec.scaling, Yarn):
            yield block, block.rope, block.rope.spec.scaling


def _place(spec: RopeSpec) -> tuple[float, int, int]:
    return spec.rope_theta, spec.rotary_dim, spec.original_length


def _difference(spec: RopeSpec, yarn: Yarn) -> float:
    """The largest relative difference of a frequency under another YaRN."""
    ours, theirs = frequencies(spec).inv_freq, frequencies(replace(spec, scaling=yarn)).inv_freq
    return max((abs(b - a) / a for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _corners(spec: RopeSpec, yarn: Yarn) -> str:
    low, high = yarn_corners(spec, replace(yarn, truncate=False))
    return f"the ramp of {spec.pairs} pairs runs from {low:.4g} to {high:.4g}"


def _whole(spec: RopeSpec, yarn: Yarn) -> dict[str, float]:
    """Betas whose corners are the whole pairs that this YaRN is rounded to; nothing where they leave the ramp."""
    low, high = (int(c) for c in yarn_corners(spec, replace(yarn, truncate=True)))
    if not low < high:
        return {}
    fast, slow = snapped_betas(spec, low, high)
    return {"beta_fast": fast, "beta_slow": slow}


def _fractional(ctx: Context) -> Iterator[Finding]:
    for block, rope, yarn in _yarns(ctx):
        x = _difference(rope.spec, replace(yarn, truncate=False))
        if yarn.truncate and x > WORTH_SAYING and not rope.mla and yarn.beta_slow < yarn.beta_fast:
            message = f"{_corners(rope.spec, yarn)}; unrounded, a frequency differs by up to {100 * x:.2g} %"
            yield FRACTIONAL.found(f"{block.paths[0]}: {message}", block.set(_whole(rope.spec, yarn)))


def _edge_of_a_cell(ctx: Context) -> Iterator[Finding]:
    for block, rope, yarn in _yarns(ctx):
        if not yarn.truncate or yarn.beta_slow >= yarn.beta_fast:
            continue
        for name, beta, inwards in (("beta_fast", yarn.beta_fast, 1), ("beta_slow", yarn.beta_slow, -1)):
            at = corner(beta, *_place(rope.spec))
            inside = (at - round(at)) * inwards
            seen = 0 < at < rope.spec.rotary_dim - 1
            if seen and abs(inside) < EDGE and not SNAPPED[0] <= inside <= SNAPPED[1]:
                step = rope.spec.rope_theta ** (2 * abs(inside) / rope.spec.rotary_dim) - 1
                change = f"{100 * step:.2g} % {'more' if (inside > 0) == (inwards > 0) else 'less'}"
                message = (
                    f"{block.at(name)} = {shown(beta)} has its corner at pair {at:.5g}: "
                    f"{change} would move the ramp by a pair"
                )
                whole = _whole(rope.spec, yarn)
                yield EDGE_OF_A_CELL.found(message, block.set({name: whole[name]} if whole else {}))


def _beta_unset(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        for name in ("beta_fast", "beta_slow"):
            if name in block.data and (block.data[name] is None or block.number(name) == 0):
                yield BETA_UNSET.found(block.says(name), block.set({name: 32.0 if name == "beta_fast" else 1.0}))


def _swapped(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        fast, slow = block.number("beta_fast") or 32.0, block.number("beta_slow") or 1.0
        if slow > fast:
            message = f"beta_slow = {shown(slow)}, beta_fast = {shown(fast)} in {block.paths[0]}"
            yield SWAPPED.found(message, block.set({"beta_fast": slow, "beta_slow": fast}))


def _step(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        fast, slow = block.number("beta_fast"), block.number("beta_slow")
        if fast and fast == slow:
            yield STEP.found(block.says("beta_fast", "beta_slow"))


def _fast_alone(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        missing = [name for name in ("beta_fast", "beta_slow") if name not in block.data]
        if len(missing) == 1:
            fix = block.set({missing[0]: 32.0 if missing[0] == "beta_fast" else 1.0})
            yield FAST_ALONE.found(f"{block.at(missing[0])} is missing", fix)


def _no_betas(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        if not {"beta_fast", "beta_slow"} & block.data.keys() and not (block.rope and block.rope.mla):
            scaling = block.rope.spec.scaling if block.rope else None
            whole = _whole(block.rope.spec, scaling) if block.rope and isinstance(scaling, Yarn) else {}
            yield NO_BETAS.found(
                f"{block.paths[0]} has no betas", block.set(whole or {"beta_fast": 32.0, "beta_slow": 1.0})
            )


def _betas_unread(ctx: Context) -> Iterator[Finding]:
    for block, rope, yarn in _yarns(ctx):
        x = _difference(rope.spec, replace(yarn, beta_fast=32.0, beta_slow=1.0, truncate=True))
        if x > WORTH_SAYING and (yarn.beta_fast, yarn.beta_slow) != (32.0, 1.0):
            message = (
                f"{block.says('beta_fast', 'beta_slow')}: with 32 and 1 a frequency differs by up to {100 * x:.2g} %"
            )
            yield BETAS_UNREAD.found(message)


def _nested_truncate(ctx: Context) -> Iterator[Finding]:
    for block, rope, yarn in _yarns(ctx):
        if block.layer and block.data.get("truncate") is False and yarn.truncate:
            fix = block.set({"truncate": None, **_whole(rope.spec, yarn)})
            yield NESTED_TRUNCATE.found(block.says("truncate"), fix)


def _not_rounded(ctx: Context) -> Iterator[Finding]:
    for block, rope, yarn in _yarns(ctx):
        if not yarn.truncate and whole_corners(rope.spec, yarn) is None:
            x = _difference(rope.spec, replace(yarn, truncate=True))
            message = f"{_corners(rope.spec, yarn)}; rounded, a frequency differs by up to {100 * x:.2g} %"
            yield NOT_ROUNDED.found(f"{block.paths[0]}: {message}")


def _short_texts(ctx: Context) -> Iterator[Finding]:
    for rope in ctx.ropes or ():
        spec = rope.spec
        if isinstance(spec.scaling, Yarn) and spec.scaling.factor > 1:
            base = base_frequencies(spec.rope_theta, spec.rotary_dim)
            slowed = sum(1 for w, v in zip(base, frequencies(spec).inv_freq, strict=True) if not math.isclose(v, w))
            told = f"{slowed} of {spec.pairs} pairs are slowed, by up to {spec.scaling.factor:g} times"
            layers = f"{rope.name}: " if rope.name != "default" else ""
            message = f"{layers}at every length, below {spec.original_length} tokens too, {told}"
            m = spec.scaling.attention_factor
            warmer = "" if math.isclose(m, 1.0) else f", and cos and sin multiplied by {m:.4g}"
            yield SHORT_TEXTS.found(message + warmer)


def _mrope(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        if block.data.get("mrope_section"):
            yield MROPE.found(block.says("rope_type", "type", "mrope_section"))


CHECKS: Checks = (
    (FRACTIONAL, _fractional),
    (EDGE_OF_A_CELL, _edge_of_a_cell),
    (BETA_UNSET, _beta_unset),
    (SWAPPED, _swapped),
    (FAST_ALONE, _fast_alone),
    (NO_BETAS, _no_betas),
    (BETAS_UNREAD, _betas_unread),
    (NESTED_TRUNCATE, _nested_truncate),
    (NOT_ROUNDED, _not_rounded),
    (SHORT_TEXTS, _short_texts),
    (MROPE, _mrope),
    (STEP, _step),
)
