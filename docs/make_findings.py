"""Writes docs/findings.md from the rules of `ropecli inspect`: `python docs/make_findings.py`.

The examples are the cases that the tests run (tests/findings/cases.json): each is known to fire, and its neighbour not.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropecli.findings import RULES, Rule

HERE = Path(__file__).parent
PAGE = HERE / "findings.md"
CASES = HERE.parent / "tests" / "findings" / "cases.json"

THEMES = {
    "1": "Schemas and keys",
    "2": "Lengths",
    "3": "Temperature",
    "4": "YaRN's ramp",
    "5": "Other scalings",
    "6": "Layers, tokenizer and own code",
}

HEAD = """# What `ropecli inspect` finds

Made from the rules themselves by `python docs/make_findings.py`. What the words mean is in [rope.md](rope.md).

`ropecli inspect MODEL` ends with findings: what is wrong with the rotary embedding (RoPE) of a config, what comes of
it, and which keys to write instead. `--check` exits with 1 on an error, `--strict` on a warning too.

- **error**: the config contradicts itself, or readers in common use (programs that load it) compute something else from
  it or refuse it.
- **warning**: transformers 5 does what was meant, the runtimes named do not.
- **info**: nothing is wrong, but worth knowing.

Ids are stable. Each section shows a config that has the finding, without the keys of its width (`hidden_size`, …). L is
the original length, M is `max_position_embeddings`, s the factor, m the multiplier on cos and sin.
"""

UNSEEN = ("hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim", "qk_rope_head_dim")
TOKENIZER = "tokenizer_config.json: "


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other values at dotted key paths; None removes a key. A tokenizer's key keeps its whole path."""
    result: dict[str, Any] = json.loads(json.dumps(config))
    for path, value in changes.items():
        *parents, key = [path] if path.startswith(TOKENIZER) else path.split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
        if value is None:
            inner.pop(key, None)
        else:
            inner[key] = value
    return result


def _example(case: Mapping[str, Any], bases: Mapping[str, Any]) -> str:
    config = changed(bases[case["base"]], case["change"])
    seen = {key: value for key, value in config.items() if key not in UNSEEN}
    ((path, value),) = case["neighbour"].items()
    without = f"without `{path}`" if value is None else f"with `{path}` = `{json.dumps(value)}`"
    return f"```json\n{_pretty(seen)}\n```\n\nThe same config {without} does not have this finding."


def _pretty(value: Any, indent: str = "") -> str:
    """JSON with one key a line and lists on a line of their own."""
    if not isinstance(value, dict):
        return json.dumps(value)
    lines = [f"{indent}  {json.dumps(key)}: {_pretty(inner, indent + '  ')}" for key, inner in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _section(rule: Rule, case: Mapping[str, Any], bases: Mapping[str, Any]) -> str:
    return f"""### {rule.id}

**{rule.title}** ({rule.severity})

{rule.what}

*What goes wrong:* {rule.effect}

*What to write:* {rule.fix}

*Source:* {rule.source}

{_example(case, bases)}
"""


def page() -> str:
    """The whole page."""
    data = json.loads(CASES.read_text(encoding="utf-8"))
    rows = [f"| [{rule.id}](#{rule.id.lower()}) | {rule.severity} | {rule.title} |" for rule in RULES]
    parts = [HEAD, "\n".join(["| id | severity | |", "| --- | --- | --- |", *rows]) + "\n"]
    for digit, theme in THEMES.items():
        parts.append(f"## {theme}\n")
        own = [rule for rule in RULES if rule.id.startswith(f"ROPE{digit}")]
        parts += [_section(rule, data["rules"][rule.id], data["bases"]) for rule in own]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
