"""A GGUF is calibrated through transformers' own loader, which de-quantises it; the result converts the same file."""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from calibrate.model import Settings, load
from ropecli.checkpoint import read_checkpoint
from ropecli.cli import main
from ropecli.frequencies import frequencies

sys.path.insert(0, str(Path(__file__).parents[1] / "real_runtimes"))
from tiny_gguf import write_tiny_gguf

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXTS = sorted((EXAMPLES / "text" / "calibration").glob("*.txt"))
KINDS = ("F32", "Q8_0", "Q4_0")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Quantisation → the tiny checkpoint as a GGUF."""
    folder = tmp_path_factory.mktemp("gguf")
    found = {kind: folder / f"{kind}.gguf" for kind in KINDS}
    for kind, path in found.items():
        write_tiny_gguf(EXAMPLES / "tiny", path, 256, {}, gguf.GGMLQuantizationType[kind])
    return found


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def calibrated(source: Path, out: Path, *more: str) -> dict[str, Any]:
    data = [word for path in TEXTS[:10] for word in ("--data", str(path))]
    arguments = ["--factor", "2", "--windows", "1", "--device", "cpu", "--tune", "temperature", "--max-evals", "6"]
    assert status("calibrate", str(source), *data, *arguments, "-o", str(out), *more) == 0
    return json.loads(out.read_text("utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_the_checkpoint(kind: str, files: dict[str, Path]) -> None:
    """The loader undoes the order of rows that llama.cpp wants; what is left is the rounding of the quantisation."""
    plain = load(str(EXAMPLES / "tiny"), Settings("cpu", "float32"))
    loaded = load(str(files[kind]), Settings("cpu"))
    assert (loaded.dequantised, plain.dequantised) == (True, False)
    assert loaded.dtype == "float32"
    expected = dict(plain.model.named_parameters())
    worst = {"F32": 0.0, "Q8_0": 1 / 120, "Q4_0": 1 / 7}[kind]
    for name, found in loaded.model.named_parameters():
        assert float((found - expected[name]).abs().max()) <= worst * float(expected[name].abs().max())
    text = TEXTS[0].read_text("utf-8")[:500]
    assert loaded.encode(text) == plain.encode(text)


@pytest.mark.parametrize("kind", ["Q8_0"])
def test_the_result_converts_the_same_file(
    kind: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said that the file was de-quantised, and the converted GGUF has the frequencies that were calibrated."""
    content = calibrated(files[kind], tmp_path / "out.json")
    said = capsys.readouterr().err
    assert "cpu, float32 (a GGUF, de-quantised)" in said
    assert "note: the GGUF was de-quantised to float32 by transformers" in said
    assert any("de-quantised" in note for note in content["notes"])
    assert content["decision"] == "calibrated"
    before = files[kind].read_bytes()
    out = tmp_path / "OUT.gguf"
    assert status("convert", str(files[kind]), "--from", str(tmp_path / "out.json"), "-o", str(out)) == 0
    assert files[kind].read_bytes() == before
    spec = read_checkpoint(str(out)).ropes[0].spec
    assert (spec.original_length, spec.max_length) == (256, 512)
    assert list(frequencies(spec).inv_freq) == pytest.approx(content["inv_freq"], rel=1e-6)
    assert frequencies(spec).attention_factor == pytest.approx(content["rope"]["attention_factor"], rel=1e-6)
    old, new = gguf.GGUFReader(files[kind]), gguf.GGUFReader(out)
    assert [t.name for t in old.tensors] == [t.name for t in new.tensors]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(old.tensors, new.tensors, strict=True))


def test_a_gguf_and_its_folder_are_calibrated_alike(files: dict[str, Path], tmp_path: Path) -> None:
    """Unquantised, the file gives the losses and the result that the checkpoint it was made from gives."""
    content = calibrated(files["F32"], tmp_path / "out.json")
    folder = calibrated(EXAMPLES / "tiny", tmp_path / "folder.json", "--dtype", "float32")
    for found, expected in zip(content["validation"], folder["validation"], strict=True):
        assert found["nll"] == pytest.approx(expected["nll"], abs=1e-4)
        assert found["default_nll"] == pytest.approx(expected["default_nll"], abs=1e-4)
    assert content["rope"] == pytest.approx(folder["rope"])
