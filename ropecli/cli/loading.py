"""What the verbs that load a model share: quiet libraries, remote code by name, the processes of a torchrun."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ropecli.checkpoint import read_checkpoint
from ropecli.errors import BadUsage, printable
from ropecli.render import terminal

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process that it starts; `calibrate.parallel` goes by the same, and takes seconds to load."""


def speaks() -> bool:
    """Whether this is the one process of a torchrun that talks and writes; a process without a torchrun is."""
    return not all(name in os.environ for name in LAUNCHED) or int(os.environ["RANK"]) == 0


@contextmanager
def ranks(tensor_parallel: int, data: Sequence[str], output: Path | None) -> Iterator[None]:
    """Inside the block the processes of a torchrun work together."""
    from calibrate.parallel import joined  # noqa: PLC0415 - torch takes seconds

    kept = "the scores so far are kept: run it again with --resume"
    with joined(tensor_parallel, hint="run it again" if output is None else kept) as ranks:
        if ranks.size > 1 and "-" in data:
            raise BadUsage("standard input cannot be read by several processes", where="--data", hint="give files")
        yield


def refuse_standard_input(models: Sequence[str]) -> None:
    """`-` is a config without weights. Raises BadUsage."""
    if "-" in models:
        raise BadUsage("a config on standard input has no weights", where="MODEL", hint="name the checkpoint's folder")


def name_remote_code(models: Sequence[str]) -> None:
    """Say on standard error, --quiet or not, which files --trust-remote-code will run."""
    from ropecli.remote_code import files_that_would_run  # noqa: PLC0415

    for model in models:
        files = files_that_would_run(read_checkpoint(model))
        terminal.say(f"--trust-remote-code runs code of {model}: {', '.join(files) or 'none that its configs name'}")


def quiet_libraries(*, verbose: bool) -> None:
    """Library noise belongs to -v; the user's own environment wins.

    What libraries log and warn of may quote a file: its control characters are made visible.
    """
    import logging  # noqa: PLC0415 - only what loads libraries needs it

    record = logging.getLogRecordFactory()

    def escaped(*details: Any, **more: Any) -> logging.LogRecord:
        made = record(*details, **more)
        made.msg, made.args = "\n".join(map(printable, made.getMessage().split("\n"))), ()
        return made

    logging.setLogRecordFactory(escaped)
    logging.captureWarnings(capture=True)
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
