"""Rules 603 and 604: code that comes with the checkpoint, which may rotate otherwise than its config says.

`auto_map` names it, and runtimes run it where the user trusts it. Nothing here opens it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ropecli.findings.context import Block, Context, shown
from ropecli.findings.rule import Checks, Finding, Rule
from ropecli.findings.temperature import spelt_out
from ropecli.remote_code import model_code
from ropecli.spec import Yarn, default_attention_factor


@dataclass(frozen=True, slots=True)
class OwnYarn:
    """What a published module takes for YaRN whatever the config says: β and α in turns, m = slope·ln s + 1."""

    beta_fast: float
    beta_slow: float
    slope: float


KNOWN_MODULES: Mapping[str, OwnYarn] = {"modeling_mistral_yarn.py": OwnYarn(128.0, 2.0, 0.07)}
"""File → its constants; of jquesnelle/yarn's files `modeling_llama_yarn.py` has the usual ones."""

STATED = ("beta_fast", "beta_slow", "attention_factor", "attn_factor", "mscale", "mscale_all_dim")
"""Keys by which a config speaks for itself."""

OWN_NUMBERS = Rule(
    id="ROPE603",
    severity="error",
    title="YaRN's numbers stand in the checkpoint's own code",
    what=(
        "The config has YaRN with neither betas nor a temperature, and code that comes with the checkpoint has other "
        "ones than the defaults."
    ),
    effect=(
        "Every runtime that goes by the config computes β = 32, α = 1 and m = 0.1·ln s + 1: other frequencies and "
        "another temperature than the model was trained with."
    ),
    fix="Write the numbers of that code into the scaling object.",
    source=(
        "jquesnelle/yarn scaled_rope/modeling_mistral_yarn.py (1b94feec), which the Yarn-Mistral checkpoints bring: "
        "beta_fast=128, beta_slow=2, 0.07 * math.log(scale) + 1.0; it reads factor and the original length alone."
    ),
)

OWN_CODE = Rule(
    id="ROPE604",
    severity="info",
    title="The checkpoint brings code of its own",
    what="auto_map names code for the model that comes with the checkpoint.",
    effect=(
        "Where --trust-remote-code allows it, that code makes the embedding: it may have defaults of its own, and read "
        "other keys. ropecli did not read it; what it says of runtimes holds for their own classes."
    ),
    fix=(
        "Nothing, where it is not run. Else read it first, and pin its revision; after a conversion see that it reads "
        "the keys that were written."
    ),
    source="transformers 5.24 get_class_from_dynamic_module; unsloth#6391.",
)


def _own_numbers(ctx: Context) -> Iterator[Finding]:
    files = (name.partition(" of ")[0] for name in model_code(ctx.config))
    own = next((KNOWN_MODULES[name] for name in files if name in KNOWN_MODULES), None)
    if own is None:
        return
    for block in ctx.of_kind("yarn"):
        silent = all(block.data.get(key) is None for key in STATED)
        if silent and block.rope is not None and isinstance(block.rope.spec.scaling, Yarn):
            yield _numbers_of(own, block, block.rope.spec.scaling.factor)


def _numbers_of(own: OwnYarn, block: Block, factor: float) -> Finding:
    m = default_attention_factor(factor, own.slope)
    message = (
        f"{block.paths[0]} has no betas and no attention_factor; the model's own code has β = {own.beta_fast:g}, "
        f"α = {own.beta_slow:g} and m = {own.slope:g}·ln s + 1 = {shown(m)}"
    )
    betas = block.set({"beta_fast": own.beta_fast, "beta_slow": own.beta_slow})
    return OWN_NUMBERS.found(message, {**betas, **spelt_out(block, m)})


def _own_code(ctx: Context) -> Iterator[Finding]:
    names = model_code(ctx.config)
    if names and ctx.ropes:
        yield OWN_CODE.found(f"auto_map names {', '.join(f'{name:.80}' for name in names[:3])}")


CHECKS: Checks = ((OWN_NUMBERS, _own_numbers), (OWN_CODE, _own_code))
