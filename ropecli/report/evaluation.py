"""The report of an evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, groupby
from typing import Any

from ropecli.errors import printable
from ropecli.plots import METHOD_STROKES, method_look
from ropecli.report import figures
from ropecli.report.figures import NAMES, Line, tokens_text
from ropecli.report.page import (
    Html,
    difference,
    element,
    figure,
    headings,
    html,
    pairs,
    ppl,
    provenance,
    table,
    versions_text,
    whole_page,
)

SERIES = ("result", "yarn", "ntk", "ntk-by-parts", "linear", "dynamic", "none")
"""Looks that lines without one of their own take, in this order."""
SHORT_NAME = 22
"""Characters of a name at the end of a line."""


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name → its last part, or as many parts as tell it from the others; long ones lose their middle."""
    found = {}
    for name in dict.fromkeys(names):
        parts = [part for part in name.replace("\\", "/").split("/") if part] or [name]
        tails = ("/".join(parts[-count:]) for count in range(1, len(parts)))
        tail = next((t for t in tails if not any(o != name and o.endswith(t) for o in names)), "/".join(parts))
        half = SHORT_NAME // 2
        found[name] = tail if len(tail) <= SHORT_NAME else f"{tail[: half - 1]}…{tail[-half:]}"
    return found


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells the rows of a figure apart: the method, or the model where several share one method."""
    key = "method" if len({row["model"] for row in rows}) == 1 else "model"
    names = short_names([row[key] for row in rows])
    return [printable(NAMES.get(row[key], names[row[key]])) for row in rows]


def _looks(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Colour, marker and stroke of each row: its method's, or the next free one where models or methods have none."""
    own = set(METHOD_STROKES) if len({row["model"] for row in rows}) == 1 else set()
    used = {row["method"] for row in rows} & own
    looks = [method_look(name) for name in SERIES if name not in used] or [method_look(name) for name in SERIES]
    again = [look | {"linestyle": (0, (1, 1)), "marker": "x"} for look in looks]
    free = cycle([*looks, *again])
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = row["model"], row["method"]
        if key not in found:
            found[key] = method_look(row["method"]) if row["method"] in own else next(free)
    return [found[row["model"], row["method"]] for row in rows]


def _evaluated(rows: Sequence[Mapping[str, Any]]) -> Html:
    full = any(row["within_nll"] is not None or row["beyond_nll"] is not None for row in rows)

    def cells(row: Mapping[str, Any]) -> Iterator[object]:
        error = "" if row["standard_error"] is None else f"±{row['standard_error']:.4f}"
        yield f"{row['length']:,}"
        yield html(f"{row['nll']:.4f} ", element("small", error))
        yield ppl(row["nll"])
        if full:
            yield from ("" if row[key] is None else ppl(row[key]) for key in ("within_nll", "beyond_nll"))
        change = row["difference"]
        yield "–" if change is None else difference(change["delta"], change["ci95"])

    parts = ("ppl to L", "ppl past L") if full else ()
    head = headings(
        "method", "length, tokens", "nats a token", "ppl", *parts, "difference from the first row (95 % interval)"
    )
    body = [
        element("tr", element("th", row["method"], scope="row"), *(element("td", cell) for cell in cells(row)))
        for row in rows
    ]
    label = f"{rows[0]['documents']} documents; ± is one standard error over documents"
    return table(label, head, body)


def _evaluation_figures(rows: Sequence[Mapping[str, Any]]) -> Iterator[Html]:
    """For all rows where models or methods are one; else for each model, so that a method has one look in all."""
    alone = min(len({row[key] for row in rows}) for key in ("model", "method")) == 1
    groups = [list(rows)] if alone else [list(group) for _, group in groupby(rows, key=lambda row: row["model"])]
    names = short_names([row["model"] for row in rows])
    for index, group in enumerate(groups):
        yield from _figures_of(group, f"g{index}", "" if alone else f", {printable(names[group[0]['model']])}")


def _figures_of(rows: Sequence[Mapping[str, Any]], name: str, whose: str) -> Iterator[Html]:
    shown = list(zip(rows, _labels(rows), _looks(rows), strict=True))
    curves = [
        Line(
            label,
            look,
            [(part["start"] + part["end"] - 1) / 2 for part in row["by_position"]],
            [part["nll"] for part in row["by_position"]],
            [part["standard_error"] for part in row["by_position"]],
        )
        for row, label, look in shown
        if row["by_position"]
    ]
    if curves:
        length = max(row["length"] for row in rows if row["by_position"])
        originals = {row["original_length"] for row in rows}
        yield figure(
            f"{name}-loss",
            f"Loss by position{whose}",
            f"Windows of {length:,} tokens. The band is one standard error over documents; L is the original length.",
            figures.loss_by_position(curves, length, originals.pop() if len(originals) == 1 else None),
            (4.7, max(3.2, 0.2 * len(curves) + 1)),
        )
    differences = [
        figures.Difference(
            f"{label}, {tokens_text(row['length'])}",
            look["color"],
            row["difference"]["delta"],
            row["difference"]["ci95"],
        )
        for row, label, look in shown
        if row["difference"]
    ]
    if differences:
        yield figure(
            f"{name}-differences",
            f"Differences from the first row{whose}",
            "The first row of the same length; paired by document, with 95 % intervals. Left of 0 is better.",
            figures.forest(differences),
            (4.7, max(1.6, 0.22 * len(differences) + 0.9)),
        )


def evaluation_page(
    rows: Sequence[Mapping[str, Any]],
    checkpoints: Sequence[Mapping[str, Any]],
    data: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
    command: str,
) -> str:
    """The report of an evaluation.

    rows         lines of `ropecli evaluate --json`, at least one
    checkpoints  source, model_type and config_sha256 of each
    data         path, sha256 and documents of each file
    command      the command line

    Raises NoResource without matplotlib.
    """
    lengths = sorted({row["length"] for row in rows})
    count = len({row["model"] for row in rows})
    best = min((row for row in rows if row["length"] == lengths[-1]), key=lambda row: row["nll"])
    sections = [
        element("p", "ropecli evaluate", class_="kind"),
        element(
            "h1",
            f"Lowest loss at {lengths[-1]:,} tokens: {best['nll']:.4f} nats a token, by {best['method']}"
            + (f" of {best['model']}." if count > 1 else "."),
        ),
        pairs(
            {
                "lengths": ", ".join(f"{length:,}" for length in lengths) + " tokens",
                "documents": ", ".join(str(n) for n in sorted({row["documents"] for row in rows})),
                "protocol": rows[0]["protocol"],
            }
        ),
    ]
    for model, group in groupby(rows, key=lambda row: row["model"]):
        sections += [element("h2", model), _evaluated(list(group))]
    pictures = list(_evaluation_figures(rows))
    if pictures:
        sections += [element("h2", "Figures"), element("div", *pictures, class_="figures")]
    facts = {
        f"config of {entry['source']}": f"{entry['model_type']}, SHA-256 {entry['config_sha256']}"
        for entry in checkpoints
    }
    sections += provenance(command, facts | {"versions": versions_text(versions)}, data)
    return whole_page("ropecli evaluate", *sections)
