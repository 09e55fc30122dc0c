"""`ropecli calibrate` end to end on the tiny trained checkpoint: the file, the budget, the errors, the whole road."""

import html
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from calibrate import fit as fitting
from calibrate import run
from calibrate.calibration import read_calibration
from calibrate.corpus import Corpus, Document, read_texts, split, tokenize
from calibrate.journal import file_fingerprint
from calibrate.model import LoadedModel, Settings
from calibrate.objective import Point, Space
from calibrate.score import Bands
from calibrate.search import METHODS
from calibrate.trials import Budget, Trial
from ropecli.checkpoint import read_checkpoint
from ropecli.cli import main
from ropecli.cli.calibrate import OPTIMIZERS
from ropecli.errors import BadUsage, Inconclusive
from ropecli.frequencies import frequencies
from ropecli.render import terminal
from ropecli.render.calibration import TrialLog
from ropecli.spec import RopeSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = EXAMPLES / "tiny"
TEXTS = sorted((EXAMPLES / "text" / "calibration").glob("*.txt"))

ROPECLI = [sys.executable, "-m", "ropecli"]
ROAD = ["--factor", "4", "--windows", "1", "--max-evals", "9", "--device", "cpu"]
ROAD_DOCUMENTS = 10
SMALL = ["--factor", "1.5", "--windows", "1", "--device", "cpu"]


def data(count: int) -> list[str]:
    return [word for path in TEXTS[:count] for word in ("--data", str(path))]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line sets these for the libraries; here they are put back."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TQDM_DISABLE", "1"),
    ):
        monkeypatch.setenv(name, value)


def status(*arguments: str) -> int:
    """The exit status of the command line, run in this process."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def calibrated(out: Path, *arguments: str) -> dict[str, Any]:
    assert status("calibrate", str(TINY), "-o", str(out), *arguments) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return json.loads(out.read_text("utf-8"))


# ------------------------------------------------------------------------------------------------ the whole road


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """`calibrate | convert --from -` in a real shell: what went through the pipe, and the checkpoint."""
    folder = tmp_path_factory.mktemp("road")
    words = {"R": " ".join(ROPECLI), "M": str(TINY), "D": " ".join(data(ROAD_DOCUMENTS)), "O": " ".join(ROAD)}
    line = "$R calibrate $M $D $O | tee piped.json | $R convert $M -o OUT --from -"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=os.environ | words,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["OUT", "piped.json"]
    return json.loads((folder / "piped.json").read_text("utf-8")), folder / "OUT"


def held_out(loaded: LoadedModel, length: int) -> tuple[Document, ...]:
    texts, _ = read_texts([str(path) for path in TEXTS[:ROAD_DOCUMENTS]])
    corpus = tokenize(texts, loaded.encode, length, bos=loaded.bos, windows=1)
    return split(corpus.documents, 0.5, 0)[1]


def plain_losses(folder: Path, windows: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Losses [windows, length − 1] of a model loaded by transformers alone, from the logits of whole windows."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    rows = []
    for window in windows:
        ids = torch.tensor([window])
        with torch.no_grad():
            log_p = model(ids).logits[0, :-1].double().log_softmax(-1)
        rows.append(-log_p.gather(-1, ids[0, 1:, None])[:, 0])
    return torch.stack(rows)


def test_the_converted_checkpoint_gives_the_calibrated_loss(road: tuple[dict[str, Any], Path]) -> None:
    """Loaded by plain `AutoModelForCausalLM.from_pretrained`, the new checkpoint has the loss that was reported."""
    content, folder = road
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    loaded = LoadedModel(
        None,
        lambda t, _=None: tokenizer(t, add_special_tokens=False, verbose=False).input_ids,
        None,
        torch.device("cpu"),
    )
    documents = held_out(loaded, 1024)
    losses = plain_losses(folder, [window for document in documents for window in document.windows])
    parts = {"within": losses[:, :255], "beyond": losses[:, 255:], "all": losses}
    key = "nll" if content["decision"] == "calibrated" else "default_nll"
    for row in content["validation"]:
        assert row["documents"] == len(documents)
        assert row["tokens"] == parts[row["positions"]].numel()
        assert row[key] == pytest.approx(float(parts[row["positions"]].mean()), abs=1e-4)


def test_the_converted_checkpoint_says_what_was_calibrated(road: tuple[dict[str, Any], Path]) -> None:
    """Read back, the new config has the frequencies, the attention factor and the lengths of the calibration file."""
    content, folder = road
    spec = read_checkpoint(str(folder)).ropes[0].spec
    assert (spec.original_length, spec.max_length, spec.rope_theta) == (256, 1024, 10000.0)
    assert frequencies(spec).inv_freq == pytest.approx(content["inv_freq"], rel=1e-12)
    assert frequencies(spec).attention_factor == content["rope"]["attention_factor"]


NUMBER, WHOLE = (int, float), int
ROW: dict[str, Any] = {
    "factor": NUMBER,
    "length": WHOLE,
    "positions": str,
    "documents": WHOLE,
    "tokens": WHOLE,
    "default_nll": NUMBER,
    "nll": NUMBER,
    "delta": NUMBER,
    "ci95": [NUMBER],
    "default_ppl": NUMBER,
    "ppl": NUMBER,
    "baselines": {"none": NUMBER, "linear": NUMBER, "ntk": NUMBER, "ntk-by-parts": NUMBER},
    "effective_documents": NUMBER,
    "interval": str,
    "differences": {"none": {"delta": NUMBER, "ci95": [NUMBER]}, "ntk-by-parts": {"delta": NUMBER, "ci95": [NUMBER]}},
}
COLUMNS = {"linear": [NUMBER], "ntk": [NUMBER], "ntk-by-parts": [NUMBER], "none": [NUMBER], "result": [NUMBER]}
CONTRACT: dict[str, Any] = {
    "schema_version": WHOLE,
    "kind": str,
    "checkpoint": {"source": str, "model_type": str, "config_sha256": str},
    "rope": {
        "rope_type": str,
        "rope_theta": NUMBER,
        "factor": NUMBER,
        "original_max_position_embeddings": WHOLE,
        "beta_slow": NUMBER,
        "beta_fast": NUMBER,
        "attention_factor": NUMBER,
    },
    "temperature": {"a": NUMBER, "b": NUMBER},
    "factors": [NUMBER],
    "inv_freq": [NUMBER],
    "decision": str,
    "calibration": {"documents": WHOLE, "tokens": WHOLE, "default_nll": NUMBER, "nll": NUMBER},
    "validation": [ROW],
    "cost": {
        "evaluations": WHOLE,
        "gradients": WHOLE,
        "forward_equivalents": NUMBER,
        "tokens": WHOLE,
        "seconds": NUMBER,
        "peak_memory_bytes": WHOLE,
    },
    "search": {
        "optimizer": str,
        "trace": [
            {
                "factor": NUMBER,
                "parameters": {"low": NUMBER, "high": NUMBER, "attention_factor": NUMBER},
                "nll": NUMBER,
                "documents": WHOLE,
                "tokens": WHOLE,
                "seconds": NUMBER,
            }
        ],
    },
    "data": [{"path": str, "sha256": str, "documents": WHOLE}],
    "split": {"search": [str], "held_out": [str]},
    "by_position": [
        {
            "factor": NUMBER,
            "length": WHOLE,
            "edges": [WHOLE],
            "nll": COLUMNS | {"yarn": [NUMBER]},
            "standard_error": COLUMNS | {"yarn": [NUMBER]},
            "delta": COLUMNS,
            "delta_standard_error": COLUMNS,
        }
    ],
    "seed": WHOLE,
    "versions": {"python": str, "ropecli": str, "torch": str, "transformers": str},
}


def against(found: Any, shape: Any, place: str = "") -> Iterator[str]:
    """Every place where JSON lacks a promised member or holds another type."""
    if isinstance(shape, dict):
        for key, inner in shape.items():
            if not isinstance(found, dict) or key not in found:
                yield f"{place}.{key} is missing"
            else:
                yield from against(found[key], inner, f"{place}.{key}")
    elif isinstance(shape, list):
        if not isinstance(found, list) or not found:
            yield f"{place} is no list, or empty"
        else:
            for index, value in enumerate(found):
                yield from against(value, shape[0], f"{place}[{index}]")
    elif isinstance(found, bool) or not isinstance(found, shape):
        yield f"{place} is {found!r}"


def test_the_check_of_the_contract_can_fail() -> None:
    """A missing member, a wrong type and an empty list are each told."""
    assert list(against({"a": [{"b": True}], "d": []}, {"a": [{"b": WHOLE}], "c": str, "d": [str]})) == [
        ".a[0].b is True",
        ".c is missing",
        ".d is no list, or empty",
    ]


def test_the_file_is_what_the_contract_promises(road: tuple[dict[str, Any], Path]) -> None:
    """Every member with its type, and values that agree with one another."""
    content, _ = road
    assert list(against(content, CONTRACT)) == []
    assert (content["kind"], content["schema_version"], content["seed"]) == ("ropecli.calibration", 1, 0)
    checkpoint = read_checkpoint(str(TINY))
    assert content["checkpoint"] == {
        "source": str(TINY),
        "model_type": "llama",
        "config_sha256": checkpoint.config_sha256,
        "weights_fingerprint": [file_fingerprint(TINY / "model.safetensors")],
    }
    settings = content["settings"]
    assert (settings["tune"], settings["objective"], settings["guard"]) == ("yarn", "beyond", 0.005)
    assert (settings["validation_fraction"], settings["text_field"], settings["device"]) == (0.5, "text", "cpu")
    assert (settings["dtype"], settings["attn_implementation"]) == ("bfloat16", "sdpa")
    rope = content["rope"]
    assert (rope["rope_type"], rope["factor"], content["factors"]) == ("yarn", 4.0, [4.0])
    assert content["decision"] in ("calibrated", "default")
    a, b = content["temperature"]["a"], content["temperature"]["b"]
    assert a * math.log(4) + b == pytest.approx(rope["attention_factor"])
    spec = read_calibration(json.dumps(content), "piped").onto(checkpoint.ropes[0].spec)
    assert list(frequencies(spec).inv_freq) == content["inv_freq"]
    assert [source["path"] for source in content["data"]] == [str(path) for path in TEXTS[:ROAD_DOCUMENTS]]


def test_the_numbers_of_the_file_agree(road: tuple[dict[str, Any], Path]) -> None:
    """Perplexities, differences, tokens and costs follow from one another."""
    content, _ = road
    rows = {row["positions"]: row for row in content["validation"]}
    assert list(rows) == ["within", "beyond", "all"]
    for row in rows.values():
        assert row["delta"] == pytest.approx(row["nll"] - row["default_nll"])
        assert row["ppl"] == pytest.approx(math.exp(row["nll"]))
        assert row["default_ppl"] == pytest.approx(math.exp(row["default_nll"]))
        assert row["ci95"][0] <= row["delta"] <= row["ci95"][1]
        assert (row["factor"], row["length"], row["documents"]) == (4.0, 1024, 5)
    assert (rows["within"]["tokens"], rows["beyond"]["tokens"], rows["all"]["tokens"]) == (5 * 255, 5 * 768, 5 * 1023)
    total = sum(rows[part]["nll"] * rows[part]["tokens"] for part in ("within", "beyond"))
    assert rows["all"]["nll"] == pytest.approx(total / rows["all"]["tokens"])
    cost, trace = content["cost"], content["search"]["trace"]
    assert cost["evaluations"] == sum(trial["tokens"] > 0 for trial in trace) == 9
    assert cost["tokens"] == sum(trial["tokens"] for trial in trace)
    assert cost["forward_equivalents"] == pytest.approx(cost["tokens"] / (5 * 1023), abs=1e-3)
    assert cost["gradients"] == 0
    seen = [trial for trial in trace if trial["documents"] == content["calibration"]["documents"]]
    assert content["calibration"]["nll"] == min(trial["nll"] for trial in seen)
    assert content["calibration"]["nll"] <= content["calibration"]["default_nll"] == seen[0]["nll"]


def test_the_loss_by_position_is_that_of_the_held_out_table(road: tuple[dict[str, Any], Path]) -> None:
    """The bins of each method, weighed by their width, are its losses within L, beyond it and over all positions."""
    content, _ = road
    (entry,) = content["by_position"]
    edges = entry["edges"]
    assert (edges[0], edges[-1]) == (1, entry["length"]) == (1, 1024)
    assert 256 in edges
    assert 60 <= len(edges) - 1 <= 68
    spans = list(pairwise(edges))
    for row in content["validation"]:
        low, high = {"within": (1, 256), "beyond": (256, 1024), "all": (1, 1024)}[row["positions"]]
        chosen = [i for i, (start, end) in enumerate(spans) if low <= start and end <= high]
        for name, column in entry["nll"].items():
            mean = sum(column[i] * (spans[i][1] - spans[i][0]) for i in chosen) / (high - low)
            whole = {"yarn": row["default_nll"], "result": row["nll"]}.get(name, row["baselines"].get(name))
            assert mean == pytest.approx(whole, rel=1e-6), name
            if name != "yarn":
                delta = sum(entry["delta"][name][i] * (spans[i][1] - spans[i][0]) for i in chosen) / (high - low)
                assert delta == pytest.approx(whole - row["default_nll"], abs=1e-6), name
    (found,) = content["search"]["found"]
    assert found["factor"] == 4.0
    assert content["decision"] == "default" or found == content["rope"]


def _timeless(content: dict[str, Any]) -> dict[str, Any]:
    """The file without what may differ between two runs: seconds, memory, versions, and the name of the file."""
    kept = {key: value for key, value in content.items() if key not in ("versions", "command")}
    kept["cost"] = {k: v for k, v in content["cost"].items() if k not in ("seconds", "peak_memory_bytes")}
    trace = [{k: v for k, v in trial.items() if k != "seconds"} for trial in content["search"]["trace"]]
    untimed = ("seconds", "peak_memory_bytes")
    fits = [
        fit | {"cost": {k: v for k, v in fit["cost"].items() if k not in untimed}} for fit in content.get("fits", [])
    ]
    return kept | {"search": content["search"] | {"trace": trace}, "fits": fits}


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    """Two runs say the same to the last digit; another seed deals the documents in another way."""
    arguments = [*data(4), *SMALL, "--max-evals", "3"]
    runs = []
    for seed in ("0", "0", "3"):
        folder = tmp_path / str(len(runs))
        folder.mkdir()
        runs.append(json.dumps(_timeless(calibrated(folder / "out.json", *arguments, "--seed", seed))))
    assert runs[0] == runs[1]
    assert json.loads(runs[0])["calibration"] != json.loads(runs[2])["calibration"]


# ------------------------------------------------------------------------------------------------ searches


def test_the_search_never_sees_a_held_out_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents scored before the held-out check and those scored in it have none in common; few prove nothing."""
    scored: list[tuple[str, ...]] = []
    true = fitting.nats_by_band

    def watched(loaded: Any, documents: Sequence[Document], bands: Any) -> Any:
        scored.append(tuple(document.name for document in documents))
        return true(loaded, documents, bands)

    monkeypatch.setattr(fitting, "nats_by_band", watched)
    content = calibrated(tmp_path / "out.json", *data(4), *SMALL, "--max-evals", "6")
    held = set(scored[-1])
    searched = {name for names in scored if set(names) != held for name in names}
    content = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert {part: set(names) for part, names in content["split"].items()} == {"search": searched, "held_out": held}
    assert len(held) == 2
    assert searched
    assert not searched & held
    assert content["decision"] == "default"
    assert "2 calibration documents are too few to claim anything" in content["reason"]
    assert content["rope"]["beta_fast"] == 32.0
    assert content["rope"]["beta_slow"] == 1.0
    assert content["rope"]["attention_factor"] == pytest.approx(0.1 * math.log(1.5) + 1)


def test_a_time_limit_that_is_over_at_once_still_gives_a_file(tmp_path: Path) -> None:
    """When loading takes the whole time limit, the default is scored, checked and written, and the note says so."""
    content = calibrated(tmp_path / "out.json", *data(3), *SMALL, "--time-limit", "0")
    assert content["cost"]["evaluations"] == 1
    assert content["decision"] == "default"
    assert any("stopped before it ended" in note for note in content["notes"])
    assert list(against(content, CONTRACT)) == []


def test_the_temperature_alone(tmp_path: Path) -> None:
    """`--tune temperature` moves m and leaves the corners where default YaRN has them."""
    content = calibrated(tmp_path / "out.json", *data(3), *SMALL, "--tune", "temperature", "--max-evals", "4")
    points = [trial["parameters"] for trial in content["search"]["trace"]]
    assert {(point["low"], point["high"]) for point in points} == {(0.0, 7.0)}
    assert len({point["attention_factor"] for point in points}) == 4
    assert content["cost"]["evaluations"] == 4
    (found,) = content["search"]["found"]
    assert (found["beta_slow"], found["beta_fast"]) == (1.0, 32.0)


def test_one_held_out_document_has_no_interval(tmp_path: Path) -> None:
    """Two documents: one to search on, one held out; the interval is null and the default stands."""
    content = calibrated(tmp_path / "out.json", *data(2), *SMALL, "--max-evals", "2")
    assert {row["documents"] for row in content["validation"]} == {1}
    assert [row["ci95"] for row in content["validation"]] == [None] * 3
    assert content["decision"] == "default"


def test_a_method_of_scipy_settles_on_what_can_be_written(tmp_path: Path) -> None:
    """Stopped by its budget, a search on continuous corners ends on whole ones, within the budget."""
    arguments = [*data(4), *SMALL, "--optimizer", "powell", "--max-evals", "14"]
    content = calibrated(tmp_path / "out.json", *arguments)
    assert content["search"]["optimizer"] == "powell"
    trace = content["search"]["trace"]
    assert any(trial["parameters"]["low"] % 1 for trial in trace)
    assert content["cost"]["evaluations"] <= 14
    assert list(against(content, CONTRACT)) == []
    whole = [t for t in trace if not t["parameters"]["low"] % 1 and not t["parameters"]["high"] % 1]
    most = [t for t in whole if t["documents"] == 2]
    assert len(most) >= 2
    assert content["calibration"] == {
        "documents": 2,
        "tokens": 2 * 383,
        "default_nll": most[0]["nll"] if most[0]["parameters"]["low"] == 0 else pytest.approx(most[-1]["nll"], abs=9),
        "nll": min(t["nll"] for t in most),
        "optimism": pytest.approx(0.0, abs=0.2),
    }


# ------------------------------------------------------------------------------------------------ several factors

POINT: dict[str, Any] = {"factor": NUMBER, "attention_factor": NUMBER}
SEVERAL = CONTRACT | {
    "fits": [
        {
            "factor": NUMBER,
            "decision": str,
            "reason": str,
            "rope": CONTRACT["rope"],
            "calibration": CONTRACT["calibration"],
            "cost": CONTRACT["cost"],
        }
    ],
    "law": {"a": NUMBER, "b": NUMBER, "points": [POINT], "default": {"a": NUMBER, "b": NUMBER}},
}


def asked(**changes: Any) -> run.Request:
    """Two factors on four documents, with a budget of three evaluations each."""
    settings: dict[str, Any] = {"factors": (1.5, 2.0), "windows": 1, "max_evals": 6, "settings": Settings("cpu")}
    paths = tuple(str(path) for path in TEXTS[:4])
    return run.Request(source=str(TINY), data=paths, **(settings | changes))


def silent(trial: Callable[[], object] = lambda: None) -> run.Observer:
    return run.Observer(lambda _: None, lambda _: None, lambda *_: trial())


@pytest.fixture(scope="module")
def journalled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """Two factors in one run: the calibration file, and the lines of the journal that it left."""
    path = tmp_path_factory.mktemp("several") / "journal"
    calibration, number = run.calibrate(asked(journal=path), silent())
    assert number is None
    return json.loads(json.dumps(calibration.to_json())), path.read_text("utf-8").splitlines(keepends=True)


def test_several_factors_in_one_file(journalled: tuple[dict[str, Any], list[str]]) -> None:
    """The file speaks for the largest factor, has the rows and the fit of each, and its costs are sums."""
    content, _ = journalled
    assert list(against(content, SEVERAL)) == []
    assert content["factors"] == [1.5, 2.0] == [fit["factor"] for fit in content["fits"]]
    largest = content["fits"][-1]
    for key in ("rope", "decision", "reason", "calibration"):
        assert content[key] == largest[key]
    assert content["rope"]["factor"] == 2.0
    rows = [(row["factor"], row["length"], row["positions"]) for row in content["validation"]]
    parts = ("within", "beyond", "all")
    assert rows == [(factor, length, part) for factor, length in ((1.5, 384), (2.0, 512)) for part in parts]
    for key in ("evaluations", "gradients", "forward_equivalents", "tokens"):
        assert content["cost"][key] == pytest.approx(sum(fit["cost"][key] for fit in content["fits"]))
    assert [fit["cost"]["evaluations"] for fit in content["fits"]] == [3, 3]
    assert [trial["factor"] for trial in content["search"]["trace"] if trial["tokens"]] == [1.5] * 3 + [2.0] * 3


def test_two_factors_give_a_law_that_held_out_text_judges(journalled: tuple[dict[str, Any], list[str]]) -> None:
    """The law is the line through the two m that were found; here they are YaRN's own, which costs nothing more."""
    content, _ = journalled
    law, temperature = content["law"], content["temperature"]
    assert temperature == {"a": 0.1, "b": 1.0}
    assert law["default"] == {"a": 0.1, "b": 1.0, "delta": 0.0, "ci95": [0.0, 0.0]}
    assert (law["a_ci95"], law["b_ci95"], law["default_rejected"]) == (None, None, False)
    assert [point["factor"] for point in law["points"]] == [1.5, 2.0]
    for point in law["points"]:
        assert law["a"] * math.log(point["factor"]) + law["b"] == pytest.approx(point["attention_factor"])
    assert any("whatever the decision" in note for note in content["notes"])
    assert any("law rests on a search that was stopped" in note for note in content["notes"])


def test_each_factor_is_fitted_as_if_alone(journalled: tuple[dict[str, Any], list[str]]) -> None:
    """A run of one factor with its part of the budget finds the same fit and the same held-out numbers."""
    content, _ = journalled
    alone, _ = run.calibrate(asked(factors=(1.5,), max_evals=3), silent())
    single = json.loads(json.dumps(alone.to_json()))
    assert single["validation"] == content["validation"][:3]
    assert single["calibration"] == content["fits"][0]["calibration"]
    assert "law" not in single


@pytest.mark.parametrize("part", [0.4, 0.8, 1.0])
def test_a_resumed_run_of_several_factors_is_the_uninterrupted_one(
    journalled: tuple[dict[str, Any], list[str]], part: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off within the first factor, the second, or at the end: the same file, and nothing is scored twice."""
    content, lines = journalled
    kept = 1 + round(part * (len(lines) - 1))
    path = tmp_path / "journal"
    path.write_text("".join(lines[:kept]) + '{"key": "cut o', "utf-8")
    scored: list[int] = []
    true = fitting.nats_by_band

    def watched(loaded: Any, documents: Sequence[Document], bands: Any) -> Any:
        scored.append(len(documents))
        return true(loaded, documents, bands)

    monkeypatch.setattr(fitting, "nats_by_band", watched)
    calibration, _ = run.calibrate(asked(journal=path, resume=True), silent())
    assert _timeless(json.loads(json.dumps(calibration.to_json()))) == _timeless(content)
    assert len(scored) == len(lines) - kept
    assert path.read_text("utf-8").splitlines(keepends=True) == lines


def test_other_factors_do_not_resume(journalled: tuple[dict[str, Any], list[str]], tmp_path: Path) -> None:
    """A journal of 1.5 and 2 is refused by a run of 1.5 and 3, by name; the order of the factors does not matter."""
    _, lines = journalled
    path = tmp_path / "journal"
    path.write_text("".join(lines), "utf-8")
    with pytest.raises(BadUsage, match="differs in: factors"):
        run.calibrate(asked(journal=path, resume=True, factors=(1.5, 3.0)), silent())
    again, _ = run.calibrate(asked(journal=path, resume=True, factors=(2.0, 1.5)), silent())
    assert again.factors == (1.5, 2.0)


def test_a_signal_after_the_last_search_does_not_cost_the_file() -> None:
    """What is left is scored all the same, and the run tells that it was interrupted."""

    def say(text: str) -> None:
        if text.startswith("held-out check: 0.1"):
            signal.raise_signal(signal.SIGINT)

    calibration, number = run.calibrate(asked(), run.Observer(say, lambda _: None, lambda *_: None))
    assert number == signal.SIGINT
    assert calibration.factors == (1.5, 2.0)
    assert calibration.law is not None
    assert calibration.law.default_loss is not None


def test_an_interrupted_run_has_the_largest_factor() -> None:
    """Ctrl-C in the first search: that factor is checked and written, the other is left out with a note."""
    count = 0

    def interrupt() -> None:
        nonlocal count
        count += 1
        if count == 2:
            signal.raise_signal(signal.SIGINT)

    calibration, number = run.calibrate(asked(), silent(interrupt))
    content = json.loads(json.dumps(calibration.to_json()))
    assert number == signal.SIGINT
    assert content["factors"] == [2.0]
    assert len(content["validation"]) == 3
    assert content["law"] is None
    assert content["temperature"]["b"] == 1.0
    assert "factor 1.5 was left out: the run was stopped before its turn" in content["notes"]


def test_a_time_limit_that_is_over_leaves_factors_out() -> None:
    """With no time left after the first factor the others are not begun; a default that nobody searched is no point."""
    calibration, number = run.calibrate(asked(time_limit=0.0), silent())
    assert number is None
    assert calibration.factors == (2.0,)
    assert (len(calibration.fits), calibration.law) == (1, None)


def test_the_budget_is_shared() -> None:
    """Evaluations are dealt equally and leftovers go on; time goes by window length; the last task gets the rest."""
    corpus = Corpus((), 512, 0, blocks=False, repeated=0, longest=512)
    tasks = [
        fitting.Task(
            Space(RopeSpec(10000.0, 32, 32, 256, 256), length / 256), length, Bands((1, length)), corpus, (), ()
        )
        for length in (1024, 512, 512)
    ]
    budget = Budget(10, 4000.0)
    first, second, last = (run.share(budget, spent, tasks[i:]) for i, spent in enumerate((0, 3, 5)))
    assert [part.max_evals for part in (first, second, last)] == [3, 3, 5]
    limits = [part.time_limit for part in (first, second, last)]
    assert limits == [pytest.approx(2000, abs=50), pytest.approx(2000, abs=50), 4000.0]
    assert first.began == budget.began
    assert run.share(Budget(), 0, tasks).time_limit is None


def test_several_factors_on_the_command_line_and_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--factor` twice: a table a factor and a line about the law; `convert --from` takes the largest factor."""
    out = tmp_path / "out.json"
    arguments = ["--factor", "1.5", "--factor", "1.25", "--windows", "1", "--device", "cpu", "--max-evals", "2"]
    content = calibrated(out, *data(2), *arguments)
    said = capsys.readouterr().err
    assert said.count("held-out perplexity") == 2
    assert "factor 1.25, 1 held-out documents at 320 tokens" in said
    assert "m(s) = 0.100·ln s + 1.000; two factors cannot say whether YaRN's 0.1·ln s + 1 is right" in said
    assert "factor 1.5: default (" in said
    assert content["temperature"] == {"a": pytest.approx(0.1), "b": pytest.approx(1.0)}
    assert status("convert", str(TINY), "--from", str(out), "-o", str(tmp_path / "OUT")) == 0
    spec = read_checkpoint(str(tmp_path / "OUT")).ropes[0].spec
    assert (spec.scaling.factor, spec.max_length) == (1.5, 384)
    assert list(frequencies(spec).inv_freq) == pytest.approx(content["inv_freq"], rel=1e-12)


# ------------------------------------------------------------------------------------------------ Hub ids


def hub_cache(home: Path) -> None:
    """The tiny checkpoint as a Hub repository of the cache: `main` without weights, `v1` whole."""
    repo = home / "hub" / "models--ropecli--tiny"
    (repo / "refs").mkdir(parents=True)
    for revision, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (repo / "refs" / revision).write_text(commit)
        shutil.copytree(TINY, repo / "snapshots" / commit)
    (repo / "snapshots" / ("a" * 40) / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("ropecli/tiny@v1", 0, "decision: default"),
        ("ropecli/tiny", 3, "error: ropecli/tiny: transformers"),
        ("ropecli/nothing@v2", 3, "error: ropecli/nothing@v2: "),
    ],
)
def test_a_hub_id_is_loaded_by_its_own_name(source: str, code: int, said: str, tmp_path: Path) -> None:
    """Offline, from the cache: the revision after the @ is the one that is loaded; what is not there is one line."""
    hub_cache(tmp_path)
    done = subprocess.run(
        [*ROPECLI, "calibrate", source, *data(2), *SMALL, "--max-evals", "1", "-o", str(tmp_path / "out.json")],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == (code > 0)
    assert (tmp_path / "out.json").exists() == (code == 0)


# ------------------------------------------------------------------------------------------------ memory


def test_memory_that_runs_out_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With room for one window the run goes on, says so in a line that also tells what to change, and ends as usual."""
    roomy, sizes = run.load, list[int]()

    def crowded(module: Any, args: Any, kwargs: Any) -> None:
        del module, args
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    def load(*arguments: Any) -> LoadedModel:
        loaded = roomy(*arguments)
        loaded.model.model.register_forward_pre_hook(crowded, with_kwargs=True)
        return loaded

    monkeypatch.setattr(run, "load", load)
    calibrated(tmp_path / "out.json", *data(4), *SMALL, "--max-evals", "2")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("out of memory")]
    assert len(told) == 1
    assert "with 2 windows of 384 tokens at once: goes on with fewer; --dtype bfloat16" in told[0]
    assert sorted(sizes)[-2:] == [1, 2]


# ------------------------------------------------------------------------------------------------ interruption


def _until(stream: Any, word: str) -> str:
    """Read lines until one holds `word`."""
    lines = []
    for line in stream:
        lines.append(line)
        if word in line:
            return line
    pytest.fail("".join(lines))


def test_ctrl_c_writes_the_best_so_far(tmp_path: Path) -> None:
    """SIGINT in the middle of a search ends it: the file is validated, whole, and the exit status is 130."""
    out = tmp_path / "out.json"
    command = [*ROPECLI, "calibrate", str(TINY), *data(4), *SMALL, "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        _until(process.stderr, "trial 3:")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    content = json.loads(out.read_text("utf-8"))
    assert list(against(content, CONTRACT)) == []
    assert any("stopped before it ended" in note for note in content["notes"])
    assert 3 <= content["cost"]["evaluations"] < 20
    assert len(content["validation"]) == 3


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--factor", "1"], "found --factor 1"),
        (["--factor", "0.5"], "found --factor 0.5"),
        (["--factor", "-4"], "found --factor -4"),
        (["--factor", "nan"], "found --factor nan"),
        (["--factor", "inf"], "found --factor inf"),
        (["--factor", "1.001"], "adds no token"),
        (["--factor", "1.7"], "--factor: 1.7 times the original length 256 is not a whole number of tokens"),
        (["--target-length", "256"], "found --target-length 256"),
        (["--target-length", "1k", "--factor", "4"], "one of --factor and --target-length"),
        ([], "one of --factor and --target-length"),
        (["--factor", "4", "--objective", "first"], "unknown objective"),
        (["--factor", "4", "--objective", "last:"], "unknown objective"),
        (["--factor", "4", "--objective", "last:x"], "--objective: expected a length in tokens, found 'x'"),
        (["--factor", "4", "--objective", "last:1k"], "fewer than last:1024 needs"),
        (["--factor", "2", "--guard", "inf"], "--guard: expected a finite number of nats, found inf"),
        (["--factor", "2", "--objective", "last:512"], "fewer than last:512 needs"),
        (["--factor", "4", "--factor", "2", "--objective", "last:700"], "fewer than last:700 needs"),
        (["--factor", "4", "--factor", "2", "--factor", "4"], "--factor: 4 is given twice"),
        (["--factor", "4", "--factor", "0.5"], "found --factor 0.5"),
        (["--factor", "4", "--factor", "2", "--target-length", "1k"], "one of --factor and --target-length"),
        (["--factor", "4", "--factor", "2", "--max-evals", "1"], "at least one evaluation for each of 2 factors"),
        (["--factor", "2", "--device", "toaster"], "unknown device"),
        (["--factor", "2", "--dtype", "int3"], "unknown dtype"),
        (["--factor", "2", "--validation-fraction", "1.5"], "expected a fraction between 0 and 1"),
        (["--factor", "2", "--optimizer", "adam"], "--optimizer: unknown 'adam'"),
        (["--factor", "2", "--seed", "-1"], "Invalid value for '--seed'"),
        (["--factor", "2", "--original-length", ""], "--original-length: expected a length"),
    ],
)
def test_what_cannot_be_asked_is_bad_usage(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A factor that extends nothing, and other impossible wishes, exit with 2, in a line, and write nothing."""
    assert status("calibrate", str(TINY), *data(2), "-o", str(tmp_path / "out.json"), *arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["word " * 100], "no document has the 512 tokens of one window; the longest of 1 has"),
        (["word " * 100, ""], "no document has the 512 tokens of one window; the longest of 2 has"),
        (["many different words " * 200, "short"], "one document cannot be split"),
        ([b"caf\xe9" * 600], "not UTF-8 text"),
        ([" "], "empty, expected text"),
    ],
)
def test_text_that_cannot_be_used_is_bad_data(
    texts: list[str | bytes], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text shorter than a window, no text, and one document alone exit with 3 and write nothing."""
    folder = tmp_path / "text"
    folder.mkdir()
    for index, text in enumerate(texts):
        (folder / f"{index}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    arguments = ["--data", str(folder), "--factor", "2", "-o", str(tmp_path / "out.json")]
    assert status("calibrate", str(TINY), *arguments) == 3
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_the_optimizers_are_those_of_the_search() -> None:
    """The command line refuses every other one before anything is read."""
    assert ("auto", *METHODS) == OPTIMIZERS


def test_a_dash_is_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for most tools; no file of that name, and no scores beside it."""
    texts = data(2)
    monkeypatch.chdir(tmp_path)
    assert status("calibrate", str(TINY), *texts, *SMALL, "--max-evals", "1", "-o", "-") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "ropecli.calibration"
    assert not list(tmp_path.iterdir())


def test_an_earlier_file_goes_with_no_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--from` draws; with what a search needs it is refused, and nothing is drawn."""
    for option in (["--resume"], ["--plan-only"], ["--factor", "2"], ["--original-length", "64"]):
        words = ["--from", "old.json", "--report", str(tmp_path / "page.html"), *option]
        assert status("calibrate", str(TINY), *words) == 2
        assert "--from: it goes with --report and --plot" in capsys.readouterr().err


def _folded(folder: Path) -> Path:
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    config["ropecli"] = {"folded_attention_factor": {"default": 1.0693}}
    shutil.copytree(TINY, folder)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def _adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(TINY)}))
    return folder


def _meta(folder: Path) -> Path:
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps({"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 100}))
    return folder


def _renamed(folder: Path) -> Path:
    shutil.copytree(TINY, folder)
    return (folder / "config.json").rename(folder / "other.json")


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (_folded, 3, "the query and key weights hold an attention factor of 1.0693 already"),
        (_adapter, 3, "an adapter, which is not measured without its base"),
        (_meta, 3, "the Meta format, which transformers does not load"),
        (_renamed, 2, "expected the config.json beside the weights, found other.json"),
        (lambda _: "-", 2, "a config on standard input has no weights"),
    ],
)
def test_what_has_no_weights_to_search_with_is_refused(
    make: Callable[[Path], object], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that hold a temperature, an adapter, another format, a config alone: one line that says why."""
    source = str(make(tmp_path / "model"))
    assert status("calibrate", source, *data(2), "--factor", "2") == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "config.json", "model.safetensors"])
def test_a_journal_knows_the_weights_whatever_was_named(name: str) -> None:
    """A config.json stands for its folder, so other weights beside it are another run."""
    (weights,) = TINY.glob("*.safetensors")
    assert run.weight_files(read_checkpoint(str(TINY / name))) == [weights]


def test_a_config_beside_its_weights_is_the_checkpoint(tmp_path: Path) -> None:
    """`MODEL/config.json` names the folder."""
    arguments = [*data(2), *SMALL, "--max-evals", "1", "-q", "-o", str(tmp_path / "out.json")]
    assert status("calibrate", str(TINY / "config.json"), *arguments) == 0
    checkpoint = json.loads((tmp_path / "out.json").read_text("utf-8"))["checkpoint"]
    assert checkpoint["source"] == str(TINY / "config.json")


def test_what_becomes_of_earlier_scores_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A journal that is replaced, or that is not there to go on from; `--quiet` says neither."""
    out = tmp_path / "out.json"
    journal = out.with_name("out.json.journal")
    words = ["calibrate", str(TINY), *data(2), *SMALL, "--dtype", "int3", "-o", str(out)]
    assert status(*words, "--resume") == 2
    assert f"there are no scores of an earlier run at {journal}" in capsys.readouterr().err
    journal.write_text("scores")
    for quiet in ([], ["-q"]):
        assert status(*words, *quiet) == 2
        told = f"{journal} holds the scores of an earlier run, which this one replaces; --resume would go on from them"
        assert (told in capsys.readouterr().err) == (not quiet)
    assert journal.read_text() == "scores"


def with_tokenizer(folder: Path, model: Any) -> None:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)


def multiplied(folder: Path, part: str, by: float) -> None:
    """The tiny checkpoint with some tensors multiplied."""
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    changed = {name: t * by if part in name else t for name, t in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


INERT: dict[str, tuple[Callable[[Path], None], str]] = {
    "gpt2": (
        lambda folder: with_tokenizer(
            folder,
            transformers.GPT2LMHeadModel(
                transformers.GPT2Config(vocab_size=2048, n_embd=32, n_layer=1, n_head=2, n_positions=512)
            ),
        ),
        "the model has no rotary embedding",
    ),
    "no layer rotates": (
        lambda folder: with_tokenizer(
            folder, families.build(families.config("smollm3", no_rope_layers=[0, 0], vocab_size=2048))
        ),
        "the model has no rotary embedding",
    ),
    "no query": (
        lambda folder: multiplied(folder, "q_proj", 0.0),
        "the loss does not move when the rotary frequencies do",
    ),
    "no finite loss": (
        lambda folder: multiplied(folder, "norm", math.nan),
        "the loss of default YaRN is not a finite number",
    ),
}


@pytest.mark.parametrize("kind", INERT)
def test_a_model_that_cannot_be_calibrated_exits_with_5(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No rotary embedding, one that no layer uses, one that changes nothing, no finite loss: told before any search."""
    make, said = INERT[kind]
    (tmp_path / "model").mkdir()
    make(tmp_path / "model")
    capsys.readouterr()
    out = tmp_path / "out.json"
    assert status("calibrate", str(tmp_path / "model"), *data(2), *SMALL, "-o", str(out)) == 5
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_table_that_is_found_but_not_used_is_inconclusive() -> None:
    """The proof of life runs the model: an architecture that ignores its rotary table is caught by the loss itself."""
    model = families.build(families.config("smollm3", no_rope_layers=[0, 0]))
    window = tuple(families.random_ids(1, 48)[0].tolist())
    space = Space(RopeSpec(10000.0, 8, 8, 24, 24), 2.0)
    loaded = LoadedModel(model, lambda _: [], None, torch.device("cpu"))
    with pytest.raises(Inconclusive, match="the loss does not move"):
        run.prove_alive(loaded, "default", space, Document("d", (window,)))
    alive = LoadedModel(families.build(families.config("smollm3")), loaded.encode, None, loaded.device)
    run.prove_alive(alive, "default", space, Document("d", (window,)))


def test_a_text_of_one_token_is_not_blamed_on_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Attention over equal tokens is the same wherever it looks, so the loss does not move; the hint says why."""
    text = tmp_path / "x.txt"
    text.write_text("x" * 40_000)
    assert status("calibrate", str(TINY), "--data", str(text), *SMALL) == 5
    assert "hint: the text is one token again and again: give it real text" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ reports


def test_a_report_and_a_figure_come_with_the_file(tmp_path: Path) -> None:
    """All three appear, the page holds the command as it was typed, and nothing else is left in the folder."""
    words = [*data(4), *SMALL, "--max-evals", "3", "--report", str(tmp_path / "a page.html")]
    words += ["--plot", str(tmp_path / "f.png"), "-o", str(tmp_path / "out.json"), "-q"]
    assert status("calibrate", str(TINY), *words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a page.html", "f.png", "out.json"]
    content, page = (
        json.loads((tmp_path / "out.json").read_text("utf-8")),
        (tmp_path / "a page.html").read_text("utf-8"),
    )
    assert html.escape(shlex.join(["ropecli", "calibrate", str(TINY), *words])) in page
    assert content["reason"][1:20] in page
    assert page.count("<svg") >= 3
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_the_file_is_there_when_the_reader_of_standard_output_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`calibrate -o FILE --json | head`: 141, and the file as if nobody had been listening."""

    def gone(_: object) -> None:
        raise terminal.ReaderGone

    monkeypatch.setattr(terminal, "emit_json", gone)
    words = [*data(2), *SMALL, "--max-evals", "1", "-q", "--json", "-o", str(tmp_path / "out.json")]
    assert status("calibrate", str(TINY), *words) == 141
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert json.loads((tmp_path / "out.json").read_text("utf-8"))["kind"] == "ropecli.calibration"


def test_the_log_of_trials(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file a line a trial; on a terminal of 80 columns the last, the best, what is left and for how long."""
    first, second = Trial(Point(0, 7, 1.1386), 3.366, 1, 255, 0.1), Trial(Point(3.25, 8.5, 1.05), 3.1108, 12, 255, 0.1)

    def run_log() -> str:
        with TrialLog(quiet=False) as log:
            log.expect(16.5)
            log.trial(first, first, 0.1)
            log.trial(second, second, 4.25)
            log.say("held-out check: none")
        return capsys.readouterr().err

    assert run_log().splitlines() == [
        "trial 1: corners 0, 7, m 1.1386: 3.3660 nats a token, 1 document; best 3.3660",
        "trial 2: corners 3.25, 8.5, m 1.0500: 3.1108 nats a token, 12 documents; best 3.1108",
        "held-out check: none",
    ]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    shown = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", run_log())]
    assert max(map(len, shown)) <= 80
    assert "trial 2: corners 3.25, 8.5, m 1.0500: 3.1108 nats a token, 12 documents" in shown
    assert "best so far: corners 3.25, 8.5, m 1.0500: 3.1108 nats a token, 12 documents" in shown
    assert any(re.fullmatch(r"searching \S+ 12\.2 forward equivalents, \S+ left", line) for line in shown)
