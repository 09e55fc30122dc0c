"""The report of a calibration file."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.errors import BadCalibration, BadParameter
from ropecli.frequencies import frequencies, yarn_corners
from ropecli.plots import method_look
from ropecli.report import figures
from ropecli.report.figures import NAMES, Line, Trial
from ropecli.report.page import (
    Html,
    block,
    difference,
    duration,
    element,
    figure,
    headings,
    html,
    pairs,
    ppl,
    provenance,
    sentence,
    table,
    versions_text,
    whole_page,
)
from ropecli.spec import RopeSpec, Yarn, scaling_from_json


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
            yield element("td", ppl(nll))
        for row in spans:
            if method == "yarn":
                yield element("td", "–")
                continue
            against = row if method == "result" else row.get("differences", {}).get(method)
            yield element("td", "" if against is None else difference(against["delta"], against["ci95"]))

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
    return table(label, head, body)


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
        yield figure(
            f"{name}-loss",
            "Loss by position",
            "Held-out text. The band is one standard error over documents; L is the trained length.",
            figures.loss_by_position(_lines(entry, "nll", "standard_error"), length, original),
        )
        yield figure(
            f"{name}-change",
            "The same against default YaRN",
            "Paired by document, so what the texts have in common cancels. Below 0 is better than default YaRN; an "
            "arrow marks a method that leaves the figure.",
            figures.change_by_position(_lines(entry, "delta", "delta_standard_error"), length, original),
        )
    yield figure(
        f"{name}-ramp",
        "The ramp",
        f"What the frequency of each rotary pair is divided by: 1 leaves a pair alone, {s} stretches it whole.",
        figures.ramp(part.default, part.found),
    )
    result = part.result
    if result is None:
        return
    if len({trial.cell for trial in part.trials}) > 1:
        yield figure(
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
        yield figure(
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
    head = headings("parameters", "α (beta_slow)", "β (beta_fast)", "ramp, pairs", "attention factor m")
    return table("α and β are turns inside L; m multiplies cos and sin", head, rows)


def _law(block: Mapping[str, Any], original: int) -> Html:
    points = [(point["factor"], point["attention_factor"]) for point in block["points"]]
    verdict = {
        None: "Two factors cannot say whether YaRN's own law is right.",
        True: "YaRN's own law is rejected (95 %).",
        False: "YaRN's own law is not rejected (95 %).",
    }[block["default_rejected"]]
    if "ci95" in block["default"]:
        low, high = block["default"]["ci95"]
        verdict += (
            f" At the same corners it costs {figures.signed(block['default']['delta'])} nats a token on held-out text "
            f"(95 % interval {figures.signed(low)} to {figures.signed(high)})."
        )
    sign = "−" if block["b"] < 0 else "+"
    formula = f"m(s) = {block['a']:.3f}·ln s {sign} {abs(block['b']):.3f}."
    picture = figure(
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
    verdict = sentence(several + kept + first.reason)
    sections = [
        element("p", f"ropecli calibrate, factor {', '.join(f'{part.factor:g}' for part in parts)}", class_="kind"),
        element(
            "div",
            element("h1", verdict),
            element("p", element("code", checkpoint["source"])),
            class_=f"verdict {first.decision}" if first.decision == "calibrated" else "verdict",
        ),
        pairs(
            {
                "model type": checkpoint["model_type"],
                "trained length L": f"{original:,} tokens",
                "served length L′": f"{first.found.max_length:,} tokens (factor {first.factor:g})",
                "search": f"{content['calibration']['documents']} documents, {content['search']['optimizer']}",
                "cost": f"{cost['forward_equivalents']:.1f} forward equivalents, {duration(cost['seconds'])}",
            }
        ),
    ]
    if len(parts) > 1:
        told = (sentence(f"factor {part.factor:g}: {part.decision} ({part.reason})") for part in parts)
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
        pairs(
            {
                "evaluations": f"{cost['evaluations']:,}",
                "gradients": f"{cost['gradients']:,}",
                "forward equivalents": f"{cost['forward_equivalents']:.1f} passes over the calibration set",
                "tokens scored by the search": f"{cost['tokens']:,}",
                "time in all": duration(cost["seconds"]),
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
        block(config, "members of the config"),
    ]
    facts = {
        "checkpoint": checkpoint["source"],
        "SHA-256 of its config": element("code", checkpoint["config_sha256"]),
        "seed": content["seed"],
        "versions": versions_text(content["versions"]),
    }
    sections += provenance(content.get("command", ""), facts, content["data"])
    return whole_page(f"{PurePath(checkpoint['source']).name or checkpoint['source']}: ropecli calibrate", *sections)
