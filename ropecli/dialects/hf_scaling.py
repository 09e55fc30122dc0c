"""A Hugging Face scaling object ↔ a `Scaling` with its original and its longest length.

Reading, what each key means follows transformers 5.23 `modeling_rope_utils`; where transformers has no such type, the
runtime that has it. A length that the config does not hold is derived, and `sources` say how. Written is what every
runtime computes that can; the measured behaviour behind every key is in `ropecli/runtimes/`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ropecli.dialects.hf_keys import NAMES, ORIGINAL, Found, Place, Reader, boolean, number, numbers, whole
from ropecli.errors import BadCheckpoint, BadParameter, BadUsage
from ropecli.frequencies import SNAP, ntk_base, ramp_frequencies, snapped_betas, yarn_corners
from ropecli.spec import (
    Dynamic,
    Linear,
    Llama3,
    Longrope,
    Ntk,
    NtkByParts,
    Plain,
    Proportional,
    RopeSpec,
    Scaling,
    Yarn,
    assert_never,
    default_attention_factor,
    mscale_ratio,
)

SAME_TYPE: Mapping[str, str] = {
    "none": "default",
    "no_scaling": "default",  # MPT
    "origin": "default",  # InternLM-1
    "original": "default",  # Grok
    "mrope": "default",  # sections apart, Qwen2-VL rotates like any other
    "su": "longrope",
    "deepseek_yarn": "yarn",
    "telechat3-yarn": "yarn",
    "xdrope": "ntk_alpha",
}
"""Other names of a scaling → the name that is read below."""

TELECHAT_SLOPE = 0.07
"""TeleChat-3's `telechat3-yarn` scales the attention by 0.07·ln s + 1."""

SMALL = 1e-6
"""The lesser half of an mscale pair: so small that its own magnitude is 1, and not 0, which readers take for absent."""

INTERNLM_FACTOR = Found(1.0, "default of rotary")
"""InternLM-1 stretches its base by the length alone where `rotary` has no factor."""


@dataclass(frozen=True, slots=True)
class Task:
    """What reading a scaling needs to know.

    kind         the name that the config uses, and where
    longest      max_position_embeddings
    original     the original length, where the config has one
    pairs        rotary pairs
    outer        the object around nested ones; None where the scaling object is flat
    mscale_pair  the model heeds `short_mscale` and `long_mscale`
    """

    reader: Reader
    kind: Found
    longest: int
    original: Found | None
    pairs: int
    outer: Place | None
    mscale_pair: bool


def scaling_kind(reader: Reader, renamed: Mapping[str, str]) -> tuple[str, Found]:
    """The canonical name of the scaling and the config's own word for it; `rope_type` beats `type`.

    Raises BadParameter where the word is not a string, and BadCheckpoint where no reader has that name.
    """
    found = next((f for key in ("rope_type", "type") for place in reader.rope if (f := place.find(key))), None)
    found = reader.note("rope_type", found or Found("default", "assumed: default"))
    if not isinstance(found.value, str):
        raise BadParameter(f"expected a name, found {found.value!r}", where=found.source)
    name = renamed.get(found.value, SAME_TYPE.get(found.value, found.value))
    if name == "dynamic" and reader.in_rope("alpha") is not None:
        name = "ntk_alpha"  # Hunyuan: the base times a power of alpha, at every length
    if name not in READERS:
        problem = f"the scaling {found.value!r} is not supported"
        raise BadCheckpoint(problem, where=found.source, hint=f"supported: {', '.join(READERS)}")
    return name, found


def read_scaling(name: str, task: Task) -> tuple[Scaling, int, int]:
    """The scaling, the original length and the longest one; raises BadParameter where a value is missing or wrong."""
    return READERS[name](task)


def _unscaled(task: Task) -> tuple[int, int]:
    """The lengths of an embedding that serves as far as it was trained, unless a key beside it says how far that is."""
    trained = _trained(task.reader)
    if trained is not None and (length := whole(trained)) < task.longest:
        task.reader.note("original_length", trained)
        return length, task.longest
    task.reader.sources["original_length"] = task.reader.sources["max_length"]
    return task.longest, task.longest


def _trained(reader: Reader) -> Found | None:
    """The trained length where attention itself reaches beyond it: Qwen2.5-1M's chunks, Qwen-1's dynamic base."""
    chunks, own = reader.in_text("dual_chunk_attention_config"), "original_max_position_embeddings"
    if chunks is not None and isinstance(chunks.value, Mapping) and chunks.value.get(own) is not None:
        return Found(chunks.value[own], f"{chunks.source}.{own}")
    grows = reader.in_text("use_dynamic_ntk")
    return reader.in_text("seq_length") if grows is not None and grows.value is True else None


def _extended(task: Task, factor: float, original: Found | None = None) -> tuple[int, int]:
    """The original length and the longest: max_position_embeddings, or factor · original where that is no longer.

    A key beside max_position_embeddings that states the latter wins (Yarn-Mistral's `max_sequence_length`).
    """
    sources = task.reader.sources
    start = original or task.original or Found(task.longest, sources["max_length"])
    length = whole(task.reader.note("original_length", start))
    stated = _stated(task, factor * length)
    if stated is not None:
        return length, whole(task.reader.note("max_length", stated))
    if task.longest > length:
        return length, task.longest
    sources["max_length"] = f"factor · {start.source}"
    return length, max(1, round(factor * length))


def _plain(task: Task) -> tuple[Scaling, int, int]:
    return Plain(), *_unscaled(task)


def _linear(task: Task) -> tuple[Scaling, int, int]:
    """Position Interpolation, for which transformers keeps no original length.

    Without one, max_position_embeddings is the original length where another key states factor times as much (Vicuna's
    `max_sequence_length`); else it is taken as the extended length where the factor divides it. The frequencies do not
    depend on it.
    """
    factor = task.reader.scaling_number("factor")
    original = task.reader.in_rope("original_length")
    extended = None if original else _stated(task, factor * task.longest)
    if extended is not None:
        task.reader.note("original_length", Found(task.longest, task.reader.sources["max_length"]))
        return Linear(factor), task.longest, whole(task.reader.note("max_length", extended))
    if original is None and factor >= 1 and task.longest % factor == 0:
        source = f"assumed: {task.reader.sources['max_length']} / factor"
        original = Found(int(task.longest / factor), source)
    elif original is None:
        original = Found(task.longest, f"assumed: {task.reader.sources['max_length']}")
    return Linear(factor), *_extended(task, factor, original)


def _stated(task: Task, length: float) -> Found | None:
    """The key beside max_position_embeddings that states this length, where it is a longer one."""
    if length <= task.longest:
        return None
    keys = (found for place in task.reader.text for key in NAMES["max_length"] if (found := place.find(key)))
    return next((found for found in keys if found.value == length), None)


def _dynamic(task: Task) -> tuple[Scaling, int, int]:
    """Dynamic NTK: max_position_embeddings is the original length (transformers `_compute_dynamic_ntk_parameters`)."""
    factor = task.reader.scaling_number("factor", INTERNLM_FACTOR if task.kind.source == "rotary.type" else None)
    task.reader.sources["original_length"] = task.reader.sources["max_length"]
    task.reader.sources["max_length"] += " · factor"
    return Dynamic(factor), task.longest, max(1, round(task.longest * factor))


def _ntk_alpha(task: Task) -> tuple[Scaling, int, int]:
    """A static base θ·alpha^(d/(d−2)): transformers `HunYuanDenseV1RotaryEmbedding`, vLLM `xdrope`."""
    factor = task.reader.scaling_number("alpha")
    task.reader.sources["factor"] = task.reader.sources.pop("alpha")
    return Ntk(factor), *_unscaled(task)


def _ntk_vllm(task: Task) -> tuple[Scaling, int, int]:
    """vLLM's `ntk` (`NTKScalingRotaryEmbedding`), which is a divisor for each pair: pair d is divided by s^(2(d+1)/D).

    With `mixed_b` the divisor is s^(((d+1)/(D/2))^mixed_b) (kexue.fm 9706).
    """
    factor, pairs = task.reader.scaling_number("factor"), task.pairs
    power = task.reader.scaling_number("mixed_b", Found(1.0, "default of ntk"))
    for name, value in (("factor", factor), ("mixed_b", power)):
        if value <= 0:
            raise BadParameter(f"expected a number above 0, found {value:g}", where=name)
    divisors = tuple(factor ** (((d + 1) / pairs) ** power) for d in range(pairs))
    lengths = _extended(task, factor)
    return Longrope(factor, divisors, divisors, attention_factor=1.0, short_attention_factor=1.0), *lengths


def _yarn(task: Task) -> tuple[Scaling, int, int]:
    reader = task.reader
    factor = _factor_or_ratio(task)
    beta_fast = reader.scaling_number("beta_fast", Found(32.0, "default of yarn"))
    beta_slow = reader.scaling_number("beta_slow", Found(1.0, "default of yarn"))
    attention_factor = _yarn_attention_factor(task, factor)
    lengths = _extended(task, factor)
    # 0 counts as unset for both (transformers 5.23: `beta_fast or 32`).
    return Yarn(factor, attention_factor, beta_fast or 32.0, beta_slow or 1.0, truncate=_truncate(task)), *lengths


def _truncate(task: Task) -> bool:
    """Whether the corners are rounded; transformers 5.23 reads it from the outer object, so a nested one is inert."""
    found = task.outer.find("truncate") if task.outer else task.reader.in_rope("truncate")
    return boolean(task.reader.note("truncate", found or Found(value=True, source="default of yarn")))


def _yarn_attention_factor(task: Task, factor: float) -> float:
    """`attention_factor` is final; else the ratio of an mscale pair where both are truthy; else 0.1·ln s + 1."""
    reader = task.reader
    given = reader.in_rope("attention_factor")
    if given is not None:
        return number(reader.note("attention_factor", given))
    top, bottom = reader.in_rope("mscale"), reader.in_rope("mscale_all_dim")
    if top is not None and bottom is not None and top.value and bottom.value:
        reader.sources["attention_factor"] = "(0.1·mscale·ln(factor) + 1) / (0.1·mscale_all_dim·ln(factor) + 1)"
        return mscale_ratio(factor, number(top), number(bottom))
    slope = TELECHAT_SLOPE if task.kind.value == "telechat3-yarn" else 0.1
    reader.sources["attention_factor"] = f"{slope}·ln(factor) + 1"
    return default_attention_factor(factor, slope)


def _llama3(task: Task) -> tuple[Scaling, int, int]:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (task.reader.scaling_number(name) for name in names)
    return Llama3(factor, low, high), *_extended(task, factor)


def _longrope(task: Task) -> tuple[Scaling, int, int]:
    reader = task.reader
    factor = _factor_or_ratio(task)
    lengths = _extended(task, factor)
    long, short = _longrope_attention_factors(task, factor, lengths[0])
    lists = {name: reader.in_rope(name) for name in ("short_factor", "long_factor")}
    for name, found in lists.items():
        if found is None:
            raise BadParameter(f"expected {name}, found none", where=reader.rope[0].key(name))
        reader.note(name, found)
    divisors = {name: numbers(found) for name, found in lists.items() if found is not None}
    return Longrope(factor, divisors["short_factor"], divisors["long_factor"], long, short), *lengths


def _longrope_attention_factors(task: Task, factor: float, original: int) -> tuple[float, float]:
    """For the long and the short list: `attention_factor`; Phi-3.5-MoE's two mscales; else sqrt(1 + ln s / ln L)."""
    reader = task.reader
    long, short = reader.in_rope("long_mscale"), reader.in_rope("short_mscale")
    if task.mscale_pair and long is not None and short is not None:
        reader.sources["attention_factor"] = long.source
        reader.sources["short_attention_factor"] = short.source
        return number(long), number(short)
    given = reader.in_rope("attention_factor")
    if given is not None:
        value = number(reader.note("attention_factor", given))
        return value, value
    reader.sources["attention_factor"] = "sqrt(1 + ln(factor) / ln(original_length))"
    value = 1.0 if factor <= 1 or original <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return value, value


def _proportional(task: Task) -> tuple[Scaling, int, int]:
    factor = task.reader.scaling_number("factor", Found(1.0, "default of proportional"))
    share = task.reader.anywhere("partial_rotary_factor") or Found(1.0, "default of proportional")
    return Proportional(factor, number(task.reader.note("partial_rotary_factor", share))), *_unscaled(task)


def _factor_or_ratio(task: Task) -> float:
    """The factor; where it is missing or null, max_position_embeddings / the original length."""
    if task.reader.in_rope("factor") is not None or task.original is None:
        return task.reader.scaling_number("factor")
    source = f"{task.reader.sources['max_length']} / {task.original.source}"
    return number(task.reader.note("factor", Found(task.longest / whole(task.original), source)))


READERS: Mapping[str, Callable[[Task], tuple[Scaling, int, int]]] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "ntk": _ntk_vllm,
    "ntk_alpha": _ntk_alpha,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "proportional": _proportional,
}
"""Canonical name of a scaling → its reader."""


def scaling_dict(spec: RopeSpec) -> dict[str, Any] | None:  # noqa: RET503 - assert_never does not return
    """The members of `rope_scaling` for a spec, without the base; None where the base alone says it.

    Raises BadUsage for what no config can say.
    """
    scaling = spec.scaling
    match scaling:
        case Plain() | Ntk():
            return None
        case Linear():
            return {"rope_type": "linear", "factor": float(scaling.factor), ORIGINAL: spec.original_length}
        case Dynamic():
            return {"rope_type": "dynamic", "factor": float(scaling.factor)}
        case Yarn():
            return portable_yarn(spec, scaling)
        case NtkByParts():
            if scaling.attention_factor != 1:
                raise BadUsage(
                    "ntk-by-parts is carried by llama3, which has no temperature",
                    hint="--carrier longrope writes both; or leave --attention-factor out, or use --rope-type yarn",
                )
            return _llama3_dict(spec, scaling.factor, scaling.beta_slow, scaling.beta_fast)
        case Llama3():
            return _llama3_dict(spec, scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor)
        case Longrope():
            return _longrope_dict(spec, scaling)
        case Proportional():
            raise BadUsage("proportional rotation is part of an architecture, not an extension")
        case _:
            assert_never(scaling)


def portable_yarn(spec: RopeSpec, yarn: Yarn) -> dict[str, Any]:
    """The YaRN dict on which every runtime agrees that can: α and β snapped, the temperature in every spelling.

    A ramp with fractional corners is written as it is with `truncate: false`, which only some runtimes honour; one
    without a width, as it is.
    """
    corners = whole_corners(spec, yarn)
    beta_fast, beta_slow = (yarn.beta_fast, yarn.beta_slow) if corners is None else snapped_betas(spec, *corners)
    extra = {"truncate": False} if corners is None and not yarn.truncate else {}
    mscale, mscale_all_dim = mscale_pair(yarn.factor, yarn.attention_factor)
    return {
        "rope_type": "yarn",
        "factor": float(yarn.factor),
        ORIGINAL: spec.original_length,
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "attention_factor": yarn.attention_factor,
        "attn_factor": yarn.attention_factor / default_attention_factor(yarn.factor),
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
    } | extra


def mscale_pair(factor: float, attention_factor: float) -> tuple[float, float]:
    """(mscale, mscale_all_dim), both positive, with mag(s, mscale) / mag(s, mscale_all_dim) = `attention_factor`.

    mag(s, k) = 1 + 0.1·k·ln s is DeepSeek's magnitude; for s ≤ 1 it is 1 and only the factor 1 can be written.
    """
    unit = 0.1 * math.log(factor) if factor > 1 else 0.0
    if attention_factor == 1 or unit == 0:
        return 1.0, 1.0
    if attention_factor > 1:
        return (attention_factor * (1 + unit * SMALL) - 1) / unit, SMALL
    return SMALL, ((1 + unit * SMALL) / attention_factor - 1) / unit


def whole_corners(spec: RopeSpec, yarn: Yarn) -> tuple[int, int] | None:
    """The whole corners (low, high) that this YaRN's ramp has, or None where its corners are fractional.

    α and β that were snapped just inside whole corners count as whole though they are not truncated, where rounding
    them moves no frequency by more than 2e-5.
    """
    low, high = yarn_corners(spec, yarn)
    nearest = round(low), round(high)
    if nearest[0] >= nearest[1] or max(abs(low - nearest[0]), abs(high - nearest[1])) > 4 * SNAP:
        return None
    asked = ramp_frequencies(spec, yarn.factor, low, high)
    rounded = ramp_frequencies(spec, yarn.factor, *nearest)
    return nearest if max(abs(a - b) / b for a, b in zip(asked, rounded, strict=True)) <= 2e-5 else None


def _longrope_dict(spec: RopeSpec, scaling: Longrope) -> dict[str, Any]:
    # `factor` would have a second say in the attention factor; without it everyone takes M/L
    switching = {"factor": float(scaling.factor)} if spec.length_dependent else {}
    return {
        "rope_type": "longrope",
        **switching,
        ORIGINAL: stated_original(spec),
        "short_factor": list(scaling.short_factor),
        "long_factor": list(scaling.long_factor),
        "attention_factor": scaling.attention_factor,
    }


def _llama3_dict(spec: RopeSpec, factor: float, low: float, high: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": float(factor),
        ORIGINAL: spec.original_length,
        "low_freq_factor": float(low),
        "high_freq_factor": float(high),
    }


def stated_original(spec: RopeSpec) -> int:
    """`original_max_position_embeddings` as the config must state it.

    With one list of divisors for every length nothing switches at the original length. All that is left of it is the
    attention factor that runtimes compute from it, sqrt(1 + ln(M/L) / ln L) (LongRoPE as `su`), so the L is stated that
    gives the wanted one: L = M^(1/A²), to the nearest whole number.
    """
    scaling = spec.scaling
    if not isinstance(scaling, Longrope) or spec.length_dependent or scaling.attention_factor < 1:
        return spec.original_length
    return max(2, round(float(spec.max_length ** (1 / scaling.attention_factor**2))))


def written_theta(spec: RopeSpec) -> float:
    """The base that the config must state: NTK-aware scaling is nothing but another base."""
    if isinstance(spec.scaling, Ntk):
        return ntk_base(spec.rope_theta, spec.rotary_dim, spec.scaling.factor)
    return spec.rope_theta


def served_length(spec: RopeSpec) -> int:
    """`max_position_embeddings`. For `dynamic` transformers reads it as the original length."""
    return spec.original_length if isinstance(spec.scaling, Dynamic) else spec.max_length
