"""The result of a calibration: the rotary embedding, what it is worth on held-out text, and where it came from.

Light on purpose: `ropecli convert --from` reads these files without importing torch or scipy.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ropecli.errors import BadCalibration, BadParameter
from ropecli.frequencies import frequencies
from ropecli.spec import LARGEST, Longrope, RopeSpec, Scaling, Yarn, scaling_to_json

KIND = "ropecli.calibration"
ORIGINAL = "original_max_position_embeddings"
IDENTITY = ("model_type", "config_sha256")
"""What a calibration file says of the checkpoint that it is for."""
MOST_BYTES = 64 * 2**20
"""The largest calibration file that is read. Real ones, with the trace of thousands of trials, stay below 5 MiB."""
FLOAT32 = 2.0**-23
"""Relative spacing of a float32, in which a GGUF keeps the base that a config has in full."""
YARN_LAW = (0.1, 1.0)
"""YaRN's own temperature, m(s) = 0.1·ln s + 1, as (a, b) (arXiv 2309.00071, equation 22)."""


def rope_to_json(spec: RopeSpec) -> dict[str, Any]:
    """The `rope` block of a calibration file: canonical names, the base and the original length beside them.

    A calibrated YaRN needs no `truncate`: its α and β are snapped, so that rounding the corners changes nothing; or
    they are the default's own, which a converter snaps.
    """
    block = {key: value for key, value in scaling_to_json(spec.scaling).items() if key != "truncate"}
    rope_type = block.pop("rope_type")
    return {"rope_type": rope_type, "rope_theta": spec.rope_theta, ORIGINAL: spec.original_length} | block


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration file asks a converter to write.

    scaling                    its kind and parameters
    rope_theta                 base of the embedding that was calibrated
    original_length            L, tokens
    inv_freq                   the table that was scored, to check against: radians a token for each rotary pair
    decision                   "calibrated", or "default" where `scaling` is default YaRN
    model_type, config_sha256  of the checkpoint that was calibrated; "" where the file does not say
    """

    scaling: Scaling
    rope_theta: float
    original_length: int
    inv_freq: tuple[float, ...]
    decision: str
    model_type: str
    config_sha256: str = ""

    def onto(self, spec: RopeSpec) -> RopeSpec:
        """This calibration on the geometry of a checkpoint.

        Raises BadCalibration when the base, or the number of pairs, is not the one that was calibrated, or when the
        parameters do not give the table that was scored.
        """
        if not math.isclose(spec.rope_theta, self.rope_theta, rel_tol=FLOAT32):
            raise BadCalibration(
                f"calibrated for rope_theta {self.rope_theta:.10g}, the checkpoint has {spec.rope_theta:.10g}",
                where="rope.rope_theta",
                hint="calibrate this checkpoint",
            )
        if spec.pairs != len(self.inv_freq):
            raise BadCalibration(
                f"calibrated for {len(self.inv_freq)} rotary pairs, the checkpoint has {spec.pairs}",
                where="inv_freq",
                hint="calibrate this checkpoint",
            )
        try:
            length = round(self.original_length * self.scaling.factor)
            onto = replace(spec, scaling=self.scaling, original_length=self.original_length, max_length=length)
        except BadParameter as error:
            raise BadCalibration(error.problem, where=f"rope.{error.where}", hint=error.hint) from error
        now = frequencies(onto, length).inv_freq
        if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(now, self.inv_freq, strict=True)):
            raise BadCalibration(
                "the parameters under rope do not give this table, which is the one that was scored",
                where="inv_freq",
                hint="was the file edited? `ropecli convert --rope-type` takes parameters by hand",
            )
        return onto


def _finite(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadCalibration(f"expected a number, found {value!r:.60}", where=where)
    if not -LARGEST <= value <= LARGEST:  # a number that is none fails both, too
        raise BadCalibration(f"expected a finite number, found {value!r:.60}", where=where)
    return float(value)


def _number(block: Mapping[str, Any], key: str) -> float:
    return _finite(block.get(key), f"rope.{key}")


def _scaling(block: Mapping[str, Any]) -> Scaling:
    match block.get("rope_type"):
        case "yarn":
            factor, m = _number(block, "factor"), _number(block, "attention_factor")
            return Yarn(factor, m, _number(block, "beta_fast"), _number(block, "beta_slow"))
        case "longrope":
            lists = {key: block.get(key) for key in ("short_factor", "long_factor")}
            for key, value in lists.items():
                if not isinstance(value, list):
                    raise BadCalibration(f"expected a list of numbers, found {value!r:.60}", where=f"rope.{key}")
            m = _number(block, "attention_factor")
            short = _number(block, "short_attention_factor") if "short_attention_factor" in block else m
            short_factor, long_factor = (tuple(value or ()) for value in lists.values())
            return Longrope(_number(block, "factor"), short_factor, long_factor, m, short)
        case other:
            raise BadCalibration(f"expected yarn or longrope, found {other!r:.60}", where="rope.rope_type")


def calibrated_from_json(data: Any, where: str) -> Calibrated:
    """Read what a converter needs from a calibration file. Raises BadCalibration with the key at fault."""
    try:
        if not isinstance(data, dict) or data.get("kind") != KIND:
            found = data.get("kind") if isinstance(data, dict) else type(data).__name__
            raise BadCalibration(
                f"expected kind {KIND!r}, found {found!r:.60}",
                where="kind",
                hint="write one with: ropecli calibrate MODEL --data F",
            )
        version = data.get("schema_version")
        if isinstance(version, bool) or version != 1:
            raise BadCalibration(f"expected 1, found {version!r:.60}", where="schema_version")
        block, checkpoint, inv_freq = data.get("rope"), data.get("checkpoint"), data.get("inv_freq")
        if not isinstance(block, dict):
            raise BadCalibration(f"expected an object, found {block!r:.60}", where="rope")
        if not isinstance(inv_freq, list) or not inv_freq:
            raise BadCalibration(f"expected a list of numbers, found {inv_freq!r:.60}", where="inv_freq")
        original = block.get(ORIGINAL)
        if isinstance(original, bool) or not isinstance(original, int) or original < 1:
            raise BadCalibration(f"expected a whole number above 0, found {original!r:.60}", where=f"rope.{ORIGINAL}")
        return Calibrated(
            _scaling(block),
            _number(block, "rope_theta"),
            original,
            tuple(_finite(value, f"inv_freq[{index}]") for index, value in enumerate(inv_freq)),
            str(data.get("decision", "")),
            *(str(checkpoint.get(key, "")) if isinstance(checkpoint, dict) else "" for key in IDENTITY),
        )
    except BadParameter as error:
        raise BadCalibration(error.problem, where=f"{where}: rope.{error.where}", hint=error.hint) from error
    except BadCalibration as error:
        raise error.at(where) from None


def calibration_text(source: str) -> str:
    """The text of a calibration file, or of standard input for `-`; at most `MOST_BYTES` of it are read.

    Raises BadCalibration, which names the file, for what cannot be read as text.
    """
    where, hint = ("standard input" if source == "-" else source), "check the path of the calibration file"
    try:
        if source == "-":
            raw = getattr(sys.stdin, "buffer", None)  # a stream of text, as tests put in its place, has none
            data = sys.stdin.read(MOST_BYTES + 1).encode() if raw is None else raw.read(MOST_BYTES + 1)
        else:
            path = Path(source)
            # a pipe, as of <(…) in a shell, ends; a device need not
            if not (path.is_file() or path.is_fifo()) and path.exists():
                raise BadCalibration("expected a file, found a folder or a device", where=where, hint=hint)
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise BadCalibration(f"expected at most {MOST_BYTES // 2**20} MiB, found more", where=where, hint=hint)
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BadCalibration(f"cannot be read ({reason})", where=where, hint=hint) from error


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadCalibration("a key appears twice in one object", hint="was the file edited? delete one of them")
    return found


def read_calibration(text: str, where: str) -> Calibrated:
    """Parse the text of a calibration file; `where` names it in errors. Raises BadCalibration."""
    if not text.strip():
        raise BadCalibration("empty", where=where, hint="did the calibration before the pipe end with an error?")
    try:
        data = json.loads(text, object_pairs_hook=_no_key_twice)
    except BadCalibration as error:
        raise error.at(where) from None
    except (ValueError, RecursionError) as error:
        place = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "too deep, or a number too long"
        raise BadCalibration(
            f"not JSON ({place})", where=where, hint="expected a file that ropecli calibrate wrote"
        ) from error
    return calibrated_from_json(data, where)


@dataclass(frozen=True, slots=True)
class Validation:
    """Held-out loss of the result and of every baseline over some positions, in nats a token, paired by document.

    effective_documents  how many documents of equal length would say as much
    interval             how `ci95` was found: "t" for few documents, "bootstrap" for many
    """

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
    effective_documents: float = math.nan
    interval: str = "t"
    differences: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Baseline → (its loss minus default YaRN's, low and high end of the 95 % interval)."""

    def to_json(self) -> dict[str, Any]:
        """One row of `validation`. JSON has no infinity: the interval of a single document is null."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        numbers = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
        known = all(math.isfinite(end) for end in self.ci95)
        baselines = {key: value if math.isfinite(value) else None for key, value in self.baselines.items()}
        differences = {
            key: {"delta": _or_null(delta), "ci95": [low, high] if math.isfinite(low) else None}
            for key, (delta, low, high) in self.differences.items()
        }
        ci95 = list(self.ci95) if known else None
        return numbers | {"ci95": ci95, "baselines": baselines, "differences": differences}


def _or_null(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _columns(values: Mapping[str, tuple[float, ...]]) -> dict[str, list[float | None]]:
    return {name: [_or_null(value) for value in column] for name, column in values.items()}


@dataclass(frozen=True, slots=True)
class ByPosition:
    """Held-out loss by position, from the same pass as the held-out table; every list is [bins].

    edges                  ascending positions, one more than bins: bin i is edges[i] ≤ p < edges[i + 1]; one is L
    nll, standard_error    method (`yarn` is default YaRN, `result` the search's) → nats a token, and its standard error
                           over documents
    delta, delta_error     method → its loss − default YaRN's, paired by document, and its standard error
    """

    factor: float
    length: int
    edges: tuple[int, ...]
    nll: Mapping[str, tuple[float, ...]]
    standard_error: Mapping[str, tuple[float, ...]]
    delta: Mapping[str, tuple[float, ...]]
    delta_error: Mapping[str, tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        """One entry of `by_position`. What is no number (the error over a single document) is null."""
        return {
            "factor": self.factor,
            "length": self.length,
            "edges": list(self.edges),
            "nll": _columns(self.nll),
            "standard_error": _columns(self.standard_error),
            "delta": _columns(self.delta),
            "delta_standard_error": _columns(self.delta_error),
        }


@dataclass(frozen=True, slots=True)
class Fit:
    """What the search found for one factor, and what it is worth on held-out text.

    spec              what the decision is about: the search's result where it is proved better, else default YaRN
    attention_factor  m as the search found it, whatever the decision
    complete          whether the search ended by itself
    trace             the trials, as JSON
    found             what the search ended on, whatever the decision
    """

    spec: RopeSpec
    attention_factor: float
    complete: bool
    decision: str
    reason: str
    notes: tuple[str, ...]
    calibration: Mapping[str, Any]
    validation: tuple[Validation, ...]
    cost: Mapping[str, Any]
    trace: tuple[Mapping[str, Any], ...]
    found: RopeSpec | None = None
    by_position: ByPosition | None = None

    @property
    def factor(self) -> float:
        """The extension factor s."""
        return self.spec.scaling.factor

    def to_json(self) -> dict[str, Any]:
        """One entry of `fits`."""
        return {
            "factor": self.factor,
            "decision": self.decision,
            "reason": self.reason,
            "rope": rope_to_json(self.spec),
            "calibration": dict(self.calibration),
            "cost": dict(self.cost),
        }


@dataclass(frozen=True, slots=True)
class Law:
    """The attention factor over several factors, m(s) = a·ln s + b, each factor with the same weight.

    points            (factor, attention factor that the search found, whatever the decision for that factor was)
    a_ci95, b_ci95    95 % intervals; None with two points, which any line fits
    default_loss      what YaRN's own a = 0.1, b = 1 (`YARN_LAW`) costs more on held-out text at the same corners, all
                      factors together: (nats a token, low and high end of the 95 % interval)
    default_rejected  whether that interval lies above zero; where it was not scored, whether the points reject it;
                      None with two points
    """

    a: float
    b: float
    a_ci95: tuple[float, float] | None
    b_ci95: tuple[float, float] | None
    points: tuple[tuple[float, float], ...]
    default_rejected: bool | None
    default_loss: tuple[float, float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The `law` block of a calibration file."""
        (a, b), loss = YARN_LAW, self.default_loss
        return {
            "a": self.a,
            "b": self.b,
            "a_ci95": self.a_ci95 and list(self.a_ci95),
            "b_ci95": self.b_ci95 and list(self.b_ci95),
            "points": [{"factor": factor, "attention_factor": m} for factor, m in self.points],
            "default": {"a": a, "b": b} | ({"delta": loss[0], "ci95": list(loss[1:])} if loss else {}),
            "default_rejected": self.default_rejected,
        }


@dataclass(frozen=True, slots=True)
class Calibration:
    """A finished calibration. `decision` is "calibrated" only where held-out text proves the gain.

    reason       the verdict in a sentence
    settings     how it was made: what was tuned and minimised, on how much text, in which dtype
    notes        what a reader of the numbers should know: blocks, bounds, few documents
    split        names of the documents that were searched on, and of those that were held out
    temperature  (a, b) of m = a·ln s + b: the law's, or for one factor b = 1 and the a that gives its m; YaRN's own
                 where nothing is calibrated
    fits, law    where several factors were asked for; then `spec`, `inv_freq`, `decision`, `reason` and `calibration`
                 are those of the largest factor, and costs are summed
    """

    checkpoint: Mapping[str, Any]
    settings: Mapping[str, Any]
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
    fits: tuple[Fit, ...] = ()
    law: Law | None = None
    by_position: tuple[ByPosition, ...] = ()
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The calibration file."""
        a, b = self.temperature
        several = {
            "fits": [fit.to_json() for fit in self.fits],
            "law": None if self.law is None else self.law.to_json(),
        }
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
            "validation": [row.to_json() for row in self.validation],
            "cost": dict(self.cost),
            "search": dict(self.search),
            "data": [dict(source) for source in self.data],
            "split": {part: list(names) for part, names in self.split.items()},
            "settings": dict(self.settings),
            "seed": self.seed,
            "versions": dict(self.versions),
            "by_position": [curves.to_json() for curves in self.by_position],
            **(several if self.fits else {}),
        }
