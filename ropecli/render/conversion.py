"""What a conversion would do, and what it did."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ropecli.errors import printable
from ropecli.render.inspection import off_by
from ropecli.render.terminal import emit, say, short

if TYPE_CHECKING:
    from ropecli.agreement import Disagreement
    from ropecli.conversion import Conversion, Edit
    from ropecli.gguf_writer import GgufConversion
    from ropecli.writer import Receipt


def show_plan(conversion: "Conversion", new_bytes: int, files: int, *, quiet: bool) -> None:
    """What a conversion would do, on standard output; what to know of it, on standard error."""
    emit("".join(printable(line) + "\n" for line in conversion.diff.split("\n")[:-1]))
    emit(f"files that go along: {files}; at most {new_bytes:,} bytes would be written; nothing was touched\n")
    _say_notes(conversion.notes, quiet=quiet)


def show_gguf_plan(conversion: "GgufConversion", size: int, *, quiet: bool) -> None:
    """What a conversion of a GGUF would do, on standard output; what to know of it, on standard error."""
    for edit in conversion.edits:
        emit(f"{printable(edit.key)}: {short(edit.old)} -> {short(edit.new)}\n")
    emit(f"one file of {size:,} bytes would be written; nothing was touched\n")
    _say_notes(conversion.notes, quiet=quiet)


def show_receipt(conversion: "Conversion", receipt: "Receipt", *, quiet: bool) -> None:
    """What was done, on standard error."""
    count = len(receipt.files)
    files = "1 file" if count == 1 else f"{count} files"
    say(f"wrote {receipt.path}: {files}, {receipt.new_bytes:,} new bytes on the disk", quiet=quiet)
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
            say(f"  {edit.key}: {short(edit.old)} -> {short(edit.new)}", quiet=quiet)
    _say_notes(notes, quiet=quiet)
    say("read back: it gives the frequencies and the attention factor that were asked for", quiet=quiet)


def _say_notes(notes: Sequence[str], *, quiet: bool) -> None:
    for note in notes:
        say(f"note: {note}", quiet=quiet)


def show_disagreements(others: Sequence["Disagreement"], *, quiet: bool) -> None:
    """The runtimes that will compute something else, and what helps, on standard error."""
    for other in others:
        say(f"not in {other.runtime}: {off_by(other.row)}; {other.help}", quiet=quiet)


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
