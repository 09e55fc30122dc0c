"""Every family end to end: its calibrated result is what `convert` writes and what transformers then computes."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, LENGTH, NESTED, build, config

from calibrate import run
from calibrate.calibration import Calibration
from calibrate.corpus import read_texts, split, tokenize
from calibrate.fence import as_loaded, rotating_with
from calibrate.model import Settings, load
from calibrate.objective import Point, Space
from ropecli.checkpoint import read_checkpoint
from ropecli.cli import main
from ropecli.dialects.portable import UNSTATED_HEAD, flat_changes
from ropecli.errors import BadCheckpoint
from ropecli.frequencies import frequencies
from ropecli.spec import RopeSpec, Yarn

TINY = Path(__file__).parents[2] / "examples" / "tiny"
TEXTS = sorted((TINY.parent / "text" / "calibration").glob("*.txt"))
FACTOR = 2.0
ROUNDED = {
    "phi3": "its divisors give the table in another order of operations",
    "deepseek_v3": "an mscale pair that other runtimes need moves the scores by 1e-7",
}
"""Where the loaded model differs in the last digits, and why; everywhere else logits are equal bit for bit."""


def saved(family: str, folder: Path, rope: dict[str, Any] | None = None) -> None:
    """A random model of the family, with the tiny checkpoint's tokenizer."""
    build(config(family, rope, vocab_size=2048)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)


def calibrated(folder: Path) -> Calibration:
    """What two evaluations on four documents say."""
    request = run.Request(
        source=str(folder),
        data=tuple(str(path) for path in TEXTS[:4]),
        factors=(FACTOR,),
        windows=1,
        max_evals=2,
        settings=Settings("cpu"),
    )
    calibration, _ = run.calibrate(request, run.Observer(lambda _: None, lambda _: None, lambda *_: None))
    return calibration


def converted(folder: Path, calibration: Calibration, out: Path, *more: str) -> int:
    """The exit status of `convert --from`."""
    path = out.with_name(out.name + ".json")
    path.write_text(json.dumps(calibration.to_json()), "utf-8")
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(folder), "--from", str(path), "-o", str(out), *more])
    return int(caught.value.code or 0)


@pytest.mark.parametrize("family", [*FAMILIES, *NESTED])
def test_a_family_is_calibrated_converted_and_loaded(family: str, tmp_path: Path) -> None:
    """The loss that a calibration would report for a point is that of the checkpoint which transformers loads."""
    folder, out = tmp_path / "model", tmp_path / "OUT"
    saved(family, folder)
    found = calibrated(folder)
    assert found.cost["evaluations"] == 2
    assert {row.length for row in found.validation} == {round(FACTOR * LENGTH)}
    plain = run.extensible(read_checkpoint(str(folder)), None)
    space = Space(plain[1], FACTOR)
    low, high = max(space.cells(1))
    scaling = space.scaling(Point(low, high, 1.21))
    spec = replace(plain[1], scaling=scaling, max_length=round(FACTOR * LENGTH))
    chosen = replace(found, spec=spec, inv_freq=frequencies(spec).inv_freq, decision="calibrated")
    assert converted(folder, chosen, out) == 0
    loaded = load(str(folder), Settings("cpu"))
    ids = torch.tensor([loaded.encode(TEXTS[0].read_text("utf-8"))[: round(FACTOR * LENGTH)]])
    with torch.no_grad():
        before = loaded.model(ids, use_cache=False).logits
        with rotating_with(loaded.model, {plain[0].name: as_loaded(spec)}):
            inside = loaded.model(ids, use_cache=False).logits
        after = transformers.AutoModelForCausalLM.from_pretrained(out).eval()(ids, use_cache=False).logits
    assert float((inside - before).abs().max()) > 0.01
    if family in ROUNDED:
        assert float((inside - after).abs().max()) < 1e-4
    else:
        assert torch.equal(inside, after)


def deepseek(folder: Path, **pair: float) -> Path:
    """A DeepSeek-V3 that was extended by YaRN already, with its pair of magnitudes."""
    trained = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
    saved("deepseek_v3", folder, trained | pair)
    return folder


@pytest.mark.parametrize("pair", [{"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale_all_dim": 0.707}])
def test_a_deepseek_whose_scores_are_scaled_is_refused(pair: dict[str, float], tmp_path: Path) -> None:
    """Its attention multiplies the scores by a number of the factor that it was trained for, which no table carries."""
    folder = deepseek(tmp_path / "model", **pair)
    with pytest.raises(BadCheckpoint, match=r"multiplies the attention scores too \(mscale_all_dim\)") as caught:
        calibrated(folder)
    assert caught.value.where == str(folder)


@pytest.mark.parametrize("pair", [{}, {"mscale": 1.139, "mscale_all_dim": 1e-6}])
def test_a_deepseek_whose_scores_are_not_scaled_is_calibrated(pair: dict[str, float], tmp_path: Path) -> None:
    """Without such a pair, or with the one that `convert` writes for other runtimes, there is nothing to lose."""
    calibration = calibrated(deepseek(tmp_path / "model", **pair))
    assert calibration.spec.original_length == 16
    assert {row.length for row in calibration.validation} == {32}


@pytest.mark.parametrize(
    "pair",
    [{}, {"mscale": 1.139, "mscale_all_dim": 1e-6}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale_all_dim": 0.5}],
)
def test_what_multiplies_the_scores_of_a_deepseek_is_never_dropped(
    pair: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where transformers multiplies them by the trained factor, `convert` refuses; elsewhere they stay as they were."""
    folder, out = deepseek(tmp_path / "model", **pair), tmp_path / "OUT"
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(folder), "--rope-type", "yarn", "--factor", "8", "-o", str(out)])
    error = capsys.readouterr().err
    if score_scale(folder) == pytest.approx(1, abs=1e-5):
        assert caught.value.code == 0
        assert score_scale(out) == pytest.approx(1, abs=1e-5)
    else:
        assert score_scale(folder) > 1.1
        assert caught.value.code == 3
        assert "multiplies the attention scores too (mscale_all_dim)" in error
        assert "convert the checkpoint from before the extension" in error
        assert not out.exists()


@pytest.mark.parametrize("m", [0.9, 1.0, 1.2])
def test_no_temperature_multiplies_the_scores_of_a_deepseek_twice(m: float, tmp_path: Path) -> None:
    """m is on cos and sin alone: no spelling of it for other runtimes reaches the scores, below 1 or above."""
    folder, out = tmp_path / "model", tmp_path / "OUT"
    saved("deepseek_v3", folder)
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "convert",
                str(folder),
                "--rope-type",
                "yarn",
                "--factor",
                "4",
                "--attention-factor",
                str(m),
                "-o",
                str(out),
            ]
        )
    assert caught.value.code == 0
    assert score_scale(out) == pytest.approx(1, abs=1e-5)
    assert transformers.AutoModelForCausalLM.from_pretrained(out).model.rotary_emb.attention_scaling == m


def score_scale(folder: Path) -> float:
    """What the attention of a loaded DeepSeek multiplies its scores by, beside 1/√d."""
    attention = transformers.AutoModelForCausalLM.from_pretrained(folder).model.layers[0].self_attn
    return float(attention.scaling * attention.qk_head_dim**0.5)


def test_the_whole_job_on_a_phi3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`calibrate | convert --from -` is carried by longrope unasked, and the loaded model has the reported loss."""
    folder, out = tmp_path / "model", tmp_path / "OUT"
    saved("phi3", folder)
    data = [word for path in TEXTS[:4] for word in ("--data", str(path))]
    options = ["--factor", "2", "--windows", "1", "--max-evals", "2", "--device", "cpu"]
    with pytest.raises(SystemExit) as caught:
        main(["calibrate", str(folder), *data, *options])
    assert caught.value.code == 0
    piped = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped.encode("utf-8")), "utf-8"))
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(folder), "-o", str(out), "--from", "-"])
    assert caught.value.code == 0
    assert "note: transformers loads phi3 with longrope alone" in capsys.readouterr().err
    rope = json.loads((out / "config.json").read_text("utf-8"))["rope_scaling"]
    assert rope["rope_type"] == "longrope"
    found = json.loads(piped)
    (row,) = (row for row in found["validation"] if row["positions"] == "all")
    model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    texts, _ = read_texts([str(path) for path in TEXTS[:4]])

    def encode(text: str, _most: int | None = None) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    corpus = tokenize(texts, encode, 128, bos=None, windows=1)
    windows = [window for document in split(corpus.documents, 0.5, 0)[1] for window in document.windows]
    with torch.no_grad():
        losses = [float(model(ids, labels=ids).loss) for ids in (torch.tensor([window]) for window in windows)]
    assert row["tokens"] == 127 * len(losses)
    wanted = row["nll" if found["decision"] == "calibrated" else "default_nll"]
    assert sum(losses) / len(losses) == pytest.approx(wanted, abs=1e-4)


YARN = ["--rope-type", "yarn", "--factor", "2"]


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (YARN, 0, "note: transformers loads phi3 with longrope alone"),
        ([*YARN, "--attention-factor", "0.9"], 2, "0.9 would be lost"),
        ([*YARN, "--attention-factor", "0.9", "--bake", "attention-factor"], 0, "longrope alone"),
        ([*YARN, "--carrier", "native"], 2, "add --carrier longrope"),
        ([*YARN, "--for", "onnxruntime-genai"], 2, "does not compute longrope"),
        (["--rope-type", "dynamic", "--factor", "2"], 2, "not with dynamic"),
    ],
)
def test_a_phi3_is_carried_by_longrope_or_refused(
    options: list[str], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand too; what longrope cannot carry, or a named runtime would not compute, is refused and leaves nothing."""
    folder, out = tmp_path / "model", tmp_path / "OUT"
    saved("phi3", folder)
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(folder), "-o", str(out), *options])
    assert caught.value.code == status
    assert said in " ".join(capsys.readouterr().err.split())
    assert out.exists() == (status == 0)
    if status == 0:
        assert transformers.AutoModelForCausalLM.from_pretrained(out).config.rope_parameters["rope_type"] == "longrope"


@pytest.mark.parametrize(("runtime", "carrier"), [("vllm", "longrope"), ("llama.cpp", "yarn")])
def test_flags_for_a_phi3_are_those_that_its_runtime_takes(
    runtime: str, carrier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM loads the config through transformers; llama.cpp takes every scaling by flags, and longrope by none."""
    saved("phi3", tmp_path / "model")
    with pytest.raises(SystemExit) as caught:
        main(["convert", str(tmp_path / "model"), *YARN, "--emit", runtime])
    assert caught.value.code == 0
    assert carrier in capsys.readouterr().out


@pytest.mark.parametrize("family", NESTED)
def test_layers_with_a_sliding_window_keep_their_table(family: str, tmp_path: Path) -> None:
    """By default the full-attention layers alone are calibrated and converted."""
    saved(family, tmp_path / "model")
    calibration = calibrated(tmp_path / "model")
    assert converted(tmp_path / "model", calibration, tmp_path / "OUT") == 0
    before, after = (
        {rope.name: rope.spec for rope in read_checkpoint(str(tmp_path / name)).ropes} for name in ("model", "OUT")
    )
    assert frequencies(after["sliding_attention"]) == frequencies(before["sliding_attention"])
    assert list(frequencies(after["full_attention"]).inv_freq) == pytest.approx(calibration.inv_freq, rel=1e-9)
    assert after["full_attention"].scaling.rope_type == "yarn"


@pytest.mark.parametrize("family", sorted(UNSTATED_HEAD))
def test_a_head_size_that_a_class_leaves_open_is_written(family: str) -> None:
    """These classes keep head_dim null, and transformers multiplies by it in every scaling: a load would fail."""
    text = {"model_type": family, "hidden_size": 64, "num_attention_heads": 4}
    plain = RopeSpec(10000.0, 16, 16, 64, 64)
    yarn = replace(plain, scaling=Yarn.default(FACTOR), max_length=128)
    assert flat_changes(text, yarn, "both")["head_dim"] == 16
    assert flat_changes(text | {"head_dim": None}, yarn, "v5")["head_dim"] == 16
    assert "head_dim" not in flat_changes(text | {"head_dim": 16}, yarn, "both")
    assert "head_dim" not in flat_changes(text, plain, "both")
    assert "head_dim" not in flat_changes(text | {"model_type": "llama"}, yarn, "both")
    # 4.57 leaves Mistral's open, too
    assert (transformers.AutoConfig.for_model(family).get_text_config().head_dim is None) == (family != "mistral")
