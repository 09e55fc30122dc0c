"""The result of a calibration: the rotary embedding, what it is worth on held-out text, and where it came from.

Light on purpose: `ropecli convert --from` reads these files without importing torch or scipy.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ropecli.errors import BadCalibration, BadParameter
from ropecli.spec import Longrope, RopeSpec, Scaling, Yarn, default_attention_factor, scaling_to_json

KIND = "ropecli.calibration"
ORIGINAL = "original_max_position_embeddings"


def rope_to_json(spec: RopeSpec) -> dict[str, Any]:
    """The `rope` block of a calibration file: canonical names, the base and the original length beside them.

    A calibrated YaRN needs no `truncate`: its α and β are snapped, so that rounding the corners changes nothing.
    """
    block = {key: value for key, value in scaling_to_json(spec.scaling).items() if key != "truncate"}
    rope_type = block.pop("rope_type")
    return {"rope_type": rope_type, "rope_theta": spec.rope_theta, ORIGINAL: spec.original_length} | block


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration file asks a converter to write.

    rope      scaling kind with its parameters
    inv_freq  the table that was scored, to check against
    """

    scaling: Scaling
    rope_theta: float
    original_length: int
    inv_freq: tuple[float, ...]
    decision: str
    model_type: str

    def onto(self, spec: RopeSpec) -> RopeSpec:
        """This calibration on the geometry of a checkpoint.

        Raises BadCalibration when the base, or the number of pairs, is not the one that was calibrated.
        """
        if spec.rope_theta != self.rope_theta:
            raise BadCalibration(
                f"calibrated for rope_theta {self.rope_theta:g}, the checkpoint has {spec.rope_theta:g}",
                where="rope.rope_theta",
                hint="calibrate this checkpoint",
            )
        if spec.pairs != len(self.inv_freq):
            raise BadCalibration(
                f"calibrated for {len(self.inv_freq)} rotary pairs, the checkpoint has {spec.pairs}",
                where="inv_freq",
                hint="calibrate this checkpoint",
            )
        length = round(self.original_length * self.scaling.factor)
        return replace(spec, scaling=self.scaling, original_length=self.original_length, max_length=length)


def _number(block: Mapping[str, Any], key: str) -> float:
    value = block.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadCalibration(f"expected a number, found {value!r}", where=f"rope.{key}")
    return float(value)


def _scaling(block: Mapping[str, Any]) -> Scaling:
    match block.get("rope_type"):
        case "yarn":
            factor = _number(block, "factor")
            return Yarn(
                factor,
                _number(block, "attention_factor") if "attention_factor" in block else default_attention_factor(factor),
                _number(block, "beta_fast") if "beta_fast" in block else 32.0,
                _number(block, "beta_slow") if "beta_slow" in block else 1.0,
            )
        case "longrope":
            lists = {key: block.get(key) for key in ("short_factor", "long_factor")}
            for key, value in lists.items():
                if not isinstance(value, list):
                    raise BadCalibration(f"expected a list of numbers, found {value!r}", where=f"rope.{key}")
            m = _number(block, "attention_factor")
            short = _number(block, "short_attention_factor") if "short_attention_factor" in block else m
            short_factor, long_factor = (tuple(value or ()) for value in lists.values())
            return Longrope(_number(block, "factor"), short_factor, long_factor, m, short)
        case other:
            raise BadCalibration(f"expected yarn or longrope, found {other!r}", where="rope.rope_type")


def calibrated_from_json(data: Any, where: str) -> Calibrated:
    """Read what a converter needs from a calibration file. Raises BadCalibration with the key at fault."""
    try:
        if not isinstance(data, dict) or data.get("kind") != KIND:
            found = data.get("kind") if isinstance(data, dict) else type(data).__name__
            raise BadCalibration(
                f"expected kind {KIND!r}, found {found!r}", hint="write one with: ropecli calibrate MODEL --data F"
            )
        if data.get("schema_version") != 1:
            raise BadCalibration(f"expected 1, found {data.get('schema_version')!r}", where="schema_version")
        block, checkpoint, inv_freq = data.get("rope"), data.get("checkpoint"), data.get("inv_freq")
        if not isinstance(block, dict):
            raise BadCalibration(f"expected an object, found {block!r}", where="rope")
        numbers = isinstance(inv_freq, list) and all(isinstance(v, int | float) for v in inv_freq)
        if not numbers or not inv_freq:
            raise BadCalibration("expected a list of numbers", where="inv_freq")
        original = block.get(ORIGINAL)
        if isinstance(original, bool) or not isinstance(original, int) or original < 1:
            raise BadCalibration(f"expected a whole number above 0, found {original!r}", where=f"rope.{ORIGINAL}")
        return Calibrated(
            _scaling(block),
            _number(block, "rope_theta"),
            original,
            tuple(float(v) for v in inv_freq),
            str(data.get("decision", "")),
            str(checkpoint.get("model_type", "")) if isinstance(checkpoint, dict) else "",
        )
    except BadParameter as error:
        raise BadCalibration(error.problem, where=f"{where}: rope.{error.where}", hint=error.hint) from error
    except BadCalibration as error:
        raise error.at(where) from None


def read_calibration(text: str, where: str) -> Calibrated:
    """Parse the text of a calibration file; `where` names it in errors. Raises BadCalibration."""
    if not text.strip():
        raise BadCalibration("empty", where=where, hint="did the calibration before the pipe end with an error?")
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        place = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise BadCalibration(
            f"not JSON ({place})", where=where, hint="expected a file that ropecli calibrate wrote"
        ) from error
    return calibrated_from_json(data, where)


@dataclass(frozen=True, slots=True)
class Validation:
    """Held-out loss of the result and of every baseline over some positions, in nats a token, paired by document."""

    factor: float
    length: int
    positions: str
    documents: int
    tokens: int
    default_nll: float
    nll: float
    delta: float
    ci95: tuple[float, float]
    default_ppl: float
    ppl: float
    baselines: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Calibration:
    """A finished calibration. `decision` is "calibrated" only where held-out text proves the gain.

    reason  the verdict in a sentence
    notes   what a reader of the numbers should know: blocks, bounds, few documents
    """

    checkpoint: Mapping[str, Any]
    spec: RopeSpec
    inv_freq: tuple[float, ...]
    temperature: tuple[float, float]
    factors: tuple[float, ...]
    decision: str
    reason: str
    notes: tuple[str, ...]
    calibration: Mapping[str, Any]
    validation: tuple[Validation, ...]
    cost: Mapping[str, Any]
    search: Mapping[str, Any]
    data: tuple[Mapping[str, Any], ...]
    seed: int
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The calibration file."""
        a, b = self.temperature
        return {
            "schema_version": 1,
            "kind": KIND,
            "checkpoint": dict(self.checkpoint),
            "rope": rope_to_json(self.spec),
            "temperature": {"a": a, "b": b},
            "factors": list(self.factors),
            "inv_freq": list(self.inv_freq),
            "decision": self.decision,
            "reason": self.reason,
            "notes": list(self.notes),
            "calibration": dict(self.calibration),
            "validation": [
                {name: list(v) if isinstance(v := getattr(row, name), tuple) else v for name in Validation.__slots__}
                for row in self.validation
            ],
            "cost": dict(self.cost),
            "search": dict(self.search),
            "data": [dict(source) for source in self.data],
            "seed": self.seed,
            "versions": dict(self.versions),
        }


def write_text_whole(text: str, path: Path) -> None:
    """Write a small file so that it appears whole or not at all. The folder must exist."""
    stage = path.with_name(f".{path.name}.partial")
    stage.write_text(text, "utf-8")
    stage.replace(path)
