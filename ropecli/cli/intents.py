"""What the user asked for, as rotary embeddings: by hand, or from a calibration file."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ropecli import options
from ropecli.checkpoint import Checkpoint
from ropecli.errors import BadUsage
from ropecli.render import terminal
from ropecli.spec import LARGEST, SMALLEST, RopeSpec

if TYPE_CHECKING:
    from calibrate.calibration import Calibrated

LONGEST_SERVED = 2**30
"""Tokens: a length beyond a thousand million is a length that was given for a factor, or a slip of the finger."""


def by_hand(
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

    original = options.optional_length(original_length, "--original-length")
    target = options.optional_length(target_length, "--target-length")
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
        if scale is not None and scale * trained > LONGEST_SERVED:
            raise BadUsage(
                f"{scale:g} times {trained} is {scale * trained:.4g} tokens, more than any model serves",
                where="--factor" if target is None else "--target-length",
                hint="--factor is a multiple of the original length; --target-length takes a number of tokens",
            )
        scaling = scaling_by_hand(rope_type, spec, 1.0 if scale is None else scale, **parameters)
        intent[rope.name] = extended(spec, scaling, original)
    return intent


def text_of(source: str) -> tuple[str, str]:
    """(the text of a calibration file or of standard input, what to call it)."""
    where = "standard input" if source == "-" else source
    from calibrate.calibration import calibration_text  # noqa: PLC0415

    return calibration_text(source), where


def say_where_models_differ(checkpoint: Checkpoint, found: "Calibrated", where: str, *, quiet: bool) -> None:
    """A note on standard error where a calibration was made for another model or another config."""
    if found.model_type != checkpoint.model_type:
        note = f"note: {where} was calibrated for a {found.model_type} model, this is a {checkpoint.model_type}"
        terminal.say(note, quiet=quiet)
    elif found.config_sha256 not in ("", checkpoint.config_sha256):
        terminal.say(f"note: {where} was calibrated for another config than this checkpoint's", quiet=quiet)


def of_calibration(checkpoint: Checkpoint, found: "Calibrated", layers: Any) -> dict[str, RopeSpec]:
    """What a calibration means for a checkpoint, by layer type."""
    from ropecli.conversion import chosen_layers, extended  # noqa: PLC0415

    specs = {rope.name: found.onto(rope.spec) for rope in chosen_layers(checkpoint, layers)}
    return {name: extended(spec, spec.scaling, found.original_length) for name, spec in specs.items()}
