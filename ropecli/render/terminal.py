"""How text gets to standard output and standard error, safely.

Standard output carries the result and nothing else; everything else goes to standard error.
"""

import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from ropecli.errors import NoResource, RopeError, printable
from ropecli.findings import Finding
from ropecli.inspection import finding_to_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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


def console_on(stream: TextIO) -> "Console":
    """rich on a stream: as wide as the terminal there, uncut elsewhere."""
    from rich.console import Console  # noqa: PLC0415 - a JSON document needs no rich

    # off a terminal nothing may be cut to a width
    return Console(
        file=stream, width=None if stream.isatty() else 10_000, highlight=False, emoji=False, soft_wrap=False
    )


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
    console = console_on(sys.stdout)
    with console.capture() as captured:
        console.print(table)
    emit("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def say(text: str, *, quiet: bool = False) -> None:
    """A note for people, on standard error."""
    if not quiet:
        console_on(sys.stderr).print(styled(printable(text)))


def show_error(error: RopeError, *, as_json: bool, findings: Sequence[Finding] = ()) -> None:
    """One line and a hint on standard error; with --json the same as a document on standard output."""
    if as_json:
        document: dict[str, Any] = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        emit_json(document | ({"findings": [finding_to_json(f) for f in findings]} if findings else {}))
        return
    console = console_on(sys.stderr)
    for label, text in finding_lines(findings):
        console.print(styled(f"{label}: {printable(text)}"))
    console.print(styled(("error: ", "bold red"), error.message))
    if error.hint:
        console.print(styled(("hint: ", "bold"), printable(error.hint)))


def show_failures(source: str, failures: Sequence[str]) -> None:
    """The checks that failed, one line each, on standard error."""
    for failure in failures:
        console_on(sys.stderr).print(styled(("failed: ", "bold red"), printable(f"{source}: {failure}")))


def finding_lines(findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    """(severity and id, text with the fix) of each finding."""
    for finding in findings:
        fix = ", ".join(
            f"{key} = {'(remove)' if value is None else short(value)}" for key, value in finding.fix.items()
        )
        end = "" if finding.message.endswith("?") else "."
        text = f"{finding.message}{end} {finding.effect}" + (f" Fix: {fix}" if fix else "")
        yield f"{finding.severity} {finding.id}", text


@contextmanager
def data_only() -> Iterator[None]:
    """Send whatever libraries print to standard error, so that standard output stays clean."""
    with redirect_stdout(sys.stderr):
        yield


def styled(*parts: str | tuple[str, str]) -> "Text":
    """Text with its styles: a string, or (string, style) for each part; no markup is read from it."""
    from rich.text import Text  # noqa: PLC0415

    return Text.assemble(*parts)


def escape(text: str) -> str:
    """Text for a table cell: what looks like rich's markup is shown as it is."""
    from rich.markup import escape as escaped  # noqa: PLC0415

    return escaped(text)


def plain_table(*headings: str) -> "Table":
    """A table without lines: the first column to the left, the others to the right."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, show_header=bool(headings))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
    return table


def short(value: object) -> str:
    """A value of a config in at most 100 characters."""
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "…"


def ppl_text(nll: float | None) -> str:
    """exp(nll), nothing for None; in powers of ten where digits would say nothing."""
    if nll is None:
        return ""
    value = math.exp(nll) if nll < 709 else math.inf if nll > 0 else nll
    return f"{value:.3e}" if 1e7 <= value < math.inf else f"{value:.3f}"
