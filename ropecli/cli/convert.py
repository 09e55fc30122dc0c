"""`ropecli convert`: parse, call, render."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ropecli import options
from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.cli import intents
from ropecli.errors import BadCalibration, BadUsage, OutputExists
from ropecli.render import terminal
from ropecli.render.conversion import (
    conversion_to_json,
    gguf_to_json,
    show_disagreements,
    show_gguf_plan,
    show_gguf_receipt,
    show_plan,
    show_receipt,
)
from ropecli.spec import RopeSpec

if TYPE_CHECKING:
    from ropecli.agreement import Disagreement
    from ropecli.conversion import Conversion
    from ropecli.tables import BakeRequest

FOLDING = "attention-factor"
"""What --bake calls the temperature that goes into the weights."""


def convert_command(
    model: options.Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="The new folder; of a .gguf, the new file.")
    ] = None,
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
        bool | None, options.flag("--truncate/--no-truncate", help="Round the ramp's corners outwards (the default).")
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
        bool, options.flag("--bake-per-layer", help="A copy for every layer.", rich_help_panel=options.BAKE)
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
        options.flag("--in-place", help="Rewrite the config of MODEL itself; the old one stays as config.json.backup."),
    ] = False,
    dry_run: Annotated[
        bool, options.flag("--dry-run", "-n", help="Show the diff of the config and touch nothing.")
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write a checkpoint that every runtime reads the same way.

    The weights are linked, not copied, where the file system can; the source is never written to.

    What was written is read back and recomputed before it appears.
    """
    del debug, verbose
    from ropecli import agreement, writer  # noqa: PLC0415 - what writes is no business of a start
    from ropecli import conversion as plans  # noqa: PLC0415
    from ropecli.baking import folded, refuse_second_temperature, with_folded  # noqa: PLC0415
    from ropecli.checkpoint import tensor_headers  # noqa: PLC0415
    from ropecli.dialects.portable import Schema  # noqa: PLC0415
    from ropecli.table_file import TableKind  # noqa: PLC0415
    from ropecli.tables import BakeRequest  # noqa: PLC0415

    deed = _Deed(output, in_place=in_place, dry_run=dry_run, force=force, as_json=as_json, quiet=quiet)
    _refuse_contradictions(deed, calibration, rope_type, emit)
    for option, value, known in (
        ("--schema", schema, get_args(Schema)),
        ("--weights", weights, get_args(writer.Weights)),
        ("--layers", layers, get_args(plans.Layers)),
        ("--carrier", carrier, get_args(agreement.Carrier)),
        ("--bake", bake, (*get_args(TableKind), FOLDING)),
    ):
        options.one_of(option, value, known)
    bakes = {
        "--bake-length": bake_length is not None,
        "--bake-dtype": bake_dtype != "float32",
        "--bake-layout": bake_layout != "half",
        "--bake-per-layer": bake_per_layer,
        "--bake-into": bake_into != "sidecar",
    }
    options.belong_to("--bake cos-sin or inv-freq", {} if bake in get_args(TableKind) else bakes)
    wanted_runtimes = _runtimes(runtimes)
    checkpoint = read_checkpoint(_checkpoint_of(model))
    by_hand = {
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "attention_factor": attention_factor,
        "truncate": truncate,
        "low_freq_factor": low_freq_factor,
        "high_freq_factor": high_freq_factor,
        "factors": options.numbers(factors, "--factors"),
    }
    lengths = (factor, target_length, original_length)
    if calibration is None:
        intent = intents.by_hand(checkpoint, rope_type or "", *lengths, by_hand, rope_theta, layers)
    elif any(value is not None for value in (*lengths, rope_theta, *by_hand.values())):
        raise BadUsage("the calibration file says all of it", where="--from", hint="leave the other options out")
    else:
        intent = _from_calibration(checkpoint, calibration, layers, quiet=deed.silent)
    refuse_second_temperature(checkpoint, intent)
    asked, scaled = intent, None
    if bake == FOLDING and emit is None and checkpoint.format != "gguf":
        intent, scaled = folded(checkpoint, intent, tensor_headers(checkpoint.path or Path()))
    # llama.cpp has flags for every scaling of a Phi-3, and none for longrope
    way = "native" if (carrier, emit) == ("auto", "llama.cpp") else carrier
    intent, forced = agreement.carried(checkpoint, intent, way)  # type: ignore[arg-type]
    if emit is not None:
        for note in (forced, *plans.what_was_trained(checkpoint, intent)):
            _note(note, quiet=deed.silent)
        if output is not None:
            _note(f"{output} is not written: --emit prints flags for the unchanged MODEL", quiet=deed.silent)
        _emit(checkpoint, intent, emit, as_json=as_json, quiet=quiet)
        return
    if output is not None and not force and (output.exists() or output.is_symlink()):
        raise OutputExists("already exists", where=str(output), hint="choose another name, or replace it with --force")
    if checkpoint.format == "gguf":
        _refuse_for_gguf(in_place=in_place, bake=bake)
        idle = {"--schema": schema != "both", "--weights": weights != "auto", "--for": bool(wanted_runtimes)}
        _note(_idle_for_gguf([option for option, given in idle.items() if given]), quiet=deed.silent)
        _convert_gguf(checkpoint, intent, deed)
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
    request = None
    if scaled is not None:
        conversion = with_folded(conversion, scaled, asked)
    elif bake is not None:
        longest = max(spec.max_length for spec in intent.values())
        positions = options.optional_length(bake_length, "--bake-length") or longest
        request = BakeRequest(bake, positions, bake_dtype, bake_layout, bake_per_layer, bake_into)  # type: ignore[arg-type]
    conversion = _with_tables(conversion, request, checkpoint.path or Path())
    others = agreement.disagreements(conversion, wanted_runtimes)
    agreement.refuse_ignored(others if (carrier == "longrope" or forced) and wanted_runtimes else ())
    if dry_run:
        _show_plan(conversion, others, deed, weights)
    else:
        _write(conversion, others, deed, weights)


@dataclass(frozen=True, slots=True)
class _Deed:
    """Where the result goes, and how it is told."""

    output: Path | None
    in_place: bool
    dry_run: bool
    force: bool
    as_json: bool
    quiet: bool

    @property
    def silent(self) -> bool:
        """Whether nothing is said besides the result."""
        return self.quiet or self.as_json


def _refuse_contradictions(deed: _Deed, calibration: str | None, rope_type: str | None, emit: str | None) -> None:
    """There is one thing to write, and one place for it. Raises BadUsage."""
    if (calibration is None) == (rope_type is None):
        raise BadUsage("give one of --from and --rope-type", hint="for example --from calibration.json")
    if deed.in_place and deed.output is not None:
        raise BadUsage("give one of --output and --in-place")
    if deed.output is None and not deed.dry_run and not deed.in_place and emit is None:
        raise BadUsage("give the new folder", where="--output", hint="or --dry-run to see what would be written")
    if deed.output == Path("-"):
        raise BadUsage("a checkpoint does not go to standard output", where="--output", hint="name a folder or a file")


def _show_plan(conversion: "Conversion", others: Sequence["Disagreement"], deed: _Deed, weights: str) -> None:
    from ropecli import writer  # noqa: PLC0415

    if deed.in_place:
        files, most_bytes = 0, writer.survey_in_place(conversion, force=deed.force)
    else:
        files, most_bytes = writer.survey(conversion, deed.output, weights)  # type: ignore[arg-type]
    if deed.as_json:
        terminal.emit_json(conversion_to_json(conversion, None, others))
        return
    show_plan(conversion, most_bytes, files, quiet=deed.quiet)
    show_disagreements(others, quiet=deed.quiet)


def _write(conversion: "Conversion", others: Sequence["Disagreement"], deed: _Deed, weights: str) -> None:
    from ropecli import writer  # noqa: PLC0415

    if deed.output is None:
        receipt = writer.rewrite_in_place(conversion, force=deed.force)
    else:
        receipt = writer.write(conversion, deed.output, weights=weights, force=deed.force)  # type: ignore[arg-type]
    if deed.as_json:
        terminal.emit_json(conversion_to_json(conversion, receipt, others))
    show_receipt(conversion, receipt, quiet=deed.silent)
    show_disagreements(others, quiet=deed.silent)


def _checkpoint_of(model: str) -> str:
    """MODEL/config.json stands for MODEL, as for the other verbs: what lies beside the config goes along."""
    path = Path(model)
    return str(path.parent) if path.name == "config.json" and path.is_file() else model


def _note(text: str, *, quiet: bool) -> None:
    if text:
        terminal.say(f"note: {text}", quiet=quiet)


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
    from ropecli.runtimes.emit import USAGE, flag_name  # noqa: PLC0415
    from ropecli.runtimes.emit import emit as line_for  # noqa: PLC0415
    from ropecli.runtimes.serving import Serving  # noqa: PLC0415

    if checkpoint.format not in ("hf", "mlx", "gguf"):
        raise BadUsage(f"a {checkpoint.format} checkpoint has no such flags", where=checkpoint.source)
    line = line_for(name, Serving(checkpoint.config, checkpoint.ropes, intent))
    if as_json:
        terminal.emit_json({"schema_version": 1, "source": checkpoint.source, "runtime": name, "flags": line})
    else:
        terminal.emit(line + "\n")
        terminal.say(f"goes into: {USAGE[flag_name(name)]}", quiet=quiet)


def _refuse_for_gguf(*, in_place: bool, bake: str | None) -> None:
    if in_place:
        raise BadUsage("a GGUF is written as a new file", where="--in-place", hint="give --output")
    if bake is not None:
        raise BadUsage("a GGUF takes no baked tables: its rope_freqs are written where needed", where="--bake")


def _idle_for_gguf(given: list[str]) -> str:
    if not given:
        return ""
    return f"without effect: {', '.join(given)} (a GGUF is one file, written whole, with keys of its own)"


def _convert_gguf(checkpoint: Checkpoint, intent: dict[str, RopeSpec], deed: _Deed) -> None:
    from ropecli.gguf_writer import plan_gguf, size_of, write_gguf  # noqa: PLC0415

    conversion = plan_gguf(checkpoint, intent)
    if deed.dry_run or deed.output is None:
        size = size_of(conversion, deed.output)
        if deed.as_json:
            terminal.emit_json(gguf_to_json(conversion, None, size))
        else:
            show_gguf_plan(conversion, size, quiet=deed.quiet)
        return
    receipt = write_gguf(conversion, deed.output, force=deed.force)
    if deed.as_json:
        terminal.emit_json(gguf_to_json(conversion, receipt, receipt.new_bytes))
    show_gguf_receipt(conversion, receipt, quiet=deed.silent)


def _runtimes(text: str | None) -> tuple[str, ...]:
    """The names given to --for; none for all of them."""
    from ropecli.runtimes import RUNTIMES  # noqa: PLC0415

    if text is None:
        return ()
    from ropecli.runtimes.emit import ROW_NAMES  # noqa: PLC0415

    wanted = tuple(ROW_NAMES.get(name, name) for name in options.names(text, "--for", "names of runtimes"))
    for name in wanted:
        options.one_of("--for", name, tuple(runtime.name for runtime in RUNTIMES))
    return wanted


def _from_calibration(checkpoint: Checkpoint, source: str, layers: Any, *, quiet: bool) -> dict[str, RopeSpec]:
    from calibrate.calibration import read_calibration  # noqa: PLC0415

    text, where = intents.text_of(source)
    found = read_calibration(text, where)
    try:
        intent = intents.of_calibration(checkpoint, found, layers)
    except BadCalibration as error:
        raise error.at(where) from None
    intents.say_where_models_differ(checkpoint, found, where, quiet=quiet)
    return intent
