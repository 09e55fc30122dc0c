"""A rotary embedding → the metadata and tensors of a GGUF file that make llama.cpp compute it.

The file's YaRN keys serve the corners of β = 32 and α = 1 alone, so any other frequencies travel as divisors, in a
tensor that only some architectures load. `gguf.read` is the judge: a way to say it is taken if it reads as the intent.

Source: ngxson/llama.cpp (upstream master) 3f545be of 2026-08-22, `src/llama-model.cpp`, `src/llama-context.cpp`,
`src/models/`; what is read and what is not was measured with xllamacpp 2026.10 (llama.cpp 11549).
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ropecli.dialects import gguf
from ropecli.dialects.gguf_archs import BETAS_READ, FREQS_USED, SLIDING
from ropecli.dialects.hf_scaling import whole_corners, written_theta
from ropecli.errors import BadUsage
from ropecli.frequencies import (
    TOLERANCE,
    base_frequencies,
    divisors,
    frequencies,
    largest_difference,
    snapped_betas,
    yarn_corners,
)
from ropecli.spec import (
    Dynamic,
    LayerRope,
    Linear,
    Longrope,
    Ntk,
    Plain,
    Proportional,
    RopeSpec,
    Yarn,
    default_attention_factor,
)

Value: TypeAlias = str | int | float
"""A metadata value; written as STRING, UINT32 or FLOAT32, the types that llama.cpp insists on for rotary keys."""

FREQS = FREQS_USED - {"eagle3", "exaone-moe"}
"""Architectures to which `rope_freqs.weight` can be added: eagle3 is part of another model, and exaone-moe's loader
counts the tensor twice where the file has next-token layers."""

LISTS = frozenset({
    "apertus", "deci", "granite", "granite_swa", "granitemoe", "llama", "llama-embed", "minicpm", "minicpm3",
    "mistral3", "phi3", "phimoe", "step35",
})  # fmt: skip
"""Architectures that load `rope_factors_long.weight` and `rope_factors_short.weight` under the type `longrope`."""

FREQS_REQUIRED = frozenset({"gemma4", "gemma4-assistant"})
"""Architectures that do not load without `rope_freqs.weight`."""

SOFTMAX_SCALED = frozenset({"deepseek2", "deepseek2-ocr", "deepseek32", "glm-dsa", "mistral4"})
"""Architectures whose graphs also scale the softmax by what they make of `factor` and the temperature."""

UNSURE = frozenset({"deepseek4", "dots3note", "mellum"})
"""Architectures whose graphs rotate some layers by other rules than the metadata says."""

HEAD_WIDE = frozenset({"gemma4", "gemma4-assistant", "phimoe"})
"""Architectures whose divisors span the whole head, however much of it rotates."""

STANDS_STILL = 1e-20
"""Relative to its base: a frequency below it is a pair that does not turn (Gemma 4's divisors are 1e30)."""

DEFAULT_BASE = 10000.0
"""llama.cpp's base where the file names none."""

_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_FREQS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class GgufChanges:
    """What a file must say differently.

    settings  metadata key → its new value, or None where the key goes
    tensors   name → divisors in float32, one a pair; every other tensor of `gguf.TENSORS` goes
    intent    layer type, as the changed file will name it → the embedding that it must mean
    notes     what a user should know
    """

    settings: Mapping[str, Value | None]
    tensors: Mapping[str, tuple[float, ...]]
    intent: Mapping[str, RopeSpec]
    notes: tuple[str, ...] = ()


class NotCarried(BadUsage):
    """The architecture's GGUF has no place for it; launch flags may do it all the same."""


_Carrier: TypeAlias = tuple[dict[str, Value], dict[str, tuple[float, ...]]]
"""Members of `{arch}.rope.` and tensors that say a scaling."""


def changes(metadata: Mapping[str, Any], ropes: Sequence[LayerRope], intent: Mapping[str, RopeSpec]) -> GgufChanges:
    """What to change so that the layers named in `intent` rotate as it says, and all others as `ropes` says they do.

    metadata  of the file as it is
    ropes     what `gguf.read` made of it
    Raises NotCarried, and BadUsage for what no GGUF can say.
    """
    arch = gguf.architecture(metadata)
    wanted = {rope.name: intent.get(rope.name, rope.spec) for rope in ropes}
    if not intent or not set(intent) <= set(wanted):
        raise BadUsage(f"expected layers among {', '.join(wanted) or 'none'}, found {', '.join(intent) or 'none'}")
    leading = wanted.get("full_attention", next(iter(wanted.values())))
    for rope in ropes:
        _refuse_impossible(arch, rope, wanted[rope.name])
    _refuse_moved_start(metadata, arch, leading)
    common = _common(metadata, arch, leading, max(spec.max_length for spec in wanted.values()))
    closest: set[str] | None = None
    for settings, tensors in _carriers(arch, leading, _widest(arch, leading, wanted)):
        keys = common | {f"{arch}.rope.{name}": _single(value) for name, value in settings.items()}
        keys = _with_bases(metadata, arch, keys, wanted)
        found = _read_after(metadata, keys, tensors)
        wrong = {rope.name for rope in found for spec in _of(rope.name, wanted) if not _same(rope.spec, spec)}
        if not wrong:
            changed = {key: value for key, value in keys.items() if metadata.get(key) != value}
            names = {rope.name: _of(rope.name, wanted)[0] for rope in found}
            return GgufChanges(changed, tensors, names, _notes(leading, tensors))
        closest = wrong if closest is None else min(closest, wrong, key=len)
    if closest == {"sliding_attention"} and "full_attention" in wanted:
        raise _not_for_windows(asked="sliding_attention" in intent)
    raise _not_carried(arch, leading)


def _refuse_impossible(arch: str, rope: LayerRope, spec: RopeSpec) -> None:
    """What no GGUF can say, or this architecture would get wrong though the file says it."""
    scaling = spec.scaling
    if isinstance(scaling, Dynamic | Proportional):
        hint = "--rope-type ntk freezes it into the base" if isinstance(scaling, Dynamic) else ""
        raise BadUsage(f"llama.cpp has no {scaling.rope_type}", where=rope.name, hint=hint)
    if isinstance(scaling, Longrope) and scaling.short_attention_factor != scaling.attention_factor:
        raise BadUsage("a GGUF has one attention factor for short and long sequences", where=rope.name)
    if spec != rope.spec and (arch in UNSURE or (arch in SOFTMAX_SCALED and not isinstance(scaling, Plain | Ntk))):
        raise BadUsage(
            f"llama.cpp rotates or attends by more than the metadata in {arch}, so that {scaling.rope_type} in its "
            "GGUF would mean something else",
            where=rope.name,
            hint="launch flags have the same effect; serve the Hugging Face checkpoint with another runtime",
        )
    still = _still(rope.spec)
    if still and still != _still(spec):
        raise BadUsage(
            f"{len(still)} pairs of this model stand still, and {scaling.rope_type} would turn them",
            where=rope.name,
            hint="--rope-type longrope, with --factors of 1e30 for those pairs",
        )
    if spec.max_length >= 2**32:
        raise BadUsage(f"a GGUF counts at most {2**32 - 1} tokens, found {spec.max_length}", where=rope.name)


def _refuse_moved_start(metadata: Mapping[str, Any], arch: str, spec: RopeSpec) -> None:
    """Mistral 3 also sharpens its attention beyond the original length, as llama.cpp reads it."""
    key = f"{arch}.rope.scaling.original_context_length"
    before = metadata.get(key, metadata.get(f"{arch}.context_length"))
    sharpens = arch == "mistral3" and metadata.get(f"{arch}.attention.temperature_scale")
    if sharpens and before != spec.original_length:
        raise BadUsage(
            f"this model's attention is sharpened beyond {before} tokens, and another original length "
            f"({spec.original_length}) would move that",
            where=key,
            hint=f"use --original-length {before}",
        )


def _still(spec: RopeSpec) -> tuple[int, ...]:
    base = base_frequencies(spec.rope_theta, spec.rotary_dim)
    pairs = enumerate(zip(base, frequencies(spec).inv_freq, strict=True))
    return tuple(pair for pair, (plain, scaled) in pairs if scaled < plain * STANDS_STILL)


def _common(metadata: Mapping[str, Any], arch: str, spec: RopeSpec, longest: int) -> dict[str, Value | None]:
    """Every scaling key gone but `finetuned`, which Granite takes for its switch of the rotation; the new lengths."""
    scaling = f"{arch}.rope.scaling."
    original = f"{scaling}original_context_length"
    found = [key for key in metadata if key.startswith(scaling) or key == f"{arch}.rope.scale_linear"]
    keys: dict[str, Value | None] = dict.fromkeys(key for key in found if key != f"{scaling}finetuned")
    if spec.original_length != longest or original in metadata:
        keys[original] = spec.original_length
    return keys | {f"{arch}.context_length": longest}


def _carriers(arch: str, spec: RopeSpec, widest: int) -> Iterator[_Carrier]:
    """Ways to say `spec`, the plainest first: keys alone, one tensor of divisors, two."""
    scaling = spec.scaling
    theta: dict[str, Value] = {"freq_base": written_theta(spec)}
    if arch not in FREQS_REQUIRED:
        match scaling:
            case Plain() | Ntk():
                yield theta, {}
            case Linear():
                yield theta | {"scaling.type": "linear", "scaling.factor": float(scaling.factor)}, {}
            case Yarn():
                yield theta | _yarn(arch, spec, scaling), {}
            case _:
                pass
    temperature: dict[str, Value] = {"freq_base": spec.rope_theta}
    if scaling.attention_factor != 1:
        temperature["scaling.attn_factor"] = scaling.attention_factor
    if arch in FREQS and not spec.length_dependent:
        yield temperature, {_FREQS: _divisors(spec, spec.original_length, widest)}
    if arch in LISTS:
        short, long = (_divisors(spec, length, widest) for length in (spec.original_length, spec.original_length + 1))
        yield temperature | {"scaling.type": "longrope"}, {_LONG: long, _SHORT: short}


def _yarn(arch: str, spec: RopeSpec, yarn: Yarn) -> dict[str, Value]:
    """llama.cpp multiplies cos and sin by (0.1·ln s + 1) · `attn_factor`, whatever `yarn_attn_factor` says."""
    keys: dict[str, Value] = {"scaling.type": "yarn", "scaling.factor": float(yarn.factor)}
    corners = whole_corners(spec, yarn)
    if arch in BETAS_READ and corners:
        fast, slow = snapped_betas(spec, *corners)
        keys |= {"scaling.yarn_beta_fast": fast, "scaling.yarn_beta_slow": slow}
    attn_factor = yarn.attention_factor / default_attention_factor(yarn.factor)
    return keys if abs(attn_factor - 1) < 1e-9 else keys | {"scaling.attn_factor": attn_factor}


def _divisors(spec: RopeSpec, length: int, widest: int) -> tuple[float, ...]:
    """base_d / target_d for each pair, then ones up to the width that the loader expects."""
    values = tuple(map(_float32, divisors(spec, length)))
    return values + (1.0,) * (widest - len(values))


def _widest(arch: str, spec: RopeSpec, wanted: Mapping[str, RopeSpec]) -> int:
    """Divisors that the loader expects. Step 3.5 shares one tensor among layers of two widths."""
    if arch in HEAD_WIDE:
        return spec.head_dim // 2
    return max(found.pairs for found in wanted.values()) if arch == "step35" else spec.pairs


def _with_bases(
    metadata: Mapping[str, Any], arch: str, keys: dict[str, Value | None], wanted: Mapping[str, RopeSpec]
) -> dict[str, Value | None]:
    """No base where llama.cpp's default says it; the sliding layers' own, where the full layers' must not be theirs."""
    full, sliding = f"{arch}.rope.freq_base", f"{arch}.rope.freq_base_swa"
    theta = keys[full]
    if full not in metadata and theta == DEFAULT_BASE:
        keys = {key: value for key, value in keys.items() if key != full}
    if arch not in SLIDING or (sliding not in metadata and "sliding_attention" not in wanted):
        return keys
    own = _single(written_theta(wanted.get("sliding_attention", next(iter(wanted.values())))))
    inherited = DEFAULT_BASE if SLIDING[arch].own_base else theta
    return keys | {sliding: own} if sliding in metadata or own != inherited else keys


def _read_after(
    metadata: Mapping[str, Any], keys: Mapping[str, Value | None], tensors: Mapping[str, tuple[float, ...]]
) -> tuple[LayerRope, ...]:
    """What the changed file will mean."""
    after = {key: value for key, value in (dict(metadata) | dict(keys)).items() if value is not None}
    return gguf.read(after, gguf.Divisors(**{gguf.TENSORS[name]: values for name, values in tensors.items()}))


def _of(name: str, wanted: Mapping[str, RopeSpec]) -> list[RopeSpec]:
    """What is wanted of the layers that the changed file calls `name`: it may join two kinds or part them."""
    return [wanted[name]] if name in wanted else list(wanted.values())


def _same(found: RopeSpec, wanted: RopeSpec) -> bool:
    """Whether two embeddings are the same numbers, within the original length and beyond it."""
    for length in (wanted.original_length, wanted.max_length):
        here, there = frequencies(found, length), frequencies(wanted, length)
        hotter = abs(here.attention_factor - there.attention_factor)
        if largest_difference(here, there) > TOLERANCE or hotter > 1e-6 * there.attention_factor:
            return False
    return True


def _single(value: Value) -> Value:
    return _float32(value) if isinstance(value, float) else value


def _float32(value: float) -> float:
    """The nearest float32, which is what the file will hold. Raises BadUsage where there is none."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError as error:
        raise BadUsage(f"{value:g} is too large for a GGUF, whose numbers are float32") from error


def _notes(spec: RopeSpec, tensors: Mapping[str, tuple[float, ...]]) -> tuple[str, ...]:
    notes = []
    if _FREQS in tensors:
        notes.append(
            f"{_FREQS} holds the whole scaling, so the file names no scaling type: launch flags such as "
            "--rope-scaling would come on top"
        )
    if _LONG in tensors and spec.length_dependent:
        notes.append(
            f"llama.cpp uses the long divisors for every sequence when the context (-c) is above {spec.original_length}"
        )
    return tuple(notes)


def _not_for_windows(*, asked: bool) -> BadUsage:
    if asked:
        problem, hint = "llama.cpp cannot scale these layers of this architecture so", "use --layers full"
    else:
        problem = "llama.cpp would change these layers, too"
        hint = "it has one temperature for all layers: use the default --attention-factor, or --layers all"
    return BadUsage(problem, where="sliding_attention", hint=hint)


def _not_carried(arch: str, spec: RopeSpec) -> NotCarried:
    scaling = spec.scaling
    why = "loads one list of divisors for it, not two" if arch in FREQS else "loads no divisors for it"
    problem = f"a GGUF of architecture {arch} cannot carry this {scaling.rope_type}: llama.cpp {why}"
    if isinstance(scaling, Yarn):
        asked, read = yarn_corners(spec, scaling), yarn_corners(spec, Yarn.default(scaling.factor))
        problem += f", and its yarn has the corners {read[0]:g} and {read[1]:g}, not {asked[0]:.4g} and {asked[1]:.4g}"
    return NotCarried(problem, where=f"{arch}.rope.scaling.type")
