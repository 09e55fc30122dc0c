"""Writes `ropecli/dialects/model_types.json`: what the installed transformers defaults for each `model_type`.

    python tests/make_model_types.py            # writes the file
    python tests/make_model_types.py --check    # exit status 1 when the file is stale

The defaults are read from instances of the configuration classes; what no instance shows is found by asking the code: a
class is given an older key and the answer looked at, a rotary module is built and its pairs counted, the function that
rotates is read. The few facts that live in a condition inside a forward pass are the tables below, by hand.
"""

import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

TARGET = Path(__file__).parents[1] / "ropecli" / "dialects" / "model_types.json"

KEPT = (
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "qk_rope_head_dim",
    "rotary_dim",
    "sliding_window",
    "no_rope_layer_interval",
    "rope_interleave",
    "use_sliding_window",
    "cross_attention_layers",
)
"""Attributes whose default is kept under their own name."""

LISTS = ("layer_types", "layers_block_type", "block_types", "no_rope_layers")
"""Attributes with one value a layer: their shortest repeating part is kept."""

ELSEWHERE: Mapping[str, Any] = {
    "rotary_emb_base": 12345.0,
    "rotary_embedding_base": 12345.0,
    "rope_base": 12345.0,
    "rope_embedding_base": 12345.0,
    "rope_freq_constant": 12345.0,
    "rotary_pct": 0.75,
    "rope_pct": 0.75,
    "rotary_emb_fraction": 0.75,
    "rope_ratio": 0.5,
}
"""Keys that few classes read (`hf_keys.ELSEWHERE`): each is tried on each class, and those that it reads are kept."""

COMMON: Mapping[str, Any] = {"rope_theta": 12345.0, "partial_rotary_factor": 0.75, "rope_scaling": {}, "head_dim": 112}
"""Keys that nearly all classes read: each is tried on each class, and those that it does not read are kept."""

THETA_KEYS = ("rope_theta", "rotary_emb_base", "rope_local_base_freq", "global_rope_theta", "local_rope_theta")
THETA_KEYS += ("swa_rope_theta", "compress_rope_theta")
"""Keys that some class reads a base from; each is tried on each class whose default is nested."""

SLIDING_ROTATES = ("afmoe", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "flint", "kolibri1", "lara_mini")
"""Only the sliding layers rotate: `if self.sliding_window is not None` and its like in the forward pass."""

ROPE_IF: Mapping[str, Mapping[str, Any]] = {
    "granitemoehybrid": {"position_embedding_type": "rope"},
    "zamba2": {"use_mem_rope": True},
    "esm": {"position_embedding_type": "rotary"},
}
"""Models that rotate only where a key says so."""

BY_HAND: Mapping[str, Mapping[str, Any]] = {
    "phi3": {"rope_types": {"su": "longrope", "yarn": "longrope"}},  # Phi3Config.convert_rope_params_to_dict
    "phi4_multimodal": {"rope_types": {"su": "longrope", "yarn": "longrope"}},
    "hunyuan_vl_text": {"rope_types": {"xdrope": "ntk_alpha"}},  # HunYuanVLTextConfig.convert_rope_params_to_dict
    "phimoe": {"mscale_pair": True},  # PhimoeRotaryEmbedding.forward
    "zamba2": {"attention_expand": 2},  # Zamba2Config: attention_hidden_size = 2 * hidden_size
    "mimo_v2_flash": {"partial_rotary_factor": 0.334},  # MiMoV2FlashRotaryEmbedding
    "step3p5": {"groups": {"sliding_attention": {"theta_keys": ["rope_theta"]}}},  # Step3p7TextConfig.__post_init__
    "deepseek_v4": {  # DeepseekV4Attention: `rope_layer_type`
        "groups": {
            "main": {"layer_types": ["sliding_attention"]},
            "compress": {"layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"]},
        }
    },
}
"""Facts that stand in the code alone."""

WITHOUT_ROPE_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "gptj": {"rope_theta": 10000.0, "layout": "interleaved"},  # create_sinusoidal_positions, rotate_every_two
    "codegen": {"rope_theta": 10000.0, "layout": "interleaved"},
    "roformer": {"rope_theta": 10000.0, "layout": "interleaved"},  # RoFormerSinusoidalPositionalEmbedding
    "esm": {"rope_theta": 10000.0},
}
"""Types of transformers that rotate although their config has no `rope_parameters`."""

NO_DEFAULT = {
    "gemma4_assistant": "its default is refused by its own validator",
    "musicgen": "holds two text models",
    "musicgen_melody": "holds two text models",
    "nougat": "its default names a model type that does not exist",
}
"""Model types whose class cannot be built without arguments, and why."""

TOWERS = {
    "llama4_vision_model": "image encoder: angles of patch positions, no inverse frequencies",
    "efficientloftr": "image matcher: the share of the head is 4, for two axes",
    "eomt_dinov3": "image encoder: angles of patch coordinates in [−1, 1]",
}
"""Types with a flat `rope_parameters` that is not for text; those with an "axial" one are left out by that name."""

LANGUAGE_MODEL = {"blt": "global_config"}
"""Where `get_text_config` does not find the language model."""

REMOTE: Mapping[str, Mapping[str, Any]] = {
    "chatglm": {  # zai-org/chatglm3-6b modeling_chatglm.py: RotaryEmbedding(rotary_dim // 2), base 10000 · rope_ratio
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "layout": "interleaved",
        "reads": ["rope_ratio"],
    },
    "baichuan": {  # vLLM baichuan.py: the model of 4096 dimensions rotates, that of 5120 has ALiBi
        "rope_theta": 10000.0,
        "rope_if": {"hidden_size": 4096},
    },
    "ernie4_5_moe_vl": {"rope_theta": 10000.0, "layout": "interleaved"},  # baidu/ERNIE-4.5-VL modeling: stacks sin, sin
    "neobert": {  # chandar-lab/NeoBERT rotary.py: view_as_complex; `max_length` of NeoBERTConfig
        "rope_theta": 10000.0,
        "layout": "interleaved",
        "max_position_embeddings": 4096,
    },
}
"""Types whose code is not in transformers but in the checkpoint, and that say less than they do."""

REMOTE_WITHOUT = ("delta_net", "gated_deltanet", "gla", "hgrn", "hgrn2", "jais", "phi4flash", "rwkv5", "rwkv6", "rwkv7")
"""Types of which the same holds, and that have no rotary embedding: linear attention, recurrence, ALiBi."""


def text_configs(names: Iterable[str] = CONFIG_MAPPING) -> Iterator[tuple[str, PreTrainedConfig, PreTrainedConfig]]:
    """These model types, or every one: (its name, its default config, that of its language model)."""
    for name in names:
        if name not in NO_DEFAULT:
            config = CONFIG_MAPPING[name]()
            inner = LANGUAGE_MODEL.get(name)
            yield name, config, getattr(config, inner) if inner else config.get_text_config()


def has_rope(config: PreTrainedConfig) -> bool:
    """Whether a text config has a rotary embedding for text; "axial" ones are for images."""
    parameters = getattr(config, "rope_parameters", None)
    return bool(parameters) and parameters.get("rope_type") != "axial" and config.model_type not in TOWERS


def modeling(config: PreTrainedConfig) -> ModuleType:
    """The module that holds the model of a config; some types borrow another's."""
    try:
        return importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    except ModuleNotFoundError:
        return importlib.import_module(MODEL_MAPPING[type(config)].__module__)


def rotary_class(config: PreTrainedConfig) -> type[nn.Module]:
    """The class of the rotary module that a text config's model builds."""
    module = modeling(config)
    classes = [c for name, c in vars(module).items() if name.endswith("RotaryEmbedding") and inspect.isclass(c)]
    for c in classes:
        annotation = inspect.signature(c).parameters.get("config")
        if annotation is not None and annotation.annotation is type(config):
            return c
    return next((c for c in classes if not re.search("Vision|Audio|DiT|SaProt", c.__name__)), classes[0])


def frequencies(config: PreTrainedConfig) -> dict[str, tuple[list[float], float]]:
    """What the model's own rotary module computes: layer type ("" where there is one for all) → (inv_freq, m)."""
    module = rotary_class(config)(config)
    if hasattr(module, "inv_freq"):
        return {"": (module.inv_freq.tolist(), float(module.attention_scaling))}
    return {
        name.removesuffix("_inv_freq"): (
            value.tolist(),
            float(getattr(module, name.removesuffix("inv_freq") + "attention_scaling")),
        )
        for name, value in module.named_buffers()
        if name.endswith("_inv_freq") and not name.endswith("_original_inv_freq")
    }


def nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `rope_parameters` that is keyed by layer type."""
    return {name: value for name, value in parameters.items() if isinstance(value, dict)}


def entry(config: PreTrainedConfig) -> dict[str, Any]:
    """The facts of a model type, from a default instance of its class."""
    facts: dict[str, Any] = {key: v for key in KEPT if (v := attribute(config, key)) is not None}
    fields = getattr(type(config), "__dataclass_fields__", {})
    for key in ("head_dim", "kv_channels"):
        if key in fields and isinstance(fields[key].default, int):
            facts[key] = attribute(config, key)
    for key in LISTS:
        if attribute(config, key):
            facts[key] = repeating_part(list(attribute(config, key)))
    if facts.get("no_rope_layer_interval"):
        facts.pop("no_rope_layers", None)
    elif 0 in (attribute(config, "layer_rope_theta") or ()):
        facts["no_rope_layers"] = repeating_part([int(bool(theta)) for theta in config.layer_rope_theta])
    if facts.get("layer_types") == ["full_attention"] and not nested(getattr(config, "rope_parameters", None) or {}):
        del facts["layer_types"]
    if "max_position_embeddings" not in facts and getattr(config, "model_max_length", None):
        facts["max_position_embeddings"] = config.model_max_length
    if has_rope(config):
        facts |= rope_facts(config)
        facts["reads"] = [key for key, value in ELSEWHERE.items() if has_effect(config, {key: value})]
        facts["unread"] = [key for key in COMMON if not is_read(config, key)]
        for key in ("reads", "unread"):
            if not facts[key]:
                del facts[key]
    return facts


def is_read(config: PreTrainedConfig, key: str) -> bool:
    """Whether one of the common keys changes anything, alone or beside a scaling object."""
    scaling = {"rope_type": "linear", "factor": 3.0}
    if key == "rope_scaling":
        return has_effect(config, {key: scaling})
    if key == "rope_theta" and nested(config.rope_parameters):
        return True  # the groups say which of them reads it
    alone, beside = {key: COMMON[key]}, {"rope_scaling": scaling, key: COMMON[key]}
    return has_effect(config, alone) or (
        computed(config, {"rope_scaling": scaling}) is not None
        and computed(config, beside) != computed(config, {"rope_scaling": scaling})
    )


def has_effect(config: PreTrainedConfig, keys: Mapping[str, Any]) -> bool:
    """Whether keys change what the rotary module computes, or the class refuses them as it would any bad value."""
    return computed(config, keys) != computed(config, {})


def computed(config: PreTrainedConfig, keys: Mapping[str, Any]) -> dict[str, tuple[list[float], float]] | None:
    """What the rotary module of a config of the same class computes; None where the class refuses the keys."""
    try:
        return frequencies(type(config)(**json.loads(json.dumps(keys))))
    except Exception:  # noqa: BLE001  a class may refuse a key in any way it likes
        return None


def attribute(config: PreTrainedConfig, name: str) -> Any:
    """A value that the config saves, under the class's own name for it, or a property; None where it has none."""
    saved = config.to_dict()
    own = config.attribute_map.get(name, name)
    return saved[own] if own in saved else getattr(config, name, None)


def repeating_part(values: list[Any]) -> list[Any]:
    """The shortest list that gives the values when it is repeated."""
    for length in range(1, len(values)):
        if all(value == values[i % length] for i, value in enumerate(values)):
            return values[:length]
    return values


def rope_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """The scaling that the class defaults, and how its code rotates."""
    parameters = config.rope_parameters
    facts: dict[str, Any] = {"layout": "interleaved"} if interleaved(config) else {}
    section = getattr(rotary_class(config)(config), "mrope_section", None)
    if section:
        facts["mrope_section"] = list(section)
    if whole_head(config):
        facts["whole_head"] = True
    if nested(parameters):
        return facts | {"groups": group_facts(config)} | ({"flat_ignored": True} if flat_ignored(config) else {})
    if ignores_rotary_dim(config):
        facts["rotary_dim_ignored"] = True
    bare = asked(config, rope_parameters={"rope_type": "default", **sections(parameters)}) or parameters
    own = {key: value for key, value in parameters.items() if key != "type" and bare.get(key) != value}
    told = asked(config, rope_theta=12345.0, rotary_emb_base=12345.0) or {}
    if own or told.get("rope_theta") != 12345.0:
        kept = {key: v for key, v in parameters.items() if key != "type"}
        facts["rope_parameters"] = {k: v for k, v in kept.items() if k != "rope_theta" or told.get(k) != 12345.0}
    facts |= {key: bare[key] for key in ("rope_theta", "partial_rotary_factor") if bare.get(key) is not None}
    return {"rope_theta": parameters["rope_theta"]} | facts


def ignores_rotary_dim(config: PreTrainedConfig) -> bool:
    """Whether the class has a `rotary_dim` that its rotary module does not heed."""
    width = attribute(config, "rotary_dim")
    return width is not None and len(rotary_class(config)(config).inv_freq) * 2 != width


def sections(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Keys without which some classes refuse any `rope_parameters`."""
    return {key: value for key, value in parameters.items() if key.endswith("_section")}


def asked(config: PreTrainedConfig, **keys: Any) -> dict[str, Any] | None:
    """The `rope_parameters` of a config of the same class with some keys set; None where the class refuses them."""
    try:
        parameters: dict[str, Any] = type(config)(**keys).rope_parameters
    except Exception:  # noqa: BLE001  a class may refuse a key in any way it likes
        return None
    return parameters


def group_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """For each layer type of a nested default: its dict, its fallback θ, the keys that set θ, and more."""
    default = nested(config.rope_parameters)
    theta = {key: nested(asked(config, **{key: 12345.0}) or {}) for key in THETA_KEYS}
    bare = nested(asked(config, rope_parameters={name: {"rope_type": "default"} for name in default}) or {})
    given = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 64}
    flat = nested(asked(config, rope_scaling=given) or {})
    typed = nested(asked(config, rope_scaling={"type": "linear", "factor": 3.0}) or {})
    facts: dict[str, Any] = {}
    for name, own in default.items():
        keys = [key for key in THETA_KEYS if theta[key].get(name, {}).get("rope_theta") == 12345.0]
        kept = {key: value for key, value in own.items() if not (keys and key == "rope_theta")}
        fallback = own.get("rope_theta") if keys else bare.get(name, {}).get("rope_theta")
        facts[name] = {"rope": kept, "theta_keys": keys}
        if fallback is not None:
            facts[name]["rope_theta"] = fallback
        if flat.get(name, {}).get("factor") == 3.0:
            facts[name]["scaled"] = True
            if typed.get(name, {}).get("rope_type") == own.get("rope_type"):
                facts[name]["type_unread"] = True
            if "attention_factor" in flat[name]:
                facts[name]["scaled_defaults"] = {"attention_factor": flat[name]["attention_factor"]}
        width = group_head_dim(config, name)
        if width is not None:
            facts[name]["head_dim"] = width
    return facts


def flat_ignored(config: PreTrainedConfig) -> bool:
    """Whether a flat `rope_parameters` has no effect on any layer type, where a flat `rope_scaling` has one."""
    given = {"rope_type": "linear", "factor": 3.0, "rope_theta": 777.0}
    found = asked(config, rope_parameters=dict(given))
    return found is not None and bool(nested(found)) and all(v.get("factor") != 3.0 for v in nested(found).values())


def group_head_dim(config: PreTrainedConfig, name: str) -> int | None:
    """The head_dim of one layer type, where it is not that of the whole model."""
    per_layer = config.to_dict().get("per_layer_config") or {}
    indices = [i for i, kind in enumerate(config.layer_types) if kind == name]
    widths = {own.get("head_dim") for key, own in per_layer.items() if int(key) in indices}
    width = widths.pop() if len(widths) == 1 else None
    return width if isinstance(width, int) else None


def whole_head(config: PreTrainedConfig) -> bool:
    """Whether an unscaled rotary module of this class rotates the whole head whatever `partial_rotary_factor` says."""
    default = nested(config.rope_parameters)
    pairs = []
    for share in (1.0, 0.5):
        own = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}
        changed = type(config)()
        changed.rope_parameters = (
            {**config.rope_parameters, **dict.fromkeys(default, own)}
            if default
            else own | sections(config.rope_parameters)
        )
        pairs.append([len(inv_freq) for inv_freq, _ in frequencies(changed).values()])
    return pairs[0] == pairs[1]


def interleaved(config: PreTrainedConfig) -> bool:
    """Whether the code that rotates text pairs neighbours, from the source of the functions that do it."""
    if hasattr(config, "rope_interleave"):
        return False  # a key decides, and its default is kept
    functions = {
        name: inspect.getsource(f)
        for name, f in vars(modeling(config)).items()
        if inspect.isfunction(f) and re.search("rotate|rotary|stack_freqs", name) and not re.search("vision|2d", name)
    }
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(modeling(config)))))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    used = {name: source for name, source in functions.items() if name in calls}
    if "apply_rotary_pos_emb_interleave" in used:
        return True
    for special in ("rotate_half_text", "rotate_half_llm"):
        if special in used:
            used = {special: used[special]}
    pairs = re.compile(r"\.\.\., 0?::2\]|view_as_complex|-1, 1, 2\)|unbind\(dim=-1\)")
    return any(pairs.search(source) for source in used.values())


def everything() -> dict[str, Any]:
    """The whole of the data."""
    types: dict[str, Any] = {name: dict(facts) for name, facts in REMOTE.items()}
    wrappers: dict[str, Any] = {}
    without: list[str] = []
    for name, config, text in text_configs():
        if name in WITHOUT_ROPE_PARAMETERS:
            types[name] = entry(config) | WITHOUT_ROPE_PARAMETERS[name]
        elif not hasattr(text, "rope_parameters"):
            without.append(name)
        elif has_rope(text):
            inner = text.model_type
            if inner not in types:
                types[inner] = entry(type(text)())
            if name != inner:
                wrappers[name] = {"model_type": inner} | wrapper_facts(text, types[inner])
    for name in SLIDING_ROTATES:
        types[name]["rope_layers"] = ["sliding_attention"]
    for name, switch in ROPE_IF.items():
        types[name]["rope_if"] = dict(switch)
    for name, facts in BY_HAND.items():
        merge(types[name], facts)
    return {
        "transformers": transformers.__version__,
        "types": types,
        "wrappers": wrappers,
        "without_rope": sorted({*without, *REMOTE_WITHOUT} - set(types)),
    }


def wrapper_facts(text: PreTrainedConfig, inner: Mapping[str, Any]) -> dict[str, Any]:
    """What a multimodal class defaults for its language model where the language model's own class does otherwise."""
    own = entry(text)
    facts = {key: value for key, value in own.items() if inner.get(key) != value}
    width = attribute(text, "head_dim")
    if width and width != attribute(text, "hidden_size") // attribute(text, "num_attention_heads"):
        facts |= {"head_dim": width} if inner.get("head_dim", inner.get("qk_rope_head_dim")) != width else {}
    default = type(text)().rope_parameters
    if text.rope_parameters != default and not nested(default):
        facts["rope_parameters"] = {key: value for key, value in text.rope_parameters.items() if key != "type"}
    return facts


def merge(into: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Adds facts to facts, object by object."""
    for key, value in facts.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def rendered(data: Mapping[str, Any]) -> str:
    """JSON with one model type a line, sorted, so that a difference can be read."""
    parts = [f'"transformers": {json.dumps(data["transformers"])}']
    for section in ("types", "wrappers"):
        lines = [
            f"{json.dumps(name)}: {json.dumps(data[section][name], sort_keys=True)}" for name in sorted(data[section])
        ]
        parts.append(f'"{section}": {{\n' + ",\n".join(lines) + "\n}")
    parts.append(f'"without_rope": {json.dumps(data["without_rope"])}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> int:
    """Writes the file, or compares it."""
    transformers.logging.set_verbosity_error()
    text = rendered(everything())
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.read_text(encoding="utf-8") == text else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
