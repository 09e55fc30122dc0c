"""Finding a value in a Hugging Face config: key names, key paths, and checks that name the place.

A config is read through `Place`s, one after the other: the scaling object, the language model's own object, and what
the class defaults. All of them are JSON objects, so a default is looked up like any key.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ropecli.errors import BadParameter

Json: TypeAlias = Mapping[str, Any]

ORIGINAL = "original_max_position_embeddings"
"""The key of the original length: beside the other keys of a config, or in its scaling object."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "rope_theta": (
        "rope_theta",
        "rotary_emb_base",  # GPT-NeoX, Nomic, Qwen-1
        "rotary_embedding_base",
        "rope_base",
        "rope_embedding_base",  # Phi-3-small
        "rope_freq_constant",  # OpenELM
        "base",  # InternLM-1, inside `rotary`
        "attn_config.rope_theta",  # MPT, DBRX
    ),
    "head_dim": (
        "head_dim",
        "attention_head_dim",  # Zamba2
        "kv_channels",  # ChatGLM, Qwen-1, JetMoe
        "hidden_size_per_head",  # PLaMo
    ),
    "rotary_dim": ("rotary_dim",),  # GPT-J, CodeGen, MiniMax
    "partial_rotary_factor": (
        "partial_rotary_factor",
        "rotary_pct",  # GPT-NeoX, StableLM, Qwen-1
        "rope_pct",
        "rotary_emb_fraction",  # Nomic
        "partial_rotary_factors",  # Step, one a layer
    ),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "model_dim"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_num_attention_heads"),
    "layers": (
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "decoder_num_hidden_layers",
        "num_transformer_layers",  # OpenELM
    ),
    "layer_types": ("layer_types", "layers_block_type", "block_types"),
    "max_length": (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "seq_length",
        "max_seq_len",
        "max_sequence_length",
        "model_max_length",
        "max_context_length",  # OpenELM
        "max_seqlen",  # StripedHyena
    ),
    "sliding_window": ("sliding_window", "attention_window_size"),  # the second: PLaMo-2, RecurrentGemma
    "rope_type": ("rope_type", "type"),
    "factor": ("factor", "scaling_factor"),  # the second: Grok, InternLM-1
    "original_length": (ORIGINAL,),
    "mrope_section": ("mrope_section", "xdrope_section"),
}
"""Canonical name → the keys that mean it. The first that is present and not null wins."""

ELSEWHERE = frozenset(
    (
        "rotary_emb_base",
        "rotary_embedding_base",
        "rope_base",
        "rope_embedding_base",
        "rope_freq_constant",
        "rotary_pct",
        "rope_pct",
        "rotary_emb_fraction",
        "rope_ratio",
    )
)
"""Keys of a few model types. Others do not read them, so that a stray one changes nothing."""

PER_LAYER = ("layer_rope_theta", "rope_theta", "partial_rotary_factors")
"""Keys that may hold a list with one value a layer."""

CONTAINERS = (
    "text_config",
    "thinker_config",  # Qwen Omni
    "vlm_config",  # ColPali
    "llm_config",
    "language_config",
    "global_config",  # BLT
    "decoder_config",  # Dia
    "decoder",  # T5Gemma
)
"""Keys under which a config of several models keeps its language model."""

SCALING_OBJECTS = ("rope_scaling", "rope_parameters", "attn_config.rope_hf_config", "rotary")
"""Where the scaling object may stand; the first that is not empty wins (transformers 5.23, MPT, InternLM-1)."""

LAYOUT_KEYS = ("rope_interleave", "rope_interleaved", "rotary_emb_interleaved", "original_rope")
"""Keys that say whether neighbours form a pair (DeepSeek, GPT-NeoX forks, Nomic, ChatGLM)."""

LAYERS_LIMIT = 100_000
"""No model has so many layers: a config that says so is broken."""


@dataclass(frozen=True, slots=True)
class Found:
    """A value and where it stood: a key path, "default of model_type X", or "assumed: …"."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Place:
    """A JSON object, the dotted path that leads to it, and, for defaults, the words that say so instead of a path."""

    data: Json
    path: str = ""
    origin: str = ""

    def key(self, name: str) -> str:
        """The path of a key of this object."""
        return self.origin or (f"{self.path}.{name}" if self.path else name)

    def inner(self, name: str) -> "Place":
        """The object under a key (empty where there is none); raises BadParameter where it is something else."""
        found = self.find(name)
        if found is None:
            return Place({}, self.key(name), self.origin)
        if not isinstance(found.value, Mapping):
            raise BadParameter(f"expected an object, found {_shown(found.value)}", where=found.source)
        return Place(found.value, self.key(name), self.origin)

    def find(self, *names: str) -> Found | None:
        """The first of these keys that is present and not null; a dot leads into an inner object."""
        for name in names:
            value: Any = self.data
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                return Found(value, self.key(name))
        return None


def nearest(places: Sequence[Place], *names: str) -> Found | None:
    """The value of the first place that has any of these canonical names."""
    keys = [key for name in names for key in NAMES.get(name, (name,))]
    return next((found for place in places if (found := place.find(*keys)) is not None), None)


def number(found: Found) -> float:
    """The value as a finite number; raises BadParameter at its key path."""
    value = found.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise BadParameter(f"expected a number, found {_shown(value)}", where=found.source)
    return float(value)


def whole(found: Found, *, most: int = 2**48) -> int:
    """The value as a whole number from 1 to `most`; raises BadParameter at its key path."""
    value = number(found)
    if value != int(value) or not 1 <= value <= most:
        raise BadParameter(f"expected a whole number from 1 to {most}, found {_shown(found.value)}", where=found.source)
    return int(value)


def boolean(found: Found) -> bool:
    """The value as a truth value, 0 and 1 included; raises BadParameter at its key path."""
    if found.value not in (True, False):
        raise BadParameter(f"expected true or false, found {_shown(found.value)}", where=found.source)
    return bool(found.value)


def items(found: Found) -> list[Any]:
    """The value as a list; raises BadParameter at its key path."""
    if not isinstance(found.value, Sequence) or isinstance(found.value, str):
        raise BadParameter(f"expected a list, found {_shown(found.value)}", where=found.source)
    return list(found.value)


def numbers(found: Found) -> tuple[float, ...]:
    """The value as a list of finite numbers; raises BadParameter at the key path of the first that is not."""
    return tuple(number(Found(value, f"{found.source}[{i}]")) for i, value in enumerate(items(found)))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True, slots=True)
class Reader:
    """Looks canonical names up for one kind of layer and remembers where each was found.

    rope     the scaling object, which transformers calls `rope_parameters`, and what fills its gaps
    text     the places that describe the model, nearest first, the class defaults last
    sources  canonical name → where it was found; filled as values are read
    """

    rope: tuple[Place, ...]
    text: tuple[Place, ...]
    sources: dict[str, str] = field(default_factory=dict)

    def in_rope(self, name: str) -> Found | None:
        """The value in the scaling object."""
        return nearest(self.rope, name)

    def in_text(self, name: str) -> Found | None:
        """The value among the model's own keys, else among its defaults."""
        return nearest(self.text, name)

    def first_in_text(self, *names: str) -> tuple[str, Found] | None:
        """The nearest of these canonical names, and which one it is."""
        for place in self.text:
            for name in names:
                found = nearest((place,), name)
                if found is not None:
                    return name, found
        return None

    def anywhere(self, name: str) -> Found | None:
        """The value in the scaling object, else in the text."""
        return self.in_rope(name) or self.in_text(name)

    def note(self, name: str, found: Found) -> Found:
        """Records where the value of a canonical name was found."""
        self.sources[name] = found.source
        return found

    def scaling_number(self, name: str, default: Found | None = None) -> float:
        """A number of the scaling object; raises BadParameter where it is neither there nor defaulted."""
        found = self.in_rope(name) or default
        if found is None:
            raise BadParameter(f"expected {name}, found none", where=self.rope[0].key(NAMES.get(name, (name,))[0]))
        return number(self.note(name, found))
