"""One GGUF model, possibly in several parts → its metadata and the rotary embedding of its layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropecli.dialects import gguf
from ropecli.errors import RopeError
from ropecli.gguf_header import GgufHeader, GgufTensor, parts, read_floats, read_gguf
from ropecli.spec import LayerRope


def read_model(path: Path) -> tuple[Mapping[str, Any], str, tuple[LayerRope, ...], tuple[str, ...]]:
    """(metadata, architecture, rotary embeddings, notes) of the model whose first or only part is `path`.

    Raises BadCheckpoint and BadParameter, with the file in front of `where`.
    """
    header = read_gguf(path)
    headers = [header, *(read_gguf(part) for part in parts(header) if part != path and part.exists())]
    found = {name: (other, other.tensors[name]) for other in headers for name in gguf.TENSORS if name in other.tensors}
    try:
        ropes = gguf.read(header.metadata, _divisors(found))
        architecture, notes = gguf.architecture(header.metadata), gguf.notes(header.metadata, found)
    except RopeError as error:
        error.at(str(path))
        raise
    missing = len(parts(header)) - len(headers)
    if missing > 0:
        notes += (f"{missing} part{'s' if missing > 1 else ''} of this split model cannot be found",)
    return header.metadata, architecture, ropes, notes


def _divisors(found: Mapping[str, tuple[GgufHeader, GgufTensor]]) -> gguf.Divisors:
    return gguf.Divisors(
        **{gguf.TENSORS[name]: read_floats(tensor, header.byte_order) for name, (header, tensor) in found.items()}
    )
