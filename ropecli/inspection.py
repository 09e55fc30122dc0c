"""What there is to say about a checkpoint's rotary embedding, as one value and as the JSON of the contract."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ropecli.checkpoint import Checkpoint
from ropecli.errors import BadUsage
from ropecli.frequencies import base_frequencies, frequencies, rotations
from ropecli.spec import LayerRope, RopeSpec, scaling_to_json


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checkpoint and, for each kind of layer, the rotary embedding that is shown (its own, or a preview)."""

    checkpoint: Checkpoint
    ropes: tuple[LayerRope, ...]


def inspect(checkpoint: Checkpoint, preview: Mapping[str, RopeSpec] | None = None) -> Inspection:
    """Look at a checkpoint; `preview` replaces the embedding of the layers that it names."""
    ropes = checkpoint.ropes
    if preview:
        ropes = tuple(replace(rope, spec=preview.get(rope.name, rope.spec)) for rope in ropes)
    return Inspection(checkpoint, ropes)


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


def inspection_to_json(inspection: Inspection) -> dict[str, Any]:
    """The document that `ropecli inspect --json` prints."""
    checkpoint = inspection.checkpoint
    return {
        "schema_version": 1,
        "source": checkpoint.source,
        "format": checkpoint.format,
        "model_type": checkpoint.model_type,
        "rope": [rope_to_json(rope) for rope in inspection.ropes],
        "runtimes": {},
        "findings": [],
        "notes": list(checkpoint.notes),
        "baked": None,
    }


def expected(inspection: Inspection, assertions: str) -> tuple[str, ...]:
    """Check `KEY=VALUE,…` against every kind of layer; what fails, one line each.

    Keys are those of the JSON's `rope` elements and their `parameters`; numbers compare to one part in a million.
    Raises BadUsage for a key that is not there.
    """
    failures = []
    for assertion in assertions.split(","):
        key, equals, wanted = assertion.strip().partition("=")
        if not equals:
            raise BadUsage(f"expected KEY=VALUE, found {assertion!r}", where="--expect", hint="for example factor=4")
        for rope in inspection.ropes:
            shown = rope_to_json(rope)
            values = shown["parameters"] | {name: v for name, v in shown.items() if not isinstance(v, list | dict)}
            if key not in values:
                raise BadUsage(f"unknown key {key!r}", where="--expect", hint=f"known: {', '.join(sorted(values))}")
            if not _same(values[key], wanted):
                failures.append(f"{rope.name}: expected {key}={wanted}, found {values[key]}")
    return tuple(failures)


def _same(value: object, wanted: str) -> bool:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value).lower() == wanted.lower()
    try:
        number = float(wanted)
    except ValueError:
        return False
    return isinstance(value, int | float) and abs(value - number) <= 1e-6 * max(abs(number), 1e-300)
