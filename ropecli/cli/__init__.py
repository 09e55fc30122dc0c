"""The command line: parse, call, render. Every rule about output and exit status for all verbs is here."""

import errno
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from ropecli import __version__, options
from ropecli.cli import loading
from ropecli.cli.calibrate import calibrate_command
from ropecli.cli.convert import convert_command
from ropecli.cli.evaluate import evaluate_command
from ropecli.cli.inspect import inspect_command
from ropecli.errors import BadUsage, NoResource, RopeError
from ropecli.render import terminal

app = typer.Typer(
    name="ropecli",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Give a model a longer context: look at its rotary embedding (RoPE), find the best way to stretch it, and "
    "write a checkpoint that every runtime reads the same way.",
    epilog="The whole job in one line: ropecli calibrate M --data F --factor 4 | ropecli convert M -o OUT --from -",
)
INTERRUPTED = 130
SHARED = ("calibrate", "evaluate")
"""Verbs that several processes of a torchrun can do together."""
PATIENCE = 2.0
"""Seconds that a process of a torchrun leaves to the first one for saying what went wrong."""


def _version(wanted: bool) -> None:
    if wanted:
        terminal.emit(f"ropecli {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, options.flag("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


def _help(command: Callable[..., None]) -> str:
    """Its docstring, each paragraph in one line: typer keeps breaks, and terminals have widths of their own."""
    paragraphs = (command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for name, command, example in (
    ("inspect", inspect_command, "MODEL --target-length 128k"),
    ("calibrate", calibrate_command, "MODEL --data texts/ --target-length 128k -o calibration.json"),
    ("convert", convert_command, "MODEL --from calibration.json -o MODEL-128k"),
    ("evaluate", evaluate_command, "MODEL MODEL-128k --data texts/ --lengths 8k,128k"),
):
    app.command(name, help=_help(command), epilog=f"For example: ropecli {name} {example}")(command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with terminal.steady_streams(), _ending_on_signals():
        status = _run(arguments)
    sys.exit(status)


class _Ended(BaseException):
    """A signal asks the program to end; what is being written is taken back on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP unwind the program; a second one does not disturb that.

    A signal that is already ignored (nohup) or handled stays so.
    """

    def end(number: int, _: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        raise _Ended(number)

    ours = [
        number
        for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
        if number is not None
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _run(arguments: list[str]) -> int:
    as_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        result = app(arguments, prog_name="ropecli", standalone_mode=False, obj=arguments)
    except terminal.ReaderGone:
        return terminal.PIPE_CLOSED
    except SystemExit as stop:
        # typer and rich stop with 1 when the reader of their help is gone; nothing else here raises it
        return terminal.PIPE_CLOSED if stop.code == 1 else int(stop.code or 0)
    except typer.TyperException as error:
        if not arguments:
            return BadUsage.exit_status  # the help is on the screen already
        failure: RopeError = BadUsage(error.format_message(), hint=f"ropecli {_verb(arguments)}--help")
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except _Ended as ended:
        return ended.status
    except (RopeError, OSError, MemoryError) as error:
        failure = _failure(error)
        if debug:
            _traceback(error)
    else:
        return result if isinstance(result, int) else 0
    if not loading.speaks() and _verb(arguments).strip() in SHARED:
        # torchrun ends the first process once another one is gone, and that one has the same to say
        time.sleep(PATIENCE)
        return failure.exit_status
    try:
        terminal.show_error(failure, as_json=as_json, findings=failure.findings)
    except terminal.ReaderGone:
        return terminal.PIPE_CLOSED
    except NoResource as full:
        terminal.show_error(full, as_json=False)
        return full.exit_status
    return failure.exit_status


def _failure(error: RopeError | OSError | MemoryError) -> RopeError:
    """An error in words: also what the system refuses wherever no file can be blamed better."""
    if isinstance(error, RopeError):
        return error
    if isinstance(error, MemoryError):
        return NoResource("out of memory", hint="try a smaller --target-length or --dtype bfloat16")
    kind = BadUsage if error.errno in {errno.ENAMETOOLONG, errno.ELOOP} else NoResource
    return kind(error.strerror or type(error).__name__, where=str(error.filename or ""), hint="--debug shows where")


def _traceback(error: BaseException) -> None:
    import traceback  # noqa: PLC0415 - slow to import, rarely wanted

    traceback.print_exception(error)


def _verb(arguments: list[str]) -> str:
    known = {command.name for command in app.registered_commands}
    return next((f"{word} " for word in arguments if word in known), "")
