"""GGUF metadata and its rotary tensors → the rotary embedding of each kind of layer, as llama.cpp computes it.

Source: ngxson/llama.cpp (upstream master) 3f545be of 2026-08-22, `src/llama-model.cpp` `load_hparams`,
`src/llama-context.cpp`, `ggml/src/ggml-cpu/ops.cpp` `rope_yarn`. For pair i with divisor f_i and
s = `factor`, w_i = b^(−2i/D) / f_i, divided by s (`linear`) or by YaRN's index ramp, whose corners are always rounded
outwards; `yarn` multiplies cos and sin by (0.1·ln s + 1) · `attn_factor`, every other type by `attn_factor`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ropecli.dialects.gguf_archs import (
    BETAS_READ,
    FREQS_IGNORED,
    FREQS_USED,
    FULL_EVERY,
    HALVES,
    INTERLEAVED,
    LOG_MULTIPLIER,
    ONLY_WITH_LAYERS,
    SLIDING,
    SWITCHED,
    UNROTATED,
    UNROTATED_EVERY,
    Sliding,
)
from ropecli.dialects.params import Params, extended
from ropecli.errors import BadCheckpoint, BadParameter
from ropecli.frequencies import base_frequencies, frequencies
from ropecli.spec import (
    LayerRope,
    Layout,
    Linear,
    Longrope,
    Ntk,
    Plain,
    RopeSpec,
    Scaling,
    Yarn,
    default_attention_factor,
    mscale_ratio,
)

TENSORS: Mapping[str, str] = {
    "rope_freqs.weight": "freqs",
    "rope_factors_long.weight": "long",
    "rope_factors_short.weight": "short",
}
"""The tensors that hold divisors, one a rotary pair, and what they are called here."""

MAX_LAYERS = 4096

KINDS = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class Divisors:
    """Numbers by which frequencies are divided, one a rotary pair; empty where the file has no such tensor."""

    freqs: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    short: tuple[float, ...] = ()


def architecture(metadata: Mapping[str, Any]) -> str:
    """The name under which llama.cpp knows the model.

    Raises BadCheckpoint.
    """
    found = metadata.get("general.architecture")
    if not isinstance(found, str) or not found:
        hint = "in a split model the first part has it" if "split.count" in metadata else ""
        raise BadCheckpoint(f"expected a name, found {found!r:.60}", where="general.architecture", hint=hint)
    return found


def read(metadata: Mapping[str, Any], divisors: Divisors) -> tuple[LayerRope, ...]:
    """The rotary embedding of each kind of layer; empty where the architecture does not rotate.

    Raises BadParameter and BadCheckpoint, with the metadata key or the tensor as `where`.
    """
    arch = architecture(metadata)
    if arch in UNROTATED:
        return ()
    if arch in FREQS_IGNORED:
        divisors = Divisors(long=divisors.long, short=divisors.short)
    blocks = _Keys(metadata, arch).layers()
    if arch in SWITCHED and metadata.get(f"{arch}.rope.scaling.finetuned") is False:
        return ()
    if ONLY_WITH_LAYERS.get(arch, blocks) != blocks:
        return ()
    attends = _attending_layers(metadata, arch, blocks)
    if not any(attends):
        return ()
    windows = zip(_sliding_layers(metadata, arch, blocks), attends, strict=True)
    flags = [slides for slides, attend in windows if attend]
    layers = len(flags)
    full = _layer_rope(_Keys(metadata, arch), divisors, "full_attention", layers - sum(flags), sliding=False)
    if layers < blocks:
        full = replace(full, sources={**full.sources, "layers": _why_fewer(metadata, arch)})
    if not any(flags):
        every = UNROTATED_EVERY.get(arch, layers + 1)
        return (replace(full, name="default", layers=layers - layers // every),)
    sliding = _layer_rope(_Keys(metadata, arch), divisors, "sliding_attention", sum(flags), sliding=True)
    if not SLIDING[arch].full_rotates:
        return (sliding,)
    if sliding.spec == full.spec:
        return (replace(full, name="default", layers=layers),)
    return (sliding,) if all(flags) else (full, sliding)


def notes(metadata: Mapping[str, Any], tensors: Collection[str]) -> tuple[str, ...]:
    """What a reader should know beyond the numbers, given the names of the file's tensors."""
    arch = architecture(metadata)
    kind = metadata.get("general.type", "model")
    found = [] if kind == "model" else [f"this file is no model by itself: its general.type is {kind}"]
    if "rope_freqs.weight" in tensors and arch in FREQS_IGNORED:
        found.append(f"llama.cpp loads rope_freqs.weight for architecture {arch}, but does not use it")
    elif "rope_freqs.weight" in tensors and arch not in FREQS_USED:
        found.append(f"llama.cpp does not load a model of architecture {arch} that has the tensor rope_freqs.weight")
    return tuple(found)


class _Keys(Params):
    """Metadata looked up by the part of the key that follows the architecture."""

    def __init__(self, metadata: Mapping[str, Any], arch: str) -> None:
        prefix = f"{arch}."
        own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
        super().__init__(own, arch)
        self.arch = arch

    def layers(self) -> int:
        found = self.whole("layers", "block_count")
        if found is None:
            raise self.required("block_count")
        if found > MAX_LAYERS:
            raise BadParameter(f"expected at most {MAX_LAYERS}, found {found}", where=self.key("block_count"))
        return found


def _attending_layers(metadata: Mapping[str, Any], arch: str, blocks: int) -> list[bool]:
    """For each block whether it is a layer with attention.

    Not those with no heads, or no heads for keys (LFM2, Granite-4, Nemotron-NAS), recurrent ones (Qwen3-Next), and the
    last ones that only predict further tokens.
    """
    last = blocks
    further = metadata.get(f"{arch}.nextn_predict_layers", 0)
    if isinstance(further, int) and 0 < further < blocks:
        last -= further
    counts = [metadata.get(f"{arch}.attention.{key}") for key in ("head_count", "head_count_kv")]
    lists = [count for count in counts if isinstance(count, list) and len(count) == blocks]
    recurrent = metadata.get(f"{arch}.attention.recurrent_layers")
    if not isinstance(recurrent, list) or len(recurrent) != blocks:
        every = metadata.get(f"{arch}.full_attention_interval", FULL_EVERY.get(arch)) if arch in FULL_EVERY else None
        every = every if isinstance(every, int) and every > 0 else 1
        recurrent = [(block + 1) % every != 0 for block in range(blocks)]
    return [block < last and not recurrent[block] and all(count[block] for count in lists) for block in range(blocks)]


def _why_fewer(metadata: Mapping[str, Any], arch: str) -> str:
    """What makes layers with attention fewer than blocks, for `sources`."""
    keys = ("recurrent_layers", "head_count_kv", "head_count")
    lists = (f"{arch}.attention.{key}" for key in keys)
    own = (f"{arch}.full_attention_interval", f"{arch}.nextn_predict_layers")
    told = [key for key in lists if isinstance(metadata.get(key), list)] + [key for key in own if key in metadata]
    return told[0] if told else f"default of architecture {arch}"


def _sliding_layers(metadata: Mapping[str, Any], arch: str, layers: int) -> list[bool]:
    """For each layer whether it sees a window only."""
    kind = SLIDING.get(arch)
    window = metadata.get(f"{arch}.attention.sliding_window", 8192 if arch == "llama4" else 0)
    if kind is None or not window:
        return [False] * layers
    key = f"{arch}.attention.sliding_window_pattern"
    pattern = metadata.get(key, kind.period)
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise BadParameter(f"expected {layers} values, one a layer, found {len(pattern)}", where=key)
        return [bool(value) for value in pattern]
    if (
        isinstance(pattern, bool)
        or not isinstance(pattern, int)
        or pattern < 0
        or (key not in metadata and not pattern)
    ):
        raise BadParameter(f"expected a list with one value a layer, found {pattern!r:.60}", where=key)
    if pattern == 0:
        return [True] * layers
    full = 0 if kind.full_first else pattern - 1
    return [layer % pattern != full for layer in range(layers)]


def _layer_rope(keys: _Keys, divisors: Divisors, name: str, layers: int, *, sliding: bool) -> LayerRope:
    kind = SLIDING.get(keys.arch, Sliding(0))
    keys.sources["layers"] = keys.key("block_count")
    with keys.naming_keys():
        theta = _theta(keys, kind, sliding=sliding)
        head_dim, rotary_dim, mla = _widths(keys, kind, sliding=sliding)
        plain = RopeSpec(theta, head_dim, rotary_dim, 1, 1, layout=_layout(keys))
        rope = _scaled(
            keys, plain, divisors if kind.scaled or not sliding else Divisors(), scaled=kind.scaled or not sliding
        )
    window = keys.data.get("attention.sliding_window") if sliding else None
    return LayerRope(
        name, layers, rope, keys.sources, _sections(keys), mla, window if isinstance(window, int) else None
    )


def _theta(keys: _Keys, kind: Sliding, *, sliding: bool) -> float:
    own = keys.number("rope_theta", "rope.freq_base_swa") if sliding else None
    if own is not None:
        return own
    shared = None if sliding and kind.own_base else keys.number("rope_theta", "rope.freq_base")
    return keys.default("rope_theta", 10000.0, "default of llama.cpp") if shared is None else shared


def _widths(keys: _Keys, kind: Sliding, *, sliding: bool) -> tuple[int, int, bool]:
    """head_dim, rotary_dim, and whether the head is the rotated slice of a latent attention."""
    rotary_dim = keys.whole("rotary_dim", *_swa("rope.dimension_count", sliding=sliding))
    if "attention.kv_lora_rank" in keys.data and rotary_dim is not None:
        keys.sources["head_dim"] = keys.sources["rotary_dim"]
        return rotary_dim, rotary_dim, True
    head_dim = keys.whole("head_dim", *_swa("attention.key_length", sliding=sliding))
    if head_dim is None:
        head_dim = _embedding_share(keys)
    if rotary_dim is None:
        keys.sources["rotary_dim"] = "head_dim"
        rotary_dim = head_dim
    if not sliding and kind.full_share != 1:
        keys.sources["rotary_dim"] += f" · {kind.full_share:g}"
        rotary_dim = int(rotary_dim * kind.full_share)
    return head_dim, rotary_dim, False


def _swa(key: str, *, sliding: bool) -> tuple[str, ...]:
    return (f"{key}_swa", key) if sliding else (key,)


def _embedding_share(keys: _Keys) -> int:
    """Width over heads; hybrid models list the heads of each layer, zero where a layer has no attention."""
    heads = keys.data.get("attention.head_count")
    if isinstance(heads, list):
        heads = next((count for count in heads if count), None)
    counted = Params({"embedding_length": keys.data.get("embedding_length"), "attention.head_count": heads}, keys.path)
    head_dim = counted.head_dim("embedding_length", "attention.head_count")
    keys.sources["head_dim"] = counted.sources["head_dim"]
    return head_dim


def _layout(keys: _Keys) -> Layout:
    known = keys.arch in INTERLEAVED or keys.arch in HALVES
    layout: Layout = "interleaved" if keys.arch in INTERLEAVED else "half"
    keys.sources["layout"] = f"default of architecture {keys.arch}" if known else f"assumed: {layout}"
    return layout


def _sections(keys: _Keys) -> tuple[int, ...]:
    found = keys.data.get("rope.dimension_sections")
    if not isinstance(found, list) or not all(type(part) is int and 0 <= part <= 2**16 for part in found):
        return ()
    while found and found[-1] == 0:
        found = found[:-1]
    return tuple(found)


def _scaled(keys: _Keys, plain: RopeSpec, divisors: Divisors, *, scaled: bool) -> RopeSpec:
    """The spec with the file's scaling, which divisors may join."""
    kind = _kind(keys)
    factor = _factor(keys) if scaled and kind != "none" else 1.0
    attn_factor = keys.number("attention_factor", "rope.scaling.attn_factor")
    if attn_factor is None:
        attn_factor = keys.default("attention_factor", 1.0, "default of llama.cpp")
    original, longest = _lengths(keys, factor)
    scaling: Scaling = Plain() if factor == 1 else Linear(factor)
    turned_off = keys.arch == "grok" and keys.data.get("rope.scaling.yarn_ext_factor") == 0
    if kind == "yarn" and scaled and not turned_off:
        scaling = _yarn(keys, factor, attn_factor)
        attn_factor = scaling.attention_factor
    elif keys.arch == "hunyuan_vl" and (alpha := keys.number("factor", "rope.scaling.alpha")):
        scaling = Ntk(alpha)
    keys.sources["rope_type"] = (
        keys.key("rope.scaling.type") if "rope.scaling.type" in keys.data else "default of llama.cpp"
    )

    def spec(what: Scaling) -> RopeSpec:
        return RopeSpec(plain.rope_theta, plain.head_dim, plain.rotary_dim, original, longest, what, plain.layout)

    short, long = _lists(keys, divisors, kind, plain.pairs)
    base = spec(scaling)
    if not short and not long and scaling.attention_factor == attn_factor:
        return base
    keys.sources |= {"rope_type": _carrier(keys, divisors, kind), "factor": "max_length / original_length"}
    together = _divided(base)
    ones = (1.0,) * plain.pairs
    return spec(
        Longrope(
            factor=max(longest / original, 1.0),
            short_factor=_product(short or ones, together),
            long_factor=_product(long or ones, together),
            attention_factor=attn_factor,
            short_attention_factor=attn_factor,
        )
    )


def _kind(keys: _Keys) -> str:
    kind = keys.data.get("rope.scaling.type", "linear")
    if kind not in KINDS:
        raise BadCheckpoint(
            f"expected one of {', '.join(KINDS)}, found {kind!r:.60}",
            where=keys.key("rope.scaling.type"),
            hint="llama.cpp does not load such a file",
        )
    return str(kind)


def _factor(keys: _Keys) -> float:
    found = keys.number("factor", "rope.scaling.factor", "rope.scale_linear")
    if not found:
        return keys.default("factor", 1.0, "default of llama.cpp")
    return found


def _lengths(keys: _Keys, factor: float) -> tuple[int, int]:
    """The original length and the longest; llama.cpp's own default for the first is the second.

    It serves context_length and no more, so that a linear scaling without an original length is taken to end there.
    """
    longest = keys.whole("max_length", "context_length")
    if longest is None:
        raise keys.required("context_length")
    original = keys.whole("original_length", "rope.scaling.original_context_length")
    if original is None and _kind(keys) == "linear" and factor > 1 and longest % factor == 0:
        keys.sources["original_length"] = f"assumed: {keys.sources['max_length']} / factor"
        original = int(longest / factor)
    if original is None:
        keys.sources["original_length"] = keys.sources["max_length"]
        original = longest
    if longest <= original and factor > 1:
        keys.sources["max_length"] = f"factor · {keys.sources['original_length']}"
        return original, extended(factor, original)
    return original, max(longest, original)


def _yarn(keys: _Keys, factor: float, attn_factor: float) -> Yarn:
    """llama.cpp's YaRN: rounded corners, and betas that most architectures do not read from the file."""
    betas = {"beta_fast": 32.0, "beta_slow": 1.0}
    for name, usual in betas.items():
        key = f"rope.scaling.yarn_{name}"
        if keys.arch not in BETAS_READ:
            ignored = f" ({keys.key(key)} is not read)" if key in keys.data else ""
            keys.sources[name] = f"default of llama.cpp{ignored}"
            continue
        given = keys.number(name, key)
        betas[name] = keys.default(name, usual, "default of llama.cpp") if given is None else given
    keys.sources["truncate"] = "default of llama.cpp"
    magnitude, why = default_attention_factor(factor), "(0.1·ln(factor) + 1)"
    scale = LOG_MULTIPLIER.get(keys.arch)
    multiplier = keys.number("mscale_all_dim", "rope.scaling.yarn_log_multiplier") if scale else None
    if scale and multiplier:
        # 1e-4: the key is a float32 tenth, so that 1 comes back as 1.0000000149.
        mscale_all_dim = multiplier * scale
        mscale = mscale_all_dim if keys.arch == "deepseek2" and abs(mscale_all_dim - 1) > 1e-4 else 1.0
        magnitude = mscale_ratio(factor, mscale, mscale_all_dim)
        why = f"ratio by {keys.sources.pop('mscale_all_dim')}"
    joined = keys.sources["attention_factor"]
    keys.sources["attention_factor"] = why if joined == "default of llama.cpp" else f"{why} · {joined}"
    return Yarn(factor, magnitude * attn_factor, betas["beta_fast"], betas["beta_slow"])


def _lists(keys: _Keys, divisors: Divisors, kind: str, pairs: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(short, long) divisors; `rope_freqs` comes before the other two, which only `longrope` loads."""
    if divisors.freqs:
        shared = _fitting(divisors.freqs, "rope_freqs.weight", pairs)
        keys.sources |= dict.fromkeys(("short_factor", "long_factor"), "tensor rope_freqs.weight")
        return shared, shared
    if kind != "longrope":
        return (), ()
    for name, values in (("short", divisors.short), ("long", divisors.long)):
        keys.sources[f"{name}_factor"] = f"tensor rope_factors_{name}.weight" if values else "default of llama.cpp"
    return (
        _fitting(divisors.short, "rope_factors_short.weight", pairs),
        _fitting(divisors.long, "rope_factors_long.weight", pairs),
    )


def _fitting(values: tuple[float, ...], name: str, pairs: int) -> tuple[float, ...]:
    """The divisors of the pairs that rotate; ggml reads only as many as it needs."""
    if values and len(values) < pairs:
        raise BadParameter(f"expected {pairs} numbers, one a rotary pair, found {len(values)}", where=name)
    return values[:pairs]


def _carrier(keys: _Keys, divisors: Divisors, kind: str) -> str:
    if divisors.freqs:
        return "tensor rope_freqs.weight"
    if kind == "longrope":
        return keys.key("rope.scaling.type")
    return f"{keys.key('rope.scaling.attn_factor')}, which no other type can carry"


def _divided(spec: RopeSpec) -> tuple[float, ...]:
    """By how much the scaling divides each pair's frequency."""
    base = base_frequencies(spec.rope_theta, spec.rotary_dim)
    try:
        return tuple(w / scaled for w, scaled in zip(base, frequencies(spec).inv_freq, strict=True))
    except (OverflowError, ZeroDivisionError) as error:
        raise BadParameter("expected a factor that leaves frequencies above zero", where="factor") from error


def _product(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    return tuple(a * b for a, b in zip(first, second, strict=True))
