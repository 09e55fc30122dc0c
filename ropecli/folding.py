"""Fold the attention factor m into weights, for runtimes that know no temperature.

m multiplies cos and sin, so it multiplies the rotated part of each query and each key. The same happens where the rows
that make this part are multiplied by m: of the query and key projections with their biases, or, where a norm stands
between projection and rotation, of the norm's weight, as it would undo a change before it. Dimensions that do not
rotate keep their scale. Logits then grow by m², as they do with m in the config, up to rounding: a scaled weight is
rounded again, by up to 0.4 % in bfloat16 and 0.05 % in float16.

Whether a norm stands before or after the rotation can not be seen from tensor names, so only model types that were
tested are folded.

No tensor shows afterwards that it was scaled, so the config says it, and a second factor on top of it is refused:

    "ropecli": {"folded_attention_factor": {"default": 1.1386294361119891}}
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ropecli.checkpoint import sees_no_text
from ropecli.dialects import hf
from ropecli.dialects.hf_keys import Found, Place, nearest, whole
from ropecli.dialects.hf_types import type_facts
from ropecli.errors import BadUsage
from ropecli.safetensors_header import TensorInfo
from ropecli.spec import LayerRope, Longrope
from ropecli.stored_floats import BYTES
from ropecli.weight_edits import TensorEdit, edits_by_file, rewrite_shard

__all__ = ["TensorEdit", "edits_by_file", "is_foldable", "plan_folding", "rewrite_shard"]

SEPARATE = frozenset(
    (
        *("afmoe", "apertus", "arcee", "bamba", "cohere", "cohere2", "cwm", "dots1", "ernie4_5", "ernie4_5_moe"),
        *("exaone4", "falcon_h1", "flex_olmo", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glm4_moe"),
        *("gpt_oss", "granite", "granitemoe", "granitemoehybrid", "granitemoeshared", "helium", "hy_v3", "jais2"),
        *("lfm2", "lfm2_moe", "llama", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral", "nemotron"),
        *("olmo", "olmo2", "olmo3", "olmoe", "phi", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text"),
        *("qwen3_5_text", "qwen3_moe", "qwen3_next", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2"),
    )
)
"""Model types with a `q_proj` and a `k_proj`; norms of queries and keys, where they have them, precede the rotation."""

BY_HEAD = frozenset(("gpt_neox", "persimmon", "falcon"))
"""Model types with one `query_key_value`, laid out by key head: its query heads, the key head, the value head."""

BY_KIND = frozenset(("phi3",))
"""Model types with one `qkv_proj`: all query heads, then all key heads, then all value heads."""

ONE_PLUS = frozenset(("gemma3", "gemma3_text", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"))
"""Model types whose norm of queries and keys multiplies by 1 + w."""

NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"))
"""Names of the norms of queries and keys."""

_LAYER = re.compile(
    r"(?P<stack>(?:.*\.)?(?:layers|h))\.(?P<index>\d+)\.(?:self_attn|self_attention|attention)\.(?P<leaf>.+)"
)
_PARAMETER = re.compile(r"(?:proj|query_key_value|norm|norms\.\d+)\.(?:weight|bias)$")


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Of one attention layer: query heads, dimensions a head, and those of them that rotate, which come first."""

    heads: int
    head_dim: int
    rotary_dim: int

    def rows(self, heads: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """The rotating rows of these heads, by their number in the tensor; neighbours joined."""
        joined: list[tuple[int, int]] = []
        for head in heads:
            start = head * self.head_dim
            if joined and joined[-1][1] == start:
                start = joined.pop()[0]
            joined.append((start, head * self.head_dim + self.rotary_dim))
        return tuple(joined)

    def is_fused(self, heads: int) -> bool:
        """Whether a tensor of `heads` heads holds the query heads, and as many key heads as value heads."""
        keys, rest = divmod(heads - self.heads, 2)
        return keys > 0 and not rest and self.heads % keys == 0

    def fused(self, heads: int, *, by_head: bool) -> Iterator[int]:
        """The heads of queries and keys in a tensor that holds all three kinds."""
        keys = (heads - self.heads) // 2
        if not by_head:
            return iter(range(self.heads + keys))
        each = self.heads // keys + 2
        return (head for head in range(heads) if head % each != each - 1)


def is_foldable(rope: LayerRope, config: Mapping[str, Any]) -> bool:
    """Whether these layers' attention factor can go into the weights, as far as the config tells."""
    try:
        _refuse(rope, config, "")
    except BadUsage:
        return False
    return True


def _refuse(rope: LayerRope, config: Mapping[str, Any], where: str) -> None:
    if rope.mla:
        raise BadUsage(
            "the rotated part of a latent attention comes out of a shared projection",
            where=where,
            hint="bake cos-sin tables, or use a runtime that reads the attention factor",
        )
    scaling = rope.spec.scaling
    if isinstance(scaling, Longrope) and scaling.attention_factor != scaling.short_attention_factor:
        raise BadUsage("the attention factor depends on the length of the text, weights do not", where=where)
    model_type = hf.model_type(config)
    if model_type not in SEPARATE | BY_HEAD | BY_KIND:
        raise BadUsage(
            f"folding was not tested for model_type {model_type!r}",
            where=where,
            hint="expected a model whose layers.N.self_attn has q_proj and k_proj, such as Llama, Qwen or Gemma",
        )
    if hf.text_config(config)[0].get("clip_qkv") is not None:
        raise BadUsage("the model clips queries and keys, which a factor in the weights would change", where=where)


def plan_folding(
    headers: Mapping[str, TensorInfo], rope: LayerRope, config: Mapping[str, Any], m: float
) -> tuple[TensorEdit, ...]:
    """The edits that put the attention factor m of one kind of layer into the weights; none for m = 1.

    headers  name → place of every tensor of the checkpoint
    rope     the layers that are folded; their config must then say an attention factor of 1
    config   the whole config.json

    Raises BadUsage for what cannot be folded: a latent attention, an attention factor that depends on the length, a
    model type that was not tested, quantised weights, or tensors with other names or shapes than expected.
    """
    where = f"--bake attention-factor: {rope.name}"
    _refuse(rope, config, where)
    if m == 1:
        return ()
    geometry = _Geometry(_number(config, "num_attention_heads"), rope.spec.head_dim, rope.spec.rotary_dim)
    edits: list[TensorEdit] = []
    for layer in _layers(headers, rope, config, where):
        edits += _layer_edits(layer, hf.model_type(config), geometry, m, where)
    return tuple(sorted(edits, key=lambda edit: edit.tensor))


def _layers(
    headers: Mapping[str, TensorInfo], rope: LayerRope, config: Mapping[str, Any], where: str
) -> Iterator[dict[str, TensorInfo]]:
    """For each layer that rotates this way, the tensors of its attention by the last part of their names."""
    stacks: dict[str, dict[int, dict[str, TensorInfo]]] = {}
    for name, info in headers.items():
        found = _LAYER.fullmatch(name)
        if found and not sees_no_text(found["stack"]):
            stacks.setdefault(found["stack"], {}).setdefault(int(found["index"]), {})[found["leaf"]] = info
    indices = hf.layer_indices(config, rope.name)
    if not indices:
        raise BadUsage(
            "cannot tell which layers rotate this way",
            where=where,
            hint="layer_types has to list the type of each layer, as transformers 5 writes it",
        )
    count = _number(config, "layers")
    further = [stacks.pop(stack) for stack in list(stacks) if "mtp" in stack.split(".")]
    main = next(iter(stacks.values()), {})
    if len(stacks) > 1 or not set(indices) <= set(main):
        raise BadUsage(
            f"expected the attention of layers {_ranges(indices)} in tensors named ….layers.N.self_attn.…, "
            f"found {', '.join(f'{stack}.N' for stack in stacks) or 'none'}",
            where=where,
            hint="the weights are named in a way that ropecli does not know",
        )
    # heads that predict further tokens are counted by no config, and rotate like the layers before them
    further.append({i: tensors for i, tensors in main.items() if i >= count})
    others = {i for i in main if i < count} - set(indices)
    if any(further) and others:
        raise BadUsage("cannot tell how the layers that predict further tokens rotate", where=where)
    yield from (main[i] for i in indices)
    yield from (tensors for layers in further for tensors in layers.values())


def _ranges(indices: tuple[int, ...]) -> str:
    return f"{indices[0]} to {indices[-1]}" if len(indices) > 1 else str(indices[0])


def _number(config: Mapping[str, Any], name: str) -> int:
    """A whole number of the language model by its canonical name, or what its class defaults."""
    text, path = hf.text_config(config)
    defaults = type_facts(hf.model_type(config), alone=not path).defaults
    return whole(nearest((Place(text, ".".join(path)), defaults), name) or Found(None, name))


def _layer_edits(
    tensors: Mapping[str, TensorInfo], model_type: str, geometry: _Geometry, m: float, where: str
) -> list[TensorEdit]:
    """The edits of one layer, whose tensors are given by the last part of their names."""
    norms = next((pair for pair in NORMS if any(leaf.split(".")[0] in pair for leaf in tensors)), None)
    if norms is not None:
        return [
            TensorEdit(
                info.name,
                _norm_rows(info, geometry, where),
                m,
                m - 1 if model_type in ONE_PLUS and info.name.endswith(".weight") else 0.0,
            )
            for norm in norms
            for info in _parameters(tensors, norm, where)
        ]
    parts: dict[str, Callable[[int], bool]]
    if model_type in SEPARATE:
        parts = {"q_proj": lambda heads: heads == geometry.heads, "k_proj": lambda heads: geometry.heads % heads == 0}
    else:
        parts = {"query_key_value" if model_type in BY_HEAD else "qkv_proj": geometry.is_fused}
    edits = []
    for part, fits in parts.items():
        for info in _parameters(tensors, part, where):
            heads, rest = divmod(info.shape[0] if info.shape else 0, geometry.head_dim)
            if rest or not heads or not fits(heads):
                raise BadUsage(
                    f"expected rows for {geometry.heads} heads of {geometry.head_dim}, found the shape "
                    f"{list(info.shape)}",
                    where=f"{where}: {info.name}",
                )
            chosen = range(heads) if model_type in SEPARATE else geometry.fused(heads, by_head=model_type in BY_HEAD)
            edits.append(TensorEdit(info.name, geometry.rows(chosen), m))
    return edits


def _parameters(tensors: Mapping[str, TensorInfo], part: str, where: str) -> list[TensorInfo]:
    """The weights and biases of one module. Raises BadUsage where it has none, or other tensors (quantised ones)."""
    found = [info for leaf, info in tensors.items() if leaf.split(".")[0] == part]
    beside = next(iter(tensors.values())).name if tensors else ""
    if not any(info.name.endswith(".weight") for info in found):
        raise BadUsage(
            f"expected a tensor …{part}.weight, found none",
            where=f"{where}: beside {beside}",
            hint="quantised weights cannot be folded: fold first, then quantise",
        )
    for info in found:
        if _PARAMETER.search(info.name) is None or info.dtype not in BYTES or not info.shape:
            raise BadUsage(
                f"expected weights or biases of floats, found {info.dtype} {list(info.shape)}",
                where=f"{where}: {info.name}",
                hint="quantised weights cannot be folded: fold first, then quantise",
            )
    return found


def _norm_rows(info: TensorInfo, geometry: _Geometry, where: str) -> tuple[tuple[int, int], ...]:
    """One weight for each dimension of a head, shared by all heads; or of all heads, in one row or a row for each."""
    if len(info.shape) == 1 and info.shape[0] % geometry.head_dim == 0:
        return geometry.rows(range(info.shape[0] // geometry.head_dim))
    if len(info.shape) == 2 and info.shape[1] == geometry.head_dim == geometry.rotary_dim:
        return ((0, info.shape[0]),)
    raise BadUsage(
        f"expected a weight for each of {geometry.head_dim} dimensions a head, found the shape {list(info.shape)}",
        where=f"{where}: {info.name}",
    )
