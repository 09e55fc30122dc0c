"""`ropecli evaluate --passkey`: the text is as long as it says, the answer is what greedy decoding writes."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from calibrate.evaluation import Request
from calibrate.model import LoadedModel, Settings, load
from calibrate.passkey import (
    DEPTHS,
    FILLER,
    LARGEST,
    TASK,
    Question,
    answer,
    passkey_text,
    proportion_interval,
    questions,
    retrieve,
)
from ropecli.cli import main
from ropecli.errors import BadUsage

TINY = Path(__file__).parents[2] / "examples" / "tiny"
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


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(str(TINY), FLOAT32)


@pytest.fixture(scope="module")
def decode() -> Any:
    return transformers.AutoTokenizer.from_pretrained(TINY).decode


# ------------------------------------------------------------------------------------------------ the text


def test_the_text_is_that_of_the_literature() -> None:
    """The task, filler, the number twice, filler from its start again, the question: a line each."""
    assert passkey_text(4217, 6, 2).split("\n") == [
        TASK,
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. The grass is green.",
        "The pass key is 4217. Remember it. 4217 is the pass key.",
        "The grass is green. The sky is blue.",
        "What is the pass key? The pass key is",
    ]


@pytest.mark.parametrize("depth", DEPTHS)
def test_questions_fill_the_length_and_hide_the_number_at_the_depth(
    loaded: LoadedModel, decode: Any, depth: float
) -> None:
    """At most the length, less than one sentence short of it; the number is what comes last and stands at its depth."""
    longest_sentence = max(len(loaded.encode(f" {sentence}")) for sentence in FILLER)
    for question in questions(loaded, 512, depth, 4):
        assert 512 - longest_sentence - 4 <= len(question.ids) <= 512
        text = decode(question.ids)
        number = text.rpartition(" ")[2]
        assert 1 <= int(number) <= LARGEST
        assert decode(question.ids[-question.answer :]).strip() == number
        before, information, after = text.split("\n")[1:4]
        assert information == f"The pass key is {number}. Remember it. {number} is the pass key."
        sentences = before.count(".") + after.count(".")
        assert abs(before.count(".") - depth * sentences) <= 0.5


def test_questions_are_always_the_same(loaded: LoadedModel) -> None:
    """Fixed by length and depth, so that methods and checkpoints are asked alike; more trials go on from there."""
    few, again, more = (list(questions(loaded, 300, 0.5, n)) for n in (3, 3, 5))
    assert few == again == more[:3]
    assert len({question.ids for question in more}) == 5
    assert list(questions(loaded, 300, 0.25, 3)) != few


def test_a_bos_token_counts_towards_the_length(loaded: LoadedModel) -> None:
    """Where the tokenizer opens a text with it, so does the question, and the length holds."""
    with_bos = LoadedModel(loaded.model, loaded.encode, 0, loaded.device)
    for question in questions(with_bos, 300, 0.5, 3):
        assert question.ids[0] == 0
        assert len(question.ids) <= 300


def test_a_length_that_does_not_hold_the_question_is_refused(loaded: LoadedModel) -> None:
    """The message names both lengths."""
    with pytest.raises(BadUsage, match=r"has \d+ tokens without any filler, found 50"):
        list(questions(loaded, 50, 0.5, 1))


# ------------------------------------------------------------------------------------------------ the answer


def test_found_is_what_greedy_decoding_writes(loaded: LoadedModel) -> None:
    """What the model itself writes counts as found; with any one token changed it does not."""
    (question,) = questions(loaded, 256, 0.5, 1)
    asked = question.ids[: -question.answer]
    with torch.no_grad():
        written = loaded.model.generate(
            torch.tensor([asked]), max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )[0].tolist()
    assert answer(loaded, Question(tuple(written), 4))[1] is True
    for position in range(1, 5):
        other = list(written)
        other[-position] = (other[-position] + 1) % 1000
        assert answer(loaded, Question(tuple(other), 4))[1] is False


@pytest.mark.parametrize("slim", [True, False])
def test_the_loss_is_that_of_the_number_alone(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, slim: bool) -> None:
    """From the model's own logits, also for an architecture that cannot leave the other logits out."""
    (question,) = questions(loaded, 256, 0.25, 1)
    ids = torch.tensor([question.ids])
    with torch.no_grad():
        log_p = loaded.model(ids).logits[0, :-1].double().log_softmax(-1)
    expected = -sum(float(log_p[i - 1, ids[0, i]]) for i in range(len(question.ids) - question.answer, ids.shape[1]))
    if not slim:
        forward = loaded.model.forward
        monkeypatch.setattr(
            loaded.model, "forward", lambda input_ids, use_cache: forward(input_ids, use_cache=use_cache)
        )
    assert answer(loaded, question)[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("found", "trials", "low", "high"),
    [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (5, 10, 0.1871, 0.8129), (1, 20, 0.0013, 0.2487), (1, 1, 0.025, 1.0)],
)
def test_the_interval_is_that_of_clopper_and_pearson(found: int, trials: int, low: float, high: float) -> None:
    """Published values; each end is where the binomial tail beyond `found` is 2.5 %."""
    interval = proportion_interval(found, trials)
    assert interval == pytest.approx((low, high), abs=5e-5)

    def at_most(count: int, p: float) -> float:
        return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(count + 1))

    if found:
        assert 1 - at_most(found - 1, interval[0]) == pytest.approx(0.025)
    if found < trials:
        assert at_most(found, interval[1]) == pytest.approx(0.025)


def test_a_row_for_each_method_length_and_depth() -> None:
    """In the order asked for; the tiny checkpoint finds nothing; methods differ on the same numbers."""
    request = Request((str(TINY),), (), (256, 200), ("none", "yarn"), factor=4.0, settings=FLOAT32)
    told: list[Any] = []
    rows = retrieve(request, 2, told.append)
    assert rows == tuple(told)
    assert [(r.method, r.length, r.depth) for r in rows] == [
        (m, n, d) for m in ("none", "yarn") for n in (200, 256) for d in DEPTHS
    ]
    for row in rows:
        assert (row.found, row.trials, row.low) == (0, 2, 0.0)
        assert row.standard_error is not None
    for none, yarn in zip(rows[:10], rows[10:], strict=True):
        assert none.tokens == yarn.tokens
        assert none.nll != yarn.nll


# ------------------------------------------------------------------------------------------------ the command line


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(TINY), "--passkey", "--device", "cpu", *arguments])
    return int(caught.value.code or 0), capsys.readouterr().out


def test_json_and_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """No --data is needed; a document or a line for each depth."""
    status, text = printed(capsys, "--lengths", "256", "--trials", "1", "--json")
    documents = [json.loads(line) for line in text.splitlines()]
    assert status == 0
    assert [document["depth"] for document in documents] == list(DEPTHS)
    for document in documents:
        assert (document["schema_version"], document["kind"], document["method"]) == (1, "passkey", "config")
        assert (document["trials"], document["found"], document["ci95"]) == (1, 0, [0.0, 0.975])
        assert document["nll"] > 0
        assert document["standard_error"] is None
    status, text = printed(capsys, "--lengths", "256", "--trials", "1")
    first, heading, *lines = text.splitlines()
    assert first == f"{TINY}, passkey, lengths in tokens"
    assert heading.split()[:4] == ["method", "length", "depth", "found"]
    assert [line.split()[2] for line in lines] == ["0%", "25%", "50%", "75%", "100%"]
    assert [line.split()[:2] for line, _ in pairwise(lines)] == [["config", "256"]] * 4


@pytest.mark.parametrize(
    "arguments",
    [
        ("--data", "x.txt"),
        ("--window", "64"),
        ("--plot", "x.png"),
        ("--protocol", "yarn"),
        ("--documents", "3"),
        ("--windows", "1"),
        ("--text-field", "body"),
    ],
)
def test_what_does_not_go_with_it_is_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    """An option that would have no effect is an error."""
    status, text = printed(capsys, *arguments, "--json")
    assert status == 2
    assert json.loads(text)["error"]["message"].startswith("--passkey")


def test_its_own_option_is_refused_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    """`--trials` says nothing of text, not even where it is the default."""
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(TINY), "--data", "x.txt", "--trials", "10"])
    assert caught.value.code == 2
    assert "--trials: says nothing here" in capsys.readouterr().err


def test_without_it_data_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """Usage is checked before torch is even loaded."""
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(TINY)])
    assert caught.value.code == 2
    assert "--data" in capsys.readouterr().err
