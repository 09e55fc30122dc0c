"""What a calibration will cost, before a weight is read or anything is scored."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from calibrate import search
from calibrate.corpus import Document
from calibrate.cost import Memory, Shape, scoring_memory, window_flops
from calibrate.fit import GRADIENT_COST, Request, expected_passes
from calibrate.model import bytes_of, pick_device, without_weights
from calibrate.run import survey
from calibrate.score import CHUNK_ENTRIES, windows_at_once
from calibrate.verdict import TABLES

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Amount:
    """Text, cut into windows."""

    documents: int
    windows: int
    tokens: int

    @classmethod
    def of(cls, documents: Sequence[Document], length: int) -> "Amount":
        """Of documents with windows of `length` tokens."""
        windows = sum(len(document.windows) for document in documents)
        return cls(len(documents), windows, windows * length)


@dataclass(frozen=True, slots=True)
class FactorPlan:
    """One factor: how much text, and the operations that it costs.

    searched, held_out  the text of the search and of the held-out check
    pass_flops          one forward equivalent: a forward pass over all windows of the search
    passes              forward equivalents that the search will probably cost, gradients included
    held_out_flops      the held-out check: every baseline and the result once
    """

    factor: float
    length: int
    searched: Amount
    held_out: Amount
    passes: float
    pass_flops: float
    held_out_flops: float

    @property
    def flops(self) -> float:
        """Of all of it."""
        return self.passes * self.pass_flops + self.held_out_flops


@dataclass(frozen=True, slots=True)
class Plan:
    """A calibration as it would go.

    memory  of one rank; parts of the model and windows at once are those of the settings
    rate    operations a second that a rank sustains, where one was given
    """

    source: str
    dtype: str
    shape: Shape
    factors: tuple[FactorPlan, ...]
    memory: Memory
    windows_at_once: int
    parts: int
    rate: float | None

    @property
    def flops(self) -> float:
        """Of all factors."""
        return sum(part.flops for part in self.factors)

    @property
    def hours(self) -> float | None:
        """Of one rank that does everything; so many ranks that score windows of their own take so much less."""
        return None if self.rate is None else self.flops / self.rate / HOUR

    def to_json(self) -> dict[str, Any]:
        """What `--plan-only --json` prints."""

        def of(part: FactorPlan) -> dict[str, Any]:
            return {
                "factor": part.factor,
                "length": part.length,
                "search": asdict(part.searched),
                "held_out": asdict(part.held_out),
                "forward_equivalents": part.passes,
                "forward_equivalent_flops": part.pass_flops,
                "held_out_flops": part.held_out_flops,
                "flops": part.flops,
            }

        return {
            "schema_version": 1,
            "kind": "ropecli.plan",
            "source": self.source,
            "dtype": self.dtype,
            "parameters": {"stored": self.shape.parameters, "active": self.shape.active},
            "factors": [of(part) for part in self.factors],
            "flops": self.flops,
            "tensor_parallel": self.parts,
            "windows_at_once": self.windows_at_once,
            "memory_bytes_by_rank": asdict(self.memory) | {"total": self.memory.total},
            "flops_per_second": self.rate,
            "hours": self.hours,
        }


def plan_of(request: Request, rate: float | None) -> Plan:
    """What `calibrate` would do with the request. Raises what it raises before it loads the model.

    rate  operations a second that a rank sustains; None where nobody knows
    """
    known = survey(request)
    shape, dtype = without_weights(known.name, request.settings)
    device, parts = pick_device(request.settings.device), request.settings.tensor_parallel
    factors = []
    for task in known.tasks:
        passes = expected_passes(request, task.space, len(task.found), request.max_evals)
        if request.tune == "factors":
            passes += GRADIENT_COST * search.GRADIENTS
        searched, held = (Amount.of(part, task.length) for part in (task.found, task.held))
        each = window_flops(shape, task.length).total
        factors.append(
            FactorPlan(
                task.space.factor,
                task.length,
                searched,
                held,
                passes,
                pass_flops=searched.windows * each,
                held_out_flops=TABLES * held.windows * each,
            )
        )
    longest = max(task.length for task in known.tasks)
    at_once = min(windows_at_once(longest, device), max(part.searched.windows for part in factors))
    memory = scoring_memory(
        shape,
        longest,
        width=bytes_of(dtype),
        windows=at_once,
        chunk=CHUNK_ENTRIES,
        parts=parts,
        eager=request.settings.attn_implementation == "eager",
    )
    return Plan(request.source, dtype, shape, tuple(factors), memory, at_once, parts, rate)
