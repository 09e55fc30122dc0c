"""A checkpoint as a value: which files it is, what its config says, and the rotary embeddings that this means.

`read_checkpoint` finds out what a name stands for and hands the config to the right dialect; `verify` looks at the
weights' headers. Nothing is ever written, unpickled or executed, and no tensor data is read.
"""

import hashlib
import json
import math
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

from ropecli.dialects import gpt_oss, hf, meta, mistral
from ropecli.dialects.hf_types import type_facts
from ropecli.errors import BadCheckpoint, RopeError
from ropecli.hub import fetched_config
from ropecli.safetensors_header import Problem, TensorInfo, peek_metadata, read_tensor, survey, tensor_headers
from ropecli.spec import LayerRope, Plain
from ropecli.strict_json import CONFIG_BYTES, non_finite_keys, parse_json, read_json

__all__ = [
    "Checkpoint",
    "Format",
    "Problem",
    "TensorInfo",
    "folded_factors",
    "read_checkpoint",
    "read_json",
    "read_tensor",
    "scales_scores",
    "sees_no_text",
    "tensor_headers",
    "verify",
]

Format = Literal["hf", "gguf", "mistral", "meta", "mlx"]
"""How a checkpoint's config is spelled."""

CONFIG_NAMES = ("config.json", "params.json", "adapter_config.json")
"""The files that may hold a folder's config, the most telling first."""

OWN_KEY, FOLDED = "ropecli", "folded_attention_factor"
"""Where a config keeps what its weights hold since `convert --bake attention-factor`: kind of layer → m. Loaders pass
over keys that they do not know, and transformers saves them again."""

TOWERS = ("vision", "visual", "image", "audio")
"""Parts of the names of modules and tensors that see no text, so that their rotary embedding is not the model's."""

REPLACEABLE = ("default", "linear", "ntk", "dynamic", "yarn")
"""Scalings that another one may take the place of; with any other one a checkpoint was trained."""

_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that has been read.

    source       as the user typed it
    format       how the config is spelled
    path         the folder or file; for a Hub id the folder in the Hub cache; None for standard input
    config_path  the file that holds the config; None for standard input
    config       the config as parsed; for GGUF the metadata without its long lists
    config_text  the config's exact text, so that a writer can keep order and number kinds; "" for GGUF
    model_type   the model's name in its own dialect; "" where the config has none
    ropes        one entry for each kind of layer that rotates; empty for a model without a rotary embedding
    notes        what a reader should know: an adapter's base, what was assumed
    """

    source: str
    format: Format
    path: Path | None
    config_path: Path | None
    config: Mapping[str, Any]
    config_text: str
    model_type: str
    ropes: tuple[LayerRope, ...]
    notes: tuple[str, ...] = ()

    @property
    def config_sha256(self) -> str:
        """Of the config as canonical JSON: keys sorted, no spaces, ASCII. Layout and key order do not change it."""
        canonical = json.dumps(self.config, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def sees_no_text(name: str) -> bool:
    """Whether a module or a tensor of this name belongs to a tower for images or sound."""
    return any(part in name for part in TOWERS)


def scales_scores(checkpoint: Checkpoint, rope: LayerRope) -> bool:
    """Whether these layers were trained with a scaling that multiplies the attention scores, too.

    Latent attention (DeepSeek) multiplies them by (1 + 0.1·mscale_all_dim·ln s)²; a GGUF has a tenth of that key as
    `yarn_log_multiplier`. A key up to 1e-3 is but half a spelling of the temperature on cos and sin, as `convert`
    writes it, and moves the scores by less than 0.1 % for every s below 100. Where the file has no scaling, that of the
    model's class counts (Mistral-4).
    """
    if not rope.mla or isinstance(rope.spec.scaling, Plain):
        return False
    by_class = rope.sources.get("factor", "").startswith("default of")
    return _has_magnitude(hf.class_defaults(checkpoint.config, rope.name) if by_class else checkpoint.config)


def _has_magnitude(config: Mapping[str, Any]) -> bool:
    for key, value in config.items():
        if isinstance(value, Mapping):
            if _has_magnitude(value):
                return True
        elif key == "mscale_all_dim" or key.endswith(".yarn_log_multiplier"):
            smallest = 1e-3 if key == "mscale_all_dim" else 1e-4
            if isinstance(value, int | float) and abs(value) > smallest:
                return True
    return False


def folded_factors(config: Mapping[str, Any], source: str) -> dict[str, float]:
    """Kind of layer → the attention factor that its query and key weights hold already; empty for ordinary weights.

    source  what errors call the checkpoint
    Raises BadCheckpoint for a mark that was damaged: what the weights hold is then not known.
    """
    mark = config.get(OWN_KEY)
    found = mark.get(FOLDED) if isinstance(mark, Mapping) else None
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(_is_factor(m) for m in found.values()):
        raise BadCheckpoint(
            f"expected a number above 0 for each kind of layer, found {found!r:.60}",
            where=f"{source}: {OWN_KEY}.{FOLDED}",
            hint="take the config.json that was written with these weights",
        )
    return {str(name): float(m) for name, m in found.items()}


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)


def read_checkpoint(source: str, *, stdin: TextIO | None = None) -> Checkpoint:
    """What `source` names: a folder, a config, a `.safetensors` or `.gguf` file, a Hub id, or `-` for JSON on `stdin`.

    A local file or folder wins over a Hub id of the same name. Of a Hub id (`org/name` or `org/name@revision`) only the
    config is fetched, from the cache alone where `HF_HUB_OFFLINE` is set.

    Raises BadCheckpoint and BadParameter, with the file in front of `where`.
    """
    if source == "-":
        return _from_blob(source, _standard_input(stdin or sys.stdin), "standard input")
    if not source:
        raise BadCheckpoint(
            "expected the name of a checkpoint, found an empty one", hint="is a shell variable not set?"
        )
    return _located(source)


def _located(source: str, *, is_base: bool = False) -> Checkpoint:
    """The checkpoint at a path or of a Hub id; `is_base` where an adapter names it, which may not be one itself."""
    try:
        mode = Path(source).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        if os.path.lexists(source):
            raise BadCheckpoint("is a link that leads nowhere", where=source) from None
        return _from_hub(source, is_base=is_base)
    except OSError as error:
        raise BadCheckpoint(f"cannot be read: {error.strerror or error}", where=source) from error
    try:
        return _from_path(source, Path(source), mode, is_base=is_base)
    except OSError as error:
        raise BadCheckpoint(f"cannot be read: {error.strerror or error}", where=source) from error


def _from_path(source: str, path: Path, mode: int, *, is_base: bool) -> Checkpoint:
    if stat.S_ISDIR(mode):
        return _from_folder(source, path, is_base=is_base)
    if stat.S_ISREG(mode):
        return _from_file(source, path, is_base=is_base)
    if stat.S_ISFIFO(mode) and not is_base:
        with path.open("rb") as pipe:
            return _from_blob(source, pipe.read(CONFIG_BYTES + 1), source)
    raise BadCheckpoint("expected a file or a folder, found a device or a pipe", where=source)


def verify(checkpoint: Checkpoint) -> tuple[Problem, ...]:
    """Everything wrong with the weights: headers against files, types against byte ranges, index against shards.

    Reads headers only. Nothing is raised, so that all of it can be listed.
    """
    if checkpoint.path is None:
        return (Problem("standard input", "a config on standard input has no weights to verify"),)
    if checkpoint.format == "gguf":
        from ropecli.gguf_header import verify_gguf  # noqa: PLC0415 - most checkpoints are none

        return verify_gguf(checkpoint.path)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    try:
        return survey(folder)[1]
    except OSError as error:
        return (Problem(str(folder), f"cannot be read: {error.strerror or error}"),)


def _from_folder(source: str, folder: Path, *, is_base: bool) -> Checkpoint:
    present = [name for name in CONFIG_NAMES if (folder / name).exists()]
    if present:
        return _from_config(source, folder, folder / present[0], is_base=is_base)
    models = _gguf_models(folder)
    if len(models) == 1:
        return _from_gguf(source, models[0])
    if models:
        raise BadCheckpoint(
            f"expected one .gguf file, found {len(models)}: {', '.join(path.name for path in models[:5])}",
            where=str(folder),
            hint=f"name one of them, such as {models[0]}",
        )
    raise BadCheckpoint(
        f"expected config.json, params.json or one .gguf file, found {_listing(folder)}",
        where=str(folder),
        hint="name the folder that holds the config",
    )


def _gguf_models(folder: Path) -> list[Path]:
    """The models in a folder: a split one counts once, and image projectors are no models of their own."""
    files = sorted(path for path in folder.glob("*.gguf") if not path.name.startswith("mmproj"))
    return [path for path in files if not _LATER_PART.search(path.name)]


def _from_file(source: str, path: Path, *, is_base: bool) -> Checkpoint:
    if path.suffix == ".gguf" or is_gguf(path):
        return _from_gguf(source, path)
    if path.suffix == ".safetensors":
        return _from_weights(source, path)
    if path.suffix in {".bin", ".pt", ".pth", ".pkl"}:
        raise BadCheckpoint(
            "expected a config, found a pickle file, which could run code and is never opened",
            where=source,
            hint="name the folder or its config.json",
        )
    return _from_config(source, path, path, is_base=is_base)


def _from_gguf(source: str, path: Path) -> Checkpoint:
    from ropecli.gguf_checkpoint import read_model  # noqa: PLC0415 - most checkpoints are none

    metadata, architecture, ropes, notes = read_model(path)
    return Checkpoint(source, "gguf", path, path, metadata, "", architecture, ropes, notes)


def is_gguf(path: Path) -> bool:
    """Whether a regular file starts as GGUF files do."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _from_weights(source: str, path: Path) -> Checkpoint:
    config_path = path.parent / "config.json"
    if not config_path.exists() or path == config_path:
        raise BadCheckpoint(
            "a safetensors file does not say how it rotates, and no config.json lies beside it", where=source
        )
    return _from_config(source, path, config_path)


def _from_config(source: str, path: Path, config_path: Path, *, is_base: bool = False) -> Checkpoint:
    config, text = read_json(config_path)
    if "weight_map" in config and "model_type" not in config:
        return _from_weights(source, config_path)
    if "base_model_name_or_path" in config and "peft_type" in config:
        if is_base:
            raise BadCheckpoint(
                "expected a whole model as the adapter's base, found an adapter", where=str(config_path)
            )
        return _from_adapter(source, config_path, config)
    try:
        checkpoint = _interpreted(source, config, text)
    except RopeError as error:
        error.at(str(config_path))
        raise
    folder = path if path.is_dir() else path.parent
    is_mlx = checkpoint.format == "hf" and b'"mlx"' in _first_metadata(folder)
    notes = checkpoint.notes
    if config_path.name == "config.json" and (config_path.parent / "params.json").exists():
        notes += ("params.json lies beside config.json and is not read",)
    form: Format = "mlx" if is_mlx else checkpoint.format
    return replace(checkpoint, path=path, config_path=config_path, format=form, notes=notes)


def _from_blob(source: str, blob: bytes, where: str) -> Checkpoint:
    try:
        config, text = parse_json(blob)
        return _interpreted(source, config, text)
    except RopeError as error:
        error.at(where)
        raise


def _interpreted(source: str, config: dict[str, Any], text: str) -> Checkpoint:
    """The config by its keys alone: each dialect has some that no other has."""
    notes = tuple(
        f"{key} is not a finite number, which JSON does not have: only Python's readers accept this file"
        for key in islice(non_finite_keys(config), 3)
    )
    form: Format
    if gpt_oss.matches(config):
        form, model_type, ropes = "hf", "gpt_oss", gpt_oss.read(config)
    elif mistral.matches(config):
        form, model_type, ropes = "mistral", "mistral", mistral.read(config)
    elif meta.matches(config):
        form, model_type, ropes = "meta", "llama", meta.read(config)
    else:
        form = "mlx" if _is_mlx_quantization(config.get("quantization")) else "hf"
        model_type, ropes = hf.model_type(config), hf.read(config)
        if ropes and not type_facts(model_type, alone=True).known:
            notes += (_unknown(model_type),)
    return Checkpoint(source, form, None, None, config, text, model_type, ropes, notes)


def _unknown(model_type: str) -> str:
    named = f"model type {model_type:.60} is not known here" if model_type else "the config names no model type"
    return f"{named}: what is said of runtimes holds where they read it as they read other models"


def _is_mlx_quantization(value: object) -> bool:
    return isinstance(value, dict) and "group_size" in value and "bits" in value


def _first_metadata(folder: Path) -> bytes:
    # a glob would make a path of every file, for each of the thousands of configs that may lie in one folder
    with os.scandir(folder) as entries:
        first = min((entry.name for entry in entries if entry.name.endswith(".safetensors")), default=None)
    return peek_metadata(folder / first) if first else b""


def _from_adapter(source: str, config_path: Path, config: Mapping[str, Any]) -> Checkpoint:
    base = config["base_model_name_or_path"]
    where = f"{config_path}: base_model_name_or_path"
    if not isinstance(base, str) or not base or base == "-":
        raise BadCheckpoint(f"expected the name of the base model, found {base!r:.60}", where=where)
    beside = config_path.parent / base
    place = str(beside) if not Path(base).exists() and beside.is_dir() else base
    try:
        checkpoint = _located(place, is_base=True)
    except RopeError as error:
        error.at(where)
        raise
    note = f"{config_path} is an adapter: what is shown is its base model, {base}"
    return replace(checkpoint, source=source, notes=(note, *checkpoint.notes))


def _from_hub(source: str, *, is_base: bool) -> Checkpoint:
    """A name that is no local path: a Hub id if it looks like one, else a mistake."""
    found = _HUB_ID.fullmatch(source)
    nearest = _nearest(Path(source))
    if not found or nearest:
        hint = f"did you mean {nearest}?" if nearest else "a Hub id looks like org/name or org/name@revision"
        raise BadCheckpoint("no such file or folder", where=source, hint=hint)
    config_path = fetched_config(source, found["repo"], found["revision"], CONFIG_NAMES)
    checkpoint = _from_config(source, config_path, config_path, is_base=is_base)
    if checkpoint.config_path == config_path:
        return replace(checkpoint, path=config_path.parent)
    return checkpoint


def _nearest(path: Path) -> Path | None:
    """An existing name that the user may have meant; nothing where the parent does not exist either."""
    import difflib  # noqa: PLC0415 - only a mistyped path pays for it

    try:
        names = [entry.name for entry in islice(path.parent.iterdir(), 10_000)]
    except (OSError, ValueError):
        return None
    close = difflib.get_close_matches(path.name, names, n=1)
    return path.parent / close[0] if close else None


def _standard_input(stream: TextIO) -> bytes:
    raw = getattr(stream, "buffer", None)
    if raw is not None:
        blob = raw.read(CONFIG_BYTES + 1)
        return blob if isinstance(blob, bytes) else b""
    return stream.read(CONFIG_BYTES + 1).encode("utf-8", "surrogatepass")


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in islice(folder.iterdir(), 1000))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "an empty folder"
