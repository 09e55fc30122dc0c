"""Rules 301 to 309: the temperature, which has four spellings that no runtime reads all of.

m is the multiplier on cos and sin: `attention_factor` is m itself, `attn_factor` multiplies the default 0.1·ln s + 1,
the pair `mscale`, `mscale_all_dim` gives (0.1·mscale·ln s + 1) / (0.1·mscale_all_dim·ln s + 1).
"""

from collections.abc import Iterator
from typing import Any

from ropecli.dialects.hf_scaling import mscale_pair
from ropecli.findings.context import Block, Context
from ropecli.findings.rule import Checks, Finding, Rule
from ropecli.spec import default_attention_factor, mscale_ratio

TOLERANCE = 1e-3
"""Two temperatures closer than this, relatively, count as the same: configs round to four digits."""

ATTN_ALONE = Rule(
    id="ROPE301",
    severity="error",
    title="attn_factor without attention_factor",
    what="The temperature is written as attn_factor alone.",
    effect=(
        "SGLang and vLLM until August 2026 multiply their default temperature by it; transformers, newer vLLM, "
        "MLX-LM, llama.cpp and the others ignore it."
    ),
    fix="Write attention_factor = attn_factor · (0.1·ln(factor) + 1) beside it, and the mscale pair.",
    source=(
        "transformers 5.23, vLLM 8d9b52f7 and SGLang 623300a5 executed (DeepSeek-R1#684 asks what its 0.8782 means)."
    ),
)

INCONSISTENT = Rule(
    id="ROPE302",
    severity="error",
    title="attn_factor contradicts attention_factor",
    what="attn_factor is not attention_factor / (0.1·ln(factor) + 1).",
    effect=(
        "Runtimes that multiply get another temperature than those that take attention_factor as it is; the same "
        "number in both keys applies the default twice."
    ),
    fix="Write attn_factor = attention_factor / (0.1·ln(factor) + 1).",
    source="sglang#33558: the value of one was copied into the other; mending it gained 20 points on GSM8K.",
)

NOT_FOR_ALL = Rule(
    id="ROPE303",
    severity="warning",
    title="A temperature that some runtimes do not see",
    what="The temperature is not the default, and not spelt in all three ways.",
    effect=(
        "attention_factor is read by transformers, newer vLLM and ExLlamaV3; attn_factor by SGLang and older "
        "vLLM; the mscale pair by MLX-LM, TensorRT-LLM, TGI and ONNX Runtime. The others take 0.1·ln(factor) + 1."
    ),
    fix="Write all of attention_factor, attn_factor, mscale and mscale_all_dim, as `ropecli convert` does.",
    source=(
        "Executed: transformers 5.23, vLLM 8d9b52f7, SGLang 623300a5, MLX-LM 0.32.2, ExLlamaV3 4f8ad012; read: "
        "TensorRT-LLM, TGI."
    ),
)

PAIR_CONTRADICTS = Rule(
    id="ROPE304",
    severity="error",
    title="The mscale pair contradicts the temperature",
    what="mscale and mscale_all_dim give another multiplier than attention_factor.",
    effect="MLX-LM, TensorRT-LLM, TGI and ONNX Runtime take the pair, transformers takes attention_factor.",
    fix="Choose the pair so that (0.1·mscale·ln s + 1) / (0.1·mscale_all_dim·ln s + 1) = attention_factor.",
    source="transformers 5.23, MLX-LM 0.32.2, TensorRT-LLM RopeParams, TGI db931fcf.",
)

HALF_A_PAIR = Rule(
    id="ROPE305",
    severity="warning",
    title="Half of an mscale pair",
    what="Only one of mscale and mscale_all_dim is there, or one of them is 0.",
    effect=(
        "transformers ignores it; MLX-LM, TensorRT-LLM and TGI fill in the other half; ONNX Runtime takes mscale "
        "for the multiplier itself."
    ),
    fix="Write both, or none.",
    source="transformers 5.23 `if mscale and mscale_all_dim`; MLX-LM 0.32.2, ONNX Runtime GenAI a0c04eb1.",
)

LATENT = Rule(
    id="ROPE306",
    severity="info",
    title="Latent attention has its temperature in the softmax",
    what="The model has latent attention (MLA) and mscale_all_dim.",
    effect=(
        "The scores as a whole are multiplied by (0.1·mscale_all_dim·ln s + 1)², and cos and sin only by the "
        "ratio of the mscale pair: equal values leave cos and sin alone, and are no mistake."
    ),
    fix="Nothing to do.",
    source="DeepSeek-V2 and V3 code; transformers pull request 47435; vLLM and SGLang deepseek_yarn.",
)

LATENT_KEYS = Rule(
    id="ROPE307",
    severity="warning",
    title="Temperature keys that latent attention reads otherwise",
    what=(
        "The model has latent attention (MLA), and its config sets attention_factor or attn_factor to something else "
        "than its mscale pair says."
    ),
    effect=(
        "vLLM and SGLang compute such models with deepseek_yarn, which ignores attention_factor and multiplies "
        "the mscale ratio by attn_factor: other scores than in transformers."
    ),
    fix="Use mscale and mscale_all_dim alone.",
    source="vLLM 8d9b52f7 and SGLang 623300a5 deepseek_scaling_rope.py, executed.",
)

NOT_POSITIVE = Rule(
    id="ROPE308",
    severity="error",
    title="A temperature of 0 or less",
    what="attention_factor or attn_factor is not above 0.",
    effect="Every token attends to all others alike, or to what it should avoid.",
    fix="Remove the key for the default, 0.1·ln(factor) + 1.",
    source="transformers 5.23 takes 0 as it is.",
)

LONGROPE_TEMPERATURE = Rule(
    id="ROPE309",
    severity="info",
    title="longrope's attention_factor",
    what="The longrope object sets attention_factor.",
    effect=(
        "transformers uses it; vLLM, SGLang, MLX-LM and the ExLlamas compute sqrt(1 + ln(M/L) / ln L) from the "
        "lengths instead."
    ),
    fix="Nothing that all runtimes read can say another temperature than that formula's.",
    source=(
        "transformers 5.23 _compute_longrope_parameters; vLLM 8d9b52f7, MLX-LM 0.32.2, ExLlamaV2 da07facd, executed."
    ),
)


def _default(block: Block) -> float | None:
    """0.1·ln s + 1 of a YaRN object; None where its factor is missing or makes no sense."""
    factor = _factor(block)
    return None if factor is None else default_attention_factor(factor)


def _factor(block: Block) -> float | None:
    factor = block.rope.spec.scaling.factor if block.rope else block.number("factor")
    return factor if factor is not None and factor > 0 else None


def _pair(block: Block) -> float | None:
    """The multiplier that the mscale pair gives; None where it is incomplete."""
    top, bottom, factor = block.number("mscale"), block.number("mscale_all_dim"), _factor(block)
    if not top or not bottom or factor is None:
        return None
    return _ratio(factor, top, bottom)


def _ratio(factor: float, top: float, bottom: float) -> float | None:
    try:
        return mscale_ratio(factor, top, bottom)
    except ZeroDivisionError:
        return None


def _multiplier(block: Block) -> float | None:
    """m as transformers 5 takes it."""
    given, pair = block.number("attention_factor"), _pair(block)
    return next((m for m in (given, pair, _default(block)) if m is not None), None)


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other))


def spelt_out(block: Block, m: float) -> dict[str, Any]:
    """The fix that says m to every runtime that can be told."""
    factor = _factor(block) or 1.0
    top, bottom = mscale_pair(factor, m)
    values = {"attention_factor": m, "attn_factor": m / default_attention_factor(factor)}
    return block.set({**values, "mscale": top, "mscale_all_dim": bottom})


def _latent(block: Block) -> bool:
    return block.rope is not None and block.rope.mla


def _attn_alone(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        attn, default, m = block.number("attn_factor"), _default(block), _multiplier(block)
        alone = block.data.get("attention_factor") is None and not _latent(block)
        if alone and attn is not None and attn > 0 and default is not None and m and not _same(attn * default, m):
            effect = (
                f"The multiplier on cos and sin is {attn * default:.4g} in SGLang and in vLLM until August 2026, "
                f"{m:.4g} in transformers and most others, which ignore the key."
            )
            yield ATTN_ALONE.found(block.says("attn_factor"), spelt_out(block, attn * default), effect)


def _inconsistent(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        attn, given, default = block.number("attn_factor"), block.number("attention_factor"), _default(block)
        if attn is not None and given and default is not None and not _same(attn * default, given):
            message = f"{block.says('attention_factor', 'attn_factor')}: the latter means {attn * default:.4g}"
            yield INCONSISTENT.found(message, block.set({"attn_factor": given / default}))


def _not_for_all(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        m, default = _multiplier(block), _default(block)
        if m is None or m <= 0 or default is None or _same(m, default) or _latent(block):
            continue
        missing = [key for key in ("attention_factor", "attn_factor") if block.number(key) is None]
        missing += ["mscale, mscale_all_dim"] if _pair(block) is None else []
        if missing:
            message = (
                f"{block.paths[0]} means a multiplier of {m:.5g} on cos and sin, but has no {' and no '.join(missing)}"
            )
            yield NOT_FOR_ALL.found(message, spelt_out(block, m))


def _pair_contradicts(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        given, pair = block.number("attention_factor"), _pair(block)
        if given is not None and given > 0 and pair is not None and not _same(given, pair):
            message = f"{block.says('attention_factor', 'mscale', 'mscale_all_dim')}: the pair means {pair:.4g}"
            top, bottom = mscale_pair(_factor(block) or 1.0, given)
            yield PAIR_CONTRADICTS.found(message, block.set({"mscale": top, "mscale_all_dim": bottom}))


def _half_a_pair(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        halves = [block.number(name) for name in ("mscale", "mscale_all_dim")]
        if bool(halves[0]) != bool(halves[1]):
            m = _multiplier(block)
            fix = spelt_out(block, m) if m is not None and m > 0 and not _latent(block) else {}
            yield HALF_A_PAIR.found(block.says("mscale", "mscale_all_dim"), fix)


def _latent_softmax(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        all_dim, factor = block.number("mscale_all_dim"), _factor(block)
        if all_dim and factor is not None and _latent(block):
            scores = default_attention_factor(factor, 0.1 * all_dim) ** 2
            message = (
                f"{block.says('mscale', 'mscale_all_dim')}: scores are multiplied by {scores:.4g}, cos and sin by "
            )
            yield LATENT.found(f"{message}{_multiplier(block):.4g}")


def _latent_keys(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn"):
        own = ctx.facts.data.get("rope_parameters", {})  # a class that defaults to such a key means it
        keys = ("attention_factor", "attn_factor")
        found = [key for key in keys if block.data.get(key) is not None and key not in own]
        if found and _latent(block) and not _read_alike(block):
            yield LATENT_KEYS.found(block.says(*found), block.set(dict.fromkeys(found)))


def _read_alike(block: Block) -> bool:
    """Whether deepseek_yarn's ratio of the mscale pair, with its defaults, times attn_factor is what others take."""
    factor, m = _factor(block), _multiplier(block)
    if factor is None or m is None:
        return False
    values = [block.number(key) for key in ("mscale", "mscale_all_dim", "attn_factor")]
    top, bottom, attn = (d if v is None else v for v, d in zip(values, (1.0, 0.0, 1.0), strict=True))
    ratio = _ratio(factor, top, bottom)
    return ratio is not None and _same(attn * ratio, m)


def _not_positive(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("yarn", "longrope"):
        for key in ("attention_factor", "attn_factor"):
            value = block.number(key)
            if value is not None and value <= 0:
                yield NOT_POSITIVE.found(block.says(key), block.set({key: None}))


def _longrope_temperature(ctx: Context) -> Iterator[Finding]:
    for block in ctx.of_kind("longrope"):
        if block.number("attention_factor") is not None:
            yield LONGROPE_TEMPERATURE.found(block.says("attention_factor"))


CHECKS: Checks = (
    (ATTN_ALONE, _attn_alone),
    (INCONSISTENT, _inconsistent),
    (NOT_FOR_ALL, _not_for_all),
    (PAIR_CONTRADICTS, _pair_contradicts),
    (HALF_A_PAIR, _half_a_pair),
    (LATENT, _latent_softmax),
    (LATENT_KEYS, _latent_keys),
    (NOT_POSITIVE, _not_positive),
    (LONGROPE_TEMPERATURE, _longrope_temperature),
)
