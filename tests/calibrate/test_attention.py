"""`calibrate.attention`: long windows in float32 where that is quicker, and transformers' sdpa everywhere else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, config, random_ids
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from calibrate import attention
from calibrate.attention import LONGER_THAN, in_float32
from calibrate.corpus import Document
from calibrate.fence import attending, rotating_with
from calibrate.gradient import slope
from calibrate.model import LoadedModel, Settings, load
from calibrate.score import Bands, nats_by_band, picked, token_nll
from ropecli.frequencies import Frequencies

TINY = Path(__file__).parents[2] / "examples" / "tiny"

LONG = LONGER_THAN + 77


class Layer:
    """What transformers' function reads of an attention module."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        self.num_key_value_groups = groups


class Watched:
    """transformers' function for sdpa, and the dtype of the queries of each call."""

    def __init__(self) -> None:
        self.dtypes: list[torch.dtype] = []

    def __call__(self, module: Any, query: torch.Tensor, *rest: Any, **how: Any) -> tuple[torch.Tensor, Any]:
        self.dtypes.append(query.dtype)
        return sdpa_attention_forward(module, query, *rest, **how)


def inputs(groups: int, head_dim: int, length: int, scale: float = 1.0, windows: int = 1) -> list[torch.Tensor]:
    """Query, key and value in bfloat16, for two key heads."""
    generator = torch.Generator().manual_seed(groups * head_dim + length)
    shapes = [(windows, heads, length, head_dim) for heads in (2 * groups, 2, 2)]
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return [x.bfloat16() for x in (q * scale, k * scale, v)]


def rms(error: torch.Tensor) -> float:
    return float(error.double().pow(2).mean().sqrt())


def model(dtype: torch.dtype, **extra: Any) -> Any:
    return build(config("llama", max_position_embeddings=4096, **extra)).to(dtype)


def loaded(of: Any, float32_attention: bool) -> LoadedModel:
    return LoadedModel(of, list, None, torch.device("cpu"), float32_attention=float32_attention)


# ------------------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize(
    ("groups", "head_dim", "length", "scale", "windows"),
    [
        (1, 32, LONGER_THAN + 1, 1.0, 2),
        (2, 64, 1300, 2.0, 1),
        (3, 64, 1537, 3.0, 1),
        (8, 128, 1111, 1.0, 1),
    ],
)
def test_the_error_is_no_larger_than_that_of_sdpa(
    groups: int, head_dim: int, length: int, scale: float, windows: int
) -> None:
    """Against float32; the same bits every time."""
    module, (q, k, v) = Layer(groups), inputs(groups, head_dim, length, scale, windows)
    exact, _ = sdpa_attention_forward(module, q.float(), k.float(), v.float(), None)
    usual, _ = sdpa_attention_forward(module, q, k, v, None)
    found, weights = in_float32(sdpa_attention_forward)(module, q, k, v, None)
    assert (found.dtype, found.shape, weights) == (torch.bfloat16, (windows, length, 2 * groups, head_dim), None)
    assert found.is_contiguous()
    assert 0 < rms(found - exact) <= 1.1 * rms(usual - exact)
    assert torch.equal(found, in_float32(sdpa_attention_forward)(module, q, k, v, None)[0])


def test_a_scale_of_its_own_is_kept() -> None:
    module, (q, k, v) = Layer(2), inputs(2, 32, LONG)
    exact, _ = sdpa_attention_forward(module, q.float(), k.float(), v.float(), None, scaling=0.4)
    found, _ = in_float32(sdpa_attention_forward)(module, q, k, v, None, scaling=0.4)
    assert rms(found - exact) < 0.003 * rms(exact)


def test_a_later_token_does_not_change_earlier_outputs() -> None:
    """Bit by bit."""
    module, (q, k, v) = Layer(3), inputs(3, 64, LONG)
    before, _ = in_float32(sdpa_attention_forward)(module, q, k, v, None)
    for x in (q, k, v):
        x[:, :, 700:] = x[:, :, 700:].flip(2)
    after, _ = in_float32(sdpa_attention_forward)(module, q, k, v, None)
    assert torch.equal(before[:, :700], after[:, :700])
    assert not torch.equal(before[:, 700:], after[:, 700:])


def test_torch_is_left_as_it_was() -> None:
    """Also by an attention that fails."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    inside: list[str] = []

    def broken(*_: Any, **__: Any) -> Any:
        inside.append(torch.backends.mkldnn.matmul.fp32_precision)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        in_float32(broken)(Layer(2), *inputs(2, 32, LONG), None)
    assert inside == ["bf16"]
    assert torch.backends.mkldnn.matmul.fp32_precision == before != "bf16"


# ------------------------------------------------------------------------------------------------ where it is not used


@pytest.mark.parametrize(
    "case",
    [
        *("mask", "short", "not causal", "module not causal", "fewer queries", "gradient", "dropout"),
        *("float32", "float16", "wider values", "sinks"),
    ],
)
def test_anything_else_goes_to_sdpa_as_it_is(case: str) -> None:
    """The very tensors that came in, and the same bits out."""
    module, how = Layer(2), dict[str, Any]()
    q, k, v = inputs(2, 32, LONGER_THAN if case == "short" else LONG)
    mask = None
    match case:
        case "mask":
            mask = torch.ones(LONG, LONG, dtype=torch.bool).tril().triu(-100)[None, None]
        case "not causal":
            how["is_causal"] = False
        case "module not causal":
            module.is_causal = False
        case "fewer queries":
            q = q[:, :, -1:]
        case "gradient":
            q.requires_grad_()
        case "dropout":
            how["dropout"] = 0.5
        case "float32" | "float16":
            q, k, v = (x.to(getattr(torch, case)) for x in (q, k, v))
        case "wider values":
            v = torch.cat([v, v], dim=-1)
        case "sinks":
            how["s_aux"] = torch.zeros(4, dtype=torch.bfloat16)
    seen: list[torch.Tensor] = []

    def plain(module: Any, query: torch.Tensor, *rest: Any, **how: Any) -> tuple[torch.Tensor, Any]:
        seen.extend((query, *rest[:2]))
        return sdpa_attention_forward(module, query, *rest, **how)

    torch.manual_seed(0)
    found, _ = in_float32(plain)(module, q, k, v, mask, **how)
    assert [id(x) for x in seen] == [id(x) for x in (q, k, v)]
    torch.manual_seed(0)
    assert torch.equal(found, sdpa_attention_forward(module, q, k, v, mask, **how)[0])


def test_what_sdpa_refuses_is_still_refused() -> None:
    with pytest.raises(ValueError, match="softcap"):
        in_float32(sdpa_attention_forward)(Layer(2), *inputs(2, 32, LONG), None, softcap=5.0)


# ------------------------------------------------------------------------------------------------ in a model


@pytest.mark.parametrize(
    ("family", "own", "expected"),
    [
        ("llama", {}, [torch.float32, torch.float32]),
        ("mistral", {"sliding_window": 4096}, [torch.float32, torch.float32]),
        ("mistral", {"sliding_window": 64}, [torch.bfloat16, torch.bfloat16]),
        ("cohere2", {"sliding_window": 64}, [torch.bfloat16, torch.float32]),
        ("deepseek_v3", {"v_head_dim": 16}, [torch.float32, torch.float32]),
    ],
)
def test_layers_that_see_the_whole_window_are_scored_in_float32(
    family: str, own: dict[str, Any], expected: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers with a window of their own get a mask."""
    of = build(config(family, max_position_embeddings=4096, **own)).to(torch.bfloat16)
    watched = Watched()
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", watched)
    with torch.no_grad(), attending(loaded(of, True)):
        token_nll(of, random_ids(2, LONG))
    assert watched.dtypes == expected
    assert AttentionInterface()["sdpa"] is watched
    watched.dtypes.clear()
    with torch.no_grad(), attending(loaded(of, False)):
        token_nll(of, random_ids(1, LONG))
    assert set(watched.dtypes) == {torch.bfloat16}


def test_the_loss_agrees_with_that_of_float32() -> None:
    """As well as sdpa's does, token by token; short windows have the same bits as before."""
    of, text, bands = model(torch.bfloat16), random_ids(1, LONG), Bands((1, 512, LONG))
    documents = [Document("d", (tuple(text[0].tolist()),))]
    with torch.no_grad():
        exact, usual = token_nll(of.float(), text), token_nll(of.bfloat16(), text)
        with attending(loaded(of, True)):
            found = token_nll(of, text)
            short = token_nll(of, text[:, :LONGER_THAN])
        assert torch.equal(short, token_nll(of, text[:, :LONGER_THAN]))
    assert not torch.equal(found, usual)
    assert rms(found - exact) <= 1.2 * rms(usual - exact)
    sums = nats_by_band(loaded(of, True), documents, bands)
    assert sums.tolist() == [[float(found[0, :511].double().sum()), float(found[0, 511:].double().sum())]]
    assert sums.tolist() != nats_by_band(loaded(of, False), documents, bands).tolist()


def test_a_gradient_is_that_of_sdpa() -> None:
    """Bit by bit, with or without."""
    of, bands = model(torch.bfloat16), Bands((1, LONG))
    documents = [Document("d", (tuple(random_ids(1, LONG)[0].tolist()),))]
    table = Frequencies((1.0, 0.1, 0.01, 0.001), 1.0)
    found = []
    for float32_attention in (True, False):
        with attending(loaded(of, float32_attention)):
            found.append(slope(loaded(of, float32_attention), "default", table, documents, bands, [1.0]))
    assert found[0].nats == found[1].nats
    assert found[0].attention_factor == found[1].attention_factor
    assert found[0].inv_freq.tolist() == found[1].inv_freq.tolist()
    with rotating_with(of, {"default": table}):
        assert abs(nats_by_band(loaded(of, True), documents, bands)[0, 0] / found[0].nats - 1) < 1e-3


# ------------------------------------------------------------------------------------------------ when it is picked


@pytest.mark.parametrize(
    ("able", "settings", "said"),
    [
        (True, Settings("cpu"), "cpu, bfloat16, float32 sdpa attention, 6 windows at once"),
        (False, Settings("cpu"), "cpu, bfloat16, sdpa attention, 6 windows at once"),
        (True, Settings("cpu", attn_implementation="sdpa"), "cpu, bfloat16, sdpa attention, 6 windows at once"),
        (True, Settings("cpu", attn_implementation="eager"), "cpu, bfloat16, eager attention, 6 windows at once"),
        (True, Settings("cpu", dtype="float32"), "cpu, float32, sdpa attention, 6 windows at once"),
    ],
)
def test_it_is_picked_for_bfloat16_on_such_a_processor(
    able: bool, settings: Settings, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And named before it runs, for the windows that it is used for; any `--attn-implementation` switches it off."""
    monkeypatch.setattr(attention, "pays_here", lambda: able)
    found = load(str(TINY), settings)
    assert found.float32_attention == ("float32 sdpa" in said)
    assert picked(found, LONGER_THAN + 1) == said.replace("6 windows", "7 windows")
    assert picked(found, 1200) == said
    assert picked(found, LONGER_THAN) == picked(replace(found, float32_attention=False), LONGER_THAN)


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_the_processor_decides(able: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert attention.pays_here() == expected
