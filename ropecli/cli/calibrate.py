"""`ropecli calibrate`: parse, call, render."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropecli import options
from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.cli import intents, loading, outputs
from ropecli.errors import BadUsage, RopeError
from ropecli.render import terminal
from ropecli.render.calibration import TrialLog, show_calibration, show_cost
from ropecli.staging import write_whole

if TYPE_CHECKING:
    from calibrate.calibration import Calibration

OPTIMIZERS = ("auto", "nelder-mead", "powell", "cobyqa", "l-bfgs-b", "differential-evolution")


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
        typer.Option(help="Positions whose loss is minimised: beyond (from L on), all, or last:N, as last:4k."),
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
        options.flag(
            "--plan-only",
            help="Say what it would cost, from the config and the text alone: passes, operations, memory, with --flops "
            "the time. No weight is read, nothing is scored or written.",
        ),
    ] = False,
    flops: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="--plan-only: operations a second that one process sustains, as 400T."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split into search and held-out documents.")] = 0,
    text_field: options.TextField = "text",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Calibration file; without it, or as -, standard output.")
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
        bool, options.flag("--resume", help="Go on with a run that was cut off: its scores lie beside --output.")
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
    """Find the best α, β and temperature for a model on text.

    Half of the documents choose the parameters, the other half says what they are worth.

    The loss is nats a token. α is `beta_slow`: pairs that turn less often than that inside the trained length L are
    slowed by the factor. β is `beta_fast`: pairs that turn more often are kept. The temperature is one number m, the
    multiplier on cos and sin. Where held-out text does not prove a gain over default YaRN (α = 1, β = 32,
    m = 0.1·ln s + 1), the answer is the default, and says so.

    With several factors each is fitted apart, the budget is shared, and the law m(s) = a·ln s + b is fitted through the
    m that were found. The calibration file then serves the largest factor; the others are under `fits`.
    """
    del debug
    output = None if output == Path("-") else output
    loading.refuse_standard_input([model])
    quiet = quiet or not loading.speaks()
    results = _Results(output, report, plot, force=force, as_json=as_json, quiet=quiet)
    if loading.speaks() and not plan_only:
        outputs.check_outputs({"--output": output, "--report": report, "--plot": plot}, force=force)
    if earlier is not None:
        search = data or output or factor or target_length or original_length or plan_only or resume
        if search or (report is None and plot is None):
            raise BadUsage("it goes with --report and --plot, and not with what a search needs", where="--from")
        _draw_earlier(earlier, read_checkpoint(model), results)
        return
    if not data:
        raise BadUsage("Missing option '--data'.", hint="ropecli calibrate --help")
    options.one_of("--tune", tune, ("yarn", "temperature", "factors"))
    options.one_of("--optimizer", optimizer, OPTIMIZERS)
    options.no_nan({"--guard": guard, "--time-limit": time_limit, "--validation-fraction": validation_fraction})
    if math.isinf(guard):  # the calibration file holds it, and JSON has no infinity
        raise BadUsage("expected a finite number of nats, found inf", where="--guard", hint="100 lifts it")
    _refuse_contradictions(results, tune, tensor_parallel, flops, resume=resume, plan_only=plan_only)
    rate = None if flops is None else options.rate(flops, "--flops")
    loading.quiet_libraries(verbose=verbose)
    if trust_remote_code:
        loading.name_remote_code([model])
    with terminal.data_only(), loading.ranks(tensor_parallel, data, output), TrialLog(quiet=quiet) as log:
        from calibrate import run  # noqa: PLC0415 - torch takes seconds
        from calibrate.journal import journal_path  # noqa: PLC0415
        from calibrate.model import Settings  # noqa: PLC0415

        if original_length is None:
            _say_where_less_was_trained(model, quiet=quiet)
        journal = None if output is None else journal_path(output)
        if journal is not None and not plan_only:
            _say_what_becomes_of(journal, resume=resume, quiet=quiet)
        request = run.Request(
            source=model,
            data=tuple(data),
            factors=tuple(factor or ()),
            target_length=options.optional_length(target_length, "--target-length"),
            original_length=options.optional_length(original_length, "--original-length"),
            tune=tune,  # type: ignore[arg-type]
            objective=_objective(objective),
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
    if not loading.speaks():
        return
    if plan_only:
        if as_json:
            terminal.emit_json(plan.to_json())
        else:
            show_cost(plan)
        return
    _deliver(calibration, results, journal if signal_number is None else None)
    if report is not None or plot is not None:
        # what was typed is not of the result: the same run with another --output gives the same file
        drawn = {**calibration.to_json(), "command": outputs.command_line(context)}
        _draw_calibration(drawn, str(output or "the calibration"), read_checkpoint(model), results)
    if signal_number is not None:
        raise typer.Exit(128 + signal_number)


def _objective(text: str) -> str:
    """The length in `last:N` in tokens, however it was spelled. Raises BadUsage."""
    kind, _, count = text.partition(":")
    return f"last:{options.length(count, '--objective')}" if kind == "last" and count else text


def _say_where_less_was_trained(model: str, *, quiet: bool) -> None:
    """A note where the config is known to state more than the trained length, which the factor would count from."""
    from ropecli.findings import find  # noqa: PLC0415
    from ropecli.findings.lengths import MORE_THAN_TRAINED  # noqa: PLC0415

    try:
        found = find(read_checkpoint(model))
    except RopeError:
        return  # the run says what is wrong
    for finding in found:
        if finding.id == MORE_THAN_TRAINED.id:
            terminal.say(f"note: {finding.message}", quiet=quiet)


def _say_what_becomes_of(journal: Path, *, resume: bool, quiet: bool) -> None:
    """A line on the scores of an earlier run, where something else happens to them than one may expect."""
    if resume and not journal.exists():
        terminal.say(f"there are no scores of an earlier run at {journal}: it starts from the beginning", quiet=quiet)
    elif not resume and journal.exists():
        ways = "--resume would go on from them, another --output keeps them"
        terminal.say(f"{journal} holds the scores of an earlier run, which this one replaces; {ways}", quiet=quiet)


@dataclass(frozen=True, slots=True)
class _Results:
    """Where the results go, and how they are told; `output` is the calibration file."""

    output: Path | None
    report: Path | None
    plot: Path | None
    force: bool
    as_json: bool
    quiet: bool


def _refuse_contradictions(
    results: _Results, tune: str, tensor_parallel: int, flops: str | None, *, resume: bool, plan_only: bool
) -> None:
    """Options that say nothing without another one, or that exclude each other. Raises BadUsage."""
    if resume and results.output is None:
        raise BadUsage("the scores of an earlier run lie beside its --output", where="--resume", hint="give --output")
    if tune == "factors" and tensor_parallel > 1:
        raise BadUsage("--tune factors needs gradients, and a model in parts has none here", where="--tensor-parallel")
    if flops is not None and not plan_only:
        raise BadUsage("the rate is for the plan", where="--flops", hint="give --plan-only, too")


def _deliver(calibration: "Calibration", results: _Results, journal: Path | None) -> None:
    """The file, standard output and the summary; `journal` is not needed once the file is there."""
    content = calibration.to_json()
    # the file first: whoever reads standard output may go away
    if results.output is not None:
        write_whole(terminal.json_text(content), results.output, force=results.force)
    if journal is not None:
        journal.unlink(missing_ok=True)
    if results.as_json:
        terminal.emit_json(content)
    elif results.output is None:
        terminal.emit(terminal.json_text(content))
    show_calibration(calibration, quiet=results.quiet)


def _draw_earlier(source: str, checkpoint: Checkpoint, results: _Results) -> None:
    """The page and the figure of a calibration file that is there already."""
    from calibrate.calibration import read_calibration  # noqa: PLC0415

    text, where = intents.text_of(source)
    intents.say_where_models_differ(checkpoint, read_calibration(text, where), where, quiet=results.quiet)
    _draw_calibration(json.loads(text), where, checkpoint, results)


def _draw_calibration(content: dict[str, Any], where: str, checkpoint: Checkpoint, results: _Results) -> None:
    """The page and the figure of a calibration file; `where` names it in errors."""
    from ropecli.report.calibration import calibration_curves, calibration_page  # noqa: PLC0415 - only for a report

    if results.plot is not None:
        from ropecli.plots import plot_loss_by_position  # noqa: PLC0415 - matplotlib is slow, and an extra

        length = content["rope"]["original_max_position_embeddings"]
        plot_loss_by_position(calibration_curves(content, where), results.plot, length)
        terminal.say(f"wrote {results.plot}", quiet=results.quiet)
    if results.report is not None:
        page = calibration_page(content, _to_paste(checkpoint, content), where)
        write_whole(page, results.report, force=results.force)
        terminal.say(f"wrote {results.report}", quiet=results.quiet)


def _to_paste(checkpoint: Checkpoint, content: dict[str, Any]) -> str:
    """What `convert` would write into the config, or why it would write nothing."""
    from calibrate.calibration import calibrated_from_json  # noqa: PLC0415
    from ropecli.conversion import nested_members, plan  # noqa: PLC0415
    from ropecli.gguf_writer import plan_gguf  # noqa: PLC0415

    try:
        intent = intents.of_calibration(checkpoint, calibrated_from_json(content, "the calibration"), "full")
        if checkpoint.format == "gguf":
            return "\n".join(f"{edit.key} = {edit.new}" for edit in plan_gguf(checkpoint, intent).edits)
        return terminal.json_text(nested_members(plan(checkpoint, intent).edits)).rstrip("\n")
    except RopeError as error:
        return f"convert refuses: {error.message}" + (f" ({error.hint})" if error.hint else "")
