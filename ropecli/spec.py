"""What a rotary embedding is: a few numbers, frozen, that cannot be built wrong.

A `RopeSpec` is geometry (base, widths, lengths) and one `Scaling`; `frequencies.py` turns it into numbers, `dialects/`
reads it from and writes it to foreign files. The JSON form here is our own: canonical names, one a value.

A new kind of scaling is a class here, a case in `frequencies.py`, and a reader and a case in `dialects/hf_scaling.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias, get_args

from ropecli.errors import BadParameter

Layout = Literal["half", "interleaved"]
"""Which dimensions form a pair: i with i + rotary_dim/2 ("half"), or 2i with 2i + 1 ("interleaved")."""


SMALLEST, LARGEST = 1e-30, 1e30
"""Every parameter lies between them, so that no formula can overflow a float64."""

WIDEST_HEAD, LONGEST = 2**16, 2**48
"""Upper ends of widths (dimensions) and lengths (tokens): more is a broken file, not a model."""


def default_attention_factor(factor: float, a: float = 0.1, b: float = 1.0) -> float:
    """YaRN's temperature as a multiplier on cos and sin: m = a·ln s + b, and 1 where s ≤ 1.

    Source: YaRN (arXiv 2309.00071) equation 22, sqrt(1/t) = 0.1·ln s + 1. YaRN-Mistral used a = 0.07.
    """
    return 1.0 if factor <= 1 else a * math.log(factor) + b


def mscale_ratio(factor: float, mscale: float, mscale_all_dim: float) -> float:
    """The multiplier on cos and sin that an mscale pair gives: (0.1·mscale·ln s + 1) / (0.1·mscale_all_dim·ln s + 1).

    Source: DeepSeek-V2's code, `yarn_get_mscale`; transformers 5.23 `_compute_yarn_parameters`.
    Raises ZeroDivisionError where the lower half is 0.
    """
    return default_attention_factor(factor, 0.1 * mscale) / default_attention_factor(factor, 0.1 * mscale_all_dim)


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadParameter(f"expected a number, found {value!r:.60}", where=name)
    if not 0 < value < math.inf:
        raise BadParameter(f"expected a finite number above 0, found {value!r:.60}", where=name)
    if not SMALLEST <= value <= LARGEST:
        raise BadParameter(f"expected a number from {SMALLEST:g} to {LARGEST:g}, found {value!r:.60}", where=name)


def _truth(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise BadParameter(f"expected true or false, found {value!r:.60}", where=name)


def _positive_factors(name: str, values: object) -> None:
    if not isinstance(values, tuple):
        raise BadParameter(f"expected a list of numbers, found {values!r:.60}", where=name)
    if not values:
        raise BadParameter("expected a list of numbers, found an empty one", where=name)
    for index, value in enumerate(values):
        _number(f"{name}[{index}]", value)


@dataclass(frozen=True, slots=True)
class Plain:
    """The embedding as RoFormer (arXiv 2104.09864, section 3.2.2) defines it: theta_d = b^(−2d/D), no scaling."""

    rope_type: ClassVar[str] = "default"
    factor: ClassVar[float] = 1.0
    attention_factor: ClassVar[float] = 1.0


@dataclass(frozen=True, slots=True)
class Linear:
    """Position Interpolation (arXiv 2306.15595): every frequency divided by `factor`, g(m) = m/s."""

    rope_type: ClassVar[str] = "linear"
    attention_factor: ClassVar[float] = 1.0
    factor: float

    def __post_init__(self) -> None:
        _number("factor", self.factor)


@dataclass(frozen=True, slots=True)
class Ntk:
    """NTK-aware scaling with a static base, b' = b·s^(D/(D−2)) (YaRN, arXiv 2309.00071, equation 16)."""

    rope_type: ClassVar[str] = "ntk"
    attention_factor: ClassVar[float] = 1.0
    factor: float

    def __post_init__(self) -> None:
        _number("factor", self.factor)


@dataclass(frozen=True, slots=True)
class Dynamic:
    """Dynamic NTK: the base grows with the sequence, b' = b·(s·l'/L − (s−1))^(D/(D−2)) for l' > L.

    Source: transformers 5.23 `_compute_dynamic_ntk_parameters`. With `factor` 1 it is the EleutherAI blog's form,
    in which the scale is l'/L itself.
    """

    rope_type: ClassVar[str] = "dynamic"
    attention_factor: ClassVar[float] = 1.0
    factor: float

    def __post_init__(self) -> None:
        _number("factor", self.factor)


@dataclass(frozen=True, slots=True)
class NtkByParts:
    """The EleutherAI blog's and the paper's ramp, linear in rotations r (arXiv 2309.00071, equations 18 to 20).

    Pairs with fewer than `beta_slow` (α) rotations are divided by `factor`, those with more than `beta_fast` (β) kept.
    No runtime calls this `yarn`: their `yarn` is linear in the pair index. It is exactly `llama3` with the same bounds.
    """

    rope_type: ClassVar[str] = "ntk-by-parts"
    factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("factor", "beta_fast", "beta_slow", "attention_factor"):
            _number(name, getattr(self, name))
        if self.beta_slow == self.beta_fast:
            raise BadParameter(f"the ramp has no width: beta_fast = beta_slow = {self.beta_fast:g}", where="beta_fast")


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN as every runtime computes it: the ramp is linear in the pair index, between two corners.

    `attention_factor` is the final multiplier on cos and sin; `truncate` rounds the corners outwards to integers.
    Source: jquesnelle/yarn `LlamaYaRNScaledRotaryEmbedding`, transformers 5.23 `_compute_yarn_parameters`.
    """

    rope_type: ClassVar[str] = "yarn"
    factor: float
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        for name in ("factor", "beta_fast", "beta_slow", "attention_factor"):
            _number(name, getattr(self, name))
        _truth("truncate", self.truncate)

    @classmethod
    def default(cls, factor: float) -> "Yarn":
        """YaRN as every runtime defaults it: α = 1, β = 32, truncated, m = 0.1·ln s + 1."""
        return cls(factor, default_attention_factor(factor))


@dataclass(frozen=True, slots=True)
class Llama3:
    """Llama 3.1: a ramp in rotations, m = 1 (Meta `llama-models`, transformers `_compute_llama3_parameters`).

    Equal bounds are a step, as Llama-4-Scout has it.
    """

    rope_type: ClassVar[str] = "llama3"
    attention_factor: ClassVar[float] = 1.0
    factor: float
    low_freq_factor: float
    high_freq_factor: float

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            _number(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Longrope:
    """LongRoPE (arXiv 2402.13753): a divisor for each pair, one list up to the original length and one beyond it.

    `attention_factor` goes with the long list, `short_attention_factor` with the short one; most models use one number.
    """

    rope_type: ClassVar[str] = "longrope"
    factor: float
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    attention_factor: float
    short_attention_factor: float

    def __post_init__(self) -> None:
        for name in ("factor", "attention_factor", "short_attention_factor"):
            _number(name, getattr(self, name))
        for name in ("short_factor", "long_factor"):
            _positive_factors(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Proportional:
    """Gemma-4's partial rotation: the first pairs rotate with exponents over the whole head, the rest stand still.

    Source: transformers 5.23 `_compute_proportional_rope_parameters`. Here `rotary_dim` is the whole head.
    """

    rope_type: ClassVar[str] = "proportional"
    attention_factor: ClassVar[float] = 1.0
    factor: float = 1.0
    partial_rotary_factor: float = 1.0

    def __post_init__(self) -> None:
        _number("factor", self.factor)
        _number("partial_rotary_factor", self.partial_rotary_factor)
        if self.partial_rotary_factor > 1:
            raise BadParameter(
                f"expected at most 1, found {self.partial_rotary_factor!r}", where="partial_rotary_factor"
            )


Scaling: TypeAlias = Plain | Linear | Ntk | Dynamic | NtkByParts | Yarn | Llama3 | Longrope | Proportional

SCALINGS: Mapping[str, type[Scaling]] = {kind.rope_type: kind for kind in get_args(Scaling)}
"""Every scaling kind by its canonical `rope_type`."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """One rotary embedding.

    rope_theta       base of the frequencies, > 0
    head_dim         dimensions of one attention head
    rotary_dim       how many of them rotate; even, at most head_dim; a pair is two dimensions
    original_length  tokens the checkpoint was trained for (L)
    max_length       tokens it is meant to serve (L', at least 1; s·L where the scaling is static)
    scaling          how frequencies and temperature are changed
    layout           which dimensions form a pair
    """

    rope_theta: float
    head_dim: int
    rotary_dim: int
    original_length: int
    max_length: int
    scaling: Scaling = Plain()
    layout: Layout = "half"

    def __post_init__(self) -> None:
        _number("rope_theta", self.rope_theta)
        for name in ("head_dim", "rotary_dim", "original_length", "max_length"):
            value = getattr(self, name)
            most = WIDEST_HEAD if name.endswith("_dim") else LONGEST
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise BadParameter(f"expected a whole number from 1 to {most}, found {value!r:.60}", where=name)
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise BadParameter(
                f"expected an even number of at most head_dim = {self.head_dim}, found {self.rotary_dim}",
                where="rotary_dim",
            )
        if self.layout not in get_args(Layout):
            raise BadParameter(f"expected half or interleaved, found {self.layout!r}", where="layout")
        if isinstance(self.scaling, Ntk | Dynamic) and self.rotary_dim < 4:
            raise BadParameter("NTK scaling needs at least two rotary pairs, found one", where="rotary_dim")
        if isinstance(self.scaling, Yarn) and self.rope_theta == 1:
            raise BadParameter("YaRN's corners are undefined for a base of 1", where="rope_theta")
        if isinstance(self.scaling, Longrope):
            for name in ("short_factor", "long_factor"):
                found = len(getattr(self.scaling, name))
                if found != self.pairs:
                    raise BadParameter(f"expected {self.pairs} numbers, one a rotary pair, found {found}", where=name)

    @property
    def pairs(self) -> int:
        """Number of rotary pairs, rotary_dim / 2."""
        return self.rotary_dim // 2

    @property
    def rope_type(self) -> str:
        """The canonical name of the scaling."""
        return self.scaling.rope_type

    @property
    def length_dependent(self) -> bool:
        """Whether the frequencies change with the length of the sequence."""
        if isinstance(self.scaling, Longrope):
            same = self.scaling.short_factor == self.scaling.long_factor
            return not (same and self.scaling.short_attention_factor == self.scaling.attention_factor)
        return isinstance(self.scaling, Dynamic)


def scaling_to_json(scaling: Scaling) -> dict[str, Any]:
    """The scaling's own parameters in canonical names, `rope_type` first."""
    values = {field.name: getattr(scaling, field.name) for field in fields(scaling)}
    return {"rope_type": scaling.rope_type} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def scaling_from_json(data: Mapping[str, Any]) -> Scaling:
    """The inverse of `scaling_to_json`; keys that the kind does not have are refused.

    Raises BadParameter.
    """
    rope_type = data.get("rope_type")
    kind = SCALINGS.get(rope_type) if isinstance(rope_type, str) else None
    if kind is None:
        raise BadParameter(f"unknown scaling {rope_type!r}", where="rope_type", hint=f"known: {', '.join(SCALINGS)}")
    names = {field.name for field in fields(kind)}
    given: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in data.items() if key != "rope_type"
    }
    unknown = sorted(set(given) - names)
    if unknown:
        raise BadParameter(
            f"{rope_type} has no parameter {unknown[0]!r}", where=unknown[0], hint=f"known: {', '.join(sorted(names))}"
        )
    try:
        return kind(**given)
    except TypeError as error:
        missing = sorted(names - set(given))
        raise BadParameter(f"{rope_type} needs {', '.join(missing)}", where="rope_parameters") from error


@dataclass(frozen=True, slots=True)
class LayerRope:
    """The rotary embedding of one kind of layer, and where each of its values was found.

    name           the layer type ("full_attention", …), or "default" where all layers share one embedding
    layers         how many layers rotate with it
    sources        canonical name → the key that held it, "default of model_type X", or "assumed: …"
    mrope_section  rotary pairs for time, height and width of a multimodal model; empty for text
    mla            whether the rotated part is a separate slice of a latent attention (DeepSeek), so that q and k
                   cannot be rescaled through the weights
    sliding_window tokens that these layers attend to, where they do not attend to all
    """

    name: str
    layers: int
    spec: RopeSpec
    sources: Mapping[str, str]
    mrope_section: tuple[int, ...] = ()
    mla: bool = False
    sliding_window: int | None = None


def assert_never(value: NoReturn) -> NoReturn:
    """For the last case of a match over all kinds: mypy refuses it where a kind is left out.

    `typing` has it from Python 3.11 on.
    """
    raise AssertionError(f"unhandled {value!r}")
