"""`convert --bake` from the command line to the model: tables that are used, and a temperature in the weights."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ropecli import writer
from ropecli.checkpoint import read_checkpoint, read_tensor, tensor_headers, verify
from ropecli.cli import main
from ropecli.tables import SHARD, SIDECAR, attach

YARN = ["--rope-type", "yarn", "--factor", "4", "--attention-factor", "1.3"]


def convert(source: Path, out: Path, *options: str) -> int:
    """The exit status of one conversion."""
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(source), "-o", str(out), *YARN, *options])
    return int(stopped.value.code or 0)


def logits(folder: Path, *, tables: bool = False) -> torch.Tensor:
    """Of 200 fixed tokens, in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if tables:
        attach(model, folder)
    ids = torch.arange(200)[None] % 64
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids).logits
    return result


def baked(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The field `baked` of `inspect --json`."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["inspect", str(folder), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["baked"]
    return found


@pytest.mark.parametrize(("into", "name"), [("sidecar", SIDECAR), ("shards", SHARD)])
def test_baked_tables_are_found_and_give_the_same_logits(into, name, checkpoint, tmp_path, capsys):
    """A sidecar or a shard: inspect tells it, the weights verify, and a model that uses it computes the same."""
    out = tmp_path / "out"
    assert convert(checkpoint, out, "--bake", "cos-sin", "--bake-into", into) == 0
    assert (out / name).is_file()
    shown = baked(out, capsys)
    assert (shown["path"], shown["length"], shown["layout"], shown["stale"]) == (name, 512, "half", False)
    assert verify(read_checkpoint(str(out))) == ()
    expected = logits(out)
    assert torch.allclose(logits(out, tables=True), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


def test_tables_of_another_config_are_stale(checkpoint, tmp_path, capsys):
    """Whoever edits the config after baking is told by `inspect --verify`."""
    out = tmp_path / "out"
    assert convert(checkpoint, out, "--bake", "inv-freq") == 0
    config = out / "config.json"
    config.write_text(config.read_text("utf-8").replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'), "utf-8")
    assert baked(out, capsys)["stale"] is True
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(out), "--verify"])
    assert stopped.value.code == 1


def test_a_new_conversion_leaves_old_tables_behind(checkpoint, tmp_path):
    """A sidecar says what the old config meant, so it does not go along."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert convert(checkpoint, first, "--bake", "cos-sin") == 0
    assert convert(first, second) == 0
    assert not (second / SIDECAR).exists()


def test_a_folded_temperature_gives_the_same_logits(checkpoint, tmp_path):
    """The config says 1, the query and key weights carry m, and only their shards are new files."""
    plain, folded = tmp_path / "plain", tmp_path / "folded"
    assert convert(checkpoint, plain) == 0
    assert convert(checkpoint, folded, "--bake", "attention-factor", "--weights", "hardlink") == 0
    assert read_checkpoint(str(folded)).ropes[0].spec.scaling.attention_factor == 1
    old, new = tensor_headers(plain), tensor_headers(folded)
    changed = {
        name
        for name in old
        if old[name].file.read_bytes()[old[name].begin : old[name].end]
        != new[name].file.read_bytes()[new[name].begin : new[name].end]
    }
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "k_proj"}
    same = [name for name in old if "mlp" in name and new[name].file.name == old[name].file.name]
    assert same
    assert torch.allclose(logits(folded), logits(plain), atol=5e-3 * float(logits(plain).abs().max()))


def test_a_folded_temperature_is_shown(checkpoint, tmp_path, capsys):
    """inspect tells it as baked, also after transformers has saved the model again, and beside tables."""
    folded, saved, tables = tmp_path / "folded", tmp_path / "saved", tmp_path / "tables"
    assert convert(checkpoint, folded, "--bake", "attention-factor") == 0
    shown = baked(folded, capsys)
    assert (shown["kind"], shown["layers"], shown["attention_factor"]) == ("attention-factor", ["default"], [1.3])
    assert not shown["stale"]
    with pytest.raises(SystemExit):
        main(["inspect", str(folded)])
    assert "hold an attention factor of 1.3" in capsys.readouterr().out
    AutoModelForCausalLM.from_pretrained(folded).save_pretrained(saved)
    assert baked(saved, capsys)["folded_attention_factor"] == {"default": 1.3}
    # tables of the folded checkpoint: those of the factor 1, which is all that is left for them to say
    assert convert(folded, tables, "--attention-factor", "1", "--bake", "cos-sin") == 0
    shown = baked(tables, capsys)
    assert (shown["kind"], shown["attention_factor"]) == ("cos-sin", [1.0])
    assert shown["folded_attention_factor"] == {"default": 1.3}
    assert baked(checkpoint, capsys) is None


@pytest.mark.parametrize(
    ("step", "options", "damage"),
    [
        ("write_tables", ("--bake", "cos-sin"), lambda data: data[:-4] + b"\0\0\0\1"),
        ("write_tables", ("--bake", "inv-freq", "--bake-into", "shards"), lambda data: data[:-8]),
        ("rewrite_shard", ("--bake", "attention-factor"), lambda data: data[:-2]),
    ],
    ids=["a wrong table", "a short table", "a short shard"],
)
def test_what_was_baked_is_read_back_before_it_appears(step, options, damage, checkpoint, tmp_path, monkeypatch):
    """A file that a disk or a mistake spoiled is exit status 1, and there is no output."""
    real = getattr(writer, step)

    def spoiled(first: Any, file: Path, *more: Any) -> Any:
        result = real(first, file, *more)
        file.write_bytes(damage(file.read_bytes()))
        return result

    monkeypatch.setattr(writer, step, spoiled)
    assert convert(checkpoint, tmp_path / "out", *options) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_tables_that_do_not_fit_are_refused_before_they_are_written(checkpoint, tmp_path, monkeypatch, capsys):
    """Links need no room, a table of a million positions does: exit status 4, and there is no output."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    assert (
        convert(checkpoint, tmp_path / "out", "--weights", "hardlink", "--bake", "cos-sin", "--bake-length", "1m") == 4
    )
    assert "10,000,000 are free" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_dry_run_counts_a_scaled_shard_once(checkpoint, tmp_path, capsys):
    """It is written anew, and not copied besides."""
    options = ("--bake", "attention-factor", "--weights", "copy")
    assert convert(checkpoint, tmp_path / "out", *options, "--dry-run") == 0
    most = int(re.findall(r"at most ([\d,]+) bytes", capsys.readouterr().out)[0].replace(",", ""))
    assert convert(checkpoint, tmp_path / "out", *options) == 0
    assert most == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_tables_without_weights(checkpoint, tmp_path):
    """`--weights none` leaves the shards to somebody else; tables and index are there."""
    out = tmp_path / "out"
    assert convert(checkpoint, out, "--bake", "cos-sin", "--bake-into", "shards", "--weights", "none") == 0
    assert [path.name for path in out.glob("*.safetensors")] == [SHARD]


def as_one_file(folder: Path) -> None:
    """Shards and index become one model.safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    for file in (*files, folder / "model.safetensors.index.json"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("shape", ["shards", "one file"])
@pytest.mark.parametrize("options", [(), ("--bake", "cos-sin"), ("--bake", "attention-factor")], ids=" ".join)
def test_a_new_conversion_leaves_an_old_shard_behind(options, shape, checkpoint, tmp_path, capsys):
    """Its tables are not those of the new config: neither the file nor the index names them, and all else verifies."""
    if shape == "one file":
        as_one_file(checkpoint)
    first, second = tmp_path / "first", tmp_path / "second"
    assert convert(checkpoint, first, "--bake", "cos-sin", "--bake-into", "shards") == 0
    assert convert(first, second, "--beta-fast", "8", *options) == 0
    assert "stays behind" in capsys.readouterr().err
    assert not (second / SHARD).exists()
    assert verify(read_checkpoint(str(second))) == ()
    assert tensor_headers(second).keys() == tensor_headers(checkpoint).keys()
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(second), "--verify"])
    assert stopped.value.code in (0, None)


@pytest.mark.parametrize("into", ["sidecar", "shards"])
def test_tables_are_not_made_stale_in_place(into, checkpoint, tmp_path, capsys, tree):
    """Rewriting the config of a folder with tables would leave them behind it: refused, nothing touched."""
    out = tmp_path / "out"
    assert convert(checkpoint, out, "--bake", "cos-sin", "--bake-into", into) == 0
    before = tree(out)
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(out), "--in-place", *YARN, "--beta-fast", "8"])
    assert stopped.value.code == 2
    assert "tables of the old config" in capsys.readouterr().err
    assert tree(out) == before


@pytest.mark.parametrize("options", [("--bake", "attention-factor"), (), ("--emit", "vllm")], ids=" ".join)
def test_a_second_temperature_is_refused(options, checkpoint, tmp_path, capsys, tree):
    """Whether folded again, in the config, or in flags: m would multiply m. Nothing is written."""
    folded, again = tmp_path / "folded", tmp_path / "again"
    assert convert(checkpoint, folded, "--bake", "attention-factor") == 0
    before = tree(folded)
    assert convert(folded, again, *options) == 2
    assert "hold an attention factor of 1.3 already" in capsys.readouterr().err
    assert tree(folded) == before
    assert not again.exists()


def test_a_folded_checkpoint_takes_another_ramp(checkpoint, tmp_path):
    """With a factor of 1 there is nothing to compound: the mark stays, and so do the weights."""
    folded, again = tmp_path / "folded", tmp_path / "again"
    assert convert(checkpoint, folded, "--bake", "attention-factor") == 0
    assert convert(folded, again, "--attention-factor", "1", "--beta-fast", "8") == 0
    assert json.loads((again / "config.json").read_text())["ropecli"] == {"folded_attention_factor": {"default": 1.3}}
    old, new = tensor_headers(folded), tensor_headers(again)
    assert all(read_tensor(old[name]) == read_tensor(new[name]) for name in old)


@pytest.mark.parametrize("own", [None, "0.1", ["a"], {"kept": 1}], ids=str)
def test_the_mark_takes_its_place_whatever_was_there(own, checkpoint, tmp_path):
    """Members that somebody else keeps under our key stay; what is no object has none."""
    config = json.loads((checkpoint / "config.json").read_text()) | {"ropecli": own}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert convert(checkpoint, tmp_path / "out", "--bake", "attention-factor") == 0
    mark = json.loads((tmp_path / "out" / "config.json").read_text())["ropecli"]
    assert mark == (own if isinstance(own, dict) else {}) | {"folded_attention_factor": {"default": 1.3}}


@pytest.mark.parametrize("mark", [1.3, {"default": 0}, {"default": "1.3"}, {"default": True}], ids=str)
def test_a_damaged_mark_is_a_broken_checkpoint(mark, checkpoint, tmp_path, capsys):
    """What the weights hold is then not known: exit status 3 from both verbs, with the file and the key."""
    config = json.loads((checkpoint / "config.json").read_text()) | {"ropecli": {"folded_attention_factor": mark}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert convert(checkpoint, tmp_path / "out") == 3
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(checkpoint)])
    assert stopped.value.code == 3
    assert f"{checkpoint}: ropecli.folded_attention_factor" in capsys.readouterr().err


def test_nothing_to_fold_is_said(checkpoint, tmp_path, capsys):
    """A factor of 1 has nothing to put into the weights, and nothing is written."""
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "convert",
                str(checkpoint),
                "-o",
                str(out),
                *YARN[:4],
                "--attention-factor",
                "1",
                "--bake",
                "attention-factor",
            ]
        )
    assert stopped.value.code == 2
    assert "nothing to fold" in capsys.readouterr().err
    assert not out.exists()
