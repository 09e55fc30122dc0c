"""How good is a checkpoint, or a method of extension, at each length? One pass over the longest window tells."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from calibrate.calibration import read_calibration
from calibrate.corpus import Document, Text, read_texts, tokenize
from calibrate.model import LoadedModel, Settings, as_loaded, load, rotating_with
from calibrate.objective import method
from calibrate.run import extensible
from calibrate.score import Bands, Counts, Floats, nats_by_band, tokens_by_band
from calibrate.statistics import Difference, paired_difference, standard_error
from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.errors import BadCalibration, BadCheckpoint, BadUsage
from ropecli.frequencies import Frequencies
from ropecli.spec import Dynamic, RopeSpec

AS_IS = "config"
"""The checkpoint's own rotary embedding, as transformers reads it from the config."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for; the names are the command line's."""

    sources: tuple[str, ...]
    data: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    factor: float | None = None
    original_length: int | None = None
    documents: int | None = None
    windows: int | None = None
    text_field: str = "text"
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class Row:
    """One loss: a checkpoint, a method and a length, over all positions before that length.

    nll              nats a token; ppl = exp(nll)
    standard_error   of nll, over documents; None with a single document
    within, beyond   nats a token at positions up to the original length and after it; None where there are none
    difference       from the first row of the same length, paired by document; None for that row itself
    """

    model: str
    method: str
    length: int
    documents: int
    tokens: int
    nll: float
    ppl: float
    standard_error: float | None
    within: float | None
    beyond: float | None
    difference: Difference | None
    beyond_difference: Difference | None


def _calibrated(path: str, spec: RopeSpec) -> RopeSpec:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - a path as the user typed it
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise BadCalibration(f"cannot be read ({reason})", where=path) from error
    calibrated = read_calibration(text, path)
    try:
        return calibrated.onto(spec)
    except BadCalibration as error:
        raise error.at(path) from None


def _spec_of(name: str, plain: RopeSpec, factor: float, length: int) -> RopeSpec:
    if name == "dynamic":
        return replace(plain, scaling=Dynamic(1.0), max_length=max(length, plain.original_length))
    return _calibrated(name, plain) if name.endswith(".json") else method(name, plain, factor)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Per document: nats and predicted tokens over a range of positions."""

    nats: Floats
    tokens: Counts

    @property
    def nll(self) -> float | None:
        total = int(self.tokens.sum())
        return float(self.nats.sum()) / total if total else None

    def minus(self, first: "_Sums | None") -> Difference | None:
        """The paired difference, where both are over the same tokens of the same documents."""
        if first is None or not np.array_equal(first.tokens, self.tokens) or not self.tokens.sum():
            return None
        return paired_difference(self.nats, first.nats, self.tokens)


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass of one method: nats [documents, bands] with the band edges."""

    nats: Floats
    counts: Counts
    edges: tuple[int, ...]

    def sums(self, low: int, high: int) -> _Sums:
        """Over positions low ≤ p < high; both are edges."""
        chosen = [i for i, edge in enumerate(self.edges[:-1]) if low <= edge < high]
        return _Sums(self.nats[:, chosen].sum(axis=1), self.counts[:, chosen].sum(axis=1))


@dataclass(frozen=True, slots=True)
class _Method:
    """A name that was asked for and the embedding that it puts into a layer; spec None is the checkpoint as it is.

    by_length  whether its frequencies depend on the length, so that a prefix of a longer window is no substitute
    """

    name: str
    layer: str
    spec: RopeSpec | None
    by_length: bool


@dataclass(frozen=True, slots=True)
class _Subject:
    """One loaded checkpoint with everything that its rows need."""

    source: str
    loaded: LoadedModel
    documents: tuple[Document, ...]
    lengths: tuple[int, ...]
    original_length: int

    def score(self, method: _Method, longest: int) -> _Pass:
        """One pass over windows of `longest` tokens."""
        edges = {1, longest, *(n for n in (*self.lengths, self.original_length) if 1 < n < longest)}
        bands = Bands(tuple(sorted(edges)))
        tables: Mapping[str, Frequencies] = (
            {} if method.spec is None else {method.layer: as_loaded(method.spec, longest)}
        )
        with rotating_with(self.loaded.model, tables):
            nats = nats_by_band(self.loaded, self.documents, bands)
        return _Pass(nats, tokens_by_band(self.documents, bands), bands.edges)


_First: TypeAlias = dict[tuple[tuple[Document, ...], int, str], _Sums]
"""The sums of the first row over the same windows, length and positions: what later rows are compared with."""


def _row(subject: _Subject, name: str, length: int, scored: _Pass, first: _First) -> Row:
    original = min(subject.original_length, length)
    whole, within, beyond = scored.sums(1, length), scored.sums(1, original), scored.sums(original, length)
    nll = whole.nll
    if nll is None:
        raise BadUsage("a length needs at least two tokens", where="--lengths")
    error = standard_error(whole.nats, whole.tokens)
    row = Row(
        subject.source,
        name,
        length,
        len(subject.documents),
        int(whole.tokens.sum()),
        nll,
        math.exp(min(nll, 700)),
        None if math.isnan(error) else error,
        within.nll,
        beyond.nll,
        whole.minus(first.get((subject.documents, length, "all"))),
        beyond.minus(first.get((subject.documents, length, "beyond"))),
    )
    first.setdefault((subject.documents, length, "all"), whole)
    first.setdefault((subject.documents, length, "beyond"), beyond)
    return row


def _methods(request: Request, checkpoint: Checkpoint, longest: int) -> list[_Method]:
    """What was asked for, all of it before any is scored. Raises BadUsage, BadCalibration and BadCheckpoint."""
    found = []
    for name in request.methods or (AS_IS,):
        if name == AS_IS:
            found.append(_Method(name, "", None, any(rope.spec.length_dependent for rope in checkpoint.ropes)))
            continue
        rope, plain = extensible(checkpoint, request.original_length)
        factor = request.factor or max(longest / plain.original_length, 1.0)
        spec = _spec_of(name, plain, factor, longest)
        found.append(_Method(name, rope.name, spec, spec.length_dependent))
    return found


def _rows(subject: _Subject, methods: Sequence[_Method], first: _First) -> Iterator[Row]:
    for wanted in methods:
        if wanted.by_length:
            # shortest first: transformers' dynamic NTK remembers the longest sequence that it has seen
            passes = ((length, subject.score(wanted, length)) for length in subject.lengths)
        else:
            scored = subject.score(wanted, subject.lengths[-1])
            passes = ((length, scored) for length in subject.lengths)
        for length, scored in passes:
            yield _row(subject, wanted.name, length, scored, first)


def _lengths(request: Request, checkpoint: Checkpoint) -> tuple[tuple[int, ...], int]:
    """(lengths, ascending; the original length)."""
    if not checkpoint.ropes:
        raise BadCheckpoint("the model has no rotary embedding", where=checkpoint.source)
    spec = max(checkpoint.ropes, key=lambda rope: rope.spec.max_length).spec
    original = request.original_length or spec.original_length
    lengths = tuple(sorted(set(request.lengths or (original, spec.max_length))))
    if lengths[0] < 2:
        raise BadUsage("a length needs at least two tokens", where="--lengths")
    return lengths, original


def _subject(request: Request, source: str, lengths: tuple[int, ...], original: int, texts: Sequence[Text]) -> _Subject:
    loaded = load(source, request.settings)
    corpus = tokenize(texts, loaded.encode, lengths[-1], bos=loaded.bos, windows=request.windows)
    return _Subject(source, loaded, corpus.documents[: request.documents], lengths, original)


def evaluate(request: Request, observe: Callable[[Row], None]) -> tuple[Row, ...]:
    """One row a (checkpoint, method, length), in the order asked for; `observe` is told each as it is known.

    The factor of the methods is `--factor`, or the longest length divided by the original one: every length is measured
    at the factor that would be served. `dynamic` is the exception, its scale is each length divided by the original.
    """
    texts, _ = read_texts(request.data, request.text_field)
    first: _First = {}
    rows: list[Row] = []
    for source in request.sources:
        checkpoint = read_checkpoint(source)
        lengths, original = _lengths(request, checkpoint)
        methods = _methods(request, checkpoint, lengths[-1])
        subject = _subject(request, source, lengths, original, texts)
        for row in _rows(subject, methods, first):
            observe(row)
            rows.append(row)
    return tuple(rows)
