"""A calibration as it goes, what it found, and what it will cost."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ropecli.errors import printable
from ropecli.render.terminal import console_on, emit, emit_table, plain_table, ppl_text, say, styled

if TYPE_CHECKING:
    from calibrate.calibration import Calibration, Law, Validation
    from calibrate.plan import Plan
    from calibrate.trials import Trial


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
    table = plain_table("factor", "window", "search", "held out", "passes", "one pass", "in all")
    for part in plan.factors:
        search, held = (_windows(text.windows) for text in (part.searched, part.held_out))
        flops = [_big(number, "FLOP") for number in (part.pass_flops, part.flops)]
        table.add_row(f"{part.factor:g}", f"{part.length:,} tokens", search, held, f"{part.passes:.1f}", *flops)
    emit_table(table)
    memory = plan.memory
    parts = [("weights", memory.weights), ("activations", memory.activations), ("logits", memory.logits)]
    parts += [("attention scores", memory.attention)] if memory.attention else []
    listed = ", ".join(f"{name} {_big(number, 'B')}" for name, number in parts)
    emit(f"memory of a process: {_big(memory.total, 'B')}, {_windows(plan.windows_at_once)} at once\n  {listed}\n")
    if plan.hours is not None and plan.rate is not None:
        emit(f"time: {_hours(plan.hours)} of one process at {_big(plan.rate, 'FLOP/s')}, divided by their number\n")


def _windows(number: int) -> str:
    return f"{number:,} window{'s' if number > 1 else ''}"


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
            self._live = Live(get_renderable=self._view, console=console_on(sys.stderr), transient=True)

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
            self._live.console.print(styled(printable(text)))
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
    return f"corners {low:.4g}, {high:.4g}, m {m:.4f}: {trial.nll:.4f} nats a token, {documents}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _interval(low: float, high: float) -> str:
    return f"{low:+.4f} to {high:+.4f}" if math.isfinite(low) else "unknown"


def show_calibration(calibration: "Calibration", *, quiet: bool) -> None:
    """The verdict and the held-out tables, on standard error (standard output holds the calibration file)."""
    if quiet:
        return
    console = console_on(sys.stderr)
    held_out = {}
    for factor in calibration.factors:
        rows = [row for row in calibration.validation if row.factor == factor]
        held_out[factor] = f"{rows[0].documents} held-out documents at {rows[0].length} tokens"
        if calibration.fits:
            console.print(styled(f"factor {factor:g}, {held_out[factor]}"))
        console.print(_held_out_table(rows))
    cost = calibration.cost
    evaluations = f"{cost['evaluations']} evaluation{'' if cost['evaluations'] == 1 else 's'}"
    spent = f"{evaluations} cost {cost['forward_equivalents']:.1f} forward equivalents; {cost['seconds']:.0f} s in all"
    console.print(styled(spent if calibration.fits else f"{held_out[calibration.factors[0]]}; {spent}"))
    if not calibration.fits:
        console.print(styled(_optimism(calibration.calibration)))
    for note in calibration.notes:
        console.print(styled(f"note: {note}"))
    if calibration.law is not None:
        console.print(styled(_law_line(calibration.law)))
    for fit in calibration.fits:
        console.print(styled(f"factor {fit.factor:g}: {fit.decision} ({fit.reason})"))
    if not calibration.fits:
        console.print(styled(f"decision: {calibration.decision} ({calibration.reason})"))


def _optimism(block: Mapping[str, Any]) -> str:
    gain = f"on its own text the search gained {block['default_nll'] - block['nll']:.4f} nats a token"
    return gain if block["optimism"] is None else f"{gain}, {block['optimism']:+.4f} more than on held-out text"


def _held_out_table(rows: Sequence["Validation"]) -> Any:
    headings = [row.positions + (" L" if row.positions != "all" else "") for row in rows]
    table = plain_table("held-out perplexity", *headings)
    labels = {"none": "no scaling", "linear": "PI (linear)", "ntk": "NTK-aware", "ntk-by-parts": "NTK-by-parts"}
    for name, label in labels.items():
        table.add_row(label, *(ppl_text(row.baselines[name]) for row in rows))
    table.add_row("default YaRN", *(ppl_text(row.default_nll) for row in rows))
    table.add_row("search result", *(ppl_text(row.nll) for row in rows))
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
