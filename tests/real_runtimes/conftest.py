"""The window, the calibrator's own distributions on it, and the converted checkpoints."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from environments import ENVIRONMENTS
from tiny_cases import INTENT, OPTIONS, PLAIN, TEXT, TINY, WINDOW, convert

Scores = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def window() -> list[int]:
    """Token ids of the first 1,024 tokens of a held-out text."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return list(tokenizer(TEXT.read_text("utf-8"), add_special_tokens=False, verbose=False).input_ids[:WINDOW])


@pytest.fixture(scope="session")
def reference(window: list[int]) -> Scores:
    """Case → log-probabilities [positions beyond L, vocabulary] of the model that the calibrator scores, float32."""
    import torch  # noqa: PLC0415

    from calibrate.fence import rotating_with  # noqa: PLC0415
    from calibrate.model import Settings, load  # noqa: PLC0415
    from ropecli.frequencies import frequencies  # noqa: PLC0415

    model = load(str(TINY), Settings(device="cpu", dtype="float32")).model
    scores = {}
    for name, spec in INTENT.items():
        with rotating_with(model, {"default": frequencies(spec, WINDOW)}), torch.inference_mode():
            logits = model(torch.tensor([window])).logits[0, PLAIN.original_length :]
            scores[name] = torch.log_softmax(logits.double(), -1).float().numpy()
    return scores


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Case → folder: what `ropecli convert` writes, and `resaved`, which is its YaRN as transformers 5 saves it."""
    from transformers import AutoConfig  # noqa: PLC0415

    place = tmp_path_factory.mktemp("converted")
    for case in OPTIONS:
        convert(TINY, place / case, case)
    resaved = place / "resaved"
    AutoConfig.from_pretrained(place / "yarn").save_pretrained(resaved)
    (resaved / "model.safetensors").symlink_to(TINY / "model.safetensors")
    return {name: str(place / name) for name in (*OPTIONS, "resaved")}


@pytest.fixture(scope="session")
def scores(
    window: list[int], checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Scores]:
    """Runtime → what it makes of the checkpoints: `case.dtype` → log-probabilities, and its `version`."""
    place = tmp_path_factory.mktemp("scores")
    request = {
        "ids": window,
        "first": PLAIN.original_length,
        "checkpoints": checkpoints,
        "dtypes": ["float32", "bfloat16"],
    }
    (place / "request.json").write_text(json.dumps(request), "utf-8")

    @cache
    def score(runtime: str) -> Scores:
        result = place / f"{runtime}.npz"
        script = "score_mlx.py" if runtime == "mlx" else "score_transformers.py"
        command = [str(Path(__file__).parent / script), str(place / "request.json"), str(result)]
        if runtime == "transformers-5":
            subprocess.run([sys.executable, *command], check=True)
        else:
            ENVIRONMENTS[runtime].require()
            ENVIRONMENTS[runtime].run(*command)
        with np.load(result) as arrays:
            return dict(arrays)

    return score
