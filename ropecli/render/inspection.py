"""A checkpoint on one screen, and what differs between two."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ropecli.errors import printable
from ropecli.frequencies import TOLERANCE, base_frequencies, divisors
from ropecli.inspection import Change, Inspection, RuntimeRow, baked_to_json
from ropecli.render.terminal import emit_json, emit_table, escape, finding_lines, plain_table, say
from ropecli.spec import LayerRope, Yarn


def _tokens(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"


def _span(first: int, last: int) -> str:
    return f"pair {first}" if first == last else f"pairs {first} to {last}"


def _regions(rope: LayerRope) -> Iterator[tuple[str, str]]:
    """Neighbouring pairs that the scaling treats alike, with their wavelengths in tokens."""
    spec = rope.spec
    base = base_frequencies(spec.rope_theta, spec.rotary_dim)
    ratios = divisors(spec, spec.max_length)

    def kind(ratio: float) -> str:
        if ratio == math.inf:
            return "do not turn"
        if abs(ratio - 1) < 1e-6:
            return "kept"
        if abs(ratio - spec.scaling.factor) < 1e-4 * spec.scaling.factor:
            return f"slowed {spec.scaling.factor:g}×"
        return "slowed in part"

    start = 0
    for end in range(1, len(ratios) + 1):
        if end == len(ratios) or kind(ratios[end]) != kind(ratios[start]):
            label = kind(ratios[start])
            turns = dict.fromkeys(_tokens(2 * math.pi / base[pair]) for pair in (start, end - 1))
            text = f"{_span(start, end - 1)}: one turn takes {' to '.join(turns)} tokens"
            if label == "slowed in part":
                times = dict.fromkeys(f"{ratios[pair]:.3g}" for pair in (start, end - 1))
                text += f" before, {' to '.join(times)} times that now"
            yield label, text
            start = end


def _rope_rows(rope: LayerRope) -> Iterator[tuple[str, str]]:
    spec, scaling = rope.spec, rope.spec.scaling
    yield "layers", f"{rope.layers}" + ("" if rope.name == "default" else f" ({rope.name})")
    yield "scaling", scaling.rope_type if scaling.rope_type != "default" else "none"
    yield "base (rope_theta)", f"{spec.rope_theta:.10g}"
    part = "" if spec.rotary_dim == spec.head_dim else f" of {spec.head_dim}"
    yield "rotary dims", f"{spec.rotary_dim}{part}, {spec.pairs} pairs, {spec.layout} layout"
    yield "trained length L", f"{spec.original_length:,} tokens"
    if spec.max_length != spec.original_length:
        factor = "" if scaling.factor == 1 else f" (factor {scaling.factor:g})"
        yield "served length L'", f"{spec.max_length:,} tokens{factor}"
    parameters = {
        "beta_fast": "β (beta_fast)",
        "beta_slow": "α (beta_slow)",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    }
    for name, label in parameters.items():
        if hasattr(scaling, name):
            yield label, f"{getattr(scaling, name):.6g} turns inside L"
    m = scaling.attention_factor
    if m != 1 or isinstance(scaling, Yarn):
        yield "attention factor m", f"{m:.6g} on cos and sin (logits × {m * m:.4g})"
    if spec.length_dependent:
        yield "note", "the frequencies depend on the length of the sequence"
    for name, source in rope.sources.items():
        assumed = source.removeprefix("assumed: ")
        if assumed != source and name != "rope_type":  # a file that names no scaling has none
            yield "assumed", f"{name}: {assumed}"
    yield from _regions(rope)


def show_inspection(inspection: Inspection, *, quiet: bool = False) -> None:
    """One screen about a checkpoint's rotary embedding; `quiet` leaves out findings that are mere information."""
    checkpoint = inspection.checkpoint
    table = plain_table()
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("checkpoint", escape(printable(checkpoint.source)))
    table.add_row(
        "format", escape(printable(f"{checkpoint.format}, {checkpoint.model_type or 'model type not named'}"))
    )
    if not inspection.ropes:
        table.add_row("rope", "none: the model has no rotary embedding")
    for rope in inspection.ropes:
        if len(inspection.ropes) > 1:
            table.add_row("", "")
        for label, text in _rope_rows(rope):
            table.add_row(escape(label), escape(printable(text)))
    for text in _baked_lines(baked_to_json(checkpoint)):
        table.add_row("baked", escape(printable(text)))
    for note in checkpoint.notes:
        table.add_row("note", escape(printable(note)))
    for label, text in _runtime_lines(inspection):
        table.add_row(label, escape(printable(text)))
    for label, text in finding_lines([f for f in inspection.findings if not (quiet and f.severity == "info")]):
        table.add_row(escape(label), escape(printable(text)))
    if not quiet:
        pages = "docs/rope.md" + (
            ", docs/findings.md#" + inspection.findings[0].id.lower() if inspection.findings else ""
        )
        table.add_row("explained in", pages)
    for problem in inspection.problems:
        table.add_row("weights", escape(printable(f"{problem.where}: {problem.problem}. {problem.hint}")))
    emit_table(table)


def _baked_lines(baked: Mapping[str, Any] | None) -> Iterator[str]:
    """What `--bake` left in the checkpoint."""
    if baked is None:
        return
    if baked["path"] is not None:
        described = [
            baked["kind"],
            baked["layout"],
            baked["dtype"],
            baked["length"] and f"{baked['length']:,} positions",
        ]
        stale = "; stale: not what the config means" if baked["stale"] else ""
        yield f"{baked['path']}: {', '.join(filter(None, described)) or 'cannot be read'}{stale}"
    for name, m in (baked["folded_attention_factor"] or {}).items():
        layers = "" if name == "default" else f" ({name})"
        yield f"the query and key weights hold an attention factor of {m:.6g}{layers}"


def show_changes(changes: Sequence[Change], here: str, there: str, *, as_json: bool) -> None:
    """What differs between two checkpoints, a line a value; nothing where they agree."""
    if as_json:
        rows = [{"layer": c.layer, "key": c.key, "here": c.here, "there": c.there} for c in changes]
        emit_json({"schema_version": 1, "source": here, "other": there, "differences": rows})
        return
    if not changes:
        say(f"{here} and {there} have the same rotary embedding")
        return
    table = plain_table("layer", "value", "here", "there")
    for change in changes:
        cells = (change.layer, change.key, *("absent" if v is None else str(v) for v in (change.here, change.there)))
        table.add_row(*(escape(printable(cell)) for cell in cells))
    emit_table(table)


def _runtime_lines(inspection: Inspection) -> Iterator[tuple[str, str]]:
    """Who computes what the config means, in one line; then each that does not, with what it does instead."""
    agreeing = [name for name, row in inspection.runtimes.items() if row.agrees]
    if agreeing:
        yield "runtimes that agree", ", ".join(agreeing)
    for name, row in inspection.runtimes.items():
        if row.agrees:
            continue
        yield f"not: {name}", "; ".join([off_by(row), *row.notes])


def off_by(row: RuntimeRow) -> str:
    """How far a runtime's numbers are from what the config means."""
    if row.max_rel_diff is None or row.attention_factor is None:
        return "it stops"
    attention_factor = f"attention factor {row.attention_factor:.5g}"
    if row.max_rel_diff <= TOLERANCE:
        return f"the right frequencies, but {attention_factor}"
    off = f"{100 * row.max_rel_diff:.3g} %" if row.max_rel_diff < 1 else f"a factor of {1 + row.max_rel_diff:.3g}"
    return f"frequencies off by {off}, {attention_factor}"
