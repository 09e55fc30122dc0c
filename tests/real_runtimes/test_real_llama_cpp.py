"""A converted GGUF in the real llama.cpp: the numbers that were calibrated."""

import json
from pathlib import Path

import numpy as np
import pytest
from environments import ENVIRONMENTS
from tiny_cases import BETA_FAST, BETA_SLOW, FACTOR, OPTIONS, PLAIN, TINY, WINDOW, YARN_M, agreement, convert, same
from tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.runtimes

Scores = dict[str, np.ndarray]
POSITIONS = range(PLAIN.original_length, WINDOW - 1, 32)

AS_THEIR_CONVERTER = {
    "type": "yarn",
    "factor": FACTOR,
    "original_context_length": PLAIN.original_length,
    "yarn_beta_fast": BETA_FAST,
    "yarn_beta_slow": BETA_SLOW,
    "yarn_attn_factor": YARN_M,
}
"""What llama.cpp's own converter makes of a Hugging Face YaRN."""


@pytest.fixture(scope="module")
def llama(window: list[int], tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Case → log-probabilities [positions, vocabulary] by llama.cpp."""
    ENVIRONMENTS["llama"].require()
    place = tmp_path_factory.mktemp("gguf")
    (place / "source").mkdir()
    write_tiny_gguf(TINY, place / "source" / "tiny.gguf", PLAIN.original_length, {})
    write_tiny_gguf(TINY, place / "plain.gguf", WINDOW, {})
    write_tiny_gguf(TINY, place / "theirs.gguf", WINDOW, AS_THEIR_CONVERTER)
    for case in OPTIONS:
        convert(place / "source" / "tiny.gguf", place / f"{case}.gguf", case)
    request = {
        "ids": window,
        "positions": list(POSITIONS),
        "checkpoints": {path.stem: str(path) for path in sorted(place.glob("*.gguf"))},
    }
    (place / "request.json").write_text(json.dumps(request), "utf-8")
    script = Path(__file__).parent / "score_llama.py"
    ENVIRONMENTS["llama"].run(str(script), str(place / "request.json"), str(place / "result.json"))
    result = json.loads((place / "result.json").read_text("utf-8"))
    return {name: np.array(rows) for name, rows in result.items()}


def at_positions(reference: Scores, name: str) -> np.ndarray:
    """The calibrator's distributions at the positions that llama.cpp was asked for."""
    return reference[name][[position - PLAIN.original_length for position in POSITIONS]]


@pytest.mark.parametrize("case", ["plain", *OPTIONS])
def test_a_converted_gguf_is_the_calibrators_model(case: str, reference: Scores, llama: Scores) -> None:
    """Beyond L it predicts what the calibrator's model predicts; the file without a scaling proves the comparison."""
    found = agreement(at_positions(reference, case), llama[case])
    assert same(found), found


@pytest.mark.parametrize("case", OPTIONS)
def test_a_converted_gguf_is_unlike_plain_rope(case: str, reference: Scores, llama: Scores) -> None:
    """What was converted is at work."""
    assert agreement(at_positions(reference, "plain"), llama[case]).kl > 0.05


def test_llama_cpp_does_not_read_the_yarn_keys_of_its_own_converter(reference: Scores, llama: Scores) -> None:
    """Corners and temperature in `yarn_*` keys are dead in this architecture: the defaults are served instead."""
    assert same(agreement(at_positions(reference, "default"), llama["theirs"]))
