"""A converted GGUF in the real llama.cpp: the numbers that were calibrated."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from environments import ENVIRONMENTS
from tiny_cases import (
    BETA_FAST,
    BETA_SLOW,
    FACTOR,
    OPTIONS,
    PLAIN,
    TEXT,
    TINY,
    WINDOW,
    YARN_M,
    agreement,
    convert,
    same,
)
from tiny_gguf import write_tiny_gguf
from transformers import AutoTokenizer

from calibrate.evaluation import Request, evaluate
from calibrate.model import Settings

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


CHUNK, CHUNKS = 32, 2


def test_second_half_is_the_perplexity_of_llama_cpp(tmp_path: Path) -> None:
    """`evaluate --protocol second-half` on the text and the weights of a GGUF that llama.cpp itself scores.

    No package brings llama.cpp's perplexity program, so its loop stands here (tools/perplexity/perplexity.cpp, function
    `perplexity`): chunks of n_ctx tokens end to end, each from an empty cache; the logits at positions n_ctx/2 …
    n_ctx − 2 predict the token after them; sum, then divide. The logits are llama.cpp's own.
    """
    ENVIRONMENTS["llama"].require()
    write_tiny_gguf(TINY, tmp_path / "tiny.gguf", CHUNK, {})
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokens = tokenizer(TEXT.read_text("utf-8"), add_special_tokens=False, verbose=False).input_ids
    first, nll, count = CHUNK // 2, 0.0, 0
    for start in range(0, CHUNK * CHUNKS, CHUNK):
        chunk = tokens[start : start + CHUNK]
        positions = list(range(first, CHUNK - 1))
        request = {"ids": chunk, "positions": positions, "checkpoints": {"tiny": str(tmp_path / "tiny.gguf")}}
        (tmp_path / "request.json").write_text(json.dumps(request), "utf-8")
        script = Path(__file__).parent / "score_llama.py"
        ENVIRONMENTS["llama"].run(str(script), str(tmp_path / "request.json"), str(tmp_path / "result.json"))
        rows = json.loads((tmp_path / "result.json").read_text("utf-8"))["tiny"]
        for position, log_p in zip(positions, rows, strict=True):
            nll -= log_p[chunk[position + 1]]
            count += 1
    wanted = Request(
        (str(TINY),),
        (str(TEXT),),
        (CHUNK,),
        windows=CHUNKS,
        documents=1,
        protocol="second-half",
        settings=Settings(device="cpu", dtype="float32"),
    )
    (row,) = evaluate(wanted, lambda _: None)
    assert row.tokens == count == CHUNKS * (CHUNK - first - 1)
    assert row.nll == pytest.approx(nll / count, abs=1e-4)
    assert row.ppl == pytest.approx(math.exp(nll / count), rel=1e-4)


@pytest.mark.parametrize("case", OPTIONS)
def test_a_converted_gguf_is_unlike_plain_rope(case: str, reference: Scores, llama: Scores) -> None:
    """What was converted is at work."""
    assert agreement(at_positions(reference, "plain"), llama[case]).kl > 0.05


def test_llama_cpp_does_not_read_the_yarn_keys_of_its_own_converter(reference: Scores, llama: Scores) -> None:
    """Corners and temperature in `yarn_*` keys are dead in this architecture: the defaults are served instead."""
    assert same(agreement(at_positions(reference, "default"), llama["theirs"]))
