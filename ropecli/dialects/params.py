"""Numbers out of a flat config (`params.json`, gpt-oss): looked up, checked, and each with the key that held it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ropecli.errors import BadParameter


@dataclass(slots=True)
class Params:
    """A JSON object and the dotted path that leads to it; remembers under a canonical name where each value was."""

    data: Mapping[str, Any]
    path: str = ""
    sources: dict[str, str] = field(default_factory=dict)

    def inner(self, key: str) -> "Params | None":
        """The object under a key, sharing the memory of sources; None where it is missing, null or empty."""
        value = self.data.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise BadParameter(f"expected an object, found {value!r:.60}", where=self.key(key))
        return Params(value, self.key(key), self.sources)

    def number(self, name: str, *keys: str) -> float | None:
        """The first of these keys that is present and not null, as a finite number."""
        for key in keys or (name,):
            value = self.data.get(key)
            if value is None:
                continue
            self.sources[name] = self.key(key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
                raise BadParameter(f"expected a number, found {value!r:.60}", where=self.key(key))
            return float(value)
        return None

    def whole(self, name: str, *keys: str) -> int | None:
        """As `number`, for whole numbers from 1 to 2^48."""
        value = self.number(name, *keys)
        if value is None:
            return None
        if value != int(value) or not 1 <= value <= 2**48:
            raise BadParameter(f"expected a whole number from 1 to 2^48, found {value!r:.60}", where=self.sources[name])
        return int(value)

    def default(self, name: str, value: float, why: str) -> float:
        """A value that the file does not hold, and why it is this one."""
        self.sources[name] = why
        return value

    def required(self, name: str) -> BadParameter:
        """The error of a value that the file has to hold."""
        return BadParameter(f"expected {name}, found none", where=self.key(name))

    def key(self, name: str) -> str:
        """The path of a key of this object."""
        return f"{self.path}.{name}" if self.path else name

    def head_dim(self, width: str, heads: str) -> int:
        """`head_dim`, else the model's width over its number of heads, each under the key given."""
        given = self.whole("head_dim")
        if given is not None:
            return given
        dim, count = self.whole("width", width), self.whole("heads", heads)
        self.sources.pop("width", None)
        self.sources.pop("heads", None)
        if dim is None or count is None:
            raise BadParameter(f"expected head_dim, or {width} and {heads}", where=self.key("head_dim"))
        self.sources["head_dim"] = f"{self.key(width)} / {self.key(heads)}"
        return dim // count

    @contextmanager
    def naming_keys(self) -> Iterator[None]:
        """Reports a value out of its range under the key that held it instead of its canonical name."""
        try:
            yield
        except BadParameter as error:
            name, bracket, index = error.where.partition("[")
            error.where = self.sources.get(name, name) + bracket + index
            raise


def extended(factor: float, original_length: int) -> int:
    """s·L, tokens, for a length of at most 2^48.

    Raises BadParameter where the factor is out of its range.
    """
    length = factor * original_length
    if not 0 < length <= 2**48:
        raise BadParameter(f"expected an extended length from 1 to 2^48, found {length:g}", where="factor")
    return max(round(length), 1)
