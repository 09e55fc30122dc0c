"""What the field says about methods of extension, put to the test on one model without fine-tuning.

    python examples/claims.py examples/tiny --data examples/text/heldout > examples/claims.md

For a real model, after examples/smollm2.sh (hours on two cores):

    cache=~/.cache/ropecli/smollm2
    python examples/claims.py $cache/model --data $cache/text --factors 2 --documents 4

Prints Markdown: each claim, at each factor, as a difference in nats a token, paired by document, with 95 % intervals.
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import product

from calibrate.evaluation import Request, Row, evaluate
from calibrate.model import Settings
from calibrate.run import extensible
from calibrate.statistics import Difference
from ropecli.checkpoint import read_checkpoint

EQUAL = 0.001
"""Nats a token. In bfloat16 a window is not scored to the same bit alone and as the beginning of a longer one."""


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


def measured(request: Request, original: int, factor: float) -> dict[tuple[str, str, bool], Difference]:
    """(method, against, past L) → difference, for every pair that a claim is about."""
    found = {}
    for against in dict.fromkeys(claim.against for claim in CLAIMS):
        others = dict.fromkeys(claim.method for claim in CLAIMS if claim.against == against)
        rows = evaluate(
            Request(
                request.sources,
                request.data,
                (original, round(factor * original)),
                (against, *others),
                factor,
                documents=request.documents,
                windows=1,
                settings=request.settings,
            ),
            lambda row: print(f"{row.method} {row.length}: {row.nll:.4f} nats", file=sys.stderr),
        )
        for row, past in product(rows, (False, True)):
            difference = _difference(row, original, past=past)
            if difference is not None:
                found[row.method, against, past] = difference
    return found


def _difference(row: Row, original: int, *, past: bool) -> Difference | None:
    if past:
        return row.beyond_difference if row.length > original else None
    return row.difference if row.length == original else None


def main() -> None:
    """Print the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--data", action="append", required=True)
    options.add_argument("--factors", default="2,4,8")
    options.add_argument("--documents", type=int)
    options.add_argument("--device", default="auto")
    given = options.parse_args()
    _, plain = extensible(read_checkpoint(given.model), None)
    request = Request((given.model,), tuple(given.data), documents=given.documents, settings=Settings(given.device))
    print("# The field's claims, on one model\n")
    print(f"Printed by `python examples/claims.py {' '.join(sys.argv[1:])}`; L = {plain.original_length} tokens.")
    print("Differences are nats a token, the first method less the second, paired by document, with 95 % intervals; no")
    print("fine-tuning. Texts up to L are the first L tokens of each window, scored as texts of their own with the")
    print("embedding that serves the long ones.\n")
    print("| claim | factor | difference | 95 % interval | outcome |\n| --- | --- | --- | --- | --- |")
    for factor in map(float, given.factors.split(",")):
        found = measured(request, plain.original_length, factor)
        for claim in CLAIMS:
            difference = found[claim.method, claim.against, claim.past]
            cells = [claim.text, f"{factor:g}", f"{difference.delta:+.4f}"]
            cells += [f"{difference.low:+.4f} to {difference.high:+.4f}", claim.verdict(difference)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
