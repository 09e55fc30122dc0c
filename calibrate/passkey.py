"""Does a model find a number in a long text? Perplexity does not tell: a number hidden in filler, asked for at the end.

The text is that of Mohtashami and Jaggi (arXiv 2305.16300, Landmark Attention), as jquesnelle/yarn uses it in
eval/passkey.py. Every method and every checkpoint is asked for the same numbers.
"""

import bisect
import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice, takewhile

import numpy as np
import torch
from scipy import stats

from calibrate.evaluation import Method, Request, wanted_lengths, wanted_methods
from calibrate.fence import attending, rotating_with
from calibrate.model import LoadedModel, check_settings, is_out_of_memory, load
from calibrate.run import loaded_by
from calibrate.statistics import standard_error
from ropecli.checkpoint import read_checkpoint
from ropecli.errors import BadUsage, NoResource

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the number stands: the part of the filler that comes before it."""

LARGEST = 50_000
"""Numbers are drawn from 1 to this."""

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about the important information there."
)
FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
QUESTION = "What is the pass key? The pass key is"


@dataclass(frozen=True, slots=True)
class PasskeyRow:
    """How often one method at one length finds a number at one depth.

    depth           0 (the number stands before all filler) to 1 (after it)
    found           of `trials`: how often the greedy continuation starts with exactly the number
    low, high       95 % Clopper-Pearson interval of found / trials
    nll             nats a token of the number, over all of its tokens, which `tokens` counts
    standard_error  of nll over trials; None for one trial
    """

    model: str
    method: str
    length: int
    depth: float
    trials: int
    found: int
    low: float
    high: float
    nll: float
    tokens: int
    standard_error: float | None


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids of the text and of the number that it asks for, which are the last `answer` of them."""

    ids: tuple[int, ...]
    answer: int


def proportion_interval(found: int, trials: int) -> tuple[float, float]:
    """95 % interval of a probability from `found` of `trials`: Clopper and Pearson, Biometrika 26 (1934) 404."""
    low = float(stats.beta.ppf(0.025, found, trials - found + 1)) if found else 0.0
    high = float(stats.beta.ppf(0.975, found + 1, trials - found)) if found < trials else 1.0
    return low, high


def passkey_text(number: int, before: int, after: int) -> str:
    """The text up to where the number is expected, with so many sentences of filler before and after it."""
    information = f"The pass key is {number}. Remember it. {number} is the pass key."
    fillers = [" ".join(islice(cycle(FILLER), count)) for count in (before, after)]
    return "\n".join((TASK, fillers[0], information, fillers[1], QUESTION))


def _encoded(loaded: LoadedModel, number: int, depth: float, sentences: int) -> Question:
    before = round(depth * sentences)
    text = passkey_text(number, before, sentences - before)
    asked, whole = loaded.encode(text), loaded.encode(f"{text} {number}")
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, whole, strict=False)))
    front = () if loaded.bos is None else (loaded.bos,)
    return Question((*front, *whole), len(whole) - common)


def questions(loaded: LoadedModel, length: int, depth: float, trials: int) -> Iterator[Question]:
    """`trials` texts of at most `length` tokens with the number in it, in whole sentences; always the same ones.

    Raises BadUsage when the length does not even hold the question without any filler.
    """
    random_ = random.Random(f"{length} {depth}")  # noqa: S311 - a test, not a secret
    numbers = [random_.randint(1, LARGEST) for _ in range(trials)]
    least = max(len(_encoded(loaded, number, depth, 0).ids) for number in numbers)
    if least > length:
        raise BadUsage(f"the passkey text has {least} tokens without any filler, found {length}", where="--lengths")

    def tokens(sentences: int) -> int:
        return len(_encoded(loaded, numbers[0], depth, sentences).ids)

    most = bisect.bisect_right(range(length // 2), length, key=tokens) - 1
    for number in numbers:
        sentences = most
        while len((question := _encoded(loaded, number, depth, sentences)).ids) > length:
            sentences -= 1
        yield question


def answer(loaded: LoadedModel, question: Question) -> tuple[float, bool]:
    """(nats of the number's tokens, whether greedy decoding gives exactly these tokens).

    Each token is predicted from the right ones before it; greedy decoding writes the number exactly where each of
    them is the most likely one. Raises NoResource when memory runs out.
    """
    count = question.answer
    slim = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters
    try:
        with torch.no_grad(), attending(loaded):
            ids = torch.tensor([question.ids], device=loaded.device)
            kept = {"logits_to_keep": count + 1} if slim else {}
            logits = loaded.model(input_ids=ids, use_cache=False, **kept).logits[0, -count - 1 : -1].float()
            targets = ids[0, -count:].to(logits.device)
            nats = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            return float(nats), bool((logits.argmax(-1) == targets).all())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NoResource(
            f"out of memory on one window of {len(question.ids)} tokens", hint="try --dtype bfloat16"
        ) from error


def _row(
    loaded: LoadedModel, source: str, wanted: Method, length: int, asked: tuple[float, list[Question]]
) -> PasskeyRow:
    depth, texts = asked
    answers = np.zeros((len(texts), 2))
    for index in loaded.ranks.mine(len(texts)):
        answers[index] = answer(loaded, texts[index])
    nats, right = loaded.ranks.total(answers).T
    tokens = np.array([question.answer for question in texts], dtype=np.int64)
    found = int(right.sum())
    low, high = proportion_interval(found, len(texts))
    error = standard_error(nats, tokens)
    return PasskeyRow(
        model=source,
        method=wanted.name,
        length=length,
        depth=depth,
        trials=len(texts),
        found=found,
        low=low,
        high=high,
        nll=float(nats.sum() / tokens.sum()),
        tokens=int(tokens.sum()),
        standard_error=None if np.isnan(error) else error,
    )


def retrieve(request: Request, trials: int, observe: Callable[[PasskeyRow], None]) -> tuple[PasskeyRow, ...]:
    """One row a (checkpoint, method, length, depth); `observe` is told each as it is known. No data is read.

    The factor of the methods is that of `calibrate.evaluation.evaluate`.
    """
    check_settings(request.settings)
    surveys = []
    for source in request.sources:
        checkpoint = read_checkpoint(source)
        lengths, _ = wanted_lengths(request, checkpoint)
        surveys.append((source, loaded_by(checkpoint), lengths, wanted_methods(request, checkpoint, lengths[-1])))
    rows: list[PasskeyRow] = []
    for source, name, lengths, methods in surveys:
        loaded = load(name, request.settings)
        asked = {
            length: [(depth, list(questions(loaded, length, depth, trials))) for depth in DEPTHS] for length in lengths
        }
        for wanted in methods:
            for length, texts in asked.items():
                with rotating_with(loaded.model, wanted.tables(length if wanted.by_length else lengths[-1])):
                    for at_depth in texts:
                        row = _row(loaded, source, wanted, length, at_depth)
                        observe(row)
                        rows.append(row)
    return tuple(rows)
