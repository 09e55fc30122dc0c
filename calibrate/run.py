"""The story of a calibration on one page: load → split → search → held-out check → verdict.

Several factors share the model, the text and the budget; each has its own windows, search and held-out check. The
attention factors that the searches found give the law m(s) = a·ln s + b.
"""

import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibrate import search
from calibrate.calibration import YARN_LAW, Calibration, Fit, Law, rope_to_json
from calibrate.corpus import Document, Source, read_texts, remembering, split, tokenize
from calibrate.fence import rotating_with
from calibrate.fit import (
    POSITION_BINS,
    Found,
    Observer,
    Prepared,
    Request,
    Task,
    Tune,
    agreed_signal,
    fit,
    interruptible,
    judge,
)
from calibrate.journal import Journal, file_fingerprint
from calibrate.model import LoadedModel, Tokenizer, check_settings, load, load_tokenizer, refuse_unknown
from calibrate.objective import Objective, Space, method
from calibrate.score import picked, token_nll
from calibrate.sharing import Sharing, against_default_law, shared
from calibrate.statistics import Difference, fitted_line
from calibrate.trials import Budget, SearchStopped
from ropecli.checkpoint import REPLACEABLE, Checkpoint, folded_factors, read_checkpoint, scales_scores
from ropecli.errors import BadCheckpoint, BadUsage, Inconclusive
from ropecli.frequencies import frequencies
from ropecli.spec import LARGEST, LayerRope, Plain, RopeSpec

__all__ = ["Observer", "Request", "calibrate", "extensible", "extension"]

PROBE_TOKENS = 512

SETTINGS = (
    "tune",
    "objective",
    "guard",
    "documents",
    "windows",
    "validation_fraction",
    "text_field",
    "device",
    "dtype",
    "attn_implementation",
)
"""What a calibration file says of how it was made, beside factors, optimizer and seed."""


def loaded_by(checkpoint: Checkpoint) -> str:
    """What the model is loaded by: the folder with the weights, a GGUF file, or the Hub id as it was typed.

    Raises BadUsage for a config without weights and BadCheckpoint for what transformers does not load.
    """
    path, config = checkpoint.path, checkpoint.config_path
    if path is None or config is None:
        raise BadUsage("a config alone has no weights", where=checkpoint.source, hint="name the checkpoint's folder")
    if checkpoint.format in ("mistral", "meta"):
        raise BadCheckpoint(
            f"the {checkpoint.format.capitalize()} format, which transformers does not load",
            where=str(config),
            hint="convert the weights to the Hugging Face format first",
        )
    # a Hub id's path is a cache folder that may hold the config alone
    named = Path(checkpoint.source)
    if not named.exists():
        return checkpoint.source
    if named not in (path, path.parent):
        raise BadCheckpoint(
            "an adapter, which is not measured without its base",
            where=checkpoint.source,
            hint="merge it into its base (merge_and_unload of peft) and save that",
        )
    if path.is_dir() or checkpoint.format == "gguf":
        return str(path)
    if config.name != "config.json":
        raise BadUsage(
            f"expected the config.json beside the weights, found {config.name}",
            where=checkpoint.source,
            hint="name the checkpoint's folder",
        )
    return str(path.parent)


def extensible(checkpoint: Checkpoint, original_length: int | None) -> tuple[LayerRope, RopeSpec]:
    """The layers whose embedding is extended, and that embedding without scaling.

    Layers that attend within a sliding window keep theirs. Raises Inconclusive where there is nothing to extend, and
    BadCheckpoint where the checkpoint was trained with a scaling of its own that would be lost, or with one that does
    more than rotate (DeepSeek), and where the weights hold a temperature already.
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
    if scales_scores(checkpoint, rope):
        raise BadCheckpoint(
            "trained with a YaRN that multiplies the attention scores too (mscale_all_dim), which no embedding can",
            where=checkpoint.source,
            hint="calibrate the checkpoint from before the extension",
        )
    held = folded_factors(checkpoint.config, checkpoint.source).get(rope.name, 1.0)
    if held != 1:
        raise BadCheckpoint(
            f"the query and key weights hold an attention factor of {held:g} already, and another one would come on "
            "top of it",
            where=checkpoint.source,
            hint="take the checkpoint from before the folding; evaluate without --methods measures this one as it is",
        )
    length = original_length or rope.spec.original_length
    return rope, replace(rope.spec, scaling=Plain(), original_length=length, max_length=length)


def extension(spec: RopeSpec, factor: float | None, target_length: int | None) -> tuple[float, int]:
    """(factor, window length in tokens) from either of the two.

    Raises BadUsage for an extension of nothing, and for one to no whole number of tokens, which no converter writes.
    """
    if (factor is None) == (target_length is None):
        raise BadUsage("give one of --factor and --target-length", hint="for example --factor 4")
    scale = factor if factor is not None else (target_length or 0) / spec.original_length
    if not 1 < scale <= LARGEST / spec.original_length:  # NaN fails both, too
        asked = f"--factor {factor:g}" if factor is not None else f"--target-length {target_length}"
        raise BadUsage(
            f"expected an extension beyond the original length of {spec.original_length} tokens, found {asked}",
            hint="a factor is the target length divided by the original length, above 1",
        )
    length = round(scale * spec.original_length)
    if length == spec.original_length:
        raise BadUsage(f"a factor of {scale:g} adds no token to {length}", where="--factor")
    if abs(length - scale * spec.original_length) > 1e-9 * length:
        raise BadUsage(
            f"{scale:g} times the original length {spec.original_length} is not a whole number of tokens",
            where="--factor",
            hint=f"use --target-length {length}",
        )
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


def prove_alive(loaded: LoadedModel, layer: str, space: Space, document: Document) -> None:
    """Check on a short prefix that the loss moves when the frequencies do. Raises Inconclusive if it does not."""
    ids = torch.tensor([document.windows[0][:PROBE_TOKENS]], device=loaded.device)
    losses = []
    for name in ("none", "linear"):
        table = frequencies(method(name, space.spec, space.factor))
        with torch.no_grad(), rotating_with(loaded.model, {layer: table}):
            losses.append(token_nll(loaded.model, ids))
    if torch.equal(*losses):
        # where every token is the same, attention returns the same whatever it looks at; the first may be a BOS
        same = len(set(document.windows[0][1:PROBE_TOKENS])) == 1
        raise Inconclusive(
            "the loss does not move when the rotary frequencies do",
            hint="the text is one token again and again: give it real text"
            if same
            else "the model does not use the rotary table that was found; please report the architecture",
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a calibration before any weight is read.

    name    what the model is loaded by
    layer   the layer type whose embedding is extended
    plain   that embedding without scaling
    """

    checkpoint: Checkpoint
    name: str
    layer: str
    plain: RopeSpec
    tokenizer: Tokenizer
    sources: tuple[Source, ...]
    objective: Objective
    tasks: tuple[Task, ...]


def survey(request: Request) -> Survey:
    """Cut the text into windows for every factor. What can be refused without the weights is refused here."""
    check_settings(request.settings)
    objective = Objective.parse(request.objective, request.guard)
    checkpoint = read_checkpoint(request.source)
    name = loaded_by(checkpoint)
    rope, plain = extensible(checkpoint, request.original_length)
    wanted = [(Space(plain, factor), length) for factor, length in extensions(request, plain)]
    bands = [objective.bands(plain.original_length, length) for _, length in wanted]
    texts, sources = read_texts(request.data, request.text_field)
    tokenizer = load_tokenizer(name, request.settings)
    encode = remembering(tokenizer.encode)
    tasks = []
    for (space, length), edges in zip(wanted, bands, strict=True):
        corpus = tokenize(texts, encode, length, bos=tokenizer.bos, windows=request.windows, longest=wanted[0][1])
        found, held = split(corpus.documents[: request.documents], request.validation_fraction, request.seed)
        tasks.append(Task(space, length, edges, corpus, found, held))
    return Survey(checkpoint, name, rope.name, plain, tokenizer, tuple(sources), objective, tuple(tasks))


def check_windows(loaded: LoadedModel, documents: Sequence[Document], source: str) -> None:
    """Whether the model has an embedding for every token of the windows. Raises BadCheckpoint."""
    rows = int(loaded.model.get_input_embeddings().num_embeddings)
    for document in documents:
        for window in document.windows:
            refuse_unknown(list(window), rows, source)


def prepare(request: Request) -> Prepared:
    """Survey the text, then load the model once for every factor."""
    known = survey(request)
    loaded = load(known.name, request.settings, known.tokenizer)
    check_windows(loaded, known.tasks[0].corpus.documents, request.source)
    return Prepared(known.checkpoint, known.layer, known.plain, loaded, known.sources, known.objective, known.tasks)


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


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The local files with the weights of what `loaded_by` names; none of a config on standard input."""
    path = checkpoint.path
    if path is None or checkpoint.format == "gguf":
        return [] if path is None else [path]
    return sorted((path if path.is_dir() else path.parent).glob("*.safetensors"))


def _identity(request: Request, prepared: Prepared) -> Mapping[str, Any]:
    """What must be the same for an earlier run's scores to be of use."""
    settings = asdict(request)
    for changeable in ("source", "data", "journal", "resume", "max_evals", "time_limit", "settings", "factors"):
        del settings[changeable]
    return {
        "checkpoint": prepared.checkpoint.config_sha256,
        "weights": [file_fingerprint(file) for file in weight_files(prepared.checkpoint)],
        "data": [source.sha256 for source in prepared.sources],
        "device": prepared.loaded.device.type,
        "dtype": prepared.loaded.dtype,
        "attn_implementation": prepared.loaded.attention(prepared.tasks[0].length),
        "bins by position": POSITION_BINS,
        "factors": sorted(request.factors),
        **settings,
    }


def _data(sources: Sequence[Source]) -> tuple[Mapping[str, Any], ...]:
    return tuple(asdict(source) for source in sources)


def _names(documents: Sequence[Document]) -> tuple[str, ...]:
    """Every factor has the same documents, cut to windows of its own."""
    return tuple(document.name for document in documents)


def law_of(fits: Sequence[Fit], against_default: Difference | None = None) -> Law | None:
    """The line through what was found, each factor with the same weight; None for a single factor.

    The attention factors are those of the searches, also where a verdict kept the default: a line through defaults
    would be YaRN's own. No search knows m to better than its tolerance. Whether YaRN's law is rejected is told by
    `against_default`, losses on held-out text at the same corners, and without it by the scatter of the points alone.
    """
    if len(fits) < 2:
        return None
    points = tuple((found.factor, found.attention_factor) for found in fits)
    factors, m = np.array(points).T
    line = fitted_line(np.log(factors), m, YARN_LAW, resolution=search.TEMPERATURE_TOLERANCE)
    if against_default is None or not math.isfinite(against_default.high):
        rejected, loss = line.against_rejected, None
    else:
        low, high = 0.0 - against_default.high, 0.0 - against_default.low
        rejected, loss = low > 0, (0.0 - against_default.delta, low, high)
    return Law(line.slope, line.intercept, line.slope_ci95, line.intercept_ci95, points, rejected, loss)


def temperature_of(fits: Sequence[Fit], law: Law | None) -> tuple[float, float]:
    """(a, b) of m = a·ln s + b that the file stands for: YaRN's own where every verdict kept the default.

    For one factor b = 1, and a gives its m.
    """
    if all(found.decision == "default" for found in fits):
        return YARN_LAW
    if law is not None:
        return law.a, law.b
    (alone,) = fits
    return (alone.spec.scaling.attention_factor - 1) / math.log(alone.factor), 1.0


def _joined_notes(tune: Tune, fits: Sequence[Fit], law: Law | None, more: Sequence[str]) -> tuple[str, ...]:
    shared = [note for note in fits[0].notes if all(note in found.notes for found in fits)]
    own = [f"factor {found.factor:g}: {note}" for found in fits for note in found.notes if note not in shared]
    about_law = []
    if law is not None:
        about_law.append("the law is of the m that the searches found, whatever the decision for each factor was")
        if tune == "factors":
            about_law.append("each factor has divisors of its own, and its m belongs to them")
        if not all(found.complete for found in fits):
            about_law.append("the law rests on a search that was stopped before it ended")
    return (*shared, *own, *more, *about_law)


def calibrate(request: Request, observer: Observer) -> tuple[Calibration, int | None]:
    """Fit every factor and join the results. Returns the calibration and the signal that stopped it, if any.

    The largest factor goes first, so that an interrupted run has it, and so that too little memory shows at once. A
    signal or the time limit leaves out the factors whose turn had not come. Raises the kinds of `ropecli.errors` for
    everything a user can cause.
    """
    budget = Budget(request.max_evals, request.time_limit)
    prepared = prepare(request)
    loaded, tasks = prepared.loaded, prepared.tasks
    loaded.room.tell = observer.say
    for task in tasks:
        observer.say(f"{task.plan}; {picked(loaded, task.length)}")
    loaded.ranks.check_same([(task.found, task.held) for task in tasks], "the windows")
    prove_alive(loaded, prepared.layer, tasks[0].space, tasks[0].found[0])

    identity = _identity(request, prepared)
    sharing: Sharing | None = None
    with closing(Journal(request.journal, identity, resume=request.resume, ranks=loaded.ranks)) as journal:
        fits, founds, stopped_by = _fit_each(request, prepared, journal, budget, observer)
        notes = [
            f"factor {task.space.factor:g} was left out: the run was stopped before its turn"
            for task in tasks[len(fits) :]
        ]
        if request.tune == "yarn" and len(founds) == len(tasks) > 1 and all(found.complete for found in founds):
            if stopped_by is None:
                observer.say("one ramp for all factors:")
                spent = sum(found.cost["evaluations"] for found in fits)
                sharing, stopped_by = try_sharing(prepared, founds, budget, spent)
            if sharing is None:
                notes.append("each factor has corners of its own: the run was stopped before shared ones were tried")
            else:
                notes.append(sharing.note)
        # what is left takes no search: a signal is noted, and does not cost the file
        with interruptible() as signals:
            if sharing is not None and sharing.supported:
                founds = list(sharing.founds)
                fits = [judge(request, prepared, found, journal, observer) for found in founds]
            against = None
            if request.tune != "factors" and len(founds) > 1:
                observer.say("held-out check: 0.1·ln s + 1 at the same corners")
                against = against_default_law(prepared, founds)
        stopped_by = stopped_by or agreed_signal(loaded.ranks, signals)
    joined = _joined(request, prepared, identity, tuple(reversed(fits)), tuple(notes), budget.seconds, against)
    return joined, stopped_by


def _fit_each(
    request: Request, prepared: Prepared, journal: Journal, budget: Budget, observer: Observer
) -> tuple[list[Fit], list[Found], int | None]:
    """One factor after the other, as long as nothing stops the run; and the signal that did."""
    fits: list[Fit] = []
    founds: list[Found] = []
    stopped_by = None
    for index, task in enumerate(prepared.tasks):
        over = prepared.loaded.ranks.any(request.time_limit is not None and budget.seconds >= request.time_limit)
        if stopped_by is not None or (fits and over):
            break
        if len(prepared.tasks) > 1:
            observer.say(f"factor {task.space.factor:g}:")
        spent = sum(found.cost["evaluations"] for found in fits)
        part = share(budget, spent, prepared.tasks[index:])
        result, found, stopped_by = fit(request, prepared, task, journal, part, observer)
        fits.append(result)
        founds.append(found)
    return fits, founds, stopped_by


def try_sharing(
    prepared: Prepared, founds: Sequence[Found], budget: Budget, evaluations: int
) -> tuple[Sharing | None, int | None]:
    """`shared` within what is left of the budget, None where that is too little; and the signal that stopped it."""
    trials = [found.trials for found in founds]
    for each in trials:
        most = budget.max_evals
        each.budget = replace(
            budget, max_evals=None if most is None else each.evaluations + (most - evaluations) // len(trials)
        )
    sharing = None
    with interruptible(*trials) as signals, suppress(SearchStopped):
        sharing = shared(prepared, founds)
    return sharing, agreed_signal(prepared.loaded.ranks, signals)


def versions() -> Mapping[str, str]:
    """Of Python and of what computes."""
    names = ("ropecli", "torch", "transformers", "scipy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _joined(
    request: Request,
    prepared: Prepared,
    identity: Mapping[str, Any],
    fits: tuple[Fit, ...],
    notes: tuple[str, ...],
    seconds: float,
    against_default: Difference | None,
) -> Calibration:
    """The calibration of all factors; `fits` ascend, and the last one speaks for all."""
    largest, law = fits[-1], law_of(fits, against_default)
    counted = ("evaluations", "gradients", "forward_equivalents", "tokens")
    return Calibration(
        checkpoint={
            "source": request.source,
            "model_type": prepared.checkpoint.model_type,
            "config_sha256": prepared.checkpoint.config_sha256,
            "weights_fingerprint": identity["weights"],
        },
        settings={name: identity[name] for name in SETTINGS},
        spec=largest.spec,
        inv_freq=frequencies(largest.spec).inv_freq,
        temperature=temperature_of(fits, law),
        factors=tuple(found.factor for found in fits),
        decision=largest.decision,
        reason=largest.reason,
        notes=_joined_notes(request.tune, fits, law, notes),
        calibration=largest.calibration,
        validation=tuple(row for found in fits for row in found.validation),
        cost={
            **{key: round(sum(found.cost[key] for found in fits), 3) for key in counted},
            "seconds": round(seconds, 3),
            "peak_memory_bytes": max(found.cost["peak_memory_bytes"] for found in fits),
        },
        search={
            "optimizer": request.optimizer,
            "trace": [trial for found in fits for trial in found.trace],
            "found": [rope_to_json(found.found) for found in fits if found.found is not None],
        },
        data=_data(prepared.sources),
        split={"search": _names(prepared.tasks[0].found), "held_out": _names(prepared.tasks[0].held)},
        seed=request.seed,
        versions=versions(),
        fits=fits if len(prepared.tasks) > 1 else (),
        law=law,
        by_position=tuple(found.by_position for found in fits if found.by_position is not None),
    )
