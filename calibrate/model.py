"""Load a causal language model and its tokenizer as they are, or say in one line why not."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.distributed import DistributedConfig

from calibrate import attention, parallel, precision
from calibrate.corpus import Encode, Encoded, encoded_in_pieces
from calibrate.cost import Shape, shape_of
from ropecli.checkpoint import read_json, tensor_headers
from ropecli.errors import BadCheckpoint, BadUsage, NoResource, RopeError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

TOKENIZER_FILES = ("*token*", "*.model", "vocab*", "merges.txt", "*.tiktoken", "tekken.json")
"""Of these a folder has at least one where its tokenizer can be loaded."""


def bytes_of(dtype: str) -> int:
    """Of one number of a dtype by name."""
    return int(DTYPES[dtype].itemsize)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is loaded; every value is as the command line gives it.

    tensor_parallel  processes of a torchrun that hold one copy of the model together
    """

    device: str = "auto"
    dtype: str = "auto"
    device_map: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Text → token ids without any special token, and the BOS token where the tokenizer puts one in front."""

    encode: Encode
    bos: int | None


@dataclass(slots=True)
class Room:
    """What was learnt of the memory when it ran out.

    tell    is told of it once, in a line
    tokens  the most that are scored at once from then on; None as long as it has not run out
    """

    tell: Callable[[str], object] = lambda _: None
    tokens: int | None = None

    def ran_out(self, windows: int, length: int) -> int:
        """How many windows to try next where so many of `length` tokens each were too many; at least two were."""
        if self.tokens is None:
            self.tell(
                f"out of memory with {windows} windows of {length} tokens at once: goes on with fewer; "
                "--dtype bfloat16, shorter windows or --device-map auto make room"
            )
        self.tokens = windows // 2 * length
        return windows // 2


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode with gradients off, its tokenizer's encoder, and where its inputs go.

    dequantised  whether it comes from a GGUF, whose weights transformers turns into plain floats on loading
    ranks  the processes that share the windows
    float32_attention  whether long windows are scored with `attention.in_float32`
    stored_as  the weights' dtype in the checkpoint, where `precision` has it computed in another one
    room  what was learnt of the memory
    """

    model: Any
    encode: Encode
    bos: int | None
    device: torch.device
    ranks: parallel.Ranks = parallel.ALONE
    dequantised: bool = False
    float32_attention: bool = False
    stored_as: str | None = None
    room: Room = field(default_factory=Room)

    @property
    def dtype(self) -> str:
        """Name of the parameters' dtype, for the record."""
        return _name(self.model.dtype)

    def attention(self, length: int) -> str:
        """Name of the attention that scores windows of `length` tokens, for the record."""
        name = getattr(self.model.config, "_attn_implementation", None) or "own"
        return f"float32 {name}" if self.float32_attention and length > attention.LONGER_THAN else name


def pick_device(wanted: str, ranks: parallel.Ranks = parallel.ALONE) -> torch.device:
    """`auto` is cuda, then mps, then cpu. Raises BadUsage for a device that is not here.

    Of several ranks on a machine each takes its own GPU, unless one is named by its number.
    """
    if wanted == "auto":
        if not torch.cuda.is_available():
            return torch.device("mps" if torch.backends.mps.is_available() and ranks.size == 1 else "cpu")
        if ranks.size == 1:
            return torch.device("cuda")
        wanted = "cuda"
    if wanted == "cuda" and ranks.size > 1:
        wanted = f"cuda:{ranks.local}"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise BadUsage(f"unknown device {wanted!r}", where="--device", hint="auto, cpu, cuda, cuda:1, mps") from error
    try:
        if device.type != "meta":
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError, NotImplementedError):
        pass
    raise BadUsage(f"this machine has no {wanted}", where="--device", hint="try --device auto")


def _source(source: str) -> tuple[str, dict[str, Any]]:
    """What to give `from_pretrained`: a GGUF is a file inside a folder, everything else a folder or a Hub id.

    A Hub id may end in `@revision`; a folder of such a name is a folder.
    """
    if source.lower().endswith(".gguf"):
        folder, _, name = source.rpartition("/")
        return folder or ".", {"gguf_file": name}
    repo, at, revision = source.partition("@")
    if at and not Path(source).exists():
        return repo, {"revision": revision}
    return source, {}


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch's CPU and MPS allocators say so in a bare RuntimeError."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in text
        or "MPS backend out of memory" in text
    )


def _refuse_gaps(source: str, info: Mapping[str, Any]) -> None:
    """transformers fills what the weights lack with random numbers; a loss of those would mean nothing."""
    for name, found, expected in sorted(info["mismatched_keys"], key=str):
        raise BadCheckpoint(f"expected the shape {list(expected)}, found {list(found)}", where=f"{source}: {name}")
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
        raise BadCheckpoint(
            f"the weights lack {missing[0]}{more}", where=source, hint="download the missing files again"
        )


def _check_before_loading(name: str) -> None:
    """Refuse what transformers would spend minutes on, or fail on far from the cause. Looks at headers alone.

    A folder whose config promises more layers than its weights have tensors is none; broken headers are named.
    """
    folder = Path(name)
    config_path = folder / "config.json"
    if not folder.is_dir() or not config_path.is_file():
        return
    config, _ = read_json(config_path)
    tensors = tensor_headers(folder)
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(tensors):
        raise BadCheckpoint(
            f"promises {layers:,} layers, the weights have {len(tensors):,} tensors",
            where=f"{config_path}: num_hidden_layers",
            hint="the config and the weights belong to different models",
        )


def check_settings(settings: Settings) -> None:
    """Refuse what cannot be, before anything is read. Raises BadUsage."""
    ranks = parallel.here()
    if settings.dtype != "auto" and settings.dtype not in DTYPES:
        raise BadUsage(f"unknown dtype {settings.dtype!r}", where="--dtype", hint=f"auto, {', '.join(DTYPES)}")
    if settings.attn_implementation and "/" in settings.attn_implementation and not settings.trust_remote_code:
        raise BadUsage(
            f"{settings.attn_implementation!r} is code from the Hub",
            where="--attn-implementation",
            hint="--trust-remote-code lets it run",
        )
    if settings.device_map is None:
        return
    if ranks.tensor > 1:
        raise BadUsage("give one of --device-map and --tensor-parallel")
    if ranks.size > 1 and ranks.on_this_machine > 1:
        raise BadUsage(
            f"{ranks.on_this_machine} ranks on one machine would spread their models over the same devices",
            where="--device-map",
            hint="start one process a machine, or use --tensor-parallel",
        )


def _refuse_shares(source: str, config: Any, device: torch.device, ranks: parallel.Ranks) -> None:
    """What cannot be cut into equal parts, before any weight is read."""
    text = config.get_text_config()
    heads = {name: getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    for name, count in heads.items():
        if isinstance(count, int) and count % ranks.tensor:
            raise BadUsage(
                f"{name} is {count}, which {ranks.tensor} ranks cannot share",
                where=f"{source}: --tensor-parallel",
                hint="give a divisor of both numbers of heads",
            )
    if device.type != ("cuda" if torch.cuda.is_available() else "cpu"):
        raise BadUsage(f"tensor parallelism uses the GPUs here, not {device}", where="--device", hint="--device auto")


def _kind(name: str, extra: Mapping[str, Any]) -> Any:
    """transformers' loader for the architecture of a checkpoint."""
    if "gguf_file" in extra:
        return transformers.AutoModelForCausalLM
    return _kind_of(transformers.AutoConfig.from_pretrained(name, **extra))


def _kind_of(config: Any) -> Any:
    """Models of text, or those that see images too where there is no other: without images they are models of text."""
    sees = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    only = sees and type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.AutoModelForImageTextToText if only else transformers.AutoModelForCausalLM


@contextlib.contextmanager
def _loading(source: str, settings: Settings) -> Iterator[None]:
    """Make one line of whatever transformers raises."""
    try:
        yield
    except RopeError:
        raise
    # tokenizers, safetensors and a checkpoint's own code raise any kind
    except Exception as error:
        if is_out_of_memory(error):
            raise NoResource("the model does not fit in memory", where=source, hint="try --dtype bfloat16") from error
        line = str(error).strip().partition("\n")[0]
        if isinstance(error, ImportError) and settings.attn_implementation:
            raise NoResource(line, where="--attn-implementation", hint="install it, or try sdpa or eager") from error
        for option, value in (
            ("--attn-implementation", settings.attn_implementation),
            ("--device-map", settings.device_map),
        ):
            if value and option[2:].replace("-", "_") in str(error):
                raise BadUsage(f"{value!r} cannot be used: {line}", where=option) from error
        raise BadCheckpoint(
            f"transformers {transformers.__version__} cannot load it: {type(error).__name__}: {line}",
            where=source,
            hint="`ropecli inspect --verify` checks the files; code inside a checkpoint needs --trust-remote-code",
        ) from error


def load_tokenizer(source: str, settings: Settings) -> Tokenizer:
    """The tokenizer alone, without weights; `source` is as in `load`. Raises BadCheckpoint."""
    name, extra = _source(source)
    folder = Path(name)
    if folder.is_dir() and not extra and not any(found for kind in TOKENIZER_FILES for found in folder.glob(kind)):
        raise BadCheckpoint(
            "no tokenizer lies beside the weights", where=source, hint="copy tokenizer.json of the model there"
        )
    with _loading(source, settings):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            name, trust_remote_code=settings.trust_remote_code, **extra
        )

        def whole(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

        def piece(text: str) -> Encoded:
            (found,) = tokenizer(text, add_special_tokens=False, verbose=False).encodings
            return Encoded(found.ids, found.word_ids, [start for start, _ in found.offsets])

        def encode(text: str, most: int | None = None) -> list[int]:
            in_pieces = getattr(tokenizer, "is_fast", False)
            return encoded_in_pieces(whole, piece, text, most) if in_pieces else whole(text)

        with_specials = tokenizer("a", verbose=False).input_ids
    opens_with_bos = bool(with_specials) and with_specials[0] == tokenizer.bos_token_id
    return Tokenizer(encode, tokenizer.bos_token_id if opens_with_bos else None)


def load(source: str, settings: Settings, tokenizer: Tokenizer | None = None) -> LoadedModel:
    """Load the checkpoint for scoring: a folder, a GGUF file, or a Hub id with or without `@revision`.

    Pickle files are never opened.
    Weights keep the checkpoint's own dtype unless `settings.dtype` names one, or a CPU is far slower in it than in
    float32 (see `precision`); rotary tables stay float32. Under torchrun each rank takes a device of its own, and with
    tensor parallelism a part of every layer (the plan that transformers has for the architecture).
    Raises BadUsage for an unknown device or dtype and for a tensor parallelism that does not fit, BadCheckpoint when
    transformers cannot load it or the weights do not fill the model, NoResource when memory runs out.
    """
    ranks = parallel.here()
    check_settings(settings)
    device = pick_device(settings.device, ranks)
    name, extra = _source(source)
    if "gguf_file" not in extra:
        _check_before_loading(name)
    tokenizer = tokenizer or load_tokenizer(source, settings)
    extra["trust_remote_code"] = settings.trust_remote_code
    options: dict[str, Any] = {"dtype": DTYPES.get(settings.dtype, "auto"), **extra}
    if "gguf_file" not in extra:
        options["use_safetensors"] = True
    if settings.attn_implementation:
        options["attn_implementation"] = settings.attn_implementation
    if settings.device_map:
        options["device_map"] = settings.device_map
    with _loading(source, settings):
        if ranks.tensor > 1:
            _refuse_shares(source, transformers.AutoConfig.from_pretrained(name, **extra), device, ranks)
            options["distributed_config"] = DistributedConfig(tp_size=ranks.tensor)
        model, info = _kind(name, extra).from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        # ranks on several machines must compute alike
        stored_as = _name(model.dtype) if ranks.any(_slow_here(model, device, settings)) else None
        if stored_as:
            model = model.float()
        if settings.device_map is None and ranks.tensor == 1:
            model = model.to(device)
    _refuse_gaps(source, info)
    if settings.device_map is not None:
        device = model.get_input_embeddings().weight.device
    model.eval().requires_grad_(False)
    rows = int(model.get_input_embeddings().num_embeddings)

    def encode(text: str, most: int | None = None) -> list[int]:
        return refuse_unknown(tokenizer.encode(text, most), rows, source)

    float32_attention = settings.attn_implementation is None and _prefers_float32_attention(model, device)
    return LoadedModel(model, encode, tokenizer.bos, device, ranks, "gguf_file" in extra, float32_attention, stored_as)


def _slow_here(model: Any, device: torch.device, settings: Settings) -> bool:
    """Whether float32 is computed instead of the weights' own dtype; never where another one was asked for."""
    own = settings.dtype == "auto" and settings.device_map is None and settings.tensor_parallel == 1
    quantised = getattr(model, "hf_quantizer", None) is not None
    able = own and device.type == "cpu" and not quantised
    return able and precision.float32_pays(model.dtype, model.num_parameters())


def _prefers_float32_attention(model: Any, device: torch.device) -> bool:
    return (
        device.type == "cpu"
        and model.dtype == torch.bfloat16
        and model.config._attn_implementation == "sdpa"
        and attention.pays_here()
    )


def refuse_unknown(ids: list[int], rows: int, source: str) -> list[int]:
    """The token ids, where the model has an embedding for each of them; `rows` is how many it has.

    Raises BadCheckpoint.
    """
    if max(ids, default=0) >= rows:
        raise BadCheckpoint(
            f"the tokenizer gives token {max(ids)}, the model has the tokens 0 to {rows - 1}",
            where=source,
            hint="tokenizer.json belongs to another model, or tokens were added without resizing the embeddings",
        )
    return ids


def without_weights(source: str, settings: Settings) -> tuple[Shape, str]:
    """(shape, dtype that it would be loaded in) of a checkpoint of which the config alone is read.

    Raises BadCheckpoint as `load` does.
    """
    name, extra = _source(source)
    with _loading(source, settings):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=settings.trust_remote_code, **extra)
        with torch.device("meta"):
            model = _kind_of(config).from_config(config, trust_remote_code=settings.trust_remote_code)
        own = str(getattr(config.get_text_config(), "dtype", None) or config.dtype or "float32")
        return shape_of(model), own.removeprefix("torch.") if settings.dtype == "auto" else settings.dtype
