"""`calibrate.verdict`: what the held-out table says is what was scored, and the decision follows from it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from calibrate.corpus import Document
from calibrate.fence import as_loaded
from calibrate.objective import Objective, Space, method
from calibrate.score import Bands, Floats
from calibrate.statistics import Difference
from calibrate.verdict import BASELINES, TABLES, by_position, judged, validate, verdict
from ropecli.frequencies import Frequencies
from ropecli.spec import RopeSpec, Yarn

PLAIN = RopeSpec(10000.0, 32, 32, 256, 256)
SPACE = Space(PLAIN, 4.0)
BANDS = Bands((1, 128, 256, 512, 1024))
DOCUMENTS = tuple(Document(f"d{i}", ((i,) * 1024,) * (i + 1)) for i in range(3))
WINDOWS = 1 + 2 + 3

NATS: dict[str, tuple[float, ...]] = {
    "none": (2.0, 2.0, 6.0, 6.0),
    "linear": (3.5, 3.5, 4.5, 4.5),
    "ntk": (3.0, 3.0, 4.25, 4.25),
    "ntk-by-parts": (3.0, 3.0, 4.0, 4.5),
    "yarn": (3.0, 3.0, 4.0, 4.0),
    "the result": (3.1, 3.3, 3.8, 3.7),
}
"""Method → nats a token in each band, the same in every document."""

RESULT = as_loaded(replace(method("yarn", PLAIN, 4.0), scaling=Yarn(4.0, 1.05)))


class Scorer:
    """Tables by name; it counts how often each is scored."""

    def __init__(self, result: Frequencies) -> None:
        self.names = {as_loaded(method(name, PLAIN, 4.0)): name for name in (*BASELINES, "yarn")}
        self.names.setdefault(result, "the result")
        self.scored: list[str] = []

    def __call__(self, table: Frequencies, documents: Sequence[Document]) -> Floats:
        self.scored.append(self.names[table])
        tokens = np.array([[len(d.windows) * width for width in BANDS.widths] for d in documents])
        return tokens * np.array(NATS[self.names[table]])


def test_the_held_out_table_is_what_was_scored() -> None:
    """Within L, beyond it and over all: sums over sums of tokens, and each method against default YaRN."""
    scorer, told = Scorer(RESULT), list[str]()
    rows, differences, _ = validate(scorer, DOCUMENTS, SPACE, RESULT, BANDS, told.append)
    assert scorer.scored == [*BASELINES, "yarn", "the result"]
    assert len(scorer.scored) == TABLES
    assert told == [f"held-out check: {name}" for name in scorer.scored]
    within, beyond, whole = rows
    assert [(row.positions, row.tokens) for row in rows] == [
        ("within", WINDOWS * 255),
        ("beyond", WINDOWS * 768),
        ("all", WINDOWS * 1023),
    ]
    assert (within.default_nll, within.nll) == pytest.approx((3.0, (127 * 3.1 + 128 * 3.3) / 255))
    assert (beyond.default_nll, beyond.nll) == pytest.approx((4.0, (256 * 3.8 + 512 * 3.7) / 768))
    assert whole.nll == pytest.approx((within.nll * 255 + beyond.nll * 768) / 1023)
    assert beyond.baselines == pytest.approx({"none": 6.0, "linear": 4.5, "ntk": 4.25, "ntk-by-parts": 13 / 3})
    assert {name: delta for name, (delta, _, _) in beyond.differences.items()} == pytest.approx(
        {"none": 2.0, "linear": 0.5, "ntk": 0.25, "ntk-by-parts": 1 / 3}
    )
    assert {name: found.delta for name, found in differences.items()} == pytest.approx(
        {row.positions: row.nll - row.default_nll for row in rows}
    )
    assert beyond.delta == differences["beyond"].delta < 0 < differences["within"].delta == within.delta


def test_the_loss_by_position_is_that_of_the_same_scores() -> None:
    """In each band the nats of every method, and what they are more than default YaRN's."""
    _, _, found = validate(Scorer(RESULT), DOCUMENTS, SPACE, RESULT, BANDS, lambda _: None)
    assert (found.factor, found.length, found.edges) == (4.0, 1024, BANDS.edges)
    named = {name.removeprefix("the "): nats for name, nats in NATS.items()}
    assert found.nll.keys() == found.standard_error.keys() == named.keys()
    assert found.delta.keys() == found.delta_error.keys() == named.keys() - {"yarn"}
    for name, nats in named.items():
        assert found.nll[name] == pytest.approx(nats)
        assert found.standard_error[name] == pytest.approx((0.0,) * 4, abs=1e-9)
    assert found.delta["result"] == pytest.approx((0.1, 0.3, -0.2, -0.3))
    assert found.delta["none"] == pytest.approx((-1.0, -1.0, 2.0, 2.0))


def test_the_error_of_a_band_is_over_documents() -> None:
    """Two documents at 1 and 3 nats a token lie one standard error from their mean, whatever the width of the band."""
    tokens = np.array([[10, 40], [10, 40]])
    yarn = np.array([[10.0, 40.0], [30.0, 120.0]])
    found = by_position(4.0, Bands((1, 11, 51)), {"yarn": yarn, "result": yarn - [[0.0, 0.0], [10.0, 0.0]]}, tokens)
    assert found.nll["yarn"] == pytest.approx((2.0, 2.0))
    assert found.standard_error["yarn"] == pytest.approx((1.0, 1.0))
    assert found.delta["result"] == pytest.approx((-0.5, 0.0))
    assert found.delta_error["result"] == pytest.approx((0.5, 0.0))


def test_a_result_that_is_the_default_is_not_scored_again() -> None:
    """It has the default's numbers, and a difference of exactly zero."""
    default = as_loaded(method("yarn", PLAIN, 4.0))
    scorer = Scorer(default)
    _, differences, found = validate(scorer, DOCUMENTS, SPACE, default, BANDS, lambda _: None)
    assert scorer.scored == [*BASELINES, "yarn"]
    assert {found.delta for found in differences.values()} == {0.0}
    assert found.nll["result"] == found.nll["yarn"]


@pytest.mark.parametrize(("objective", "positions"), [("beyond", "beyond"), ("all", "all"), ("last:128", "beyond")])
def test_the_verdict_is_about_what_was_minimised(objective: str, positions: str) -> None:
    """The last positions lie beyond L, and are judged by all that lie there."""
    differences = {
        name: Difference(delta, delta, delta, 9) for name, delta in (("within", 1), ("beyond", 2), ("all", 3))
    }
    assert judged(differences, Objective.parse(objective, 0.005)) is differences[positions]


@pytest.mark.parametrize(("documents", "said"), [(1, "1 calibration document is"), (2, "2 calibration documents are")])
def test_one_document_is_too_few(documents: int, said: str) -> None:
    """The reason is a sentence."""
    gain = Difference(-0.1, -0.2, -0.05, 9)
    decision, reason = verdict({"within": gain, "beyond": gain}, Objective("beyond"), documents, unchanged=False)
    assert decision == "default"
    assert reason.startswith(said)


@pytest.mark.parametrize(("low", "decision"), [(0.005, "calibrated"), (0.0051, "default")])
def test_a_loss_within_the_original_length_counts_once_it_is_proved_above_the_guard(low: float, decision: str) -> None:
    """The whole interval has to lie above it."""
    gain, cost = Difference(-0.1, -0.2, -0.05, 9), Difference(0.02, low, 0.035, 9)
    assert verdict({"within": cost, "beyond": gain}, Objective("beyond"), 9, unchanged=False)[0] == decision
