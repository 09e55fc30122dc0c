"""The options that several verbs have, each declared once so that it reads the same in all; and checks of values."""

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ropecli.errors import BadUsage

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmM]?)")
_RATE = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([GTP]?)", re.IGNORECASE)
_SCALE = {"": 1.0, "G": 1e9, "T": 1e12, "P": 1e15}
_UNIT = {"": 1, "k": 1024, "m": 1024 * 1024}


def length(text: str, option: str) -> int:
    """`32768`, `32k` (k = 1024) or `1m` in tokens. Raises BadUsage."""
    match = _LENGTH.fullmatch(text.strip())
    tokens = float(match[1]) * _UNIT[match[2].lower()] if match else 0.0
    if not 1 <= tokens <= 2**40 or tokens != int(tokens):
        raise BadUsage(f"expected a length in tokens, found {text!r}", where=option, hint="for example 32768 or 32k")
    return int(tokens)


def optional_length(text: str | None, option: str) -> int | None:
    """`length` where one is given. Raises BadUsage."""
    return None if text is None else length(text, option)


def lengths(text: str, option: str) -> tuple[int, ...]:
    """Comma-separated lengths, at least one. Raises BadUsage."""
    return tuple(length(part, option) for part in names(text, option, "lengths"))


def rate(text: str, option: str) -> float:
    """`400T`, `1.5P` or `4e14` in operations a second. Raises BadUsage."""
    match = _RATE.fullmatch(text.strip())
    found = float(match[1]) * _SCALE[match[2].upper()] if match else 0.0
    if not 0 < found < math.inf:
        raise BadUsage(f"expected operations a second, found {text!r}", where=option, hint="for example 400T or 4e14")
    return found


def names(text: str, option: str, what: str = "names") -> tuple[str, ...]:
    """Comma-separated names, at least one. Raises BadUsage."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise BadUsage(f"expected {what}, found none", where=option)
    return found


def one_of(option: str, value: str | None, known: tuple[str, ...]) -> None:
    """Refuse a value that is none of the known ones; None is nothing given. Raises BadUsage."""
    if value is not None and value not in known:
        raise BadUsage(f"unknown {value!r}", where=option, hint=f"known: {', '.join(known)}")


def belong_to(owner: str, given: Mapping[str, bool]) -> None:
    """Refuse options that say nothing without another one. Raises BadUsage."""
    for option, is_given in given.items():
        if is_given:
            raise BadUsage("says nothing here", where=option, hint=f"it goes with {owner}")


def no_nan(values: Mapping[str, float | None]) -> None:
    """A limit that is no number passes every comparison with one."""
    for option, value in values.items():
        if value is not None and value != value:  # noqa: PLR0124 - NaN alone differs from itself
            raise BadUsage("expected a number, found nan", where=option)


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Comma-separated numbers. Raises BadUsage."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise BadUsage(f"expected numbers with commas between, found {text!r}", where=option) from error


MODEL_HELP = "A checkpoint folder, a config.json, a .gguf file, a params.json, or a Hub id."
DATA_HELP = (
    "Text: .txt, .md, .jsonl, .parquet, a folder of those, a .json of rows, or - for standard input (text or JSONL). "
    "Repeatable. "
    "A document is a file, or a row."
)
flag = functools.partial(typer.Option, metavar="")
"""An option without a value; typer's own help would show `<bool>` behind it."""
BAKE, MODEL, TALK = "Baking", "Loading the model", "Output"

Model: TypeAlias = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Models: TypeAlias = Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP)]
Json: TypeAlias = Annotated[bool, flag("--json", help="Print JSON, one document a line.", rich_help_panel=TALK)]
Quiet: TypeAlias = Annotated[bool, flag("--quiet", "-q", help="No progress, no notes.", rich_help_panel=TALK)]
Verbose: TypeAlias = Annotated[
    bool, flag("--verbose", "-v", help="Show what the libraries say, too.", rich_help_panel=TALK)
]
Debug: TypeAlias = Annotated[bool, flag("--debug", help="Show a traceback with an error.", rich_help_panel=TALK)]
TextField: TypeAlias = Annotated[str, typer.Option(help="The key that holds the text of a row.")]
Factor: TypeAlias = Annotated[
    float | None, typer.Option(metavar="S", help="Extension factor: target length divided by original length.")
]
TargetLength: TypeAlias = Annotated[
    str | None, typer.Option(metavar="N", help="Target length in tokens, instead of --factor; 32k is 32768.")
]
OriginalLength: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="N", help="The length that the model was trained for, where the config does not say it."),
]
Force: TypeAlias = Annotated[bool, flag("--force", "-f", help="Replace an existing output.")]
Report: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.html", help="Write a page with tables and figures that needs no network and no script; it prints."
    ),
]
Documents: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Use at most this many documents.")]
Windows: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1, help="Windows a document, at most. Default: as many as make about 24 of all documents in --data."
    ),
]
Device: TypeAlias = Annotated[
    str, typer.Option(help="auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps.", rich_help_panel=MODEL)
]
Dtype: TypeAlias = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16, float16. auto: the checkpoint's own; on a CPU that is far slower in it "
        "(measured) float32, where that fits into half of the memory.",
        rich_help_panel=MODEL,
    ),
]
DeviceMap: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Spread the model over devices (accelerate): auto, balanced, …", rich_help_panel=MODEL),
]
AttnImplementation: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Attention of transformers: sdpa, eager, flash_attention_2, … Default: its own choice; where it is sdpa, "
        "a bfloat16 model on a CPU with AVX512-BF16 and no AMX has it in float32 for windows over 1,024 tokens: it is "
        "quicker there.",
        rich_help_panel=MODEL,
    ),
]
TensorParallel: TypeAlias = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Under torchrun: so many processes hold one model together, a part of each layer in each of them.",
        rich_help_panel=MODEL,
    ),
]
TrustRemoteCode: TypeAlias = Annotated[
    bool,
    flag("--trust-remote-code", help="Run the code that the checkpoint brings.", rich_help_panel=MODEL),
]
