"""`ropecli inspect`: parse, call, render."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ropecli import options
from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.cli import intents, outputs
from ropecli.errors import BadCheckpoint, BadUsage, CheckFailed, RopeError
from ropecli.inspection import (
    Inspection,
    broken_findings,
    differences,
    expectations,
    failed_checks,
    inspect,
    inspection_to_json,
    tokenizer_config,
    weight_problems,
)
from ropecli.render import terminal
from ropecli.render.inspection import show_changes, show_inspection
from ropecli.spec import RopeSpec


def inspect_command(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help=f"{options.MODEL_HELP} Or - for a config on standard input.")
    ],
    check: Annotated[bool, options.flag("--check", help="Exit with 1 on a finding of severity error.")] = False,
    strict: Annotated[bool, options.flag("--strict", help="With --check: on a warning, too.")] = False,
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,…",
            help="Exit with 1 unless these are found: rope_type=yarn,factor=4; of one kind of layer: LAYER.KEY=VALUE.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        options.flag(
            "--verify", help="Check headers, byte ranges and the index of the weights; exit with 1 if broken."
        ),
    ] = False,
    diff: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Show what differs from the RoPE of another checkpoint.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png|.svg", help="Draw the wavelength of each pair.")
    ] = None,
    factor: options.Factor = None,
    target_length: options.TargetLength = None,
    rope_type: Annotated[
        str | None,
        typer.Option(help="What --factor previews: linear, ntk, dynamic, ntk-by-parts, yarn, llama3. Default: yarn."),
    ] = None,
    original_length: options.OriginalLength = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show what rotary embedding a checkpoint has, and what each runtime will make of it.

    Reads the config alone: no weights, no torch, no transformers. Of many checkpoints every one is looked at.

    A finding has a stable id; docs/findings.md has a section for each.
    """
    del debug, verbose
    if plot is not None:
        if len(models) > 1:
            raise BadUsage("one figure shows one checkpoint", where="--plot")
        outputs.check_outputs({"--plot": plot}, force=force)
    wanted = () if expect is None else expectations(expect)
    status = 0
    for model in models:
        try:
            checkpoint = read_checkpoint(model)
            preview = None
            if any(value is not None for value in (factor, target_length, original_length, rope_type)):
                preview = intents.by_hand(checkpoint, rope_type or "yarn", factor, target_length, original_length, {})
            inspection = _inspected(checkpoint, preview, verify=verify)
            failures = failed_checks(inspection, check=check, strict=strict, expect=wanted)
            if diff is not None:
                changes = differences(inspection, inspect(read_checkpoint(diff)))
                show_changes(changes, model, diff, as_json=as_json)
            elif as_json:
                terminal.emit_json(inspection_to_json(inspection))
            else:
                show_inspection(inspection, quiet=quiet)
            if plot is not None:
                from ropecli.plots import plot_wavelengths  # noqa: PLC0415 - matplotlib is slow, and an extra

                plot_wavelengths(inspection.ropes, plot)
            if failures:
                terminal.show_failures(model, failures)
                status = max(status, CheckFailed.exit_status)
        except RopeError as error:
            if isinstance(error, BadCheckpoint):
                error.findings = broken_findings(model)
            if len(models) == 1:
                raise
            terminal.show_error(error, as_json=as_json, findings=error.findings)
            status = max(status, error.exit_status)
    if status:
        raise typer.Exit(status)


def _inspected(checkpoint: Checkpoint, preview: Mapping[str, RopeSpec] | None, *, verify: bool) -> Inspection:
    """The checkpoint as it is, or as a conversion to `preview` would write it."""
    inspection = inspect(
        checkpoint,
        preview=preview,
        tokenizer_config=tokenizer_config(checkpoint),
        problems=weight_problems(checkpoint) if verify else (),
    )
    if preview is None:
        return inspection
    from ropecli.agreement import previewed_rows  # noqa: PLC0415 - a plan is made for a preview alone

    return replace(inspection, runtimes=previewed_rows(checkpoint, preview))
