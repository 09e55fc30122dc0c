"""Rules 601 and 602: layers that need no scaling, and the tokenizer's own limit."""

from collections.abc import Iterator

from ropecli.findings.context import Context, number
from ropecli.findings.rule import Checks, Finding, Rule
from ropecli.spec import LayerRope

NO_LIMIT = 1e9
"""Tokenizers write numbers above this for "no limit" (transformers: 1e30)."""

SLIDING_SCALED = Rule(
    id="ROPE601",
    severity="warning",
    title="Sliding-window layers are scaled",
    what="The scaling also applies to layers that attend to a short window only.",
    effect=(
        "These layers never see a distance that they were not trained for: scaling them gains nothing and costs "
        "quality at every length."
    ),
    fix="Scale the full-attention layers alone, in an object for each layer type.",
    source="vllm#43419: scaling Olmo-3's sliding layers too cost 64.2 → 60.5 on MMLU.",
)

TOKENIZER_LIMIT = Rule(
    id="ROPE602",
    severity="warning",
    title="The tokenizer stops earlier than the model",
    what="model_max_length of the tokenizer is below the length that the config serves.",
    effect=(
        "Where truncation is on, longer texts are cut to the tokenizer's limit; elsewhere transformers warns of them."
    ),
    fix="Write the same length into tokenizer_config.json.",
    source="transformers 5.23 PreTrainedTokenizerBase.model_max_length (h2ogpt#524).",
)


def _sliding_scaled(ctx: Context) -> Iterator[Finding]:
    by_class = ctx.facts.data.get("rope_parameters", {}).get("rope_type")
    for rope in ctx.ropes or ():
        scaled = rope.spec.rope_type not in ("default", "proportional", by_class)
        window = _window(ctx, rope)
        if scaled and window is not None and window < rope.spec.max_length:
            message = f"{rope.spec.rope_type} also scales layers that see {window} tokens at a time"
            layers = f"{rope.name}: " if rope.name != "default" else ""
            yield SLIDING_SCALED.found(layers + message)


def _window(ctx: Context, rope: LayerRope) -> int | None:
    """The window of the layers that share this embedding, if any of them has one."""
    if rope.sliding_window is not None:
        return rope.sliding_window
    kinds, window = ctx.text.get("layer_types"), number(ctx.text.get("sliding_window"))
    mixed = rope.name == "default" and isinstance(kinds, list) and "sliding_attention" in kinds
    return int(window) if mixed and window is not None and window >= 1 else None


def _tokenizer_limit(ctx: Context) -> Iterator[Finding]:
    limit = number((ctx.tokenizer or {}).get("model_max_length"))
    served = max((rope.spec.max_length for rope in ctx.ropes or ()), default=0)
    if limit is not None and 0 < limit < NO_LIMIT and limit < served:
        key = "tokenizer_config.json: model_max_length"
        yield TOKENIZER_LIMIT.found(f"{key} = {limit:.0f}, but the config serves {served} tokens", {key: served})


CHECKS: Checks = ((SLIDING_SCALED, _sliding_scaled), (TOKENIZER_LIMIT, _tokenizer_limit))
