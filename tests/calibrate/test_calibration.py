"""`calibrate.calibration`: the file holds what the contract promises, and a bad one is refused by the key at fault."""

import copy
import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from calibrate.calibration import (
    KIND,
    Calibration,
    Validation,
    calibrated_from_json,
    read_calibration,
    rope_to_json,
)
from calibrate.objective import Point, Space
from ropecli.errors import BadCalibration
from ropecli.frequencies import frequencies
from ropecli.spec import Longrope, RopeSpec, Scaling, Yarn

PLAIN = RopeSpec(10000.0, 32, 32, 256, 256)
SPACE = Space(PLAIN, 4.0)
FOUND = SPACE.scaling(Point(6, 7, 1.064))
DIVISORS = tuple(1 + d / 5 for d in range(16))
SCALINGS: dict[str, Scaling] = {
    "yarn": FOUND,
    "default": Yarn.default(4.0),
    "longrope": Longrope(4.0, DIVISORS, DIVISORS, 1.1, 1.1),
}

NTK = {"none": 4.7, "ntk": 3.6}
ROW = Validation(4.0, 1024, "beyond", 12, 9216, 3.2, 3.15, -0.05, (-0.06, -0.04), 24.5, 23.3, NTK, 11.5, "t")


def calibration(scaling: Scaling = FOUND) -> Calibration:
    spec = replace(PLAIN, scaling=scaling, max_length=1024)
    return Calibration(
        checkpoint={"source": "examples/tiny", "model_type": "llama", "config_sha256": "ab" * 32},
        settings={"tune": "yarn"},
        spec=spec,
        inv_freq=frequencies(spec, 1024).inv_freq,
        temperature=(0.046, 1.0),
        factors=(4.0,),
        decision="calibrated",
        reason="better",
        notes=("a note",),
        calibration={"documents": 12, "tokens": 12276, "default_nll": 3.3, "nll": 3.2},
        validation=(ROW,),
        cost={"evaluations": 40, "forward_equivalents": 15.2},
        search={"optimizer": "auto", "trace": []},
        data=({"path": "a.txt", "sha256": "cd" * 32, "documents": 1},),
        seed=0,
        versions={"python": "3.11"},
    )


def document(scaling: Scaling = FOUND) -> dict[str, Any]:
    return json.loads(json.dumps(calibration(scaling).to_json(), allow_nan=False))


def test_a_gguf_keeps_the_base_in_a_float32_and_is_the_same_model() -> None:
    """283461213 (gradientai's Llama-3-8B-262k) is 283461216 in a GGUF."""
    spec = replace(PLAIN, rope_theta=283461213.0, scaling=FOUND, max_length=1024)
    data = document() | {"rope": rope_to_json(spec), "inv_freq": list(frequencies(spec, 1024).inv_freq)}
    found = calibrated_from_json(data, "file.json")
    in_gguf = struct.unpack("<f", struct.pack("<f", 283461213.0))[0]
    onto = found.onto(replace(PLAIN, rope_theta=in_gguf))
    assert onto.rope_theta == in_gguf != found.rope_theta
    with pytest.raises(BadCalibration, match="283461213, the checkpoint has 283461500"):
        found.onto(replace(PLAIN, rope_theta=283461500.0))


@pytest.mark.parametrize("name", SCALINGS)
def test_a_calibration_comes_back_as_it_was_written(name: str) -> None:
    """What a converter reads is what the search found: scaling, base, length and table, to the last bit."""
    scaling = SCALINGS[name]
    found = read_calibration(json.dumps(document(scaling)), "file.json")
    spec = replace(PLAIN, scaling=scaling, max_length=1024)
    assert found.scaling == scaling
    assert (found.rope_theta, found.original_length) == (10000.0, 256)
    assert found.inv_freq == frequencies(spec, 1024).inv_freq
    assert (found.decision, found.model_type) == ("calibrated", "llama")
    assert found.onto(PLAIN) == spec
    assert found.onto(replace(PLAIN, scaling=Yarn.default(2.0), max_length=512)) == spec


def test_the_file_has_the_members_of_the_contract() -> None:
    """Every member is there, in the promised place."""
    written = document()
    assert list(written) == [
        "schema_version",
        "kind",
        "checkpoint",
        "rope",
        "temperature",
        "factors",
        "inv_freq",
        "decision",
        "reason",
        "notes",
        "calibration",
        "validation",
        "cost",
        "search",
        "data",
        "split",
        "settings",
        "seed",
        "versions",
        "by_position",
    ]
    assert (written["schema_version"], written["kind"]) == (1, "ropecli.calibration")
    assert written["temperature"] == {"a": 0.046, "b": 1.0}
    assert written["validation"] == [
        {
            "factor": 4.0,
            "length": 1024,
            "positions": "beyond",
            "documents": 12,
            "tokens": 9216,
            "default_nll": 3.2,
            "nll": 3.15,
            "delta": -0.05,
            "ci95": [-0.06, -0.04],
            "default_ppl": 24.5,
            "ppl": 23.3,
            "baselines": {"none": 4.7, "ntk": 3.6},
            "effective_documents": 11.5,
            "interval": "t",
            "differences": {},
        }
    ]


def test_the_rope_of_a_yarn_needs_no_truncate() -> None:
    """α and β are snapped: the block holds the six values of the contract and no rounding rule."""
    assert rope_to_json(replace(PLAIN, scaling=FOUND, max_length=1024)) == {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 256,
        "factor": 4.0,
        "attention_factor": 1.064,
        "beta_fast": FOUND.beta_fast,
        "beta_slow": FOUND.beta_slow,
    }


def test_json_has_no_infinity() -> None:
    """A single held-out document has no interval, and a baseline may have no loss: both are null."""
    row = replace(ROW, ci95=(-math.inf, math.inf), baselines={"none": math.nan, "ntk": math.inf, "linear": 4.0})
    written = json.loads(json.dumps(replace(calibration(), validation=(row,)).to_json(), allow_nan=False))
    assert written["validation"][0]["ci95"] is None
    assert written["validation"][0]["baselines"] == {"none": None, "ntk": None, "linear": 4.0}
    lost = replace(ROW, nll=math.nan, delta=math.nan, ci95=(math.nan, math.nan), ppl=math.nan)
    written = json.loads(json.dumps(replace(calibration(), validation=(lost,)).to_json(), allow_nan=False))
    assert [written["validation"][0][key] for key in ("nll", "delta", "ci95", "ppl")] == [None] * 4


# ------------------------------------------------------------------------------------------------ bad files


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set (or, with `...`, drop) the member at a dotted path."""

    def change(data: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for key in parents:
            data = data[key]
        if value is ...:
            del data[last]
        else:
            data[last] = value

    return change


NUMBERS = ("rope_theta", "factor", "attention_factor", "beta_fast", "beta_slow")
BAD: list[tuple[str, Any, str]] = [
    *((f"rope.{key}", value, f"rope.{key}") for key in NUMBERS for value in (..., None, "4", True, [], math.nan)),
    *((f"rope.{key}", value, f"rope.{key}") for key in NUMBERS for value in (math.inf, -math.inf, 10**400)),
    *((f"rope.{key}", value, f"rope.{key}") for key in NUMBERS[1:] for value in (0, -1.0)),
    *(
        ("rope.original_max_position_embeddings", value, "rope.original_max_position_embeddings")
        for value in (..., None, 0, -256, 256.0, "256", True)
    ),
    *(("rope", value, "rope") for value in (..., None, [], "yarn")),
    *(("rope.rope_type", value, "rope.rope_type") for value in (..., None, "linear", "dynamic", 5, ["yarn"])),
    *(("kind", value, "kind") for value in (..., None, "ropecli.inspection", 1)),
    *(("schema_version", value, "schema_version") for value in (..., None, 2, 0, "1", True)),
    *(("inv_freq", value, "inv_freq") for value in (..., None, [], {}, "1.0", 1.0)),
    *(("inv_freq", [1.0, value], "inv_freq[1]") for value in (None, "0.1", True, math.nan, math.inf, 10**400)),
]
BAD_LONGROPE: list[tuple[str, Any, str]] = [
    *((f"rope.{key}", value, f"rope.{key}") for key in ("long_factor", "short_factor") for value in (..., 1.0, [], {})),
    *(("rope.long_factor", [1.0] * 15 + [v], "rope.long_factor[15]") for v in (None, "1", math.nan, 0.0, -1.0, True)),
    *(("rope.attention_factor", value, "rope.attention_factor") for value in (..., None, math.nan, 0.0)),
]


def refused(data: Any) -> BadCalibration:
    with pytest.raises(BadCalibration) as caught:
        calibrated_from_json(data, "file.json")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300
    return caught.value


@pytest.mark.parametrize(("path", "value", "where"), BAD)
def test_a_bad_file_is_refused_by_its_key(path: str, value: Any, where: str) -> None:
    """Missing keys, wrong kinds, no numbers, another version: BadCalibration with the file and the key."""
    data = document()
    put(path, value)(data)
    assert refused(data).where == f"file.json: {where}"


@pytest.mark.parametrize(("path", "value", "where"), BAD_LONGROPE)
def test_a_bad_list_of_divisors_is_refused_by_its_key(path: str, value: Any, where: str) -> None:
    """The same for the lists of longrope, down to the place in the list."""
    data = document(SCALINGS["longrope"])
    put(path, value)(data)
    assert refused(data).where == f"file.json: {where}"


@pytest.mark.parametrize("data", [None, [], "text", 5])
def test_what_is_no_object_is_no_calibration(data: Any) -> None:
    """JSON of another shape is told as such."""
    assert refused(data).where == "file.json: kind"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("{", "not JSON (line 1)"),
        ('{\n"kind": \n', "not JSON (line 3)"),
        ("[" * 100_000, "too deep"),
        ('{"kind": ' + "9" * 5000 + "}", "a number too long"),
        ("\x00", "not JSON"),
    ],
)
def test_a_file_that_is_no_json_is_one_line(text: str, said: str) -> None:
    """Empty, cut-off and hostile files are refused with the file's name and a hint, never with a traceback."""
    with pytest.raises(BadCalibration) as caught:
        read_calibration(text, "standard input")
    assert said in caught.value.problem
    assert caught.value.where == "standard input"
    assert caught.value.hint


def test_unknown_members_are_allowed() -> None:
    """Adding is free: a file with members that this version does not know is read."""
    data = document()
    data["from the future"] = {"a": 1}
    data["rope"]["truncate"] = False
    assert calibrated_from_json(data, "file.json").scaling == FOUND


@pytest.mark.parametrize(
    ("spec", "where", "said"),
    [
        (replace(PLAIN, rope_theta=500000.0), "rope.rope_theta", "for rope_theta 10000, the checkpoint has 500000"),
        (replace(PLAIN, head_dim=64, rotary_dim=64), "inv_freq", "for 16 rotary pairs, the checkpoint has 32"),
        (replace(PLAIN, rotary_dim=16), "inv_freq", "for 16 rotary pairs, the checkpoint has 8"),
    ],
)
def test_another_checkpoint_is_refused(spec: RopeSpec, where: str, said: str) -> None:
    """A calibration fits only a checkpoint with its base and its number of pairs."""
    found = calibrated_from_json(document(), "file.json")
    with pytest.raises(BadCalibration) as caught:
        found.onto(spec)
    assert caught.value.where == where
    assert said in caught.value.problem
    assert caught.value.hint


@pytest.mark.parametrize("path", ["rope.beta_fast", "rope.beta_slow", "rope.factor"])
def test_parameters_that_do_not_give_the_scored_table_are_refused(path: str) -> None:
    """A file whose parameters were edited no longer means what was measured."""
    data = document()
    key = path.removeprefix("rope.")
    put(path, data["rope"][key] * 4)(data)
    with pytest.raises(BadCalibration, match="do not give this table") as caught:
        calibrated_from_json(data, "file.json").onto(PLAIN)
    assert caught.value.where == "inv_freq"


def test_a_list_of_divisors_must_fit_the_table() -> None:
    """Fewer divisors than pairs are refused as the calibration's fault."""
    data = document(SCALINGS["longrope"])
    data["rope"]["long_factor"] = data["rope"]["long_factor"][:15]
    with pytest.raises(BadCalibration) as caught:
        calibrated_from_json(data, "file.json").onto(PLAIN)
    assert caught.value.where == "rope.long_factor"


def test_reading_leaves_the_data_alone() -> None:
    """The parsed JSON is not changed by reading it."""
    data = document()
    before = copy.deepcopy(data)
    calibrated_from_json(data, "file.json")
    assert data == before
    assert data["kind"] == KIND
