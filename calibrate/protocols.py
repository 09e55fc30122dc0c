"""Which tokens of a text are scored, with how much in front of them: the protocols behind published perplexities."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from calibrate.corpus import Document
from calibrate.model import LoadedModel
from calibrate.score import Bands, Counts, Floats, nats_by_band
from calibrate.statistics import Difference, paired_difference
from ropecli.errors import BadUsage

FULL, SLIDING, SECOND_HALF, YARN = "full", "sliding", "second-half", "yarn"
PROTOCOLS = (FULL, SLIDING, SECOND_HALF, YARN)


@dataclass(frozen=True, slots=True)
class Sums:
    """What a protocol gives for each document; all arrays [documents].

    nats     sums of nats; under `yarn` sums of window means
    weights  what `nats` is divided by: tokens, under `yarn` windows
    tokens   predicted tokens
    """

    nats: Floats
    weights: Counts
    tokens: Counts

    @property
    def nll(self) -> float | None:
        """Σ nats / Σ weights over the documents; None where nothing was predicted."""
        total = int(self.weights.sum())
        return float(self.nats.sum()) / total if total else None

    def minus(self, first: "Sums | None") -> Difference | None:
        """The paired difference, where both are over the same tokens of the same documents."""
        if first is None or not np.array_equal(first.tokens, self.tokens) or not self.tokens.sum():
            return None
        return paired_difference(self.nats, first.nats, self.weights)


@dataclass(frozen=True, slots=True)
class Piece:
    """One pass of the model: the tokens it sees, and the part of them that is scored.

    document  index of the document that the tokens are from
    first     the first scored position, at least 1; every later position is scored, too
    """

    document: int
    ids: tuple[int, ...]
    first: int


def _stream(document: Document) -> tuple[int, ...]:
    """The windows of a document lie end to end in its text."""
    return tuple(chain.from_iterable(document.windows))


def sliding_pieces(text: Sequence[int], length: int, stride: int, bos: int | None, document: int = 0) -> list[Piece]:
    """Windows of `length` tokens, each `stride` tokens after the one before; every token is scored exactly once.

    A token is scored in the first window that holds it, so that it sees at least length − stride tokens; what the
    first window holds sees what is in front of it. The last window is moved back to be a whole one. With a BOS token
    every window starts with it, and then the first token of the text is scored, too.
    Recipe: https://huggingface.co/docs/transformers/perplexity; there the last window stays short.
    """
    front = () if bos is None else (bos,)
    body = length - len(front)
    pieces, scored, end = [], 0, min(body, len(text))
    while scored < len(text):
        ids = (*front, *text[max(end - body, 0) : end])
        pieces.append(Piece(document, ids, max(1, len(ids) - (end - scored))))
        scored, end = end, min(end + stride, len(text))
    return pieces


def second_half_pieces(text: Sequence[int], length: int, bos: int | None, document: int = 0) -> list[Piece]:
    """llama.cpp's perplexity tool (tools/perplexity/perplexity.cpp): consecutive chunks, only the second half scored.

    The text starts with the BOS token, and every chunk's first token is replaced by it. Scored are the positions
    length // 2 + 1 … length − 1. What is left at the end of the text is not used.
    """
    front = () if bos is None else (bos,)
    tokens = (*front, *text)
    return [
        Piece(document, (*front, *tokens[start + len(front) : start + length]), length // 2 + 1)
        for start in range(0, len(tokens) - length + 1, length)
    ]


def yarn_pieces(
    text: Sequence[int], length: int, stride: int | None, bos: int | None, document: int = 0
) -> list[Piece]:
    """The windows of jquesnelle/yarn, eval/perplexity.py, whose means are then averaged, whatever their lengths.

    Without a stride the text is cut off after one window, which is what `--truncate` of that script does and what the
    published tables were made with. With one, windows start every `stride` tokens, tokens that an earlier window has
    scored are left out, and the last window stays short.
    """
    front = () if bos is None else (bos,)
    body = length - len(front)
    if stride is None:
        return [Piece(document, (*front, *text[:body]), 1)]
    pieces, scored = [], 0
    for start in range(0, len(text), stride):
        end = min(start + body, len(text))
        ids = (*front, *text[start:end])
        pieces.append(Piece(document, ids, max(1, len(ids) - (end - scored))))
        scored = end
        if end == len(text):
            break
    return pieces


def nats_of(loaded: LoadedModel, pieces: Sequence[Piece]) -> Floats:
    """Sums of nats over the scored positions, float64 [pieces]. Raises NoResource when memory runs out."""
    alike: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for index, piece in enumerate(pieces):
        alike[piece.first, len(piece.ids)].append(index)
    nats = np.zeros(len(pieces))
    for edges, indices in alike.items():
        windows = [Document("", (pieces[index].ids,)) for index in indices]
        nats[indices] = nats_by_band(loaded, windows, Bands(edges))[:, 0]
    return nats


def check_protocol(protocol: str, stride: int | None, lengths: Sequence[int]) -> None:
    """Raises BadUsage for an unknown protocol, and for a stride or a length that it has no use for.

    lengths  ascending
    """
    if protocol not in PROTOCOLS:
        raise BadUsage(f"unknown {protocol!r}", where="--protocol", hint=f"known: {', '.join(PROTOCOLS)}")
    if stride is not None and protocol not in {SLIDING, YARN}:
        raise BadUsage(f"the protocol {protocol!r} has no stride", where="--stride", hint="--protocol sliding has one")
    if stride is not None and not 1 <= stride < lengths[0]:
        # a window's first token has nothing in front of it, so that a window adds at most length − 1 predictions
        raise BadUsage(f"expected less than the shortest length, {lengths[0]}, found {stride}", where="--stride")
    if lengths[0] < (3 if protocol == SECOND_HALF else 2):
        raise BadUsage("a length needs at least two tokens, and three under second-half", where="--lengths")


def default_stride(protocol: str, stride: int | None, length: int) -> int | None:
    """The stride in use: half a window for `sliding`, none (one window a document) for `yarn`."""
    return max(length // 2, 1) if protocol == SLIDING and stride is None else stride


def measure(loaded: LoadedModel, documents: Sequence[Document], protocol: str, length: int, stride: int | None) -> Sums:
    """Score the whole text of every document in windows of `length` tokens.

    documents  windows without a BOS token: here they are nothing but a document's text in pieces
    protocol   `sliding`, `second-half` or `yarn`
    """
    pieces: list[Piece] = []
    for index, text in enumerate(map(_stream, documents)):
        if protocol == SECOND_HALF:
            pieces += second_half_pieces(text, length, loaded.bos, index)
        elif protocol == YARN:
            pieces += yarn_pieces(text, length, stride, loaded.bos, index)
        else:
            step = default_stride(protocol, stride, length) or length
            pieces += sliding_pieces(text, length, step, loaded.bos, index)
    nats = nats_of(loaded, pieces)
    counts = np.array([len(piece.ids) - piece.first for piece in pieces], dtype=np.int64)
    owners = np.array([piece.document for piece in pieces], dtype=np.int64)

    def total(values: Floats | Counts) -> Floats:
        return np.bincount(owners, weights=values, minlength=len(documents)).astype(np.float64)

    tokens = total(counts).astype(np.int64)
    if protocol == YARN:
        return Sums(total(nats / counts), total(np.ones_like(counts)).astype(np.int64), tokens)
    return Sums(total(nats), tokens, tokens)
