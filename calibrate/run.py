"""The story of a calibration on one page: load → split → search → held-out check → verdict.

Several factors share the model, the text and the budget; each has its own windows, search and held-out check. The
attention factors that the searches found give the law m(s) = a·ln s + b.
"""

import functools
import math
import platform
import resource
import signal
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from calibrate import polish, search
from calibrate.calibration import YARN_LAW, Calibration, Fit, Law, Validation
from calibrate.corpus import Corpus, Document, Source, read_texts, split, tokenize
from calibrate.journal import Journal, file_fingerprint
from calibrate.model import LoadedModel, Settings, as_loaded, load, rotating_with
from calibrate.objective import Objective, Point, Space, method
from calibrate.score import Bands, Floats, nats_by_band, token_nll, tokens_by_band
from calibrate.statistics import Difference, fitted_line, paired_difference
from calibrate.trials import Budget, NatsOf, SearchStopped, Trial, Trials
from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.errors import BadCheckpoint, BadUsage, Inconclusive
from ropecli.frequencies import Frequencies, frequencies
from ropecli.spec import LayerRope, Plain, RopeSpec

Tune = Literal["yarn", "temperature", "factors"]
BASELINES = ("none", "linear", "ntk", "ntk-by-parts")
FEWEST_DOCUMENTS = 5
"""With fewer calibration documents nothing is claimed: one document can make a model worse."""

PROBE_TOKENS = 512
GRADIENT_COST = 3
"""Forward passes that one gradient counts for; measured 2.7."""
REPLACEABLE = ("default", "linear", "ntk", "dynamic", "yarn")


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


def extensible(checkpoint: Checkpoint, original_length: int | None) -> tuple[LayerRope, RopeSpec]:
    """The layers whose embedding is extended, and that embedding without scaling.

    Layers that attend within a sliding window keep theirs. Raises Inconclusive where there is nothing to extend, and
    BadCheckpoint where the checkpoint was trained with a scaling of its own that would be lost.
    """
    if not checkpoint.ropes:
        raise Inconclusive(
            "the model has no rotary embedding",
            where=checkpoint.source,
            hint="its context cannot be extended by RoPE scaling",
        )
    full = [rope for rope in checkpoint.ropes if rope.sliding_window is None] or list(checkpoint.ropes)
    rope = max(full, key=lambda candidate: candidate.layers)
    if rope.spec.rope_type not in REPLACEABLE:
        raise BadCheckpoint(
            f"trained with {rope.spec.rope_type} scaling to {rope.spec.max_length} tokens, which YaRN would replace",
            where=checkpoint.source,
            hint="calibrate the checkpoint from before the extension",
        )
    length = original_length or rope.spec.original_length
    return rope, replace(rope.spec, scaling=Plain(), original_length=length, max_length=length)


def extension(spec: RopeSpec, factor: float | None, target_length: int | None) -> tuple[float, int]:
    """(factor, window length in tokens) from either of the two. Raises BadUsage for an extension of nothing."""
    if (factor is None) == (target_length is None):
        raise BadUsage("give one of --factor and --target-length", hint="for example --factor 4")
    scale = factor if factor is not None else (target_length or 0) / spec.original_length
    if not math.isfinite(scale) or scale <= 1:
        asked = f"--factor {factor:g}" if factor is not None else f"--target-length {target_length}"
        raise BadUsage(
            f"expected an extension beyond the original length of {spec.original_length} tokens, found {asked}",
            hint="a factor is the target length divided by the original length, above 1",
        )
    length = round(scale * spec.original_length)
    if length == spec.original_length:
        raise BadUsage(f"a factor of {scale:g} adds no token to {length}", where="--factor")
    return scale, length


def extensions(request: Request, spec: RopeSpec) -> tuple[tuple[float, int], ...]:
    """(factor, window length in tokens) of every factor that was asked for, the largest first.

    Raises BadUsage for an extension of nothing, a factor that is given twice, and a budget that is smaller than one
    evaluation a factor.
    """
    if not request.factors:
        return (extension(spec, None, request.target_length),)
    factors = sorted(request.factors, reverse=True)
    if len(set(factors)) < len(factors):
        twice = next(a for a, b in pairwise(factors) if a == b)
        raise BadUsage(f"{twice:g} is given twice", where="--factor")
    if request.max_evals is not None and request.max_evals < len(factors):
        raise BadUsage(
            f"expected at least one evaluation for each of {len(factors)} factors, found {request.max_evals}",
            where="--max-evals",
        )
    return tuple(extension(spec, factor, request.target_length) for factor in factors)


def scorer(loaded: LoadedModel, layer: str, bands: Bands) -> Callable[[Frequencies, Sequence[Document]], Floats]:
    """A function from a table and documents to nats [documents, bands]."""

    def nats_of(table: Frequencies, documents: Sequence[Document]) -> Floats:
        with rotating_with(loaded.model, {layer: table}):
            return nats_by_band(loaded, documents, bands)

    return nats_of


def prove_alive(loaded: LoadedModel, layer: str, space: Space, document: Document) -> None:
    """Check on a short prefix that the loss moves when the frequencies do. Raises Inconclusive if it does not."""
    ids = torch.tensor([document.windows[0][:PROBE_TOKENS]], device=loaded.device)
    losses = []
    for name in ("none", "linear"):
        table = frequencies(method(name, space.spec, space.factor))
        with torch.no_grad(), rotating_with(loaded.model, {layer: table}):
            losses.append(token_nll(loaded.model, ids))
    if torch.equal(*losses):
        raise Inconclusive(
            "the loss does not move when the rotary frequencies do",
            hint="the model does not use the rotary table that was found; please report the architecture",
        )


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


def prepare(request: Request) -> Prepared:
    """Load the model once, and cut the text into windows for every factor. What can be refused is refused here."""
    objective = Objective.parse(request.objective, request.guard)
    checkpoint = read_checkpoint(request.source)
    rope, plain = extensible(checkpoint, request.original_length)
    wanted = [(Space(plain, factor), length) for factor, length in extensions(request, plain)]
    bands = [objective.bands(plain.original_length, length) for _, length in wanted]
    texts, sources = read_texts(request.data, request.text_field)
    # a Hub id's path is a cache folder that may hold the config alone
    is_local = checkpoint.path is not None and Path(request.source).exists()
    loaded = load(str(checkpoint.path) if is_local else request.source, request.settings)
    encode = functools.cache(loaded.encode)
    tasks = []
    for (space, length), edges in zip(wanted, bands, strict=True):
        corpus = tokenize(texts, encode, length, bos=loaded.bos, windows=request.windows)
        found, held = split(corpus.documents[: request.documents], request.validation_fraction, request.seed)
        tasks.append(Task(space, length, edges, corpus, found, held))
    return Prepared(checkpoint, rope.name, plain, loaded, tuple(sources), objective, tuple(tasks))


def share(budget: Budget, evaluations: int, tasks: Sequence[Task]) -> Budget:
    """What the first of the tasks that are left may spend, after so many evaluations.

    Evaluations are dealt in equal parts, time by window length; what one task leaves over is for the next.
    """
    evals, limit = budget.max_evals, budget.time_limit
    if evals is not None:
        evals = max((evals - evaluations) // len(tasks), 1)
    if limit is not None and len(tasks) > 1:
        gone = budget.seconds
        limit = gone + (limit - gone) * tasks[0].length / sum(task.length for task in tasks)
    return Budget(evals, limit, budget.began)


def _expected_passes(request: Request, space: Space, documents: int, max_evals: int | None) -> float:
    if request.tune == "temperature":
        likely: float = search.TEMPERATURE_TRIALS + 2
    else:
        likely = search.race_passes(space, documents) if request.optimizer == "auto" else 80
    return likely if max_evals is None else min(likely, max_evals)


def _identity(request: Request, prepared: Prepared) -> Mapping[str, Any]:
    """What must be the same for an earlier run's scores to be of use."""
    settings = asdict(request)
    for changeable in ("source", "data", "journal", "resume", "max_evals", "time_limit", "settings", "factors"):
        del settings[changeable]
    path = prepared.checkpoint.path
    files = [] if path is None else sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {
        "checkpoint": prepared.checkpoint.config_sha256,
        "weights": [file_fingerprint(file) for file in files],
        "data": [source.sha256 for source in prepared.sources],
        "device": prepared.loaded.device.type,
        "dtype": prepared.loaded.dtype,
        "factors": sorted(request.factors),
        **settings,
    }


def _data(sources: Sequence[Source]) -> tuple[Mapping[str, Any], ...]:
    return tuple(asdict(source) for source in sources)


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
    observer.expect(_expected_passes(request, space, len(found), budget.max_evals))
    nats_of = remembering(scorer(loaded, layer, bands))
    trials = Trials(nats_of, found, space, objective, bands, budget, observer.trial)
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
            "peak_memory_bytes": peak_memory(loaded.device),
        },
        trace=tuple(_trial_to_json(trial, space.factor) for trial in trials.trials),
    )
    return result, signals[0] if signals else None


def law_of(fits: Sequence[Fit]) -> Law | None:
    """The line through what the searches found, each factor with the same weight; None for a single factor.

    The attention factors are those of the searches, also where a verdict kept the default: a line through defaults
    would be YaRN's own. No search knows m to better than its tolerance.
    """
    if len(fits) < 2:
        return None
    points = tuple((found.factor, found.attention_factor) for found in fits)
    factors, m = np.array(points).T
    line = fitted_line(np.log(factors), m, YARN_LAW, resolution=search.TEMPERATURE_TOLERANCE)
    return Law(line.slope, line.intercept, line.slope_ci95, line.intercept_ci95, points, line.against_rejected)


def _joined_notes(tune: Tune, fits: Sequence[Fit], law: Law | None, skipped: Sequence[str]) -> tuple[str, ...]:
    shared = [note for note in fits[0].notes if all(note in found.notes for found in fits)]
    own = [f"factor {found.factor:g}: {note}" for found in fits for note in found.notes if note not in shared]
    about_law = []
    if law is not None:
        about_law.append("the law is of the m that the searches found, whatever the decision for each factor was")
        if tune != "temperature":
            about_law.append("each factor has corners of its own, and its m belongs to them")
        if not all(found.complete for found in fits):
            about_law.append("the law rests on a search that was stopped before it ended")
    return (*shared, *own, *skipped, *about_law)


def calibrate(request: Request, observer: Observer) -> tuple[Calibration, int | None]:
    """Fit every factor and join the results. Returns the calibration and the signal that stopped it, if any.

    The largest factor goes first, so that an interrupted run has it, and so that too little memory shows at once. A
    signal or the time limit leaves out the factors whose turn had not come. Raises the kinds of `ropecli.errors` for
    everything a user can cause.
    """
    budget = Budget(request.max_evals, request.time_limit)
    prepared = prepare(request)
    loaded, tasks = prepared.loaded, prepared.tasks
    for task in tasks:
        observer.say(f"{task.plan}; {loaded.device.type}, {loaded.dtype}")
    prove_alive(loaded, prepared.layer, tasks[0].space, tasks[0].found[0])

    fits: list[Fit] = []
    skipped: list[str] = []
    stopped_by = None
    with ExitStack() as stack:
        remembering: Callable[[NatsOf], NatsOf] = lambda nats_of: nats_of  # noqa: E731 - one of two
        if request.journal is not None:
            journal = Journal(request.journal, _identity(request, prepared), resume=request.resume)
            stack.callback(journal.close)
            remembering = journal.remembering
        for index, task in enumerate(tasks):
            over = request.time_limit is not None and budget.seconds >= request.time_limit
            if stopped_by is not None or (fits and over):
                skipped.append(f"factor {task.space.factor:g} was left out: the run was stopped before its turn")
                continue
            if len(tasks) > 1:
                observer.say(f"factor {task.space.factor:g}:")
            spent = sum(found.cost["evaluations"] for found in fits)
            part = share(budget, spent, tasks[index:])
            result, stopped_by = fit(request, prepared, task, remembering, part, observer)
            fits.append(result)
    return _joined(request, prepared, tuple(reversed(fits)), tuple(skipped), budget.seconds), stopped_by


def _joined(
    request: Request, prepared: Prepared, fits: tuple[Fit, ...], skipped: tuple[str, ...], seconds: float
) -> Calibration:
    """The calibration of all factors; `fits` ascend, and the last one speaks for all."""
    largest, law = fits[-1], law_of(fits)
    own = (largest.spec.scaling.attention_factor - 1) / math.log(largest.factor), 1.0
    counted = ("evaluations", "gradients", "forward_equivalents", "tokens")
    return Calibration(
        checkpoint={
            "source": request.source,
            "model_type": prepared.checkpoint.model_type,
            "config_sha256": prepared.checkpoint.config_sha256,
        },
        spec=largest.spec,
        inv_freq=frequencies(largest.spec).inv_freq,
        temperature=own if law is None else (law.a, law.b),
        factors=tuple(found.factor for found in fits),
        decision=largest.decision,
        reason=largest.reason,
        notes=_joined_notes(request.tune, fits, law, skipped),
        calibration=largest.calibration,
        validation=tuple(row for found in fits for row in found.validation),
        cost={
            **{key: round(sum(found.cost[key] for found in fits), 3) for key in counted},
            "seconds": round(seconds, 3),
            "peak_memory_bytes": max(found.cost["peak_memory_bytes"] for found in fits),
        },
        search={"optimizer": request.optimizer, "trace": [trial for found in fits for trial in found.trace]},
        data=_data(prepared.sources),
        seed=request.seed,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("ropecli", "torch", "transformers", "scipy")},
        },
        fits=fits if len(prepared.tasks) > 1 else (),
        law=law,
    )
