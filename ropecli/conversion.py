"""The plan of a conversion, as a value: what the config will say, which files go along. Touches no disk."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import unified_diff
from io import StringIO
from typing import Any, Literal

from ropecli.checkpoint import REPLACEABLE, Checkpoint, scales_scores
from ropecli.dialects import hf, portable
from ropecli.dialects.hf_scaling import served_length, stated_original
from ropecli.dialects.hf_types import trained_for
from ropecli.dialects.portable import Schema
from ropecli.errors import BadCheckpoint, BadParameter, BadUsage
from ropecli.json_edit import with_members
from ropecli.remote_code import model_code
from ropecli.runtimes import RUNTIMES
from ropecli.spec import (
    Dynamic,
    LayerRope,
    Linear,
    Llama3,
    Longrope,
    Ntk,
    NtkByParts,
    Plain,
    RopeSpec,
    Scaling,
    Yarn,
    default_attention_factor,
)
from ropecli.tables import TablePlan
from ropecli.weight_edits import TensorEdit

Layers = Literal["full", "all"]

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "linear": (),
    "ntk": (),
    "dynamic": (),
    "ntk-by-parts": ("--beta-fast", "--beta-slow", "--attention-factor"),
    "yarn": ("--beta-fast", "--beta-slow", "--attention-factor", "--truncate"),
    "llama3": ("--low-freq-factor", "--high-freq-factor"),
    "longrope": ("--factors", "--attention-factor"),
}
"""Scaling by its name on the command line → the options that it has besides its factor."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One member that changes; `old` or `new` is None where it is absent."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Conversion:
    """What will be written.

    intent  layer type → the rotary embedding that the written config must mean
    texts   file name → its new content
    edits   the same as changed members, for people
    notes   what else a user should know
    tables  a file of baked tables to write
    scaled  file name → rows of weights that are written with another scale
    """

    checkpoint: Checkpoint
    intent: Mapping[str, RopeSpec]
    texts: Mapping[str, str]
    edits: tuple[Edit, ...]
    notes: tuple[str, ...]
    tables: TablePlan | None = None
    scaled: Mapping[str, tuple[TensorEdit, ...]] = field(default_factory=dict)

    @property
    def diff(self) -> str:
        """The changed config as a unified diff, as git writes it."""
        # StringIO breaks lines at \n alone; str.splitlines would at characters inside of strings
        old = StringIO(self.checkpoint.config_text).readlines()
        new = StringIO(self.texts["config.json"]).readlines()
        lines = unified_diff(old, new, "a/config.json", "b/config.json")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def nested_members(edits: Sequence[Edit]) -> dict[str, Any]:
    """The new values of edits as one JSON object, what is inside of what as in the config; None where a member goes."""
    whole: dict[str, Any] = {}
    for edit in edits:
        *path, key = edit.key.split(".")
        block = whole
        for name in path:
            block = block.setdefault(name, {})
        block[key] = edit.new
    return whole


def scaling_by_hand(
    rope_type: str,
    spec: RopeSpec,
    factor: float,
    *,
    beta_fast: float | None = None,
    beta_slow: float | None = None,
    attention_factor: float | None = None,
    truncate: bool | None = None,
    low_freq_factor: float | None = None,
    high_freq_factor: float | None = None,
    factors: Sequence[float] | None = None,
) -> Scaling:
    """A scaling from the options of the command line; `factor` is 1 for none.

    Raises BadUsage for an option that the kind does not have, and for a number out of its range.
    """
    given = {
        "--beta-fast": beta_fast,
        "--beta-slow": beta_slow,
        "--attention-factor": attention_factor,
        "--truncate": truncate,
        "--low-freq-factor": low_freq_factor,
        "--high-freq-factor": high_freq_factor,
        "--factors": factors,
    }
    _refuse_foreign_options(rope_type, given)
    if rope_type == "none" and factor != 1:
        raise BadUsage("without scaling nothing is extended", where="--factor", hint="leave --factor out, or use yarn")
    # a ramp that the checkpoint was trained with stays what it is, unless another one is asked for
    trained = spec.scaling if rope_type == "yarn" and isinstance(spec.scaling, Yarn) else Yarn.default(1.0)
    fast, slow = _given(beta_fast, trained.beta_fast), _given(beta_slow, trained.beta_slow)
    rounded = trained.truncate if truncate is None else truncate
    low, high = _given(low_freq_factor, 1.0), _given(high_freq_factor, 4.0)
    for option in ("--beta-fast", "--beta-slow", "--low-freq-factor", "--high-freq-factor"):
        _refuse_no_turns(option, given[option])
    _refuse_no_width("--beta-slow", slow, fast)
    _refuse_no_width("--low-freq-factor", low, high)
    m = _given(attention_factor, 1.0 if rope_type == "ntk-by-parts" else default_attention_factor(factor))
    scalings: dict[str, Callable[[], Scaling]] = {
        "none": Plain,
        "linear": lambda: Linear(factor),
        "ntk": lambda: Ntk(factor),
        "dynamic": lambda: Dynamic(factor),
        "ntk-by-parts": lambda: NtkByParts(factor, fast, slow, m),
        "yarn": lambda: Yarn(factor, m, fast, slow, rounded),
        "llama3": lambda: Llama3(factor, low, high),
        "longrope": lambda: _longrope(spec, factor, factors, m),
    }
    try:
        return scalings[rope_type]()
    except BadParameter as error:
        option = error.where.replace("short_factor", "factors").replace("_", "-")
        raise BadUsage(error.problem, where=f"--{option}", hint=error.hint) from error


def _refuse_foreign_options(rope_type: str, given: Mapping[str, object]) -> None:
    if rope_type not in OPTIONS:
        raise BadUsage(f"unknown {rope_type!r}", where="--rope-type", hint=f"known: {', '.join(OPTIONS)}")
    for option, value in given.items():
        if value is not None and option not in OPTIONS[rope_type]:
            has = ", ".join(OPTIONS[rope_type]) or "no option but --factor"
            raise BadUsage(f"{rope_type} does not have it", where=option, hint=f"{rope_type} has {has}")


def _refuse_no_turns(option: str, value: object) -> None:
    if isinstance(value, float) and not value > 0:
        raise BadUsage(f"expected a number of turns above 0, found {value:g}", where=option)


def _refuse_no_width(option: str, lower: float, upper: float) -> None:
    if lower >= upper:
        raise BadUsage(
            f"expected less than the ramp's upper end, {upper:g}, found {lower:g}",
            where=option,
            hint="pairs that turn less often than the lower end are slowed whole, those that turn more than the "
            "upper end are kept",
        )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _longrope(spec: RopeSpec, factor: float, factors: Sequence[float] | None, attention_factor: float) -> Longrope:
    if factors is None or len(factors) != spec.pairs:
        found = "none" if factors is None else str(len(factors))
        raise BadUsage(
            f"expected {spec.pairs} divisors, one a rotary pair, found {found}",
            where="--factors",
            hint="calibrate --tune factors finds them; convert --rope-type yarn --carrier longrope writes YaRN's",
        )
    return Longrope(factor, tuple(factors), tuple(factors), attention_factor, attention_factor)


def extended(spec: RopeSpec, scaling: Scaling, original_length: int | None = None) -> RopeSpec:
    """`spec` with another scaling, from its original length (or the one given) to factor times that.

    Raises BadUsage where that is out of all bounds, or not a whole number of tokens: runtimes take the factor or the
    length for the truth, so they must agree.
    """
    original = original_length or spec.original_length
    length = original * scaling.factor
    if abs(length - round(length)) > 1e-9 * length:
        raise BadUsage(
            f"factor {scaling.factor:g} times the original length {original} is not a whole number of tokens",
            where="--factor",
            hint=f"use --target-length {round(length)}",
        )
    try:
        return replace(spec, scaling=scaling, original_length=original, max_length=round(length))
    except BadParameter as error:
        option = {"max_length": "--factor", "original_length": "--original-length"}.get(error.where, error.where)
        raise BadUsage(error.problem, where=option, hint=error.hint) from error


def chosen_layers(checkpoint: Checkpoint, layers: Layers) -> tuple[LayerRope, ...]:
    """The layers whose embedding is rewritten: those that attend to everything, or all of them.

    Raises BadCheckpoint where there is nothing to rewrite, or the checkpoint was trained with a scaling of its own, or
    with one that does more than rotate (DeepSeek).
    """
    if not checkpoint.ropes:
        raise BadCheckpoint(
            "the model has no rotary embedding",
            where=checkpoint.source,
            hint="a model with positions of another kind cannot be extended so",
        )
    full = tuple(rope for rope in checkpoint.ropes if rope.sliding_window is None)
    chosen = checkpoint.ropes if layers == "all" or not full else full
    for rope in chosen:
        if rope.spec.rope_type not in REPLACEABLE:
            raise BadCheckpoint(
                f"trained with {rope.spec.rope_type} scaling to {rope.spec.max_length} tokens; "
                "another scaling would take its place, not come on top of it",
                where=f"{checkpoint.source}: {rope.name}",
                hint="convert the checkpoint from before the extension",
            )
        if scales_scores(checkpoint, rope):
            raise BadCheckpoint(
                "trained with a YaRN that multiplies the attention scores too (mscale_all_dim); the factor that they "
                "were trained with would be lost",
                where=f"{checkpoint.source}: {rope.name}",
                hint="convert the checkpoint from before the extension, or serve this one as it is",
            )
    return chosen


def plan(
    checkpoint: Checkpoint,
    intent: Mapping[str, RopeSpec],
    *,
    schema: Schema = "both",
    tokenizer_text: str | None = None,
    runtimes: Collection[str] = (),
) -> Conversion:
    """What to write so that the layers named in `intent` rotate as it says, and all others as before.

    tokenizer_text  tokenizer_config.json, whose `model_max_length` follows where it was the old limit
    runtimes        write only the keys that these need; empty for all
    Raises BadUsage and BadCheckpoint for what cannot be written.
    """
    if checkpoint.format not in ("hf", "mlx"):
        raise BadUsage(
            f"{checkpoint.format} checkpoints cannot be converted",
            where=checkpoint.source,
            hint="convert the model's folder with a config.json, or its .gguf",
        )
    inner, path = hf.text_config(checkpoint.config)
    nested = any(rope.name != "default" for rope in checkpoint.ropes)
    if nested:
        changes = portable.layered_changes(inner, checkpoint.ropes, intent, schema)
    else:
        (spec,) = intent.values()
        changes = portable.flat_changes(inner, spec, schema)
    if runtimes:
        asked = (runtime for runtime in RUNTIMES if runtime.name in runtimes)
        changes = portable.with_temperature(changes, {key for runtime in asked for key in runtime.temperature})
    texts = {"config.json": with_members(checkpoint.config_text, path, changes)}
    after, _ = hf.text_config(json.loads(texts["config.json"]))
    prefix = ".".join(path) + "." if path else ""
    edits = [
        Edit(prefix + key, inner.get(key), after.get(key))
        for key in changes
        if json.dumps(inner.get(key)) != json.dumps(after.get(key)) or (key in inner) != (key in after)
    ]
    notes = []
    if tokenizer_text is not None:
        limit = json.loads(tokenizer_text).get("model_max_length")
        length = max(served_length(spec) for spec in intent.values())
        old_limits = [inner.get(key) for key in changes if after.get(key) == length]
        if limit is not None and limit != length and limit in old_limits:
            texts["tokenizer_config.json"] = with_members(tokenizer_text, (), {"model_max_length": length})
            edits.append(Edit("tokenizer_config.json: model_max_length", limit, length))
    whole = {rope.name: intent.get(rope.name, rope.spec) for rope in checkpoint.ropes}
    if any(isinstance(spec.scaling, Dynamic) for spec in intent.values()):
        notes.append("dynamic means something else in nearly every runtime; --rope-type ntk freezes it into the base")
    for spec in intent.values():
        notes += _what_to_expect(spec, texts["config.json"], runtimes)
    notes += what_was_trained(checkpoint, intent)
    if own := model_code(checkpoint.config):
        notes.append(
            f"the model brings code of its own, {own[0]:.80}: where that is trusted it makes the embedding, and it "
            "may not read these keys"
        )
    return Conversion(checkpoint, whole, texts, tuple(edits), tuple(dict.fromkeys(notes)))


def what_was_trained(checkpoint: Checkpoint, intent: Mapping[str, RopeSpec]) -> list[str]:
    """What a factor is counted from, where that is not the trained length; and a YaRN that is taken away."""
    notes = []
    for rope in checkpoint.ropes:
        asked = intent.get(rope.name, rope.spec)
        trained = trained_for(checkpoint.model_type, asked.original_length)
        if trained and not isinstance(asked.scaling, Plain):
            notes.append(
                f"{checkpoint.model_type} was trained for {trained} tokens, and this counts from "
                f"{asked.original_length}: give --original-length {trained}, to calibrate as well"
            )
        if isinstance(rope.spec.scaling, Yarn) and asked.scaling != rope.spec.scaling:
            notes.append(
                f"the checkpoint's own YaRN, of factor {rope.spec.scaling.factor:g}, is replaced; a model that was "
                "trained with its YaRN, as gpt-oss, must keep it"
            )
    return list(dict.fromkeys(notes))


def _what_to_expect(spec: RopeSpec, text: str, runtimes: Collection[str]) -> list[str]:
    """What a carrier costs, warnings that loading will print, and flags that a runtime still needs."""
    notes = []
    asked = set(runtimes) or {"transformers", "vllm", "sglang"}
    if '"attn_factor"' in text and asked & {"transformers", "transformers-4"}:
        notes.append(
            "transformers warns of the unrecognized key attn_factor on load, which SGLang and older vLLM need; "
            "--for transformers leaves it out"
        )
    stated = stated_original(spec)
    if stated != spec.original_length:
        notes.append(
            f"the config states an original length of {stated} tokens, not {spec.original_length}: runtimes compute "
            "longrope's attention factor from it"
        )
    if isinstance(spec.scaling, Ntk):
        notes.append(
            "the new base says it all: the config no longer tells that the model was trained at "
            f"{spec.original_length} tokens"
        )
    if isinstance(spec.scaling, NtkByParts):
        notes.append("it is written as llama3, which has no temperature: the attention factor is 1")
    if isinstance(spec.scaling, Longrope) and asked & {"vllm", "vllm-2026-08"}:
        notes.append(
            f"vLLM takes the stated original length for its limit: serve with --max-model-len {spec.max_length}"
        )
    if isinstance(spec.scaling, Linear) and asked & {"vllm", "vllm-2026-08"}:
        notes.append(f"vLLM multiplies the length by the factor again: serve with --max-model-len {spec.max_length}")
    return notes
