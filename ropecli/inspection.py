"""What there is to say about a checkpoint's rotary embedding, as one value and as the JSON of docs/json.md."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ropecli.checkpoint import OWN_KEY, Checkpoint, Problem, folded_factors, read_json, verify
from ropecli.dialects import hf
from ropecli.errors import BadUsage, RopeError
from ropecli.findings import Finding, find, find_in_config
from ropecli.frequencies import base_frequencies, frequencies, largest_difference, rotations
from ropecli.runtimes import Reading, Request, compare, readings
from ropecli.spec import SCALINGS, Dynamic, LayerRope, RopeSpec, scaling_to_json

OF_CHECKPOINTS = ("format", "model_type")
"""Keys of --expect that a checkpoint has once."""

OF_LAYERS = (
    *("name", "layers", "rope_type", "rope_theta", "head_dim", "rotary_dim", "layout", "factor", "original_length"),
    *("max_length", "attention_factor", "length_dependent", "sliding_window"),
    *sorted({field.name for kind in SCALINGS.values() for field in fields(kind)} - {"short_factor", "long_factor"}),
)
"""Keys of --expect that each kind of layer has: those of the JSON's `rope` elements, and of every scaling."""

WRITTEN = re.compile(r"[+-]?[1-9]\d*\.\d+")
"""A decimal number of at least 1, so that four decimals are five digits and more."""

ENOUGH_DECIMALS = 4
"""As `inspect` shows an attention factor: 1.1386 is found where it is 1.138629436."""

HF_FORMATS = ("hf", "mlx")
"""Formats whose config is a Hugging Face config.json, which is what the runtimes read."""


@dataclass(frozen=True, slots=True)
class RuntimeRow:
    """What one runtime makes of the config, over all kinds of layers.

    attention_factor  of the layers that differ most; None where the runtime stops at the config
    max_rel_diff      largest relative difference of a frequency from what the config means, of `dynamic` at the served
                      length too; None where it stops
    agrees            whether frequencies and attention factor are those that the config means, for every layer
    context_length    tokens that it serves with no flag; None where it sets no limit
    """

    attention_factor: float | None
    max_rel_diff: float | None
    agrees: bool
    context_length: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expectation:
    """One `KEY=VALUE` of --expect; `layer` is the kind of layer in `LAYER.KEY=VALUE`, and empty for all of them."""

    layer: str
    key: str
    wanted: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checkpoint and everything that inspect has to say about it.

    ropes     one entry for each kind of layer: its own embedding, or a preview of another
    runtimes  row name → what that runtime makes of the config as it is on the disk, or as a preview would write it
    problems  what is wrong with the weights, where they were verified
    """

    checkpoint: Checkpoint
    ropes: tuple[LayerRope, ...]
    runtimes: Mapping[str, RuntimeRow] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    problems: tuple[Problem, ...] = ()


def inspect(
    checkpoint: Checkpoint,
    *,
    preview: Mapping[str, RopeSpec] | None = None,
    tokenizer_config: Mapping[str, Any] | None = None,
    problems: tuple[Problem, ...] = (),
) -> Inspection:
    """Look at a checkpoint; `preview` replaces the embedding of the layers that it names."""
    ropes = checkpoint.ropes
    if preview:
        ropes = tuple(replace(rope, spec=preview.get(rope.name, rope.spec)) for rope in ropes)
    return Inspection(checkpoint, ropes, runtime_rows(checkpoint), find(checkpoint, tokenizer_config), problems)


def with_text(checkpoint: Checkpoint, config_text: str) -> Checkpoint:
    """The checkpoint as if its config.json had this text. Raises what reading it raises."""
    config = json.loads(config_text)
    return replace(checkpoint, config=config, config_text=config_text, ropes=hf.read(config))


def runtime_rows(checkpoint: Checkpoint, intent: Mapping[str, RopeSpec] | None = None) -> dict[str, RuntimeRow]:
    """What each runtime makes of the config; for a GGUF only llama.cpp is asked, whose reading is its meaning.

    intent  kind of layer → what the runtimes are held against, instead of what the config means
    """
    if checkpoint.format == "gguf" and checkpoint.ropes:
        spec = checkpoint.ropes[0].spec
        return {"llama.cpp": RuntimeRow(spec.scaling.attention_factor, 0.0, True, spec.max_length, ())}
    if checkpoint.format not in HF_FORMATS or not checkpoint.ropes:
        return {}
    inner, path = hf.text_config(checkpoint.config)
    merged = {**checkpoint.config, **inner} if path else inner
    architecture = hf.class_name(checkpoint.config)
    answers: dict[str, list[tuple[Reading, float | None, bool]]] = {}
    for rope in checkpoint.ropes:
        meant = (intent or {}).get(rope.name, rope.spec)
        source = rope.sources.get("rope_theta", "")
        request = Request(
            config=merged,
            rope=rope,
            architecture=architecture,
            model_type=checkpoint.model_type,
            layer_type=None if rope.name == "default" else rope.name,
            class_defaults=hf.class_defaults(checkpoint.config, rope.name),
            **({"default_rope_theta": rope.spec.rope_theta} if source.startswith("default") else {}),
        )
        for name, reading in readings(request).items():
            answers.setdefault(name, []).append((reading, *_compared(reading, meant)))
    return {name: _row(found) for name, found in answers.items()}


def _compared(reading: Reading, meant: RopeSpec) -> tuple[float | None, bool]:
    """`compare` at the original length; where the base should grow and does not, at the served length too."""
    difference, agrees = compare(reading, frequencies(meant))
    if difference is None or reading.grows or not isinstance(meant.scaling, Dynamic):
        return difference, agrees
    beyond, agrees_beyond = compare(reading, frequencies(meant, meant.max_length))
    return max(difference, beyond or 0.0), agrees and agrees_beyond


def _row(found: list[tuple[Reading, float | None, bool]]) -> RuntimeRow:
    worst = max(found, key=lambda entry: (not entry[2], entry[1] is None, entry[1] or 0.0))
    reading = worst[0]
    stopped = any(difference is None for _, difference, _ in found)
    notes = tuple(dict.fromkeys(note for answer, _, _ in found for note in answer.notes))
    differences = [difference for _, difference, _ in found if difference is not None]
    return RuntimeRow(
        reading.attention_factor,
        None if stopped else max(differences),
        all(agrees for _, _, agrees in found),
        reading.context_length,
        notes,
    )


def rope_to_json(rope: LayerRope) -> dict[str, Any]:
    """One element of `rope`: frequencies at the original length, and beyond it where they differ."""
    spec = rope.spec
    short, long = frequencies(spec), frequencies(spec, max(spec.max_length, spec.original_length + 1))
    base = base_frequencies(spec.rope_theta, spec.rotary_dim)
    data: dict[str, Any] = {
        "name": rope.name,
        "layers": rope.layers,
        "rope_type": spec.rope_type,
        "rope_theta": spec.rope_theta,
        "head_dim": spec.head_dim,
        "rotary_dim": spec.rotary_dim,
        "layout": spec.layout,
        "factor": spec.scaling.factor,
        "original_length": spec.original_length,
        "max_length": spec.max_length,
        "attention_factor": spec.scaling.attention_factor,
        "length_dependent": spec.length_dependent,
        "inv_freq": list(short.inv_freq),
        "rotations": [rotations(w, spec.original_length) for w in base],
        "parameters": scaling_to_json(spec.scaling),
        "sources": dict(rope.sources),
    }
    if long.inv_freq != short.inv_freq:
        data["inv_freq_long"] = list(long.inv_freq)
    if rope.mrope_section:
        data["mrope_section"] = list(rope.mrope_section)
    if rope.sliding_window is not None:
        data["sliding_window"] = rope.sliding_window
    return data


def finding_to_json(finding: Finding) -> dict[str, Any]:
    """One element of `findings`; `fix` maps key paths to the values to write, null to remove the key."""
    return {
        "id": finding.id,
        "severity": finding.severity,
        "message": finding.message,
        "effect": finding.effect,
        "fix": dict(finding.fix),
    }


def tokenizer_config(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """The tokenizer_config.json beside the config, where there is one that can be read."""
    path = None if checkpoint.config_path is None else checkpoint.config_path.with_name("tokenizer_config.json")
    try:
        return None if path is None or not path.is_file() else read_json(path)[0]
    except RopeError:
        return None


def broken_findings(source: str) -> tuple[Finding, ...]:
    """What the rules say of a config that cannot be read as a rotary embedding; empty where it is not even JSON."""
    path = Path(source)
    try:
        return find_in_config(read_json(path / "config.json" if path.is_dir() else path)[0], None)
    except (RopeError, OSError, ValueError):  # a name with a null character is a ValueError
        return ()


def failed_checks(
    inspection: Inspection, *, check: bool, strict: bool, expect: Sequence[Expectation] = ()
) -> tuple[str, ...]:
    """What fails of the checks that were asked for, one line each; problems of verified weights always do."""
    grave = ("error", "warning") if strict else ("error",)
    failures = [f"{problem.where}: {problem.problem}" for problem in inspection.problems]
    if check or strict:
        failures += [f"{f.id} {f.severity}: {f.message}" for f in inspection.findings if f.severity in grave]
    for expectation in expect:
        failures += unmet(inspection, expectation)
    return tuple(failures)


def inspection_to_json(inspection: Inspection) -> dict[str, Any]:
    """The document that `ropecli inspect --json` prints."""
    checkpoint = inspection.checkpoint
    return {
        "schema_version": 1,
        "source": checkpoint.source,
        "format": checkpoint.format,
        "model_type": checkpoint.model_type,
        "rope": [rope_to_json(rope) for rope in inspection.ropes],
        "runtimes": {
            name: {
                "attention_factor": row.attention_factor,
                "max_rel_diff": row.max_rel_diff,
                "agrees": row.agrees,
                "context_length": row.context_length,
                "notes": list(row.notes),
            }
            for name, row in inspection.runtimes.items()
        },
        "findings": [finding_to_json(finding) for finding in inspection.findings],
        "weights": [{"where": p.where, "problem": p.problem, "hint": p.hint} for p in inspection.problems],
        "notes": list(checkpoint.notes),
        "baked": baked_to_json(checkpoint),
    }


def expectations(text: str) -> tuple[Expectation, ...]:
    """Read `KEY=VALUE,…`. Raises BadUsage for a key that no checkpoint has."""
    found = []
    for part in text.split(","):
        key, equals, wanted = (word.strip() for word in part.partition("="))
        if not equals:
            raise BadUsage(f"expected KEY=VALUE, found {part!r}", where="--expect", hint="for example factor=4")
        layer, _, name = key.rpartition(".")
        if name not in ({*OF_LAYERS} if layer else {*OF_CHECKPOINTS, *OF_LAYERS}):
            known = ", ".join(sorted({*OF_CHECKPOINTS, *OF_LAYERS}))
            raise BadUsage(f"unknown key {key!r}", where="--expect", hint=f"known: {known}")
        found.append(Expectation(layer, name, wanted))
    return tuple(found)


def unmet(inspection: Inspection, expectation: Expectation) -> tuple[str, ...]:
    """Where a checkpoint is not as expected, one line for each kind of layer.

    Numbers compare to one part in a million, or as far as they are written where that is four decimals and more; a
    length may be written as 32k. What a checkpoint does not have is not found.
    """
    key, wanted = expectation.key, expectation.wanted
    if key in OF_CHECKPOINTS:
        found = {"format": inspection.checkpoint.format, "model_type": inspection.checkpoint.model_type}[key]
        return () if _same(found, wanted) else (f"expected {key}={wanted}, found {found or 'none'}",)
    ropes = [rope for rope in inspection.ropes if expectation.layer in {"", rope.name}]
    if not ropes:
        of = f" of {expectation.layer}" if expectation.layer else ""
        return (f"expected {key}={wanted}, found no rotary embedding{of}",)
    values = ((rope.name, _values(rope).get(key)) for rope in ropes)
    return tuple(
        f"{name}: expected {key}={wanted}, found {'none' if value is None else value}"
        for name, value in values
        if not _same(value, wanted)
    )


def baked_to_json(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The field `baked`: tables beside the weights, an attention factor inside of them, or None.

    Raises BadCheckpoint where the config's word on the weights is damaged.
    """
    folder = checkpoint.path
    if OWN_KEY not in checkpoint.config and (folder is None or not any(folder.glob("*rope?tables*"))):
        return None
    # few checkpoints have either, and start-up does not pay for them
    from ropecli.table_check import NO_TABLES, baked  # noqa: PLC0415

    tables = baked(folder, checkpoint) if folder is not None and folder.is_dir() else None
    factors = folded_factors(checkpoint.config, checkpoint.source)
    if tables is not None:
        return tables.to_json() | {"folded_attention_factor": factors or None}
    if not factors:
        return None
    held = {"kind": "attention-factor", "layers": list(factors), "attention_factor": list(factors.values())}
    return NO_TABLES | held | {"folded_attention_factor": factors}


def weight_problems(checkpoint: Checkpoint) -> tuple[Problem, ...]:
    """Everything wrong with the weights and with baked tables; reads headers, and a few rows of the tables."""
    if checkpoint.path is None or not checkpoint.path.is_dir():
        return verify(checkpoint)
    from ropecli.table_check import verify_tables  # noqa: PLC0415

    return (*verify(checkpoint), *verify_tables(checkpoint.path, checkpoint))


@dataclass(frozen=True, slots=True)
class Change:
    """One value that two checkpoints do not share; None where one has no such layer or parameter."""

    layer: str
    key: str
    here: Any
    there: Any


def differences(here: Inspection, there: Inspection) -> tuple[Change, ...]:
    """What differs between the rotary embeddings of two checkpoints, layer by layer.

    Tables are told as their largest relative difference, under the key `inv_freq`.
    """
    left, right = ({rope.name: rope for rope in inspection.ropes} for inspection in (here, there))
    found: list[Change] = []
    for name in dict.fromkeys([*left, *right]):
        if name not in left or name not in right:
            found.append(
                Change(name, "layers", *(side[name].layers if name in side else None for side in (left, right)))
            )
            continue
        a, b = _values(left[name]), _values(right[name])
        found += [
            Change(name, key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)
        ]
        found += _table_change(name, left[name].spec, right[name].spec)
    return tuple(found)


def _values(rope: LayerRope) -> dict[str, Any]:
    shown = rope_to_json(rope)
    values = {key: value for key, value in shown.items() if not isinstance(value, list | dict)}
    return values | {key: value for key, value in shown["parameters"].items() if not isinstance(value, list)}


def _table_change(name: str, here: RopeSpec, there: RopeSpec) -> list[Change]:
    if here.pairs != there.pairs:
        return [Change(name, "inv_freq", f"{here.pairs} pairs", f"{there.pairs} pairs")]
    worst = largest_difference(frequencies(here, here.max_length), frequencies(there, there.max_length))
    return [Change(name, "inv_freq", "", f"differs by up to {100 * worst:.3g} %")] if worst else []


def _same(value: object, wanted: str) -> bool:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value).lower() == wanted.lower()
    scale = {"k": 1024, "m": 1024**2}.get(wanted[-1:].lower(), 1)
    try:
        number = float(wanted if scale == 1 else wanted[:-1]) * scale
    except ValueError:
        return False
    if not isinstance(value, int | float):
        return False
    decimals = len(wanted.partition(".")[2]) if WRITTEN.fullmatch(wanted) else 0
    rounded = decimals >= ENOUGH_DECIMALS and f"{value:.{decimals}f}" == f"{number:.{decimals}f}"
    return rounded or abs(value - number) <= 1e-6 * max(abs(number), 1e-300)
