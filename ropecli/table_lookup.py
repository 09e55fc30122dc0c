"""Make a transformers model take cos and sin from baked tables instead of computing them from its config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ropecli.checkpoint import sees_no_text
from ropecli.errors import BadCheckpoint, BadUsage
from ropecli.safetensors_header import TensorInfo
from ropecli.table_file import SHARD, SIDECAR, TableFile, TableLayer, read_table_file

Form: TypeAlias = Literal["half", "halves", "neighbours"]
"""What a rotary module returns: [..., d/2]; or [..., d], in which dimension i goes with i + d/2, or 2i with 2i + 1."""


@dataclass(slots=True)
class LayerTables:
    """The tables of one kind of layer: one named "", or "short" and "long".

    computes  whether a table is (inv_freq [d/2], attention factor []) instead of (cos, sin), each [length, d/2]
    """

    original_length: int
    computes: bool
    variants: dict[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class TableLookup:
    """The forward of a rotary module: positions in, (cos, sin) out, in the form that the module's own forward gives.

    Tables keep the dtype that they were stored in, whatever the model is cast to: half precision would spoil them. They
    follow the hidden states from device to device, and cos and sin come in the hidden states' dtype.

    path    of the file, for errors
    tables  layer type, or None for a module that has none → its tables
    """

    path: str
    form: Form
    tables: Mapping[str | None, LayerTables]

    def __call__(self, x: Any, position_ids: Any, layer_type: str | None = None) -> tuple[Any, Any]:
        """cos and sin [..., d] or [..., d/2] for position ids [...]. Raises BadUsage for a position beyond the table.

        Of a short and a long table, the long one serves a sequence that is longer than the original length, whole
        (transformers 5.23 `longrope_frequency_update`).
        """
        layer = self.tables[layer_type]
        length = int(position_ids.max()) + 1
        variant = "" if "" in layer.variants else "long" if length > layer.original_length else "short"
        first, second = table = layer.variants[variant]
        if first.device != x.device:
            first, second = table = (first.to(x.device), second.to(x.device))
            layer.variants[variant] = table
        if layer.computes:
            angles = position_ids[..., None].float() * first.float()
            return self._formed(angles.cos() * second, x), self._formed(angles.sin() * second, x)
        if length > len(first):
            raise BadUsage(
                f"the tables have {len(first)} positions, the text needs {length}",
                where=self.path,
                hint="bake longer ones with --bake-length",
            )
        return self._formed(first[position_ids], x), self._formed(second[position_ids], x)

    def _formed(self, values: Any, x: Any) -> Any:
        values = values.to(x.dtype)
        if self.form == "halves":
            return values.repeat(*(1,) * (values.dim() - 1), 2)
        return values.repeat_interleave(2, dim=-1) if self.form == "neighbours" else values


def attach(model: Any, path: str | Path) -> Any:
    """Make a transformers model rotate with baked tables, whatever its config says; returns the model.

    model  any model of transformers whose rotary modules keep `inv_freq`, one for all layers or one for each layer type
    path   the folder of the checkpoint that was written with `--bake`, or the table file itself

    Texts may then be as long as the tables (of `inv-freq`, without end); a longer one raises BadUsage. Raises BadUsage
    for a model whose rotary embedding is not of that kind, and BadCheckpoint for tables that are damaged or of another
    width; then the model is as it was.
    """
    file = read_table_file(_located(Path(path)))
    loaded: dict[str, LayerTables] = {}
    lookups: list[tuple[Any, TableLookup]] = []
    for name, module in model.named_modules():
        layer_types = [] if sees_no_text(name) else _layer_types(module)
        if not layer_types:
            continue
        tables = {}
        for layer_type in layer_types:
            layer = _layer(file, layer_type, name)
            if layer.name not in loaded:
                loaded[layer.name] = _tables(file, layer)
            tables[layer_type] = loaded[layer.name]
        forms = {_form(module, name, layer_type, file, layers) for layer_type, layers in tables.items()}
        lookups.append((module, TableLookup(str(file.path), forms.pop(), tables)))
    if not lookups:
        raise BadUsage(
            f"expected a module with inv_freq, found none in {type(model).__name__}",
            hint="only models that compute cos and sin in a rotary module of their own can take tables",
        )
    for module, lookup in lookups:
        module.forward = lookup
    return model


def _located(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (SIDECAR, SHARD):
        if (path / name).is_file():
            return path / name
    raise BadCheckpoint(f"expected {SIDECAR} or {SHARD}, found neither", where=str(path), hint="convert with --bake")


def _layer_types(module: Any) -> list[str | None]:
    """Layer types that a module has frequencies for; [None] for one table for all, [] for any other module."""
    names = [name for name, _ in module.named_buffers(recurse=False) if name.endswith("inv_freq")]
    if "inv_freq" in names:
        return [None]
    return [name.removesuffix("_inv_freq") for name in names if not name.endswith("original_inv_freq")]


def _layer(file: TableFile, layer_type: str | None, module: str) -> TableLayer:
    """The tables for a layer type; a file or a model that knows one kind alone serves any."""
    wanted = layer_type or "default"
    layer = next((layer for layer in file.layers if layer.name == wanted), None)
    if layer is None and len(file.layers) == 1:
        (layer,) = file.layers
    if layer is None:
        raise BadUsage(
            f"{module} needs tables for {wanted}, the file has them for {', '.join(x.name for x in file.layers)}",
            where=str(file.path),
            hint="bake them from this model's own config",
        )
    return layer


def _tables(file: TableFile, layer: TableLayer) -> LayerTables:
    variants = {}
    for variant in file.variants(layer):
        tensors = [_loaded(file.tensor(layer, variant, leaf)) for leaf in file.leaves]
        pairs = layer.rotary_dim // 2
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if file.kind == "inv-freq":
            fits = shapes == [(pairs,), ()]
        else:
            fits = all(len(shape) == 2 and shape[1] == pairs * (1 if file.layout == "half" else 2) for shape in shapes)
        if not fits:
            raise BadCheckpoint(
                f"expected tables of {pairs} pairs, found shapes {shapes}", where=f"{file.path}: {layer.name}"
            )
        if file.layout == "concat":
            tensors = [tensors[0][:, :pairs], tensors[0][:, pairs:]]
        elif file.layout == "full":
            part = slice(None, pairs) if layer.pairs == "half" else slice(None, None, 2)
            tensors = [tensor[:, part].contiguous() for tensor in tensors]
        variants[variant] = (tensors[0], tensors[1])
    return LayerTables(layer.original_length, file.kind == "inv-freq", variants)


def _loaded(info: TensorInfo) -> Any:
    """A tensor of a table file, read without a second copy in memory. Raises BadCheckpoint."""
    import torch  # noqa: PLC0415 - most uses of this package need no torch

    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    data = torch.empty(info.end - info.begin, dtype=torch.uint8)
    with info.file.open("rb") as stream:
        stream.seek(info.begin)
        found = stream.readinto(data.numpy().data)
    if found != len(data):
        raise BadCheckpoint(f"expected {len(data)} bytes, found {found}", where=f"{info.file}: {info.name}")
    return data.view(dtypes[info.dtype]).reshape(info.shape)


def _form(module: Any, name: str, layer_type: str | None, file: TableFile, layers: LayerTables) -> Form:
    """How the module returns cos and sin, from its own answer for the positions 0 and 1."""
    import torch  # noqa: PLC0415

    buffer = getattr(module, "inv_freq" if layer_type is None else f"{layer_type}_inv_freq")
    positions = torch.tensor([[0, 1]], device=buffer.device)
    extra = {} if layer_type is None else {"layer_type": layer_type}
    pairs = next(iter(layers.variants.values()))[0].shape[-1]
    if buffer.shape[-1] != pairs:
        raise BadCheckpoint(
            f"expected tables of {buffer.shape[-1]} rotary pairs for {name}, found {pairs}", where=str(file.path)
        )
    x = torch.zeros(1, 1, 1, device=buffer.device)
    try:
        # the class's own, so that tables can be attached over tables
        with torch.no_grad():
            cos, _ = type(module).forward(module, x, positions, **extra)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise _no_lookup(name, module) from error
    if hasattr(module, "mrope_section") or cos.is_complex() or cos.shape[:-1] != positions.shape:
        raise _no_lookup(name, module)
    row = cos[0, 1]
    if len(row) == pairs:
        return "half"
    if len(row) == 2 * pairs and torch.equal(row[:pairs], row[pairs:]):
        return "halves"
    if len(row) == 2 * pairs and torch.equal(row[0::2], row[1::2]):
        return "neighbours"
    raise _no_lookup(name, module)


def _no_lookup(name: str, module: Any) -> BadUsage:
    return BadUsage(
        f"{name} ({type(module).__name__}) does not return cos and sin for each position",
        hint="tables serve models of text whose rotary module returns (cos, sin)",
    )
