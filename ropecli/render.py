"""Values → tables, JSON and error lines: the only file that knows rich, and the only one that prints.

Standard output carries the result and nothing else; everything else goes to standard error.
"""

import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO

from ropecli.errors import NoResource, RopeError
from ropecli.findings import Finding
from ropecli.frequencies import base_frequencies, frequencies
from ropecli.inspection import Change, Inspection, RuntimeRow, baked_to_json, finding_to_json
from ropecli.spec import LayerRope

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from calibrate.calibration import Calibration, Law, Validation
    from calibrate.evaluation import Row
    from calibrate.passkey import PasskeyRow
    from calibrate.plan import Plan
    from calibrate.statistics import Difference
    from calibrate.trials import Trial
    from ropecli.agreement import Disagreement
    from ropecli.checkpoint import Checkpoint
    from ropecli.conversion import Conversion, Edit
    from ropecli.gguf_writer import GgufConversion
    from ropecli.writer import Receipt

PIPE_CLOSED = 141
_NUMBERS = re.compile(r"\[\s*(?:(?:-?[\d.eE+-]+|null),\s*)*(?:-?[\d.eE+-]+|null)\s*\]")


class ReaderGone(Exception):
    """Whoever read our standard output has closed it."""


class _Unfailing(io.FileIO):
    """Standard error whose reader may go away, or whose disk may fill up: what is said is lost, the work goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


@contextmanager
def steady_streams() -> Iterator[None]:
    """Inside the block the three standard streams are there and take any text; the interpreter's last flush is quiet.

    A stream that was closed by whoever started us is the null device: no file of ours may get its number.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123 - open for as long as the program runs
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    elif sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        raw = io.BufferedWriter(_Unfailing(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, sys.stderr.encoding, "backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # the interpreter flushes once more at exit, into something that is still open
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _console(stream: TextIO) -> "Console":
    from rich.console import Console  # noqa: PLC0415 - a JSON document needs no rich

    # off a terminal nothing may be cut to a width
    return Console(
        file=stream, width=None if stream.isatty() else 10_000, highlight=False, emoji=False, soft_wrap=False
    )


def printable(text: str) -> str:
    """Text from a file with its control characters made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def emit(text: str) -> None:
    """Write a result to standard output. Raises ReaderGone, and NoResource where the disk behind it is full."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        raise NoResource(f"cannot be written ({error.strerror})", where="standard output") from error


def json_text(data: Any) -> str:
    """A file for people and programs: one member a line, short lists of numbers on one line."""
    text = json.dumps(data, indent=1, ensure_ascii=True, allow_nan=False)
    return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n"


def emit_json(data: Any) -> None:
    """One JSON document on one line; numbers that are not finite, which JSON does not have, are null."""
    emit(json.dumps(_without_infinities(data), ensure_ascii=True, allow_nan=False) + "\n")


def _without_infinities(data: Any) -> Any:
    match data:
        case float():
            return data if math.isfinite(data) else None
        case dict():
            return {key: _without_infinities(value) for key, value in data.items()}
        case list() | tuple():
            return [_without_infinities(value) for value in data]
    return data


def emit_table(table: "Table") -> None:
    """A table on standard output: as wide as the terminal there, uncut elsewhere."""
    from rich.console import Console  # noqa: PLC0415

    stream = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, emoji=False)
    with stream.capture() as captured:
        stream.print(table)
    emit("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def say(text: str, *, quiet: bool = False) -> None:
    """A note for people, on standard error."""
    if not quiet:
        _console(sys.stderr).print(_text(printable(text)))


def show_error(error: RopeError, *, as_json: bool, findings: Sequence[Finding] = ()) -> None:
    """One line and a hint on standard error; with --json the same as a document on standard output."""
    if as_json:
        document: dict[str, Any] = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        emit_json(document | ({"findings": [finding_to_json(f) for f in findings]} if findings else {}))
        return
    console = _console(sys.stderr)
    for label, text in _finding_lines(findings):
        console.print(_text(f"{label}: {printable(text)}"))
    console.print(_text(("error: ", "bold red"), error.message))
    if error.hint:
        console.print(_text(("hint: ", "bold"), printable(error.hint)))


def show_failures(source: str, failures: Sequence[str]) -> None:
    """The checks that failed, one line each, on standard error."""
    for failure in failures:
        _console(sys.stderr).print(_text(("failed: ", "bold red"), printable(f"{source}: {failure}")))


def _finding_lines(findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    for finding in findings:
        fix = ", ".join(
            f"{key} = {'(remove)' if value is None else _short(value)}" for key, value in finding.fix.items()
        )
        end = "" if finding.message.endswith("?") else "."
        text = f"{finding.message}{end} {finding.effect}" + (f" Fix: {fix}" if fix else "")
        yield f"{finding.severity} {finding.id}", text


@contextmanager
def data_only() -> Iterator[None]:
    """Send whatever libraries print to standard error, so that standard output stays clean."""
    with redirect_stdout(sys.stderr):
        yield


def _text(*parts: str | tuple[str, str]) -> "Text":
    """Text with its styles: a string, or (string, style) for each part; no markup is read from it."""
    from rich.text import Text  # noqa: PLC0415

    return Text.assemble(*parts)


def escape(text: str) -> str:
    """Text for a table cell: what looks like rich's markup is shown as it is."""
    from rich.markup import escape as escaped  # noqa: PLC0415

    return escaped(text)


def _plain_table(*headings: str) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, show_header=bool(headings))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _tokens(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"


def _span(first: int, last: int) -> str:
    return f"pair {first}" if first == last else f"pairs {first} to {last}"


def _regions(rope: LayerRope) -> Iterator[tuple[str, str]]:
    """Neighbouring pairs that the scaling treats alike, with their wavelengths in tokens."""
    spec = rope.spec
    base = base_frequencies(spec.rope_theta, spec.rotary_dim)
    now = frequencies(spec, spec.max_length).inv_freq
    ratios = [b / w if w else math.inf for b, w in zip(base, now, strict=True)]

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
            first, last = 2 * math.pi / base[start], 2 * math.pi / base[end - 1]
            text = f"{_span(start, end - 1)}: one turn takes {_tokens(first)} to {_tokens(last)} tokens"
            if label == "slowed in part":
                text += f" before, {ratios[start]:.3g} to {ratios[end - 1]:.3g} times that now"
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
        yield "served length L'", f"{spec.max_length:,} tokens (factor {scaling.factor:g})"
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
    if m != 1:
        yield "attention factor m", f"{m:.6g} on cos and sin (logits × {m * m:.4g})"
    if spec.length_dependent:
        yield "note", "the frequencies depend on the length of the sequence"
    yield from _regions(rope)


def show_inspection(inspection: Inspection, *, quiet: bool = False) -> None:
    """One screen about a checkpoint's rotary embedding; `quiet` leaves out findings that are mere information."""
    checkpoint = inspection.checkpoint
    table = _plain_table()
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
    for label, text in _finding_lines([f for f in inspection.findings if not (quiet and f.severity == "info")]):
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
    table = _plain_table("layer", "value", "here", "there")
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
        yield f"not: {name}", "; ".join([_off_by(row), *row.notes])


def show_plan(conversion: "Conversion", new_bytes: int, files: int) -> None:
    """What a conversion would do, on standard output."""
    emit("".join(printable(line) + "\n" for line in conversion.diff.split("\n")[:-1]))
    emit(f"{files} files go along, at most {new_bytes:,} bytes would be written; nothing was touched\n")


def show_gguf_plan(conversion: "GgufConversion", size: int) -> None:
    """What a conversion of a GGUF would do, on standard output."""
    for edit in conversion.edits:
        emit(f"{printable(edit.key)}: {_short(edit.old)} -> {_short(edit.new)}\n")
    emit(f"one file of {size:,} bytes would be written; nothing was touched\n")


def show_receipt(conversion: "Conversion", receipt: "Receipt", *, quiet: bool) -> None:
    """What was done, on standard error."""
    say(f"wrote {receipt.path}: {len(receipt.files)} files, {receipt.new_bytes:,} new bytes on the disk", quiet=quiet)
    counts: dict[str, int] = {}
    for how in receipt.files.values():
        counts[how] = counts.get(how, 0) + 1
    say("files: " + ", ".join(f"{count} {how}" for how, count in sorted(counts.items())), quiet=quiet)
    if receipt.table_error is not None:
        say(f"tables: stored values are off by at most {receipt.table_error:.2g}", quiet=quiet)
    _show_edits(conversion.edits, conversion.notes, quiet=quiet)


def show_gguf_receipt(conversion: "GgufConversion", receipt: "Receipt", *, quiet: bool) -> None:
    """What was done to a GGUF, on standard error."""
    say(f"wrote {receipt.path}: {receipt.new_bytes:,} bytes", quiet=quiet)
    _show_edits(conversion.edits, conversion.notes, quiet=quiet)


def _show_edits(edits: Sequence["Edit"], notes: Sequence[str], *, quiet: bool) -> None:
    for edit in edits:
        if edit.old is not None or edit.new is not None:  # a null is as good as nothing
            say(f"  {edit.key}: {_short(edit.old)} -> {_short(edit.new)}", quiet=quiet)
    for note in notes:
        say(f"note: {note}", quiet=quiet)
    say("read back: it gives the frequencies and the attention factor that were asked for", quiet=quiet)


def show_disagreements(others: Sequence["Disagreement"], *, quiet: bool) -> None:
    """The runtimes that will compute something else, and what helps, on standard error."""
    for other in others:
        say(f"not in {other.runtime}: {_off_by(other.row)}; {other.help}", quiet=quiet)


def _off_by(row: RuntimeRow) -> str:
    if row.max_rel_diff is None or row.attention_factor is None:
        return "it stops"
    return f"frequencies off by {100 * row.max_rel_diff:.3g} %, attention factor {row.attention_factor:.5g}"


def _short(value: object) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "…"


def conversion_to_json(
    conversion: "Conversion", receipt: "Receipt | None", others: Sequence["Disagreement"]
) -> dict[str, Any]:
    """The document of `ropecli convert --json`."""
    return _conversion_document(conversion, receipt) | {
        "diff": conversion.diff,
        "disagreeing": [
            {
                "runtime": other.runtime,
                "attention_factor": other.row.attention_factor,
                "max_rel_diff": other.row.max_rel_diff,
                "help": other.help,
            }
            for other in others
        ],
    }


def gguf_to_json(conversion: "GgufConversion", receipt: "Receipt | None", size: int) -> dict[str, Any]:
    """The document of `ropecli convert --json` for a GGUF."""
    return _conversion_document(conversion, receipt) | {"size": size}


def _conversion_document(conversion: "Conversion | GgufConversion", receipt: "Receipt | None") -> dict[str, Any]:
    return {
        "schema_version": 1,
        "source": conversion.checkpoint.source,
        "output": None if receipt is None else str(receipt.path),
        "edits": [{"key": edit.key, "old": edit.old, "new": edit.new} for edit in conversion.edits],
        "files": {} if receipt is None else dict(receipt.files),
        "bytes_written": 0 if receipt is None else receipt.new_bytes,
        "notes": list(conversion.notes),
        "verified": receipt is not None,
    }


def _big(number: float, unit: str) -> str:
    """`1.23 PFLOP`, `940 MB`: three digits and a prefix."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:,.3g} E{unit}"


def show_cost(plan: "Plan") -> None:
    """What a calibration will cost: a line a factor, then memory and time."""
    active = f", {_big(plan.shape.active, '').rstrip()} met by a token" if plan.shape.sparse else ""
    size = f"{_big(plan.shape.parameters, '').rstrip()} parameters{active}, {plan.dtype}"
    emit(f"{printable(plan.source)}: {size}\n")
    table = _plain_table("factor", "window", "search", "held out", "passes", "one pass", "in all")
    for part in plan.factors:
        search, held = (f"{part_.windows:,} × {part.length:,}" for part_ in (part.searched, part.held_out))
        flops = [_big(number, "FLOP") for number in (part.pass_flops, part.flops)]
        table.add_row(f"{part.factor:g}", f"{part.length:,}", search, held, f"{part.passes:.1f}", *flops)
    emit_table(table)
    memory = plan.memory
    parts = [("weights", memory.weights), ("activations", memory.activations), ("logits", memory.logits)]
    parts += [("attention scores", memory.attention)] if memory.attention else []
    listed = ", ".join(f"{name} {_big(number, 'B')}" for name, number in parts)
    at_once = f"{plan.windows_at_once} window{'s' if plan.windows_at_once > 1 else ''} at once"
    emit(f"memory of a process: {_big(memory.total, 'B')}, {at_once}\n  {listed}\n")
    if plan.hours is not None and plan.rate is not None:
        emit(f"time: {_hours(plan.hours)} of one process at {_big(plan.rate, 'FLOP/s')}, divided by their number\n")


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.1f} seconds"


class TrialLog:
    """Progress of a calibration on standard error: a live view on a terminal, a line a trial elsewhere.

    The view is the last trial, the best so far, and a bar with the forward equivalents left and the time they will
    take, each on a line of its own that is cut to the terminal's width.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live: Any = None
        self._bar: Any = None
        self._task: Any = None
        self._count, self._work = 0, 0.0
        self._lines: tuple[str, ...] = ()
        if not quiet and sys.stderr.isatty():
            from rich.live import Live  # noqa: PLC0415 - slow
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415 - slow

            self._bar = Progress(
                TextColumn("searching"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
            )
            self._live = Live(get_renderable=self._view, console=_console(sys.stderr), transient=True)

    def __enter__(self) -> "TrialLog":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def _view(self) -> Any:
        from rich.console import Group  # noqa: PLC0415 - slow
        from rich.text import Text  # noqa: PLC0415 - slow

        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in self._lines]
        return Group(*lines, *([] if self._task is None else [self._bar]))

    def say(self, text: str) -> None:
        """A line above the view."""
        if self._live is not None:
            self._live.console.print(_text(printable(text)))
        else:
            say(text, quiet=self._quiet)

    def expect(self, work: float) -> None:
        """How much work the search will probably be, in the unit that `trial` counts."""
        if self._live is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._work = work
            self._task = self._bar.add_task(f"{work:.1f} forward equivalents,", total=work)

    def trial(self, trial: "Trial", best: "Trial", done: float) -> None:
        """A new trial; `done` is the work so far."""
        self._count += 1
        last = f"trial {self._count}: {_trial_words(trial)}"
        if self._live is None:
            say(f"{last}; best {best.nll:.4f}", quiet=self._quiet)
            return
        self._lines = last, f"best so far: {_trial_words(best)}"
        if self._task is not None:
            left = max(self._work - done, 0.0)
            self._bar.update(self._task, completed=done, description=f"{left:.1f} forward equivalents,")


def _trial_words(trial: "Trial") -> str:
    low, high, m = trial.point
    documents = f"{trial.documents} document{'' if trial.documents == 1 else 's'}"
    return f"corners {low:.4g}, {high:.4g}, m {m:.4f}: {trial.nll:.4f} nats on {documents}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _interval(low: float, high: float) -> str:
    return f"{low:+.4f} to {high:+.4f}" if math.isfinite(low) else "unknown"


def show_calibration(calibration: "Calibration", *, quiet: bool) -> None:
    """The verdict and the held-out tables, on standard error (standard output holds the calibration file)."""
    if quiet:
        return
    console = _console(sys.stderr)
    held_out = {}
    for factor in calibration.factors:
        rows = [row for row in calibration.validation if row.factor == factor]
        held_out[factor] = f"{rows[0].documents} held-out documents at {rows[0].length} tokens"
        if calibration.fits:
            console.print(_text(f"factor {factor:g}, {held_out[factor]}"))
        console.print(_held_out_table(rows))
    cost = calibration.cost
    evaluations = f"{cost['evaluations']} evaluation{'' if cost['evaluations'] == 1 else 's'}"
    spent = f"{evaluations} cost {cost['forward_equivalents']:.1f} forward equivalents; {cost['seconds']:.0f} s in all"
    console.print(_text(spent if calibration.fits else f"{held_out[calibration.factors[0]]}; {spent}"))
    if not calibration.fits:
        console.print(_text(_optimism(calibration.calibration)))
    for note in calibration.notes:
        console.print(_text(f"note: {note}"))
    if calibration.law is not None:
        console.print(_text(_law_line(calibration.law)))
    for fit in calibration.fits:
        console.print(_text(f"factor {fit.factor:g}: {fit.decision} ({fit.reason})"))
    if not calibration.fits:
        console.print(_text(f"decision: {calibration.decision} ({calibration.reason})"))


def _optimism(block: "Mapping[str, Any]") -> str:
    gain = f"on its own text the search gained {block['default_nll'] - block['nll']:.4f} nats a token"
    return gain if block["optimism"] is None else f"{gain}, {block['optimism']:+.4f} more than on held-out text"


def _ppl(nll: float | None) -> str:
    """exp(nll), nothing for None; in powers of ten where digits would say nothing."""
    if nll is None:
        return ""
    value = math.exp(nll) if nll < 709 else math.inf if nll > 0 else nll
    return f"{value:.3e}" if 1e7 <= value < math.inf else f"{value:.3f}"


def _held_out_table(rows: "Sequence[Validation]") -> Any:
    headings = [row.positions + (" L" if row.positions != "all" else "") for row in rows]
    table = _plain_table("held-out perplexity", *headings)
    labels = {"none": "no scaling", "linear": "PI (linear)", "ntk": "NTK-aware", "ntk-by-parts": "NTK-by-parts"}
    for name, label in labels.items():
        table.add_row(label, *(_ppl(row.baselines[name]) for row in rows))
    table.add_row("default YaRN", *(_ppl(row.default_nll) for row in rows))
    table.add_row("search result", *(_ppl(row.nll) for row in rows))
    table.add_row("change, nats a token", *(_signed(row.delta) for row in rows))
    table.add_row("95 % interval", *(_interval(*row.ci95) for row in rows))
    return table


def _law_line(law: "Law") -> str:
    """What the attention factors of several factors say about YaRN's own law."""
    line = f"m(s) = {law.a:.3f}·ln s {'-' if law.b < 0 else '+'} {abs(law.b):.3f}"
    if law.default_rejected is None:
        return f"{line}; two factors cannot say whether YaRN's 0.1·ln s + 1 is right"
    verdict = f"YaRN's 0.1·ln s + 1 is {'' if law.default_rejected else 'not '}rejected"
    if law.default_loss is None:
        return f"{line}; {verdict} (95 %)"
    loss, low, high = law.default_loss
    span = f"{loss:+.4f} nats a token, 95 % interval {low:+.4f} to {high:+.4f}"
    return f"{line}; {verdict}: at the same corners it costs {span}"


def row_to_json(row: "Row") -> dict[str, Any]:
    """One line of `ropecli evaluate --json`."""

    def difference(value: Any) -> dict[str, Any] | None:
        if value is None:
            return None
        finite = math.isfinite(value.low)
        return {"delta": value.delta, "ci95": [value.low, value.high] if finite else None, "documents": value.documents}

    return {
        "schema_version": 1,
        "model": row.model,
        "method": row.method,
        "length": row.length,
        "documents": row.documents,
        "tokens": row.tokens,
        "nll": row.nll,
        "ppl": row.ppl,
        "standard_error": row.standard_error,
        "within_nll": row.within,
        "beyond_nll": row.beyond,
        "difference": difference(row.difference),
        "beyond_difference": difference(row.beyond_difference),
        "original_length": row.original_length,
        "protocol": row.protocol,
        "stride": row.stride,
        "by_position": [
            {"start": part.start, "end": part.end, "nll": part.nll, "standard_error": part.standard_error}
            for part in row.by_position
        ],
    }


def curves(rows: Sequence["Row"]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Loss by position as lines of a figure: label → (middle of the bin, nats, ± one standard error)."""
    several = len({row.model for row in rows}) > 1
    found = {}
    for row in rows:
        if row.by_position:
            found[f"{row.model} {row.method}" if several else row.method] = [
                (
                    (part.start + part.end - 1) / 2,
                    part.nll,
                    part.nll - (part.standard_error or 0),
                    part.nll + (part.standard_error or 0),
                )
                for part in row.by_position
            ]
    return found


def checkpoint_to_json(checkpoint: "Checkpoint") -> dict[str, str]:
    """What a report says of a checkpoint."""
    return {name: getattr(checkpoint, name) for name in ("source", "model_type", "config_sha256")}


def show_positions(rows: Sequence["Row"]) -> None:
    """Loss by position: a line a bin, a column a method, ± one standard error over documents."""
    for model, group in groupby((row for row in rows if row.by_position), key=lambda row: row.model):
        columns = list(group)
        table = _plain_table("positions", *(escape(printable(row.method)) for row in columns))
        for parts in zip(*(row.by_position for row in columns), strict=True):
            losses = (
                f"{part.nll:.4f}" + ("" if part.standard_error is None else f" ±{part.standard_error:.4f}")
                for part in parts
            )
            table.add_row(f"{parts[0].start:,}–{parts[0].end - 1:,}", *losses)
        emit(f"{printable(model)}, nats a token by position\n")
        emit_table(table)


def passkey_to_json(row: "PasskeyRow") -> dict[str, Any]:
    """One line of `ropecli evaluate --passkey --json`."""
    return {
        "schema_version": 1,
        "kind": "passkey",
        "model": row.model,
        "method": row.method,
        "length": row.length,
        "depth": row.depth,
        "trials": row.trials,
        "found": row.found,
        "ci95": [row.low, row.high],
        "nll": row.nll,
        "tokens": row.tokens,
        "standard_error": row.standard_error,
    }


def show_passkeys(rows: Sequence["PasskeyRow"]) -> None:
    """The table of `ropecli evaluate --passkey`: exact matches with their 95 % interval, loss ± one standard error."""
    for model, group in groupby(rows, key=lambda row: row.model):
        table = _plain_table("method", "length", "depth", "found", "95 % interval", "nats a token of the number")
        for row in group:
            cells = [
                row.method,
                f"{row.length:,}",
                f"{row.depth:.0%}",
                f"{row.found} of {row.trials}",
                f"{row.low:.0%} to {row.high:.0%}",
                f"{row.nll:.4f}" + ("" if row.standard_error is None else f" ±{row.standard_error:.4f}"),
            ]
            table.add_row(*(escape(printable(cell)) for cell in cells))
        emit(f"{printable(model)}, passkey, lengths in tokens\n")
        emit_table(table)


def _reach(difference: "Difference") -> str:
    half = (difference.high - difference.low) / 2
    return f"±{half:.4f}" if math.isfinite(half) else "(one document)"


def show_rows(rows: Sequence["Row"]) -> None:
    """The table of `ropecli evaluate`: standard errors over documents, 95 % reach of the paired difference."""
    for (model, protocol), group in groupby(rows, key=lambda row: (row.model, row.protocol)):
        parts = ["ppl to L", "ppl past L"] if protocol == "full" else []
        table = _plain_table("method", "length", "nats a token", "ppl", *parts, "vs first, nats")
        for row in group:
            cells = [
                row.method,
                f"{row.length:,}",
                f"{row.nll:.4f}" + ("" if row.standard_error is None else f" ±{row.standard_error:.4f}"),
                _ppl(row.nll),
                *map(_ppl, (row.within, row.beyond)[: len(parts)]),
                "" if row.difference is None else f"{row.difference.delta:+.4f} {_reach(row.difference)}",
            ]
            table.add_row(*(escape(printable(cell)) for cell in cells))
        emit(f"{printable(model)}, {'' if protocol == 'full' else f'protocol {protocol}, '}lengths in tokens\n")
        emit_table(table)
