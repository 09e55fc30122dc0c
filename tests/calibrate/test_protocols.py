"""`ropecli evaluate --protocol`: each scores the tokens that its name says, checked against slow and obvious loops."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from calibrate.corpus import read_texts, tokenize
from calibrate.evaluation import Request, Row, evaluate
from calibrate.model import LoadedModel, Settings, load
from calibrate.protocols import Piece, measure, second_half_pieces, sliding_pieces, yarn_pieces
from calibrate.score import Bands, nats_by_band
from ropecli.errors import BadUsage

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = EXAMPLES / "tiny"
TEXTS = tuple(str(path) for path in sorted((EXAMPLES / "text" / "heldout").glob("*.txt"))[:2])
FLOAT32 = Settings(device="cpu", dtype="float32")
LENGTH, STRIDE = 96, 40
TEXT = tuple(range(100, 123))
BOS = 7


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(str(TINY), FLOAT32)


@pytest.fixture(scope="module")
def streams() -> list[list[int]]:
    """The text that two windows of LENGTH tokens a document hold."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    texts = [Path(path).read_text("utf-8") for path in TEXTS]
    return [tokenizer(text, add_special_tokens=False, verbose=False).input_ids[: 2 * LENGTH] for text in texts]


@pytest.fixture(scope="module")
def log_p(loaded: LoadedModel) -> Any:
    """Tokens → nats of every token but the first, from the model's own logits."""

    def nats(ids: list[int]) -> list[float]:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        return [-float(logits[i, token]) for i, token in enumerate(ids[1:])]

    return nats


def row(**request: Any) -> Row:
    settings: dict[str, Any] = {"lengths": (LENGTH,), "windows": 2, "settings": FLOAT32} | request
    (found,) = evaluate(Request(sources=(str(TINY),), data=TEXTS, **settings), lambda _: None)
    return found


# ------------------------------------------------------------------------------------------------ which tokens


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("stride", [1, 3, 5, 7])
def test_sliding_scores_each_token_once_with_what_the_window_gives(bos: int | None, stride: int) -> None:
    """Every token that has something in front of it, once, from at least length − stride tokens or all there are."""
    length = 8
    seen = []
    for piece in sliding_pieces(TEXT, length, stride, bos):
        assert len(piece.ids) == length
        assert (piece.ids[0] == BOS) == (bos is not None)
        for position in range(piece.first, length):
            token = piece.ids[position]
            seen.append(token)
            in_front = TEXT.index(token) + (bos is not None)
            assert position >= min(length - stride, in_front)
    assert seen == list(TEXT if bos is not None else TEXT[1:])


def test_second_half_is_what_llama_cpp_scores() -> None:
    """Chunks end to end with BOS over their first token; of n_ctx = 8 the tokens 5, 6 and 7; the rest is left over."""
    assert second_half_pieces(TEXT, 8, BOS) == [
        Piece(0, (BOS, *TEXT[0:7]), 5),
        Piece(0, (BOS, *TEXT[8:15]), 5),
        Piece(0, (BOS, *TEXT[16:23]), 5),
    ]
    assert second_half_pieces(TEXT, 8, None) == [Piece(0, TEXT[0:8], 5), Piece(0, TEXT[8:16], 5)]


def test_yarn_windows_are_those_of_its_script() -> None:
    """One window, truncated; or a window every stride, the last one short, new tokens alone scored."""
    assert yarn_pieces(TEXT, 8, None, BOS) == [Piece(0, (BOS, *TEXT[:7]), 1)]
    assert yarn_pieces(TEXT[:14], 8, 5, BOS) == [
        Piece(0, (BOS, *TEXT[0:7]), 1),
        Piece(0, (BOS, *TEXT[5:12]), 3),
        Piece(0, (BOS, *TEXT[10:14]), 3),
    ]


# ------------------------------------------------------------------------------------------------ the losses


def test_sliding_equals_a_slow_and_obvious_loop(streams: list[list[int]], log_p: Any) -> None:
    """Token by token: the first window of the grid that holds it predicts it."""
    total, count = 0.0, 0
    for text in streams:
        ends = [*range(LENGTH, len(text), STRIDE), len(text)]
        for position in range(1, len(text)):
            end = next(e for e in ends if position < e)
            total += log_p(text[end - LENGTH : end])[position - (end - LENGTH) - 1]
            count += 1
    found = row(protocol="sliding", stride=STRIDE)
    assert found.tokens == count == 2 * (2 * LENGTH - 1)
    assert found.nll == pytest.approx(total / count, abs=1e-5)
    assert (found.protocol, found.stride, found.within, found.beyond) == ("sliding", STRIDE, None, None)
    assert found.standard_error is not None


def test_second_half_is_the_last_band_of_full(loaded: LoadedModel) -> None:
    """On the same chunks llama.cpp's number is that of the positions after the middle."""
    texts, _ = read_texts(TEXTS)
    documents = tokenize(texts, loaded.encode, LENGTH, bos=None, windows=2).documents
    assert loaded.bos is None
    band = nats_by_band(loaded, documents, Bands((1, LENGTH // 2 + 1, LENGTH)))[:, 1]
    tokens = 4 * (LENGTH - LENGTH // 2 - 1)
    found = row(protocol="second-half")
    assert found.tokens == tokens
    assert found.nll == pytest.approx(float(band.sum()) / tokens, abs=1e-6)


def test_yarn_is_the_mean_of_window_means(streams: list[list[int]], log_p: Any) -> None:
    """By hand: the first window weighs as much as a short step, which is not what a token-weighted mean gives."""
    stride = 30
    means, total, count = [], 0.0, 0
    for text in streams:
        scored = 0
        for begin in range(0, len(text), stride):
            end = min(begin + LENGTH, len(text))
            losses = log_p(text[begin:end])[-(end - scored) :]
            means.append(sum(losses) / len(losses))
            total, count, scored = total + sum(losses), count + len(losses), end
            if end == len(text):
                break
    found = row(protocol="yarn", stride=stride)
    assert len(means) == 10
    assert found.nll == pytest.approx(sum(means) / len(means), abs=1e-5)
    assert found.ppl == pytest.approx(math.exp(found.nll))
    assert found.tokens == count
    assert abs(found.nll - total / count) > 1e-3


def test_yarn_without_a_stride_takes_one_window_a_document(streams: list[list[int]], log_p: Any) -> None:
    """The commands behind the published tables cut each document to the length."""
    found = row(protocol="yarn")
    means = [sum(losses) / len(losses) for losses in (log_p(text[:LENGTH]) for text in streams)]
    assert found.tokens == 2 * (LENGTH - 1)
    assert found.nll == pytest.approx(sum(means) / 2, abs=1e-5)


def test_a_bos_token_opens_every_window(loaded: LoadedModel, streams: list[list[int]], log_p: Any) -> None:
    """Where the tokenizer has that habit, the first token of the text is predicted, too."""
    with_bos = LoadedModel(loaded.model, loaded.encode, 0, loaded.device)
    texts, _ = read_texts(TEXTS)
    documents = tokenize(texts, loaded.encode, LENGTH, bos=None, windows=2).documents
    sums = measure(with_bos, documents, "second-half", LENGTH, None)
    expected = [
        sum(sum(log_p([0, *chunk])[LENGTH // 2 :]) for chunk in (text[: LENGTH - 1], text[LENGTH : 2 * LENGTH - 1]))
        for text in streams
    ]
    assert sums.nats.tolist() == pytest.approx(expected, abs=1e-3)
    assert measure(with_bos, documents, "sliding", LENGTH, STRIDE).tokens.tolist() == [2 * LENGTH] * 2


def test_methods_are_paired_under_every_protocol() -> None:
    """The first row of a length is what the others are compared with; lengths score the same sliding text."""
    request = Request(
        (str(TINY),), TEXTS, (64, 128), ("none", "linear"), factor=2.0, protocol="sliding", settings=FLOAT32
    )
    found = evaluate(request, lambda _: None)
    assert [(r.method, r.length, r.stride) for r in found] == [
        ("none", 64, 32),
        ("none", 128, 64),
        ("linear", 64, 32),
        ("linear", 128, 64),
    ]
    assert len({r.tokens for r in found}) == 1
    for first, other in zip(found[:2], found[2:], strict=True):
        assert first.difference is None
        assert other.difference is not None
        assert other.difference.delta == pytest.approx(other.nll - first.nll, abs=1e-9)


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        ({"protocol": "strided"}, "--protocol"),
        ({"protocol": "full", "stride": 32}, "--stride"),
        ({"protocol": "second-half", "stride": 32}, "--stride"),
        ({"protocol": "sliding", "stride": LENGTH}, "--stride"),
        ({"protocol": "second-half", "lengths": (2,)}, "--lengths"),
        ({"protocol": "sliding", "by_position": True}, "--protocol"),
    ],
)
def test_what_a_protocol_cannot_do_is_refused(request_: dict[str, Any], where: str) -> None:
    """Before a file is read or a model loaded."""
    lengths = request_.pop("lengths", (LENGTH,))
    with pytest.raises(BadUsage) as caught:
        evaluate(Request(("nowhere",), ("nothing",), lengths, **request_), lambda _: None)
    assert caught.value.where == where
