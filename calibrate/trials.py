"""Every score of a search: nothing is scored twice, and the best is known at any moment."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibrate.corpus import Document
from calibrate.objective import Objective, Point, Space
from calibrate.score import Bands, Floats, tokens_by_band
from ropecli.errors import Inconclusive
from ropecli.frequencies import Frequencies

NatsOf = Callable[[Frequencies, Sequence[Document]], Floats]
"""Score a table on documents: nats, float64 [documents, bands]."""


class SearchStopped(Exception):
    """The budget is spent; the best so far stands."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One question that the search asked: the loss of a point over the first `documents` documents.

    nll      the objective in nats a token, with the guard's penalty where it is broken
    tokens   predicted tokens that had to be scored for it; those already known cost nothing
    """

    point: Point
    nll: float
    documents: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: trials that cost something, and seconds of wall time since `began` (time.monotonic)."""

    max_evals: int | None = None
    time_limit: float | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.monotonic() - self.began


class Trials:
    """The calibration set as a loss function that remembers.

    documents  in the order in which the search looks at them
    observe    called with every new trial, the best so far, and the passes over the calibration set done
    agreed     whether any process of the run wants to stop, given whether this one does

    Set `stopped` to end the search at its next question, `reserve` to keep so many trials for `settling`, and `budget`
    to give it another one.
    """

    def __init__(
        self,
        nats_of: NatsOf,
        documents: Sequence[Document],
        space: Space,
        objective: Objective,
        bands: Bands,
        budget: Budget,
        observe: Callable[[Trial, Trial, float], None],
        agreed: Callable[[bool], bool] = bool,
    ) -> None:
        self._nats_of = nats_of
        self._documents = documents
        self._space = space
        self._objective = objective
        self._columns = objective.columns(bands, space.spec.original_length)
        self._tokens = tokens_by_band(documents, bands)
        self.budget = budget
        self._observe = observe
        self._agreed = agreed
        self._known: dict[Frequencies, Floats] = {}
        self._answers: dict[tuple[Frequencies, int], float] = {}
        self.trials: list[Trial] = []
        self.scored_tokens = 0
        self._accounted = 0
        self.stopped = False
        self.reserve = 0

    @property
    def evaluations(self) -> int:
        """Trials that had to score something."""
        return sum(trial.tokens > 0 for trial in self.trials)

    @property
    def seconds(self) -> float:
        """Wall time that the trials took."""
        return sum(trial.seconds for trial in self.trials)

    @property
    def forward_equivalents(self) -> float:
        """Tokens scored, in passes over the whole calibration set."""
        return self.scored_tokens / int(self._tokens.sum())

    def nats(self, table: Frequencies, count: int) -> Floats:
        """Nats [count, bands] of a table on the first documents; scores only what is not known yet."""
        known = self._known.get(table, np.zeros((0, self._tokens.shape[1])))
        if len(known) < count:
            new = self._nats_of(table, self._documents[len(known) : count])
            self.scored_tokens += int(self._tokens[len(known) : count].sum())
            known = self._known[table] = np.concatenate([known, new])
        return known[:count]

    def loss(self, point: Point, documents: int, *, settling: bool = False) -> float:
        """The objective of a point over the first `documents` documents.

        The very first question is always answered, and so is one that is `settling` what a spent budget leaves open.
        Raises SearchStopped when the budget is spent, Inconclusive when default YaRN's own loss is not finite.
        """
        table = self._space.frequencies(point)
        answer = self._answers.get((table, documents))
        if answer is not None:
            return answer
        if self.trials and not settling and self._spent():
            raise SearchStopped
        began = time.monotonic()
        default = self.nats(self._space.frequencies(self._space.default), documents)
        nats = self.nats(table, documents)
        value = self._objective.value(nats, default, self._tokens[:documents], self._columns)
        if not math.isfinite(value):
            if point == self._space.default:
                raise Inconclusive(
                    "the loss of default YaRN is not a finite number",
                    hint="try --dtype float32; if it stays, the checkpoint or the text is broken",
                )
            value = math.inf
        self._answers[table, documents] = value
        trial = Trial(point, value, documents, self.scored_tokens - self._accounted, time.monotonic() - began)
        self._accounted = self.scored_tokens
        self.trials.append(trial)
        self._observe(trial, self.best(), self.forward_equivalents)
        return value

    def best(self) -> Trial:
        """The best trial so far, among those that looked at the most documents."""
        most = max(trial.documents for trial in self.trials)
        return min((t for t in self.trials if t.documents == most), key=lambda t: t.nll)

    @property
    def over(self) -> bool:
        """Whether it was stopped, or the time is over."""
        limit = self.budget.time_limit
        return self._agreed(self.stopped or (limit is not None and self.budget.seconds >= limit))

    def _spent(self) -> bool:
        most = self.budget.max_evals
        return (most is not None and self.evaluations + self.reserve >= most) or self.over
