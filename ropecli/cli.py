"""The command line: parse, call, render. Every rule about output and exit status for all verbs is here."""

import errno
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ropecli import __version__, options, render
from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.errors import BadCalibration, BadUsage, CheckFailed, NoResource, OutputExists, RopeError
from ropecli.inspection import (
    broken_findings,
    differences,
    failed_checks,
    inspect,
    inspection_to_json,
    tokenizer_config,
    weight_problems,
)
from ropecli.spec import LARGEST, SMALLEST, RopeSpec

if TYPE_CHECKING:
    from calibrate.calibration import Calibrated
    from calibrate.evaluation import Request
    from calibrate.passkey import PasskeyRow
    from ropecli.conversion import Conversion
    from ropecli.tables import BakeRequest

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
        render.emit(f"ropecli {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


@app.command("inspect", help="What rotary embedding does a checkpoint have, and what will each runtime make of it?")
def inspect_command(
    models: options.Models,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 on a finding of severity error.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="With --check: on a warning, too.")] = False,
    expect: Annotated[
        str | None, typer.Option(metavar="KEY=VALUE,…", help="Exit with 1 unless these values are found.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the weights, too: headers, byte ranges, the index. Exit with 1.")
    ] = False,
    diff: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Show what differs from the RoPE of another checkpoint.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png|.svg", help="Draw the wavelength of each pair.")
    ] = None,
    factor: options.Factor = None,
    target_length: options.TargetLength = None,
    rope_type: Annotated[str | None, typer.Option(help="The method that --factor previews. Default: yarn.")] = None,
    original_length: options.OriginalLength = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Reads the config alone: no weights, no torch, no transformers. Of many checkpoints every one is looked at.

    A finding has a stable id; docs/findings.md has a section for each.
    """
    del debug, verbose
    if plot is not None:
        if len(models) > 1:
            raise BadUsage("one figure shows one checkpoint", where="--plot")
        if plot.suffix.lower() not in (".png", ".svg"):
            raise BadUsage("a figure is a .png or .svg file", where=str(plot), hint="name it FILE.svg")
        _check_output_file(plot, force=force)
    status = 0
    for model in models:
        try:
            checkpoint = read_checkpoint(model)
            preview = None
            if any(value is not None for value in (factor, target_length, original_length, rope_type)):
                preview = _by_hand(checkpoint, rope_type or "yarn", factor, target_length, original_length, {})
            inspection = inspect(
                checkpoint,
                preview=preview,
                tokenizer_config=tokenizer_config(checkpoint),
                problems=weight_problems(checkpoint) if verify else (),
            )
            failures = failed_checks(inspection, check=check, strict=strict, expect=expect)
            if diff is not None:
                changes = differences(inspection, inspect(read_checkpoint(diff)))
                render.show_changes(changes, model, diff, as_json=as_json)
            elif as_json:
                render.emit_json(inspection_to_json(inspection))
            else:
                render.show_inspection(inspection, quiet=quiet)
            if plot is not None:
                from ropecli.plots import plot_wavelengths  # noqa: PLC0415 - matplotlib is slow, and an extra

                plot_wavelengths(inspection.ropes, plot)
            if failures:
                render.show_failures(model, failures)
                status = max(status, CheckFailed.exit_status)
        except RopeError as error:
            if len(models) == 1:
                error.findings = broken_findings(model)
                raise
            render.show_error(error, as_json=as_json, findings=broken_findings(model))
            status = max(status, error.exit_status)
    if status:
        raise typer.Exit(status)


def _by_hand(
    checkpoint: Checkpoint,
    rope_type: str,
    factor: float | None,
    target_length: str | None,
    original_length: str | None,
    parameters: dict[str, Any],
    rope_theta: float | None = None,
    layers: Any = "full",
) -> dict[str, RopeSpec]:
    """The rotary embeddings that the options describe, by layer type."""
    from ropecli.conversion import chosen_layers, extended, scaling_by_hand  # noqa: PLC0415

    original = None if original_length is None else options.length(original_length, "--original-length")
    target = None if target_length is None else options.length(target_length, "--target-length")
    if target is not None and factor is not None:
        raise BadUsage("give one of --factor and --target-length")
    if rope_theta is not None and not SMALLEST <= rope_theta <= LARGEST:
        raise BadUsage(f"expected a base from {SMALLEST:g} to {LARGEST:g}, found {rope_theta:g}", where="--rope-theta")
    intent = {}
    for rope in chosen_layers(checkpoint, layers):
        spec = rope.spec if rope_theta is None else replace(rope.spec, rope_theta=rope_theta)
        trained = original or spec.original_length
        scale = factor if target is None else target / trained
        if rope_type != "none" and (scale is None or not 1 <= scale < float("inf")):
            raise BadUsage(
                f"expected a factor of at least 1, found {'nothing' if scale is None else f'{scale:g}'}",
                where="--factor" if target is None else "--target-length",
                hint=f"the original length is {trained} tokens; --factor 4 would serve {4 * trained}",
            )
        scaling = scaling_by_hand(rope_type, spec, 1.0 if scale is None else scale, **parameters)
        intent[rope.name] = extended(spec, scaling, original)
    return intent


@app.command("calibrate", help="Find the best α, β and temperature for a model on text.")
def calibrate_command(
    context: typer.Context,
    model: options.Model,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="FILE", help=f"{options.DATA_HELP} Needed unless --from.")
    ] = None,
    factor: Annotated[
        list[float] | None,
        typer.Option("--factor", metavar="S", help="Extension factor: target length / L. Repeat it for several."),
    ] = None,
    target_length: options.TargetLength = None,
    original_length: options.OriginalLength = None,
    tune: Annotated[
        str,
        typer.Option(
            help="yarn: α, β and the temperature; temperature: that alone, α = 1 and β = 32 kept; factors: a divisor "
            "for each rotary pair (longrope), from the best yarn by gradient, kept only where it is proved better."
        ),
    ] = "yarn",
    objective: Annotated[
        str,
        typer.Option(help="Positions whose loss is minimised: beyond (from L on), all, or last:N."),
    ] = "beyond",
    guard: Annotated[
        float, typer.Option(min=0, help="Nats by which the loss within L may exceed default YaRN's.")
    ] = 0.005,
    optimizer: Annotated[
        str,
        typer.Option(
            help="auto (a race over the lattice of whole ramp corners, then the temperature), or scipy's own on "
            "continuous corners: nelder-mead, powell, cobyqa, l-bfgs-b, differential-evolution."
        ),
    ] = "auto",
    documents: options.Documents = None,
    windows: options.Windows = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the documents that the search never sees.")
    ] = 0.5,
    max_evals: Annotated[int | None, typer.Option(min=1, help="Stop the search after this many evaluations.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Stop the search after this long.")
    ] = None,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only",
            help="Say what it would cost, from the config and the text alone: passes, operations, memory, with --flops "
            "the time. No weight is read, nothing is scored or written.",
        ),
    ] = False,
    flops: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="--plan-only: operations a second that one process sustains, as 400T."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split into search and held-out documents.")] = 0,
    text_field: options.TextField = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Calibration file; without it, standard output.")
    ] = None,
    report: options.Report = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png|.svg", help="Draw the held-out loss by position, for the largest factor."),
    ] = None,
    earlier: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="No search: --report and --plot of an earlier calibration file."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut off: its scores lie beside --output.")
    ] = False,
    force: options.Force = False,
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
    """Half of the documents choose the parameters, the other half says what they are worth.

    The loss is nats a token. α is `beta_slow`: pairs that turn less often than that inside the trained length L are
    slowed by the factor. β is `beta_fast`: pairs that turn more often are kept. The temperature is one number m, the
    multiplier on cos and sin. Where held-out text does not prove a gain over default YaRN (α = 1, β = 32,
    m = 0.1·ln s + 1), the answer is the default, and says so.

    With several factors each is fitted apart, the budget is shared, and the law m(s) = a·ln s + b is fitted through the
    m that were found. The calibration file then serves the largest factor; the others are under `fits`.
    """
    del debug
    quiet = quiet or not _speaks()
    if _speaks() and not plan_only:
        _check_outputs({"--output": output, "--report": report, "--plot": plot}, force=force)
    if earlier is not None:
        if data or output or factor or target_length or (report is None and plot is None):
            raise BadUsage("it goes with --report and --plot, and not with what a search needs", where="--from")
        from calibrate.calibration import read_calibration  # noqa: PLC0415

        text, where = _calibration_text(earlier)
        checkpoint, found = read_checkpoint(model), read_calibration(text, where)
        _say_where_models_differ(checkpoint, found, where, quiet=quiet)
        _draw_calibration(json.loads(text), where, checkpoint, report, plot)
        return
    if not data:
        raise BadUsage("Missing option '--data'.", hint="ropecli calibrate --help")
    _one_of("--tune", tune, ("yarn", "temperature", "factors"))
    _no_nan({"--guard": guard, "--time-limit": time_limit, "--validation-fraction": validation_fraction})
    if resume and output is None:
        raise BadUsage("the scores of an earlier run lie beside its --output", where="--resume", hint="give --output")
    if tune == "factors" and tensor_parallel > 1:
        raise BadUsage("--tune factors needs gradients, and a model in parts has none here", where="--tensor-parallel")
    if flops is not None and not plan_only:
        raise BadUsage("the rate is for the plan", where="--flops", hint="give --plan-only, too")
    rate = None if flops is None else options.rate(flops, "--flops")
    _quiet_libraries(verbose=verbose)
    if trust_remote_code:
        _name_remote_code([model])
    with render.data_only(), _ranks(tensor_parallel, data, output), render.TrialLog(quiet=quiet) as log:
        from calibrate import run  # noqa: PLC0415 - torch takes seconds
        from calibrate.calibration import write_text_whole  # noqa: PLC0415
        from calibrate.journal import journal_path  # noqa: PLC0415
        from calibrate.model import Settings  # noqa: PLC0415

        journal = None if output is None else journal_path(output)
        request = run.Request(
            source=model,
            data=tuple(data),
            factors=tuple(factor or ()),
            target_length=options.length(target_length, "--target-length") if target_length else None,
            original_length=options.length(original_length, "--original-length") if original_length else None,
            tune=tune,  # type: ignore[arg-type]
            objective=objective,
            guard=guard,
            optimizer=optimizer,
            documents=documents,
            windows=windows,
            validation_fraction=validation_fraction,
            max_evals=max_evals,
            time_limit=time_limit,
            seed=seed,
            text_field=text_field,
            journal=journal,
            resume=resume,
            settings=Settings(device, dtype, device_map, attn_implementation, trust_remote_code, tensor_parallel),
        )
        if plan_only:
            from calibrate.plan import plan_of  # noqa: PLC0415

            plan = plan_of(request, rate)
        else:
            calibration, signal_number = run.calibrate(request, run.Observer(log.say, log.expect, log.trial))
    if not _speaks():
        return
    if plan_only:
        if as_json:
            render.emit_json(plan.to_json())
        else:
            render.show_cost(plan)
        return
    content = calibration.to_json()
    if output is None or as_json:
        if as_json:
            render.emit_json(content)
        else:
            render.emit(render.json_text(content))
    if output is not None:
        write_text_whole(render.json_text(content), output)
    if journal is not None and signal_number is None:
        journal.unlink(missing_ok=True)
    render.show_calibration(calibration, quiet=quiet)
    if report is not None or plot is not None:
        # what was typed is not of the result: the same run with another --output gives the same file
        drawn = {**content, "command": _command_line(context)}
        _draw_calibration(drawn, str(output or "the calibration"), read_checkpoint(model), report, plot)
    if signal_number is not None:
        raise typer.Exit(128 + signal_number)


def _speaks() -> bool:
    """Whether this is the one process of a torchrun that talks and writes; a process without a torchrun is."""
    started_by_torchrun = {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()
    return not started_by_torchrun or int(os.environ["RANK"]) == 0


@contextmanager
def _ranks(tensor_parallel: int, data: Sequence[str], output: Path | None) -> Iterator[None]:
    """Inside the block the processes of a torchrun work together."""
    from calibrate.parallel import joined  # noqa: PLC0415 - torch takes seconds

    kept = "the scores so far are kept: run it again with --resume"
    with joined(tensor_parallel, hint="run it again" if output is None else kept) as ranks:
        if ranks.size > 1 and "-" in data:
            raise BadUsage("standard input cannot be read by several processes", where="--data", hint="give files")
        yield


def _check_output_file(output: Path, *, force: bool) -> None:
    if not output.parent.is_dir():
        raise BadUsage("the folder to write into does not exist", where=str(output.parent))
    if output.is_dir():
        raise BadUsage("expected a file, found a folder", where=str(output))
    if output.exists() and not output.is_file():
        raise BadUsage("is a device or a pipe, which is never replaced", where=str(output), hint="name a file")
    if output.exists() and not force:
        raise OutputExists("already exists", where=str(output), hint="choose another name, or replace it with --force")
    if not os.access(output.parent, os.W_OK):
        raise NoResource("the folder cannot be written to", where=str(output.parent))


def _check_outputs(files: Mapping[str, Path | None], *, force: bool) -> None:
    """What can be known of the files to write before anything is computed for them; keys are their options."""
    wanted = {option: path for option, path in files.items() if path is not None}
    for option, path in wanted.items():
        _check_output_file(path, force=force)
        suffix = path.suffix.lower()
        if option == "--plot" and suffix not in {".png", ".svg"}:
            raise BadUsage(f"a figure is a .png or .svg file, found {suffix or 'no suffix'}", where=str(path))
        if option == "--report" and suffix not in {".html", ".htm"}:
            raise BadUsage(f"a report is an .html file, found {suffix or 'no suffix'}", where=str(path))
        if option in {"--plot", "--report"} and find_spec("matplotlib") is None:
            raise NoResource("drawing needs matplotlib", hint='pip install "ropecli[plots]"')
    if len({path.resolve() for path in wanted.values()}) < len(wanted):
        raise BadUsage(f"{' and '.join(wanted)} name the same file", hint="give each a file of its own")


def _command_line(context: typer.Context) -> str:
    """What was typed, quoted for a shell."""
    return shlex.join(["ropecli", *context.find_root().obj])


def _draw_calibration(
    content: dict[str, Any], where: str, checkpoint: Checkpoint, report: Path | None, plot: Path | None
) -> None:
    """The page and the figure of a calibration file; `where` names it in errors."""
    from ropecli.report.calibration import calibration_curves, calibration_page  # noqa: PLC0415 - only for a report

    if plot is not None:
        from ropecli.plots import plot_loss_by_position  # noqa: PLC0415 - matplotlib is slow, and an extra

        length = content["rope"]["original_max_position_embeddings"]
        plot_loss_by_position(calibration_curves(content, where), plot, length)
    if report is not None:
        from calibrate.calibration import write_text_whole  # noqa: PLC0415

        write_text_whole(calibration_page(content, _to_paste(checkpoint, content), where), report)


def _to_paste(checkpoint: Checkpoint, content: dict[str, Any]) -> str:
    """What `convert` would write into the config, or why it would write nothing."""
    from calibrate.calibration import calibrated_from_json  # noqa: PLC0415
    from ropecli.conversion import nested_members, plan  # noqa: PLC0415
    from ropecli.gguf_writer import plan_gguf  # noqa: PLC0415

    try:
        intent = _intent(checkpoint, calibrated_from_json(content, "the calibration"), "full")
        if checkpoint.format == "gguf":
            return "\n".join(f"{edit.key} = {edit.new}" for edit in plan_gguf(checkpoint, intent).edits)
        return render.json_text(nested_members(plan(checkpoint, intent).edits)).rstrip("\n")
    except RopeError as error:
        return f"convert refuses: {error.message}" + (f" ({error.hint})" if error.hint else "")


def _name_remote_code(models: Sequence[str]) -> None:
    """Say on standard error, --quiet or not, which files --trust-remote-code will run."""
    from ropecli.remote_code import files_that_would_run  # noqa: PLC0415

    for model in models:
        files = files_that_would_run(read_checkpoint(model))
        render.say(f"--trust-remote-code runs code of {model}: {', '.join(files) or 'none that its configs name'}")


def _quiet_libraries(*, verbose: bool) -> None:
    """Library noise belongs to -v; the user's own environment wins.

    What libraries log and warn of may quote a file: its control characters are made visible.
    """
    import logging  # noqa: PLC0415 - only what loads libraries needs it

    record = logging.getLogRecordFactory()

    def escaped(*details: Any, **more: Any) -> logging.LogRecord:
        made = record(*details, **more)
        made.msg, made.args = "\n".join(map(render.printable, made.getMessage().split("\n"))), ()
        return made

    logging.setLogRecordFactory(escaped)
    logging.captureWarnings(capture=True)
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")


@app.command("convert", help="Write a checkpoint that every runtime reads the same way.")
def convert_command(
    model: options.Model,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="The new folder.")] = None,
    calibration: Annotated[
        str | None, typer.Option("--from", metavar="FILE", help="A calibration file, or - for standard input.")
    ] = None,
    rope_type: Annotated[
        str | None,
        typer.Option(help="By hand: none, linear, ntk, dynamic, ntk-by-parts, yarn, longrope, llama3."),
    ] = None,
    factor: options.Factor = None,
    target_length: options.TargetLength = None,
    original_length: options.OriginalLength = None,
    beta_slow: Annotated[
        float | None,
        typer.Option(
            "--beta-slow", "--alpha", help="α, in turns inside L: pairs that turn less often are slowed whole."
        ),
    ] = None,
    beta_fast: Annotated[
        float | None,
        typer.Option("--beta-fast", "--beta", help="β, in turns inside L: pairs that turn more often are kept."),
    ] = None,
    attention_factor: Annotated[
        float | None, typer.Option(help="Multiplier m on cos and sin. Default for yarn: 0.1·ln s + 1.")
    ] = None,
    truncate: Annotated[
        bool | None, typer.Option("--truncate/--no-truncate", help="Round the ramp's corners outwards (the default).")
    ] = None,
    low_freq_factor: Annotated[float | None, typer.Option(help="llama3's α.")] = None,
    high_freq_factor: Annotated[float | None, typer.Option(help="llama3's β.")] = None,
    factors: Annotated[
        str | None, typer.Option(help="longrope: a divisor for each rotary pair, comma-separated.")
    ] = None,
    rope_theta: Annotated[float | None, typer.Option(help="Another base than the checkpoint's.")] = None,
    schema: Annotated[
        str, typer.Option(help="both; v4 (rope_scaling, what most runtimes read); v5 (rope_parameters).")
    ] = "both",
    weights: Annotated[
        str,
        typer.Option(help="auto (reflink, hard link or copy), hardlink, reflink, symlink, copy, none."),
    ] = "auto",
    layers: Annotated[
        str, typer.Option(help="full: layers that attend to everything; all: sliding-window layers as well.")
    ] = "full",
    runtimes: Annotated[
        str | None,
        typer.Option("--for", metavar="RUNTIME,…", help="Write only what these runtimes need. Default: all of them."),
    ] = None,
    carrier: Annotated[
        str,
        typer.Option(
            help="native: the scaling's own type; longrope: its frequencies as divisors, which more runtimes compute; "
            "auto: native, else longrope where the architecture takes nothing else (Phi-3)."
        ),
    ] = "auto",
    bake: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="Also write tables, cos-sin or inv-freq, for runtimes of your own (servers compute theirs from the "
            "config); or attention-factor: m goes into the query and key weights, for runtimes that know none.",
            rich_help_panel=options.BAKE,
        ),
    ] = None,
    bake_length: Annotated[
        str | None,
        typer.Option(metavar="N", help="Positions. Default: the target length.", rich_help_panel=options.BAKE),
    ] = None,
    bake_dtype: Annotated[
        str, typer.Option(help="float32, float16, bfloat16; the maths is float64.", rich_help_panel=options.BAKE)
    ] = "float32",
    bake_layout: Annotated[
        str,
        typer.Option(
            help="half: cos and sin [N, d/2]; concat: one table, cos then sin; full: [N, d].",
            rich_help_panel=options.BAKE,
        ),
    ] = "half",
    bake_per_layer: Annotated[
        bool, typer.Option("--bake-per-layer", help="A copy for every layer.", rich_help_panel=options.BAKE)
    ] = False,
    bake_into: Annotated[
        str,
        typer.Option(
            help="sidecar: rope_tables/, which strict loaders do not see; shards: a new shard and index.",
            rich_help_panel=options.BAKE,
        ),
    ] = "sidecar",
    emit: Annotated[
        str | None,
        typer.Option(
            metavar="RUNTIME",
            help="Write nothing; print the flags with which a runtime serves the unchanged MODEL so: transformers, "
            "vllm, sglang, llama.cpp, mlx.",
        ),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Rewrite the config of MODEL itself; the old one stays as config.json.backup."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show the diff of the config and touch nothing.")
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """The weights are linked, not copied, where the file system can; the source is never written to.

    What was written is read back and recomputed before it appears.
    """
    del debug, verbose
    from ropecli import conversion as plans  # noqa: PLC0415
    from ropecli import writer  # noqa: PLC0415
    from ropecli.agreement import carried, disagreements, refuse_ignored  # noqa: PLC0415
    from ropecli.baking import folded, refuse_second_temperature, with_folded  # noqa: PLC0415
    from ropecli.checkpoint import tensor_headers  # noqa: PLC0415
    from ropecli.tables import BakeRequest  # noqa: PLC0415

    if (calibration is None) == (rope_type is None):
        raise BadUsage("give one of --from and --rope-type", hint="for example --from calibration.json")
    if in_place and output is not None:
        raise BadUsage("give one of --output and --in-place")
    if output is None and not dry_run and not in_place and emit is None:
        raise BadUsage("give the new folder", where="--output", hint="or --dry-run to see what would be written")
    _one_of("--schema", schema, ("both", "v4", "v5"))
    _one_of("--weights", weights, ("auto", "hardlink", "reflink", "symlink", "copy", "none"))
    _one_of("--layers", layers, ("full", "all"))
    _one_of("--carrier", carrier, ("auto", "native", "longrope"))
    _one_of("--bake", bake, ("cos-sin", "inv-freq", "attention-factor"))
    wanted_runtimes = _runtimes(runtimes)
    checkpoint = read_checkpoint(model)
    by_hand = {
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "attention_factor": attention_factor,
        "truncate": truncate,
        "low_freq_factor": low_freq_factor,
        "high_freq_factor": high_freq_factor,
        "factors": _numbers(factors, "--factors"),
    }
    lengths = (factor, target_length, original_length)
    if calibration is None:
        intent = _by_hand(checkpoint, rope_type or "", *lengths, by_hand, rope_theta, layers)
    elif any(value is not None for value in (*lengths, rope_theta, *by_hand.values())):
        raise BadUsage("the calibration file says all of it", where="--from", hint="leave the other options out")
    else:
        intent = _from_calibration(checkpoint, calibration, layers, quiet=quiet or as_json)
    refuse_second_temperature(checkpoint, intent)
    asked, scaled, request = intent, None, None
    if bake == "attention-factor" and emit is None and checkpoint.format != "gguf":
        intent, scaled = folded(checkpoint, intent, tensor_headers(checkpoint.path or Path()))
    # llama.cpp has flags for every scaling of a Phi-3, and none for longrope
    intent, forced = carried(checkpoint, intent, "native" if (carrier, emit) == ("auto", "llama.cpp") else carrier)
    if emit is not None:
        _note(forced, quiet=quiet or as_json)
        _emit(checkpoint, intent, emit, as_json=as_json, quiet=quiet)
        return
    if output is not None and not force and (output.exists() or output.is_symlink()):
        raise OutputExists("already exists", where=str(output), hint="choose another name, or replace it with --force")
    if checkpoint.format == "gguf":
        _refuse_for_gguf(in_place=in_place, bake=bake)
        _convert_gguf(checkpoint, intent, output, dry_run=dry_run, force=force, as_json=as_json, quiet=quiet)
        return
    conversion = plans.plan(
        checkpoint,
        intent,
        schema=schema,  # type: ignore[arg-type]
        tokenizer_text=writer.tokenizer_text(checkpoint),
        runtimes=wanted_runtimes,
    )
    if forced:
        conversion = replace(conversion, notes=(forced, *conversion.notes))
    if scaled is not None:
        conversion = with_folded(conversion, scaled, asked)
    elif bake is not None:
        longest = max(spec.max_length for spec in intent.values())
        positions = options.length(bake_length, "--bake-length") if bake_length else longest
        request = BakeRequest(bake, positions, bake_dtype, bake_layout, bake_per_layer, bake_into)  # type: ignore[arg-type]
    conversion = _with_tables(conversion, request, checkpoint.path or Path())
    others = disagreements(conversion, wanted_runtimes)
    refuse_ignored(others if (carrier == "longrope" or forced) and wanted_runtimes else ())
    if dry_run:
        files, new_bytes = writer.survey(conversion, output, weights)  # type: ignore[arg-type]
        if as_json:
            render.emit_json(render.conversion_to_json(conversion, None, others))
        else:
            render.show_plan(conversion, new_bytes, files)
            _note(forced, quiet=quiet)
            render.show_disagreements(others, quiet=quiet)
        return
    if output is None:
        receipt = writer.rewrite_in_place(conversion, force=force)
    else:
        receipt = writer.write(conversion, output, weights=weights, force=force)  # type: ignore[arg-type]
    if as_json:
        render.emit_json(render.conversion_to_json(conversion, receipt, others))
    render.show_receipt(conversion, receipt, quiet=quiet or as_json)
    render.show_disagreements(others, quiet=quiet or as_json)


def _note(text: str, *, quiet: bool) -> None:
    if text:
        render.say(f"note: {text}", quiet=quiet)


def _with_tables(conversion: "Conversion", request: "BakeRequest | None", folder: Path) -> "Conversion":
    """The conversion with the tables that are asked for, and without those of the old config."""
    from ropecli import writer  # noqa: PLC0415
    from ropecli.baking import with_tables, without_old_shard  # noqa: PLC0415
    from ropecli.checkpoint import tensor_headers  # noqa: PLC0415
    from ropecli.tables import SHARD  # noqa: PLC0415

    into_shards = request is not None and request.into == "shards"
    old = (folder / SHARD).is_file()
    shards = (writer.index_text(folder), tensor_headers(folder)) if into_shards or old else (None, {})
    if old and not into_shards:
        conversion = without_old_shard(conversion, *shards)
    return conversion if request is None else with_tables(conversion, request, *shards)


def _emit(checkpoint: Checkpoint, intent: dict[str, RopeSpec], name: str, *, as_json: bool, quiet: bool) -> None:
    from ropecli.runtimes.emit import USAGE  # noqa: PLC0415
    from ropecli.runtimes.emit import emit as line_for  # noqa: PLC0415
    from ropecli.runtimes.serving import Serving  # noqa: PLC0415

    if checkpoint.format not in ("hf", "mlx", "gguf"):
        raise BadUsage(f"a {checkpoint.format} checkpoint has no such flags", where=checkpoint.source)
    line = line_for(name, Serving(checkpoint.config, checkpoint.ropes, intent))
    if as_json:
        render.emit_json({"schema_version": 1, "source": checkpoint.source, "runtime": name, "flags": line})
    else:
        render.emit(line + "\n")
        render.say(f"goes into: {USAGE[name]}", quiet=quiet)


def _refuse_for_gguf(*, in_place: bool, bake: str | None) -> None:
    if in_place:
        raise BadUsage("a GGUF is written as a new file", where="--in-place", hint="give --output")
    if bake is not None:
        raise BadUsage("a GGUF takes no baked tables: its rope_freqs are written where needed", where="--bake")


def _convert_gguf(
    checkpoint: Checkpoint,
    intent: dict[str, RopeSpec],
    output: Path | None,
    *,
    dry_run: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from ropecli.gguf_writer import plan_gguf, size_of, write_gguf  # noqa: PLC0415

    conversion = plan_gguf(checkpoint, intent)
    if dry_run or output is None:
        size = size_of(conversion)
        if as_json:
            render.emit_json(render.gguf_to_json(conversion, None, size))
        else:
            render.show_gguf_plan(conversion, size)
        return
    receipt = write_gguf(conversion, output, force=force)
    if as_json:
        render.emit_json(render.gguf_to_json(conversion, receipt, receipt.new_bytes))
    render.show_gguf_receipt(conversion, receipt, quiet=quiet or as_json)


def _runtimes(text: str | None) -> tuple[str, ...]:
    """The names given to --for; none for all of them."""
    from ropecli.runtimes import RUNTIMES  # noqa: PLC0415

    if text is None:
        return ()
    wanted = options.names(text)
    if not wanted:
        raise BadUsage("expected names of runtimes, found none", where="--for", hint="for example transformers,vllm")
    for name in wanted:
        _one_of("--for", name, tuple(runtime.name for runtime in RUNTIMES))
    return wanted


def _one_of(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise BadUsage(f"unknown {value!r}", where=option, hint=f"known: {', '.join(known)}")


def _no_nan(values: Mapping[str, float | None]) -> None:
    """A limit that is no number passes every comparison with one."""
    for option, value in values.items():
        if value is not None and value != value:  # noqa: PLR0124 - NaN alone differs from itself
            raise BadUsage("expected a number, found nan", where=option)


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise BadUsage(f"expected numbers with commas between, found {text!r}", where=option) from error


def _from_calibration(checkpoint: Checkpoint, source: str, layers: Any, *, quiet: bool) -> dict[str, RopeSpec]:
    from calibrate.calibration import read_calibration  # noqa: PLC0415

    text, where = _calibration_text(source)
    found = read_calibration(text, where)
    try:
        intent = _intent(checkpoint, found, layers)
    except BadCalibration as error:
        raise error.at(where) from None
    _say_where_models_differ(checkpoint, found, where, quiet=quiet)
    return intent


def _calibration_text(source: str) -> tuple[str, str]:
    """(the text of a calibration file or of standard input, what to call it)."""
    where = "standard input" if source == "-" else source
    from calibrate.calibration import calibration_text  # noqa: PLC0415

    return calibration_text(source), where


def _say_where_models_differ(checkpoint: Checkpoint, found: "Calibrated", where: str, *, quiet: bool) -> None:
    if found.model_type != checkpoint.model_type:
        note = f"note: {where} was calibrated for a {found.model_type} model, this is a {checkpoint.model_type}"
        render.say(note, quiet=quiet)
    elif found.config_sha256 not in ("", checkpoint.config_sha256):
        render.say(f"note: {where} was calibrated for another config than this checkpoint's", quiet=quiet)


def _intent(checkpoint: Checkpoint, found: "Calibrated", layers: Any) -> dict[str, RopeSpec]:
    """What a calibration means for a checkpoint, by layer type."""
    from ropecli.conversion import chosen_layers, extended  # noqa: PLC0415

    specs = {rope.name: found.onto(rope.spec) for rope in chosen_layers(checkpoint, layers)}
    return {name: extended(spec, spec.scaling, found.original_length) for name, spec in specs.items()}


@app.command("evaluate", help="How good is a checkpoint, or a method, at each length?")
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
        typer.Option(metavar="N,N,…", help="Lengths in tokens, as 2k,4k,8k. Default: L and the served length."),
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
        typer.Option(
            "--passkey",
            help="Instead of text: hide a number at five depths in filler (The grass is green. …) of each length, and "
            "ask for it. Shows how often the greedy answer starts with it, and the loss on it.",
        ),
    ] = False,
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="--passkey: numbers for each length and depth.")] = 10,
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
    """The loss of every position, from one pass over windows of the longest length.

    Loss is nats a token, summed over predicted tokens and divided once; ppl is its exponential. ± is one standard error
    over documents; "vs first" is paired by document, with its 95 % interval. The band of --plot is one standard error.
    """
    del debug
    if passkey and (data or window or plot or report or stride or protocol != "full"):
        raise BadUsage(
            "it brings its own text and has no loss by position",
            where="--passkey",
            hint="leave out --data, --window, --plot, --report, --protocol and --stride",
        )
    _no_nan({"--factor": factor})
    if not data and not passkey:
        raise BadUsage("Missing option '--data'.", hint="ropecli evaluate --help")
    quiet = quiet or not _speaks()
    _quiet_libraries(verbose=verbose)
    if _speaks():
        _check_outputs({"--plot": plot, "--report": report}, force=force)
    if trust_remote_code:
        _name_remote_code(models)
    sources: list[Any] = []
    with render.data_only(), _ranks(tensor_parallel, data or (), None):
        from calibrate import evaluation  # noqa: PLC0415 - torch takes seconds
        from calibrate.model import Settings  # noqa: PLC0415

        request = evaluation.Request(
            sources=tuple(models),
            data=tuple(data or ()),
            lengths=options.lengths(lengths, "--lengths") if lengths else (),
            methods=options.names(methods),
            factor=factor,
            original_length=options.length(original_length, "--original-length") if original_length else None,
            documents=documents,
            windows=windows,
            text_field=text_field,
            window=None if window is None else options.length(window, "--window"),
            by_position=window is not None or plot is not None or (report is not None and protocol == "full"),
            protocol=protocol,
            stride=None if stride is None else options.length(stride, "--stride"),
            settings=Settings(device, dtype, device_map, attn_implementation, trust_remote_code, tensor_parallel),
        )
        if passkey:
            found = _retrieve(request, trials, quiet=quiet)
        else:
            rows = evaluation.evaluate(
                request,
                lambda row: render.say(f"{row.model} {row.method} {row.length}: {row.nll:.4f} nats", quiet=quiet),
                sources.extend,
            )
    if not _speaks():
        return
    if passkey:
        _show_passkeys(found, as_json=as_json)
        return
    if as_json:
        for row in rows:
            render.emit_json(render.row_to_json(row))
    else:
        render.show_rows(rows)
        if window is not None:
            render.show_positions(rows)
    if plot is not None:
        from ropecli.plots import plot_loss_by_position  # noqa: PLC0415 - matplotlib is slow, and an extra

        plot_loss_by_position(render.curves(rows), plot, rows[0].original_length)
    if report is not None:
        from calibrate.calibration import write_text_whole  # noqa: PLC0415
        from calibrate.run import versions  # noqa: PLC0415
        from ropecli.report.evaluation import evaluation_page  # noqa: PLC0415 - only for a report

        lines = [render.row_to_json(row) for row in rows]
        checkpoints = [render.checkpoint_to_json(read_checkpoint(model)) for model in models]
        data_files = [asdict(source) for source in sources]
        write_text_whole(evaluation_page(lines, checkpoints, data_files, versions(), _command_line(context)), report)


def _retrieve(request: "Request", trials: int, *, quiet: bool) -> "tuple[PasskeyRow, ...]":
    from calibrate.passkey import retrieve  # noqa: PLC0415 - torch takes seconds

    return retrieve(
        request,
        trials,
        lambda row: render.say(
            f"{row.model} {row.method} {row.length} at {row.depth:.0%}: {row.found} of {row.trials}", quiet=quiet
        ),
    )


def _show_passkeys(rows: "tuple[PasskeyRow, ...]", *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            render.emit_json(render.passkey_to_json(row))
    else:
        render.show_passkeys(rows)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the status that the contract gives."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with render.steady_streams(), _ending_on_signals():
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
    except render.ReaderGone:
        return render.PIPE_CLOSED
    except SystemExit as stop:
        # typer and rich stop with 1 when the reader of their help is gone; nothing else here raises it
        return render.PIPE_CLOSED if stop.code == 1 else int(stop.code or 0)
    except typer.TyperException as error:
        if not arguments:
            return BadUsage.exit_status  # the help is on the screen already
        failure: RopeError = BadUsage(error.format_message(), hint=f"ropecli {_verb(arguments)}--help")
    except RopeError as error:
        failure = error
        if debug:
            _traceback(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except _Ended as ended:
        return ended.status
    except OSError as error:
        failure = _of_the_system(error)
        if debug:
            _traceback(error)
    except MemoryError as error:
        failure = NoResource("out of memory", hint="try a smaller --target-length or --dtype bfloat16")
        if debug:
            _traceback(error)
    else:
        return result if isinstance(result, int) else 0
    if not _speaks() and _verb(arguments).strip() in SHARED:
        # torchrun ends the first process once another one is gone, and that one has the same to say
        time.sleep(PATIENCE)
        return failure.exit_status
    try:
        render.show_error(failure, as_json=as_json, findings=failure.findings)
    except render.ReaderGone:
        return render.PIPE_CLOSED
    except NoResource as full:
        render.show_error(full, as_json=False)
        return full.exit_status
    return failure.exit_status


def _of_the_system(error: OSError) -> RopeError:
    """What the system refuses wherever no file can be blamed better: disks that fail, limits, paths that are none."""
    kind = BadUsage if error.errno in {errno.ENAMETOOLONG, errno.ELOOP} else NoResource
    return kind(error.strerror or type(error).__name__, where=str(error.filename or ""), hint="--debug shows where")


def _traceback(error: BaseException) -> None:
    import traceback  # noqa: PLC0415 - slow to import, rarely wanted

    traceback.print_exception(error)


def _verb(arguments: list[str]) -> str:
    known = {command.name for command in app.registered_commands}
    return next((f"{word} " for word in arguments if word in known), "")
