"""`calibrate.statistics` and the verdict that stands on it: intervals are right, and nothing is claimed by chance."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from calibrate import statistics
from calibrate.objective import Objective, Point
from calibrate.statistics import (
    Difference,
    effective_documents,
    paired_difference,
    standard_error,
)
from calibrate.verdict import FEWEST_DOCUMENTS, verdict

FOUND, DEFAULT = Point(2, 5, 1.05), Point(0, 7, 1.1386)


def excludes_zero(found: Difference) -> bool:
    """Whether the interval lies on one side of zero."""
    return found.low > 0 or found.high < 0


def test_a_difference_in_words_has_an_interval_where_there_is_one() -> None:
    """Two documents have one, a single one has none, and no infinity is shown."""
    two = paired_difference(np.array([9.0, 10.0]), np.array([10.0, 11.5]), np.array([10, 10]))
    assert re.fullmatch(r"-0\.1250 nats a token, 95 % interval -\d\.\d{4} to \+\d\.\d{4}", two.in_words)
    one = paired_difference(np.array([9.0]), np.array([10.0]), np.array([10]))
    assert one.in_words == "-0.1000 nats a token, without an interval"


def test_three_documents_by_hand() -> None:
    """A difference worked out on paper: δ = −9/60, residuals by document, t with 60²/1400 − 1 degrees of freedom."""
    before, after = np.array([20.0, 41.0, 61.0]), np.array([19.0, 38.0, 56.0])
    tokens = np.array([10, 20, 30])
    found = paired_difference(after, before, tokens)
    # residuals −1 + 1.5, −3 + 3, −5 + 4.5; their sample variance 0.25; the mean document has 20 tokens
    error = math.sqrt(0.25 / 3) / 20
    reach = stats.t.ppf(0.975, 18 / 7 - 1) * error
    assert reach > 4.302652729911275 * error
    assert found.delta == pytest.approx(-0.15)
    assert (found.low, found.high) == (pytest.approx(-0.15 - reach), pytest.approx(-0.15 + reach))
    assert found.documents == 3
    assert excludes_zero(found) == (reach < 0.15)


@given(
    st.lists(st.tuples(st.floats(100, 300), st.floats(-5, 5)), min_size=2, max_size=29).filter(
        lambda rows: np.ptp([d for _, d in rows]) > 1e-3
    ),
    st.integers(1, 1000),
)
def test_with_equal_lengths_it_is_the_paired_t_test(rows: list[tuple[float, float]], tokens: int) -> None:
    """For few documents of equal length, the interval is scipy's own for a paired t-test of the means a token."""
    before = np.array([nats for nats, _ in rows])
    after = before + np.array([change for _, change in rows])
    found = paired_difference(after, before, np.full(len(rows), tokens))
    expected = stats.ttest_rel(after / tokens, before / tokens).confidence_interval(0.95)
    assert found.low == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(expected.high, rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(st.floats(10, 300), st.floats(10, 300), st.integers(5, 99)), min_size=1, max_size=20))
def test_the_difference_is_that_of_two_sums(rows: list[tuple[float, float, int]]) -> None:
    """δ is the difference of two losses that were each summed and divided once; swapping the two changes its sign."""
    after, before, tokens = (np.array(column) for column in zip(*rows, strict=True))
    found, back = paired_difference(after, before, tokens), paired_difference(before, after, tokens)
    assert found.delta == pytest.approx(after.sum() / tokens.sum() - before.sum() / tokens.sum())
    assert found.delta == pytest.approx(-back.delta)
    assert found.low == pytest.approx(-back.high)


def test_pairing_takes_out_what_documents_have_in_common() -> None:
    """Documents that differ wildly, with one small steady gain: the paired interval sees it."""
    draw = np.random.default_rng(0)
    tokens = np.full(12, 768)
    before = 768 * draw.normal(3.5, 0.5, 12)
    after = before + 768 * draw.normal(-0.05, 0.01, 12)
    found = paired_difference(after, before, tokens)
    assert excludes_zero(found)
    assert standard_error(before, tokens) > 5 * (found.high - found.low)


def test_one_document_says_nothing_about_the_next() -> None:
    """With one document the interval is everything, and the standard error is unknown."""
    found = paired_difference(np.array([90.0]), np.array([100.0]), np.array([50]))
    assert (found.delta, found.low, found.high) == (-0.2, -math.inf, math.inf)
    assert not excludes_zero(found)
    assert math.isnan(standard_error(np.array([90.0]), np.array([50])))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_proves_nothing(broken: float) -> None:
    """One document whose loss is not finite makes the interval everything, without a warning."""
    nats, before, tokens = np.array([90.0, broken, 80.0]), np.array([100.0, 90.0, 90.0]), np.array([50, 50, 50])
    found = paired_difference(nats, before, tokens)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert not excludes_zero(found)
    assert math.isnan(standard_error(nats, tokens))
    both = paired_difference(nats, nats, tokens)
    assert (both.low, both.high) == (-math.inf, math.inf)


def test_the_standard_error_of_equal_documents_is_the_usual_one() -> None:
    """For documents of equal length it is the standard deviation of the means over √n."""
    nats = np.array([300.0, 310.0, 290.0, 330.0])
    expected = np.std(nats / 100, ddof=1) / 2
    assert standard_error(nats, np.full(4, 100)) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------ many documents


def many(documents: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(after, before, tokens) of documents of unequal length, with a true difference of −0.01 nats a token."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, 4, documents) * 768
    before = tokens * draw.normal(3.6, 0.3, documents)
    return before + tokens * draw.normal(-0.01, 0.03, documents), before, tokens


@pytest.mark.parametrize(("documents", "interval"), [(12, "t"), (29, "t"), (40, "bootstrap"), (200, "bootstrap")])
def test_few_documents_have_a_t_interval_and_many_a_bootstrap(documents: int, interval: str) -> None:
    """Which one it is follows from the effective number, and near the border the two agree."""
    found = paired_difference(*many(documents))
    assert found.interval == interval
    if interval == "bootstrap":
        after, before, tokens = many(documents)
        error = np.std((after - before - found.delta * tokens) / tokens.mean(), ddof=1) / math.sqrt(documents)
        assert found.low == pytest.approx(found.delta - 1.96 * error, abs=0.25 * error)
        assert found.high == pytest.approx(found.delta + 1.96 * error, abs=0.25 * error)


def test_a_bootstrap_is_the_same_every_time() -> None:
    """The resampling has a seed of its own: the same numbers give the same interval to the last bit."""
    assert paired_difference(*many(60)) == paired_difference(*many(60))


def test_a_bootstrap_of_skewed_documents_is_skewed() -> None:
    """A few documents that gain much pull the interval to their side, which no t interval can show."""
    draw = np.random.default_rng(3)
    change = -0.02 * draw.lognormal(0, 1.2, 80)
    found = paired_difference(768 * (3.5 + change), np.full(80, 768 * 3.5), np.full(80, 768))
    assert found.delta - found.low > 1.15 * (found.high - found.delta)


def test_documents_that_agree_to_the_last_digit_need_no_resampling() -> None:
    """The same difference everywhere is an interval of no width, for many documents as for few, without a warning."""
    for documents in (12, 60):
        before = np.full(documents, 2000.0)
        for change in (0.0, -8.0):
            found = paired_difference(before + change, before, np.full(documents, 800))
            assert found.low == pytest.approx(found.high)
            assert found.delta == pytest.approx(change / 800)


def test_many_documents_of_which_few_count_are_few() -> None:
    """Forty documents of which five hold nearly all the text say as much as five: they are judged by t."""
    tokens = np.array([100_000] * 5 + [1000] * 35)
    assert effective_documents(tokens) == pytest.approx(5.7, abs=0.1)
    before = tokens * 3.5
    assert paired_difference(before - 0.01 * tokens * np.arange(40), before, tokens).interval == "t"


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=60))
def test_the_effective_number_is_kishs(tokens: list[int]) -> None:
    """Between one and the number of documents; their number where all have one length; no matter in which unit."""
    found = effective_documents(np.array(tokens))
    assert found * (1 + 1e-12) >= 1
    assert found <= len(tokens) * (1 + 1e-12)
    assert found == pytest.approx(sum(tokens) ** 2 / sum(t * t for t in tokens))
    assert effective_documents(np.array(tokens) * 3) == pytest.approx(found)
    assert effective_documents(np.full(len(tokens), 768)) == pytest.approx(len(tokens))


@pytest.mark.parametrize(("documents", "interval"), [(29, "t"), (30, "bootstrap")])
def test_thirty_documents_are_many(documents: int, interval: str) -> None:
    """From as many effective documents on, the interval is resampled."""
    tokens, draw = np.full(documents, 768), np.random.default_rng(0)
    assert effective_documents(tokens) == documents
    assert paired_difference(draw.normal(size=documents), np.zeros(documents), tokens).interval == interval


# ------------------------------------------------------------------------------------------------ the verdict


def judged(
    beyond: Difference,
    within: Difference | None = None,
    *,
    documents: int = 12,
    point: Point = FOUND,
    objective: str = "beyond",
    guard: float = 0.005,
) -> tuple[str, str]:
    same = Difference(0.0, -0.001, 0.001, beyond.documents)
    differences = {"within": within or same, "beyond": beyond, "all": beyond}
    return verdict(differences, Objective.parse(objective, guard), documents, unchanged=point == DEFAULT)


GAIN = Difference(-0.05, -0.06, -0.04, 12)


@pytest.mark.parametrize("objective", ["beyond", "all", "last:128"])
def test_a_proved_gain_is_calibrated(objective: str) -> None:
    """An interval below zero on held-out text is a gain, and the sentence holds its numbers."""
    decision, reason = judged(GAIN, objective=objective)
    assert decision == "calibrated"
    assert "-0.0500" in reason
    assert "-0.0600 to -0.0400" in reason


@pytest.mark.parametrize(
    ("beyond", "said"),
    [
        (Difference(-0.05, -0.11, 0.01, 12), "not proved"),
        (Difference(-0.05, -0.10, 0.0, 12), "not proved"),
        (Difference(0.05, 0.04, 0.06, 12), "not proved"),
        (Difference(-0.05, -math.inf, math.inf, 1), "not proved"),
        (Difference(math.nan, math.nan, math.nan, 12), "not proved"),
    ],
)
def test_what_is_not_proved_is_the_default(beyond: Difference, said: str) -> None:
    """An interval that touches zero, a loss, a single document, or a loss that is no number: the default stands."""
    decision, reason = judged(beyond)
    assert decision == "default"
    assert said in reason


def test_few_documents_claim_nothing() -> None:
    """Below five calibration documents the default stands whatever the held-out text says, and the reason is given."""
    for documents in range(1, FEWEST_DOCUMENTS):
        for point in (FOUND, DEFAULT):
            decision, reason = judged(GAIN, documents=documents, point=point)
            assert decision == "default"
            assert f"{documents} calibration document" in reason
            assert "5 are needed" in reason
    assert judged(GAIN, documents=FEWEST_DOCUMENTS)[0] == "calibrated"


def test_a_search_that_found_nothing_says_so() -> None:
    """When the best point is the default itself, that is the reason."""
    decision, reason = judged(GAIN, point=DEFAULT)
    assert (decision, "nothing better" in reason) == ("default", True)


def test_a_gain_that_costs_too_much_within_the_original_length_is_refused() -> None:
    """A loss within L that is proved to exceed the guard undoes a gain beyond it; one that may not, does not."""
    costly = Difference(0.02, 0.01, 0.03, 12)
    decision, reason = judged(GAIN, costly)
    assert (decision, "+0.0200 nats within it" in reason) == ("default", True)
    assert judged(GAIN, costly, guard=0.02)[0] == "calibrated"
    assert judged(GAIN, Difference(0.004, -0.002, 0.01, 12))[0] == "calibrated"


RUNS = 400


def simulated(effect: float, documents: int, draw: np.random.Generator) -> str:
    """A calibration of synthetic documents whose true mean difference is `effect` standard errors."""
    tokens = draw.integers(1, 4, documents) * 768
    spread = 0.03
    true = effect * spread / math.sqrt(documents)
    before = tokens * draw.normal(3.6, 0.3, documents)
    after = before + tokens * draw.normal(true, spread, documents)
    beyond = paired_difference(after, before, tokens)
    within = paired_difference(before, before + tokens * draw.normal(0, spread, documents), tokens)
    return judged(beyond, within, documents=documents)[0]


@pytest.mark.parametrize("documents", [6, 12, 24, 48])
def test_without_a_true_difference_it_says_calibrated_in_at_most_one_run_of_twenty(
    documents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 synthetic runs in which nothing is better, by t and by bootstrap: at most 5 % claim that something is.

    A gain is claimed on one side of the interval alone, so one run in forty should. test_null.py has the search, too.
    """
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    draw = np.random.default_rng(documents)
    claims = sum(simulated(0.0, documents, draw) == "calibrated" for _ in range(RUNS))
    assert claims <= RUNS / 20


@pytest.mark.parametrize("documents", [12, 24, 48])
def test_a_true_difference_of_three_standard_errors_is_found_in_most_runs(
    documents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 synthetic runs with a gain of three standard errors: most find it, and none with as large a loss does."""
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    draw = np.random.default_rng(documents)
    assert sum(simulated(-3.0, documents, draw) == "calibrated" for _ in range(RUNS)) > 0.6 * RUNS
    assert sum(simulated(3.0, documents, draw) == "calibrated" for _ in range(RUNS)) == 0


def test_a_document_that_outweighs_all_others_proves_little() -> None:
    """The more one document weighs, the fewer the others count: the interval goes to everything, never to no number."""
    before, changes = np.array([3.0, 4.0, 5.0]), np.array([-0.02, -0.021, -0.019])
    reaches = []
    for weight in (1, 10, 100, 10**4, 10**9):
        tokens = np.array([weight, 1, 1]) * 768
        found = paired_difference(tokens * (before + changes), tokens * before, tokens)
        reaches.append((found.high - found.low) / 2 / abs(found.delta))
        assert not math.isnan(found.low)
    assert reaches[0] < 0.2
    assert reaches[-1] > reaches[0]
    few = paired_difference(tokens[:2] * (before + changes)[:2], tokens[:2] * before[:2], tokens[:2])
    assert not excludes_zero(few)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Over 2,000 synthetic runs with documents of unequal length the 95 % interval covers the truth 93 to 97 times."""
    draw = np.random.default_rng(7)
    covered = 0
    for _ in range(2000):
        tokens = draw.integers(1, 4, 12) * 768
        after = tokens * draw.normal(-0.01, 0.03, 12)
        found = paired_difference(after, np.zeros(12), tokens)
        covered += found.low <= -0.01 <= found.high
    assert 0.93 <= covered / 2000 <= 0.97
