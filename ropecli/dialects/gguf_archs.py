"""What llama.cpp knows of an architecture by its name alone, as data: GGUF files do not say it.

Source: ngxson/llama.cpp (upstream master) 3f545be of 2026-08-22: `llama_model_rope_type` in `src/llama-model.cpp`, and
each architecture's `load_arch_hparams` in `src/models/`. A test compares the names with those of the `gguf` package.
"""

from collections.abc import Mapping
from dataclasses import dataclass

UNROTATED: frozenset[str] = frozenset(
    [
        "arwkv7",
        "bert",
        "bloom",
        "clip",
        "gpt2",
        "gptj",
        "jais",
        "jamba",
        "jina-bert-v2",
        "kimi-k3",
        "kimi-linear",
        "mamba",
        "mamba2",
        "mpt",
        "nemotron_h",
        "nemotron_h_moe",
        "refact",
        "rwkv6",
        "rwkv6qwen2",
        "rwkv7",
        "starcoder",
        "t5",
        "t5encoder",
        "wavtokenizer-dec",
    ]
)
"""Architectures whose graphs rotate nothing."""

INTERLEAVED: frozenset[str] = frozenset(
    [
        "arcee",
        "arctic",
        "baichuan",
        "bailingmoe",
        "bailingmoe3",
        "chameleon",
        "chatglm",
        "cohere2",
        "cohere2moe",
        "command-r",
        "deci",
        "deepseek",
        "deepseek2",
        "deepseek2-ocr",
        "deepseek32",
        "deepseek4",
        "dots3note",
        "eagle3",
        "ernie4_5",
        "ernie4_5-moe",
        "glm-dsa",
        "glm4",
        "granite",
        "granite_swa",
        "granitehybrid",
        "granitemoe",
        "graniteswitch",
        "internlm2",
        "llada",
        "llama",
        "llama-embed",
        "llama4",
        "maincoder",
        "minicpm",
        "mistral3",
        "mistral4",
        "muse-glimmer",
        "nanbeige",
        "neo-bert",
        "olmo",
        "plm",
        "pockettts",
        "smollm3",
        "xverse",
    ]
)
"""Pairs are neighbours ("norm"); the converter has permuted the weights for it where the model was not so."""

HALVES: frozenset[str] = frozenset(
    [
        "afmoe",
        "apertus",
        "bailingmoe2",
        "bitnet",
        "codeshell",
        "cogvlm",
        "dbrx",
        "dflash",
        "dots1",
        "dream",
        "eurobert",
        "exaone",
        "exaone-moe",
        "exaone4",
        "falcon",
        "falcon-h1",
        "gemma",
        "gemma-embedding",
        "gemma2",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gemma4-assistant",
        "glm4moe",
        "gpt-oss",
        "gptneox",
        "grok",
        "grovemoe",
        "hunyuan-dense",
        "hunyuan-moe",
        "hunyuan_vl",
        "hy_v3",
        "jais2",
        "jina-bert-v3",
        "laguna",
        "lfm2",
        "lfm2moe",
        "llada-moe",
        "mellum",
        "mimo2",
        "minicpm3",
        "minimax-01",
        "minimax-m2",
        "minimax-m3",
        "modern-bert",
        "nemotron",
        "nomic-bert",
        "nomic-bert-moe",
        "olmo2",
        "olmoe",
        "openelm",
        "orion",
        "paddleocr",
        "pangu-embedded",
        "phi2",
        "phi3",
        "phimoe",
        "plamo",
        "plamo2",
        "plamo3",
        "qwen",
        "qwen2",
        "qwen2moe",
        "qwen2vl",
        "qwen3",
        "qwen35",
        "qwen35moe",
        "qwen3moe",
        "qwen3next",
        "qwen3tts",
        "qwen3vl",
        "qwen3vlmoe",
        "rnd1",
        "seed_oss",
        "smallthinker",
        "stablelm",
        "starcoder2",
        "step35",
        "talkie",
    ]
)
"""Pairs lie half the rotated width apart ("neox"), with and without sections for images."""


@dataclass(frozen=True, slots=True)
class Sliding:
    """How an architecture's sliding-window layers are told from the full ones, and how they rotate.

    period       every period-th layer is a full one; 0 where the file has to list the layers
    full_first   whether the full layer is the first of a period instead of the last
    own_base     whether the base is 10000 where no `freq_base_swa` is given, instead of the full layers' base
    scaled       whether the full layers' scaling and divisors apply to the sliding layers, too
    full_rotates whether the full layers rotate at all
    full_share   the part of `dimension_count` that the full layers rotate
    """

    period: int
    full_first: bool = False
    own_base: bool = False
    scaled: bool = True
    full_rotates: bool = True
    full_share: float = 1.0


SLIDING: Mapping[str, Sliding] = {
    "afmoe": Sliding(4, full_rotates=False),
    "cohere2": Sliding(4, full_rotates=False),
    "cohere2moe": Sliding(4, full_first=True, full_rotates=False),
    "dots3note": Sliding(0, own_base=True, scaled=False),
    "exaone-moe": Sliding(4),
    "exaone4": Sliding(4, full_rotates=False),
    "gemma-embedding": Sliding(6, own_base=True, scaled=False),
    "gemma2": Sliding(2),
    "gemma3": Sliding(6, own_base=True, scaled=False),
    "gemma3n": Sliding(5, own_base=True, scaled=False),
    "gemma4": Sliding(0, own_base=True, scaled=False),
    "gemma4-assistant": Sliding(0, own_base=True, scaled=False),
    "gpt-oss": Sliding(2),
    "laguna": Sliding(4, full_first=True, scaled=False),
    "llama4": Sliding(4, full_rotates=False),
    "mellum": Sliding(4),
    "mimo2": Sliding(0, own_base=True, scaled=False),
    "modern-bert": Sliding(3, full_first=True, own_base=True, scaled=False),
    "muse-glimmer": Sliding(4, scaled=False, full_rotates=False),
    "olmo2": Sliding(4, scaled=False),
    "plamo3": Sliding(8, own_base=True, scaled=False),
    "smallthinker": Sliding(4, full_first=True, full_rotates=False),
    "step35": Sliding(0, own_base=True, scaled=False, full_share=0.5),
}
"""Architectures in which some layers see a window only. All others rotate alike in every layer."""

UNROTATED_EVERY: Mapping[str, int] = {"smollm3": 4}
"""Every n-th layer does not rotate, though all layers see everything."""

SWITCHED: frozenset[str] = frozenset(["granite", "granite_swa", "granitehybrid", "granitemoe"])
"""Architectures that rotate unless `rope.scaling.finetuned` is false (`use_rope` in `src/models/granite.cpp`)."""

ONLY_WITH_LAYERS: Mapping[str, int] = {"baichuan": 32}
"""Architectures that rotate with this many layers alone: the others are taken for the 13B of Baichuan, with ALiBi."""

FULL_EVERY: Mapping[str, int] = {"qwen35": 4, "qwen35moe": 4, "qwen3next": 4}
"""Architectures of which every n-th layer has attention and the others are recurrent, where the file does not say."""

BETAS_READ = frozenset({"grok", "mistral3"})
"""Architectures for which llama.cpp reads the betas of YaRN from the file; all others run with 32 and 1."""

LOG_MULTIPLIER: Mapping[str, float] = {
    "deepseek2": 10.0, "deepseek32": 10.0, "mistral4": 10.0, "mistral3": 1.0,
}  # fmt: skip
"""Architectures that read `yarn_log_multiplier`, and what turns it into the key `mscale_all_dim` of Hugging Face."""

FREQS_USED = frozenset({
    "apertus", "arcee", "deci", "eagle3", "exaone", "exaone-moe", "exaone4", "gemma4", "gemma4-assistant", "granite",
    "granite_swa", "granitehybrid", "granitemoe", "llama", "llama-embed", "llama4", "minicpm", "mistral3", "nanbeige",
    "step35",
})  # fmt: skip
"""Architectures that divide their frequencies by the tensor `rope_freqs.weight`."""

FREQS_IGNORED = frozenset({"cogvlm", "falcon-h1", "llada", "pangu-embedded", "refact"})
"""Architectures that load `rope_freqs.weight` and never use it. All others refuse a file that has it."""
