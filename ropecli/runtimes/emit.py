"""Flags that make a runtime serve an unchanged checkpoint with a given rotary embedding, as one line for a shell."""

import shlex
from collections.abc import Callable, Mapping

from ropecli.errors import BadUsage
from ropecli.runtimes import llama_cpp, mlx_lm, sglang, transformers5, vllm
from ropecli.runtimes.serving import WHERE, Serving

FLAGS: Mapping[str, Callable[[Serving], tuple[str, ...]]] = {
    "transformers": transformers5.flags,
    "vllm": vllm.flags,
    "sglang": sglang.flags,
    "llama.cpp": llama_cpp.flags,
    "mlx": mlx_lm.flags,
}
"""Name on the command line → the words of the runtime's own command line."""

BARE = {"transformers", "mlx"}
"""Runtimes without a command line for it: their one word is a JSON object to load, and is not quoted."""

USAGE: Mapping[str, str] = {
    "transformers": "AutoModelForCausalLM.from_pretrained(MODEL, **json.loads(LINE)), with transformers 5",
    "vllm": "vllm serve MODEL FLAGS",
    "sglang": "python -m sglang.launch_server --model-path MODEL FLAGS",
    "llama.cpp": "llama-server -m MODEL.gguf FLAGS",
    "mlx": "mlx_lm.load(MODEL, model_config=json.loads(LINE)); the programs of mlx-lm have no flag for it",
}
"""Where the line goes, in words."""


ROW_NAMES: Mapping[str, str] = {"mlx": "mlx-lm"}
"""Name on the command line → that of the runtime's row, where they differ; --emit and --for take both."""


def emit(name: str, serving: Serving) -> str:
    """One line without its end: words quoted for a POSIX shell, or a JSON object for the runtimes in `BARE`.

    Raises BadUsage for an unknown runtime, and for what the runtime cannot do.
    """
    name = flag_name(name)
    if name not in FLAGS:
        raise BadUsage(f"unknown {name!r}", where=WHERE, hint=f"known: {', '.join(FLAGS)}")
    words = FLAGS[name](serving)
    return words[0] if name in BARE else shlex.join(words)


def flag_name(name: str) -> str:
    """The name in `FLAGS` of a runtime that may be called as its row is."""
    return next((flag for flag, row in ROW_NAMES.items() if row == name), name)
