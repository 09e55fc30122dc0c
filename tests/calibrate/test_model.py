"""`calibrate.model`: a checkpoint is loaded as it is, or refused in one line."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import LENGTH, PLAIN, config, logits, random_ids, rotary_tables
from safetensors.torch import load_file, save_file

from calibrate.fence import rotating_with
from calibrate.model import Settings, load, pick_device, without_weights
from calibrate.run import extensible
from calibrate.score import token_nll
from ropecli.checkpoint import read_checkpoint
from ropecli.errors import BadCheckpoint, BadUsage, RopeError
from ropecli.frequencies import frequencies
from ropecli.spec import Linear

TINY = Path(__file__).parents[2] / "examples" / "tiny"


def _llava() -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**tower, image_size=28, patch_size=14)
    return transformers.LlavaConfig(text_config=config("llama", vocab_size=2048), vision_config=vision)


def _qwen2_vl() -> Any:
    text = config("qwen2", PLAIN | {"mrope_section": [1, 1, 2]}, vocab_size=2048).to_dict()
    tower = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return transformers.Qwen2VLConfig(text_config=text | {"model_type": "qwen2_vl_text"}, vision_config=tower)


@pytest.mark.parametrize("made", [_llava, _qwen2_vl])
def test_a_model_that_sees_images_is_measured_on_text(made: Callable[[], Any], tmp_path: Path) -> None:
    """What transformers has only with a tower for images is loaded whole, scored as text, and rotates as it is told."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(made())
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path / name)
    loaded, ids = load(str(tmp_path), Settings("cpu")), random_ids(2, 2 * LENGTH)
    log_p = logits(model.eval(), ids)[:, :-1].log_softmax(-1)
    assert torch.equal(token_nll(loaded.model, ids), -log_p.gather(-1, ids[:, 1:, None])[..., 0])
    rope, plain = extensible(read_checkpoint(str(tmp_path)), None)
    with rotating_with(loaded.model, {rope.name: frequencies(replace(plain, scaling=Linear(2.0)))}):
        assert not torch.equal(token_nll(loaded.model, ids), token_nll(model, ids))
    shape, dtype = without_weights(str(tmp_path), Settings("cpu"))
    assert (shape.parameters, dtype) == (sum(p.numel() for p in model.parameters()), "float32")


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` asks the machine in this order."""
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=cuda: here)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda here=mps: here)
        assert pick_device("auto").type == expected
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("wanted", ["cuda:99", "meta", "toaster", "", "cuda:", "cuda:-3"])
def test_a_device_that_is_not_here_is_bad_usage(wanted: str) -> None:
    """An unknown device, or one that this machine lacks, is the user's mistake, told in one line."""
    with pytest.raises(BadUsage) as caught:
        pick_device(wanted)
    assert caught.value.where == "--device"
    assert caught.value.hint


@pytest.fixture
def copy_of_tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pickled(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


QUERY = "model.layers.0.self_attn.q_proj.weight"


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncated, "the header places tensors up to byte"),
    "empty": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "expected a safetensors file, found 0 bytes",
    ),
    "lacking": (lambda folder: _weights(folder, lambda w: w.pop(QUERY)), f"the weights lack {QUERY}"),
    "reshaped": (
        lambda folder: _weights(folder, lambda w: w.update({QUERY: w[QUERY][:10].clone()})),
        "expected the shape [192, 192], found [10, 192]",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "expected safetensors weights, found none"),
    "pickle": (_pickled, "expected safetensors weights, found only pickles such as pytorch_model.bin"),
    "bad tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot load it"),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "no tokenizer lies beside the weights",
    ),
    "bad config": (lambda folder: (folder / "config.json").write_text('{"model_type": "llama",'), "not JSON"),
    "unknown type": (lambda folder: (folder / "config.json").write_text('{"model_type": "x"}'), "cannot load it"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_one_line(copy_of_tiny: Path, kind: str) -> None:
    """Whatever is wrong with the files, the error is BadCheckpoint, on one line, with the folder and a reason."""
    break_it, problem = BROKEN[kind]
    break_it(copy_of_tiny)
    with pytest.raises(BadCheckpoint) as caught:
        load(str(copy_of_tiny), Settings())
    assert problem in caught.value.problem
    assert caught.value.where.startswith(str(copy_of_tiny))
    assert "\n" not in caught.value.problem


def test_a_loaded_checkpoint_keeps_its_dtype_and_needs_no_gradients() -> None:
    """`auto` keeps bfloat16 weights; a named dtype replaces it; tables are float32 in both, nothing trains."""
    for wanted, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
        loaded = load(str(TINY), Settings(dtype=wanted, device="cpu"))
        assert loaded.model.dtype == expected
        assert loaded.dtype == str(expected).removeprefix("torch.")
        assert not loaded.model.training
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
        assert {table.dtype for table in rotary_tables(loaded.model).values()} == {torch.float32}
        assert loaded.device == torch.device("cpu")


def test_text_is_encoded_without_special_tokens() -> None:
    """The encoder adds nothing, and `bos` is set only for tokenizers that put one in front themselves."""
    loaded = load(str(TINY), Settings(device="cpu"))
    ids = loaded.encode("To the Senate and House of Representatives:")
    assert len(ids) > 5
    assert 0 not in ids
    assert loaded.encode("") == []
    assert loaded.bos is None


def test_a_tokenizer_that_opens_with_bos_says_so(copy_of_tiny: Path) -> None:
    """A tokenizer whose template starts with the beginning-of-sequence token gives its id as `bos`."""
    from tokenizers import Tokenizer, processors  # noqa: PLC0415

    path = str(copy_of_tiny / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    tokenizer.save(path)
    loaded = load(str(copy_of_tiny), Settings(device="cpu"))
    assert loaded.bos == 0
    assert 0 not in loaded.encode("a b c")


@pytest.mark.parametrize(("settings", "where"), [({"dtype": "float8"}, "--dtype"), ({"device": "x"}, "--device")])
def test_bad_settings_are_found_before_anything_is_loaded(settings: dict[str, str], where: str) -> None:
    """A dtype or device that does not exist is told before the checkpoint is even looked for."""
    with pytest.raises(RopeError) as caught:
        load("/there/is/no/such/folder", Settings(**settings))
    assert isinstance(caught.value, BadUsage)
    assert caught.value.where == where


def test_a_device_map_loads_the_same_model() -> None:
    """`--device-map auto` puts everything on the one device that there is; the loss is the same."""
    plain, mapped = (load(str(TINY), Settings(device_map=device_map)) for device_map in (None, "auto"))
    assert mapped.device.type == plain.device.type
    ids = torch.arange(5, 69, device=plain.device)[None]
    assert torch.equal(token_nll(plain.model, ids), token_nll(mapped.model, ids))
