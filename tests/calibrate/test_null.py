"""A null result is a result: the real search, its winner's curse and all, the real held-out check, the real verdict.

Documents are synthetic: each one likes some tables better than others, by chance. A search on some of them always finds
a table that is better there. Only where tables differ in truth may the verdict on the other documents say so.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from calibrate import statistics
from calibrate.corpus import Document
from calibrate.fit import Request, find
from calibrate.objective import Objective, Space
from calibrate.score import Floats, tokens_by_band
from calibrate.statistics import MANY_DOCUMENTS, paired_difference
from calibrate.trials import Budget, Trials
from calibrate.verdict import verdict
from ropecli.frequencies import Frequencies
from ropecli.spec import RopeSpec

RUNS = 400
SPACE = Space(RopeSpec(10000.0, 32, 32, 256, 256), 4.0)
OBJECTIVE = Objective("beyond")
BANDS = OBJECTIVE.bands(256, 1024)
WITHIN, BEYOND = BANDS.widths
M, COOLER = SPACE.default.attention_factor, 1.0
SPREAD = 0.011
"""Standard deviation of the difference of two tables over documents, nats a token: that of the tiny model's text."""


def scorer(seed: int, documents: int, gain: Callable[[Frequencies], float]) -> Callable[..., Floats]:
    """Nats [documents, bands]: what documents are like, what a table is truly worth beyond L, and chance."""
    own = np.random.default_rng([seed, 0]).normal(3.6, 0.3, documents)
    known: dict[Frequencies, Floats] = {}

    def nats_of(table: Frequencies, texts: Sequence[Document]) -> Floats:
        if table not in known:
            chance = np.random.default_rng([seed, zlib.crc32(repr(table).encode())])
            # half of the variance of a difference each
            liked = chance.normal(0, SPREAD / np.sqrt(2), (documents, 2))
            known[table] = own[:, None] + liked - [0.0, gain(table)]
        chosen = [int(text.name) for text in texts]
        windows = np.array([len(text.windows) for text in texts])
        return known[table][chosen] * windows[:, None] * np.array([WITHIN, BEYOND])

    return nats_of


def run(seed: int, count: int, gain: Callable[[Frequencies], float], tune: str) -> tuple[str, float]:
    """(decision, true gain of what the search found) with so many documents to search on, and as many held out."""
    windows = np.random.default_rng([seed, 1]).integers(1, 4, 2 * count)
    texts = [Document(str(i), ((0,) * 1024,) * int(n)) for i, n in enumerate(windows)]
    searched, held = texts[:count], texts[count:]
    nats_of = scorer(seed, 2 * count, gain)
    trials = Trials(nats_of, searched, SPACE, OBJECTIVE, BANDS, Budget(), lambda *_: None)
    point, _ = find(Request("", (), tune=tune), trials, SPACE, count)  # type: ignore[arg-type]
    table, default = SPACE.frequencies(point), SPACE.frequencies(SPACE.default)
    after, before, tokens = nats_of(table, held), nats_of(default, held), tokens_by_band(held, BANDS)
    differences = {
        name: paired_difference(after[:, i], before[:, i], tokens[:, i]) for i, name in enumerate(("within", "beyond"))
    }
    decision, _ = verdict(differences, OBJECTIVE, count, unchanged=point == SPACE.default)
    return decision, gain(table)


@pytest.mark.parametrize(("count", "tune"), [(8, "yarn"), (8, "temperature"), (40, "temperature")])
def test_where_nothing_is_better_it_says_calibrated_in_at_most_one_run_of_twenty(
    count: int, tune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 calibrations of documents on which all tables are worth the same, judged by t and by bootstrap.

    A gain is claimed on one side of a 95 % interval: by chance ten of 400 runs do, and more than twenty have a chance
    of one in 500.
    """
    assert stats.binom.sf(RUNS / 20, RUNS, 0.025) < 1 / 500
    assert (count >= 1.2 * MANY_DOCUMENTS) == (count == 40)
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    decisions = [run(seed, count, lambda _: 0.0, tune)[0] for seed in range(RUNS)]
    assert decisions.count("calibrated") <= RUNS / 20
    assert decisions.count("default") == RUNS - decisions.count("calibrated")


@pytest.mark.parametrize(("count", "tune"), [(8, "yarn"), (8, "temperature"), (40, "temperature")])
def test_a_true_gain_of_three_standard_errors_is_found_in_most_runs(
    count: int, tune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 calibrations where cooler tables are better by three standard errors of the held-out mean."""
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    error = SPREAD / np.sqrt(count * 24 / 28)  # windows of 1, 2 and 3 a document: so many effective documents

    def gain(table: Frequencies) -> float:
        return 3 * error * (1 - ((table.attention_factor - COOLER) / (M - COOLER)) ** 2)

    assert gain(SPACE.frequencies(SPACE.default)) == 0
    results = [run(seed, count, gain, tune) for seed in range(RUNS)]
    found = [true for decision, true in results if decision == "calibrated"]
    assert len(found) > RUNS / 2
    assert sum(true > 0 for true in found) > 0.97 * len(found)
