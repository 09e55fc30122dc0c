"""Draws the figures of docs/rope.md and computes every number in it: `python docs/figures.py` rewrites both in place.

The running example is Llama-2 (θ = 10000, head_dim 128, L = 4096) with factor 4. Needs `pip install matplotlib`.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

from ropecli.frequencies import (
    base_frequencies,
    frequencies,
    ntk_base,
    rotations,
    snapped_betas,
    turns_at,
    yarn_corners,
)
from ropecli.plots import plot_divisors, plot_wavelengths
from ropecli.spec import (
    LayerRope,
    Linear,
    Llama3,
    Ntk,
    NtkByParts,
    RopeSpec,
    Scaling,
    Yarn,
    default_attention_factor,
)

HERE = Path(__file__).parent
PLAIN = RopeSpec(10000.0, 128, 128, 4096, 4096)
PLACE = (PLAIN.rope_theta, PLAIN.rotary_dim, PLAIN.original_length)
YARN = Yarn.default(4.0)
METHODS: dict[str, Scaling] = {
    "PI": Linear(4.0),
    "NTK-aware": Ntk(4.0),
    "NTK-by-parts (α = 1, β = 32)": NtkByParts(4.0),
    "YaRN as runtimes compute it": YARN,
    "llama3 (low 1, high 4)": Llama3(4.0, 1.0, 4.0),
}
SHORT_COST = {1: 4.05, 2: 4.07, 4: 4.19, 8: 4.37, 16: 4.61}
"""Perplexity of LLaMA-7B on 2,048 tokens of proof-pile by YaRN factor, not fine-tuned.

Source: arXiv 2309.00071, ICLR 2024 version, table 5; factor 1 is the untouched model.
"""


def scaled(scaling: Scaling) -> RopeSpec:
    """The running example with this scaling, meant for 16,384 tokens."""
    return replace(PLAIN, scaling=scaling, max_length=16384)


def draw(folder: Path) -> None:
    """Write the four figures of the page."""
    plot_wavelengths([LayerRope("Llama-2", 32, PLAIN, {})], folder / "plain.svg")
    plot_wavelengths([LayerRope("Llama-2", 32, scaled(YARN), {})], folder / "yarn.svg")
    plot_divisors({name: scaled(scaling) for name, scaling in METHODS.items()}, folder / "methods.svg")
    plot_divisors(
        {
            "YaRN, corners rounded (most runtimes)": scaled(YARN),
            "YaRN, corners not rounded": scaled(replace(YARN, truncate=False)),
            "the paper's ramp, in rotations": scaled(NtkByParts(4.0)),
        },
        folder / "ramps.svg",
    )


def divisors(scaling: Scaling) -> list[float]:
    """What each pair's frequency is divided by in the running example."""
    base = base_frequencies(PLAIN.rope_theta, PLAIN.rotary_dim)
    return [w / changed for w, changed in zip(base, frequencies(scaled(scaling)).inv_freq, strict=True)]


def largest_gap(scaling: Scaling) -> tuple[float, int]:
    """The largest relative difference from default YaRN's frequencies, and the pair where it is."""
    gaps = [abs(yarn / other - 1) for yarn, other in zip(divisors(YARN), divisors(scaling), strict=True)]
    return max(gaps), gaps.index(max(gaps))


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head, all columns but the first are right-aligned."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    rule = "| --- |" + " ---: |" * (len(rows[0]) - 1)
    return "\n".join([lines[0], rule, *lines[1:]])


def tables() -> dict[str, str]:
    """The tables of the page by the name in their markers."""
    base = base_frequencies(PLAIN.rope_theta, PLAIN.rotary_dim)
    columns = [divisors(scaling) for scaling in METHODS.values()]
    head = ("pair", "wavelength (tokens)", "rotations in L", "PI", "NTK-aware", "NTK-by-parts", "YaRN", "llama3")
    pairs = [
        (
            f"{d}",
            f"{2 * math.pi / base[d]:,.1f}",
            f"{rotations(base[d], PLAIN.original_length):.2f}",
            *(f"÷ {column[d]:.2f}" for column in columns),
        )
        for d in (0, 10, 20, 30, 40, 46, 63)
    ]
    temperatures = [
        (
            f"{s}",
            f"{default_attention_factor(s):.4f}",
            f"{default_attention_factor(s) ** 2:.4f}",
            f"{default_attention_factor(s, 0.07):.4f}",
            f"{math.sqrt(1 + math.log(s) / math.log(4096)):.4f}",
        )
        for s in (2, 4, 8, 16, 32)
    ]
    costs = [
        (f"{s}", f"{perplexity:.2f}", f"{perplexity / SHORT_COST[1] - 1:+.1%}")
        for s, perplexity in SHORT_COST.items()
        if s > 1
    ]
    return {
        "pairs": table(head, *pairs),
        "temperature": table(
            ("s", "m = 0.1·ln s + 1", "logits × m²", "m = 0.07·ln s + 1", "LongRoPE, L = 4096"), *temperatures
        ),
        "cost": table(("YaRN factor", "perplexity on 2,048 tokens", "against the plain model (4.05)"), *costs),
    }


def facts() -> list[str]:
    """The phrases of the page's running text that hold computed numbers."""
    base = base_frequencies(PLAIN.rope_theta, PLAIN.rotary_dim)
    wavelengths = [2 * math.pi / w for w in base]
    slow = [d for d, wavelength in enumerate(wavelengths) if wavelength > PLAIN.original_length]
    ntk = divisors(METHODS["NTK-aware"])
    unseen = [4 / ntk[d] for d in slow if ntk[d] < 4 - 1e-9]
    fractional = yarn_corners(scaled(YARN), replace(YARN, truncate=False))
    low, high = (int(c) for c in yarn_corners(scaled(YARN), YARN))
    beta, alpha = snapped_betas(PLAIN, low, high)
    paper, paper_pair = largest_gap(NtkByParts(4.0))
    rounding, _ = largest_gap(replace(YARN, truncate=False))
    snapped, _ = largest_gap(Yarn(4.0, 1.0, beta, alpha, truncate=False))
    m = default_attention_factor(4.0)
    return [
        f"one turn every {wavelengths[0]:.2f} tokens",
        f"{rotations(base[0], 4096):.0f} turns inside L",
        f"one turn every {wavelengths[-1]:,.0f} tokens",
        f"{rotations(base[-1], 4096):.3f} of a turn",
        f"pairs {slow[0]} to {slow[-1]}",
        f"b' = {ntk_base(10000.0, 128, 4.0):,.0f}",
        f"{len(unseen)} of the {len(slow)} slow pairs",
        f"up to {max(unseen):.2f} times",
        f"pair {paper_pair} is divided by {divisors(YARN)[paper_pair]:.2f}",
        f"by {divisors(NtkByParts(4.0))[paper_pair]:.2f} in the paper's",
        f"{paper:.0%} apart",
        f"c(32) = {fractional[0]:.2f}",
        f"c(1) = {fractional[1]:.2f}",
        f"{low} and {high}",
        f"by up to {rounding:.0%}",
        f"any β from {turns_at(low + 1, *PLACE):.1f} to {turns_at(low, *PLACE):.1f}",
        f"any α from {turns_at(high, *PLACE):.3f} to {turns_at(high - 1, *PLACE):.3f}",
        f"β = {beta:.4f} and α = {alpha:.6f}",
        f"within {snapped * 1e6:.0f} parts in a million",
        f"{sum(1 for lo in range(64) for _ in range(lo + 1, 65)):,} ramps",
        f"m = {m:.4f}",
        f"multiplied by m² = {m * m:.4f}",
        f"t = {1 / m**2:.4f}",
    ]


def page_with_tables(page: str) -> str:
    """The page with each marked table replaced by a fresh one."""
    for name, content in tables().items():
        page, count = re.subn(
            rf"(<!-- {name}: [^\n]*-->\n)(?:.*?\n)??(<!-- end -->)",
            lambda found, new=content: f"{found[1]}{new}\n{found[2]}",
            page,
            flags=re.DOTALL,
        )
        if count != 1:
            raise SystemExit(f"rope.md: expected one table marked {name!r}, found {count}")
    return page


if __name__ == "__main__":
    draw(HERE / "figures")
    source = HERE / "rope.md"
    written = page_with_tables(source.read_text())
    source.write_text(written)
    words = " ".join(written.split())
    if missing := [fact for fact in facts() if fact not in words]:
        raise SystemExit("rope.md does not say: " + "; ".join(missing))
