"""What `--bake` adds to a plan: tables of the rotary embedding, or its temperature folded into the weights."""

from collections.abc import Mapping
from dataclasses import replace

from ropecli.checkpoint import FOLDED, OWN_KEY, Checkpoint, TensorInfo, folded_factors
from ropecli.conversion import Conversion, Edit
from ropecli.errors import BadUsage
from ropecli.folding import edits_by_file, plan_folding
from ropecli.inspection import with_text
from ropecli.json_edit import with_members
from ropecli.safetensors_header import INDEX_NAME
from ropecli.spec import Longrope, RopeSpec, scaling_from_json, scaling_to_json
from ropecli.tables import SHARD, BakeRequest, index_with_tables, index_without_tables, plan_tables
from ropecli.weight_edits import TensorEdit

Edits = Mapping[str, tuple[TensorEdit, ...]]
"""File name → what is scaled in it."""


def with_tables(
    conversion: Conversion, request: BakeRequest, index_text: str | None, headers: Mapping[str, TensorInfo]
) -> Conversion:
    """The conversion with tables of what its config means.

    index_text  the source's model.safetensors.index.json, where it has one; with headers only needed for a new shard
    Raises BadUsage for what has no table.
    """
    tables = plan_tables(request, with_text(conversion.checkpoint, conversion.texts["config.json"]))
    texts = dict(conversion.texts)
    if request.into == "shards":
        texts[INDEX_NAME] = index_with_tables(tables, index_text, headers)
    note = f"{tables.name}: {tables.size:,} bytes; servers compute their own tables from the config and ignore it"
    return replace(conversion, texts=texts, tables=tables, notes=(*conversion.notes, note))


def without_old_shard(conversion: Conversion, index_text: str | None, headers: Mapping[str, TensorInfo]) -> Conversion:
    """The conversion of a checkpoint that has tables among its shards: they say what the old config meant, so they go.

    index_text  the source's model.safetensors.index.json, where it has one, and the tensors of its files
    """
    note = f"{SHARD} stays behind: its tables are those of the old config"
    texts = dict(conversion.texts)
    if index_text is not None:
        texts[INDEX_NAME] = index_without_tables(index_text, headers)
    return replace(conversion, texts=texts, notes=(*conversion.notes, note))


def folded(
    checkpoint: Checkpoint, intent: Mapping[str, RopeSpec], headers: Mapping[str, TensorInfo]
) -> tuple[dict[str, RopeSpec], Edits]:
    """(the same embeddings with an attention factor of 1, the weights that carry it instead).

    Raises BadUsage where there is nothing to fold, or the architecture does not let it be folded.
    """
    edits: list[TensorEdit] = []
    plain: dict[str, RopeSpec] = {}
    for rope in checkpoint.ropes:
        if rope.name not in intent:
            continue
        spec = intent[rope.name]
        m = spec.scaling.attention_factor
        if m != 1:
            edits += plan_folding(headers, rope, checkpoint.config, m)
        plain[rope.name] = without_temperature(spec)
    if not edits:
        raise BadUsage("the attention factor is 1: there is nothing to fold into the weights", where="--bake")
    return plain, {path.name: found for path, found in edits_by_file(headers, edits).items()}


def with_folded(conversion: Conversion, edits: Edits, asked: Mapping[str, RopeSpec]) -> Conversion:
    """The conversion with those weights scaled, and a config that says by how much. asked: before it was folded."""
    config, source = conversion.checkpoint.config, conversion.checkpoint.source
    held = {name: spec.scaling.attention_factor for name, spec in asked.items() if spec.scaling.attention_factor != 1}
    own = config.get(OWN_KEY)
    mark = {**(own if isinstance(own, Mapping) else {}), FOLDED: folded_factors(config, source) | held}
    text = with_members(conversion.texts["config.json"], (), {OWN_KEY: mark})
    edit = Edit(OWN_KEY, own, mark)
    texts = {**conversion.texts, "config.json": text}
    return replace(conversion, texts=texts, edits=(*conversion.edits, edit), scaled=edits)


def refuse_second_temperature(checkpoint: Checkpoint, intent: Mapping[str, RopeSpec]) -> None:
    """Raises BadUsage where the weights hold an attention factor and `intent` has another one for the same layers."""
    for name, held in folded_factors(checkpoint.config, checkpoint.source).items():
        m = intent[name].scaling.attention_factor if name in intent else 1.0
        if m != 1:
            raise BadUsage(
                f"the query and key weights hold an attention factor of {held:g} already "
                f"({OWN_KEY}.{FOLDED}); {m:g} would come on top of it",
                where=f"{checkpoint.source}: {name}",
                hint="convert the checkpoint from before the folding, or give --attention-factor 1",
            )


def without_temperature(spec: RopeSpec) -> RopeSpec:
    """The same frequencies with an attention factor of 1."""
    scaling = spec.scaling
    if scaling.attention_factor == 1:
        return spec
    if isinstance(scaling, Longrope):
        return replace(spec, scaling=replace(scaling, attention_factor=1.0, short_attention_factor=1.0))
    return replace(spec, scaling=scaling_from_json(scaling_to_json(scaling) | {"attention_factor": 1.0}))
