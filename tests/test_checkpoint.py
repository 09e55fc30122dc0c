"""`ropecli.checkpoint`: what a name stands for, and one clear line for everything that it can not stand for."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
from configs import LLAMA
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors as hub_errors
from safetensors.numpy import save_file

from ropecli import hub
from ropecli.checkpoint import read_checkpoint, verify
from ropecli.errors import BadCheckpoint, RopeError
from ropecli.spec import Plain, Yarn

MISTRAL: dict[str, Any] = {"dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 128, "n_heads": 4, "rope_theta": 1e6}
META: dict[str, Any] = {"dim": 64, "n_layers": 2, "n_heads": 4, "multiple_of": 256, "norm_eps": 1e-5}
GPT_OSS: dict[str, Any] = {
    "num_hidden_layers": 2,
    "head_dim": 64,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
}


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_gguf(path: Path, *, arch: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))


def in_hub_cache(tmp_path: Path, repo: str, files: Mapping[str, object], revision: str = "main") -> Path:
    """Lays a repository out as huggingface_hub caches it: a reference, and a snapshot of links into the blobs."""
    place = tmp_path / "hub-cache" / f"models--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name, value in files.items():
        blob = place / "blobs" / hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        write_json(blob, value)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


class TestEveryKindOfFile:
    """Each way to name a checkpoint gives the same value."""

    def test_folder(self, tmp_path: Path) -> None:
        """A folder is read through its config.json, and says where it was found."""
        write_json(tmp_path / "config.json", LLAMA)
        found = read_checkpoint(str(tmp_path))
        assert (found.format, found.model_type, found.path) == ("hf", "llama", tmp_path)
        assert found.config_path == tmp_path / "config.json"
        assert [(rope.name, rope.layers, rope.spec.rope_theta) for rope in found.ropes] == [("default", 2, 10000.0)]

    def test_config_file_under_any_name(self, tmp_path: Path) -> None:
        """A JSON file is a config whatever it is called, and keeps its exact text."""
        path = tmp_path / "my config.json"
        text = json.dumps(LLAMA, indent=3) + "\n\n"
        path.write_text(text)
        assert read_checkpoint(str(path)).config_text == text

    def test_byte_order_mark_is_tolerated(self, tmp_path: Path) -> None:
        """A config saved with a byte order mark reads as one without."""
        path = tmp_path / "config.json"
        path.write_text(json.dumps(LLAMA), encoding="utf-8-sig")
        assert read_checkpoint(str(path)).config == LLAMA

    def test_standard_input(self) -> None:
        """A dash stands for a config on standard input, which has no path."""
        found = read_checkpoint("-", stdin=io.StringIO(json.dumps(LLAMA)))
        assert (found.model_type, found.path, found.config_path) == ("llama", None, None)

    def test_standard_input_in_bytes(self) -> None:
        """Standard input is read as bytes where it has them, so that the locale does not matter."""
        raw = io.BytesIO(json.dumps(LLAMA | {"note": "β"}, ensure_ascii=False).encode())
        found = read_checkpoint("-", stdin=io.TextIOWrapper(raw, encoding="ascii"))
        assert found.config["note"] == "β"

    def test_named_pipe(self) -> None:
        """A pipe, as the shell's <(...) gives one, is read like standard input."""
        read_end, write_end = os.pipe()
        os.write(write_end, json.dumps(LLAMA).encode())
        os.close(write_end)
        try:
            assert read_checkpoint(f"/dev/fd/{read_end}").model_type == "llama"
        finally:
            os.close(read_end)

    def test_safetensors_file(self, tmp_path: Path) -> None:
        """A weights file stands for the config beside it."""
        write_json(tmp_path / "config.json", LLAMA)
        save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
        assert read_checkpoint(str(tmp_path / "model.safetensors")).model_type == "llama"

    def test_index_file(self, tmp_path: Path) -> None:
        """A weights index stands for the config beside it."""
        write_json(tmp_path / "config.json", LLAMA)
        index = write_json(tmp_path / "model.safetensors.index.json", {"metadata": {}, "weight_map": {}})
        assert read_checkpoint(str(index)).model_type == "llama"

    @pytest.mark.parametrize("as_folder", [True, False])
    def test_gguf(self, tmp_path: Path, *, as_folder: bool) -> None:
        """A GGUF file, and a folder that holds one and an image projector, read alike."""
        path = write_gguf(tmp_path / "model-Q4.gguf")
        write_gguf(tmp_path / "mmproj-model.gguf", arch="clip")
        found = read_checkpoint(str(tmp_path if as_folder else path))
        assert (found.format, found.model_type, found.path) == ("gguf", "llama", path)
        assert found.config["llama.block_count"] == 2
        assert found.config_text == ""

    def test_gguf_without_its_suffix(self, tmp_path: Path) -> None:
        """A GGUF file is known by its first bytes, as in a cache of blobs without suffixes."""
        assert read_checkpoint(str(write_gguf(tmp_path / "sha256-1234"))).format == "gguf"

    @pytest.mark.parametrize(
        ("config", "form", "model_type"),
        [(MISTRAL, "mistral", "mistral"), (META, "meta", "llama"), (GPT_OSS, "hf", "gpt_oss"), (LLAMA, "hf", "llama")],
        ids=["mistral", "meta", "gpt-oss", "hf"],
    )
    @pytest.mark.parametrize("name", ["params.json", "config.json"])
    def test_dialect_follows_from_the_keys(
        self, tmp_path: Path, config: dict[str, Any], form: str, model_type: str, name: str
    ) -> None:
        """A folder's dialect follows from the keys of its config, not from the file's name."""
        write_json(tmp_path / name, config)
        found = read_checkpoint(str(tmp_path))
        assert (found.format, found.model_type) == (form, model_type)

    def test_config_before_params(self, tmp_path: Path) -> None:
        """Of two configs side by side the Hugging Face one is read, and a note names the other."""
        write_json(tmp_path / "config.json", LLAMA)
        write_json(tmp_path / "params.json", MISTRAL)
        found = read_checkpoint(str(tmp_path))
        assert found.format == "hf"
        assert found.notes == ("params.json lies beside config.json and is not read",)

    def test_mlx_by_its_quantization(self, tmp_path: Path) -> None:
        """MLX's quantization block tells an MLX folder from a Hugging Face one; another's does not."""
        write_json(tmp_path / "a" / "config.json", LLAMA | {"quantization": {"group_size": 64, "bits": 4}})
        write_json(tmp_path / "b" / "config.json", LLAMA | {"quantization_config": {"group_size": 64, "bits": 4}})
        assert read_checkpoint(str(tmp_path / "a")).format == "mlx"
        assert read_checkpoint(str(tmp_path / "b")).format == "hf"

    @pytest.mark.parametrize(("framework", "form"), [("mlx", "mlx"), ("pt", "hf")])
    def test_mlx_by_its_weights(self, tmp_path: Path, framework: str, form: str) -> None:
        """MLX's mark in the weights tells a full-precision MLX folder from a Hugging Face one."""
        write_json(tmp_path / "config.json", LLAMA)
        save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors", {"format": framework})
        assert read_checkpoint(str(tmp_path)).format == form


class TestAdapters:
    """An adapter says which model it belongs to; that model is read."""

    @staticmethod
    def adapter(folder: Path, base: object) -> Path:
        write_json(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": base})
        return folder

    def test_base_in_a_folder(self, tmp_path: Path) -> None:
        """An adapter of a local model gives the model's embedding, and a note says so."""
        write_json(tmp_path / "base" / "config.json", LLAMA)
        found = read_checkpoint(str(self.adapter(tmp_path / "adapter", str(tmp_path / "base"))))
        assert found.path == tmp_path / "base"
        assert found.source == str(tmp_path / "adapter")
        assert "is an adapter" in found.notes[0]

    def test_base_beside_the_adapter(self, tmp_path: Path) -> None:
        """A relative base is looked for from the adapter's own folder, too."""
        write_json(tmp_path / "base" / "config.json", LLAMA)
        assert read_checkpoint(str(self.adapter(tmp_path / "adapter", "../base"))).model_type == "llama"

    def test_base_on_the_hub(self, tmp_path: Path) -> None:
        """A base that is a Hub id is read from the cache."""
        in_hub_cache(tmp_path, "org/base", {"config.json": LLAMA})
        assert read_checkpoint(str(self.adapter(tmp_path / "adapter", "org/base"))).model_type == "llama"

    @pytest.mark.parametrize("base", [None, "", 3, "-", ["x"], "no/such/place", "a\0b", "\ud800"])
    def test_base_that_is_none(self, tmp_path: Path, base: object) -> None:
        """A base that cannot be found is reported under the adapter's key."""
        with pytest.raises(BadCheckpoint) as caught:
            read_checkpoint(str(self.adapter(tmp_path / "adapter", base)))
        assert "adapter_config.json: base_model_name_or_path" in caught.value.where

    def test_adapters_of_each_other(self, tmp_path: Path) -> None:
        """Adapters that name each other, or themselves, end in an error instead of a loop."""
        first = self.adapter(tmp_path / "first", str(tmp_path / "second"))
        self.adapter(tmp_path / "second", str(tmp_path / "first"))
        itself = tmp_path / "self"
        self.adapter(itself, str(itself / "adapter_config.json"))
        for folder in (first, itself):
            with pytest.raises(BadCheckpoint, match="found an adapter"):
                read_checkpoint(str(folder))


class TestHub:
    """A Hub id stands for the config in the Hub's cache; nothing but the config is asked for."""

    def test_cached(self, tmp_path: Path) -> None:
        """A cached repository is read offline; its path is the snapshot."""
        snapshot = in_hub_cache(tmp_path, "org/model", {"config.json": LLAMA})
        found = read_checkpoint("org/model")
        assert (found.source, found.path, found.model_type) == ("org/model", snapshot, "llama")

    def test_environment(self, tmp_path: Path) -> None:
        """HF_HOME and HF_HUB_OFFLINE are honoured, as by every tool of the Hub."""
        in_hub_cache(tmp_path, "org/model", {"config.json": LLAMA})
        (tmp_path / "hub-cache").rename(tmp_path / "hub")
        program = "from ropecli.checkpoint import read_checkpoint; print(read_checkpoint('org/model').model_type)"
        environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        environment.pop("HF_HUB_CACHE", None)
        done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
        assert (done.stdout, done.stderr) == (b"llama\n", b"")

    def test_revision(self, tmp_path: Path) -> None:
        """What follows an @ is the revision."""
        in_hub_cache(tmp_path, "org/model", {"config.json": LLAMA}, revision="v2")
        assert read_checkpoint("org/model@v2").model_type == "llama"
        with pytest.raises(BadCheckpoint, match="not in the cache"):
            read_checkpoint("org/model@v3")

    def test_local_folder_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A local folder named like a Hub id is read instead of it."""
        in_hub_cache(tmp_path, "org/model", {"config.json": LLAMA})
        write_json(tmp_path / "org" / "model" / "config.json", LLAMA | {"rope_theta": 5.0})
        monkeypatch.chdir(tmp_path)
        assert read_checkpoint("org/model").ropes[0].spec.rope_theta == 5.0

    def test_mistyped_local_path_is_not_looked_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A near miss of a local folder is a mistake, and the hint names the folder."""
        write_json(tmp_path / "models" / "tiny" / "config.json", LLAMA)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
        with pytest.raises(BadCheckpoint, match="no such file or folder") as caught:
            read_checkpoint("models/tinny")
        assert caught.value.hint == "did you mean models/tiny?"

    def test_asks_for_configs_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only files that hold configs are asked for, in order, until one is there."""
        asked: list[tuple[str, str, str | None]] = []

        def download(repo: str, name: str, revision: str | None = None) -> str:
            asked.append((repo, name, revision))
            raise hub_errors.EntryNotFoundError(name)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        with pytest.raises(BadCheckpoint, match=re.escape("none of config.json, params.json, adapter_config.json")):
            read_checkpoint("org/model@v1")
        assert asked == [("org/model", name, "v1") for name in ("config.json", "params.json", "adapter_config.json")]

    @pytest.mark.parametrize(
        "error",
        [
            hub_errors.LocalEntryNotFoundError("offline"),
            hub_errors.HFValidationError("Repo id must be ...\nlong"),
            ConnectionError("name resolution"),
            # These three want a response of the server; their constructors are passed by.
            hub_errors.GatedRepoError.__new__(hub_errors.GatedRepoError),
            hub_errors.RevisionNotFoundError.__new__(hub_errors.RevisionNotFoundError),
            hub_errors.RepositoryNotFoundError.__new__(hub_errors.RepositoryNotFoundError),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_failures_are_one_line(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        """What goes wrong at the Hub is said in one line with a hint."""

        def download(*_: object, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        with pytest.raises(BadCheckpoint) as caught:
            hub.fetched_config("org/model", "org/model", None, ["config.json"])
        assert "\n" not in caught.value.message
        assert caught.value.hint
        assert caught.value.where == "org/model"


class TestMistakes:
    """What is no checkpoint is refused with exit status 3, the place and a hint."""

    def refused(self, source: Path | str) -> BadCheckpoint:
        with pytest.raises(BadCheckpoint) as caught:
            read_checkpoint(str(source))
        assert caught.value.exit_status == 3
        assert str(source) in caught.value.message or not str(source).isprintable()
        return caught.value

    def test_missing_path(self, tmp_path: Path) -> None:
        """A path that does not exist is named, with the nearest one that does."""
        (tmp_path / "model").mkdir()
        error = self.refused(tmp_path / "modle")
        assert error.problem == "no such file or folder"
        assert error.hint == f"did you mean {tmp_path / 'model'}?"

    @pytest.mark.parametrize("name", ["x" * 5000, "a/b/c/d", "a\0b", "\ud800", "../..a/x"])
    def test_names_that_nothing_can_have(self, name: str) -> None:
        """Names that are too long, or hold characters that no path can have, are refused alike."""
        with pytest.raises(BadCheckpoint):
            read_checkpoint(name)

    def test_empty_name(self) -> None:
        """An empty name is not the current folder: most often a shell variable was not set."""
        with pytest.raises(BadCheckpoint, match="empty"):
            read_checkpoint("")

    def test_empty_folder(self, tmp_path: Path) -> None:
        """A folder without a config says what was looked for and what is there."""
        assert "found an empty folder" in self.refused(tmp_path).problem

    def test_several_gguf(self, tmp_path: Path) -> None:
        """A folder with several GGUF files lists them instead of choosing."""
        for name in ("a.gguf", "b.gguf"):
            write_gguf(tmp_path / name)
        assert "a.gguf, b.gguf" in self.refused(tmp_path).problem

    def test_pickle(self, tmp_path: Path) -> None:
        """A pickle is refused by its name, unopened."""
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(b"\x80\x04.")
        assert "never opened" in self.refused(path).problem

    def test_weights_without_config(self, tmp_path: Path) -> None:
        """Weights alone do not say how a model rotates."""
        save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
        assert "no config.json" in self.refused(tmp_path / "model.safetensors").problem

    def test_config_that_is_an_index(self, tmp_path: Path) -> None:
        """A config.json that holds a weights index ends in an error instead of a loop."""
        write_json(tmp_path / "config.json", {"weight_map": {}})
        self.refused(tmp_path)

    def test_device(self) -> None:
        """A device is refused without being read."""
        assert "device" in self.refused("/dev/zero").problem

    def test_pipe_inside_a_folder(self, tmp_path: Path) -> None:
        """A pipe in place of a config is refused: opening it would wait forever."""
        os.mkfifo(tmp_path / "config.json")
        assert "regular file" in self.refused(tmp_path).problem

    def test_dangling_link_and_loop(self, tmp_path: Path) -> None:
        """A link to nowhere and a loop of links are said to be so."""
        (tmp_path / "gone").symlink_to(tmp_path / "nothing")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert "leads nowhere" in self.refused(tmp_path / "gone").problem
        assert "cannot be read" in self.refused(tmp_path / "loop").problem

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_unreadable(self, tmp_path: Path) -> None:
        """A file without permission to read is said to be so."""
        path = write_json(tmp_path / "config.json", LLAMA)
        path.chmod(0)
        assert "cannot be read" in self.refused(tmp_path).problem

    def test_errors_of_a_dialect_name_the_file(self, tmp_path: Path) -> None:
        """What a dialect refuses is reported under the file and the key."""
        path = write_json(tmp_path / "params.json", MISTRAL | {"rope_theta": -1})
        with pytest.raises(RopeError) as caught:
            read_checkpoint(str(tmp_path))
        assert caught.value.where == f"{path}: rope_theta"
        assert caught.value.exit_status == 3

    def test_control_characters_stay_off_the_terminal(self, tmp_path: Path) -> None:
        """A key with terminal escapes appears escaped in the message."""
        path = tmp_path / "config.json"
        path.write_text('{"\\u001b[31m": 1, "\\u001b[31m": 2}')
        assert "\x1b" not in self.refused(path).message


def test_not_finite_numbers_are_noted() -> None:
    """Numbers that JSON does not have are no reason to refuse a config where RoPE does not use them, but are noted."""
    text = json.dumps(LLAMA | {"time_step_limit": [0.0, float("inf")]})
    found = read_checkpoint("-", stdin=io.StringIO(text))
    assert found.notes[0].startswith("time_step_limit[1] is not a finite number")
    with pytest.raises(RopeError) as caught:
        read_checkpoint("-", stdin=io.StringIO(json.dumps(LLAMA | {"rope_theta": float("nan")})))
    assert caught.value.where == "standard input: rope_theta"


def test_sha256_ignores_layout_and_order() -> None:
    """The config's hash is of its content: key order and spaces do not matter, values do."""
    texts = [json.dumps(LLAMA), json.dumps(dict(reversed(LLAMA.items())), indent=1), json.dumps(LLAMA | {"x": 1})]
    same, reordered, other = (read_checkpoint("-", stdin=io.StringIO(text)).config_sha256 for text in texts)
    assert same == reordered != other
    assert same == hashlib.sha256(json.dumps(LLAMA, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_sha256_of_lone_surrogates() -> None:
    """A config with half a character still has a hash."""
    text = json.dumps(LLAMA | {"x": "\ud800"})
    assert len(read_checkpoint("-", stdin=io.StringIO(text)).config_sha256) == 64


def test_verify_standard_input() -> None:
    """There are no weights to verify behind a config on standard input."""
    assert "no weights" in verify(read_checkpoint("-", stdin=io.StringIO(json.dumps(LLAMA))))[0].problem


def test_verify_gguf(tmp_path: Path) -> None:
    """A whole GGUF file has no problems."""
    assert verify(read_checkpoint(str(write_gguf(tmp_path / "m.gguf")))) == ()


def test_scaling_survives_the_whole_way(tmp_path: Path) -> None:
    """A YaRN config and a plain one come out as what they are."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    write_json(tmp_path / "config.json", LLAMA | {"rope_scaling": yarn})
    assert isinstance(read_checkpoint(str(tmp_path)).ropes[0].spec.scaling, Yarn)
    write_json(tmp_path / "config.json", LLAMA)
    assert isinstance(read_checkpoint(str(tmp_path)).ropes[0].spec.scaling, Plain)
