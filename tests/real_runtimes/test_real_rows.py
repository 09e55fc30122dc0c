"""The transformers-4 row against the rotary modules of transformers 4.57, for classes that have rules of their own."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from environments import ENVIRONMENTS

from ropecli.checkpoint import read_checkpoint
from ropecli.frequencies import frequencies
from ropecli.inspection import runtime_rows
from ropecli.spec import Dynamic

SHAPE = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 8192,
    "rope_theta": 20000.0,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 2048, "attention_factor": 1.2}
SCALINGS: dict[str, Any] = {
    "none": None,
    "yarn": {"rope_type": "yarn", **YARN},
    "older yarn": {"type": "yarn", **YARN},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "older linear": {"type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "alpha": {"type": "dynamic", "factor": 1.0, "alpha": 50.0},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 2048,
        "short_factor": [1.0] * 32,
        "long_factor": [2.0] * 32,
    },
}
TYPES = ("llama", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "hunyuan_v1_dense", "qwen3", "granite", "cohere")
# the lists of longrope are for 32 pairs, which Qwen-3 and Nemotron do not have by default
CONFIGS = {
    f"{model_type} {name}{width}": {**SHAPE, "model_type": model_type, "rope_scaling": scaling} | more
    for model_type in TYPES
    for name, scaling in SCALINGS.items()
    for width, more in (("", {}), (", with head_dim", {"head_dim": 64}))
    if (model_type, name, width) != ("qwen3", "longrope", "") and (model_type, name) != ("nemotron", "longrope")
}
SILENT = {key: value for key, value in SHAPE.items() if key != "rope_theta"} | {"head_dim": 64}
for scales in ("gpt_oss", "apertus"):
    CONFIGS[f"{scales} by its class"] = {**SILENT, "model_type": scales}
    CONFIGS[f"{scales} switched off"] = {**SILENT, "model_type": scales, "rope_scaling": None}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Config → what transformers 4.57 computes."""
    ENVIRONMENTS["transformers-4"].require()
    place = tmp_path_factory.mktemp("rows")
    (place / "request.json").write_text(json.dumps(CONFIGS), "utf-8")
    script = Path(__file__).parent / "rotate_transformers.py"
    ENVIRONMENTS["transformers-4"].run(str(script), str(place / "request.json"), str(place / "result.json"))
    answer: dict[str, Any] = json.loads((place / "result.json").read_text("utf-8"))
    return answer


@pytest.mark.parametrize("name", CONFIGS)
def test_the_row_says_what_the_class_does(name: str, real: dict[str, Any]) -> None:
    """The row agrees with what the config means where the real module does, and stops where it stops."""
    checkpoint = read_checkpoint("-", stdin=io.StringIO(json.dumps(CONFIGS[name])))
    row, found = runtime_rows(checkpoint)["transformers-4"], real[name]
    if found is None:
        assert row.max_rel_diff is None, row
        return
    spec = checkpoint.ropes[0].spec
    meant = frequencies(spec)
    same = found["inv_freq"] == pytest.approx(meant.inv_freq, rel=5e-5)
    if isinstance(spec.scaling, Dynamic):  # within the original length it is plain, whoever reads it
        same &= found["inv_freq_beyond"] == pytest.approx(frequencies(spec, 32768).inv_freq, rel=5e-5)
    assert row.agrees == (same and found["attention_factor"] == pytest.approx(meant.attention_factor, rel=1e-4)), row
