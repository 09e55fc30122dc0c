"""vLLM as it was in August 2026: YaRN's temperature is the default times `attn_factor`; `attention_factor` is not read.

Source: hmellor/vllm 8d9b52f7 (2026-08-07), `yarn_scaling_rope.py`.
"""

from ropecli.dialects.hf_keys import ORIGINAL
from ropecli.runtimes.keys import ignored, number
from ropecli.runtimes.reading import Computed, Keys, Runtime
from ropecli.runtimes.vllm import rule
from ropecli.runtimes.vllm_formulas import extrapolated, magnified, yarn_ramp
from ropecli.spec import RopeSpec

_READ = ("factor", ORIGINAL, "extrapolation_factor", "attn_factor")


def august_yarn(parameters: Keys, base: RopeSpec) -> Computed:
    """mag(s)·attn_factor, or `attn_factor` alone where `apply_yarn_scaling` is false (not with mrope)."""
    applied = parameters.get("apply_yarn_scaling", True) or "mrope_section" in parameters
    attention_factor = magnified(parameters) if applied else number(parameters, "attn_factor", 1.0)
    notes = ignored(parameters, *_READ, "beta_fast", "beta_slow", "apply_yarn_scaling", "truncate")
    return extrapolated(parameters, base, yarn_ramp(parameters, base)), attention_factor, notes


RUNTIME = Runtime(
    "vllm-2026-08",
    "8d9b52f7 (2026-08-07)",
    lambda request: rule(request, august_yarn),
    frozenset(("attn_factor",)),
)
