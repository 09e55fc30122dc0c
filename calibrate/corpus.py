"""Text → token windows, kept by document, and the split into a search part and a held-out part.

A document is a file, or a row of JSONL, JSON or parquet. It gives windows of exactly the wanted length from its start
on, without overlap. One that is too short is counted and left out. A lone long text, or the only long one among
short ones, is cut into contiguous blocks that count as documents.
"""

import codecs
import hashlib
import json
import random
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from ropecli.errors import BadData, BadUsage, NoResource


class Encode(Protocol):
    """Text → token ids, without any special token: all of them, or at least the first `most`."""

    def __call__(self, text: str, most: int | None = None, /) -> list[int]: ...  # noqa: D102


TEXT_SUFFIXES = (".txt", ".md")
ROW_SUFFIXES = (".jsonl", ".parquet")
_BLOCK, _PARQUET = 2**20, b"PAR1"
BLOCKS = 24
"""A lone text is cut into at most this many documents, and few documents give about this many windows in all."""
PIECE, OVERLAP = 2**17, 2**11
"""Characters of a text that are encoded at once, and how far a piece reaches into its neighbours."""


@dataclass(frozen=True, slots=True)
class Source:
    """One data file as it was read: its name, the SHA-256 of its bytes, and how many documents it held."""

    path: str
    sha256: str
    documents: int


@dataclass(frozen=True, slots=True)
class Text:
    """One document as text, with a name that a person can find it by."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document as windows of token ids, each of the same length."""

    name: str
    windows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents cut to one window length.

    too_short  documents that were left out because they hold less than one window of `longest` tokens, the longest
               that the same texts are cut into
    repeated   documents that were left out because an earlier one has the same text: on both sides of the split they
               would let the search see what is held out
    blocks     whether a lone text was cut into blocks that stand for documents
    """

    documents: tuple[Document, ...]
    length: int
    too_short: int
    repeated: int
    blocks: bool
    longest: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the text that the numbers rest on, in sentences."""
        notes = []
        if self.blocks:
            notes.append(f"one text was cut into {len(self.documents)} contiguous blocks that count as documents")
        if self.too_short:
            notes.append(
                f"{_counted(self.too_short, 'is', 'are')} shorter than one window of {self.longest} tokens and "
                f"{'was' if self.too_short == 1 else 'were'} left out"
            )
        if self.repeated:
            notes.append(
                f"{_counted(self.repeated, 'has', 'have')} the same text as an earlier one and "
                f"{'was' if self.repeated == 1 else 'were'} left out"
            )
        return tuple(notes)


def _counted(documents: int, one: str, more: str) -> str:
    return f"1 document {one}" if documents == 1 else f"{documents} documents {more}"


def _decode(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(
            f"not UTF-8 text (byte {error.start} of {len(data)})",
            where=path,
            hint="convert it, for example: iconv -f latin1 -t utf-8",
        ) from error


def _jsonl_rows(path: str, text: str, field: str) -> Iterator[Text]:
    # not splitlines(): a JSON string may hold U+2028, U+0085 and others that it takes for the end of a line
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadData("expected one JSON object a line", where=where, hint="see https://jsonlines.org") from error
        yield Text(f"{path}:{number}", _row_text(row, field, where))


def _kind_of(data: bytes) -> str:
    """The suffix that standard input would have as a file: rows if its first line is a JSON object, else a text."""
    line = data.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")[0]
    try:
        return ".jsonl" if line.startswith(b"{") and isinstance(json.loads(line), dict) else ""
    except (ValueError, RecursionError):
        return ""


def _json_rows(path: str, text: str, field: str) -> Iterator[Text]:
    """An array of objects, or what some call .json though it has an object a line."""
    if not text.lstrip().startswith("["):
        yield from _jsonl_rows(path, text, field)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"not valid JSON ({error})", where=path, hint="expected an array of objects") from error
    for number, row in enumerate(rows, 1):
        yield Text(f"{path}:{number}", _row_text(row, field, f"{path}: row {number}"))


def _row_text(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict) or field not in row:
        keys = (", ".join(list(row)[:8]) or "no key") if isinstance(row, dict) else type(row).__name__
        raise BadData(
            f"expected an object with text in {field!r}, found {keys}",
            where=where,
            hint="name it with --text-field",
        )
    value = row[field]
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        raise BadData(f"expected text, found {found}", where=f"{where}: {field}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadData("half of a surrogate pair, which is no character", where=f"{where}: {field}")
    return value


def _parquet_rows(path: Path, field: str) -> Iterator[Text]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise NoResource("reading parquet needs pyarrow", where=str(path), hint="pip install pyarrow") from error
    try:
        table = parquet.ParquetFile(path)
        names = table.schema_arrow.names
        if field not in names:
            raise BadData(
                f"expected a column {field!r}, found {', '.join(names)}",
                where=str(path),
                hint="name it with --text-field",
            )
        column = [value for batch in table.iter_batches(columns=[field]) for value in batch.column(0).to_pylist()]
    except (OSError, ArrowException) as error:
        raise BadData(f"not a readable parquet file ({str(error).partition(chr(10))[0]})", where=str(path)) from error
    for number, value in enumerate(column, 1):
        if not isinstance(value, str):
            raise BadData(f"expected text, found {type(value).__name__}", where=f"{path}: row {number}: {field}")
        yield Text(f"{path}:{number}", value)


def _until_binary(stream: BinaryIO) -> bytes:
    """All of a stream, or as much as shows that it is no text: a device of zeros never ends."""
    blocks = []
    while block := stream.read(_BLOCK):
        blocks.append(block)
        if b"\0" in block:
            break
    return b"".join(blocks)


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if path.suffix.lower() != ".parquet":
                return _until_binary(file)
            size = file.seek(0, 2)
            file.seek(max(size - len(_PARQUET), 0))
            if file.read() != _PARQUET:
                raise BadData("not a readable parquet file (its end is missing)", where=str(path))
            file.seek(0)
            return file.read()
    except OSError as error:
        raise BadData(
            f"cannot be read ({error.strerror})", where=str(path), hint="check the path given to --data"
        ) from error


def _files(given: str) -> list[Path]:
    path = Path(given)
    if not given:
        raise BadData("expected a path, found an empty one", where="--data", hint="is a shell variable not set?")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise BadData("no such file or folder", where=given, hint="check the path given to --data") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadData(f"cannot be read ({reason})", where=given[:200], hint="--data takes paths, not text") from error
    if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):  # a pipe, as of <(…) in a shell
        return [path]
    if not stat.S_ISDIR(mode):
        raise BadData("expected a file or a folder, found a device", where=given, hint="- reads standard input")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES + ROW_SUFFIXES and p.is_file())
    if not found:
        raise BadData("the folder holds no text", where=given, hint="expected .txt, .md, .jsonl or .parquet files")
    return found


def read_texts(paths: Sequence[str], text_field: str = "text") -> tuple[list[Text], list[Source]]:
    """Every document of the given files, folders and "-" (standard input), in order; and what each file was.

    Standard input is one text, or rows as of JSONL where its first line is a JSON object.

    Raises BadData for anything that cannot be read as text, BadUsage for standard input given twice.
    """
    if paths.count("-") > 1:
        raise BadUsage("standard input can be read only once", where="--data", hint="give - once")
    texts: list[Text] = []
    sources: list[Source] = []
    for given in paths:
        files: list[Path | None] = [None] if given == "-" else [*_files(given)]
        for path in files:
            name = "-" if path is None else str(path)
            data = _until_binary(sys.stdin.buffer) if path is None else _read_bytes(path)
            suffix = _kind_of(data) if path is None else path.suffix.lower()
            if path is not None and suffix == ".parquet":
                rows = list(_parquet_rows(path, text_field))
            elif suffix in (".jsonl", ".json"):
                rows_of = _jsonl_rows if suffix == ".jsonl" else _json_rows
                rows = list(rows_of(name, _decode(name, data), text_field))
            else:
                rows = [Text(name, _decode(name, data))]
            if b"\0" in data and suffix != ".parquet":
                raise BadData("binary data, expected text", where=name, hint="give .txt, .md, .jsonl or .parquet")
            texts.extend(rows)
            sources.append(Source(name, hashlib.sha256(data).hexdigest(), len(rows)))
    if not any(text.text.strip() for text in texts):
        raise BadData("empty, expected text", where=", ".join(paths))
    return texts, sources


class Encoded(NamedTuple):
    """A piece of text as tokens.

    ids     token ids
    words   for each token the number of the word that it is a part of, whose end no token reaches across
    starts  for each token the character of the piece that it starts at
    """

    ids: list[int]
    words: list[int | None]
    starts: list[int]


def encoded_in_pieces(
    whole: Callable[[str], list[int]], piece_of: Callable[[str], Encoded], text: str, most: int | None = None
) -> list[int]:
    """The tokens that `whole` gives for a text, at least the first `most` of them, with the memory of a piece.

    A piece reaches into its neighbours by `OVERLAP` characters on either side. Two are joined where both have the start
    of a word, and only if they agree on every token of half the overlap around: what splits a text into words goes
    from left to right, so from there on the whole text has the same words. Where there is no such place, or the
    tokenizer knows no words, the text is encoded at once.
    """
    if len(text) <= PIECE + OVERLAP:
        return whole(text)
    found: list[int] = []
    left, first = piece_of(text[: PIECE + OVERLAP]), 0
    for middle in range(PIECE, len(text) - OVERLAP, PIECE):
        begin = middle - OVERLAP
        right = piece_of(text[begin : middle + PIECE + OVERLAP])
        joint = _joint(left, right, begin - max(middle - PIECE - OVERLAP, 0))
        if joint is None:
            return whole(text)
        found += left.ids[first : joint[0]]
        if most is not None and len(found) >= most:
            return found
        left, first = right, joint[1]
    return found + left.ids[first:]


def _joint(left: Encoded, right: Encoded, shift: int) -> tuple[int, int] | None:
    """(token of `left`, token of `right`) that start the same word, in the middle half of what both hold.

    shift  characters from the start of `left` to that of `right`
    None where they do not agree on all tokens from there to the last such place in that half.
    """
    reach = range(OVERLAP // 2, 3 * OVERLAP // 2)
    ours = _word_starts(left, shift)
    both = [(ours[start], token) for start, token in _word_starts(right, 0).items() if start in ours and start in reach]
    if len(both) < 2:
        return None
    (left_first, right_first), (left_last, right_last) = both[0], both[-1]
    far_enough = right.starts[right_last] - right.starts[right_first] >= OVERLAP // 2
    if not far_enough or left.ids[left_first:left_last] != right.ids[right_first:right_last]:
        return None
    return left_first, right_first


def _word_starts(piece: Encoded, shift: int) -> dict[int, int]:
    """Character, counted from `shift`, → the token that starts a word there; ascending."""
    numbered = enumerate(zip(piece.words, piece.starts, strict=True))
    return {
        start - shift: token
        for token, (word, start) in numbered
        if token > 0 and word is not None and word != piece.words[token - 1]
    }


def remembering(encode: Encode) -> Encode:
    """The same, which encodes no text again unless more of it is asked for."""
    known: dict[str, tuple[float, list[int]]] = {}

    def encoded(text: str, most: int | None = None, /) -> list[int]:
        wanted = inf if most is None else most
        if text not in known or known[text][0] < wanted:
            known[text] = wanted, encode(text, most)
        return known[text][1]

    return encoded


def _cut(ids: list[int], body: int, most: int) -> list[list[int]]:
    return [ids[start : start + body] for start in range(0, len(ids) - body + 1, body)][:most]


def _spread(windows: list[list[int]], groups: int) -> list[list[list[int]]]:
    """Contiguous groups whose sizes differ by at most one."""
    bounds = [round(i * len(windows) / groups) for i in range(groups + 1)]
    return [windows[a:b] for a, b in pairwise(bounds)]


def tokenize(
    texts: Sequence[Text],
    encode: Encode,
    length: int,
    *,
    bos: int | None,
    windows: int | None,
    longest: int | None = None,
) -> Corpus:
    """Cut every document into windows of `length` tokens.

    bos      token put in front of every window, as the YaRN evaluation does, where the tokenizer has that habit
    windows  at most this many a document; None: as many as make about 24 windows in all, spread over the documents
    longest  the longest window that the same texts are cut into; what is too short for it is left out here too, so that
             every length has the same documents. None: `length`

    Raises BadData when no document holds a single window.
    """
    front = [] if bos is None else [bos]
    body, whole = length - len(front), max(longest or length, length) - len(front)
    distinct: dict[str, str] = {}
    for text in texts:
        distinct.setdefault(text.text, text.name)
    # of several texts only the windows that are asked for; the only long one is cut all along
    asked = windows or -(-BLOCKS // len(distinct))
    most_needed = None if len(distinct) == 1 else max(whole, body * asked)
    encoded = {text: encode(text, most_needed) for text in distinct}
    long_enough = [(distinct[text], ids) for text, ids in encoded.items() if len(ids) >= whole]
    alone = len(long_enough) == 1
    if most_needed is not None and (alone or (windows is None and 0 < len(long_enough) < len(encoded))):
        most_needed = None if alone else max(whole, body * -(-BLOCKS // len(long_enough)))
        long_enough = [(distinct[text], encode(text, most_needed)) for text in encoded if len(encoded[text]) >= whole]
    if not long_enough:
        most_tokens = max(map(len, encoded.values()), default=0)
        raise BadData(
            f"no document has the {whole + len(front)} tokens of one window; the longest of {len(encoded)} has "
            f"{most_tokens}",
            hint="give longer documents, or a smaller --factor, --target-length or --lengths",
        )
    lone = alone and len(long_enough[0][1]) >= 2 * whole
    if lone:
        name, ids = long_enough[0]
        pieces = _cut(ids, whole, len(ids))
        groups = [list(chain.from_iterable(group)) for group in _spread(pieces, min(BLOCKS, len(pieces)))]
        parts = [(f"{name}#{i}", group) for i, group in enumerate(groups, 1)]
        most = windows or 1
    else:
        parts = long_enough
        most = windows or -(-BLOCKS // len(long_enough))
    documents = tuple(
        Document(name, tuple(tuple(front + window) for window in _cut(ids, body, most))) for name, ids in parts
    )
    repeated = len(texts) - len(encoded)
    return Corpus(documents, length, len(encoded) - len(long_enough), repeated, lone, whole + len(front))


def split(
    documents: Sequence[Document], held_out: float, seed: int
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """(search part, held-out part): whole documents, dealt by a seeded shuffle; each part has at least one.

    Raises BadUsage for a fraction outside (0, 1) and BadData for fewer than two documents.
    """
    if not 0 < held_out < 1:
        raise BadUsage(f"expected a fraction between 0 and 1, found {held_out:g}", where="--validation-fraction")
    if len(documents) < 2:
        raise BadData(
            "one document cannot be split into a search part and a held-out part",
            hint="give at least two documents with --data; ten or more give a verdict worth having",
        )
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a split, not a secret
    count = min(max(round(len(documents) * held_out), 1), len(documents) - 1)
    held = set(order[:count])
    search = [documents[i] for i in order if i not in held]
    return tuple(search), tuple(documents[i] for i in order if i in held)
