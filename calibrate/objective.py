"""Search parameters ↔ rotary embeddings, and what is minimised.

A `Point` is two corners of YaRN's ramp, in pairs, and the attention factor. Whole-number corners are what every runtime
can reproduce (see `ropecli.frequencies.snapped_betas`), so a search ends on them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from calibrate.score import Bands, Counts, Floats
from ropecli.errors import BadUsage
from ropecli.frequencies import Frequencies, corner, ramp_frequencies, snapped_betas, yarn_corners
from ropecli.spec import Linear, Ntk, NtkByParts, Plain, RopeSpec, Scaling, Yarn

GUARD_WEIGHT = 10.0
"""Nats added to the objective for every nat by which the guard is broken."""

FASTEST_TURNS, SLOWEST_TURNS = 256.0, 0.1
"""The ramp's corners are searched between pairs that turn this often inside the original length. Where the best lies at
the fast end, a race looks on, to the first pair: SmolLM2's best at s = 4 is there."""

LOWEST_FACTOR, HEADROOM = 0.8, 0.35
"""The attention factor is searched from 0.8 to its default plus 0.35."""

AT_A_BOUND = 0.03
"""An attention factor this close to a bound counts as on it: Brent's method never reaches one, and stops early."""


class Point(NamedTuple):
    """Corners of the ramp in pairs (kept up to `low`, divided from `high` on) and the attention factor."""

    low: float
    high: float
    attention_factor: float


@dataclass(frozen=True, slots=True)
class Space:
    """Where a search may go: one rotary embedding without scaling, one factor, and the bounds that follow.

    spec    the unscaled embedding; its original length is L
    factor  s > 1
    """

    spec: RopeSpec
    factor: float

    @property
    def default(self) -> Point:
        """Default YaRN (α = 1, β = 32, truncated, m = 0.1·ln s + 1) as a point on the lattice."""
        yarn = Yarn.default(self.factor)
        low, high = yarn_corners(self.spec, yarn)
        return Point(low, high, yarn.attention_factor)

    @property
    def low_bounds(self) -> tuple[int, int]:
        """Least and greatest `low` of a sweep and of scipy's methods; a race may go below the least, to pair 0."""
        least = max(math.floor(self._corner(FASTEST_TURNS)), 0)
        return min(least, int(self.default.low)), max(self.high_bounds[1] - 1, least)

    @property
    def high_bounds(self) -> tuple[int, int]:
        """Least and greatest `high`."""
        least = max(math.floor(self._corner(FASTEST_TURNS)), 0) + 1
        greatest = min(math.ceil(self._corner(SLOWEST_TURNS)), self.spec.rotary_dim - 1)
        return least, max(greatest, least, int(self.default.high))

    @property
    def factor_bounds(self) -> tuple[float, float]:
        """Least and greatest attention factor."""
        return LOWEST_FACTOR, self.default.attention_factor + HEADROOM

    def _corner(self, turns: float) -> float:
        return corner(turns, self.spec.rope_theta, self.spec.rotary_dim, self.spec.original_length)

    def allows(self, low: int, high: int) -> bool:
        """Whether the cell may be searched and is a ramp at all."""
        in_low = 0 <= low <= self.low_bounds[1]
        return in_low and low < high and self.high_bounds[0] <= high <= self.high_bounds[1]

    def cells(self, step: int) -> Iterator[tuple[int, int]]:
        """Every `step`-th cell of the lattice, laid so that the default is one of them."""
        low, high = int(self.default.low), int(self.default.high)
        for i in range(self.low_bounds[0] + (low - self.low_bounds[0]) % step, self.low_bounds[1] + 1, step):
            for j in range(self.high_bounds[0] + (high - self.high_bounds[0]) % step, self.high_bounds[1] + 1, step):
                if self.allows(i, j):
                    yield i, j

    def frequencies(self, point: Point) -> Frequencies:
        """The table of a point; fractional corners are used as they are."""
        return Frequencies(ramp_frequencies(self.spec, self.factor, point.low, point.high), point.attention_factor)

    def scaling(self, point: Point) -> Yarn:
        """The point as YaRN with snapped α and β, truncated or not the same; its corners must be whole.

        The default's corners keep the default's α and β: whoever looks for them finds 1 and 32.
        """
        low, high = round(point.low), round(point.high)
        if (low, high) != (point.low, point.high):
            raise ValueError(f"only whole corners can be written, found {point.low}, {point.high}")
        if (low, high) == self.default[:2]:
            return replace(Yarn.default(self.factor), attention_factor=point.attention_factor)
        beta_fast, beta_slow = snapped_betas(self.spec, low, high)
        return Yarn(self.factor, point.attention_factor, beta_fast, beta_slow)

    def on_bounds(self, point: Point, *, raced: bool) -> tuple[str, ...]:
        """Names of the parameters that lie on the edge of the search, so that a better one may lie outside.

        raced  whether the search was a race, for which the least `low` is no edge
        """
        low, high = self.low_bounds, self.high_bounds
        least, greatest = self.factor_bounds
        reached = {
            # a corner at pair 0 is the end of the table, not a bound that was chosen
            "beta_fast": point.low == low[1] or (point.low == low[0] > 0 and not raced),
            "beta_slow": point.high in high and point.high < self.spec.rotary_dim - 1,
            "attention_factor": min(point.attention_factor - least, greatest - point.attention_factor) < AT_A_BOUND,
        }
        return tuple(name for name, hit in reached.items() if hit)


def method(name: str, spec: RopeSpec, factor: float) -> RopeSpec:
    """A method of extension by name, with its defaults, for an unscaled embedding.

    none, linear (PI), ntk (NTK-aware), ntk-by-parts (the blog's ramp, no temperature), yarn (as runtimes default it).
    Raises BadUsage for another name.
    """
    scalings: dict[str, Scaling] = {
        "none": Plain(),
        "linear": Linear(factor),
        "ntk": Ntk(factor),
        "ntk-by-parts": NtkByParts(factor),
        "yarn": Yarn.default(factor),
    }
    if name not in scalings:
        raise BadUsage(f"unknown method {name!r}", hint=f"known: {', '.join(scalings)}, or a calibration file")
    return replace(spec, scaling=scalings[name], max_length=round(spec.original_length * factor))


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: the loss over some positions, with a guard on those within the original length.

    positions  "beyond" (L … L'), "all", or "last" (the last `last` positions)
    guard      nats by which the loss within L may exceed default YaRN's before it costs
    """

    positions: Literal["beyond", "all", "last"]
    last: int = 0
    guard: float = 0.005

    @classmethod
    def parse(cls, text: str, guard: float) -> "Objective":
        """`beyond`, `all` or `last:N`. Raises BadUsage."""
        kind, _, count = text.partition(":")
        if kind in ("beyond", "all") and not count:
            return cls("beyond" if kind == "beyond" else "all", 0, guard)
        if kind == "last" and count.isdecimal() and int(count) > 0:
            return cls("last", int(count), guard)
        raise BadUsage(
            f"unknown objective {text!r}", where="--objective", hint="beyond, all, or last:N as in last:1024"
        )

    def bands(self, original_length: int, length: int) -> Bands:
        """Edges 1, L, L' and, for `last`, L' − N. Raises BadUsage when N does not fit."""
        if self.positions == "last" and self.last >= length:
            raise BadUsage(f"the window has {length} tokens, fewer than last:{self.last} needs", where="--objective")
        extra = {length - self.last} if self.positions == "last" else set()
        return Bands(tuple(sorted({1, original_length, length} | extra)))

    def columns(self, bands: Bands, original_length: int) -> tuple[list[int], list[int]]:
        """(columns that are minimised, columns within L)."""
        within = [i for i, edge in enumerate(bands.edges[:-1]) if edge < original_length]
        start = {
            "beyond": original_length,
            "all": 1,
            "last": bands.edges[-1] - self.last,
        }[self.positions]
        return [i for i, edge in enumerate(bands.edges[:-1]) if edge >= start], within

    def value(
        self,
        nats: Floats,
        default_nats: Floats,
        tokens: Counts,
        columns: tuple[list[int], list[int]],
    ) -> float:
        """The objective over documents, in nats a token. All arrays are [documents, bands]."""
        target, within = columns
        loss = nats[:, target].sum() / tokens[:, target].sum()
        worse = float(nats[:, within].sum()) - float(default_nats[:, within].sum())
        excess = worse / int(tokens[:, within].sum()) - self.guard
        return float(loss + GUARD_WEIGHT * max(excess, 0.0))
