"""`examples/tiny` is a checkpoint on which methods differ as they do on large ones, with text it never saw."""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import transformers

from calibrate.evaluation import Request, Row, evaluate
from calibrate.model import Settings
from ropecli.checkpoint import read_checkpoint, verify
from ropecli.spec import Plain

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = EXAMPLES / "tiny"
TRAINED = 256
DOCUMENTS = 8


def texts(part: str) -> dict[str, str]:
    """Name → text of one part."""
    return {path.stem: path.read_text("utf-8") for path in sorted((EXAMPLES / "text" / part).glob("*.txt"))}


@pytest.fixture(scope="module")
def tokens() -> dict[str, list[int]]:
    """Name → tokens of every document that the model never trained on."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    kept_back = texts("calibration") | texts("heldout")
    return {name: tokenizer(text, verbose=False).input_ids for name, text in kept_back.items()}


@pytest.fixture(scope="module")
def beyond() -> dict[str, Row]:
    """Method → its row at four times the trained length, compared with default YaRN, on held-out text."""
    methods = ("yarn", "none", "linear", "ntk")
    request = Request(
        sources=(str(TINY),),
        data=(str(EXAMPLES / "text" / "heldout"),),
        lengths=(4 * TRAINED,),
        methods=methods,
        documents=DOCUMENTS,
        windows=1,
        settings=Settings(device="cpu"),
    )
    return {row.method: row for row in evaluate(request, lambda _: None)}


def test_it_is_a_small_llama_in_bfloat16() -> None:
    """A Llama of head_dim 32 and trained length 256, plain RoPE, sound weights, no pickle, below 8 MB in all."""
    checkpoint = read_checkpoint(str(TINY))
    (rope,) = checkpoint.ropes
    assert checkpoint.model_type == "llama"
    assert checkpoint.config["dtype"] == "bfloat16"
    assert (rope.spec.scaling, rope.spec.original_length, rope.spec.max_length) == (Plain(), TRAINED, TRAINED)
    assert rope.spec.head_dim >= 32
    assert verify(checkpoint) == ()
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors"}


def test_there_are_documents_enough_and_they_are_long(tokens: dict[str, list[int]]) -> None:
    """At least forty documents in all; each that is kept back holds 16 windows of the trained length."""
    training = json.loads((TINY / "training.json").read_text("utf-8"))["train"]
    assert len(tokens) + len(training) >= 40
    assert len(texts("calibration")) >= 20
    assert len(texts("heldout")) >= 20
    assert min(len(ids) for ids in tokens.values()) >= 16 * TRAINED


def test_no_document_is_in_two_parts() -> None:
    """Training, calibration and held-out documents are disjoint, by name and, where the text is here, by text."""
    training = json.loads((TINY / "training.json").read_text("utf-8"))["train"]
    calibration, held_out = texts("calibration"), texts("heldout")
    names = [*training, *calibration, *held_out]
    assert len(set(names)) == len(names)
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in [*calibration.values(), *held_out.values()]]
    assert len(set(hashes)) == len(hashes)


def test_it_has_learned_the_language(tokens: dict[str, list[int]]) -> None:
    """At its trained length, on text it never saw, the loss is far below the entropy of token frequencies."""
    counts = Counter(token for ids in tokens.values() for token in ids)
    total = sum(counts.values())
    unigram = -sum(count / total * math.log(count / total) for count in counts.values())
    request = Request(
        sources=(str(TINY),),
        data=(str(EXAMPLES / "text" / "heldout"),),
        lengths=(TRAINED,),
        documents=DOCUMENTS,
        settings=Settings(device="cpu"),
    )
    (row,) = evaluate(request, lambda _: None)
    assert row.nll < 0.55 * unigram


def test_plain_rope_is_clearly_worse_than_default_yarn(beyond: dict[str, Row]) -> None:
    """At four times its length, without fine-tuning, unscaled RoPE loses a nat beyond L to default YaRN."""
    difference = beyond["none"].beyond_difference
    assert difference is not None
    assert difference.low > 1.0
    assert beyond["none"].nll - beyond["yarn"].nll > 0.5


@pytest.mark.parametrize("better", ["yarn", "ntk"])
def test_interpolation_is_worse_than_its_successors(beyond: dict[str, Row], better: str) -> None:
    """Position Interpolation without fine-tuning is worse than NTK-aware scaling and YaRN, within L and beyond it."""
    worse, good = beyond["linear"], beyond[better]
    assert worse.nll > good.nll + 0.2
    assert worse.within is not None
    assert worse.beyond is not None
    assert good.within is not None
    assert good.beyond is not None
    assert worse.within > good.within + 0.2
    assert worse.beyond > good.beyond + 0.2


def test_documents_agree_that_interpolation_is_worse(beyond: dict[str, Row]) -> None:
    """Paired by document, the interval of PI's loss against default YaRN's lies far above zero."""
    difference = beyond["linear"].difference
    assert difference is not None
    assert difference.low > 0.5
