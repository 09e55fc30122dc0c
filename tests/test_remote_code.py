"""What --trust-remote-code would run is named, and without it nothing runs."""

import json
import shutil
from pathlib import Path

import pytest

from ropecli import cli
from ropecli.checkpoint import read_checkpoint
from ropecli.remote_code import files_that_would_run

TINY = Path(__file__).parent.parent / "examples" / "tiny"
OWN = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "org/code--sub.modeling.Own"}


@pytest.fixture
def carrier(tmp_path: Path) -> Path:
    """A checkpoint that brings code, each piece of which would leave a file behind."""
    folder = tmp_path / "carrier"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": OWN, "model_type": "own"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.Slow", "own.Fast"]}}))
    code = f"open({str(tmp_path / 'RUN')!r}, 'w')"
    (folder / "custom_generate").mkdir()
    for name in ("configuration_own.py", "own.py", "modeling_own.py", "custom_generate/generate.py"):
        (folder / name).write_text(code)
    return folder


def test_the_files_are_named(carrier: Path) -> None:
    """Of every config, of other repositories, and those that transformers finds by name."""
    assert files_that_would_run(read_checkpoint(str(carrier))) == (
        "configuration_own.py",
        "sub/modeling.py of org/code",
        "own.py",
        "custom_generate/generate.py",
    )
    assert files_that_would_run(read_checkpoint(str(TINY))) == ()


@pytest.mark.parametrize("auto_map", [None, [], "x", {"a": 1}, {"a": [None]}, {"a": ""}])
def test_any_auto_map(auto_map: object, carrier: Path) -> None:
    """A map that is none names nothing that can be run, and nothing breaks."""
    config = json.loads((carrier / "config.json").read_text())
    (carrier / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    (carrier / "tokenizer_config.json").write_text("[")
    assert files_that_would_run(read_checkpoint(str(carrier)))[-1] == "custom_generate/generate.py"


def test_nothing_runs_without_the_flag(carrier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """evaluate stops with status 3 and says which flag would run it; no file of the checkpoint was imported."""
    text = tmp_path / "text.txt"
    text.write_text("We hold these truths to be self-evident. " * 50)
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(carrier), "--data", str(text), "--lengths", "64"])
    assert ended.value.code == 3
    assert "--trust-remote-code" in capsys.readouterr().err
    assert not (tmp_path / "RUN").exists()


def test_with_the_flag_the_files_are_named_before_anything_runs(
    carrier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even with --quiet, on standard error, and before the data is looked at."""
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(carrier), "--data", str(tmp_path / "none"), "--trust-remote-code", "--quiet"])
    assert "sub/modeling.py of org/code" in capsys.readouterr().err
    assert not (tmp_path / "RUN").exists()


def test_kernels_of_the_hub_are_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--attn-implementation org/kernel needs the flag, too."""
    text = tmp_path / "text.txt"
    text.write_text("We hold these truths to be self-evident. " * 50)
    options = ["--lengths", "64", "--attn-implementation", "org/kernel"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(TINY), "--data", str(text), *options])
    assert ended.value.code == 2
    assert "--trust-remote-code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [({"num_hidden_layers": 100_000}, "promises 100,000 layers"), ({"vocab_size": 10}, "expected the shape")],
)
def test_configs_that_promise_another_model(
    change: dict[str, int], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 3 before minutes are spent on building it."""
    folder, text = tmp_path / "model", tmp_path / "text.txt"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    text.write_text("We hold these truths to be self-evident. " * 50)
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(folder), "--data", str(text), "--lengths", "64"])
    assert ended.value.code == 3
    assert said in capsys.readouterr().err


def test_a_tokenizer_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A token that the model has no row for is one line, and no IndexError from the depths of torch."""
    folder, text = tmp_path / "model", tmp_path / "text.txt"
    shutil.copytree(TINY, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokenizer.setdefault("added_tokens", []).append({"id": 1_000_000, "content": " truths", **plain})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    text.write_text("We hold these truths to be self-evident. " * 50)
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(folder), "--data", str(text), "--lengths", "64"])
    assert ended.value.code == 3
    assert "the tokenizer gives token" in capsys.readouterr().err
