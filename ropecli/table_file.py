"""What a file of baked tables holds: its names, its metadata, and the values that belong in it.

A table file is a safetensors file. `__metadata__` says how it was made, in strings; what there is one of for each kind
of layer is a JSON list in the order of `ropecli.layers`.

    format                      "pt", which loaders ask for
    ropecli.version             "1"
    ropecli.kind                "cos-sin" or "inv-freq"
    ropecli.layout              of cos and sin: "half", "concat" or "full"
    ropecli.dtype, .length      as baked; length in positions
    ropecli.config_sha256       of the config that the tables were computed from, as canonical JSON
    ropecli.layers              names of the kinds of layers
    ropecli.rope_type, .rope_theta, .rotary_dim, .factor, .attention_factor, .original_length
    ropecli.pairs               "half" or "interleaved": which dimensions form a pair; the order of "full" columns
    ropecli.layer_indices       the layers that have a copy of their own; empty lists where they share one
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from ropecli.errors import BadCheckpoint
from ropecli.frequencies import Frequencies, frequencies
from ropecli.safetensors_header import TensorInfo, read_header
from ropecli.spec import Layout, RopeSpec
from ropecli.stored_floats import DTYPES, FloatName

if TYPE_CHECKING:
    from ropecli.stored_floats import Array

TableKind: TypeAlias = Literal["cos-sin", "inv-freq"]
TableLayout: TypeAlias = Literal["half", "concat", "full"]

SIDECAR = "rope_tables/rope_tables.safetensors"
"""Where tables stand by default: in a folder of their own, where no loader of weights looks."""

SHARD = "model-rope-tables.safetensors"
"""Where they stand among the weights."""

LEAVES: Mapping[str, tuple[str, ...]] = {
    "half": ("cos_cached", "sin_cached"),
    "full": ("cos_cached", "sin_cached"),
    "concat": ("cos_sin_cache",),
    "inv-freq": ("inv_freq", "attention_factor"),
}
"""Last part of the tensors' names: those of the older Hugging Face modules, which vLLM's and sglang's loaders skip, and
vLLM's own name for both in one."""


@dataclass(frozen=True, slots=True)
class TableLayer:
    """A kind of layer as the metadata describes it. indices: the layers with a table of their own, or none."""

    name: str
    rope_type: str
    rope_theta: float
    rotary_dim: int
    factor: float
    attention_factor: float
    original_length: int
    pairs: Layout
    indices: tuple[int, ...] = ()


FIELDS = tuple(field.name for field in fields(TableLayer) if field.name != "indices")
COLUMNS = ("layers", *FIELDS[1:], "layer_indices")
"""Metadata that has one value for each kind of layer."""


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file of tables by its header. layout: None for inverse frequencies."""

    path: Path
    kind: TableKind
    layout: TableLayout | None
    dtype: FloatName
    length: int
    config_sha256: str
    layers: tuple[TableLayer, ...]
    tensors: Mapping[str, TensorInfo]

    @property
    def leaves(self) -> tuple[str, ...]:
        """Last parts of the names of one table's tensors."""
        return LEAVES[self.layout or self.kind]

    def variants(self, layer: TableLayer) -> tuple[str, ...]:
        """("",) for one table, ("short", "long") where the layer has two."""
        first = layer.indices[0] if layer.indices else None
        two = tensor_name(layer.name, "long", self.leaves[0], first) in self.tensors
        return ("short", "long") if two else ("",)

    def tensor(self, layer: TableLayer, variant: str, leaf: str, index: int | None = None) -> TensorInfo:
        """Where a tensor lies; of layers that each have a copy, the first one's by default. Raises BadCheckpoint."""
        if index is None and layer.indices:
            index = layer.indices[0]
        name = tensor_name(layer.name, variant, leaf, index)
        if name not in self.tensors:
            raise BadCheckpoint(f"expected the tensor {name}, found none", where=str(self.path), hint="bake it again")
        info, wanted = self.tensors[name], "F32" if leaf == "attention_factor" else DTYPES[self.dtype]
        if info.dtype != wanted:
            raise BadCheckpoint(
                f"expected {wanted}, as the metadata says, found {info.dtype}",
                where=f"{self.path}: {name}",
                hint="bake it again",
            )
        return info


def tensor_name(layer: str, variant: str, leaf: str, index: int | None) -> str:
    """`full_attention.rotary_emb.cos_cached`; `.long` before `rotary_emb` of the second of two tables.

    A layer's own copy is named as older Hugging Face checkpoints name it, `model.layers.0.self_attn.rotary_emb.…`.
    """
    owner = layer if index is None else f"model.layers.{index}.self_attn"
    return ".".join(filter(None, (owner, variant, "rotary_emb", leaf)))


def variant_frequencies(spec: RopeSpec) -> dict[str, Frequencies]:
    """The tables that a spec needs: one named "", or "short" and "long" where longrope has two lists.

    The short one serves sequences of up to the original length, the long one those beyond it.
    """
    if not spec.length_dependent:
        return {"": frequencies(spec)}
    return {"short": frequencies(spec), "long": frequencies(spec, spec.original_length + 1)}


def table_rows(length: int, variant: str, original_length: int) -> int:
    """Positions that a table covers: a short one is never asked beyond the original length."""
    return min(length, original_length) if variant == "short" else length


def table_block(table: Frequencies, positions: "Array", layout: TableLayout, pairs: Layout) -> tuple["Array", ...]:
    """The rows of n positions in float64, an array for each tensor: cos and sin [n, d/2] or [n, d], or both [n, d].

    cos and sin of position · inv_freq, times the attention factor, as every runtime applies it (transformers 5.23
    `LlamaRotaryEmbedding.forward`, vLLM `YaRNScalingRotaryEmbedding._compute_cos_sin_cache`).
    """
    import numpy as np  # noqa: PLC0415 - start-up does not pay for it

    angles = positions[:, None] * np.asarray(table.inv_freq)[None, :]
    cos, sin = np.cos(angles), np.sin(angles)
    cos *= table.attention_factor
    sin *= table.attention_factor
    if layout == "half":
        return cos, sin
    if layout == "concat":
        return (np.concatenate((cos, sin), axis=1),)
    if pairs == "half":
        return np.concatenate((cos, cos), axis=1), np.concatenate((sin, sin), axis=1)
    return np.repeat(cos, 2, axis=1), np.repeat(sin, 2, axis=1)


def metadata_of(
    kind: TableKind,
    layout: TableLayout | None,
    dtype: FloatName,
    length: int,
    config_sha256: str,
    layers: Sequence[TableLayer],
) -> dict[str, str]:
    """The metadata of a table file; all values are strings, as safetensors wants them."""
    rows = [(*(getattr(layer, field) for field in FIELDS), list(layer.indices)) for layer in layers]
    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    return {
        "format": "pt",
        "ropecli.version": "1",
        "ropecli.kind": kind,
        **({} if layout is None else {"ropecli.layout": layout}),
        "ropecli.dtype": dtype,
        "ropecli.length": str(length),
        "ropecli.config_sha256": config_sha256,
        **{f"ropecli.{name}": json.dumps(values) for name, values in columns.items()},
    }


def read_table_file(path: Path) -> TableFile:
    """What a table file's header says. Raises BadCheckpoint where it is damaged or was not written by ropecli."""
    header = read_header(path)
    if header.problems:
        raise header.problems[0].error
    try:
        return _parsed(path, header.metadata, {info.name: info for info in header.tensors})
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadCheckpoint(
            f"expected the metadata of baked tables, found none that can be read ({error})",
            where=f"{path}: __metadata__",
            hint="bake it again with ropecli convert --bake",
        ) from error


def _parsed(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> TableFile:
    def one_of(name: str, choices: tuple[str, ...]) -> Any:
        if metadata[name] not in choices:
            raise ValueError(f"{name} is {metadata[name]!r:.60}")
        return metadata[name]

    one_of("ropecli.version", ("1",))
    kind: TableKind = one_of("ropecli.kind", get_args(TableKind))
    layout: TableLayout | None = one_of("ropecli.layout", get_args(TableLayout)) if kind == "cos-sin" else None
    length = int(metadata["ropecli.length"])
    if length < 1:
        raise ValueError(f"ropecli.length is {length}")
    columns = [json.loads(metadata[f"ropecli.{name}"]) for name in COLUMNS]
    return TableFile(
        path,
        kind,
        layout,
        one_of("ropecli.dtype", tuple(DTYPES)),
        length,
        metadata["ropecli.config_sha256"],
        tuple(_layer(*row) for row in zip(*columns, strict=True)),
        tensors,
    )


def _layer(
    name: Any, rope_type: Any, theta: Any, dim: Any, factor: Any, m: Any, original: Any, pairs: Any, indices: Any
) -> TableLayer:
    if pairs not in get_args(Layout):
        raise ValueError(f"ropecli.pairs holds {pairs!r:.60}")
    numbers = float(theta), int(dim), float(factor), float(m), int(original)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"expected finite numbers, found {numbers}")
    return TableLayer(str(name), str(rope_type), *numbers, pairs, tuple(int(i) for i in indices))
