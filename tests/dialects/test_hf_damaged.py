"""Damaged configs: any value of any shape replaced by something else is read or refused, never a crash."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ropecli.dialects import hf
from ropecli.errors import BadCheckpoint
from ropecli.frequencies import frequencies

CASES = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.glob("../cases/*.json")
}
JUNK = (None, True, "x", "", -1, 0, 1, 1.5, 1e-300, 1e300, 10**30, math.nan, math.inf, [], [1], ["x"], {}, {"a": 1})


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value, the inner ones too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        if not isinstance(value, list) or key < 2:
            yield from paths(item, (*path, key))


def replaced(config: dict[str, Any], path: tuple[Any, ...], junk: Any) -> dict[str, Any]:
    """A copy of the config with one value replaced."""
    result = copy.deepcopy(config)
    place: Any = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = junk
    return result


def outcome(config: dict[str, Any]) -> bool:
    """Whether the config gives finite numbers or an error with a place and a reason."""
    try:
        ropes = hf.read(config)
    except BadCheckpoint as error:
        return bool(error.where and error.problem)
    return all(math.isfinite(w) for rope in ropes for w in frequencies(rope.spec).inv_freq)


@pytest.mark.parametrize("name", sorted(CASES))
def test_any_damage_is_read_or_refused(name: str) -> None:
    """Each value of the case in turn becomes each kind of junk: finite numbers come back, or a place and a reason."""
    config = CASES[name]["config"]
    for path in paths(config):
        if isinstance(path[-1], int) and path[-1] > 1:
            continue
        for junk in JUNK:
            assert outcome(replaced(config, path, junk)), (path, junk)


def test_a_config_that_is_empty_says_what_it_needs() -> None:
    """No key at all is not enough."""
    with pytest.raises(BadCheckpoint, match="expected head_dim, or hidden_size and num_attention_heads"):
        hf.read({})
