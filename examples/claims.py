r"""What the field says about methods of extension, put to the test on one model without fine-tuning.

    python examples/claims.py examples/tiny --data examples/text/heldout > examples/claims.md

For a real model, after examples/smollm2.sh (hours on two cores):

    cache=~/.cache/ropecli/smollm2
    python examples/claims.py $cache/model --data $cache/text --factors 2 --documents 8 \
        --journal $cache/claims.journal > examples/claims-smollm2.md

Prints Markdown: each claim, at each factor, as a difference in nats a token, paired by document, with 95 % intervals.
"""

import argparse
import functools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from calibrate.fence import as_loaded
from calibrate.fit import Prepared, Request, Task, scorer
from calibrate.journal import Journal
from calibrate.model import Settings
from calibrate.objective import method
from calibrate.run import prepare
from calibrate.score import Bands, Floats, tokens_by_band
from calibrate.statistics import Difference, paired_difference
from ropecli.spec import Dynamic

EQUAL = 0.001
"""Nats a token: less than this is no difference that anybody would notice."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The loss of one method less that of another lies below, at or above zero, over positions to L or past it.

    expected  −1, +1, or 0: nowhere more than EQUAL from zero
    """

    text: str
    method: str
    against: str
    past: bool
    expected: int

    def verdict(self, difference: Difference) -> str:
        """Whether the interval says so, says the opposite, or says nothing."""
        if self.expected == 0:
            return "holds" if difference.low > -EQUAL and difference.high < EQUAL else "does not hold"
        low, high = sorted(self.expected * bound for bound in (difference.low, difference.high))
        if low > 0:
            return "holds"
        return "does not hold: the opposite is proved" if high < 0 else "not proved either way"


CLAIMS = (
    Claim("NTK-aware beats PI past L", "ntk", "linear", past=True, expected=-1),
    Claim("YaRN beats PI past L", "yarn", "linear", past=True, expected=-1),
    Claim("YaRN beats NTK-aware past L", "yarn", "ntk", past=True, expected=-1),
    Claim("dynamic NTK leaves texts up to L as they were", "dynamic", "none", past=False, expected=0),
    Claim("static YaRN costs something on texts up to L", "yarn", "none", past=False, expected=1),
    Claim("static PI costs more there than YaRN", "linear", "yarn", past=False, expected=1),
)


def measured(prepared: Prepared, task: Task, journal: Journal, count: int | None) -> dict[Claim, Difference]:
    """The difference of every claim at one factor. Each table is scored once on a document, and never again."""
    original, documents = prepared.plain.original_length, task.corpus.documents[:count]
    heads = tuple(replace(d, windows=tuple(window[:original] for window in d.windows)) for d in documents)
    past = Bands((1, original, task.length))
    on_windows = journal.remembering(scorer(prepared.loaded, prepared.layer, past), 1)
    on_heads = journal.remembering(scorer(prepared.loaded, prepared.layer, Bands((1, original))), 1)

    @functools.cache
    def nats(name: str, *, beyond: bool) -> Floats:
        if name == "dynamic":
            spec = replace(prepared.plain, scaling=Dynamic(1.0), max_length=task.length)
        else:
            spec = method(name, prepared.plain, task.space.factor)
        length = task.length if beyond else original
        table = as_loaded(spec, length)
        found = on_windows(table, documents)[:, 1] if beyond else on_heads(table, heads)[:, 0]
        print(f"{name}, {'past' if beyond else 'up to'} L: {found.mean():.1f} nats a document", file=sys.stderr)
        return found

    tokens = {beyond: tokens_by_band(documents, past)[:, int(beyond)] for beyond in (False, True)}
    return {
        claim: paired_difference(
            nats(claim.method, beyond=claim.past), nats(claim.against, beyond=claim.past), tokens[claim.past]
        )
        for claim in CLAIMS
    }


def main() -> None:
    """Print the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--data", action="append", required=True)
    options.add_argument("--factors", default="2,4,8")
    options.add_argument("--documents", type=int)
    options.add_argument("--journal", type=Path, help="keep every score here, and go on from what it holds")
    options.add_argument("--device", default="auto")
    given = options.parse_args()
    factors = tuple(float(factor) for factor in given.factors.split(","))
    request = Request(given.model, tuple(given.data), factors, windows=1, settings=Settings(given.device))
    prepared = prepare(request)
    identity = {"data": [source.sha256 for source in prepared.sources], "model": given.model}
    journal = Journal(given.journal, identity, resume=True)
    print("# The field's claims, on one model\n")
    typed = " ".join(sys.argv[1:]).replace(str(Path.home()), "~")
    print(f"Printed by `python examples/claims.py {typed}`; L = {prepared.plain.original_length} tokens.")
    print("Differences are nats a token, the first method less the second, paired by document, with 95 % intervals; no")
    print("fine-tuning. Texts up to L are the first L tokens of each window, scored as texts of their own with the")
    print("embedding that serves the long ones.\n")
    print("| claim | factor | difference | 95 % interval | outcome |\n| --- | --- | --- | --- | --- |")
    for task in reversed(prepared.tasks):
        for claim, difference in measured(prepared, task, journal, given.documents).items():
            cells = [claim.text, f"{task.space.factor:g}", f"{difference.delta:+.4f}"]
            cells += [f"{difference.low:+.4f} to {difference.high:+.4f}", claim.verdict(difference)]
            print(f"| {' | '.join(cells)} |", flush=True)
    journal.close()


if __name__ == "__main__":
    main()
