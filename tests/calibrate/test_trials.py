"""`calibrate.trials`: every question is remembered, nothing is scored twice, and the budget is kept."""

import math
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrate.corpus import Document
from calibrate.objective import Objective, Point, Space
from calibrate.score import Floats
from calibrate.search import race
from calibrate.trials import Budget, SearchStopped, Trial, Trials
from ropecli.errors import Inconclusive
from ropecli.frequencies import Frequencies
from ropecli.spec import RopeSpec

SPACE = Space(RopeSpec(10000.0, 32, 32, 256, 256), 4.0)
OBJECTIVE = Objective("beyond", 0, 0.005)
BANDS = OBJECTIVE.bands(256, 1024)
DOCUMENTS = tuple(Document(f"d{i}", ((i,) * 1024,) * (i + 1)) for i in range(4))
WINDOWS = 1 + 2 + 3 + 4
DEFAULT = SPACE.default


class Model:
    """A scorer with a loss beyond L for every table; it counts what it is asked for."""

    def __init__(self, nll: Callable[[Frequencies], float] = lambda table: 3.0 + abs(table.attention_factor - 1.1)):
        self.nll = nll
        self.scored: list[tuple[Frequencies, str]] = []

    def __call__(self, table: Frequencies, documents: Sequence[Document]) -> Floats:
        self.scored += [(table, document.name) for document in documents]
        within, beyond = BANDS.widths
        rows = [[len(d.windows) * within * 3.0, len(d.windows) * beyond * self.nll(table)] for d in documents]
        return np.array(rows).reshape(-1, 2)


def trials_of(model: Model, seen: list[Any] | None = None, **budget: Any) -> Trials:
    observe = (lambda *told: seen.append(told)) if seen is not None else (lambda *_: None)
    return Trials(model, DOCUMENTS, SPACE, OBJECTIVE, BANDS, Budget(**budget), observe)


def at(m: float, low: float = 0, high: float = 7) -> Point:
    return Point(low, high, m)


def test_the_loss_is_the_objective_over_the_first_documents() -> None:
    """The value is the loss a token over the positions beyond L, whatever the number of documents."""
    trials = trials_of(Model())
    for documents in (1, 2, 4):
        assert trials.loss(at(1.3), documents) == pytest.approx(3.2)


def test_documents_weigh_as_much_as_they_hold() -> None:
    """The loss over documents of different length is the sum of nats over the sum of tokens."""

    def nats_of(_: Frequencies, documents: Sequence[Document]) -> Floats:
        return np.array([[0.0, len(d.windows) * 768.0 * int(d.name[1:])] for d in documents])

    trials = Trials(nats_of, DOCUMENTS, SPACE, OBJECTIVE, BANDS, Budget(), lambda *_: None)
    assert trials.loss(DEFAULT, 4) == pytest.approx((1 * 0 + 2 * 1 + 3 * 2 + 4 * 3) / WINDOWS)
    assert trials.loss(DEFAULT, 2) == pytest.approx((1 * 0 + 2 * 1) / 3), "what is known of more documents is left out"


def test_nothing_is_scored_twice() -> None:
    """A table meets each document once: asked again, on fewer documents or on more, only new documents are scored."""
    model = Model()
    trials = trials_of(model)
    for documents in (2, 2, 1, 4, 3):
        trials.loss(at(1.3), documents)
        trials.loss(DEFAULT, documents)
    assert len(model.scored) == len(set(model.scored)) == 2 * 4
    race(trials.loss, SPACE, 4)
    assert len(model.scored) == len(set(model.scored))


def test_two_points_with_one_table_are_one() -> None:
    """Corners beyond the last pair make no difference: such a point costs nothing."""
    model = Model()
    trials = trials_of(model)
    same = at(1.2, 15, 16), at(1.2, 15, 20)
    assert SPACE.frequencies(same[0]) == SPACE.frequencies(same[1])
    assert trials.loss(same[0], 4) == trials.loss(same[1], 4)
    assert len(model.scored) == 2 * 4


def test_costs_are_counted_in_tokens_and_passes() -> None:
    """A forward equivalent is one pass over all documents; the default's own scores, which the guard needs, count."""
    trials = trials_of(Model())
    one = 1023
    trials.loss(DEFAULT, 1)
    assert (trials.scored_tokens, trials.evaluations) == (one, 1)
    trials.loss(at(1.3), 4)
    assert trials.scored_tokens == one * (2 * WINDOWS)
    assert trials.forward_equivalents == pytest.approx(2.0)
    trials.loss(at(1.3), 2)
    assert trials.evaluations == 2
    assert [trial.tokens for trial in trials.trials] == [one, one * (2 * WINDOWS - 1), 0]
    assert sum(trial.tokens for trial in trials.trials) == trials.scored_tokens


def test_the_best_is_among_those_that_saw_the_most() -> None:
    """A low loss on few documents does not beat a trial on more of them."""
    trials = trials_of(Model())
    trials.loss(at(1.1), 1)
    assert trials.best().point == at(1.1)
    trials.loss(DEFAULT, 4)
    assert trials.best().point == DEFAULT
    trials.loss(at(1.12), 4)
    assert trials.best().point == at(1.12)
    trials.loss(at(1.1), 3)
    assert trials.best().point == at(1.12)


def test_the_observer_is_told_every_trial_and_the_best() -> None:
    """Each new question is told with the best so far and the passes done; a known answer is not told again."""
    seen: list[tuple[Trial, Trial, float]] = []
    trials = trials_of(Model(), seen)
    for m in (1.3, 1.2, 1.4, 1.2):
        trials.loss(at(m), 4)
    assert [told[0].point.attention_factor for told in seen] == [1.3, 1.2, 1.4]
    assert [told[1].point.attention_factor for told in seen] == [1.3, 1.2, 1.2]
    assert [told[2] for told in seen] == pytest.approx([2.0, 3.0, 4.0])
    assert [told[0] for told in seen] == trials.trials


# ------------------------------------------------------------------------------------------------ the budget


def test_so_many_evaluations_and_no_more() -> None:
    """The question after the last paid one is refused; what is known is still answered."""
    trials = trials_of(Model(), max_evals=3)
    for m in (1.3, 1.2, 1.4):
        trials.loss(at(m), 2)
    assert trials.evaluations == 3
    with pytest.raises(SearchStopped):
        trials.loss(at(1.5), 1)
    assert trials.loss(at(1.2), 2) == pytest.approx(3.1)
    assert trials.evaluations == 3


def test_what_costs_nothing_does_not_count() -> None:
    """A question whose scores are all known is no evaluation."""
    trials = trials_of(Model(), max_evals=2)
    trials.loss(at(1.3), 4)
    for documents in (1, 2, 3):
        trials.loss(at(1.3), documents)
    trials.loss(at(1.2), 1)
    assert trials.evaluations == 2


def test_time_runs_out() -> None:
    """When the seconds are over the next question is refused."""
    trials = trials_of(Model(), time_limit=60.0, began=time.monotonic() - 59.0)
    trials.loss(DEFAULT, 1)
    trials = trials_of(Model(), time_limit=60.0, began=time.monotonic() - 61.0)
    trials.loss(DEFAULT, 1)
    with pytest.raises(SearchStopped):
        trials.loss(at(1.3), 1)


def test_the_first_question_is_always_answered() -> None:
    """Loading can take the whole time limit, and Ctrl-C can come early: there is always one trial to stand on."""
    trials = trials_of(Model(), time_limit=0.0, max_evals=0)
    trials.stopped = True
    assert trials.loss(DEFAULT, 1) > 3
    assert trials.best().point == DEFAULT
    with pytest.raises(SearchStopped):
        trials.loss(at(1.3), 1)


def test_seconds_are_those_of_the_trials_and_end_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a clock that goes on by a second a document: a trial has the seconds of its own scores."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("calibrate.trials.time", clock)

    def nats_of(table: Frequencies, documents: Sequence[Document]) -> Floats:
        clock.now += len(documents)
        return Model()(table, documents)

    budget = Budget(time_limit=8.0, began=0.0)
    trials = Trials(nats_of, DOCUMENTS, SPACE, OBJECTIVE, BANDS, budget, lambda *_: None)
    trials.loss(DEFAULT, 1)
    trials.loss(at(1.3), 4)
    assert [trial.seconds for trial in trials.trials] == [1.0, 3.0 + 4.0]
    assert trials.seconds == budget.seconds == 8.0
    with pytest.raises(SearchStopped):
        trials.loss(at(1.2), 1)


def test_it_stops_with_the_other_processes() -> None:
    """What one process of a run wants all of them do; it is told what this one wants."""
    told: list[bool] = []

    def agreed(mine: bool) -> bool:
        told.append(mine)
        return len(told) > 1

    trials = Trials(Model(), DOCUMENTS, SPACE, OBJECTIVE, BANDS, Budget(), lambda *_: None, agreed)
    trials.loss(DEFAULT, 1)
    trials.loss(at(1.3), 1)
    with pytest.raises(SearchStopped):
        trials.loss(at(1.2), 1)
    assert told == [False, False]


def test_stopped_is_stopped() -> None:
    """Once stopped, every question that costs something is refused."""
    trials = trials_of(Model())
    trials.loss(DEFAULT, 1)
    trials.stopped = True
    with pytest.raises(SearchStopped):
        trials.loss(DEFAULT, 2)


def test_settling_is_answered_out_of_the_reserve() -> None:
    """A search stops early enough to leave its reserve; settling is answered however much is spent."""
    trials = trials_of(Model(), max_evals=5)
    trials.reserve = 3
    for m in (1.3, 1.2):
        trials.loss(at(m), 2)
    with pytest.raises(SearchStopped):
        trials.loss(at(1.5), 2)
    for m in (1.5, 1.6, 1.7):
        trials.loss(at(m), 2, settling=True)
    assert trials.evaluations == 5


# ------------------------------------------------------------------------------------------------ no number


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_the_worst(broken: float) -> None:
    """A point whose loss is NaN or infinite is never the best, and the search goes on."""
    trials = trials_of(Model(lambda table: broken if table.attention_factor > 1.2 else 3.0))
    assert trials.loss(DEFAULT, 4) == 3.0
    assert trials.loss(at(1.3), 4) == trials.loss(at(1.3), 1) == math.inf
    assert trials.loss(at(1.15), 4) == 3.0
    assert trials.best().nll == 3.0
    assert race(trials.loss, SPACE, 4).attention_factor <= 1.2


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_default_without_a_loss_is_inconclusive(broken: float) -> None:
    """When default YaRN itself has no finite loss there is nothing to compare with."""
    for documents in (1, 4):
        with pytest.raises(Inconclusive, match="not a finite number"):
            trials_of(Model(lambda _: broken)).loss(DEFAULT, documents)


def test_the_guard_is_part_of_the_loss() -> None:
    """A point that is worse within L by more than the guard pays for it, on the same documents."""

    def nats_of(table: Frequencies, documents: Sequence[Document]) -> Floats:
        within = 3.2 if table.attention_factor > 1.2 else 3.0
        return np.array([[255 * within, 768 * 3.0] for _ in documents])

    few = tuple(Document(f"d{i}", ((i,) * 1024,)) for i in range(4))
    trials = Trials(nats_of, few, SPACE, OBJECTIVE, BANDS, Budget(), lambda *_: None)
    assert trials.loss(DEFAULT, 3) == pytest.approx(3.0)
    assert trials.loss(at(1.3), 3) == pytest.approx(3.0 + 10 * (0.2 - 0.005))
