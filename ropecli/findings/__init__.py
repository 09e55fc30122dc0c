"""What is wrong with a config, and what to write instead: the lint rules of `ropecli inspect`.

    Checkpoint ─ context ─▶ Context ─ one check a rule ─▶ Finding, Finding, …

Each rule is a `Rule` that the documentation shows (docs/findings.md is made from `RULES`) and a check: a pure function
from a `Context` to findings. Ids are stable: a rule that goes leaves its number unused.
"""

from collections.abc import Mapping
from typing import Any

from ropecli.checkpoint import Checkpoint
from ropecli.findings import bases, keys, layers, lengths, own_code, ramp, scalings, schemas, temperature
from ropecli.findings.context import context
from ropecli.findings.rule import SEVERITIES, Checks, Finding, Rule, Severity
from ropecli.spec import LayerRope

__all__ = ["RULES", "Finding", "Rule", "Severity", "find", "find_in_config"]

_CHECKS: Checks = (
    *schemas.CHECKS,
    *bases.CHECKS,
    *keys.CHECKS,
    *lengths.CHECKS,
    *temperature.CHECKS,
    *ramp.CHECKS,
    *scalings.CHECKS,
    *layers.CHECKS,
    *own_code.CHECKS,
)

RULES: tuple[Rule, ...] = tuple(rule for rule, _ in _CHECKS)
"""Every rule, by id."""


def find(checkpoint: Checkpoint, tokenizer_config: Mapping[str, Any] | None = None) -> tuple[Finding, ...]:
    """Everything to say about a checkpoint's config, the gravest first, then by id.

    tokenizer_config  the content of tokenizer_config.json, where there is one
    A config that is no Hugging Face one (GGUF, Mistral's, Meta's) is judged by what it means, not by its keys.
    """
    config = checkpoint.config if checkpoint.format in ("hf", "mlx") else {}
    return find_in_config(config, checkpoint.ropes, tokenizer_config)


def find_in_config(
    config: Mapping[str, Any],
    ropes: tuple[LayerRope, ...] | None,
    tokenizer_config: Mapping[str, Any] | None = None,
) -> tuple[Finding, ...]:
    """The same for a Hugging Face config as parsed JSON.

    ropes  what the config means; None where it is so broken that it could not be read, and then only what the keys
           alone show is found
    Never raises, whatever the config holds.
    """
    if ropes == ():
        return ()
    ctx = context(config, ropes, tokenizer_config)
    found = [finding for _, check in _CHECKS for finding in check(ctx)]
    return tuple(sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), finding.id)))
