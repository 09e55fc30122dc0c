"""The story of a calibration on one page: load → split → search → held-out check → verdict."""

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
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from calibrate import polish, search
from calibrate.calibration import Calibration, Validation
from calibrate.corpus import Corpus, Document, Source, read_texts, split, tokenize
from calibrate.journal import Journal, file_fingerprint
from calibrate.model import LoadedModel, Settings, as_loaded, load, rotating_with
from calibrate.objective import Objective, Point, Space, method
from calibrate.score import Bands, Floats, nats_by_band, token_nll, tokens_by_band
from calibrate.statistics import Difference, paired_difference
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
    factor: float | None = None
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


def _trial_to_json(trial: Trial) -> dict[str, Any]:
    low, high, m = trial.point
    return {
        "parameters": {"low": float(low), "high": float(high), "attention_factor": m},
        "nll": trial.nll if math.isfinite(trial.nll) else None,
        "documents": trial.documents,
        "tokens": trial.tokens,
        "seconds": round(trial.seconds, 3),
    }


def _plan(space: Space, parts: Sequence[Sequence[Document]], loaded: LoadedModel, length: int) -> str:
    found, held = parts
    windows = [sum(len(document.windows) for document in part) for part in parts]
    return (
        f"L = {space.spec.original_length}, factor {space.factor:g}, windows of {length} tokens; "
        f"search on {len(found)} documents ({windows[0] * length:,} tokens), "
        f"held-out check on {len(held)} ({windows[1] * length:,} tokens); {loaded.device.type}, {loaded.dtype}"
    )


def _expected_passes(request: Request, space: Space, documents: int) -> float:
    if request.tune == "temperature":
        likely: float = search.TEMPERATURE_TRIALS + 2
    else:
        likely = search.race_passes(space, documents) if request.optimizer == "auto" else 80
    return likely if request.max_evals is None else min(likely, request.max_evals)


def _identity(
    request: Request, checkpoint: Checkpoint, sources: Sequence[Source], loaded: LoadedModel
) -> Mapping[str, Any]:
    """What must be the same for an earlier run's scores to be of use."""
    settings = asdict(request)
    for changeable in ("source", "data", "journal", "resume", "max_evals", "time_limit", "settings"):
        del settings[changeable]
    path = checkpoint.path
    files = [] if path is None else sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {
        "checkpoint": checkpoint.config_sha256,
        "weights": [file_fingerprint(file) for file in files],
        "data": [source.sha256 for source in sources],
        "device": loaded.device.type,
        "dtype": loaded.dtype,
        **settings,
    }


def _data(sources: Sequence[Source]) -> tuple[Mapping[str, Any], ...]:
    return tuple(asdict(source) for source in sources)


def calibrate(request: Request, observer: Observer) -> tuple[Calibration, int | None]:
    """Search, check on held-out documents, decide. Returns the calibration and the signal that stopped it, if any.

    Raises the kinds of `ropecli.errors` for everything a user can cause.
    """
    budget = Budget(request.max_evals, request.time_limit)
    objective = Objective.parse(request.objective, request.guard)
    checkpoint = read_checkpoint(request.source)
    rope, plain = extensible(checkpoint, request.original_length)
    factor, length = extension(plain, request.factor, request.target_length)
    space = Space(plain, factor)
    bands = objective.bands(plain.original_length, length)
    texts, sources = read_texts(request.data, request.text_field)
    loaded = load(str(checkpoint.path or request.source), request.settings)
    corpus = tokenize(texts, loaded.encode, length, bos=loaded.bos, windows=request.windows)
    chosen = corpus.documents[: request.documents]
    found, held = split(chosen, request.validation_fraction, request.seed)
    observer.say(_plan(space, (found, held), loaded, length))
    observer.expect(_expected_passes(request, space, len(found)))
    prove_alive(loaded, rope.name, space, found[0])

    nats_of = scorer(loaded, rope.name, bands)
    with ExitStack() as stack:
        if request.journal is not None:
            journal = Journal(request.journal, _identity(request, checkpoint, sources, loaded), resume=request.resume)
            stack.callback(journal.close)
            nats_of = journal.remembering(nats_of)
        trials = Trials(nats_of, found, space, objective, bands, budget, observer.trial)
        signals = stack.enter_context(interruptible(trials))
        point, complete = find(request, trials, space, len(found))
        scaling = space.scaling(point)
        spec = replace(plain, scaling=scaling, max_length=length)
        notes = list(_notes(corpus, loaded, space, point, complete))
        gradients, held_out = 0, once(nats_of)
        if request.tune == "factors" and complete:
            finer, gradients = polish.divisors(loaded, rope.name, space, spec, found, bands, objective, observer.say)
            spec, note = finer_if_proved(held_out, held, spec, finer, bands, objective)
            notes.append(note)
        table = as_loaded(spec)
        rows, differences = validate(held_out, held, space, table, bands, observer.say)
    unchanged = spec.scaling == space.scaling(space.default)
    decision, reason = verdict(differences, objective, len(found), unchanged=unchanged)
    if decision == "default":
        spec = method("yarn", plain, factor)
    m = spec.scaling.attention_factor
    seen = [t for t in trials.trials if t.documents == trials.best().documents]
    default_trials = [t.nll for t in seen if t.point == space.default]
    calibration = Calibration(
        checkpoint={
            "source": request.source,
            "model_type": checkpoint.model_type,
            "config_sha256": checkpoint.config_sha256,
        },
        spec=spec,
        inv_freq=frequencies(spec).inv_freq,
        temperature=((m - 1) / math.log(factor), 1.0),
        factors=(factor,),
        decision=decision,
        reason=reason,
        notes=tuple(notes),
        calibration={
            "documents": trials.best().documents,
            "tokens": int(tokens_by_band(found[: trials.best().documents], bands).sum()),
            "default_nll": default_trials[0] if default_trials else None,
            "nll": min(t.nll for t in seen if t.point == point) if any(t.point == point for t in seen) else None,
        },
        validation=rows,
        cost={
            "evaluations": trials.evaluations,
            "gradients": gradients,
            "forward_equivalents": round(trials.forward_equivalents + GRADIENT_COST * gradients, 3),
            "tokens": trials.scored_tokens,
            "seconds": round(budget.seconds, 3),
            "peak_memory_bytes": peak_memory(loaded.device),
        },
        search={"optimizer": request.optimizer, "trace": [_trial_to_json(trial) for trial in trials.trials]},
        data=_data(sources),
        seed=request.seed,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("ropecli", "torch", "transformers", "scipy")},
        },
    )
    return calibration, signals[0] if signals else None
