"""What `--emit` starts from: a checkpoint that stays as it is, and the rotary embedding that a runtime is to give it.

A runtime that overrides members of the config replaces an object whole, so every object here is complete: base, widths
and sections stand in it beside the scaling.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ropecli.dialects import hf
from ropecli.dialects.hf_keys import NAMES, ORIGINAL
from ropecli.dialects.hf_scaling import scaling_dict, served_length, written_theta
from ropecli.errors import BadUsage
from ropecli.frequencies import Frequencies, frequencies
from ropecli.runtimes.comparison import compare
from ropecli.runtimes.keys import block
from ropecli.runtimes.reading import Keys, Reading, Request, Runtime
from ropecli.spec import Dynamic, LayerRope, Ntk, Plain, Proportional, RopeSpec

WHERE = "--emit"

SPLIT_BY_TRANSFORMERS = {
    *("dots3_note", "fuyu", "glm5_next", "hunyuan_vl", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl"),
}
"""Multimodal types whose config.json may be flat: transformers 5.23 moves the language model's keys to `text_config`
when it loads it, so that an override has to go there."""

SCALING_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", ORIGINAL, "finetuned", "partial_rotary_factor"),
    *("beta_fast", "beta_slow", "truncate", "attention_factor", "attn_factor", "mscale", "mscale_all_dim"),
    *("extrapolation_factor", "apply_yarn_scaling", "low_freq_factor", "high_freq_factor"),
    *("short_factor", "long_factor", "short_mscale", "long_mscale", "alpha", "beta", "mixed_b"),
    "max_trained_positions",
}
"""Keys of a scaling object that a new scaling replaces. All others (`mrope_section`, `llama_4_scaling_beta`) stay."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A checkpoint to be served unchanged, and how its layers are to rotate.

    config  the whole config as parsed; for a GGUF its metadata
    ropes   what each kind of layer rotates with as it is
    intent  name of a kind of layer → what it is to rotate with; the others stay as they are
    """

    config: Keys
    ropes: tuple[LayerRope, ...]
    intent: Mapping[str, RopeSpec]

    @property
    def text(self) -> Keys:
        """The object that describes the language model."""
        return hf.text_config(self.config)[0]

    @property
    def path(self) -> tuple[str, ...]:
        """The keys that lead to it in the file."""
        return hf.text_config(self.config)[1]

    @property
    def loaded_path(self) -> tuple[str, ...]:
        """The attributes that lead to it once transformers has loaded the config."""
        split = self.model_type in SPLIT_BY_TRANSFORMERS and not self.path
        return ("text_config",) if split else self.path

    @property
    def model_type(self) -> str:
        """The language model's `model_type`, or ""."""
        return hf.model_type(self.config)

    @property
    def architecture(self) -> str:
        """The class name in `architectures`, or ""."""
        return hf.class_name(self.config)

    @property
    def gguf_architecture(self) -> str | None:
        """llama.cpp's name of the architecture where the checkpoint is a GGUF, else None."""
        name = self.config.get("general.architecture")
        return name if isinstance(name, str) else None

    @property
    def layered(self) -> bool:
        """Whether kinds of layers rotate differently."""
        return any(rope.name != "default" for rope in self.ropes)

    @property
    def asked(self) -> tuple[LayerRope, ...]:
        """The kinds of layers that `intent` names, as they are to rotate."""
        return tuple(replace(rope, spec=self.intent[rope.name]) for rope in self.ropes if rope.name in self.intent)

    @property
    def length(self) -> int:
        """Tokens that the runtime is to serve."""
        return max(spec.max_length for spec in self.intent.values())


def must_have_config(serving: Serving) -> None:
    """Raises BadUsage for a GGUF."""
    if serving.gguf_architecture is not None:
        raise refused("a GGUF has no config.json to override", "use --emit llama.cpp, or name the original checkpoint")


def refused(problem: str, hint: str) -> BadUsage:
    """The error for what a runtime cannot do by flags."""
    return BadUsage(problem, where=WHERE, hint=hint)


def override(serving: Serving, read: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Members of the loaded text config to set, for a runtime that loads it through transformers 5.

    read  rope_type → the scaling keys that the runtime needs; of a type that is not there all are kept
    Raises BadUsage for a GGUF, and for what no config can say.
    """
    must_have_config(serving)
    changes: dict[str, Any] = lengths(serving)
    blocks = {rope.name: parameters(serving, rope, read) for rope in serving.ropes}
    if serving.layered:
        changes["rope_parameters"] = block(serving.text, "rope_parameters") | blocks
        return changes
    (changes["rope_parameters"],) = blocks.values()
    if ORIGINAL in serving.text:
        # transformers lets the top-level value win over the one in the object
        (changes[ORIGINAL],) = {spec.original_length for spec in serving.intent.values()}
    return changes


def lengths(serving: Serving) -> dict[str, Any]:
    """The served length under every name that the config has for it; `dynamic` counts from the original one."""
    names = [key for key in NAMES["max_length"] if serving.text.get(key) is not None] or ["max_position_embeddings"]
    return dict.fromkeys(names, max(served_length(spec) for spec in serving.intent.values()))


def parameters(serving: Serving, rope: LayerRope, read: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """`rope_parameters` of one kind of layer, complete: as asked for, or as it is where nothing was asked.

    Raises BadUsage for what no config can say.
    """
    old, spec = scaling_object(serving, rope.name), serving.intent.get(rope.name)
    if spec is None:
        as_it_is = old or _as_it_is(rope.spec)
        return {"rope_theta": rope.spec.rope_theta, "rope_type": old.get("type", "default"), **as_it_is}
    scaling = scaling_dict(spec) or {"rope_type": "default"}
    wanted = read.get(scaling["rope_type"], tuple(scaling))
    return {
        "rope_type": scaling["rope_type"],
        "rope_theta": written_theta(spec),
        **{key: value for key, value in scaling.items() if key in wanted},
        **{key: value for key, value in old.items() if key not in SCALING_KEYS},
        **_share(spec, (serving.text, old), mla=rope.mla),
    }


def filled(changes: Keys, serving: Serving, more: Callable[[LayerRope], Keys]) -> dict[str, Any]:
    """The changes with more keys in `rope_parameters` of each kind of layer that is asked for; those there win."""
    whole = changes["rope_parameters"]
    for rope in serving.asked:
        own = whole[rope.name] if serving.layered else whole
        own = {**own, **{key: value for key, value in more(rope).items() if key not in own}}
        whole = {**whole, rope.name: own} if serving.layered else own
    return {**changes, "rope_parameters": whole}


def scaling_object(serving: Serving, name: str) -> Keys:
    """The scaling object that the file has for a kind of layer; empty where it has none."""
    objects = [block(serving.text, key) for key in ("rope_scaling", "rope_parameters")]
    if serving.layered:
        objects = [block(found, name) for found in objects]
    return next((found for found in objects if found), {})


def _as_it_is(spec: RopeSpec) -> dict[str, Any]:
    """What a class's defaults, or older keys, say of a kind of layer that stays as it is."""
    if isinstance(spec.scaling, Proportional):
        share = spec.scaling.partial_rotary_factor
        return {"rope_type": "proportional", "factor": spec.scaling.factor, "partial_rotary_factor": share}
    return (scaling_dict(spec) or {"rope_type": "default"}) | _share(spec, (), mla=False)


def _share(spec: RopeSpec, places: Sequence[Keys], *, mla: bool) -> dict[str, Any]:
    """`partial_rotary_factor`, which the class has put into the object that is now replaced."""
    found = [place["partial_rotary_factor"] for place in places if place.get("partial_rotary_factor") is not None]
    if mla:
        # the rotated slice has a width of its own, and the key means another one
        return {"partial_rotary_factor": found[-1]} if found else {}
    if not found and spec.rotary_dim == spec.head_dim:
        return {}
    shares = (*found, spec.rotary_dim / spec.head_dim, (spec.rotary_dim + 0.5) / spec.head_dim)
    return {"partial_rotary_factor": next(s for s in shares if int(spec.head_dim * s) == spec.rotary_dim)}


def placed(config: Keys, path: Sequence[str], changes: Keys, *, merged: int) -> dict[str, Any]:
    """The changes under the keys that lead to the text config.

    merged  how many levels of objects the runtime merges into those it has; deeper ones replace, so they are whole
    """
    if not path:
        return dict(changes)
    inner = block(config, path[0])
    value = placed(inner, path[1:], changes, merged=merged - 1)
    # an older spelling left in a whole object would win over the new one
    kept = {} if merged > 0 else {key: old for key, old in inner.items() if key != "rope_scaling"}
    return {path[0]: kept | value}


def one_line(value: Keys) -> str:
    """JSON without a line break, in ASCII."""
    return json.dumps(value, allow_nan=False)


def must_agree(runtime: Runtime, serving: Serving, changes: Keys) -> None:
    """Raises BadUsage unless the runtime, given these members of the text config, computes what was asked for."""
    unread = {"rope_scaling"} if "rope_scaling" not in changes else set()
    text = {key: value for key, value in {**serving.config, **serving.text}.items() if key not in unread}
    for rope in serving.asked:
        request = Request(
            config={**text, **changes},
            rope=rope,
            architecture=serving.architecture,
            model_type=serving.model_type,
            layer_type=rope.name if serving.layered else None,
            class_defaults=hf.class_defaults(serving.config, rope.name),
        )
        reading = runtime.read(request)
        meant = frequencies(rope.spec)
        difference, agrees = compare(reading, meant)
        if not agrees:
            raise refused(
                f"{runtime.name} {runtime.version} cannot be told by flags: {_difference(reading, difference, meant)}",
                "use another runtime or another --rope-type; leave --no-truncate out if it was given",
            )


def _difference(reading: Reading, difference: float | None, meant: Frequencies) -> str:
    if difference is None or reading.attention_factor is None:
        return "; ".join(reading.notes)
    found = (
        f"frequencies off by up to {difference:.2g}, attention factor {reading.attention_factor:.6g} "
        f"instead of {meant.attention_factor:.6g}"
    )
    return "; ".join((found, *reading.notes))


def must_not_be_latent(name: str, serving: Serving) -> None:
    """Raises BadUsage for a scaling on latent attention (DeepSeek), which the runtime computes by rules of its own."""
    if any(rope.mla and not isinstance(rope.spec.scaling, Plain | Ntk) for rope in serving.asked):
        raise refused(
            f"{name} scales latent attention by rules of its own, its softmax included",
            "use --rope-type ntk, or --emit transformers",
        )


def must_not_switch(name: str, serving: Serving, *, dynamic: bool) -> None:
    """Raises BadUsage for frequencies that change with the length; `dynamic`: the runtime has that kind of them."""
    for spec in serving.intent.values():
        if spec.length_dependent and not (dynamic and isinstance(spec.scaling, Dynamic)):
            instead = "ntk" if isinstance(spec.scaling, Dynamic) else "longrope with one list"
            raise refused(
                f"{name} has one table for all lengths, and {spec.rope_type} changes with the length",
                f"use --rope-type {instead}",
            )
