"""`calibrate.sharing`: one ramp for several factors, on models whose best ramps are known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from calibrate.corpus import Corpus, Document
from calibrate.fit import Found, Prepared, Task
from calibrate.objective import Objective, Point, Space
from calibrate.score import Bands, Floats
from calibrate.sharing import Sharing, against_default_law, shared
from calibrate.trials import Budget, SearchStopped, Trials
from ropecli.frequencies import Frequencies
from ropecli.spec import RopeSpec

PLAIN = RopeSpec(10000.0, 32, 32, 256, 256)
OBJECTIVE = Objective.parse("beyond", 0.005)
FACTORS = (8.0, 4.0, 2.0)


@dataclass(frozen=True)
class Model:
    """A scorer whose loss rises with the distance from one ramp, in the logarithm of the frequencies, and from an m.

    noise  nats a token by which a document likes one table better than another
    """

    best: Frequencies
    bands: Bands
    noise: float = 0.0

    def __call__(self, table: Frequencies, documents: Sequence[Document]) -> Floats:
        far = float(np.sum((np.log(table.inv_freq) - np.log(self.best.inv_freq)) ** 2))
        nll = 3.0 + 0.02 * far + 4 * (table.attention_factor - self.best.attention_factor) ** 2
        seeds = [crc32(repr((table, document.name)).encode()) for document in documents]
        shifts = [self.noise * np.random.default_rng(seed).normal() for seed in seeds]
        return np.array([[(nll + shift) * width for width in self.bands.widths] for shift in shifts])


def found(factor: float, own: tuple[int, int], best: tuple[int, int], m: float, noise: float = 0.0) -> Found:
    """A fit of one factor that ended on its `own` corners, where those of `best` are the bottom."""
    space, length = Space(PLAIN, factor), round(256 * factor)
    documents = tuple(Document(f"d{i}", ((i,) * length,)) for i in range(16))
    bands = OBJECTIVE.bands(256, length)
    task = Task(
        space,
        length,
        bands,
        Corpus(documents, length, 0, 0, blocks=False, longest=length),
        documents[:8],
        documents[8:],
    )
    bottom = space.frequencies(Point(*best, m))
    trials = Trials(Model(bottom, bands, noise), task.found, space, OBJECTIVE, bands, Budget(), lambda *_: None)
    return Found(task, trials, Model(bottom, task.finer, noise), Point(*own, m), complete=True)


def prepared() -> Prepared:
    nothing: Any = None
    return Prepared(nothing, "default", PLAIN, nothing, (), OBJECTIVE, ())


def test_the_corners_that_all_like_are_found_and_their_temperatures_settled() -> None:
    """Searches that ended beside one bottom are moved onto the corners that cost least in all; each keeps an m."""
    founds = [
        found(s, own, (3, 8), m) for s, own, m in zip(FACTORS, [(3, 8), (3, 7), (4, 8)], [1.16, 1.1, 1.04], strict=True)
    ]
    sharing = shared(prepared(), founds)
    assert sharing.supported
    assert {f.point[:2] for f in sharing.founds} == {(3, 8)}
    assert [f.point.attention_factor for f in sharing.founds] == pytest.approx([1.16, 1.1, 1.04], abs=0.004)
    assert sharing.difference is not None
    assert sharing.difference.delta > 0
    assert "the corners 3 and 8: own ones are not proved better" in sharing.note


def test_own_corners_stay_where_held_out_text_proves_them_better() -> None:
    """Factors whose bottoms are far apart keep corners of their own, by an interval that excludes zero."""
    wanted = [(0, 4), (4, 9), (8, 11)]
    sharing = shared(prepared(), [found(s, own, own, 1.1, 0.001) for s, own in zip(FACTORS, wanted, strict=True)])
    assert not sharing.supported
    assert sharing.difference is not None
    assert sharing.difference.high < 0
    assert "each factor has corners of its own, which held-out text proves better" in sharing.note


def test_noise_is_no_reason_for_corners_of_ones_own() -> None:
    """Where the documents say now this and now that, one ramp is enough."""
    founds = [found(s, own, (3, 8), 1.1, 0.05) for s, own in zip(FACTORS, [(3, 8), (3, 9), (2, 8)], strict=True)]
    assert shared(prepared(), founds).supported


def test_searches_that_agree_are_left_as_they_are() -> None:
    """The same corners for every factor cost nothing to share."""
    founds = [found(s, (3, 8), (3, 8), 1.1) for s in FACTORS]
    sharing = shared(prepared(), founds)
    assert sharing == Sharing(tuple(founds), None)
    assert sharing.supported
    assert all(not f.trials.trials for f in founds)
    assert sharing.note == "the search found the same corners, 3 and 8, for every factor"


def test_a_spent_budget_stops_it() -> None:
    """No question is asked past the end; whoever called decides what stands."""
    founds = [found(s, own, (3, 8), 1.1) for s, own in zip(FACTORS, [(3, 8), (3, 7), (4, 8)], strict=True)]
    for each in founds:
        each.trials.budget = replace(each.trials.budget, max_evals=1)
    with pytest.raises(SearchStopped):
        shared(prepared(), founds)
    assert all(len(each.trials.trials) <= 1 for each in founds)


@pytest.mark.parametrize("like_yarn", [True, False])
def test_yarns_law_is_judged_at_the_corners_that_were_found(like_yarn: bool) -> None:
    """Models whose best temperatures are YaRN's do not reject it; those that want it cooler do, by what it costs."""
    best = [Space(PLAIN, s).default.attention_factor * (1 if like_yarn else 0.95) for s in FACTORS]
    founds = [found(s, (3, 8), (3, 8), m, noise=0.001) for s, m in zip(FACTORS, best, strict=True)]
    worth = against_default_law(prepared(), founds)
    assert (worth.high < 0) is not like_yarn
    costs = [4 * (m / 0.95 * 0.05) ** 2 * (round(256 * s) - 256) for s, m in zip(FACTORS, best, strict=True)]
    expected = 0.0 if like_yarn else -sum(costs) / sum(round(256 * s) - 256 for s in FACTORS)
    assert worth.delta == pytest.approx(expected, abs=0.002)
