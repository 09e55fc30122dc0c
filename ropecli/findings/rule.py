"""What a lint rule is, and what it says of one config."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from ropecli.errors import printable

if TYPE_CHECKING:
    from ropecli.findings.context import Context

Severity = Literal["error", "warning", "info"]
"""error: the config contradicts itself, or readers in common use load it and compute something else, or do not load it.
warning: transformers 5 does what was meant, named runtimes do not. info: nothing is wrong, but worth knowing."""

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The gravest first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about one config.

    id        of the rule; stable, and the anchor of its section in docs/findings.md
    severity  of the rule
    message   what was found and where: key paths and values
    effect    what goes wrong, and in which runtimes
    fix       key path → the value to write, None to remove the key; empty where no key of the config can mend it. Where
              two findings write the same key, the graver one counts
    """

    id: str
    severity: Severity
    message: str
    effect: str
    fix: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    """A lint rule, as the documentation shows it.

    id      "ROPE101"; the hundreds are themes: 1 schemas and keys, 2 lengths, 3 temperature, 4 YaRN's ramp,
            5 the other scalings, 6 layers, tokenizer and the checkpoint's own code
    title   a few words
    what    one sentence: when it fires
    effect  what goes wrong, in plain words
    fix     what to write
    source  which runtime and version behaves so, or who reported it
    """

    id: str
    severity: Severity
    title: str
    what: str
    effect: str
    fix: str
    source: str

    def found(self, message: str, fix: Mapping[str, Any] | None = None, effect: str = "") -> Finding:
        """A finding of this rule; `effect` where this config allows to say more than the rule does.

        Control characters from files are made visible in the message.
        """
        return Finding(self.id, self.severity, printable(message), effect or self.effect, fix or {})


Check: TypeAlias = Callable[["Context"], Iterator[Finding]]
"""Looks at one config and yields what one rule has to say."""

Checks: TypeAlias = tuple[tuple[Rule, Check], ...]
"""The rules of one theme with their checks, by id."""
