"""What each search costs and finds, as the Markdown tables of the README.

    pip install -e ".[benchmarks]"
    python -m benchmarks.search_cost
    python -m benchmarks.search_cost MODEL --data FOLDER --factors 2 --documents 5 --seeds 1 --no-truth --device cuda

At each factor, on the same documents and from the same start, default YaRN: `ropecli calibrate`'s own search, the
optimisers of scipy as `--optimizer` runs them, TPE with a pruner (optuna), LongRoPE's genetic search, every cell of the
lattice (the truth), and `--tune factors`. The cost is counted in forward equivalents: one is a pass over all
calibration documents, a gradient is three. A seed draws 12 of the 24 calibration documents and seeds the search; the
other 12, and those of the held-out folder, are held out. Every score is kept in --folder, so a run that was cut off
goes on where it was. Without the truth the best of all searches stands in for it. Nothing is asserted: whether a target
is met is printed.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import genetic
from calibrate import polish, search
from calibrate.corpus import Document
from calibrate.fit import GRADIENT_COST, Prepared, Request, Task, find, scorer
from calibrate.gradient import SlopeOf, slope
from calibrate.journal import Journal, file_fingerprint
from calibrate.model import Settings
from calibrate.objective import Point, method
from calibrate.run import prepare
from calibrate.score import Floats, tokens_by_band
from calibrate.statistics import Difference, paired_difference
from calibrate.trials import Budget, NatsOf, Trials
from ropecli.frequencies import Frequencies, base_frequencies, frequencies

DATA = ("examples/text/calibration", "examples/text/heldout")
TEMPERATURES = {2.0: (1.04, 1.05, 1.02, 1.0), 4.0: (1.06, 1.1, 1.02, 0.98, 1.19, 0.94), 8.0: (1.1, 1.15, 1.05, 1.0)}
"""Factor → attention factors at which the exhaustive search scores the lattice, after the default."""
FAR, NEAR, BEST, REFINED, REFINEMENTS, STEP = 0.3, 0.15, 12, 3, 8, 0.02
"""The exhaustive search gives up on cells this many nats behind the best on three documents, or this many on all. So
many cells are scored at every temperature, and the temperature of so many is refined by so many trials, from such a
step on."""
TPE_TRIALS = 100
WITHIN, AT_MOST, FIFTIETH, EXTRA = 0.002, 15, 50, 110
OWN, TRUTH, GENETIC, FACTORS = "this search", "exhaustive", "genetic", "factors"


@dataclass(frozen=True, slots=True)
class Problem:
    """One factor and one draw of documents: what every search is given."""

    prepared: Prepared
    task: Task
    nats_of: NatsOf
    slope_of: SlopeOf
    seed: int
    found: tuple[Document, ...]
    held: tuple[Document, ...]

    def trials(self) -> Trials:
        """A loss that counts what it costs, and has forgotten all other searches."""
        task = self.task
        ignore = lambda *_: None  # noqa: E731
        return Trials(self.nats_of, self.found, task.space, self.prepared.objective, task.bands, Budget(), ignore)

    def loss(self, trials: Trials, table: Frequencies) -> float:
        """What is minimised, over all calibration documents, of any table."""
        space, bands = self.task.space, self.task.bands
        columns = self.prepared.objective.columns(bands, space.spec.original_length)
        count = len(self.found)
        default = trials.nats(space.frequencies(space.default), count)
        tokens = tokens_by_band(self.found, bands)
        return self.prepared.objective.value(trials.nats(table, count), default, tokens, columns)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a search ended, what it cost in passes, and its loss on all calibration documents as it went on."""

    table: Frequencies
    point: Point | None
    passes: float
    losses: tuple[tuple[float, float], ...]


def _outcome(problem: Problem, trials: Trials, point: Point) -> Outcome:
    total, spent, losses = int(tokens_by_band(problem.found, problem.task.bands).sum()), 0, []
    for trial in trials.trials:
        spent += trial.tokens
        if trial.documents == len(problem.found):
            losses.append((spent / total, trial.nll))
    return Outcome(problem.task.space.frequencies(point), point, trials.forward_equivalents, tuple(losses))


def by_the_tool(problem: Problem, optimizer: str) -> Outcome:
    """`ropecli calibrate --optimizer …`."""
    trials = problem.trials()
    request = Request("", (), optimizer=optimizer, seed=problem.seed)
    point, _ = find(request, trials, problem.task.space, len(problem.found))
    return _outcome(problem, trials, point)


def exhaustive(problem: Problem) -> Outcome:
    """Every cell of the lattice, then the temperature of all that could still win."""
    trials, space, count = problem.trials(), problem.task.space, len(problem.found)
    default = space.default
    second, *more = TEMPERATURES[space.factor]
    best: dict[tuple[int, int], tuple[float, Point]] = {}

    def look(cell: tuple[int, int], m: float) -> None:
        point = Point(*map(float, cell), m)
        best[cell] = min(best.get(cell, (np.inf, point)), (trials.loss(point, count), point))

    first = min(search.FEW_DOCUMENTS, count)
    few = {cell: trials.loss(default._replace(low=cell[0], high=cell[1]), first) for cell in space.cells(1)}
    for cell in [cell for cell, loss in few.items() if loss < min(few.values()) + FAR]:
        look(cell, default.attention_factor)
    least = min(best.values())[0]
    for cell in [cell for cell, (loss, _) in best.items() if loss < least + NEAR]:
        look(cell, second)
    for cell in sorted(best, key=best.__getitem__)[:BEST]:
        for m in more:
            look(cell, m)
    ends = [
        search.temperature(trials.loss, space, point, count, step=STEP, trials=REFINEMENTS)
        for _, point in sorted(best.values())[:REFINED]
    ]
    return _outcome(problem, trials, min(ends, key=lambda point: trials.loss(point, count)))


def tree_parzen(problem: Problem) -> Outcome:
    """optuna's TPE on whole corners and the temperature; its median pruner sees the loss after every document."""
    import optuna  # noqa: PLC0415 - an extra of its own

    trials, space, count = problem.trials(), problem.task.space, len(problem.found)

    def objective(trial: optuna.Trial) -> float:
        low, high = (trial.suggest_int(name, *bounds) for name, bounds in corners.items())
        m = trial.suggest_float("attention_factor", *space.factor_bounds)
        if not space.allows(low, high):
            raise optuna.TrialPruned
        point = Point(float(low), float(high), m)
        for documents in range(1, count + 1):
            loss = trials.loss(point, documents)
            trial.report(loss, documents)
            if documents < count and trial.should_prune():
                raise optuna.TrialPruned
        return loss

    corners = {"low": space.low_bounds, "high": space.high_bounds}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=problem.seed), pruner=optuna.pruners.MedianPruner(n_warmup_steps=1)
    )
    start = space.default
    study.enqueue_trial({"low": int(start.low), "high": int(start.high), "attention_factor": start.attention_factor})
    study.optimize(objective, n_trials=TPE_TRIALS)
    found = study.best_params
    return _outcome(problem, trials, Point(float(found["low"]), float(found["high"]), found["attention_factor"]))


def longrope(problem: Problem) -> Outcome:
    """LongRoPE's genetic search for the divisors, with the temperature of default YaRN."""
    trials, space = problem.trials(), problem.task.space
    base = np.array(base_frequencies(space.spec.rope_theta, space.spec.rotary_dim))
    m, losses = space.default.attention_factor, []

    def table(divisors: Floats) -> Frequencies:
        return Frequencies(tuple((base / divisors).tolist()), m)

    def loss(divisors: Floats) -> float:
        value = problem.loss(trials, table(divisors))
        losses.append((trials.forward_equivalents, value))
        return value

    starts = [
        base / np.array(frequencies(method(n, space.spec, space.factor)).inv_freq) for n in ("linear", "ntk", "yarn")
    ]
    found = genetic.search(loss, starts, space.factor, problem.seed)
    return Outcome(table(found), None, trials.forward_equivalents, tuple(losses))


def divisors(problem: Problem) -> Outcome:
    """`--tune factors`: this search, then the exact slope."""
    own = run(OWN, problem)
    task = problem.task
    spec = replace(problem.prepared.plain, scaling=task.space.scaling(own.point), max_length=task.length)
    quiet: Callable[[str], None] = lambda _: None  # noqa: E731
    finer = polish.divisors(
        problem.slope_of,
        task.space,
        spec,
        problem.found,
        task.bands,
        problem.prepared.objective,
        quiet,
        lambda: False,
    )
    return Outcome(frequencies(finer.spec), None, own.passes + GRADIENT_COST * finer.gradients, ())


SEARCHES: dict[str, Callable[[Problem], Outcome]] = {
    TRUTH: exhaustive,
    OWN: functools.partial(by_the_tool, optimizer="auto"),
    FACTORS: divisors,
    "nelder-mead": functools.partial(by_the_tool, optimizer="nelder-mead"),
    "powell": functools.partial(by_the_tool, optimizer="powell"),
    "cobyqa": functools.partial(by_the_tool, optimizer="cobyqa"),
    "tpe": tree_parzen,
    "differential-evolution": functools.partial(by_the_tool, optimizer="differential-evolution"),
    GENETIC: longrope,
}
HEAD = (
    "search",
    "draws",
    "forward equivalents",
    "calibration loss above the {reference}",
    "held out, against default YaRN (95 %)",
    "held out, this search against it (95 %)",
)
RIVALS = tuple(name for name in SEARCHES if name not in {TRUTH, OWN})
SLOW = ("differential-evolution", GENETIC)


def run(name: str, problem: Problem) -> Outcome:
    """One search, with a line on standard error."""
    began = time.monotonic()
    outcome = SEARCHES[name](problem)
    seconds = time.monotonic() - began
    print(f"factor {problem.task.space.factor:g}, draw {problem.seed}, {name}: {seconds:.0f} s", file=sys.stderr)
    return outcome


@dataclass(frozen=True, slots=True)
class Result:
    """What the tables need of one search on one draw: loss is on the calibration documents."""

    outcome: Outcome
    loss: float
    held: Floats
    default: Floats
    tokens: Floats

    @property
    def gain(self) -> Difference:
        """Held-out loss beyond L against default YaRN's."""
        return paired_difference(self.held, self.default, self.tokens)

    def against(self, other: "Result") -> Difference:
        """Held-out loss beyond L against another search's on the same draw."""
        return paired_difference(self.held, other.held, self.tokens)


def measure(name: str, problem: Problem) -> Result:
    """Run a search and look at the held-out documents, once."""
    outcome = run(name, problem)
    space, bands, held = problem.task.space, problem.task.bands, problem.held
    beyond = np.array(bands.edges[:-1]) >= space.spec.original_length
    after, before = (
        problem.nats_of(table, held)[:, beyond].sum(axis=1)
        for table in (outcome.table, space.frequencies(space.default))
    )
    tokens = tokens_by_band(held, bands)[:, beyond].sum(axis=1)
    return Result(outcome, problem.loss(problem.trials(), outcome.table), after, before, tokens)


def draw(
    documents: Sequence[Document], folder: str, count: int, seed: int
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """(calibration documents out of the folder in the order of the search, held-out documents)."""
    pool = [document for document in documents if document.name.startswith(folder)]
    found = tuple(random.Random(seed).sample(pool, count))  # noqa: S311 - a draw, not a secret
    return found, tuple(document for document in documents if document not in found)


def middle(differences: Sequence[Difference]) -> str:
    """The median draw's difference with its interval."""
    chosen = sorted(differences, key=lambda difference: difference.delta)[(len(differences) - 1) // 2]
    return f"{chosen.delta:+.4f} ({chosen.low:+.4f} to {chosen.high:+.4f})"


def least(results: dict[str, dict[int, Result]], seed: int) -> float:
    """What losses are compared with: the truth's, or without one the least that a search of ramps found."""
    if TRUTH in results:
        return results[TRUTH][seed].loss
    return min(draws[seed].loss for name, draws in results.items() if name != FACTORS and seed in draws)


def table(results: dict[str, dict[int, Result]]) -> str:
    """The Markdown table of one factor."""
    own = results[OWN]
    head = " | ".join(HEAD).format(reference="truth" if TRUTH in results else "best")
    lines = [head, " | ".join("---" for _ in HEAD)]
    for name, draws in results.items():
        passes = statistics.median(result.outcome.passes for result in draws.values())
        above = statistics.median(result.loss - least(results, seed) for seed, result in draws.items())
        ahead = "" if name == OWN else middle([own[seed].against(result) for seed, result in draws.items()])
        gain = middle([result.gain for result in draws.values()])
        lines.append(" | ".join([name, str(len(draws)), f"{passes:,.1f}", f"{above:+.4f}", gain, ahead]))
    return "\n".join(f"| {line} |" for line in lines)


def near_truth(results: dict[str, dict[int, Result]]) -> str:
    """The first target: close to the truth for little."""
    above = [result.loss - least(results, seed) for seed, result in results[OWN].items()]
    cost = [result.outcome.passes for result in results[OWN].values()]
    gap, passes = statistics.median(above), statistics.median(cost)
    reference = "truth" if TRUTH in results else "best"
    return (
        f"- within {WITHIN:g} nats of the {reference} in at most {AT_MOST} forward equivalents: "
        f"{_word(gap <= WITHIN and passes <= AT_MOST)}; {gap:+.4f} in {passes:.1f} (medians), "
        f"{max(above):+.4f} and {max(cost):.1f} at worst"
    )


def against_genetic(results: dict[str, dict[int, Result]]) -> str:
    """The second target: how much sooner this search reaches the genetic search's final loss."""
    shares = []
    for seed, other in results[GENETIC].items():
        reached = [passes for passes, loss in results[OWN][seed].outcome.losses if loss <= other.loss]
        shares.append(other.outcome.passes / reached[0] if reached else 0.0)
    share = statistics.median(shares)
    found = f"reached in 1/{share:.0f} of it" if share else "not reached"
    return f"- the genetic search's final loss in a fiftieth of its cost: {_word(share >= FIFTIETH)}; {found}"


def ahead_of_all(results: dict[str, dict[int, Result]]) -> str:
    """The third target: held-out text."""
    rivals = [name for name in results if name not in (OWN, TRUTH, FACTORS)]
    medians = {
        name: statistics.median(results[OWN][seed].against(result).delta for seed, result in results[name].items())
        for name in rivals
    }
    behind = [f"behind {name} by {delta:.4f} nats" for name, delta in medians.items() if delta >= 0]
    return "; ".join([f"- on held-out text ahead of every one of them: {_word(not behind)}", *behind])


def factors_ahead(results: dict[str, dict[int, Result]]) -> str:
    """The fourth target: what per-pair divisors add."""
    own, finer = results[OWN], results[FACTORS]
    gains = [result.against(own[seed]) for seed, result in finer.items()]
    extra = statistics.median(result.outcome.passes - own[seed].outcome.passes for seed, result in finer.items())
    proved = sum(gain.high < 0 for gain in gains)
    return (
        f"- `factors` ahead of `yarn` by an interval that excludes zero, for at most {EXTRA} more: "
        f"{_word(2 * proved > len(gains) and extra <= EXTRA)}; {middle(gains)} nats for {extra:.0f} more; "
        f"the interval excludes zero in {proved} of {len(gains)} draws"
    )


def _word(met: bool) -> str:
    return "met" if met else "missed"


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", default="examples/tiny")
    with_truth = ", ".join(f"{factor:g}" for factor in TEMPERATURES)
    options.add_argument("--factors", default="4,8", help=f"of {with_truth}; with --no-truth any; default: %(default)s")
    options.add_argument("--seeds", type=int, default=5, help="draws of documents, each with a seed of its own")
    options.add_argument("--first-seed", type=int, default=0, help="so that processes can share the draws")
    options.add_argument("--slow-seeds", type=int, help=f"draws for {' and '.join(SLOW)}; default: as many")
    options.add_argument("--documents", type=int, default=12, help="calibration documents of a draw")
    options.add_argument("--searches", default=",".join(RIVALS), help=f"beside {OWN}; default: %(default)s")
    options.add_argument("--device", default="cpu", help="default: %(default)s")
    options.add_argument("--at-once", type=int, default=1, help="documents; with one its score is that in all draws")
    options.add_argument("--data", action="append", help=f"the first is drawn from; default: {' '.join(DATA)}")
    options.add_argument("--truth", action=argparse.BooleanOptionalAction, default=True)
    options.add_argument("--folder", type=Path, default=Path("build/search_cost"), help="where scores are kept")
    given = options.parse_args()
    slow = given.seeds if given.slow_seeds is None else min(given.slow_seeds, given.seeds)
    asked = [name for name in given.searches.split(",") if name in RIVALS and (slow or name not in SLOW)]
    given.folder.mkdir(parents=True, exist_ok=True)
    factors = tuple(float(factor) for factor in given.factors.split(","))
    if given.truth and not set(factors) <= set(TEMPERATURES):
        options.error(f"--factors: the truth is known for {with_truth} alone; add --no-truth")
    # the attention is named, for the one that is picked otherwise is not the same on every processor
    settings = Settings(device=given.device, attn_implementation="sdpa")
    data = tuple(given.data or DATA)
    prepared = prepare(Request(given.model, data, factors=factors, windows=1, settings=settings))
    for task in reversed(prepared.tasks):
        factor = task.space.factor
        weights = [file_fingerprint(file) for file in sorted(Path(given.model).glob("*.safetensors"))]
        texts = [source.sha256 for source in prepared.sources]
        identity = {"weights": weights, "texts": texts, "dtype": prepared.loaded.dtype, "torch": torch.__version__}
        if prepared.loaded.device.type == "cuda":
            identity["device"] = torch.cuda.get_device_name(prepared.loaded.device)
        place = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
        journal = Journal(given.folder / f"s{factor:g}-{place}.journal", identity, resume=True)
        with contextlib.closing(journal):
            nats_of = journal.remembering(scorer(prepared.loaded, prepared.layer, task.bands), given.at_once)
            slope_of = journal.remembering_slopes(functools.partial(slope, prepared.loaded, prepared.layer), 1)
            drawn = functools.partial(draw, task.corpus.documents, data[0], given.documents)
            problems = [
                Problem(prepared, task, nats_of, slope_of, seed, *drawn(seed))
                for seed in range(given.first_seed, given.first_seed + given.seeds)
            ]
            results = {
                name: {problem.seed: measure(name, problem) for problem in problems[: slow if name in SLOW else None]}
                for name in (*([TRUTH] if given.truth else []), OWN, *asked)
            }
        lines = [near_truth(results)]
        if set(results) - {TRUTH, OWN, FACTORS}:
            lines.append(ahead_of_all(results))
        if GENETIC in results:
            lines.append(against_genetic(results))
        if FACTORS in results:
            lines.append(factors_ahead(results))
        print(
            f"\nFactor {factor:g}, windows of {task.length} tokens:\n\n{table(results)}\n", *lines, sep="\n", flush=True
        )


if __name__ == "__main__":
    main()
