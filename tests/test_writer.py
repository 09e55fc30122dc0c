"""Writing a converted checkpoint: complete or absent, and the source as it was."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ropecli import staging, writer
from ropecli.checkpoint import read_checkpoint
from ropecli.conversion import Conversion, chosen_layers, extended, plan
from ropecli.errors import BadCheckpoint, BadUsage, CheckFailed, NoResource, OutputExists
from ropecli.frequencies import frequencies
from ropecli.spec import Linear, Llama3, Ntk, NtkByParts, Plain, Scaling, Yarn
from ropecli.writer import rewrite_in_place

SHARDS = [f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)]


def planned(source: Path, scaling: Scaling | None = None, schema: Any = "both") -> Conversion:
    """The plan for a folder; default YaRN at factor 4 unless told otherwise."""
    checkpoint = read_checkpoint(str(source))
    scaling = scaling or Yarn.default(4.0)
    intent = {rope.name: extended(rope.spec, scaling) for rope in chosen_layers(checkpoint, "full")}
    return plan(checkpoint, intent, schema=schema, tokenizer_text=writer.tokenizer_text(checkpoint))


def edit_config(folder: Path, changes: Mapping[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(changes), indent=2))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def inode(path: Path) -> int:
    return path.stat().st_ino


@pytest.mark.parametrize("weights", ["auto", "hardlink", "symlink", "copy", "none"])
def test_the_source_is_byte_equal_after(weights, checkpoint, tmp_path, tree):
    """Content, links, inodes and times of the source are the same after every way of writing."""
    before = tree(checkpoint)
    writer.write(planned(checkpoint), tmp_path / "out", weights=weights)
    assert tree(checkpoint) == before


@pytest.mark.parametrize("weights", ["auto", "hardlink", "symlink", "copy"])
def test_every_other_file_goes_along(weights, checkpoint, tmp_path):
    """Tokenizer, template, code, subfolders and shards have the source's content; only the two configs differ."""
    out = tmp_path / "out"
    receipt = writer.write(planned(checkpoint), out, weights=weights)
    carried = {name for name in names(checkpoint) if not name.startswith(".cache")}
    assert names(out) == carried == set(receipt.files)
    differing = {name for name in carried if (out / name).read_bytes() != (checkpoint / name).read_bytes()}
    assert differing == {"config.json", "tokenizer_config.json"}
    assert {name for name, how in receipt.files.items() if how == "rewritten"} == differing


def test_without_weights_everything_but_the_weights_goes_along(checkpoint, tmp_path):
    """`none` leaves the shards out and keeps what is beside them."""
    out = tmp_path / "out"
    writer.write(planned(checkpoint), out, weights="none")
    assert names(checkpoint) - names(out) == {*SHARDS, ".cache/huggingface/lock"}


def test_hard_links_are_the_same_file_and_only_weights_are_linked(checkpoint, tmp_path):
    """A shard takes no space twice; a tokenizer that is saved into the output later can not reach the source."""
    out = tmp_path / "out"
    receipt = writer.write(planned(checkpoint), out, weights="hardlink")
    linked = {name for name in receipt.files if inode(out / name) == inode(checkpoint / name)}
    assert linked == set(SHARDS) == {name for name, how in receipt.files.items() if how == "hardlink"}
    (out / "tokenizer.json").write_text("overwritten in place")
    assert (checkpoint / "tokenizer.json").read_text() != "overwritten in place"


def test_automatic_weights_are_what_the_receipt_says(checkpoint, tmp_path):
    """A hard link has the inode of the source; a reflink or a copy has its own."""
    out = tmp_path / "out"
    receipt = writer.write(planned(checkpoint), out)
    for name in SHARDS:
        assert receipt.files[name] in ("reflink", "hardlink")
        assert (inode(out / name) == inode(checkpoint / name)) == (receipt.files[name] == "hardlink")


@pytest.mark.parametrize(
    ("impossible", "how"),
    [
        ((), "reflink"),
        (("_clone",), "hardlink"),
        (("_clone", "hardlink_to"), "copy"),
    ],
    ids=["reflink", "hard link", "copy"],
)
def test_automatic_weights_try_the_cheapest_way_first(impossible, how, checkpoint, tmp_path, monkeypatch):
    """Reflink, then hard link, then copy: the next where the file system refuses the one before."""

    def refused(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def cloned(source: int, target: int) -> None:
        os.write(target, os.pread(source, os.fstat(source).st_size, 0))

    monkeypatch.setattr(writer, "_clone", cloned)
    for name in impossible:
        monkeypatch.setattr(writer if name == "_clone" else Path, name, refused)
    receipt = writer.write(planned(checkpoint), tmp_path / "out", weights="auto")
    shards = {name: way for name, way in receipt.files.items() if name.endswith(".safetensors")}
    assert set(shards.values()) == {how}
    assert all((tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes() for name in shards)


def test_copies_are_new_files_and_are_counted(checkpoint, tmp_path):
    """`copy` shares no inode with the source, and the receipt counts every byte."""
    out = tmp_path / "out"
    receipt = writer.write(planned(checkpoint), out, weights="copy")
    assert all(inode(out / name) != inode(checkpoint / name) for name in receipt.files)
    assert receipt.new_bytes == sum((out / name).stat().st_size for name in receipt.files)


def test_symbolic_links_lead_to_the_weights(checkpoint, tmp_path):
    """`symlink` links weights by their full path, and small files are files."""
    out = tmp_path / "out"
    receipt = writer.write(planned(checkpoint), out, weights="symlink")
    assert {name for name in receipt.files if (out / name).is_symlink()} == set(SHARDS)
    assert all((out / name).readlink() == (checkpoint / name).resolve() for name in SHARDS)


def test_reflinks_work_or_are_refused_whole(checkpoint, tmp_path):
    """Where the file system has no reflinks, nothing is left and the hint names other ways; else they are new files."""
    out = tmp_path / "out"
    try:
        receipt = writer.write(planned(checkpoint), out, weights="reflink")
    except NoResource:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    else:
        assert all(receipt.files[name] == "reflink" for name in SHARDS)
        assert all(inode(out / name) != inode(checkpoint / name) for name in SHARDS)


@pytest.mark.parametrize("weights", ["auto", "hardlink", "symlink", "copy", "none"])
def test_the_survey_tells_what_writing_does(weights, checkpoint, tmp_path, tree):
    """A dry run touches nothing, counts the files and never promises fewer bytes than are written."""
    before = tree(tmp_path)
    conversion = planned(checkpoint)
    files, most = writer.survey(conversion, tmp_path / "out", weights)
    assert tree(tmp_path) == before
    receipt = writer.write(conversion, tmp_path / "out", weights=weights)
    assert files == len(receipt.files) - len(conversion.texts)
    assert receipt.new_bytes <= most < receipt.new_bytes + 10_000
    assert writer.survey(conversion, None, weights)[0] == files


@pytest.mark.parametrize("weights", ["auto", "hardlink", "symlink", "copy"])
def test_a_snapshot_of_the_hub_cache_is_never_written_through(weights, hub_snapshot, tmp_path, tree):
    """Its files are links to shared blobs: the blobs keep their content, and rewritten files are new files."""
    hub = tmp_path / "hub"
    before = tree(hub)
    out = tmp_path / "out"
    writer.write(planned(hub_snapshot), out, weights=weights)
    assert tree(hub) == before
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        assert not (out / name).is_symlink()
        assert inode(out / name) != inode(hub_snapshot / name)
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 512
    blobs = {inode(path) for path in (hub / "models--org--name" / "blobs").iterdir()}
    if weights == "hardlink":
        assert {inode(out / name) for name in SHARDS} <= blobs
    if weights == "symlink":
        assert all((out / name).readlink().parent.name == "blobs" for name in SHARDS)


def test_linked_folders_go_along(checkpoint, tmp_path):
    """A subfolder that is a link is carried with its content, as folders."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "vocab.txt").write_text("a")
    (checkpoint / "extra").symlink_to(elsewhere)
    out = tmp_path / "out"
    writer.write(planned(checkpoint), out)
    assert (out / "extra" / "vocab.txt").read_text() == "a"
    assert not (out / "extra").is_symlink()


@pytest.mark.parametrize(("name", "target"), [("circle", "."), ("lost.safetensors", "nowhere")])
def test_links_that_lead_nowhere_are_named(name, target, checkpoint, tmp_path):
    """A circle and a dangling link end in one line with the link's path; nothing is written."""
    conversion = planned(checkpoint)
    (checkpoint / name).symlink_to(target)
    with pytest.raises(BadCheckpoint) as caught:
        writer.write(conversion, tmp_path / "out")
    assert str(checkpoint / name) in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_existing_output_is_refused_and_untouched(checkpoint, tmp_path, tree):
    """Exit status 2, with --force as the hint, whatever stands there."""
    out = tmp_path / "out"
    for make in (out.mkdir, lambda: out.write_text("mine"), lambda: out.symlink_to("nowhere")):
        make()
        before = tree(tmp_path)
        with pytest.raises(OutputExists) as caught:
            writer.write(planned(checkpoint), out)
        assert caught.value.exit_status == 2
        assert "--force" in caught.value.hint
        assert tree(tmp_path) == before
        out.rmdir() if out.is_dir() else out.unlink()


def test_force_replaces_a_checkpoint(checkpoint, tmp_path, tree):
    """The old folder is gone with all its files, the new one is complete, and the source keeps its linked weights."""
    out = tmp_path / "out"
    before = tree(checkpoint)
    writer.write(planned(checkpoint), out, weights="hardlink")
    (out / "stray.txt").write_text("old")
    writer.write(planned(checkpoint, Linear(2.0)), out, weights="hardlink", force=True)
    assert not (out / "stray.txt").exists()
    assert json.loads((out / "config.json").read_text())["rope_scaling"]["rope_type"] == "linear"
    assert tree(checkpoint) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_link_that_leads_nowhere_is_not_replaced(checkpoint, tmp_path, tree):
    """It may lead to a disk that is not mounted just now: refused, with --force too."""
    out = tmp_path / "out"
    out.symlink_to("nowhere")
    before = tree(tmp_path)
    for force in (False, True):
        with pytest.raises(OutputExists) as caught:
            writer.write(planned(checkpoint), out, force=force)
        assert caught.value.where == str(out)
        assert tree(tmp_path) == before


def test_force_replaces_a_link_and_not_what_it_leads_to(checkpoint, tmp_path, tree):
    """An output that is a symbolic link to a checkpoint: the link gives way, the checkpoint behind it stays."""
    behind = tmp_path / "behind"
    shutil.copytree(checkpoint, behind)
    out = tmp_path / "out"
    out.symlink_to(behind)
    before = tree(behind)
    writer.write(planned(checkpoint), out, force=True)
    assert tree(behind) == before
    assert out.is_dir()
    assert not out.is_symlink()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_force_does_not_replace_what_is_no_checkpoint(kind, checkpoint, tmp_path, tree):
    """A mistyped -o with --force must not cost a home folder."""
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(OutputExists):
        writer.write(planned(checkpoint), out, force=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", ["source", "source/inside", "source/original/deep", ".", "link", "link/inside"])
@pytest.mark.parametrize("force", [False, True])
def test_source_and_output_may_not_lie_in_each_other(place, force, checkpoint, tmp_path, tree):
    """The same folder, a folder inside, a folder around, also by way of a link: refused, with --force too."""
    (tmp_path / "link").symlink_to(checkpoint)
    edit_config(checkpoint, {})
    shutil.copyfile(checkpoint / "config.json", tmp_path / "config.json")
    before = tree(tmp_path)
    with pytest.raises(BadUsage):
        writer.write(planned(checkpoint), tmp_path / place, force=force)
    assert tree(tmp_path) == before


def test_a_missing_parent_is_refused(checkpoint, tmp_path):
    """No folder is made on the way; the hint is the command that makes it. A dry run says the same."""
    out = tmp_path / "missing" / "out"
    for action in (writer.write, lambda conversion, out: writer.survey(conversion, out, "auto")):
        with pytest.raises(BadUsage) as caught:
            action(planned(checkpoint), out)
        assert str(out.parent) in caught.value.hint
    assert not out.parent.exists()


def test_an_adapter_is_refused(checkpoint, tmp_path):
    """An adapter's folder must not become its base model without it."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(checkpoint)})
    )
    with pytest.raises(BadUsage, match="adapter"):
        writer.write(planned(adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", ["auto", "copy", "symlink"])
def test_broken_weights_are_refused_before_anything_is_written(weights, checkpoint, tmp_path):
    """A shard that is cut short, or one that the index names and nobody has, is an error of exit status 3."""
    conversion = planned(checkpoint)
    shard = checkpoint / SHARDS[2]
    content = shard.read_bytes()
    for damage in (lambda: shard.write_bytes(content[:-10]), shard.unlink):
        damage()
        with pytest.raises(BadCheckpoint) as caught:
            writer.write(conversion, tmp_path / "out", weights=weights)
        assert SHARDS[2] in caught.value.message
        assert caught.value.exit_status == 3
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
    writer.write(conversion, tmp_path / "out", weights="none")


def test_a_file_in_place_of_a_folder_is_refused(checkpoint, tmp_path):
    """A lone config.json has no weights to carry: the hint names its folder."""
    checkpoint_file = read_checkpoint(str(checkpoint / "config.json"))
    conversion = plan(checkpoint_file, {"default": extended(checkpoint_file.ropes[0].spec, Linear(2.0))})
    with pytest.raises(BadUsage) as caught:
        writer.write(conversion, tmp_path / "out")
    assert str(checkpoint) in caught.value.hint


def test_a_copy_that_does_not_fit_is_refused_before_it_starts(checkpoint, tmp_path, monkeypatch):
    """Exit status 4 with both sizes, and no stage folder."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoResource, match="1,000 are free") as caught:
        writer.write(planned(checkpoint), tmp_path / "out", weights="copy")
    assert caught.value.exit_status == 4
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


FAULTS = {
    "the disk fills up while a file is copied": (writer, "copy_file", OSError(errno.ENOSPC, "No space left"), (0, 3)),
    "a file can not be read": (writer, "copy_file", OSError(errno.EIO, "Input/output error"), (0, 8)),
    "the disk fills up while a config is written": (os, "fsync", OSError(errno.ENOSPC, "No space left"), (0, 1)),
    "the last rename fails": (Path, "rename", OSError(errno.EACCES, "Permission denied"), (0,)),
    "a key is pressed": (os, "fsync", KeyboardInterrupt(), (0, 1)),
}


@pytest.mark.parametrize(("fault", "after"), [(fault, after) for fault in FAULTS for after in FAULTS[fault][3]])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_fault_leaves_everything_as_it_was(fault, after, replacing, checkpoint, tmp_path, tree, monkeypatch):
    """At whichever file it happens: no output, no stage folder, an output that was to be replaced is still there."""
    out = tmp_path / "out"
    conversion = planned(checkpoint)
    if replacing:
        writer.write(conversion, out, weights="copy")
    before = tree(tmp_path)
    owner, name, error, _ = FAULTS[fault]
    real, calls = getattr(owner, name), []

    def fails(*arguments: Any) -> Any:
        calls.append(arguments)
        # of the renames, that of the finished stage fails; the one that takes the old output back must work
        wrong = arguments[1] == out and arguments[0].name == "out" if name == "rename" else len(calls) > after
        if wrong:
            raise error
        return real(*arguments)

    monkeypatch.setattr(owner, name, fails)
    if name == "rename":  # a system that cannot swap two names in one step
        monkeypatch.setattr(staging, "_exchanged", lambda *_: False)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else NoResource):
        writer.write(conversion, out, weights="copy", force=True)
    monkeypatch.undo()
    assert calls
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"scaling": Yarn(4.0, 1.1386), "name": "default"},
        {"scaling": Yarn(4.0, Yarn.default(4.0).attention_factor, 4.0), "name": "default"},
        {"scaling": Linear(4.0), "name": "default"},
        {"scaling": Yarn.default(4.0), "name": "full_attention"},
    ],
)
def test_a_config_that_means_something_else_never_appears(wrong, checkpoint, tmp_path):
    """If the text does not give the numbers that were asked for, exit status 1, the output's name, and nothing left."""
    conversion = planned(checkpoint)
    other = {wrong["name"]: replace(conversion.intent["default"], scaling=wrong["scaling"])}
    with pytest.raises(CheckFailed) as caught:
        writer.write(replace(conversion, intent=other), tmp_path / "out")
    assert caught.value.exit_status == 1
    assert caught.value.where.startswith(str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_a_config_that_can_not_be_read_back_never_appears(text, checkpoint, tmp_path):
    """The same for a config that is no config; the error names the output, not a folder that is gone."""
    conversion = planned(checkpoint)
    with pytest.raises(CheckFailed) as caught:
        writer.write(replace(conversion, texts={"config.json": text}), tmp_path / "out")
    assert str(tmp_path / "out") in caught.value.message
    assert "/.out-" not in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


SCALINGS = {
    "none": Plain(),
    "linear": Linear(4.0),
    "ntk": Ntk(4.0),
    "ntk-by-parts": NtkByParts(4.0),
    "yarn": Yarn.default(4.0),
    "yarn, own numbers": Yarn(4.0, 0.9, 8.0, 0.5),
    "yarn, not rounded": Yarn(4.0, 1.3, 8.0, 0.5, truncate=False),
    "llama3": Llama3(4.0, 0.5, 8.0),
}


@pytest.mark.parametrize("schema", ["both", "v4", "v5"])
@pytest.mark.parametrize("kind", SCALINGS)
def test_transformers_loads_the_intent(kind, schema, saved_llama, tmp_path):
    """The real AutoModelForCausalLM has the frequencies and the factor that were asked, and the source's weights."""
    conversion = planned(saved_llama, SCALINGS[kind], schema)
    writer.write(conversion, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    wanted = frequencies(conversion.intent["default"])
    rotary = model.model.rotary_emb
    assert rotary.inv_freq.double().tolist() == pytest.approx(wanted.inv_freq, rel=5e-5)
    assert rotary.attention_scaling == pytest.approx(wanted.attention_factor, abs=1e-6)
    assert model.config.max_position_embeddings == conversion.intent["default"].max_length
    original = AutoModelForCausalLM.from_pretrained(saved_llama, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["none", "linear", "yarn", "yarn, own numbers", "yarn, not rounded"])
def test_converting_twice_gives_the_same_texts(kind, checkpoint, tmp_path):
    """The same conversion of its own output has nothing to change."""
    first = planned(checkpoint, SCALINGS[kind])
    writer.write(first, tmp_path / "once")
    second = planned(tmp_path / "once", SCALINGS[kind])
    assert second.texts["config.json"] == first.texts["config.json"]
    assert second.edits == ()
    writer.write(second, tmp_path / "twice")
    assert (tmp_path / "twice" / "config.json").read_bytes() == (tmp_path / "once" / "config.json").read_bytes()


def test_a_byte_order_mark_does_not_reach_the_output(checkpoint, tmp_path):
    """transformers refuses a config with one: the output has none, and all else of the text."""
    path = checkpoint / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    writer.write(planned(checkpoint), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["max_position_embeddings"] == 512


def test_other_keys_and_spellings_of_the_config_survive(checkpoint, tmp_path):
    """Lines of the config that are not about RoPE are the same bytes in the output."""
    text = (checkpoint / "config.json").read_text().replace("1e-06", "1E-6").replace('"llama"', '"\\u006clama"')
    (checkpoint / "config.json").write_text(text)
    writer.write(planned(checkpoint), tmp_path / "out")
    written = (tmp_path / "out" / "config.json").read_text().splitlines()
    kept = [line for line in text.splitlines() if "max_position" not in line and "rope_type" not in line]
    assert all(line in written or line.rstrip(",") + "," in written for line in kept)


def test_a_folder_that_can_not_be_written_is_a_missing_resource(checkpoint, tmp_path, monkeypatch):
    """No right to write is exit status 4, with the path."""

    def refused(*_: Any, **__: Any) -> str:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    with pytest.raises(NoResource, match="Permission denied") as caught:
        writer.write(planned(checkpoint), tmp_path / "out")
    assert caught.value.where == str(tmp_path / "out")


def test_in_place_keeps_a_backup_and_nothing_else_changes(checkpoint, tree):
    """Only the config changes, the old one stays beside it, and a second run does not overwrite the backup."""
    old = (checkpoint / "config.json").read_bytes()
    before = tree(checkpoint)
    conversion = planned(checkpoint)
    receipt = rewrite_in_place(conversion)
    assert (checkpoint / "config.json.backup").read_bytes() == old
    assert (checkpoint / "config.json").read_text("utf-8") == conversion.texts["config.json"]
    assert set(receipt.files) == set(conversion.texts)
    touched = {*conversion.texts, *(f"{name}.backup" for name in conversion.texts)}
    after = tree(checkpoint)
    assert {name for name in after if after[name] != before.get(name)} <= touched | {"."}
    with pytest.raises(OutputExists):
        rewrite_in_place(conversion)


def test_in_place_never_writes_through_a_link(hub_snapshot):
    """A snapshot of the Hub cache is links to blobs; they stay as they are."""
    with pytest.raises(BadUsage, match="link"):
        rewrite_in_place(planned(hub_snapshot))
