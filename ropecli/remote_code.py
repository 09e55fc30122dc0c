"""Which files of a checkpoint `--trust-remote-code` lets run, by what its configs name; nothing is run to find out."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ropecli.checkpoint import Checkpoint, read_json
from ropecli.errors import RopeError

OTHER_CONFIGS = ("tokenizer_config.json", "processor_config.json", "generation_config.json")
GENERATE = "custom_generate/generate.py"


def files_that_would_run(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names as a person finds them: files of the checkpoint, or `file of org/name` for code in another repository.

    What these files import themselves is not followed.
    """
    folder = None if checkpoint.config_path is None else checkpoint.config_path.parent
    configs = [checkpoint.config, *(() if folder is None else _others(folder))]
    found = [name for config in configs for _, name in _named(config)]
    if folder is not None and (folder / GENERATE).is_file():
        found.append(GENERATE)
    return tuple(dict.fromkeys(found))


def model_code(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that hold the model itself, by the same names: those that `auto_map` has for an `AutoModel…` class."""
    return tuple(dict.fromkeys(name for kind, name in _named(config) if kind.startswith("AutoModel")))


def _others(folder: Path) -> Iterator[Mapping[str, Any]]:
    for name in OTHER_CONFIGS:
        try:
            yield read_json(folder / name)[0]
        except RopeError:
            continue  # absent, or broken in a way that loading will name


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(class, file): `auto_map` holds class → "module.Class", "org/name--module.Class", or a list of them.

    Source: transformers 5.24.
    """
    auto_map = config.get("auto_map")
    for kind, entry in auto_map.items() if isinstance(auto_map, dict) else ():
        for reference in entry if isinstance(entry, list) else [entry]:
            if isinstance(reference, str):
                repository, dashes, path = reference.rpartition("--")
                file = path.rpartition(".")[0].replace(".", "/") + ".py"
                yield kind, f"{file} of {repository}" if dashes else file
