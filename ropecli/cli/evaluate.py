"""`ropecli evaluate`: parse, call, render."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ropecli import options
from ropecli.checkpoint import read_checkpoint
from ropecli.cli import intents, loading, outputs
from ropecli.errors import BadUsage
from ropecli.render import terminal
from ropecli.render.evaluation import (
    checkpoint_to_json,
    curves,
    passkey_to_json,
    row_to_json,
    show_passkeys,
    show_positions,
    show_rows,
)
from ropecli.staging import write_whole

if TYPE_CHECKING:
    from calibrate.corpus import Source
    from calibrate.evaluation import Request, Row
    from calibrate.passkey import PasskeyRow

TRIALS = 10
"""Numbers that `--passkey` hides at each length and depth."""


def evaluate_command(
    context: typer.Context,
    models: options.Models,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help=f"{options.DATA_HELP} Needed unless --passkey.",
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Lengths in tokens, as 2k,4k,8k. Default: L and the length served, by the config, by --factor or by a "
            "calibration FILE.json.",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="none, linear (PI), ntk, dynamic, ntk-by-parts, yarn, or a calibration FILE.json. Default: the "
            "checkpoint as its config says.",
        ),
    ] = None,
    factor: Annotated[
        float | None, typer.Option(min=1, metavar="S", help="Factor of the methods. Default: longest length / L.")
    ] = None,
    original_length: options.OriginalLength = None,
    window: Annotated[
        str | None,
        typer.Option(metavar="N", help="Loss by position, too, at the longest length: in bins of N tokens."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png|.svg", help="Draw the loss by position; --window: longest / 64, at least 16."),
    ] = None,
    report: options.Report = None,
    force: options.Force = False,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="full: every position of separate windows. sliding: windows --stride apart over each document, each "
            "token once, in the first window that holds it. second-half: as llama.cpp, separate windows, the second "
            "half of each. yarn: as eval/perplexity.py of the YaRN paper, the mean of window means, for its tables.",
        ),
    ] = "full",
    stride: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Tokens from one window to the next. Default: sliding half a window; yarn one window a document "
            "(its --truncate). What slides has --windows 2 for its text unless that is given.",
        ),
    ] = None,
    passkey: Annotated[
        bool,
        options.flag(
            "--passkey",
            help="Instead of text: hide a number at five depths in filler (The grass is green. …) of each length, and "
            "ask for it. Shows how often the greedy answer starts with it, and the loss on it.",
        ),
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="--passkey: numbers for each length and depth. Default: 10."),
    ] = None,
    documents: options.Documents = None,
    windows: options.Windows = None,
    text_field: options.TextField = "text",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    attn_implementation: options.AttnImplementation = None,
    tensor_parallel: options.TensorParallel = 1,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Measure how good a checkpoint, or a method, is at each length.

    The loss of every position, from one pass over windows of the longest length.

    Loss is nats a token, summed over predicted tokens and divided once; ppl is its exponential. ± is one standard error
    over documents; "vs first" is paired by document, with its 95 % interval. The band of --plot is one standard error.
    """
    del debug
    of_text = (data, window, plot, report, stride, documents, windows)
    if passkey and (any(of_text) or protocol != "full" or text_field != "text"):
        raise BadUsage(
            "it brings its own text and has no loss by position",
            where="--passkey",
            hint="leave out --data, --text-field, --documents, --windows, --window, --plot, --report, --protocol and "
            "--stride",
        )
    if not passkey:
        options.belong_to("--passkey", {"--trials": trials is not None})
    if methods is None:
        options.belong_to("--methods", {"--factor": factor is not None})
    options.no_nan({"--factor": factor})
    loading.refuse_standard_input(models)
    if not data and not passkey:
        raise BadUsage("Missing option '--data'.", hint="ropecli evaluate --help")
    quiet = quiet or not loading.speaks()
    loading.quiet_libraries(verbose=verbose)
    if loading.speaks():
        outputs.check_outputs({"--plot": plot, "--report": report}, force=force)
    if trust_remote_code:
        loading.name_remote_code(models)
    sources: list[Source] = []
    with terminal.data_only(), loading.ranks(tensor_parallel, data or (), None):
        from calibrate import evaluation  # noqa: PLC0415 - torch takes seconds
        from calibrate.model import Settings  # noqa: PLC0415

        request = evaluation.Request(
            sources=tuple(models),
            data=tuple(data or ()),
            lengths=() if lengths is None else options.lengths(lengths, "--lengths"),
            methods=() if methods is None else options.names(methods, "--methods"),
            factor=factor,
            original_length=options.optional_length(original_length, "--original-length"),
            documents=documents,
            windows=windows,
            text_field=text_field,
            window=options.optional_length(window, "--window"),
            by_position=window is not None or plot is not None or (report is not None and protocol == "full"),
            protocol=protocol,
            stride=options.optional_length(stride, "--stride"),
            settings=Settings(device, dtype, device_map, attn_implementation, trust_remote_code, tensor_parallel),
        )
        _say_where_models_differ(models, request.methods, quiet=quiet)
        if passkey:
            found = _retrieve(request, trials or TRIALS, quiet=quiet)
        else:
            rows = evaluation.evaluate(
                request,
                lambda row: terminal.say(f"{_measured(row)}: {row.nll:.4f} nats a token", quiet=quiet),
                sources.extend,
                lambda text: terminal.say(text, quiet=quiet),
            )
    if not loading.speaks():
        return
    if passkey:
        _show_passkeys(found, as_json=as_json)
        return
    if as_json:
        for row in rows:
            terminal.emit_json(row_to_json(row))
    else:
        show_rows(rows)
        if window is not None:
            show_positions(rows)
    if plot is not None:
        from ropecli.plots import plot_loss_by_position  # noqa: PLC0415 - matplotlib is slow, and an extra

        plot_loss_by_position(curves(rows), plot, rows[0].original_length)
        terminal.say(f"wrote {plot}", quiet=quiet)
    if report is not None:
        write_whole(_page(rows, models, sources, outputs.command_line(context)), report, force=force)
        terminal.say(f"wrote {report}", quiet=quiet)


def _say_where_models_differ(models: Sequence[str], methods: Sequence[str], *, quiet: bool) -> None:
    """A note on standard error for each calibration file that is measured on another model than its own."""
    from calibrate.calibration import read_calibration  # noqa: PLC0415
    from calibrate.evaluation import is_file  # noqa: PLC0415

    for path in filter(is_file, methods):
        text, where = intents.text_of(path)
        found = read_calibration(text, where)
        for model in models:
            intents.say_where_models_differ(read_checkpoint(model), found, where, quiet=quiet)


def _page(rows: Sequence["Row"], models: Sequence[str], sources: Sequence["Source"], command: str) -> str:
    from calibrate.run import versions  # noqa: PLC0415 - torch takes seconds
    from ropecli.report.evaluation import evaluation_page  # noqa: PLC0415 - only for a report

    lines = [row_to_json(row) for row in rows]
    checkpoints = [checkpoint_to_json(read_checkpoint(model)) for model in models]
    return evaluation_page(lines, checkpoints, [asdict(source) for source in sources], versions(), command)


def _measured(row: "Row | PasskeyRow") -> str:
    return f"{row.model} {row.method}, {row.length} tokens"


def _retrieve(request: "Request", trials: int, *, quiet: bool) -> "tuple[PasskeyRow, ...]":
    from calibrate.passkey import retrieve  # noqa: PLC0415 - torch takes seconds

    return retrieve(
        request,
        trials,
        lambda row: terminal.say(
            f"{_measured(row)}, at {row.depth:.0%}: {row.found} of {row.trials} found", quiet=quiet
        ),
    )


def _show_passkeys(rows: "tuple[PasskeyRow, ...]", *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            terminal.emit_json(passkey_to_json(row))
    else:
        show_passkeys(rows)
