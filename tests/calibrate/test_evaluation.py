"""`ropecli evaluate`: one pass gives every length, each method is what its name says, and rows are paired."""

import hashlib
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from calibrate import evaluation
from calibrate.calibration import Calibration
from calibrate.evaluation import Request, Row, evaluate
from calibrate.fence import rotating_with
from calibrate.model import Settings, load
from calibrate.objective import Point, Space, method
from calibrate.statistics import paired_difference
from ropecli.cli import main
from ropecli.errors import BadCalibration, BadCheckpoint, BadData, BadUsage
from ropecli.frequencies import frequencies
from ropecli.render.evaluation import show_rows
from ropecli.spec import Longrope, RopeSpec, Scaling

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = EXAMPLES / "tiny"
TEXTS = tuple(str(path) for path in sorted((EXAMPLES / "text" / "heldout").glob("*.txt"))[:3])
PLAIN = RopeSpec(10000.0, 32, 32, 256, 256)
LENGTHS = (128, 256, 512, 1024)
FLOAT32 = Settings(device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line sets these for the libraries; here they are put back."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TQDM_DISABLE", "1"),
    ):
        monkeypatch.setenv(name, value)


def rows(*sources: str | Path, **request: Any) -> tuple[Row, ...]:
    settings = {"data": TEXTS, "windows": 1, "settings": FLOAT32} | request
    told: list[Row] = []
    found = evaluate(Request(sources=tuple(str(s) for s in sources or (TINY,)), **settings), told.append)
    assert tuple(told) == found
    return found


def windows(length: int) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    texts = [Path(path).read_text("utf-8") for path in TEXTS]
    return torch.tensor([tokenizer(text, verbose=False).input_ids[:length] for text in texts])


def losses(model: Any, length: int) -> torch.Tensor:
    """Losses [documents, length − 1] straight from the logits."""
    ids = windows(length)
    with torch.no_grad():
        log_p = torch.cat([model(row[None]).logits for row in ids])[:, :-1].double().log_softmax(-1)
    return -log_p.gather(-1, ids[:, 1:, None])[..., 0]


def with_scaling(folder: Path, parameters: dict[str, Any]) -> Path:
    """The tiny checkpoint with another scaling in its config."""
    shutil.copytree(TINY, folder)
    config = json.loads((TINY / "config.json").read_text("utf-8"))
    config["rope_parameters"] |= parameters
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.fixture(scope="module")
def plain() -> tuple[Row, ...]:
    return rows(lengths=LENGTHS, methods=("none", "yarn"), factor=4.0)


# ------------------------------------------------------------------------------------------------ the numbers


def test_one_pass_gives_every_length(plain: tuple[Row, ...]) -> None:
    """The loss of a prefix, from one pass over the longest window, is that of a pass of its own."""
    assert [(row.method, row.length) for row in plain] == [(m, n) for m in ("none", "yarn") for n in LENGTHS]
    for length in LENGTHS[:-1]:
        alone = rows(lengths=(length,), methods=("none", "yarn"), factor=4.0)
        together = [row for row in plain if row.length == length]
        for one, other in zip(alone, together, strict=True):
            assert one.nll == pytest.approx(other.nll, abs=1e-5)
            assert one.tokens == other.tokens


def test_the_loss_is_that_of_the_model(plain: tuple[Row, ...]) -> None:
    """Losses, tokens, parts and standard errors follow from the model's own logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    expected = losses(model, 1024)
    for row in plain[: len(LENGTHS)]:
        part = expected[:, : row.length - 1]
        assert row.nll == pytest.approx(float(part.mean()), abs=1e-5)
        assert row.ppl == pytest.approx(math.exp(row.nll))
        assert (row.documents, row.tokens) == (3, 3 * (row.length - 1))
        assert row.standard_error == pytest.approx(float(part.mean(1).std() / math.sqrt(3)), abs=1e-5)
        assert row.within == pytest.approx(float(part[:, :255].mean()), abs=1e-5)
        if row.length > 256:
            assert row.beyond == pytest.approx(float(part[:, 255:].mean()), abs=1e-5)
        else:
            assert row.beyond is None


def test_rows_are_compared_with_the_first_of_their_length(plain: tuple[Row, ...]) -> None:
    """The first row has no difference; later ones have that of their loss, paired by document."""
    first = {row.length: row for row in plain[: len(LENGTHS)]}
    assert all(row.difference is None and row.beyond_difference is None for row in first.values())
    for row in plain[len(LENGTHS) :]:
        assert row.difference is not None
        assert row.difference.delta == pytest.approx(row.nll - first[row.length].nll, abs=1e-9)
        assert row.difference.low <= row.difference.delta <= row.difference.high
        assert row.difference.documents == 3
        assert (row.beyond_difference is None) == (row.length <= 256)


@pytest.mark.parametrize("name", ["none", "linear", "ntk", "ntk-by-parts", "yarn"])
def test_a_method_is_what_its_name_says(name: str) -> None:
    """Every method by name is the table of that method, at the factor that the longest length needs."""
    found = rows(lengths=(256, 512), methods=(name,))
    loaded = load(str(TINY), FLOAT32)
    with rotating_with(loaded.model, {"default": frequencies(method(name, PLAIN, 2.0))}):
        expected = losses(loaded.model, 512)
    assert [row.method for row in found] == [name] * 2
    assert found[0].nll == pytest.approx(float(expected[:, :255].mean()), abs=1e-5)
    assert found[1].nll == pytest.approx(float(expected.mean()), abs=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_dynamic_is_what_transformers_computes_at_each_length(tmp_path: Path, factor: float) -> None:
    """`dynamic` scales by each length, and a checkpoint that says so itself gets a pass for each length, too."""
    folder = with_scaling(tmp_path / "dynamic", {"rope_type": "dynamic", "factor": factor})
    expected = {}
    for length in LENGTHS:
        fresh = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected[length] = float(losses(fresh, length).mean())
    as_it_is = rows(folder, lengths=LENGTHS)
    assert [row.method for row in as_it_is] == ["config"] * len(LENGTHS)
    for row in as_it_is:
        assert row.nll == pytest.approx(expected[row.length], abs=1e-5)
    if factor == 1.0:
        for row in rows(lengths=LENGTHS, methods=("dynamic",)):
            assert row.nll == pytest.approx(expected[row.length], abs=1e-5)


def test_a_longrope_checkpoint_uses_its_short_list_for_short_lengths(tmp_path: Path) -> None:
    """Where the list changes with the length, a prefix of a long window is no substitute for a short one."""
    short, long = [1.0] * 16, [1.0] * 6 + [4.0] * 10
    parameters = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": 1.1}
    folder = with_scaling(tmp_path / "longrope", parameters | {"factor": 4.0, "original_max_position_embeddings": 256})
    found = {row.length: row.nll for row in rows(folder, lengths=(256, 1024))}
    for length, expected in found.items():
        fresh = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert float(losses(fresh, length).mean()) == pytest.approx(expected, abs=1e-5)


def test_without_lengths_it_is_the_trained_and_the_served_one(tmp_path: Path) -> None:
    """The lengths default to the original length and the one that the config serves."""
    assert [row.length for row in rows()] == [256]
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}
    folder = with_scaling(tmp_path / "yarn", yarn)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}), "utf-8")
    found = rows(folder)
    assert [row.length for row in found] == [256, 512]
    named = rows(lengths=(256, 512), methods=("yarn",))
    assert [row.nll for row in found] == pytest.approx([row.nll for row in named], abs=1e-9)


def test_several_checkpoints_are_compared_on_the_same_windows() -> None:
    """A checkpoint against itself under another name: paired, and no different."""
    found = rows(TINY, f"{TINY}/", lengths=(256,))
    assert found[0].difference is None
    assert found[1].difference is not None
    assert (found[1].difference.delta, found[1].difference.low, found[1].difference.high) == (0.0, 0.0, 0.0)


def test_checkpoints_with_other_tokens_are_not_compared(tmp_path: Path) -> None:
    """Nats a token of two tokenizers are no pair, even where the windows are equally long."""
    folder = Path(shutil.copytree(TINY, tmp_path / "bytes"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    found = rows(TINY, folder, lengths=(256,))
    assert found[0].tokens == found[1].tokens
    assert found[1].difference is None


# ------------------------------------------------------------------------------------------------ by position


def test_loss_by_position_follows_from_the_logits() -> None:
    """Bins of the wanted width at the longest length, each the mean of its own positions with its standard error."""
    short, longest = rows(lengths=(128, 300), methods=("none",), by_position=True, window=64)
    assert short.by_position == ()
    edges = [(1, 64), (64, 128), (128, 192), (192, 256), (256, 300)]
    assert [(part.start, part.end) for part in longest.by_position] == edges
    loaded = load(str(TINY), FLOAT32)
    expected = losses(loaded.model, 300)
    for part in longest.by_position:
        bin_ = expected[:, part.start - 1 : part.end - 1]
        assert part.nll == pytest.approx(float(bin_.mean()), abs=1e-5)
        assert part.standard_error == pytest.approx(float(bin_.mean(1).std() / math.sqrt(3)), abs=1e-5)
    whole = sum(part.nll * (part.end - part.start) for part in longest.by_position) / 299
    assert whole == pytest.approx(longest.nll, abs=1e-9)


def test_bins_of_a_method_that_depends_on_the_length_are_of_the_longest() -> None:
    """`dynamic` has a pass a length; its curve is of the pass over the longest, and no other row has one."""
    found = rows(lengths=(128, 512), methods=("none", "dynamic"), by_position=True, window=128, documents=1)
    assert [len(row.by_position) for row in found] == [0, 4, 0, 4]
    assert all(part.standard_error is None for row in found for part in row.by_position)
    for row in found[1::2]:
        whole = sum(part.nll * (part.end - part.start) for part in row.by_position) / 511
        assert whole == pytest.approx(row.nll, abs=1e-9)


@pytest.mark.parametrize(("length", "window", "width"), [(512, None, 16), (2048, None, 32), (64, 1, 1), (64, 100, 64)])
def test_the_width_of_a_bin(length: int, window: int | None, width: int) -> None:
    """Without --window a 64th of the length, at least 16; one token at a time, and wider than the window, work, too."""
    (found,) = rows(lengths=(length,), by_position=True, window=window, documents=1)
    first, *rest = found.by_position
    assert (first.start, first.end) == (1, max(width, 2))
    assert all(part.end - part.start == width for part in rest)
    assert found.by_position[-1].end == length


# ------------------------------------------------------------------------------------------------ a calibration file


def calibration_file(path: Path, scaling: Scaling, **changes: Any) -> str:
    spec = replace(PLAIN, scaling=scaling, max_length=1024)
    content = Calibration(
        checkpoint={"model_type": "llama"},
        settings={"tune": "yarn"},
        spec=spec,
        inv_freq=frequencies(spec, 1024).inv_freq,
        temperature=(0.05, 1.0),
        factors=(4.0,),
        decision="calibrated",
        reason="",
        notes=(),
        calibration={},
        validation=(),
        cost={},
        search={},
        data=(),
        seed=0,
        versions={},
    ).to_json()
    content["rope"] |= changes
    path.write_text(json.dumps(content), "utf-8")
    return str(path)


def test_a_calibration_file_is_a_method(tmp_path: Path) -> None:
    """A file's rotary embedding is what is scored, named by the path that was given."""
    space = Space(PLAIN, 4.0)
    point = Point(2, 7, 1.07)
    path = calibration_file(tmp_path / "c.json", space.scaling(point))
    found = rows(lengths=(256, 1024), methods=("yarn", path))
    loaded = load(str(TINY), FLOAT32)
    with rotating_with(loaded.model, {"default": space.frequencies(point)}):
        expected = losses(loaded.model, 1024)
    assert [row.method for row in found] == ["yarn", "yarn", path, path]
    assert found[2].nll == pytest.approx(float(expected[:, :255].mean()), abs=1e-5)
    assert found[3].nll == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found[3].difference is not None


def test_the_lists_of_a_calibration_file_follow_the_length(tmp_path: Path) -> None:
    """Divisors for each pair: the short list up to the original length, the long one beyond it."""
    short, long = (1.0,) * 16, (1.0,) * 6 + (4.0,) * 10
    path = calibration_file(tmp_path / "c.json", Longrope(4.0, short, long, 1.1, 1.0))
    found = rows(lengths=(256, 1024), methods=(path, "none"))
    assert found[0].nll == pytest.approx(found[2].nll, abs=1e-6)
    assert found[1].nll < found[3].nll


def test_a_calibration_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """A missing file, and one for another base, are refused by their name before anything is scored."""
    path = calibration_file(tmp_path / "c.json", Space(PLAIN, 4.0).scaling(Point(2, 7, 1.07)), rope_theta=500000.0)
    with pytest.raises(BadCalibration) as caught:
        rows(methods=("none", path))
    assert caught.value.where == f"{path}: rope.rope_theta"
    with pytest.raises(BadCalibration) as caught:
        rows(methods=("none", f"{path}.json"))
    assert caught.value.where == f"{path}.json"


def test_the_lengths_that_the_methods_are_for_are_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --lengths: L, and what --factor or a calibration file serves. Another model's file gets a note."""
    path = calibration_file(tmp_path / "c.json", Space(PLAIN, 4.0).scaling(Point(2, 7, 1.07)))
    content = json.loads(Path(path).read_text("utf-8"))
    content["checkpoint"] = {"model_type": "qwen3"}
    Path(path).write_text(json.dumps(content), "utf-8")
    arguments = ("--methods", f"yarn,{path}", "--factor", "2", "--documents", "1", "--json")
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(TINY), "--data", TEXTS[0], "--data", TEXTS[1], "--device", "cpu", *arguments])
    assert not caught.value.code
    told = capsys.readouterr()
    assert [json.loads(line)["length"] for line in told.out.splitlines()] == [256, 512, 1024] * 2
    assert f"note: {path} was calibrated for a qwen3 model, this is a llama" in told.err


def test_a_factor_of_one_is_told() -> None:
    """A method that extends nothing gives the loss of the plain model, and says so."""
    told: list[str] = []
    request = Request((str(TINY),), TEXTS[:2], (128,), ("none", "yarn", "linear"), windows=1, settings=FLOAT32)
    found = evaluate(request, lambda _: None, say=told.append)
    assert len({row.nll for row in found}) == 1
    assert told == ["note: yarn, linear: a factor of 1 changes nothing; give --lengths beyond 256 tokens, or --factor"]


# ------------------------------------------------------------------------------------------------ refusals


def test_a_misspelled_method_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown method is found before the model is loaded, whatever stands in front of it."""
    monkeypatch.setattr(evaluation, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(BadUsage, match="unknown method 'yran'") as caught:
        rows(methods=("none", "yran"))
    assert (caught.value.where, "dynamic" in caught.value.hint) == ("--methods", True)


def test_every_checkpoint_is_looked_at_before_any_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the last one is known before the first one is loaded: its config, a method, its windows."""
    monkeypatch.setattr(evaluation, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(BadCheckpoint, match="no such file or folder"):
        rows(TINY, tmp_path / "missing")
    folder = Path(shutil.copytree(TINY, tmp_path / "folded"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    mark = {"ropecli": {"folded_attention_factor": {"default": 1.0693}}}
    (folder / "config.json").write_text(json.dumps(config | mark), "utf-8")
    with pytest.raises(BadCheckpoint, match=r"hold an attention factor of 1\.0693 already"):
        rows(TINY, folder, methods=("yarn",))
    config["max_position_embeddings"] = 8192
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(BadData, match="no document has the 8192 tokens"):
        rows(TINY, folder)


def test_weights_that_hold_a_temperature_are_measured_as_they_are(tmp_path: Path) -> None:
    """Without a method nothing is put on top of what they hold."""
    folder = Path(shutil.copytree(TINY, tmp_path / "folded"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    mark = {"ropecli": {"folded_attention_factor": {"default": 1.0693}}}
    (folder / "config.json").write_text(json.dumps(config | mark), "utf-8")
    (row,) = rows(folder, lengths=(64,))
    assert row.method == "config"


def test_what_was_left_out_of_the_text_is_told(tmp_path: Path) -> None:
    """Short and repeated documents, once for all checkpoints."""
    path = tmp_path / "rows.jsonl"
    long, other = (Path(text).read_text("utf-8") for text in TEXTS[:2])
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (long, other, long, "short")), "utf-8")
    request = Request((str(TINY), f"{TINY}/"), (str(path),), (64,), windows=1, settings=FLOAT32)
    told: list[str] = []
    found = evaluate(request, lambda _: None, say=told.append)
    assert {row.documents for row in found} == {2}
    assert told == [
        "note: 1 document is shorter than one window of 64 tokens and was left out",
        "note: 1 document has the same text as an earlier one and was left out",
    ]


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    """Lengths that hold no prediction, text that is too short, a model without a rotary embedding."""
    with pytest.raises(BadUsage, match="at least two tokens"):
        rows(lengths=(1, 256))
    with pytest.raises(BadData, match="no document has the 8192 tokens"):
        rows(lengths=(8192,))
    transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2).save_pretrained(tmp_path)
    with pytest.raises(BadCheckpoint, match="no rotary embedding"):
        rows(tmp_path)


# ------------------------------------------------------------------------------------------------ the command line


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    given = [word for path in TEXTS[:2] for word in ("--data", path)]
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(TINY), *given, "--windows", "1", "--device", "cpu", *arguments])
    assert not caught.value.code
    return capsys.readouterr().out


def test_json_is_a_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints one document a line, each with its schema version and every number."""
    lines = printed(capsys, "--lengths", "256,0.5k", "--methods", "none,yarn", "--json").splitlines()
    documents = [json.loads(line) for line in lines]
    assert [(d["method"], d["length"]) for d in documents] == [
        ("none", 256),
        ("none", 512),
        ("yarn", 256),
        ("yarn", 512),
    ]
    for document in documents:
        assert document["schema_version"] == 1
        assert document["model"] == str(TINY)
        assert document["tokens"] == 2 * (document["length"] - 1)
        assert document["ppl"] == pytest.approx(math.exp(document["nll"]))
        assert document["standard_error"] > 0
    assert documents[0]["difference"] is None
    assert documents[2]["difference"]["documents"] == 2
    assert len(documents[2]["difference"]["ci95"]) == 2


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Without `--json`: the checkpoint, a heading, a line a row, no colour and nothing cut."""
    table = printed(capsys, "--lengths", "256,512", "--methods", "none,yarn")
    first, heading, *lines = table.splitlines()
    assert first == f"{TINY}, lengths in tokens"
    assert all(word in heading for word in ("method", "length", "ppl"))
    assert [line.split()[:2] for line in lines] == [["none", "256"], ["none", "512"], ["yarn", "256"], ["yarn", "512"]]
    assert "\x1b" not in table


def test_a_loss_beyond_all_bounds_stays_in_its_column(
    plain: tuple[Row, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """No perplexity has more digits than say something, and one that no float holds is infinite."""
    row = replace(plain[0], nll=5000.0, ppl=math.inf, within=20.0, beyond=math.nan, standard_error=None)
    show_rows([row])
    assert capsys.readouterr().out.splitlines()[2].split()[2:] == ["5000.0000", "inf", "4.852e+08", "nan"]


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    """The row has it, and a note says what may help."""
    folder = Path(shutil.copytree(TINY, tmp_path / "broken"))
    tensors = load_file(folder / "model.safetensors")
    broken = {name: t * math.nan if "norm" in name else t for name, t in tensors.items()}
    save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
    told: list[str] = []
    request = Request((str(TINY), str(folder)), TEXTS, (64,), windows=1, settings=FLOAT32)
    found = evaluate(request, lambda _: None, say=told.append)
    assert [math.isfinite(row.nll) for row in found] == [True, False]
    assert told == [f"note: {folder} has a loss that is not a finite number; try --dtype float32"]


def test_the_paired_difference_is_over_documents() -> None:
    """The interval of a row is that of the documents' own sums."""
    first, second = rows(lengths=(512,), methods=("none", "linear"))
    loaded = load(str(TINY), FLOAT32)
    sums = []
    for name in ("none", "linear"):
        with rotating_with(loaded.model, {"default": frequencies(method(name, PLAIN, 2.0))}):
            sums.append(losses(loaded.model, 512).sum(1).numpy())
    expected = paired_difference(sums[1], sums[0], torch.full((3,), 511).numpy())
    assert second.difference is not None
    assert first.difference is None
    assert second.difference.low == pytest.approx(expected.low, abs=1e-4)
    assert second.difference.high == pytest.approx(expected.high, abs=1e-4)


def test_positions_in_json_and_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """`--window` adds the bins to the JSON row of the longest length, and a table with a column a method."""
    arguments = ("--lengths", "128,256", "--methods", "none,yarn", "--factor", "2", "--window", "100")
    found = [json.loads(line) for line in printed(capsys, *arguments, "--json").splitlines()]
    assert [len(document["by_position"]) for document in found] == [0, 3, 0, 3]
    assert [(part["start"], part["end"]) for part in found[1]["by_position"]] == [(1, 100), (100, 200), (200, 256)]
    assert set(found[1]["by_position"][0]) == {"start", "end", "nll", "standard_error"}
    assert (found[1]["protocol"], found[1]["stride"]) == ("full", None)
    lines = printed(capsys, *arguments).splitlines()
    assert lines[-4].split() == ["positions", "none", "yarn"]
    assert [line.split()[0] for line in lines[-3:]] == ["1–99", "100–199", "200–255"]
    assert lines[-1].split()[1] == f"{found[1]['by_position'][2]['nll']:.4f}"


def test_the_protocol_stands_above_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of another protocol are not mistaken for those of one pass."""
    first, heading, *_ = printed(capsys, "--lengths", "128", "--protocol", "sliding", "--stride", "64").splitlines()
    assert first == f"{TINY}, protocol sliding, lengths in tokens"
    assert "within" not in heading


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_draws_the_curve_of_each_method(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    """One figure with a line a method; without `--window` the terminal shows the usual table alone."""
    path = tmp_path / f"curve.{suffix}"
    table = printed(capsys, "--lengths", "128", "--methods", "none,linear", "--factor", "2", "--plot", str(path))
    assert "positions" not in table
    data = path.read_bytes()
    if suffix == "svg":
        assert b">none<" in data
        assert b">linear<" in data
        assert b"L = 256" in data
    else:
        assert data.startswith(b"\x89PNG")


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("something was scored"))
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(TINY), "--data", TEXTS[0], "--device", "cpu", *arguments])
    return int(caught.value.code or 0), capsys.readouterr().err


def test_a_figure_that_cannot_be_is_known_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is there, a suffix that is no figure's, matplotlib that is not installed."""
    old = tmp_path / "old.png"
    old.write_bytes(b"mine")
    status, text = refused(monkeypatch, capsys, "--plot", str(old))
    assert (status, "--force" in text, old.read_bytes()) == (2, True, b"mine")
    status, text = refused(monkeypatch, capsys, "--plot", str(tmp_path / "a.pdf"))
    assert (status, ".png or .svg" in text) == (2, True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, text = refused(monkeypatch, capsys, "--plot", str(tmp_path / "a.svg"))
    assert (status, "pip install matplotlib" in text) == (4, True)


def test_a_factor_without_a_method_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint as its config says has a factor of its own."""
    status, text = refused(monkeypatch, capsys, "--factor", "4")
    assert (status, "--factor: says nothing here" in text, "it goes with --methods" in text) == (2, True, True)


def test_a_report_holds_every_row_and_where_it_came_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table, the losses by position, the data files with their hashes, and standard output as without it."""
    path = tmp_path / "page.html"
    table = printed(capsys, "--lengths", "128,512", "--methods", "none,linear", "--report", str(path))
    page = path.read_text("utf-8")
    assert table.count("linear") == 2
    assert page.count("<svg") == 2
    for found in re.findall(r"(?m)^\w+ +\d+ +(\d\.\d{4}) ", table):
        assert f">{found} " in page
    for text in TEXTS[:2]:
        assert hashlib.sha256(Path(text).read_bytes()).hexdigest() in page
    assert "ropecli evaluate" in page
    assert list(tmp_path.iterdir()) == [path]
