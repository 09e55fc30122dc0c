"""How good is a checkpoint, or a method of extension, at each length? One pass over the longest window tells."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeAlias

from calibrate.calibration import calibration_text, read_calibration
from calibrate.corpus import Corpus, Document, Source, Text, read_texts, tokenize
from calibrate.fence import as_loaded, rotating_with
from calibrate.model import LoadedModel, Room, Settings, Tokenizer, check_settings, load, load_tokenizer
from calibrate.objective import method
from calibrate.protocols import FULL, Sums, check_protocol, default_stride, measure
from calibrate.run import check_windows, extensible, loaded_by
from calibrate.score import Bands, Counts, Floats, nats_by_band, perplexity, tokens_by_band
from calibrate.statistics import Difference, standard_error
from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.errors import BadCalibration, BadCheckpoint, BadUsage
from ropecli.frequencies import Frequencies
from ropecli.spec import Dynamic, RopeSpec

AS_IS = "config"
"""The checkpoint's own rotary embedding, as transformers reads it from the config."""

METHODS = ("none", "linear", "ntk", "dynamic", "ntk-by-parts", "yarn")
"""Methods of extension by name."""

FACTORED = ("linear", "ntk", "ntk-by-parts", "yarn")
"""Those that the factor is for."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for; the names are the command line's.

    window    tokens in a bin of `Row.by_position`; None: longest / 64, at least 16
    by_position  whether the loss by position is wanted, too; `full` alone has it
    protocol, stride  see calibrate.protocols
    """

    sources: tuple[str, ...]
    data: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    factor: float | None = None
    original_length: int | None = None
    documents: int | None = None
    windows: int | None = None
    text_field: str = "text"
    window: int | None = None
    by_position: bool = False
    protocol: str = FULL
    stride: int | None = None
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class Bin:
    """The loss at positions start ≤ p < end, in nats a token, and its standard error over documents, if it has one.

    The first bin starts at 1: nothing predicts the first token of a window.
    """

    start: int
    end: int
    nll: float
    standard_error: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One loss: a checkpoint, a method and a length, over the positions that the protocol scores.

    nll              nats a token (under `yarn` a mean of window means); ppl = exp(nll)
    standard_error   of nll, over documents; None with a single document
    within, beyond   nats a token at positions up to the original length and after it; None where there are none, and
                     under every protocol but `full`
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
    original_length: int
    protocol: str = FULL
    stride: int | None = None
    by_position: tuple[Bin, ...] = ()


def _calibrated(path: str, spec: RopeSpec) -> RopeSpec:
    calibrated = read_calibration(calibration_text(path), path)
    try:
        return calibrated.onto(spec)
    except BadCalibration as error:
        raise error.at(path) from None


def is_file(method: str) -> bool:
    """Whether a method is a calibration FILE.json, and no name."""
    return method.endswith(".json")


def _spec_of(name: str, plain: RopeSpec, factor: float, length: int) -> RopeSpec:
    if name == "dynamic":
        return replace(plain, scaling=Dynamic(1.0), max_length=max(length, plain.original_length))
    if is_file(name):
        return _calibrated(name, plain)
    if name not in METHODS:
        known = ", ".join((AS_IS, *METHODS))
        raise BadUsage(
            f"unknown method {name!r}", where="--methods", hint=f"known: {known}, or a calibration FILE.json"
        )
    return method(name, plain, factor)


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass of one method: nats [documents, bands] with the band edges."""

    nats: Floats
    counts: Counts
    edges: tuple[int, ...]

    def sums(self, low: int, high: int) -> Sums:
        """Over positions low ≤ p < high; both are edges."""
        chosen = [i for i, edge in enumerate(self.edges[:-1]) if low <= edge < high]
        tokens = self.counts[:, chosen].sum(axis=1)
        return Sums(self.nats[:, chosen].sum(axis=1), tokens, tokens)


@dataclass(frozen=True, slots=True)
class Method:
    """A name that was asked for and the embedding that it puts into a layer; spec None is the checkpoint as it is.

    by_length  whether its frequencies depend on the length, so that a prefix of a longer window is no substitute
    """

    name: str
    layer: str
    spec: RopeSpec | None
    by_length: bool

    @property
    def idle(self) -> bool:
        """Whether it is to extend by nothing."""
        return self.name in FACTORED and self.spec is not None and self.spec.scaling.factor == 1

    def tables(self, length: int) -> Mapping[str, Frequencies]:
        """What to put into the model for windows of `length` tokens."""
        return {} if self.spec is None else {self.layer: as_loaded(self.spec, length)}


@dataclass(frozen=True, slots=True)
class _Subject:
    """One loaded checkpoint with everything that its rows need.

    bins  ascending edges of the loss by position, from 1 to the longest length; empty where it is not wanted
    """

    source: str
    loaded: LoadedModel
    documents: tuple[Document, ...]
    lengths: tuple[int, ...]
    original_length: int
    bins: tuple[int, ...]

    def score(self, method: Method, longest: int) -> _Pass:
        """One pass over windows of `longest` tokens."""
        edges = {1, longest, *(n for n in (*self.lengths, self.original_length, *self.bins) if 1 < n < longest)}
        bands = Bands(tuple(sorted(edges)))
        with rotating_with(self.loaded.model, method.tables(longest)):
            nats = nats_by_band(self.loaded, self.documents, bands)
        return _Pass(nats, tokens_by_band(self.documents, bands), bands.edges)


_First: TypeAlias = dict[tuple[tuple[Document, ...], int, str], Sums]
"""The sums of the first row over the same windows, length and positions: what later rows are compared with."""


def _error(sums: Sums) -> float | None:
    error = standard_error(sums.nats, sums.weights)
    return None if math.isnan(error) else error


def _bins(scored: _Pass, edges: Sequence[int]) -> Iterator[Bin]:
    for start, end in pairwise(edges):
        sums = scored.sums(start, end)
        if sums.nll is not None:
            yield Bin(start, end, sums.nll, _error(sums))


def _row(subject: _Subject, name: str, length: int, scored: _Pass, first: _First) -> Row:
    original = min(subject.original_length, length)
    beyond = scored.sums(original, length)
    row = _whole(subject, name, length, scored.sums(1, length), first)
    row = replace(
        row,
        within=scored.sums(1, original).nll,
        beyond=beyond.nll,
        beyond_difference=beyond.minus(first.get((subject.documents, length, "beyond"))),
        by_position=tuple(_bins(scored, subject.bins)) if length == subject.lengths[-1] else (),
    )
    first.setdefault((subject.documents, length, "beyond"), beyond)
    return row


def _whole(subject: _Subject, name: str, length: int, whole: Sums, first: _First) -> Row:
    nll = whole.nll
    if nll is None:
        raise BadUsage("a length needs at least two tokens", where="--lengths")
    row = Row(
        model=subject.source,
        method=name,
        length=length,
        documents=len(subject.documents),
        tokens=int(whole.tokens.sum()),
        nll=nll,
        ppl=perplexity(nll),
        standard_error=_error(whole),
        within=None,
        beyond=None,
        difference=whole.minus(first.get((subject.documents, length, "all"))),
        beyond_difference=None,
        original_length=subject.original_length,
    )
    first.setdefault((subject.documents, length, "all"), whole)
    return row


def wanted_methods(request: Request, checkpoint: Checkpoint, longest: int) -> list[Method]:
    """What was asked for, all of it before any is scored. Raises BadUsage, BadCalibration and BadCheckpoint."""
    found = []
    for name in request.methods or (AS_IS,):
        if name == AS_IS:
            found.append(Method(name, "", None, any(rope.spec.length_dependent for rope in checkpoint.ropes)))
            continue
        rope, plain = extensible(checkpoint, request.original_length)
        factor = request.factor or max(longest / plain.original_length, 1.0)
        spec = _spec_of(name, plain, factor, longest)
        found.append(Method(name, rope.name, spec, spec.length_dependent))
    return found


def _rows(subject: _Subject, methods: Sequence[Method], first: _First) -> Iterator[Row]:
    for wanted in methods:
        if wanted.by_length:
            # shortest first: transformers' dynamic NTK remembers the longest sequence that it has seen
            passes = ((length, subject.score(wanted, length)) for length in subject.lengths)
        else:
            scored = subject.score(wanted, subject.lengths[-1])
            passes = ((length, scored) for length in subject.lengths)
        for length, scored in passes:
            yield _row(subject, wanted.name, length, scored, first)


def _protocol_rows(subject: _Subject, methods: Sequence[Method], request: Request, first: _First) -> Iterator[Row]:
    for wanted in methods:
        for length in subject.lengths:
            tables = wanted.tables(length if wanted.by_length else subject.lengths[-1])
            with rotating_with(subject.loaded.model, tables):
                sums = measure(subject.loaded, subject.documents, request.protocol, length, request.stride)
            stride = default_stride(request.protocol, request.stride, length)
            yield replace(_whole(subject, wanted.name, length, sums, first), protocol=request.protocol, stride=stride)


def _served(request: Request, original: int) -> Iterator[int]:
    """Lengths that the methods are for, where they say it: by --factor, or in a calibration file."""
    if request.factor is not None:
        yield round(request.factor * original)
    for path in filter(is_file, request.methods):
        found = read_calibration(calibration_text(path), path)
        yield round(found.original_length * found.scaling.factor)


def wanted_lengths(request: Request, checkpoint: Checkpoint) -> tuple[tuple[int, ...], int]:
    """(lengths, ascending; the original length). Raises BadCheckpoint and BadUsage."""
    if not checkpoint.ropes:
        raise BadCheckpoint("the model has no rotary embedding", where=checkpoint.source)
    spec = max(checkpoint.ropes, key=lambda rope: rope.spec.max_length).spec
    original = request.original_length or spec.original_length
    lengths = tuple(sorted(set(request.lengths or (original, spec.max_length, *_served(request, original)))))
    if lengths[0] < 2:
        raise BadUsage("a length needs at least two tokens", where="--lengths")
    return lengths, original


@dataclass(frozen=True, slots=True)
class _Survey:
    """What is known of a checkpoint before any weight is read; `name` is what it is loaded by."""

    source: str
    name: str
    lengths: tuple[int, ...]
    original_length: int
    methods: tuple[Method, ...]
    tokenizer: Tokenizer
    corpus: Corpus

    @property
    def notes(self) -> Iterator[str]:
        """What a reader of the numbers should know, in sentences."""
        yield from self.corpus.notes
        if idle := ", ".join(wanted.name for wanted in self.methods if wanted.idle):
            more = f"--lengths beyond {self.original_length} tokens, or --factor"
            yield f"{idle}: a factor of 1 changes nothing; give {more}"


def _surveyed(request: Request, source: str, texts: Sequence[Text]) -> _Survey:
    checkpoint = read_checkpoint(source)
    lengths, original = wanted_lengths(request, checkpoint)
    check_protocol(request.protocol, request.stride, lengths)
    methods = wanted_methods(request, checkpoint, lengths[-1])
    name = loaded_by(checkpoint)
    tokenizer = load_tokenizer(name, request.settings)
    windows, bos = request.windows, tokenizer.bos
    if request.protocol != FULL:
        # the pieces of these protocols put the token in front themselves, and one window is nothing to slide over
        bos = None
        slides = default_stride(request.protocol, request.stride, lengths[-1]) is not None
        windows = windows or (2 if slides else None)
    corpus = tokenize(texts, tokenizer.encode, lengths[-1], bos=bos, windows=windows)
    return _Survey(source, name, lengths, original, tuple(methods), tokenizer, corpus)


def _subject(request: Request, known: _Survey, say: Callable[[str], object]) -> _Subject:
    loaded = replace(load(known.name, request.settings, known.tokenizer), room=Room(say))
    check_windows(loaded, known.corpus.documents, known.source)
    loaded.ranks.check_same(known.corpus.documents, "the windows")
    longest = known.lengths[-1]
    step = request.window or max(longest // 64, 16)
    bins = (1, *range(step if step > 1 else 2, longest, step), longest) if request.by_position else ()
    documents = known.corpus.documents[: request.documents]
    return _Subject(known.source, loaded, documents, known.lengths, known.original_length, bins)


def evaluate(
    request: Request,
    observe: Callable[[Row], None],
    read: Callable[[Sequence[Source]], None] = lambda _: None,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[Row, ...]:
    """One row a (checkpoint, method, length), in the order asked for; `observe` is told each as it is known.

    `read` is told the data files once they are read, `say` what a reader of the numbers should know.

    The factor of the methods is `--factor`, or the longest length divided by the original one: every length is measured
    at the factor that would be served. `dynamic` is the exception, its scale is each length divided by the original.
    """
    check_settings(request.settings)
    check_protocol(request.protocol, request.stride, sorted(request.lengths) or (2**40,))
    if request.by_position and request.protocol != FULL:
        raise BadUsage(
            f"the protocol {request.protocol!r} has no loss by position",
            where="--protocol",
            hint="--protocol full has it",
        )
    texts, sources = read_texts(request.data, request.text_field)
    read(sources)
    first: _First = {}
    rows: list[Row] = []
    surveys = [_surveyed(request, source, texts) for source in request.sources]
    for note in dict.fromkeys(note for known in surveys for note in known.notes):
        say(f"note: {note}")
    for known in surveys:
        subject = _subject(request, known, say)
        found = (
            _rows(subject, known.methods, first)
            if request.protocol == FULL
            else _protocol_rows(subject, known.methods, request, first)
        )
        for row in found:
            observe(row)
            rows.append(row)
        if not all(math.isfinite(row.nll) for row in rows if row.model == known.source):
            say(f"note: {known.source} has a loss that is not a finite number; try --dtype float32")
    return tuple(rows)
