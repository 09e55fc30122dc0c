"""What each inference runtime makes of a config: one file a runtime, one row each.

Every rule re-derives base and scaling from the raw JSON as that runtime does; widths, layout and the meaning of the
config come from its `LayerRope`. A rule says in `version` what it was read from.
"""

from ropecli.runtimes import (
    exllamav2,
    exllamav3,
    llama_cpp,
    mlx_lm,
    onnxruntime_genai,
    sglang,
    tensorrt_llm,
    tgi,
    transformers4,
    transformers5,
    vllm,
    vllm_2026_08,
)
from ropecli.runtimes.comparison import compare
from ropecli.runtimes.reading import Reading, Request, Runtime

__all__ = ["RUNTIMES", "Reading", "Request", "Runtime", "compare", "readings"]

RUNTIMES: tuple[Runtime, ...] = (
    transformers5.RUNTIME,
    transformers4.RUNTIME,
    vllm.RUNTIME,
    vllm_2026_08.RUNTIME,
    sglang.RUNTIME,
    llama_cpp.RUNTIME,
    mlx_lm.RUNTIME,
    exllamav2.RUNTIME,
    exllamav3.RUNTIME,
    onnxruntime_genai.RUNTIME,
    tensorrt_llm.RUNTIME,
    tgi.RUNTIME,
)
"""Every runtime, in the order of the rows."""


def readings(request: Request) -> dict[str, Reading]:
    """What each runtime makes of a config, by row name. Never raises."""
    return {runtime.name: runtime.read(request) for runtime in RUNTIMES}
