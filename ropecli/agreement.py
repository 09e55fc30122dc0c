"""Which runtimes will not compute what a conversion means, and what helps them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ropecli.checkpoint import Checkpoint
from ropecli.conversion import Conversion, plan
from ropecli.errors import BadUsage, RopeError
from ropecli.frequencies import base_frequencies, frequencies
from ropecli.inspection import RuntimeRow, runtime_rows, with_text
from ropecli.runtimes.emit import FLAGS, emit
from ropecli.runtimes.serving import Serving
from ropecli.spec import Longrope, RopeSpec

EMITTED = {"llama.cpp": "llama.cpp", "sglang": "sglang", "vllm": "vllm", "vllm-2026-08": "vllm", "mlx-lm": "mlx"}
"""Runtime rows → names of `--emit`."""


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
            hint="--bake attention-factor puts it into the weights, or leave --carrier out",
        )
    base = base_frequencies(spec.rope_theta, spec.rotary_dim)
    divisors = tuple(w / now for w, now in zip(base, table.inv_freq, strict=True))
    m = table.attention_factor
    return replace(spec, scaling=Longrope(max(spec.scaling.factor, 1.0), divisors, divisors, m, m))


def disagreements(conversion: Conversion, runtimes: Collection[str] = ()) -> tuple[Disagreement, ...]:
    """The runtimes (of those named, or of all) for which the written config does not mean what was asked."""
    written = with_text(conversion.checkpoint, conversion.texts["config.json"])
    rows = {name: row for name, row in runtime_rows(written).items() if not runtimes or name in runtimes}
    wrong = {name: row for name, row in rows.items() if not row.agrees}
    if not wrong:
        return ()
    carried = _carried_by_longrope(conversion)
    return tuple(Disagreement(name, row, _help(name, conversion, carried)) for name, row in wrong.items())


def _carried_by_longrope(conversion: Conversion) -> Mapping[str, RuntimeRow]:
    try:
        intent = {name: as_longrope(spec) for name, spec in conversion.intent.items()}
        other = plan(conversion.checkpoint, intent)
        return runtime_rows(with_text(other.checkpoint, other.texts["config.json"]))
    except (RopeError, ArithmeticError):
        return {}


def _help(name: str, conversion: Conversion, carried: Mapping[str, RuntimeRow]) -> str:
    if name in EMITTED and _has_flags(EMITTED[name], conversion.checkpoint, conversion.intent):
        return f"serve the unchanged source with the flags of --emit {EMITTED[name]}"
    if name in carried and carried[name].agrees:
        return "--carrier longrope writes the same frequencies in a form that it reads"
    if name == "llama.cpp":
        return "convert its GGUF: ropecli convert MODEL.gguf"
    return "no config makes it compute this"


def _has_flags(name: str, checkpoint: Checkpoint, intent: Mapping[str, RopeSpec]) -> bool:
    if name not in FLAGS:
        return False
    try:
        return bool(emit(name, Serving(checkpoint.config, checkpoint.ropes, intent)))
    except RopeError:
        return False
