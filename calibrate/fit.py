"""One factor: search → held-out check → verdict."""

import functools
import math
import resource
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from calibrate import polish, search
from calibrate.calibration import Fit
from calibrate.corpus import Corpus, Document, Source
from calibrate.fence import as_loaded, rotating_with
from calibrate.gradient import slope
from calibrate.journal import Journal
from calibrate.model import LoadedModel, Settings
from calibrate.objective import Objective, Point, Space, method
from calibrate.parallel import Ranks
from calibrate.score import Bands, Floats, nats_by_band, tokens_by_band, windows_at_once
from calibrate.statistics import Difference, effective_documents
from calibrate.trials import Budget, NatsOf, SearchStopped, Trial, Trials
from calibrate.verdict import TABLES, finer_if_proved, judged, validate, verdict
from ropecli.checkpoint import Checkpoint
from ropecli.errors import Inconclusive
from ropecli.frequencies import Frequencies, frequencies
from ropecli.spec import RopeSpec, Yarn

Tune = Literal["yarn", "temperature", "factors"]

FEW_HELD_OUT = 15
"""With fewer effective held-out documents the interval is a rough one, and a note says so."""

GRADIENT_COST = 3
"""Forward passes that one gradient counts for; measured 2.7."""

STOPPED = "the search for divisors was stopped before it ended; this is the best it had seen"

MEMORY_STEP = 2**26

POSITION_BINS = 64
"""Bins of the held-out loss by position."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for; the names are the command line's."""

    source: str
    data: tuple[str, ...]
    factors: tuple[float, ...] = ()
    target_length: int | None = None
    original_length: int | None = None
    tune: Tune = "yarn"
    objective: str = "beyond"
    guard: float = 0.005
    optimizer: str = "auto"
    documents: int | None = None
    windows: int | None = None
    validation_fraction: float = 0.5
    max_evals: int | None = None
    time_limit: float | None = None
    seed: int = 0
    text_field: str = "text"
    journal: Path | None = None
    resume: bool = False
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class Observer:
    """What to tell whoever waits.

    say     a line about what happens next
    expect  how many passes over the calibration set the search will probably cost
    trial   a new trial, the best so far, and the passes done
    """

    say: Callable[[str], None]
    expect: Callable[[float], None]
    trial: Callable[[Trial, Trial, float], None]


def scorer(loaded: LoadedModel, layer: str, bands: Bands) -> Callable[[Frequencies, Sequence[Document]], Floats]:
    """A function from a table and documents to nats [documents, bands]."""

    def nats_of(table: Frequencies, documents: Sequence[Document]) -> Floats:
        with rotating_with(loaded.model, {layer: table}):
            return nats_by_band(loaded, documents, bands)

    return nats_of


@contextmanager
def interruptible(*trials: Trials) -> Iterator[list[int]]:
    """Inside the block the first Ctrl-C or SIGTERM only stops the search; the second one ends the program.

    Yields a list that holds the signal's number once it came.
    """
    received: list[int] = []

    def stop(number: int, frame: types.FrameType | None) -> None:
        if received:
            signal.default_int_handler(number, frame)
        received.append(number)
        for each in trials:
            each.stopped = True

    had = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in had.items():
            signal.signal(number, handler)


def find(request: Request, trials: Trials, space: Space, documents: int) -> tuple[Point, bool]:
    """Run the search; (the best point, whether it ended by itself). Never above default YaRN on what was scored."""
    corners = request.tune != "temperature"
    named = request.optimizer != "auto"
    trials.reserve = search.SETTLING if named and corners else 0
    trials.loss(space.default, documents if documents < search.FEW_DOCUMENTS else 1)
    try:
        if named:
            search.by_name(trials.loss, space, documents, request.optimizer, corners=corners, seed=request.seed)
        elif corners:
            search.race(trials.loss, space, documents)
        else:
            search.temperature(trials.loss, space, space.default, documents)
        complete = True
    except SearchStopped:
        complete = False
        best_seen = trials.best()
        # continuous corners cannot be written, and a gain is over the default on the same documents
        for point in (space.default, *(search.whole_cells(space, best_seen.point) if named else ())):
            trials.loss(point, best_seen.documents, settling=True)
    writable = [t for t in trials.trials if t.point.low == round(t.point.low) and t.point.high == round(t.point.high)]
    most = max(trial.documents for trial in writable)
    best = min((t for t in writable if t.documents == most), key=lambda t: t.nll)
    default = [t for t in writable if t.documents == most and t.point == space.default]
    return (space.default if not default or default[0].nll <= best.nll else best.point), complete


def once(nats_of: NatsOf) -> NatsOf:
    """The same scorer for one set of documents, which scores no table twice."""
    known: dict[Frequencies, Floats] = {}

    def scored(table: Frequencies, documents: Sequence[Document]) -> Floats:
        if table not in known:
            known[table] = nats_of(table, documents)
        return known[table]

    return scored


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU where there is one, else of this process.

    Rounded up to `MEMORY_STEP`: what the system adds differs from run to run, and the same run gives the same file.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    if device.type == "cuda":
        found = int(torch.cuda.max_memory_allocated(device))
    else:
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return -(-found // MEMORY_STEP) * MEMORY_STEP


def _notes(
    corpus: Corpus, loaded: LoadedModel, space: Space, point: Point, *, raced: bool, complete: bool
) -> tuple[str, ...]:
    notes = list(corpus.notes)
    if loaded.dequantised:
        notes.append(
            f"the GGUF was de-quantised to {loaded.dtype} by transformers: losses are those of its weights, "
            "not of a runtime that computes with quantised ones"
        )
    if loaded.bos is not None:
        notes.append("every window starts with the tokenizer's beginning-of-sequence token")
    bounds = space.on_bounds(point, raced=raced)
    if bounds and point != space.default:
        notes.append(f"the best lies on the bound of the search for {', '.join(bounds)}")
    if not complete:
        notes.append("the search was stopped before it ended; this is the best of what it had seen")
    return tuple(notes)


def _trial_to_json(trial: Trial, factor: float) -> dict[str, Any]:
    low, high, m = trial.point
    return {
        "factor": factor,
        "parameters": {"low": float(low), "high": float(high), "attention_factor": m},
        "nll": trial.nll if math.isfinite(trial.nll) else None,
        "documents": trial.documents,
        "tokens": trial.tokens,
        "seconds": round(trial.seconds, 3),
    }


@dataclass(frozen=True, slots=True)
class Task:
    """One factor to be fitted: its windows, and which documents are searched on and which are held out."""

    space: Space
    length: int
    bands: Bands
    corpus: Corpus
    found: tuple[Document, ...]
    held: tuple[Document, ...]

    @property
    def finer(self) -> Bands:
        """The bands of the held-out check, which also tell the loss by position."""
        return self.bands.finer(POSITION_BINS)

    @property
    def plan(self) -> str:
        """What will be done, in a sentence."""
        searched, held = (sum(len(d.windows) for d in part) * self.length for part in (self.found, self.held))
        return (
            f"L = {self.space.spec.original_length}, factor {self.space.factor:g}, windows of {self.length} tokens; "
            f"search on {len(self.found)} document{'s' * (len(self.found) > 1)} ({searched:,} tokens), "
            f"held-out check on {len(self.held)} ({held:,} tokens)"
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """What all factors share, and the tasks, the largest factor first.

    layer  the layer type whose embedding is extended
    plain  that embedding without scaling
    """

    checkpoint: Checkpoint
    layer: str
    plain: RopeSpec
    loaded: LoadedModel
    sources: tuple[Source, ...]
    objective: Objective
    tasks: tuple[Task, ...]


def expected_passes(request: Request, space: Space, documents: int, max_evals: int | None) -> float:
    """Passes over the calibration set that the search will cost, by what earlier ones cost."""
    if request.tune == "temperature":
        likely: float = search.TEMPERATURE_TRIALS + 2
    else:
        likely = search.race_passes(space, documents) if request.optimizer == "auto" else 80
    return likely if max_evals is None else min(likely, max_evals)


def _pace(
    request: Request, task: Task, trials: Trials, journal: Journal, budget: Budget, memory: Callable[[], int]
) -> str:
    """A sentence on how long it will take, from one measured pass over the first document, which the search needs."""
    passes = expected_passes(request, task.space, len(task.found), budget.max_evals)
    searched, held = (sum(len(document.windows) for document in part) for part in (task.found, task.held))
    work = f"the search up to {passes:.0f} passes over {searched} windows, the held-out check {TABLES} over {held}"
    known, began = journal.computed, time.monotonic()
    trials.nats(task.space.frequencies(task.space.default), 1)
    if journal.computed == known:
        return f"{work}; the first scores are in the journal"
    window = (time.monotonic() - began) / len(task.found[0].windows)
    one, search_time, check_time = (_duration(window * count) for count in (1, passes * searched, TABLES * held))
    peak = f"{memory() / 2**30:.1f} GiB of memory so far"
    return f"{work}; at {one} a window that is {search_time} and {check_time}; {peak}"


def _duration(seconds: float) -> str:
    """For people: 0.35 s, 42 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, slots=True)
class Found:
    """What the search found for one factor, before held-out text has judged it.

    trials    every score of the search
    held_out  scores tables on held-out documents by position, each table once
    point     the best, with whole corners
    complete  whether the search ended by itself
    """

    task: Task
    trials: Trials
    held_out: NatsOf
    point: Point
    complete: bool

    def spec(self, plain: RopeSpec) -> RopeSpec:
        """The YaRN that the point stands for, on the embedding without scaling."""
        return replace(plain, scaling=self.task.space.scaling(self.point), max_length=self.task.length)


def fit(
    request: Request, prepared: Prepared, task: Task, journal: Journal, budget: Budget, observer: Observer
) -> tuple[Fit, Found, int | None]:
    """Search one factor, check on held-out documents, decide. Also returns the signal that stopped it, if any."""
    loaded, layer = prepared.loaded, prepared.layer
    observer.expect(expected_passes(request, task.space, len(task.found), budget.max_evals))
    at_once = windows_at_once(task.length, loaded.device) * loaded.ranks.copies
    nats_of = journal.remembering(scorer(loaded, layer, task.bands), at_once)
    trials = Trials(
        nats_of,
        task.found,
        task.space,
        prepared.objective,
        task.bands,
        budget,
        observer.trial,
        agreed=loaded.ranks.any,
    )
    held_out = once(journal.remembering(scorer(loaded, layer, task.finer), at_once))
    with interruptible(trials) as signals:
        observer.say(_pace(request, task, trials, journal, budget, lambda: peak_memory(loaded.device)))
        point, complete = find(request, trials, task.space, len(task.found))
        found = Found(task, trials, held_out, point, complete)
        fitted = judge(request, prepared, found, journal, observer)
    return fitted, found, agreed_signal(loaded.ranks, signals)


def agreed_signal(ranks: Ranks, signals: Sequence[int]) -> int | None:
    """The signal that stopped the run, which may have reached one rank alone."""
    return int(ranks.most(float(signals[0] if signals else 0))) or None


def _finer(
    prepared: Prepared, found: Found, yarn: RopeSpec, journal: Journal, observer: Observer
) -> tuple[RopeSpec, int, bool, tuple[str, ...]]:
    """(the divisors where they are proved better, else `yarn`; gradients; whether it ended by itself; notes)."""
    loaded, task, objective = prepared.loaded, found.task, prepared.objective
    slope_of = journal.remembering_slopes(
        functools.partial(slope, loaded, prepared.layer),
        windows_at_once(task.length, loaded.device) * loaded.ranks.copies,
    )
    try:
        finer = polish.divisors(
            slope_of, task.space, yarn, task.found, task.bands, objective, observer.say, lambda: found.trials.over
        )
    except Inconclusive as error:
        observer.say(f"gradients are off: {error.problem}")
        return yarn, 0, True, (f"no divisor for each pair was searched: {error.problem}; {error.hint}",)
    spec, note = finer_if_proved(found.held_out, task.held, yarn, finer.spec, task.finer, objective)
    edges = f"; on the bound of the search: {', '.join(finer.on_bounds)}" if finer.on_bounds else ""
    stopped = () if finer.complete else (STOPPED,)
    return spec, finer.gradients, finer.complete, (note + edges, *stopped)


def _in_sample(found: Found, spec: RopeSpec, objective: Objective, held_out: Difference) -> dict[str, Any]:
    """The `calibration` block: the loss on the documents that chose, and by how much their gain flatters."""
    task, trials, space = found.task, found.trials, found.task.space
    documents = trials.best().documents
    chosen = task.found[:documents]
    target, _ = objective.columns(task.bands, space.spec.original_length)
    tokens = int(tokens_by_band(chosen, task.bands)[:, target].sum())

    def nll(table: Frequencies) -> float:
        return float(trials.nats(table, documents)[:, target].sum()) / tokens

    default, best = nll(space.frequencies(space.default)), nll(_searched(found, spec))
    optimism = (default - best) + held_out.delta
    return {
        "documents": documents,
        "tokens": int(tokens_by_band(chosen, task.bands).sum()),
        "default_nll": default,
        "nll": best,
        "optimism": optimism if math.isfinite(optimism) else None,
    }


def _searched(found: Found, spec: RopeSpec) -> Frequencies:
    """The table of what was found, as the search knows it."""
    if isinstance(spec.scaling, Yarn):
        return found.task.space.frequencies(found.point)
    return frequencies(spec)


def judge(request: Request, prepared: Prepared, found: Found, journal: Journal, observer: Observer) -> Fit:
    """What the point that was found is worth on held-out documents, and the decision."""
    task, trials, space, objective = found.task, found.trials, found.task.space, prepared.objective
    spec = found.spec(prepared.plain)
    raced = request.optimizer == "auto"
    notes = list(_notes(task.corpus, prepared.loaded, space, found.point, raced=raced, complete=found.complete))
    gradients, complete = 0, found.complete
    if request.tune == "factors" and complete:
        spec, gradients, complete, more = _finer(prepared, found, spec, journal, observer)
        notes.extend(more)
    few = effective_documents(tokens_by_band(task.held, task.bands).sum(axis=1))
    if few < FEW_HELD_OUT:
        worth = "" if round(few, 1) == len(task.held) else f", as good as {few:.3g} of equal length"
        notes.append(
            f"the verdict rests on {len(task.held)} held-out document{'s' * (len(task.held) > 1)}{worth}: "
            f"with fewer than {FEW_HELD_OUT} its interval is a rough one"
        )
    rows, differences, curves = validate(found.held_out, task.held, space, as_loaded(spec), task.finer, observer.say)
    target = judged(differences, objective)
    unchanged = spec.scaling == space.scaling(space.default)
    decision, reason = verdict(differences, objective, len(task.found), unchanged=unchanged)
    return Fit(
        spec=method("yarn", prepared.plain, space.factor) if decision == "default" else spec,
        attention_factor=frequencies(spec).attention_factor,
        complete=complete,
        decision=decision,
        reason=reason,
        notes=tuple(notes),
        calibration=_in_sample(found, spec, objective, target),
        validation=rows,
        cost={
            "evaluations": trials.evaluations,
            "gradients": gradients,
            "forward_equivalents": round(trials.forward_equivalents + GRADIENT_COST * gradients, 3),
            "tokens": trials.scored_tokens,
            "seconds": round(trials.seconds, 3),
            "peak_memory_bytes": int(prepared.loaded.ranks.most(peak_memory(prepared.loaded.device))),
        },
        trace=tuple(_trial_to_json(trial, space.factor) for trial in trials.trials),
        found=spec,
        by_position=curves,
    )
