"""One factor: search → held-out check → verdict."""

import math
import resource
import signal
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from calibrate import polish, search
from calibrate.calibration import Fit, Validation
from calibrate.corpus import Corpus, Document, Source
from calibrate.model import LoadedModel, Settings, as_loaded, rotating_with
from calibrate.objective import Objective, Point, Space, method
from calibrate.score import Bands, Floats, nats_by_band, tokens_by_band
from calibrate.statistics import Difference, paired_difference
from calibrate.trials import Budget, NatsOf, SearchStopped, Trial, Trials
from ropecli.checkpoint import Checkpoint
from ropecli.frequencies import Frequencies, frequencies
from ropecli.spec import RopeSpec

Tune = Literal["yarn", "temperature", "factors"]

BASELINES = ("none", "linear", "ntk", "ntk-by-parts")

FEWEST_DOCUMENTS = 5
"""With fewer calibration documents nothing is claimed: one document can make a model worse."""

GRADIENT_COST = 3
"""Forward passes that one gradient counts for; measured 2.7."""


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
def interruptible(trials: Trials) -> Iterator[list[int]]:
    """Inside the block the first Ctrl-C or SIGTERM only stops the search; the second one ends the program.

    Yields a list that holds the signal's number once it came.
    """
    received: list[int] = []

    def stop(number: int, frame: types.FrameType | None) -> None:
        if received:
            signal.default_int_handler(number, frame)
        received.append(number)
        trials.stopped = True

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


def validate(
    nats_of: Callable[[Frequencies, Sequence[Document]], Floats],
    documents: Sequence[Document],
    space: Space,
    table: Frequencies,
    bands: Bands,
    stage: Callable[[str], None],
) -> tuple[tuple[Validation, ...], Mapping[str, Difference]]:
    """Score the held-out documents once for every baseline and the result: within L, beyond it, and over all."""
    named = {name: as_loaded(method(name, space.spec, space.factor)) for name in (*BASELINES, "yarn")}
    nats: dict[Frequencies, Floats] = {}
    for name, wanted in [*named.items(), ("the result", table)]:
        if wanted not in nats:
            stage(f"held-out check: {name}")
            nats[wanted] = nats_of(wanted, documents)
    counts = tokens_by_band(documents, bands)
    starts = np.array(bands.edges[:-1])
    positions = {
        "within": starts < space.spec.original_length,
        "beyond": starts >= space.spec.original_length,
        "all": starts > 0,
    }
    rows, differences = [], {}
    for name, chosen in positions.items():
        tokens = counts[:, chosen].sum(axis=1)
        total = int(tokens.sum())
        before, after = nats[named["yarn"]][:, chosen].sum(axis=1), nats[table][:, chosen].sum(axis=1)
        difference = differences[name] = paired_difference(after, before, tokens)
        default_nll, nll = float(before.sum() / total), float(after.sum() / total)
        baselines = {key: float(nats[named[key]][:, chosen].sum() / total) for key in BASELINES}
        rows.append(
            Validation(
                space.factor,
                bands.edges[-1],
                name,
                len(documents),
                total,
                default_nll,
                nll,
                difference.delta,
                (difference.low, difference.high),
                math.exp(min(default_nll, 700)),
                math.exp(min(nll, 700)),
                baselines,
            )
        )
    return tuple(rows), differences


def once(nats_of: NatsOf) -> NatsOf:
    """The same scorer for one set of documents, which scores no table twice."""
    known: dict[Frequencies, Floats] = {}

    def scored(table: Frequencies, documents: Sequence[Document]) -> Floats:
        if table not in known:
            known[table] = nats_of(table, documents)
        return known[table]

    return scored


def finer_if_proved(
    nats_of: NatsOf,
    documents: Sequence[Document],
    yarn: RopeSpec,
    finer: RopeSpec,
    bands: Bands,
    objective: Objective,
) -> tuple[RopeSpec, str]:
    """The divisors only where held-out text proves them better than the YaRN that they came from; and a note of it."""
    target, _ = objective.columns(bands, yarn.original_length)
    after, before = (nats_of(as_loaded(spec), documents)[:, target].sum(axis=1) for spec in (finer, yarn))
    gain = paired_difference(after, before, tokens_by_band(documents, bands)[:, target].sum(axis=1))
    span = f"{gain.delta:+.4f} nats a token against YaRN, 95 % interval {gain.low:+.4f} to {gain.high:+.4f}"
    if not gain.high < 0:
        return yarn, f"a divisor for each pair is not proved better on held-out text: {span}"
    edge = "; a divisor lies on the bound of the search" if polish.on_bound(finer) else ""
    return finer, f"a divisor for each pair is better on held-out text: {span}{edge}"


def verdict(
    differences: Mapping[str, Difference], objective: Objective, documents: int, *, unchanged: bool
) -> tuple[str, str]:
    """("calibrated" or "default", the reason in a sentence); `unchanged` where the search ended on the default."""
    target = differences["beyond" if objective.positions == "last" else objective.positions]
    within = differences["within"]
    span = f"{target.delta:+.4f} nats a token, 95 % interval {target.low:+.4f} to {target.high:+.4f}"
    if documents < FEWEST_DOCUMENTS:
        few = f"{documents} calibration document{'s are' if documents > 1 else ' is'} too few to claim anything"
        return "default", f"{few}; {FEWEST_DOCUMENTS} are needed"
    if unchanged:
        return "default", "the search found nothing better than default YaRN"
    if not target.high < 0:  # a loss that is not a number proves nothing either
        return "default", f"on held-out text the gain over default YaRN is not proved: {span}"
    if within.low > objective.guard:
        return "default", (
            f"the gain beyond the original length ({span}) costs {within.delta:+.4f} nats within it, "
            f"more than the guard of {objective.guard:g}"
        )
    return "calibrated", f"better than default YaRN on held-out text: {span}"


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _notes(corpus: Corpus, loaded: LoadedModel, space: Space, point: Point, complete: bool) -> tuple[str, ...]:
    notes = []
    if corpus.blocks:
        notes.append(f"one text was cut into {len(corpus.documents)} contiguous blocks that count as documents")
    if corpus.too_short:
        notes.append(
            f"{corpus.too_short} documents are shorter than one window of {corpus.length} tokens and were left out"
        )
    if loaded.bos is not None:
        notes.append("every window starts with the tokenizer's beginning-of-sequence token")
    if corpus.repeated:
        notes.append(f"{corpus.repeated} documents have the same text as an earlier one and were left out")
    bounds = space.on_bounds(point)
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
    def plan(self) -> str:
        """What will be done, in a sentence."""
        searched, held = (sum(len(d.windows) for d in part) * self.length for part in (self.found, self.held))
        return (
            f"L = {self.space.spec.original_length}, factor {self.space.factor:g}, windows of {self.length} tokens; "
            f"search on {len(self.found)} documents ({searched:,} tokens), "
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


def fit(
    request: Request,
    prepared: Prepared,
    task: Task,
    remembering: Callable[[NatsOf], NatsOf],
    budget: Budget,
    observer: Observer,
) -> tuple[Fit, int | None]:
    """Search one factor, check on held-out documents, decide. Also returns the signal that stopped it, if any."""
    loaded, layer, plain, objective = prepared.loaded, prepared.layer, prepared.plain, prepared.objective
    space, bands, found = task.space, task.bands, task.found
    began = budget.seconds
    observer.expect(expected_passes(request, space, len(found), budget.max_evals))
    nats_of = remembering(scorer(loaded, layer, bands))
    trials = Trials(nats_of, found, space, objective, bands, budget, observer.trial, loaded.ranks.any)
    with interruptible(trials) as signals:
        point, complete = find(request, trials, space, len(found))
        spec = replace(plain, scaling=space.scaling(point), max_length=task.length)
        notes = list(_notes(task.corpus, loaded, space, point, complete))
        gradients, held_out = 0, once(nats_of)
        if request.tune == "factors" and complete:
            finer, gradients = polish.divisors(loaded, layer, space, spec, found, bands, objective, observer.say)
            spec, note = finer_if_proved(held_out, task.held, spec, finer, bands, objective)
            notes.append(note)
        rows, differences = validate(held_out, task.held, space, as_loaded(spec), bands, observer.say)
    unchanged = spec.scaling == space.scaling(space.default)
    decision, reason = verdict(differences, objective, len(found), unchanged=unchanged)
    documents = trials.best().documents
    seen = [t for t in trials.trials if t.documents == documents]
    default_trials = [t.nll for t in seen if t.point == space.default]
    best_trials = [t.nll for t in seen if t.point == point]
    result = Fit(
        spec=method("yarn", plain, space.factor) if decision == "default" else spec,
        attention_factor=frequencies(spec).attention_factor,
        complete=complete,
        decision=decision,
        reason=reason,
        notes=tuple(notes),
        calibration={
            "documents": documents,
            "tokens": int(tokens_by_band(found[:documents], bands).sum()),
            "default_nll": default_trials[0] if default_trials else None,
            "nll": min(best_trials, default=None),
        },
        validation=rows,
        cost={
            "evaluations": trials.evaluations,
            "gradients": gradients,
            "forward_equivalents": round(trials.forward_equivalents + GRADIENT_COST * gradients, 3),
            "tokens": trials.scored_tokens,
            "seconds": round(budget.seconds - began, 3),
            "peak_memory_bytes": int(loaded.ranks.most(peak_memory(loaded.device))),
        },
        trace=tuple(_trial_to_json(trial, space.factor) for trial in trials.trials),
    )
    return result, signals[0] if signals else None
