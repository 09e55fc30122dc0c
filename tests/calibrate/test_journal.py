"""`calibrate.journal`: what is known is on disk at once, reads back to the same bits, and is never computed again."""

import json
import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from calibrate import journal as journalling
from calibrate.corpus import Document
from calibrate.gradient import Slope
from calibrate.journal import Journal, file_fingerprint
from calibrate.score import Bands, Floats, batches
from ropecli.errors import BadCalibration, BadUsage
from ropecli.frequencies import Frequencies

TABLE, OTHER = Frequencies((1.0, 0.1, 1 / 3), 1.1), Frequencies((1.0, 0.1, 1 / 3), math.nextafter(1.1, 2))
BANDS, WEIGHTS = Bands((1, 8, 16)), (0.3, 1.0)
DOCUMENTS = tuple(Document(f"d{i}", ((i,) * 16,) * (i + 1)) for i in range(4))
IDENTITY = {"seed": 0, "data": ["ab"]}


class Model:
    """Scores and slopes that no other documents or tables have; it counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def numbers(self, table: Frequencies, documents: Sequence[Document], count: int) -> Floats:
        self.asked.append(tuple(document.name for document in documents))
        seed = [len(document.windows) for document in documents]
        return np.random.default_rng([round(1e9 * table.attention_factor), *seed]).normal(3, 1, count)

    def nats(self, table: Frequencies, documents: Sequence[Document]) -> Floats:
        return self.numbers(table, documents, 2 * len(documents)).reshape(-1, 2)

    def slope(self, table: Frequencies, documents: Sequence[Document], bands: Bands, weights: Sequence[float]) -> Slope:
        values = self.numbers(table, documents, 5) * weights[0] * bands.edges[1]
        return Slope(float(values[0]), values[1:4], float(values[4]))


def opened(path: Path | None, *, resume: bool = False, **changes: object) -> Journal:
    return Journal(path, IDENTITY | changes, resume=resume)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("windows", "expected"),
    [(1, ["0", "1", "2", "3"]), (3, ["01", "2", "3"]), (6, ["012", "3"]), (9, ["012", "3"]), (10, ["0123"])],
)
def test_batches_are_whole_documents(windows: int, expected: list[str]) -> None:
    """Consecutive documents fill a batch as far as they go; one that is larger than a batch is alone."""
    found = list(batches(DOCUMENTS, windows))
    assert ["".join(document.name[1:] for document in batch) for batch in found] == expected
    assert list(batches((), windows)) == []


@pytest.mark.parametrize("windows", [1, 3, 10])
def test_every_batch_is_on_disk_before_the_next_one_begins(windows: int, tmp_path: Path) -> None:
    """A program that is killed in the middle of a call loses the batch that was in flight, and no other."""
    path, model = tmp_path / "journal", Model()
    seen: list[int] = []

    def watched(table: Frequencies, documents: Sequence[Document]) -> Floats:
        seen.append(len(lines(path)) - 1)
        return model.nats(table, documents)

    with closing(opened(path)) as journal:
        journal.remembering(watched, windows)(TABLE, DOCUMENTS)
    assert seen == list(range(len(list(batches(DOCUMENTS, windows)))))


@pytest.mark.parametrize("kept", range(8))
def test_what_was_written_comes_back_to_the_bit(kept: int, tmp_path: Path) -> None:
    """Cut off after any line: scores and slopes are the same bits, and what is in the file is not computed again."""
    path, model = tmp_path / "journal", Model()
    first = opened(path)
    nats = first.remembering(model.nats, 3)(TABLE, DOCUMENTS)
    slope = first.remembering_slopes(model.slope, 3)(OTHER, DOCUMENTS, BANDS, WEIGHTS)
    first.close()
    whole = path.read_text("utf-8")
    assert len(lines(path)) == 1 + 3 + 3
    path.write_text("".join(whole.splitlines(keepends=True)[: max(kept, 1)]) + '{"key": "half a li', "utf-8")
    again, other = opened(path, resume=True), Model()
    assert again.remembering(other.nats, 3)(TABLE, DOCUMENTS).tobytes() == nats.tobytes()
    found = again.remembering_slopes(other.slope, 3)(OTHER, DOCUMENTS, BANDS, WEIGHTS)
    again.close()
    assert (found.nats, found.inv_freq.tolist(), found.attention_factor) == (
        slope.nats,
        slope.inv_freq.tolist(),
        slope.attention_factor,
    )
    assert len(other.asked) == 6 - max(min(kept, 7) - 1, 0)
    assert path.read_text("utf-8") == whole


def test_one_question_is_computed_once_also_without_a_file() -> None:
    """A journal without a path remembers while the program runs."""
    journal, model = opened(None), Model()
    scored, sloped = journal.remembering(model.nats, 3), journal.remembering_slopes(model.slope, 3)
    results = [(scored(TABLE, DOCUMENTS), sloped(TABLE, DOCUMENTS, BANDS, WEIGHTS)) for _ in range(2)]
    journal.close()
    assert model.asked == [("d0", "d1"), ("d2",), ("d3",)] * 2
    assert results[0][0].tolist() == results[1][0].tolist()
    assert results[0][1].nats == results[1][1].nats


def test_scores_are_those_of_the_batches_in_their_order() -> None:
    """Rows follow the documents, and the slope of several batches is their sum."""
    model = Model()
    rows = opened(None).remembering(model.nats, 3)(TABLE, DOCUMENTS)
    slope = opened(None).remembering_slopes(model.slope, 3)(TABLE, DOCUMENTS, BANDS, WEIGHTS)
    parts = list(batches(DOCUMENTS, 3))
    assert rows.tolist() == [row for part in parts for row in model.nats(TABLE, part).tolist()]
    each = [model.slope(TABLE, part, BANDS, WEIGHTS) for part in parts]
    assert slope.inv_freq.tolist() == sum(part.inv_freq for part in each).tolist()
    assert slope.nats == sum(part.nats for part in each)


def test_another_question_is_another_entry() -> None:
    """A table that differs in the last bit, other documents, lengths, weights or edges are computed anew."""
    journal, model = opened(None), Model()
    scored, sloped = journal.remembering(model.nats, 10), journal.remembering_slopes(model.slope, 10)
    shorter = tuple(Document(d.name, tuple(window[:8] for window in d.windows)) for d in DOCUMENTS)
    for table, documents in ((TABLE, DOCUMENTS), (OTHER, DOCUMENTS), (TABLE, DOCUMENTS[:3]), (TABLE, shorter)):
        scored(table, documents)
        for bands, weights in ((BANDS, WEIGHTS), (Bands((1, 9, 16)), WEIGHTS), (BANDS, (0.3, 1.0000000000000002))):
            sloped(table, documents, bands, weights)
    assert len(model.asked) == 4 * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"seed": 1}, "seed"), ({"data": ["cd"]}, "data"), ({"seed": 1, "data": []}, "seed, data"), ({"new": 1}, "new")],
)
def test_another_run_is_refused_by_what_differs(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    """The difference is named, and the journal is left as it was."""
    path = tmp_path / "journal"
    opened(path).close()
    before = path.read_bytes()
    with pytest.raises(BadUsage, match=f"differs in: {said}$"):
        opened(path, resume=True, **changes)
    assert path.read_bytes() == before
    opened(path, **changes).close()
    assert path.read_bytes() != before


@pytest.mark.parametrize("content", ["", "{}\n", "[]\n", "text\n", '{"kind": "ropecli.journal"}\n', b"\xff\n"])
def test_what_is_no_journal_is_refused(content: str | bytes, tmp_path: Path) -> None:
    """Another file, an empty one and one without its first line are told, and are left as they were."""
    path = tmp_path / "journal"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((BadCalibration, BadUsage)) as caught:
        opened(path, resume=True)
    assert caught.value.where == str(path)
    assert "--resume" in caught.value.hint


@pytest.mark.parametrize("line", ['{"nats": [[1.0]]}', "[1]", "null", '"text"'])
def test_a_line_that_is_no_entry_is_refused(line: str, tmp_path: Path) -> None:
    """A line in the middle that nobody wrote is no reason for a traceback."""
    path = tmp_path / "journal"
    opened(path).close()
    path.write_text(path.read_text("utf-8") + line + "\n", "utf-8")
    with pytest.raises(BadCalibration, match="not a journal"):
        opened(path, resume=True)


@pytest.mark.parametrize("size", [1, 5000, 200_000])
@pytest.mark.parametrize("whole", [True, False])
def test_a_fingerprint_tells_a_change(size: int, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte at the start, the end or any sampled place, and another length: another fingerprint."""
    monkeypatch.setattr(journalling, "WHOLE_BYTES", 2**30 if whole else 0)
    path = tmp_path / "weights"
    content = np.random.default_rng(0).bytes(size)
    fingerprints = set()
    places = [0, size - 1, *([size // 2] if whole else [p for p in (65536 + 100, 131072 + 4095) if p < size])]
    versions = [content, content + b"\0"]
    versions += [content[:p] + bytes([content[p] ^ 1]) + content[p + 1 :] for p in dict.fromkeys(places)]
    for version in versions:
        path.write_bytes(version)
        fingerprints.add(file_fingerprint(path))
    assert len(fingerprints) == len(versions)
    path.write_bytes(content)
    assert file_fingerprint(path) in fingerprints
