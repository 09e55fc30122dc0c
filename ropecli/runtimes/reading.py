"""The values of this package: what is asked of a runtime, what it answers, and the runtime itself."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ropecli.errors import RopeError, printable
from ropecli.spec import LayerRope

Keys: TypeAlias = Mapping[str, Any]
"""A JSON object of a config."""

Computed: TypeAlias = tuple[tuple[float, ...], float, tuple[str, ...]]
"""What a runtime's formula gives: inv_freq, attention factor, notes."""


class Refused(RopeError):
    """A runtime would stop at this config; `problem` says why. Never leaves this package: it becomes a note."""


@dataclass(frozen=True, slots=True)
class Request:
    """A config and what it means, for one kind of layer.

    config              the text config as parsed JSON; for a composite model merged over the top level
    rope                what the config means: widths, layout and latent attention are taken from here
    architecture        the class name in `architectures`, or ""
    model_type          the config's `model_type`, or ""
    layer_type          the label of this kind of layer, None where all layers share one embedding
    default_rope_theta  the base of the model's own class, for a runtime that finds none in the file
    class_defaults      what transformers' class fills in where the file is silent (`hf.class_defaults`); empty for a
                        model type that it does not have
    """

    config: Keys
    rope: LayerRope
    architecture: str = ""
    model_type: str = ""
    layer_type: str | None = None
    default_rope_theta: float = 10_000.0
    class_defaults: Keys = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one runtime computes from a config, at the original length.

    inv_freq          radians a token for each rotary pair; None where the runtime stops, and the notes say why
    attention_factor  multiplier on cos and sin; None with `inv_freq`
    context_length    tokens that it serves with no flag from the user; None where it sets no limit, or stops
    notes             in plain words: keys that it ignores, what it warns of, what changes with the length
    grows             whether its base grows with a sequence beyond the original length, as dynamic NTK means it
    """

    inv_freq: tuple[float, ...] | None
    attention_factor: float | None
    context_length: int | None
    notes: tuple[str, ...] = ()
    grows: bool = False


@dataclass(frozen=True, slots=True)
class Runtime:
    """An inference runtime.

    name         the name of its row
    version      the version, or the commit and its date, that its rule was read from
    rule         the frequencies that it computes; may raise RopeError, ArithmeticError or ValueError where it stops
    temperature  the keys that it needs for YaRN's temperature, beside `attention_factor`, which is always written
    """

    name: str
    version: str
    rule: Callable[[Request], Reading]
    temperature: frozenset[str] = frozenset()

    def read(self, request: Request) -> Reading:
        """What this runtime makes of a config; never raises, however odd the config."""
        try:
            reading = self.rule(request)
        except RopeError as error:
            return _stopped(error.message)
        except (ArithmeticError, ValueError) as error:
            return _stopped(f"its formula fails: {error}")
        if reading.inv_freq is None or reading.attention_factor is None:
            return reading
        if not all(map(math.isfinite, (*reading.inv_freq, reading.attention_factor))):
            return _stopped("its formula gives no finite numbers")
        return replace(reading, notes=tuple(map(_legible, reading.notes)))


def _stopped(reason: str) -> Reading:
    return Reading(None, None, None, (_legible(f"does not load: {reason}"),))


def _legible(note: str) -> str:
    """A note may quote a name from the file: control characters made visible, cut to two lines of a screen."""
    text = printable(note)
    return text if len(text) <= 160 else f"{text[:159]}…"
