"""What several test files share: small checkpoints made by the real transformers, and a look at a folder."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# how fast the machine is has nothing to do with what is right, and an unlucky draw nothing with what was changed;
# `pytest --hypothesis-profile searching` looks for new examples
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("searching", settings.get_profile("steady"), derandomize=False)
settings.load_profile("steady")

Tree = dict[str, tuple[Any, ...]]


def look(folder: Path) -> Tree:
    """Everything under a folder: folders, links with their targets, files with inode, times and content."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        status = path.lstat()
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()), status.st_ino)
        elif path.is_dir():
            found[name] = ("folder",)
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = ("file", status.st_ino, status.st_mtime_ns, status.st_size, digest)
    return found


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], Tree]:
    """The function `look`: two equal results mean that nothing in the folder was touched."""
    return look


@pytest.fixture(scope="session")
def saved_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer Llama in several shards as transformers saves it, with the files that a real repository has."""
    import torch  # noqa: PLC0415 - most tests need neither
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("saved") / "llama"
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="32KB")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    (folder / "tokenizer_config.json").write_text('{\n    "model_max_length": 128,\n    "eos_token": "</s>"\n}\n')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "modeling_own.py").write_text("raise SystemExit('never run')\n")
    (folder / "original" / "deep").mkdir(parents=True)
    (folder / "original" / "deep" / "notes.txt").write_text("kept")
    (folder / "original" / "config.json").write_text('{"not": "the config"}')
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "lock").write_text("")
    return folder


@pytest.fixture
def checkpoint(saved_llama: Path, tmp_path: Path) -> Path:
    """A private copy of `saved_llama` that a test may change."""
    folder = tmp_path / "source"
    shutil.copytree(saved_llama, folder)
    return folder


@pytest.fixture
def hub_snapshot(saved_llama: Path, tmp_path: Path) -> Path:
    """The same as the Hub cache keeps it: a snapshot folder of symbolic links to blobs named by their hash."""
    repo = tmp_path / "hub" / "models--org--name"
    snapshot, blobs = repo / "snapshots" / "0123abcd", repo / "blobs"
    blobs.mkdir(parents=True)
    for path in sorted(saved_llama.rglob("*")):
        relative = path.relative_to(saved_llama)
        if not path.is_file() or ".cache" in relative.parts:
            continue
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = snapshot / relative
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
