"""Tiny models with random weights, one for each architecture family, built from configs alone."""

from typing import Any

import torch
import transformers

VOCABULARY = 97
LENGTH = 64
"""`max_position_embeddings` of every family."""

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_BOTH_KINDS = ["sliding_attention", "full_attention"]
_SLIDING: dict[str, Any] = {"sliding_window": 16, "layer_types": _BOTH_KINDS}

PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3_moe": ("Qwen3MoeConfig", {"head_dim": 16, **_EXPERTS}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 5.0}),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {"partial_rotary_factor": 0.5}),
    "stablelm": ("StableLmConfig", {"partial_rotary_factor": 0.5}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {"logits_scaling": 3.0, "attention_multiplier": 0.4}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "cohere2": ("Cohere2Config", {"head_dim": 16, "logit_scale": 0.25, **_SLIDING}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "glm4": ("Glm4Config", {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "gpt_oss": ("GptOssConfig", {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, **_SLIDING}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
        },
    ),
}

NESTED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "query_pre_attn_scalar": 16, **_SLIDING}),
    "olmo3": ("Olmo3Config", _SLIDING),
    "modernbert_decoder": (
        "ModernBertDecoderConfig",
        {"local_attention": 16, "layer_types": _BOTH_KINDS, "cls_token_id": 1, "sep_token_id": 2},
    ),
}
"""Families whose layer types have tables of their own."""


def config(family: str, rope: dict[str, Any] | None = None, **extra: Any) -> Any:
    """A config of the family; `rope` is its `rope_parameters` (for nested families: of its full-attention layers)."""
    name, own = (FAMILIES | NESTED)[family]
    settings = _SHAPE | own | extra
    partial = settings.pop("partial_rotary_factor", None)
    scaling = dict(rope or PLAIN) | ({} if partial is None else {"partial_rotary_factor": partial})
    if family in NESTED:
        settings["rope_parameters"] = {"full_attention": scaling, "sliding_attention": PLAIN | {"rope_theta": 500.0}}
    else:
        settings["rope_parameters"] = scaling
    return getattr(transformers, name)(**settings)


def build(configured: Any, seed: int = 0) -> Any:
    """A float32 model in evaluation mode, with weights large enough that attention depends on positions."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(configured, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


def random_ids(windows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids [windows, length]."""
    return torch.randint(3, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [windows, length, vocabulary] of one plain forward pass."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def rotary_tables(model: Any, suffix: str = "inv_freq") -> dict[str, torch.Tensor]:
    """Every rotary table of a model by name."""
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith(suffix) and "original" not in name}
