"""`calibrate.corpus`: every kind of text becomes windows of exactly one length, and nothing is silently repaired."""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from calibrate import corpus as corpus_module
from calibrate.corpus import (
    BLOCKS,
    Corpus,
    Document,
    Encoded,
    Text,
    encoded_in_pieces,
    read_texts,
    remembering,
    split,
    tokenize,
)
from ropecli.errors import BadData, BadUsage

EXAMPLES = Path(__file__).parents[2] / "examples" / "text" / "calibration"


def encode(text: str, most: int | None = None) -> list[int]:
    """A token a character, and no more of them than asked for."""
    return [ord(character) for character in text[:most]]


def numbered(count: int, start: int = 1) -> str:
    """A text whose tokens are all different, so that a window says where it was cut."""
    return "".join(chr(start + i) for i in range(count))


def windows_of(corpus: Corpus) -> list[tuple[int, ...]]:
    return [window for document in corpus.documents for window in document.windows]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_parquet(path: Path, columns: dict[str, list[object]]) -> str:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path)
    return str(path)


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("name", ["a.txt", "a.md", "A.TXT", "no_suffix"])
def test_a_text_file_is_one_document_with_its_provenance(tmp_path: Path, name: str) -> None:
    """A file that is no table is one document, and its hash is that of its bytes."""
    content = "first line\nsecond line: naïve\n".encode()
    path = write(tmp_path / name, content)
    texts, sources = read_texts([path])
    assert texts == [Text(path, "first line\nsecond line: naïve\n")]
    assert [(s.path, s.sha256, s.documents) for s in sources] == [(path, hashlib.sha256(content).hexdigest(), 1)]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """A UTF-8 byte order mark is dropped, in plain text and in JSONL."""
    plain = write(tmp_path / "a.txt", b"\xef\xbb\xbfhello")
    rows = write(tmp_path / "b.jsonl", b'\xef\xbb\xbf{"text": "world"}\n')
    assert [text.text for text in read_texts([plain, rows])[0]] == ["hello", "world"]


def test_each_row_of_jsonl_is_a_document_named_by_its_line(tmp_path: Path) -> None:
    """Rows keep their order, blank lines and Windows line ends do not matter, and the name holds the line number."""
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\r\n\n{"id": 7, "text": "two"}\r\n')
    texts, sources = read_texts([path])
    assert texts == [Text(f"{path}:1", "one"), Text(f"{path}:3", "two")]
    assert sources[0].documents == 2


def test_a_json_file_holds_an_array_of_rows_or_a_row_a_line(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": "two\n"}]
    array = write(tmp_path / "a.json", json.dumps(rows, indent=2))
    lines = write(tmp_path / "b.json", "".join(json.dumps(row) + "\n" for row in rows))
    texts, sources = read_texts([str(array), str(lines)])
    assert [text.text for text in texts] == ["one", "two\n", "one", "two\n"]
    assert [text.name for text in texts] == [f"{array}:1", f"{array}:2", f"{lines}:1", f"{lines}:2"]
    assert [source.documents for source in sources] == [2, 2]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\x0c", "\x0b"])
def test_only_a_line_feed_ends_a_row(tmp_path: Path, separator: str) -> None:
    """Characters that Python takes for line ends, but JSON Lines does not, may stand inside a string."""
    escaped = separator if separator >= "\x7f" else f"\\u{ord(separator):04x}"
    path = write(tmp_path / "a.jsonl", f'{{"text": "a{escaped}b"}}\n')
    assert read_texts([path])[0] == [Text(f"{path}:1", f"a{separator}b")]


def test_the_text_field_can_be_named(tmp_path: Path) -> None:
    """`--text-field` says which key of a row holds the text."""
    path = write(tmp_path / "a.jsonl", '{"text": "not this", "body": "this"}\n')
    assert [text.text for text in read_texts([path], "body")[0]] == ["this"]


def test_each_row_of_parquet_is_a_document(tmp_path: Path) -> None:
    """Parquet rows are read from the named column, in order."""
    path = write_parquet(tmp_path / "a.parquet", {"id": [1, 2], "body": ["one", "two\0"]})
    texts, sources = read_texts([path], "body")
    assert texts == [Text(f"{path}:1", "one"), Text(f"{path}:2", "two\0")]
    assert sources[0].documents == 2


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    """A folder gives every text in it, sorted, at any depth; other files are not opened."""
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a.md", "a")
    write(tmp_path / "c" / "d.jsonl", '{"text": "d"}')
    write(tmp_path / "z.bin", b"\xff\xfe\0")
    assert [text.text for text in read_texts([str(tmp_path)])[0]] == ["a", "b", "d"]


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads standard input as one plain document."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("čtení\n".encode()), encoding="ascii"))
    texts, sources = read_texts(["-"])
    assert (texts, sources[0].path) == ([Text("-", "čtení\n")], "-")


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes, field: str = "text") -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return [text.text for text in read_texts(["-"], field)[0]]


@pytest.mark.parametrize("front", [b"", b"\xef\xbb\xbf", b"\n \n"])
def test_rows_on_standard_input_are_rows(monkeypatch: pytest.MonkeyPatch, front: bytes) -> None:
    """`zcat rows.jsonl.gz | ropecli … --data -`: a row is a document, and no brace of it is text."""
    rows = front + b'{"text": "a", "body": "c"}\n{"text": "b", "body": "d"}\n'
    assert piped(monkeypatch, rows) == ["a", "b"]
    assert piped(monkeypatch, rows, "body") == ["c", "d"]
    with pytest.raises(BadData, match="expected an object with text in 'words', found text, body") as caught:
        piped(monkeypatch, rows, "words")
    assert caught.value.where == f"-: line {1 + front.count(10)}"


@pytest.mark.parametrize(
    "text", ["{braces}\n", '["a"]\n', "{\n", '{"text": "a"} and more\n', '"a"\n', "1\n", "{" * 9999]
)
def test_a_text_that_only_looks_like_rows_is_a_text(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Only a first line that is an object, all of it, makes rows of what follows."""
    assert piped(monkeypatch, text.encode()) == [text]


def test_standard_input_is_read_once() -> None:
    """Given twice, it would be a text and an empty one."""
    with pytest.raises(BadUsage, match="can be read only once"):
        read_texts(["-", "a.txt", "-"])


BROKEN = {
    "a.txt": (b"caf\xe9", "a.txt", "not UTF-8 text (byte 3 of 4)"),
    "utf16.txt": ("text".encode("utf-16"), "utf16.txt", "not UTF-8 text"),
    "binary.txt": (b"abc\0def", "binary.txt", "binary data"),
    "empty.txt": (b"", "empty.txt", "empty"),
    "blank.md": (b" \n\t\n", "blank.md", "empty"),
    "empty.jsonl": (b"\n\n", "empty.jsonl", "empty"),
    "not.jsonl": (b'{"text": "a"}\n{"text": \n', "not.jsonl: line 2", "expected one JSON object a line"),
    "deep.jsonl": (b"[" * 100_000, "deep.jsonl: line 1", "expected one JSON object a line"),
    "digits.jsonl": (b'{"text": ' + b"9" * 5000 + b"}", "digits.jsonl: line 1", "expected one JSON object a line"),
    "list.jsonl": (b'["text"]', "list.jsonl: line 1", "found list"),
    "key.jsonl": (b'{"text": "a"}\n\n{"body": "b", "id": 1}\n', "key.jsonl: line 3", "found body, id"),
    "kind.jsonl": (b'{"text": 5}', "kind.jsonl: line 1: text", "expected text, found int"),
    "null.jsonl": (b'{"text": "a"}\n{"text": null}', "null.jsonl: line 2: text", "expected text, found null"),
    "bare.jsonl": (b"{}", "bare.jsonl: line 1", "expected an object with text in 'text', found no key"),
    "half.jsonl": (b'{"text": "a\\ud83d"}', "half.jsonl: line 1: text", "surrogate"),
    "not.json": (b'[{"text": "a"},]', "not.json", "not valid JSON"),
    "deep.json": (b"[" * 100_000, "deep.json", "not valid JSON"),
    "words.json": (b'[{"text": "a"}, "b"]', "words.json: row 2", "expected an object with text in 'text', found str"),
    "object.json": (b'{\n  "text": "a"\n}\n', "object.json: line 1", "expected one JSON object a line"),
    "latin.jsonl": (b'{"text": "caf\xe9"}', "latin.jsonl", "not UTF-8 text"),
    "no.parquet": (b"PAR1 and then something else", "no.parquet", "not a readable parquet file"),
    "zero.parquet": (b"", "zero.parquet", "not a readable parquet file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """A file that cannot be used is one BadData that names the file, the line where there is one, and what is wrong."""
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    content, place, problem = BROKEN[name]
    with pytest.raises(BadData) as caught:
        read_texts([write(tmp_path / name, content)])
    assert caught.value.where == str(tmp_path / place)
    assert problem in caught.value.problem
    assert "\n" not in caught.value.message


def test_a_missing_column_and_a_row_without_text_are_refused(tmp_path: Path) -> None:
    """Parquet errors name the column that was looked for, those that are there, and the row at fault."""
    path = write_parquet(tmp_path / "a.parquet", {"id": [1, 2], "text": ["one", None]})
    with pytest.raises(BadData, match="expected a column 'body', found id, text") as caught:
        read_texts([path], "body")
    assert caught.value.where == path
    with pytest.raises(BadData, match="expected text, found NoneType") as caught:
        read_texts([path])
    assert caught.value.where == f"{path}: row 2: text"


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A missing file, a folder without text and a text in place of a path are all BadData, never a traceback."""
    missing, folder = str(tmp_path / "missing.txt"), str(tmp_path)
    with pytest.raises(BadData, match="no such file or folder") as caught:
        read_texts([missing])
    assert caught.value.where == missing
    with pytest.raises(BadData, match="the folder holds no text"):
        read_texts([folder])
    with pytest.raises(BadData, match="cannot be read"):
        read_texts(["word " * 1000])


def test_one_empty_file_among_others_is_only_too_short(tmp_path: Path) -> None:
    """An empty document among good ones is counted and left out, like every one that is too short."""
    paths = [write(tmp_path / "a.txt", numbered(19)), write(tmp_path / "b.txt", "")]
    corpus = tokenize(read_texts(paths)[0], encode, 10, bos=None, windows=1)
    assert (len(corpus.documents), corpus.too_short) == (1, 1)


# ------------------------------------------------------------------------------------------------ windows


def test_windows_are_contiguous_and_of_the_asked_length() -> None:
    """A document gives windows from its start on, without overlap or gap; the rest that fills no window is left."""
    texts = [Text("a", numbered(35)), Text("b", numbered(29, 1000))]
    corpus = tokenize(texts, encode, 10, bos=None, windows=3)
    assert [document.name for document in corpus.documents] == ["a", "b"]
    assert corpus.documents[0].windows == tuple(tuple(range(1 + 10 * i, 11 + 10 * i)) for i in range(3))
    assert corpus.documents[1].windows == tuple(tuple(range(1000 + 10 * i, 1010 + 10 * i)) for i in range(2))
    assert (corpus.length, corpus.too_short, corpus.repeated, corpus.blocks) == (10, 0, 0, False)


def test_a_beginning_token_stands_in_front_of_every_window() -> None:
    """With a beginning-of-sequence token every window holds one token of text less and is still exactly as long."""
    corpus = tokenize([Text("a", numbered(30)), Text("b", numbered(9, 500))], encode, 10, bos=0, windows=9)
    assert corpus.documents[0].windows == tuple((0, *range(1 + 9 * i, 10 + 9 * i)) for i in range(3))
    assert corpus.documents[1].windows == ((0, *range(500, 509)),)


def test_documents_that_are_too_short_are_counted_and_left_out() -> None:
    """A document of one token less than a window does not count; one of exactly a window does."""
    texts = [Text("short", numbered(9)), Text("exact", numbered(10, 100)), Text("empty", "")]
    corpus = tokenize(texts, encode, 10, bos=None, windows=None)
    assert [document.name for document in corpus.documents] == ["exact"]
    assert (corpus.too_short, corpus.blocks) == (2, False)


def test_no_document_of_one_window_is_an_error_that_says_what_is_there() -> None:
    """When nothing is long enough the message holds the needed length and the longest that there is."""
    with pytest.raises(BadData, match="has the 10 tokens of one window; the longest of 2 has 9"):
        tokenize([Text("a", numbered(9)), Text("b", "abc")], encode, 10, bos=None, windows=None)


def test_few_documents_give_about_as_many_windows_as_many_do() -> None:
    """Without a number of windows, the budget of `BLOCKS` windows is spread over the documents."""
    for documents, expected in ((2, BLOCKS // 2), (5, -(-BLOCKS // 5)), (BLOCKS, 1), (3 * BLOCKS, 1)):
        texts = [Text(str(i), numbered(100, 1 + 100 * i)) for i in range(documents)]
        corpus = tokenize(texts, encode, 2, bos=None, windows=None)
        assert {len(document.windows) for document in corpus.documents} == {expected}


@pytest.mark.parametrize("windows", [None, 1, 2, 100])
@pytest.mark.parametrize("tokens", [20, 29, 240, 1234])
def test_a_lone_text_is_cut_into_contiguous_blocks(tokens: int, windows: int | None) -> None:
    """One text becomes up to `BLOCKS` blocks that count as documents, in order and without overlap."""
    corpus = tokenize([Text("book", numbered(tokens))], encode, 10, bos=None, windows=windows)
    assert corpus.blocks
    assert len(corpus.documents) == min(BLOCKS, tokens // 10)
    assert [document.name for document in corpus.documents] == [f"book#{i + 1}" for i in range(len(corpus.documents))]
    starts = [window[0] for window in windows_of(corpus)]
    assert starts == sorted(set(starts))
    assert all(len(document.windows) <= (windows or 1) for document in corpus.documents)
    for document in corpus.documents:
        assert all(b[0] == a[0] + 10 for a, b in pairwise(document.windows))
    if windows == 100:
        assert starts == list(range(1, 10 * (tokens // 10), 10))


def test_a_lone_text_of_one_window_stays_a_document() -> None:
    """A text that holds a single window cannot be cut: it is one document, and no blocks are claimed."""
    corpus = tokenize([Text("a", numbered(19))], encode, 10, bos=None, windows=None)
    assert (len(corpus.documents), corpus.blocks) == (1, False)


def test_the_only_long_text_among_short_ones_is_cut_as_a_lone_one() -> None:
    """The short ones are left out, and what remains is the corpus that the long one is by itself."""
    long, short = Text("book", numbered(700)), Text("note", "x" * 9)
    for windows in (None, 1):
        alone = tokenize([long], encode, 10, bos=None, windows=windows)
        beside = tokenize([short, long], encode, 10, bos=None, windows=windows)
        assert beside == replace(alone, too_short=1)
        assert len(beside.documents) == BLOCKS


def test_every_length_has_the_documents_of_the_longest() -> None:
    """Cut for windows of 30 too, a text of 20 tokens is left out everywhere, though it holds a window of 10."""
    texts = [Text(name, name * count) for name, count in (("a", 20), ("b", 30), ("c", 61))]
    corpora = [tokenize(texts, encode, length, bos=None, windows=None, longest=30) for length in (10, 30)]
    assert [[d.name for d in corpus.documents] for corpus in corpora] == [["b", "c"]] * 2
    assert [corpus.too_short for corpus in corpora] == [1, 1]


@pytest.mark.parametrize("tokens", [95, 700])
def test_the_blocks_of_a_lone_text_are_the_same_for_every_length(tokens: int) -> None:
    """What is held out at one length is not searched on at another: block n comes from the same place of the text."""
    text = Text("long", " ".join(str(i) for i in range(tokens)))
    short, long = (
        tokenize([text], lambda t, _=None: [int(w) for w in t.split()], length, bos=None, windows=1, longest=20)
        for length in (5, 20)
    )
    assert [d.name for d in short.documents] == [d.name for d in long.documents]
    for small, large in zip(short.documents, long.documents, strict=True):
        assert small.windows[0] == large.windows[0][:5]


@pytest.mark.parametrize(
    ("short", "again", "notes"),
    [
        (0, 0, ()),
        (
            1,
            1,
            (
                "1 document is shorter than one window of 40 tokens and was left out",
                "1 document has the same text as an earlier one and was left out",
            ),
        ),
        (
            2,
            3,
            (
                "2 documents are shorter than one window of 40 tokens and were left out",
                "3 documents have the same text as an earlier one and were left out",
            ),
        ),
    ],
)
def test_what_was_left_out_is_told(short: int, again: int, notes: tuple[str, ...]) -> None:
    """In sentences, with the window that a text was too short for, which may be that of another factor."""
    texts = [Text("a", "a" * 50), Text("b", "b" * 50), *(Text("s", "s" * (n + 1)) for n in range(short))]
    texts += [Text("again", "b" * 50)] * again
    assert tokenize(texts, encode, 10, bos=None, windows=1, longest=40).notes == notes


def test_blocks_are_told() -> None:
    """One long text stands for many documents, and says so."""
    assert tokenize([Text("a", "x" * 30)], encode, 10, bos=None, windows=1).notes == (
        "one text was cut into 3 contiguous blocks that count as documents",
    )


def test_a_text_that_comes_twice_counts_once() -> None:
    """The same text under two names could stand on both sides of the split: the later one is counted and left out."""
    texts = [Text("a", numbered(20)), Text("b", numbered(20, 90)), Text("copy of a", numbered(20))]
    corpus = tokenize(texts, encode, 10, bos=None, windows=1)
    assert [document.name for document in corpus.documents] == ["a", "b"]
    assert corpus.repeated == 1


@given(
    lengths=st.lists(st.integers(0, 60), min_size=2, max_size=8),
    length=st.integers(2, 12),
    bos=st.booleans(),
    windows=st.none() | st.integers(1, 5),
)
def test_windows_always_have_the_length_and_hold_the_text_in_order(
    lengths: list[int], length: int, *, bos: bool, windows: int | None
) -> None:
    """For any documents: each window has the length, and the windows of one document spell its beginning."""
    texts = [Text(str(i), numbered(n, 1 + 100 * i)) for i, n in enumerate(lengths)]
    body = length - bos
    if max(lengths) < body:
        with pytest.raises(BadData):
            tokenize(texts, encode, length, bos=0 if bos else None, windows=windows)
        return
    corpus = tokenize(texts, encode, length, bos=0 if bos else None, windows=windows)
    by_name = {text.name: encode(text.text) for text in texts}
    assert all(len(window) == length for window in windows_of(corpus))
    if not corpus.blocks:
        for document in corpus.documents:
            spelled = [token for window in document.windows for token in window[bos:]]
            assert spelled == by_name[document.name][: len(spelled)]
            most = windows or -(-BLOCKS // len(corpus.documents))
            assert len(document.windows) == min(most, len(by_name[document.name]) // body)
        assert len(corpus.documents) + corpus.too_short + corpus.repeated == len(texts)


# ------------------------------------------------------------------------------------------------ long texts


UNKNOWN = "<unk>"


def byte_level() -> Tokenizer:
    """Byte-level BPE with GPT-2's words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator([SAMPLE], trainer)
    return made


def digits_apart() -> Tokenizer:
    """Numbers in groups of three, counted from their left end, and words with a space in front."""
    made = byte_level()
    pattern = Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    split_ = pre_tokenizers.Split(pattern, "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split_, pre_tokenizers.ByteLevel(use_regex=False)])
    return made


def unigram() -> Tokenizer:
    """SentencePiece's kind: a mark in front of the first word, NFKC."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.train_from_iterator(
        [SAMPLE], trainers.UnigramTrainer(vocab_size=200, unk_token=UNKNOWN, special_tokens=[UNKNOWN])
    )
    return made


def without_words() -> Tokenizer:
    """BPE over the whole text, as in the first Llama."""
    made = Tokenizer(models.BPE(unk_token=UNKNOWN))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.train_from_iterator(SAMPLE.split(), trainers.BpeTrainer(vocab_size=300, special_tokens=[UNKNOWN]))
    return made


SAMPLE = "".join(path.read_text("utf-8") for path in sorted(EXAMPLES.glob("*.txt"))[:2])[:60_000]
LONG = {
    "prose": SAMPLE[:30_000],
    "no space": "abcdefghij" * 1500,
    "spaces": ("word" + " " * 700) * 20,
    "a number": "7" * 9000 + " end",
    "numbers": " ".join(str(n) for n in range(100_000, 102_500)),
    "lines": "one\r\n\r\n\ttwo  \n" * 900,
    "accents": "e\u0301t\u00e9 \ufb01n \u6f22\u5b57 \U0001f600\u200d\U0001f680 " * 500,
}


@pytest.mark.parametrize("text", LONG)
@pytest.mark.parametrize("made", [byte_level, digits_apart, unigram, without_words])
def test_a_text_in_pieces_has_the_tokens_of_the_whole(
    made: Callable[[], Tokenizer], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every kind of tokenizer, also where pieces cannot be joined; asked for fewer it gives as many of the first."""
    monkeypatch.setattr(corpus_module, "PIECE", 2000)
    monkeypatch.setattr(corpus_module, "OVERLAP", 256)
    tokenizer = made()
    sizes: list[int] = []

    def whole(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def piece(text: str) -> Encoded:
        sizes.append(len(text))
        found = tokenizer.encode(text, add_special_tokens=False)
        return Encoded(found.ids, found.word_ids, [start for start, _ in found.offsets])

    expected = whole(LONG[text])
    assert encoded_in_pieces(whole, piece, LONG[text]) == expected
    assert max(sizes) <= 2000 + 2 * 256
    for most in (1, 700, 10**6):
        first = encoded_in_pieces(whole, piece, LONG[text], most)
        assert first == expected[: len(first)]
        assert len(first) >= min(most, len(expected))


def test_of_a_long_text_only_what_is_asked_for_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces that hold the first tokens, with a little of the next."""
    monkeypatch.setattr(corpus_module, "PIECE", 2000)
    monkeypatch.setattr(corpus_module, "OVERLAP", 256)
    tokenizer, seen = byte_level(), list[int]()

    def piece(text: str) -> Encoded:
        seen.append(len(text))
        found = tokenizer.encode(text, add_special_tokens=False)
        return Encoded(found.ids, found.word_ids, [start for start, _ in found.offsets])

    encoded_in_pieces(lambda _: pytest.fail("encoded at once"), piece, SAMPLE, 300)
    assert sum(seen) < 6000


def test_no_text_is_encoded_again_unless_more_of_it_is_asked_for() -> None:
    """The windows of a smaller factor are in the tokens of a larger one."""
    asked: list[int | None] = []

    def counted(text: str, most: int | None = None) -> list[int]:
        asked.append(most)
        return encode(text, most)

    remembered = remembering(counted)
    for most, found in ((5, 5), (3, 5), (8, 8), (None, 10), (9, 10), (None, 10)):
        assert len(remembered("x" * 10, most)) == found
    assert asked == [5, 8, None]


def test_windows_are_the_same_however_little_is_encoded() -> None:
    """Short texts leave more windows to the others, which then need more of their tokens."""
    texts = [Text("a", numbered(500)), Text("b", numbered(500, 600)), Text("s", "short")]

    def everything(text: str, most: int | None = None) -> list[int]:
        del most
        return encode(text)

    lean, full = (tokenize(texts, each, 10, bos=None, windows=None) for each in (encode, everything))
    assert lean == full
    assert len(lean.documents[0].windows) == 12


# ------------------------------------------------------------------------------------------------ split


def some(count: int) -> list[Document]:
    return [Document(f"d{i}", ((i,),)) for i in range(count)]


@given(count=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_a_split_deals_every_document_once(count: int, fraction: float, seed: int) -> None:
    """Both parts hold something, share nothing, together hold all, and the held-out part has the asked size."""
    documents = some(count)
    search, held = split(documents, fraction, seed)
    assert search
    assert held
    assert not set(search) & set(held)
    assert set(search) | set(held) == set(documents)
    assert abs(len(held) - count * fraction) <= 1
    assert split(documents, fraction, seed) == (search, held)


def test_the_seed_decides_the_split_and_nothing_else_does() -> None:
    """Another seed gives another split; Python's own random state has no part in it."""
    splits = {split(some(20), 0.5, seed) for seed in range(10)}
    assert len(splits) == 10
    import random  # noqa: PLC0415

    random.seed(1)
    first = split(some(20), 0.5, 3)
    random.seed(2)
    assert split(some(20), 0.5, 3) == first


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_fraction_outside_zero_and_one_is_refused(fraction: float) -> None:
    """Nothing held out, or everything, is bad usage of `--validation-fraction`."""
    with pytest.raises(BadUsage) as caught:
        split(some(4), fraction, 0)
    assert caught.value.where == "--validation-fraction"


def test_one_document_cannot_be_split() -> None:
    """With a single document there is nothing to hold out."""
    with pytest.raises(BadData, match="cannot be split"):
        split(some(1), 0.5, 0)


def test_json_round_trip_of_hard_texts(tmp_path: Path) -> None:
    """Any text that JSON can hold comes back as it was."""
    hard = ["\u2028", "a\nb\r\nc", "\x00\x01", "😀", "\ufeff", '"\\"', " " * 5]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in hard))
    assert [text.text for text in read_texts([path])[0]] == hard
