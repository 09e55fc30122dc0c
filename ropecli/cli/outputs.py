"""What can be known of the files to write before anything is computed for them."""

import os
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import typer

from ropecli.errors import BadUsage, NoResource, OutputExists


def _check_output_file(output: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, or is there already. Raises BadUsage, OutputExists and NoResource."""
    if not output.parent.is_dir():
        raise BadUsage(
            "the folder to write into does not exist", where=str(output.parent), hint=f"mkdir -p {output.parent}"
        )
    if output.is_dir():
        raise BadUsage("expected a file, found a folder", where=str(output), hint="name a file in it")
    if output.exists() and not output.is_file():
        raise BadUsage("is a device or a pipe, which is never replaced", where=str(output), hint="name a file")
    if output.exists() and not force:
        raise OutputExists("already exists", where=str(output), hint="choose another name, or replace it with --force")
    if not os.access(output.parent, os.W_OK):
        raise NoResource("the folder cannot be written to", where=str(output.parent))


def check_outputs(files: Mapping[str, Path | None], *, force: bool) -> None:
    """Refuse files that cannot be written, or that this option does not write; keys are the options, None not given.

    Raises BadUsage, OutputExists and NoResource.
    """
    wanted = {option: path for option, path in files.items() if path is not None}
    for option, path in wanted.items():
        _check_output_file(path, force=force)
        suffix = path.suffix.lower()
        if option == "--plot" and suffix not in {".png", ".svg"}:
            problem = f"a figure is a .png or .svg file, found {suffix or 'no suffix'}"
            raise BadUsage(problem, where=str(path), hint="name it FILE.svg")
        if option == "--report" and suffix not in {".html", ".htm"}:
            raise BadUsage(
                f"a report is an .html file, found {suffix or 'no suffix'}", where=str(path), hint="name it FILE.html"
            )
        if option in {"--plot", "--report"} and find_spec("matplotlib") is None:
            raise NoResource("drawing needs matplotlib", hint="pip install matplotlib")
    if len({path.resolve() for path in wanted.values()}) < len(wanted):
        raise BadUsage(f"{' and '.join(wanted)} name the same file", hint="give each a file of its own")


def command_line(context: typer.Context) -> str:
    """What was typed, quoted for a shell."""
    return shlex.join(["ropecli", *context.find_root().obj])
