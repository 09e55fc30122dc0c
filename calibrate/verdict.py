"""What a search is worth: losses on held-out documents, paired by document, and the decision."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calibrate.calibration import ByPosition, Validation
from calibrate.corpus import Document
from calibrate.fence import as_loaded
from calibrate.objective import Objective, Space, method
from calibrate.score import Bands, Counts, Floats, perplexity, tokens_by_band
from calibrate.statistics import Difference, effective_documents, paired_difference, standard_error
from calibrate.trials import NatsOf
from ropecli.frequencies import Frequencies
from ropecli.spec import RopeSpec

BASELINES = ("none", "linear", "ntk", "ntk-by-parts")

TABLES = len(BASELINES) + 2
"""Tables that the held-out check scores: every baseline, default YaRN and the result."""

FEWEST_DOCUMENTS = 5
"""With fewer calibration documents nothing is claimed: one document can make a model worse."""


def validate(
    nats_of: Callable[[Frequencies, Sequence[Document]], Floats],
    documents: Sequence[Document],
    space: Space,
    table: Frequencies,
    bands: Bands,
    stage: Callable[[str], None],
) -> tuple[tuple[Validation, ...], Mapping[str, Difference], ByPosition]:
    """Score the held-out documents once for every baseline and the result: within L, beyond it, over all, by position.

    L is one of the edges of `bands`.
    """
    named = {name: as_loaded(method(name, space.spec, space.factor)) for name in (*BASELINES, "yarn")}
    nats: dict[Frequencies, Floats] = {}
    for name, wanted in [*named.items(), ("the result", table)]:
        if wanted not in nats:
            stage(f"held-out check: {name}")
            nats[wanted] = nats_of(wanted, documents)
    counts = tokens_by_band(documents, bands)
    starts = np.array(bands.edges[:-1])
    positions = {
        "within": starts < space.spec.original_length,
        "beyond": starts >= space.spec.original_length,
        "all": starts > 0,
    }
    rows, differences = [], {}
    for name, chosen in positions.items():
        tokens = counts[:, chosen].sum(axis=1)
        total = int(tokens.sum())
        before, after = nats[named["yarn"]][:, chosen].sum(axis=1), nats[table][:, chosen].sum(axis=1)
        difference = differences[name] = paired_difference(after, before, tokens)
        default_nll, nll = float(before.sum() / total), float(after.sum() / total)
        baselines = {key: float(nats[named[key]][:, chosen].sum() / total) for key in BASELINES}
        against = {key: paired_difference(nats[named[key]][:, chosen].sum(axis=1), before, tokens) for key in BASELINES}
        rows.append(
            Validation(
                space.factor,
                bands.edges[-1],
                name,
                len(documents),
                total,
                default_nll,
                nll,
                difference.delta,
                (difference.low, difference.high),
                perplexity(default_nll),
                perplexity(nll),
                baselines,
                round(effective_documents(tokens), 3),
                difference.interval,
                differences={key: (value.delta, value.low, value.high) for key, value in against.items()},
            )
        )
    shown = {**{name: nats[named[name]] for name in named}, "result": nats[table]}
    return tuple(rows), differences, by_position(space.factor, bands, shown, counts)


def by_position(factor: float, bands: Bands, nats: Mapping[str, Floats], tokens: Counts) -> ByPosition:
    """Loss by position of every method from nats and tokens [documents, bands]; `yarn` and `result` are among them."""

    def errors(sums: Floats) -> tuple[float, ...]:
        return tuple(standard_error(sums[:, i], tokens[:, i]) for i in range(len(bands.widths)))

    def means(sums: Floats) -> tuple[float, ...]:
        return tuple((sums.sum(axis=0) / tokens.sum(axis=0)).tolist())

    with np.errstate(invalid="ignore"):  # ∞ − ∞ is no number, and is written as none
        changes = {name: sums - nats["yarn"] for name, sums in nats.items() if name != "yarn"}
    return ByPosition(
        factor,
        bands.edges[-1],
        bands.edges,
        {name: means(sums) for name, sums in nats.items()},
        {name: errors(sums) for name, sums in nats.items()},
        {name: means(sums) for name, sums in changes.items()},
        {name: errors(sums) for name, sums in changes.items()},
    )


def finer_if_proved(
    nats_of: NatsOf,
    documents: Sequence[Document],
    yarn: RopeSpec,
    finer: RopeSpec,
    bands: Bands,
    objective: Objective,
) -> tuple[RopeSpec, str]:
    """The divisors only where held-out text proves them better than the YaRN that they came from; and a note of it."""
    target, _ = objective.columns(bands, yarn.original_length)
    after, before = (nats_of(as_loaded(spec), documents)[:, target].sum(axis=1) for spec in (finer, yarn))
    gain = paired_difference(after, before, tokens_by_band(documents, bands)[:, target].sum(axis=1))
    span = f"against YaRN {gain.in_words}"
    if not gain.high < 0:
        return yarn, f"a divisor for each pair is not proved better on held-out text: {span}"
    return finer, f"a divisor for each pair is better on held-out text: {span}"


def judged(differences: Mapping[str, Difference], objective: Objective) -> Difference:
    """The difference that the verdict is about."""
    return differences["beyond" if objective.positions == "last" else objective.positions]


def verdict(
    differences: Mapping[str, Difference], objective: Objective, documents: int, *, unchanged: bool
) -> tuple[str, str]:
    """("calibrated" or "default", the reason in a sentence); `unchanged` where the search ended on the default."""
    target = judged(differences, objective)
    within = differences["within"]
    span = target.in_words
    if documents < FEWEST_DOCUMENTS:
        few = f"{documents} calibration document{'s are' if documents > 1 else ' is'} too few to claim anything"
        return "default", f"{few}; {FEWEST_DOCUMENTS} are needed"
    if unchanged:
        return "default", "the search found nothing better than default YaRN"
    if not target.high < 0:  # a loss that is not a number proves nothing either
        return "default", f"on held-out text the gain over default YaRN is not proved: {span}"
    if within.low > objective.guard:
        return "default", (
            f"the gain beyond the original length ({span}) costs {within.delta:+.4f} nats within it, "
            f"more than the guard of {objective.guard:g}"
        )
    return "calibrated", f"better than default YaRN on held-out text: {span}"
