"""Next-token log-probabilities by llama.cpp on the CPU, at a few positions of one window.

    python score_llama.py REQUEST.json RESULT.json

The request: `ids`, `positions`, `checkpoints` (name → GGUF file). The result, for each name: a list [positions,
vocabulary] of natural logarithms. The server answers for the last token of a prompt only, so each position is a prompt
that is longer than the one before; it keeps the keys and values of what they share.
"""

import json
import sys
from pathlib import Path

import xllamacpp

F32 = xllamacpp.ggml_type.GGML_TYPE_F32


def log_probs(file: str, ids: list[int], positions: list[int]) -> list[list[float]]:
    """Of the token after each position: [positions, vocabulary]. Keys and values are kept in float32."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx = len(ids)
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.cache_type_k = parameters.cache_type_v = F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # threads of a busy machine wait for each other at every operation
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    rows = []
    for position in positions:
        request = {"prompt": ids[: position + 1], "n_predict": 1, "n_probs": 10**6, "temperature": 0}
        answer = server.handle_completions(request)
        answer = json.loads(answer) if isinstance(answer, bytes | str) else answer
        if "choices" not in answer:
            raise SystemExit(json.dumps(answer)[:1000])
        tokens = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        rows.append([token["logprob"] for token in sorted(tokens, key=lambda token: token["id"])])
    return rows


def main() -> None:
    """Answer the request."""
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    result = {
        name: log_probs(file, request["ids"], request["positions"]) for name, file in request["checkpoints"].items()
    }
    Path(sys.argv[2]).write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main()
