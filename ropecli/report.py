"""Reports: JSON that calibrate or evaluate gave → one page of HTML that needs no network and no script.

Pure: values in, text out. Whatever is not `Html` is escaped on its way into the page.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from itertools import cycle, groupby, pairwise
from pathlib import PurePath
from typing import Any

from ropecli import report_figures as figures
from ropecli.errors import BadCalibration, BadParameter
from ropecli.frequencies import frequencies, yarn_corners
from ropecli.plots import METHOD_STROKES, THEME, method_look, page_svg
from ropecli.render import printable
from ropecli.report_figures import NAMES, Line, Trial, signed, tokens_text
from ropecli.spec import RopeSpec, Yarn, scaling_from_json

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif'
MONO = 'ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
ORIGINAL = "original_max_position_embeddings"
SERIES = ("result", "yarn", "ntk", "ntk-by-parts", "linear", "dynamic", "none")
"""Looks that lines without one of their own take, in this order."""
SHORT_NAME = 22
"""Characters of a name at the end of a line."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def html(*parts: object) -> Html:
    """The parts one after the other; those that are not HTML already are escaped, control characters made visible."""
    return Html("".join(part if isinstance(part, Html) else escape(printable(str(part))) for part in parts))


def element(name: str, *inside: object, **attributes: str) -> Html:
    """An element; `class_` is class and `aria_label` aria-label."""
    words = "".join(f' {key.strip("_").replace("_", "-")}="{html(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{words}>{html(*inside)}</{name}>")


def _block(text: str, label: str) -> Html:
    """Text to copy: one click marks it all. Its lines are kept."""
    return element("pre", Html("\n".join(html(line) for line in text.split("\n"))), tabindex="0", aria_label=label)


def _pairs(values: Mapping[str, object]) -> Html:
    return element("dl", *(element("div", element("dt", key), element("dd", value)) for key, value in values.items()))


def _table(label: str, head: Html, rows: Sequence[Html], kind: str = "numbers") -> Html:
    table = element("table", element("thead", head), element("tbody", *rows), class_=kind)
    box = element("div", table, class_="wide", role="region", tabindex="0", aria_label=label)
    return html(element("p", label, class_="caption"), box)


def _headings(*words: str) -> Html:
    return element("tr", *(element("th", word, scope="col") for word in words))


def _figure(name: str, title: str, caption: str, draw: figures.Draw, size: tuple[float, float] = (4.7, 3.2)) -> Html:
    picture = Html(page_svg(name, printable(f"{title}. {caption}"), draw, size))
    return element("figure", picture, element("figcaption", element("b", title, "."), " ", caption))


def _style() -> Html:
    def variables(side: int) -> str:
        return "; ".join(f"--{name}: {colours[side]}" for name, colours in THEME.items())

    fonts = f"--sans: {SANS}; --mono: {MONO}"
    css = files("ropecli").joinpath("report.css").read_text("utf-8")
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(1)} }} }}"
    return Html(f"<style>\n:root {{ {variables(0)}; {fonts} }}\n{dark}\n{css}</style>")


def _page(title: str, *sections: Html) -> str:
    head = (
        Html('<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'),
        element("title", title),
        _style(),
    )
    body = element("main", *sections)
    return f'<!doctype html>\n<html lang="en">\n{element("head", *head)}\n{element("body", body)}\n</html>\n'


def _ppl(nll: float | None) -> str:
    if nll is None:
        return "none"
    value = math.exp(min(nll, 700))
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


def _difference(delta: float | None, ci95: Sequence[float] | None) -> Html:
    if delta is None:
        return html("not finite")
    interval = "interval unknown" if ci95 is None else f"{signed(ci95[0])} to {signed(ci95[1])}"
    return html(signed(delta), " ", element("small", interval))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _sentence(text: str) -> Html:
    whole = text[:1].upper() + text[1:].rstrip(".").replace(" -", " −") + "."
    return Html(html(whole).replace(" %", "&nbsp;%"))


def _provenance(command: str, facts: Mapping[str, object], data: Sequence[Mapping[str, Any]]) -> Iterator[Html]:
    yield element("h2", "How this was made")
    if command:
        yield element("h3", "The command")
        yield _block(command, "the command")
    yield _pairs(facts)
    rows = [
        element(
            "tr",
            element("td", source["path"]),
            element("td", _counted(source["documents"], "document")),
            element("td", source["sha256"], class_="hash"),
        )
        for source in data
    ]
    yield _table(f"Data: {_counted(len(data), 'file')}", _headings("file", "documents", "SHA-256"), rows, "words")


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


# ------------------------------------------------------------------------------------------------ calibrate


@dataclass(frozen=True, slots=True)
class _Factor:
    """What a calibration file says about one factor.

    default, found  default YaRN, and what the search ended on, whatever the decision
    trials          those whose loss can be compared with default YaRN's on the same documents, in their order
    losses          of the same trials
    """

    factor: float
    decision: str
    reason: str
    rows: Sequence[Mapping[str, Any]]
    by_position: Mapping[str, Any]
    default: RopeSpec
    found: RopeSpec
    trials: Sequence[Trial]
    losses: Sequence[float]

    @property
    def result(self) -> Trial | None:
        """The trial that the search ended on."""
        most = max((trial.documents for trial in self.trials), default=0)
        last = [trial for trial in self.trials if trial.documents == most and float(trial.low).is_integer()]
        scaling = self.found.scaling
        if isinstance(scaling, Yarn):
            low, high = yarn_corners(self.found, scaling)
            here = [t for t in self.trials if (t.low, t.high) == (round(low), round(high))]
            exact = [t for t in here if math.isclose(t.attention_factor, scaling.attention_factor, rel_tol=1e-9)]
            last = sorted(exact or here, key=lambda t: -t.documents)[:1] or last
        return min(last, key=lambda trial: trial.change, default=None)


def _spec(block: Mapping[str, Any], pairs: int) -> RopeSpec:
    scaling = scaling_from_json({key: value for key, value in block.items() if key not in ("rope_theta", ORIGINAL)})
    length = round(block[ORIGINAL] * block["factor"])
    return RopeSpec(block["rope_theta"], 2 * pairs, 2 * pairs, block[ORIGINAL], length, scaling)


def _trials(trace: Sequence[Mapping[str, Any]], default: RopeSpec) -> tuple[list[Trial], list[float]]:
    scaling = Yarn.default(default.scaling.factor)
    start = (*yarn_corners(default, scaling), scaling.attention_factor)

    def point(entry: Mapping[str, Any]) -> tuple[float, float, float]:
        found = entry["parameters"]
        return found["low"], found["high"], found["attention_factor"]

    defaults = {
        entry["documents"]: entry["nll"]
        for entry in trace
        if all(abs(a - b) < 1e-6 for a, b in zip(point(entry), start, strict=True)) and entry["nll"] is not None
    }
    known = [entry for entry in trace if entry["nll"] is not None and entry["documents"] in defaults]
    trials = [Trial(*point(entry), entry["nll"] - defaults[entry["documents"]], entry["documents"]) for entry in known]
    return trials, [entry["nll"] for entry in known]


def _factors(content: Mapping[str, Any]) -> list[_Factor]:
    """Every factor of a calibration file, the largest first."""
    pairs = len([float(value) for value in content["inv_freq"]])
    fits = {fit["factor"]: fit for fit in content.get("fits", [{**content, "factor": content["factors"][-1]}])}
    found = {block["factor"]: block for block in content["search"].get("found", [])}
    curves = {entry["factor"]: entry for entry in content.get("by_position", [])}
    result = []
    for factor in sorted(content["factors"], reverse=True):
        spec = _spec(found.get(factor, fits[factor]["rope"]), pairs)
        default = replace(spec, scaling=Yarn.default(factor))
        trace = [entry for entry in content["search"]["trace"] if entry["factor"] == factor]
        rows = [row for row in content["validation"] if row["factor"] == factor]
        fit = fits[factor]
        trials, losses = _trials(trace, default)
        result.append(
            _Factor(factor, fit["decision"], fit["reason"], rows, curves.get(factor, {}), default, spec, trials, losses)
        )
    return result


def _held_out(part: _Factor) -> Html:
    """Every method: perplexity, and the difference from default YaRN with its interval."""
    rows = {row["positions"]: row for row in part.rows}
    spans = [rows[name] for name in ("within", "beyond", "all") if name in rows]

    def cells(method: str) -> Iterator[Html]:
        for row in spans:
            nll = {"yarn": row["default_nll"], "result": row["nll"]}.get(method, row["baselines"].get(method))
            yield element("td", _ppl(nll))
        for row in spans:
            if method == "yarn":
                yield element("td", "–")
                continue
            against = row if method == "result" else row.get("differences", {}).get(method)
            yield element("td", "" if against is None else _difference(against["delta"], against["ci95"]))

    headings = ["all positions" if row["positions"] == "all" else f"{row['positions']} L" for row in spans]
    head = html(
        element(
            "tr",
            element("th", "method", rowspan="2", scope="col"),
            element("th", "perplexity", colspan=str(len(spans)), scope="colgroup"),
            element(
                "th",
                "difference from default YaRN, nats a token (95 % interval)",
                colspan=str(len(spans)),
                scope="colgroup",
            ),
        ),
        element("tr", *(element("th", word, scope="col") for word in headings * 2)),
    )
    body = [
        element("tr", element("th", name, scope="row"), *cells(method), class_=method) for method, name in NAMES.items()
    ]
    first = spans[0]
    label = f"Held-out text: {first['documents']} documents, windows of {first['length']:,} tokens"
    return _table(label, head, body)


def _lines(entry: Mapping[str, Any], values: str, errors: str, labels: Mapping[str, str] = NAMES) -> list[Line]:
    edges = entry["edges"]
    middles = [(low + high - 1) / 2 for low, high in pairwise(edges)]
    return [
        Line(labels[name], method_look(name), middles, entry[values][name], entry[errors][name])
        for name in NAMES
        if name in entry[values] and any(value is not None for value in entry[values][name])
    ]


def _factor_figures(part: _Factor) -> Iterator[Html]:
    name, s = f"s{part.factor:g}".replace(".", "-"), f"{part.factor:g}"
    original, entry = part.found.original_length, part.by_position
    if entry:
        length = entry["length"]
        yield _figure(
            f"{name}-loss",
            "Loss by position",
            "Held-out text. The band is one standard error over documents; L is the trained length.",
            figures.loss_by_position(_lines(entry, "nll", "standard_error"), length, original),
        )
        yield _figure(
            f"{name}-change",
            "The same against default YaRN",
            "Paired by document, so what the texts have in common cancels. Below 0 is better than default YaRN; an "
            "arrow marks a method that leaves the figure.",
            figures.change_by_position(_lines(entry, "delta", "delta_standard_error"), length, original),
        )
    yield _figure(
        f"{name}-ramp",
        "The ramp",
        f"What the frequency of each rotary pair is divided by: 1 leaves a pair alone, {s} stretches it whole.",
        figures.ramp(part.default, part.found),
    )
    result = part.result
    if result is None:
        return
    if len({trial.cell for trial in part.trials}) > 1:
        yield _figure(
            f"{name}-lattice",
            "The search",
            "Each cell is a ramp that was tried, coloured by its best loss less default YaRN's on the same documents; "
            "the arrows lead from one best so far to the next.",
            figures.lattice(
                part.trials,
                figures.path_of_best(part.trials, part.losses),
                yarn_corners(part.default, Yarn.default(part.factor)),
                result,
            ),
        )
    if sum(trial.cell == result.cell for trial in part.trials) > 1:
        yield _figure(
            f"{name}-temperature",
            "The temperature",
            "Attention factor against loss for the trials at the corners of the result, by how many documents they "
            "were scored on; other corners are faint.",
            figures.temperature(part.trials, result, part.default.scaling.attention_factor),
        )


def _numbers_of(part: _Factor) -> Html:
    """The parameters that were found, beside the defaults."""

    def cells(spec: RopeSpec) -> list[str]:
        scaling, m = spec.scaling, frequencies(spec, spec.max_length).attention_factor
        if isinstance(scaling, Yarn):
            low, high = yarn_corners(spec, scaling)
            return [f"{scaling.beta_slow:.6g}", f"{scaling.beta_fast:.6g}", f"{low:g} to {high:g}", f"{m:.5g}"]
        return ["", "", "a divisor for each pair", f"{m:.5g}"]

    rows = [
        element("tr", element("th", NAMES[name], scope="row"), *(element("td", cell) for cell in cells(spec)))
        for name, spec in (("yarn", part.default), ("result", part.found))
    ]
    head = _headings("parameters", "α (beta_slow)", "β (beta_fast)", "ramp, pairs", "attention factor m")
    return _table("α and β are turns inside L; m multiplies cos and sin", head, rows)


def _law(block: Mapping[str, Any], original: int) -> Html:
    points = [(point["factor"], point["attention_factor"]) for point in block["points"]]
    verdict = {
        None: "Two factors cannot say whether YaRN's own law is right.",
        True: "YaRN's own law is rejected (95 %).",
        False: "YaRN's own law is not rejected (95 %).",
    }[block["default_rejected"]]
    sign = "−" if block["b"] < 0 else "+"
    formula = f"m(s) = {block['a']:.3f}·ln s {sign} {abs(block['b']):.3f}."
    picture = _figure(
        "law",
        "The law of the temperature",
        f"{formula} {verdict} Points are what the searches found, whatever the decision.",
        figures.law(points, block["a"], block["b"], original),
    )
    return html(element("h2", "The temperature over several factors"), element("div", picture, class_="figures"))


def calibration_page(content: Mapping[str, Any], config: str, where: str) -> str:
    """The report of a calibration.

    content  a calibration file; what an older one lacks is left out of the page
    config   what to paste into the checkpoint's config, or why there is nothing to paste
    where    what to call the file in errors

    Raises BadCalibration where it is not what `ropecli calibrate` writes, NoResource without matplotlib.
    """
    with _as_written(where):
        return _calibration_page(content, config)


def calibration_curves(content: Mapping[str, Any], where: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """Held-out loss by position for the largest factor: method → (middle of the bin, nats, ± one standard error).

    Empty where the file is an older one that has none. Raises BadCalibration where it is not what calibrate writes.
    """
    with _as_written(where):
        entry = max(content.get("by_position") or [{}], key=lambda entry: entry.get("factor", 0))
        return {
            line.label: [
                (x, y, y - (reach or 0.0), y + (reach or 0.0))
                for x, y, reach in zip(line.x, line.y, line.reach, strict=True)
                if y is not None
            ]
            for line in (_lines(entry, "nll", "standard_error", dict(zip(NAMES, NAMES, strict=True))) if entry else ())
        }


@contextmanager
def _as_written(where: str) -> Iterator[None]:
    """A member that is missing, or of another type, is an error of the file."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, BadParameter) as error:
        raise BadCalibration(
            f"no report can be made of it ({type(error).__name__}: {error})",
            where=where,
            hint="expected a file that ropecli calibrate wrote",
        ) from error


def _calibration_page(content: Mapping[str, Any], config: str) -> str:
    parts = _factors(content)
    checkpoint, rope, cost = content["checkpoint"], content["rope"], content["cost"]
    first, original = parts[0], rope[ORIGINAL]
    kept = "" if first.decision == "calibrated" else "default YaRN is kept: "
    several = f"factor {first.factor:g}: " if len(parts) > 1 else ""
    verdict = _sentence(several + kept + first.reason)
    sections = [
        element("p", f"ropecli calibrate, factor {', '.join(f'{part.factor:g}' for part in parts)}", class_="kind"),
        element(
            "div",
            element("h1", verdict),
            element("p", element("code", checkpoint["source"])),
            class_=f"verdict {first.decision}" if first.decision == "calibrated" else "verdict",
        ),
        _pairs(
            {
                "model type": checkpoint["model_type"],
                "trained length L": f"{original:,} tokens",
                "served length L′": f"{first.found.max_length:,} tokens (factor {first.factor:g})",
                "search": f"{content['calibration']['documents']} documents, {content['search']['optimizer']}",
                "cost": f"{cost['forward_equivalents']:.1f} forward equivalents, {_seconds(cost['seconds'])}",
            }
        ),
    ]
    if len(parts) > 1:
        told = (_sentence(f"factor {part.factor:g}: {part.decision} ({part.reason})") for part in parts)
        sections.append(element("ul", *(element("li", line) for line in told)))
    for part in parts:
        sections += [
            element(
                "h2", f"Factor {part.factor:g}: {part.found.original_length:,} to {part.found.max_length:,} tokens"
            ),
            _held_out(part),
            _numbers_of(part),
            element("div", *_factor_figures(part), class_="figures"),
        ]
    if content.get("law"):
        sections.append(_law(content["law"], original))
    if content.get("notes"):
        sections += [element("h2", "Notes"), element("ul", *(element("li", note) for note in content["notes"]))]
    sections += [
        element("h2", "Cost"),
        _pairs(
            {
                "evaluations": f"{cost['evaluations']:,}",
                "gradients": f"{cost['gradients']:,}",
                "forward equivalents": f"{cost['forward_equivalents']:.1f} passes over the calibration set",
                "tokens scored by the search": f"{cost['tokens']:,}",
                "time in all": _seconds(cost["seconds"]),
                "peak memory": f"{cost['peak_memory_bytes'] / 1e9:.2f} GB",
            }
        ),
        element("h2", "The config to paste"),
        element(
            "p",
            "What ",
            element("code", "ropecli convert"),
            " writes into the config, in both schemas. ",
            "" if first.decision == "calibrated" else "The verdict keeps default YaRN, so these are its numbers. ",
            "A click marks all of it.",
        ),
        _block(config, "members of the config"),
    ]
    facts = {
        "checkpoint": checkpoint["source"],
        "SHA-256 of its config": element("code", checkpoint["config_sha256"]),
        "seed": content["seed"],
        "versions": _versions(content["versions"]),
    }
    sections += _provenance(content.get("command", ""), facts, content["data"])
    return _page(f"{PurePath(checkpoint['source']).name or checkpoint['source']}: ropecli calibrate", *sections)


# ------------------------------------------------------------------------------------------------ evaluate


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
    models, methods = (short_names([row[key] for row in rows]) for key in ("model", "method"))
    one_model, one_method = (len({row[key] for row in rows}) == 1 for key in ("model", "method"))

    def label(row: Mapping[str, Any]) -> str:
        method = NAMES.get(row["method"], methods[row["method"]])
        if one_model:
            return printable(method)
        return printable(models[row["model"]] if one_method else f"{models[row['model']]} {method}")

    return [label(row) for row in rows]


def _looks(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Colour, marker and stroke of each row: its method's, or the next free one where models or methods have none."""
    own = set(METHOD_STROKES) if len({row["model"] for row in rows}) == 1 else set()
    used = {row["method"] for row in rows} & own
    free = cycle([name for name in SERIES if name not in used] or SERIES)
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = row["model"], row["method"]
        if key not in found:
            found[key] = method_look(row["method"] if row["method"] in own else next(free))
    return [found[row["model"], row["method"]] for row in rows]


def _evaluated(rows: Sequence[Mapping[str, Any]]) -> Html:
    full = any(row["within_nll"] is not None or row["beyond_nll"] is not None for row in rows)

    def cells(row: Mapping[str, Any]) -> Iterator[object]:
        error = "" if row["standard_error"] is None else f"±{row['standard_error']:.4f}"
        yield f"{row['length']:,}"
        yield html(f"{row['nll']:.4f} ", element("small", error))
        yield _ppl(row["nll"])
        if full:
            yield from ("" if row[key] is None else _ppl(row[key]) for key in ("within_nll", "beyond_nll"))
        difference = row["difference"]
        yield "–" if difference is None else _difference(difference["delta"], difference["ci95"])

    parts = ("ppl to L", "ppl past L") if full else ()
    head = _headings("method", "length", "nats a token", "ppl", *parts, "difference from the first row (95 % interval)")
    body = [
        element("tr", element("th", row["method"], scope="row"), *(element("td", cell) for cell in cells(row)))
        for row in rows
    ]
    label = f"{rows[0]['documents']} documents; ± is one standard error over documents"
    return _table(label, head, body)


def _evaluation_figures(rows: Sequence[Mapping[str, Any]]) -> Iterator[Html]:
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
        yield _figure(
            "loss",
            "Loss by position",
            f"Windows of {length:,} tokens. The band is one standard error over documents.",
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
        yield _figure(
            "differences",
            "Differences from the first row",
            "Of the same length, paired by document, with their 95 % intervals. Left of 0 is better.",
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
        _pairs(
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
    sections += _provenance(command, facts | {"versions": _versions(versions)}, data)
    return _page("ropecli evaluate", *sections)
