"""Floats as safetensors stores them, little-endian, to and from float64. bfloat16 needs no tensor library here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FloatName: TypeAlias = Literal["float32", "float16", "bfloat16"]

DTYPES: Mapping[FloatName, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""A type as the command line and torch spell it → as a safetensors header does."""

BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of one value, by safetensors' names."""

ROUNDING: Mapping[str, float] = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Largest relative error of rounding to the nearest normal value."""

LARGEST: Mapping[str, float] = {"F64": 1.7e308, "F32": 3.4e38, "F16": 65504.0, "BF16": 3.38e38}
"""The largest values; what is beyond them becomes infinite."""

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def decoded(data: bytes | bytearray | memoryview, dtype: str) -> "Array":
    """The values as a float64 array [n]; `dtype` is one of `BYTES`."""
    import numpy as np  # noqa: PLC0415 - start-up does not pay for it

    if dtype == "BF16":
        bits = np.frombuffer(data, "<u2").astype("<u4") << 16
        return bits.view("<f4").astype(np.float64)
    return np.frombuffer(data, _NUMPY[dtype]).astype(np.float64)


def encoded(values: "Array", dtype: str) -> bytes:
    """The values in row-major order, each rounded to the nearest that the type has, ties to even.

    bfloat16 is the upper half of a float32, which is rounded first; the two roundings together are off by less than
    2^-24 of a value more than one. What is too large becomes infinite, NaN stays NaN.
    """
    import numpy as np  # noqa: PLC0415

    with np.errstate(over="ignore"):
        if dtype != "BF16":
            return values.astype(_NUMPY[dtype]).tobytes()
        single = values.astype("<f4")
    bits = single.view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # adding to the bits of a NaN could make it a number
    return np.where(np.isnan(single), (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()
