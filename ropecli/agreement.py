"""Which runtimes will not compute what a conversion means, and what helps them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ropecli.baking import without_temperature
from ropecli.checkpoint import Checkpoint
from ropecli.conversion import Conversion, plan
from ropecli.dialects import hf
from ropecli.dialects.portable import needs_longrope
from ropecli.errors import BadUsage, RopeError
from ropecli.folding import is_foldable
from ropecli.frequencies import divisors, frequencies
from ropecli.inspection import RuntimeRow, runtime_rows, with_text
from ropecli.runtimes.emit import FLAGS, emit
from ropecli.runtimes.serving import Serving
from ropecli.spec import Dynamic, Longrope, RopeSpec

Carrier: TypeAlias = Literal["auto", "native", "longrope"]
"""How a scaling is written: as its own type, as longrope's divisors, or as whichever the model's class takes."""

EMITTED = {"llama.cpp": "llama.cpp", "sglang": "sglang", "vllm": "vllm", "vllm-2026-08": "vllm", "mlx-lm": "mlx"}
"""Runtime rows → names of `--emit`."""

GGUF = "convert its GGUF: ropecli convert MODEL.gguf"
NOTHING = "no config makes it compute this"
FROZEN = "--rope-type ntk freezes it into the base, which every runtime reads"
LONGROPE = "--carrier longrope writes the same frequencies in a form that it reads"
FOLDED = "--bake attention-factor puts the temperature into the weights, and it reads the rest"
FOLDED_LONGROPE = (
    "--carrier longrope --bake attention-factor: frequencies in a form that it reads, the temperature in the weights"
)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A runtime that reads the written config otherwise; `help` says what serves it all the same."""

    runtime: str
    row: RuntimeRow
    help: str


def as_longrope(spec: RopeSpec, *, mla: bool = False) -> RopeSpec:
    """The same frequencies and attention factor, carried by one list of divisors.

    Raises BadUsage for an attention factor below 1, which no runtime but transformers would compute, and for latent
    attention (`mla`), whose runtimes know no longrope.
    """
    table = frequencies(spec, spec.max_length)
    if mla:
        raise BadUsage(
            "the runtimes of latent attention (DeepSeek) know no longrope", where="--carrier", hint="leave it out"
        )
    if table.attention_factor < 1:
        raise BadUsage(
            f"runtimes compute longrope's attention factor from the lengths, never below 1; {table.attention_factor:g} "
            "would be lost",
            where="--carrier",
            hint="add --bake attention-factor, which puts it into the weights, or leave --carrier out",
        )
    factors = divisors(spec, spec.max_length)
    m = table.attention_factor
    return replace(spec, scaling=Longrope(max(spec.scaling.factor, 1.0), factors, factors, m, m))


def carried(
    checkpoint: Checkpoint, intent: Mapping[str, RopeSpec], carrier: Carrier
) -> tuple[dict[str, RopeSpec], str]:
    """(the intent as it will be written, why it is longrope where nobody asked for that).

    carrier  "native", "longrope", or "auto": native, else longrope where the model's class takes nothing else

    Raises BadUsage where longrope is wanted or needed and cannot carry it.
    """
    latent = {rope.name for rope in checkpoint.ropes if rope.mla}
    if carrier == "longrope":
        return {name: as_longrope(spec, mla=name in latent) for name, spec in intent.items()}, ""
    if carrier == "native" or checkpoint.format not in ("hf", "mlx"):
        return dict(intent), ""
    text, _ = hf.text_config(checkpoint.config)
    needing = {name: spec for name, spec in intent.items() if needs_longrope(text, spec)}
    if not needing:
        return dict(intent), ""
    alone = f"transformers loads {text['model_type']} with longrope alone"
    ropes = {rope.name: rope for rope in checkpoint.ropes}
    for name, spec in needing.items():
        if spec.scaling.attention_factor < 1:
            foldable = is_foldable(ropes[name], checkpoint.config)
            raise BadUsage(
                f"{alone}, and runtimes compute its attention factor from the lengths, never below 1; "
                f"{spec.scaling.attention_factor:g} would be lost",
                where=f"{checkpoint.source}: {name}",
                hint="add --bake attention-factor, which puts it into the weights"
                if foldable
                else "give an attention factor of at least 1",
            )
    written = {name: as_longrope(spec, mla=name in latent) for name, spec in needing.items()}
    kinds = ", ".join(dict.fromkeys(spec.rope_type for spec in needing.values()))
    return {**intent, **written}, f"{alone}: the frequencies and the temperature of {kinds} are written as longrope"


def disagreements(conversion: Conversion, runtimes: Collection[str] = ()) -> tuple[Disagreement, ...]:
    """The runtimes (of those named, or of all) for which the written config does not mean what was asked."""
    written = with_text(conversion.checkpoint, conversion.texts["config.json"])
    rows = runtime_rows(written, conversion.intent)
    wrong = {name: row for name, row in rows.items() if not row.agrees and (not runtimes or name in runtimes)}
    if not wrong:
        return ()
    served = _served_otherwise(conversion)
    return tuple(Disagreement(name, row, _help(name, conversion, served)) for name, row in wrong.items())


def previewed_rows(checkpoint: Checkpoint, preview: Mapping[str, RopeSpec]) -> dict[str, RuntimeRow]:
    """What each runtime would make of the config that a conversion to `preview` would write; empty where none could."""
    try:
        intent, _ = carried(checkpoint, preview, "auto")
        conversion = plan(checkpoint, intent)
    except BadUsage:
        return {}
    return runtime_rows(with_text(checkpoint, conversion.texts["config.json"]), conversion.intent)


def refuse_ignored(others: Collection[Disagreement]) -> None:
    """Raises BadUsage where a carrier was asked for, for runtimes of which these do not compute what it carries."""
    for other in others:
        raise BadUsage(f"{other.runtime} does not compute longrope for this model", where="--carrier", hint=other.help)


def _served_otherwise(conversion: Conversion) -> dict[str, Collection[str]]:
    """What helps → the runtimes that it serves, the smallest change first."""
    ropes = {rope.name: rope for rope in conversion.checkpoint.ropes}
    asked = {name: spec for name, spec in conversion.intent.items() if spec != ropes[name].spec}
    ways = {LONGROPE: _agreeing(conversion, asked, longrope=True)}
    if all(is_foldable(ropes[name], conversion.checkpoint.config) for name in asked):
        folded = {name: without_temperature(spec) for name, spec in asked.items()}
        ways[FOLDED] = _agreeing(conversion, folded, longrope=False)
        ways[FOLDED_LONGROPE] = _agreeing(conversion, folded, longrope=True)
    return ways


def _agreeing(conversion: Conversion, intent: Mapping[str, RopeSpec], *, longrope: bool) -> Collection[str]:
    """The runtimes that compute `intent` where it is written natively, or carried as longrope."""
    latent = {rope.name for rope in conversion.checkpoint.ropes if rope.mla}
    try:
        carried = {name: as_longrope(spec, mla=name in latent) for name, spec in intent.items()} if longrope else intent
        other = plan(conversion.checkpoint, carried)
        rows = runtime_rows(with_text(other.checkpoint, other.texts["config.json"]), intent)
    except (RopeError, ArithmeticError, ValueError):
        return ()
    return tuple(name for name, row in rows.items() if row.agrees)


def _help(name: str, conversion: Conversion, served: Mapping[str, Collection[str]]) -> str:
    if any(isinstance(spec.scaling, Dynamic) for spec in conversion.intent.values()):
        return FROZEN
    if name in EMITTED and _has_flags(EMITTED[name], conversion.checkpoint, conversion.intent):
        return f"serve the unchanged source with the flags of --emit {EMITTED[name]}"
    for way, runtimes in served.items():
        if name in runtimes:
            return way
    if name == "llama.cpp":
        return GGUF
    return NOTHING


def _has_flags(name: str, checkpoint: Checkpoint, intent: Mapping[str, RopeSpec]) -> bool:
    if name not in FLAGS:
        return False
    try:
        return bool(emit(name, Serving(checkpoint.config, checkpoint.ropes, intent)))
    except RopeError:
        return False
