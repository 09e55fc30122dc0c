"""Tables and JSON of what `ropecli evaluate` measured."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ropecli.errors import printable
from ropecli.render.terminal import emit, emit_table, escape, plain_table, ppl_text

if TYPE_CHECKING:
    from calibrate.evaluation import Bin, Row
    from calibrate.passkey import PasskeyRow
    from calibrate.statistics import Difference
    from ropecli.checkpoint import Checkpoint


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


def _nats(found: "Row | Bin | PasskeyRow") -> str:
    """Nats a token, and the standard error where there is one."""
    return f"{found.nll:.4f}" + ("" if found.standard_error is None else f" ±{found.standard_error:.4f}")


def show_positions(rows: Sequence["Row"]) -> None:
    """Loss by position: a line a bin, a column a method, ± one standard error over documents."""
    for model, group in groupby((row for row in rows if row.by_position), key=lambda row: row.model):
        columns = list(group)
        table = plain_table("positions", *(escape(printable(row.method)) for row in columns))
        for parts in zip(*(row.by_position for row in columns), strict=True):
            table.add_row(f"{parts[0].start:,}–{parts[0].end - 1:,}", *map(_nats, parts))
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
        table = plain_table("method", "length", "depth", "found", "95 % interval", "nats a token of the number")
        for row in group:
            cells = [
                row.method,
                f"{row.length:,}",
                f"{row.depth:.0%}",
                f"{row.found} of {row.trials}",
                f"{row.low:.0%} to {row.high:.0%}",
                _nats(row),
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
        table = plain_table("method", "length", "nats a token", "ppl", *parts, "vs first, nats")
        for row in group:
            cells = [
                row.method,
                f"{row.length:,}",
                _nats(row),
                ppl_text(row.nll),
                *map(ppl_text, (row.within, row.beyond)[: len(parts)]),
                "" if row.difference is None else f"{row.difference.delta:+.4f} {_reach(row.difference)}",
            ]
            table.add_row(*(escape(printable(cell)) for cell in cells))
        emit(f"{printable(model)}, {'' if protocol == 'full' else f'protocol {protocol}, '}lengths in tokens\n")
        emit_table(table)
