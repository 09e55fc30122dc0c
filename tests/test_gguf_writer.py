"""GGUF in, GGUF out: the `gguf` package's reader is the oracle for everything that must stay as it was."""

import os
import shutil
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType, GGUFEndian, GGUFValueType
from gguf.quants import quantize

from ropecli.byte_copy import BLOCK
from ropecli.checkpoint import Checkpoint, read_checkpoint
from ropecli.cli import main
from ropecli.conversion import Edit, extended
from ropecli.errors import BadCheckpoint, BadUsage, CheckFailed, NoResource, OutputExists, RopeError
from ropecli.frequencies import corner, frequencies, snapped_betas
from ropecli.gguf_header import read_gguf, verify_gguf
from ropecli.gguf_writer import GgufConversion, plan_gguf, size_of, write_gguf
from ropecli.spec import Linear, Llama3, Longrope, Plain, RopeSpec, Scaling, Yarn

L, WIDTH, HEADS, LAYERS, VOCABULARY = 512, 64, 2, 2, 3000
PAIRS = WIDTH // HEADS // 2
TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
UP = tuple(float(np.float32(1 + pair / 7)) for pair in range(PAIRS))


def model(
    path: Path,
    arch: str = "llama",
    *,
    extra: Mapping[str, Any] | None = None,
    divisors: Mapping[str, tuple[float, ...]] | None = None,
    endian: GGUFEndian = GGUFEndian.LITTLE,
    alignment: int = 32,
    vocabulary: int = VOCABULARY,
) -> Path:
    """A tiny model as the gguf package writes it: every kind of value, a vocabulary, quantised and whole tensors."""
    writer = gguf.GGUFWriter(path, arch, endianess=endian)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_name("tiny ☂ model")
    writer.add_context_length(L)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_rope_freq_base(10000.0)
    for key, value in (extra or {}).items():
        writer.add_key_value(key, value, GGUFValueType.FLOAT32 if isinstance(value, float) else kind_of(value))
    writer.add_uint64("test.large", 2**60)
    writer.add_int8("test.small", -3)
    writer.add_float64("test.double", 0.1)
    writer.add_bool("test.flag", True)
    writer.add_array("test.numbers", list(range(3000)))
    writer.add_array("test.floats", [0.5, 0.25])
    writer.add_token_list([f"tok ☂ {n}".encode() for n in range(vocabulary)])
    writer.add_token_scores([float(-n) for n in range(vocabulary)])
    rng = np.random.default_rng(0)
    for name, values in (divisors or {}).items():
        writer.add_tensor(name, np.array(values, np.float32))
    for layer in range(LAYERS):
        whole = rng.standard_normal((48, WIDTH), np.float32)
        for name, kind in (("q", GGMLQuantizationType.Q4_1), ("k", GGMLQuantizationType.Q8_0)):
            data = quantize(whole, kind)
            writer.add_tensor(f"blk.{layer}.attn_{name}.weight", data, raw_dtype=kind)
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", whole[0, :5].copy())
        writer.add_tensor(f"blk.{layer}.ffn.weight", whole.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def kind_of(value: object) -> GGUFValueType:
    kind: GGUFValueType = GGUFValueType.get_type(value)
    return GGUFValueType.UINT32 if kind == GGUFValueType.INT32 else kind


def contents(path: Path) -> tuple[dict[str, bytes], dict[str, tuple[Any, ...]]]:
    """Every key with its type and raw bytes, and every tensor with its type, shape and raw bytes."""
    reader = gguf.GGUFReader(path)
    keys = {
        name: b"".join(part.tobytes() for part in field.parts)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {
        tensor.name: (tensor.tensor_type, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in reader.tensors
    }
    return keys, tensors


def converted(source: Path, scaling: Scaling, out: Path, **options: Any) -> GgufConversion:
    """The source with another scaling for all its layers, written to `out`."""
    conversion = planned(read_checkpoint(str(source)), scaling)
    write_gguf(conversion, out, **options)
    return conversion


def planned(checkpoint: Checkpoint, scaling: Scaling) -> GgufConversion:
    return plan_gguf(checkpoint, {rope.name: spec_of(rope.spec, scaling) for rope in checkpoint.ropes})


def spec_of(spec: RopeSpec, scaling: Scaling) -> RopeSpec:
    return extended(spec, scaling, L)


def tuned() -> Yarn:
    """YaRN with corners and a temperature of its own."""
    return Yarn(4.0, 1.3, *snapped_betas(RopeSpec(10000.0, 2 * PAIRS, 2 * PAIRS, L, L), 1, 9))


ROUND_TRIPS: dict[str, tuple[str, Scaling]] = {
    "llama, default yarn": ("llama", Yarn.default(4.0)),
    "llama, tuned yarn": ("llama", tuned()),
    "llama, llama3": ("llama", Llama3(8.0, 1.0, 4.0)),
    "llama, two lists": ("llama", Longrope(4.0, UP, tuple(2 * value for value in UP), 1.1, 1.1)),
    "qwen2, yarn with a temperature": ("qwen2", Yarn(4.0, 1.3)),
    "qwen2, linear": ("qwen2", Linear(4.0)),
    "phi3, tuned yarn": ("phi3", tuned()),
    "phi3, two lists": ("phi3", Longrope(4.0, UP, tuple(2 * value for value in UP), 1.1, 1.1)),
}


class TestRoundTrip:
    """What is written means the intent, and everything else is byte for byte the source's."""

    @pytest.mark.parametrize(("arch", "scaling"), ROUND_TRIPS.values(), ids=ROUND_TRIPS)
    @pytest.mark.parametrize("endian", [GGUFEndian.LITTLE, GGUFEndian.BIG])
    def test_only_the_rotation_changes(self, tmp_path: Path, arch: str, scaling: Scaling, endian: GGUFEndian) -> None:
        """Every key but the rotary ones and every tensor but the divisors is the same to the gguf package's reader."""
        source, out = model(tmp_path / "in.gguf", arch, endian=endian), tmp_path / "out.gguf"
        conversion = converted(source, scaling, out)
        keys, tensors = contents(source)
        new_keys, new_tensors = contents(out)
        touched = set(conversion.settings)
        assert all(key.startswith((f"{arch}.rope.", f"{arch}.context_length")) for key in touched)
        assert {k: v for k, v in new_keys.items() if k not in touched} == {
            k: v for k, v in keys.items() if k not in touched
        }
        assert {k: v for k, v in new_tensors.items() if k not in TENSORS} == tensors
        assert [k for k in new_keys if k in keys] == list(keys)
        assert verify_gguf(out) == ()
        (rope,) = read_checkpoint(str(out)).ropes
        for length in (L, L + 1):
            found, wanted = frequencies(rope.spec, length), frequencies(conversion.intent["default"], length)
            assert found.inv_freq == pytest.approx(wanted.inv_freq, rel=2e-5)
            assert found.attention_factor == pytest.approx(wanted.attention_factor, rel=1e-6)

    def test_types_of_new_keys(self, tmp_path: Path) -> None:
        """New keys have the types that llama.cpp insists on."""
        out = tmp_path / "out.gguf"
        converted(model(tmp_path / "in.gguf", "qwen2"), Yarn(4.0, 1.3), out)
        fields = gguf.GGUFReader(out).fields
        types = {
            "qwen2.rope.scaling.type": GGUFValueType.STRING,
            "qwen2.rope.scaling.factor": GGUFValueType.FLOAT32,
            "qwen2.rope.scaling.attn_factor": GGUFValueType.FLOAT32,
            "qwen2.rope.scaling.original_context_length": GGUFValueType.UINT32,
            "qwen2.context_length": GGUFValueType.UINT32,
        }
        assert {key: fields[key].types for key in types} == {key: [kind] for key, kind in types.items()}
        assert fields["qwen2.context_length"].contents() == 4 * L
        own = [at for at, key in enumerate(fields) if key.startswith("qwen2.")]
        assert own == list(range(own[0], own[-1] + 1))

    def test_divisors_in_the_file(self, tmp_path: Path) -> None:
        """`rope_freqs.weight` holds base over target in float32, one a pair."""
        out = tmp_path / "out.gguf"
        conversion = converted(model(tmp_path / "in.gguf"), tuned(), out)
        (found,) = (t for t in gguf.GGUFReader(out).tensors if t.name == "rope_freqs.weight")
        assert found.tensor_type == GGMLQuantizationType.F32
        base = 10000.0 ** (-np.arange(PAIRS) / PAIRS)
        target = np.array(frequencies(conversion.intent["default"]).inv_freq)
        np.testing.assert_array_equal(found.data, (base / target).astype(np.float32))

    @pytest.mark.parametrize("arch", ["llama", "phi3"])
    @pytest.mark.parametrize("scaling", [Plain(), Linear(2.0), tuned(), Yarn.default(2.0)])
    def test_replaced_not_doubled(self, tmp_path: Path, arch: str, scaling: Scaling) -> None:
        """A scaling in keys and in tensors is gone from the new file, which has at most one of each."""
        prefix = f"{arch}.rope.scaling."
        extra = {f"{prefix}type": "longrope", f"{prefix}factor": 2.0, f"{prefix}attn_factor": 1.5}
        divisors = {"rope_factors_long.weight": UP, "rope_factors_short.weight": UP}
        source = model(tmp_path / "in.gguf", arch, extra=extra, divisors=divisors)
        conversion = converted(source, scaling, tmp_path / "out.gguf")
        header = read_gguf(tmp_path / "out.gguf")
        assert set(TENSORS) & set(header.tensors) == set(conversion.tensors)
        assert f"{prefix}factor" not in header.metadata or header.metadata[f"{prefix}factor"] == scaling.factor
        (rope,) = read_checkpoint(str(tmp_path / "out.gguf")).ropes
        assert frequencies(rope.spec).inv_freq == pytest.approx(
            frequencies(conversion.intent["default"]).inv_freq, rel=2e-5
        )

    def test_there_and_back(self, tmp_path: Path) -> None:
        """Scaled and made plain again, a file has its first keys and tensors; the original length stays noted."""
        source = model(tmp_path / "in.gguf")
        converted(source, tuned(), tmp_path / "scaled.gguf")
        converted(tmp_path / "scaled.gguf", Plain(), tmp_path / "back.gguf")
        keys, tensors = contents(tmp_path / "back.gguf")
        del keys["llama.rope.scaling.original_context_length"]
        assert (keys, tensors) == contents(source)

    @pytest.mark.parametrize("alignment", [32, 64, 4096])
    def test_alignment(self, tmp_path: Path, alignment: int) -> None:
        """Tensors lie at multiples of the file's own alignment."""
        source = model(tmp_path / "in.gguf", alignment=alignment, extra={"llama.rope.scaling.attn_factor": 2.0})
        converted(source, tuned(), tmp_path / "out.gguf")
        assert {t.data_offset % alignment for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors} == {0}
        assert contents(tmp_path / "out.gguf")[1]["blk.1.ffn.weight"] == contents(source)[1]["blk.1.ffn.weight"]

    def test_source_without_final_padding(self, tmp_path: Path) -> None:
        """A last tensor that ends with the file gets the padding that the tensors behind it need."""
        source = grown(model(tmp_path / "in.gguf"), rows=-48, width=7)
        assert source.stat().st_size % 32
        converted(source, tuned(), tmp_path / "out.gguf")
        assert verify_gguf(tmp_path / "out.gguf") == ()
        last = f"blk.{LAYERS - 1}.ffn.weight"
        assert contents(tmp_path / "out.gguf")[1][last] == contents(source)[1][last]

    def test_unknown_tensor_type(self, tmp_path: Path) -> None:
        """A tensor of a type that is not known here is copied up to where the next one begins."""
        blob = model(tmp_path / "in.gguf").read_bytes()
        name = b"blk.0.attn_k.weight"
        at = blob.index(name) + len(name) + 4 + 16
        assert blob[at : at + 4] == struct.pack("<I", GGMLQuantizationType.Q8_0)
        (tmp_path / "new.gguf").write_bytes(blob[:at] + struct.pack("<I", 999) + blob[at + 4 :])
        converted(tmp_path / "new.gguf", tuned(), tmp_path / "out.gguf")
        before, after = (read_gguf(tmp_path / name).tensors for name in ("new.gguf", "out.gguf"))
        size = 48 * WIDTH // 32 * 34
        pair = [(tmp_path / f, t[name.decode()]) for f, t in (("new.gguf", before), ("out.gguf", after))]
        first, second = (path.read_bytes()[t.begin : t.begin + size] for path, t in pair)
        assert first == second
        assert after[name.decode()].dtype == "type 999"

    def test_layers_that_keep_theirs(self, tmp_path: Path) -> None:
        """Gemma 3's sliding layers read back as they were."""
        window = {"gemma3.attention.sliding_window": 64, "gemma3.attention.sliding_window_pattern": 2}
        extra = window | {"gemma3.rope.freq_base_swa": 5000.0}
        checkpoint = read_checkpoint(str(model(tmp_path / "in.gguf", "gemma3", extra=extra)))
        full, sliding = checkpoint.ropes
        conversion = plan_gguf(checkpoint, {"full_attention": spec_of(full.spec, Yarn.default(4.0))})
        write_gguf(conversion, tmp_path / "out.gguf")
        after = read_checkpoint(str(tmp_path / "out.gguf")).ropes
        assert frequencies(after[1].spec) == frequencies(sliding.spec)
        assert after[0].spec.scaling == Yarn.default(4.0)


class TestPlan:
    """The plan says what will happen, and reads headers alone."""

    def test_edits(self, tmp_path: Path) -> None:
        """Keys and tensors that come, change and go, with the old value and the new one."""
        extra = {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.attn_factor": 1.5}
        source = model(tmp_path / "in.gguf", extra=extra, divisors={"rope_factors_long.weight": (2.0,) * PAIRS})
        edits = planned(read_checkpoint(str(source)), Linear(4.0)).edits
        assert set(edits) == {
            Edit("llama.rope.scaling.type", "longrope", "linear"),
            Edit("llama.rope.scaling.attn_factor", 1.5, None),
            Edit("llama.rope.scaling.factor", None, 4.0),
            Edit("llama.rope.scaling.original_context_length", None, L),
            Edit("llama.context_length", L, 4 * L),
            Edit("tensor rope_factors_long.weight", f"{PAIRS} divisors, 2 to 2", None),
        }

    def test_note_on_launch_flags(self, tmp_path: Path) -> None:
        """Divisors are no scaling type, so flags would come on top; the plan says so."""
        conversion = planned(read_checkpoint(str(model(tmp_path / "in.gguf"))), tuned())
        assert any("--rope-scaling would come on top" in note for note in conversion.notes)
        assert conversion.edits[-1] == Edit("tensor rope_freqs.weight", None, f"{PAIRS} divisors, 1 to 4")

    def test_size(self, tmp_path: Path) -> None:
        """The size that is announced is the size of the file, and of the receipt."""
        conversion = planned(read_checkpoint(str(model(tmp_path / "in.gguf"))), tuned())
        announced = size_of(conversion)
        receipt = write_gguf(conversion, tmp_path / "out.gguf")
        assert announced == receipt.new_bytes == (tmp_path / "out.gguf").stat().st_size
        assert (receipt.path, dict(receipt.files)) == (tmp_path / "out.gguf", {"out.gguf": "rewritten"})

    def test_launch_flags(self, tmp_path: Path) -> None:
        """What Qwen 2 cannot carry is refused with flags for the unchanged file, whose betas give the same corners."""
        checkpoint = read_checkpoint(str(model(tmp_path / "in.gguf", "qwen2")))
        with pytest.raises(BadUsage, match="qwen2 cannot carry") as caught:
            planned(checkpoint, tuned())
        assert caught.value.where.startswith(str(tmp_path / "in.gguf"))
        words = caught.value.hint.split()
        flags = {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("-")}
        assert (flags["--rope-scaling"], float(flags["--rope-scale"])) == ("yarn", 4.0)
        assert (flags["--yarn-orig-ctx"], flags["-c"]) == (str(L), str(4 * L))
        corners = [corner(float(flags[f"--yarn-beta-{end}"]), 10000.0, 2 * PAIRS, L) for end in ("fast", "slow")]
        assert corners == pytest.approx([1, 9], abs=1e-3)
        ratio = flags["--override-kv"].partition("attn_factor=float:")[2].partition(",")[0]
        assert float(ratio) * Yarn.default(4.0).attention_factor == pytest.approx(1.3)

    def test_no_flags_either(self, tmp_path: Path) -> None:
        """Where no flags do it, the hint says why."""
        checkpoint = read_checkpoint(str(model(tmp_path / "in.gguf", "qwen2")))
        with pytest.raises(BadUsage) as caught:
            planned(checkpoint, Llama3(4.0, 1.0, 4.0))
        assert "no launch flags" in caught.value.hint

    def test_other_formats(self, tmp_path: Path) -> None:
        """A config.json is no GGUF."""
        (tmp_path / "config.json").write_text('{"model_type": "llama", "head_dim": 64, "max_position_embeddings": 512}')
        with pytest.raises(BadUsage, match="expected a GGUF file"):
            planned(read_checkpoint(str(tmp_path / "config.json")), Linear(2.0))


def split(path: Path, folder: Path, **changes: int) -> list[Path]:
    """A model in two parts as llama.cpp's tools split it: all metadata in the first, tensors in both."""
    folder.mkdir()
    names = [folder / f"m-{part:05}-of-00002.gguf" for part in (1, 2)]
    reader = gguf.GGUFReader(path)
    for part, name in enumerate(names):
        writer = gguf.GGUFWriter(name, "llama")
        for field in reader.fields.values() if part == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), field.types[0], kind)
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        if part and changes:
            writer.add_custom_alignment(changes["alignment"])
        half = len(reader.tensors) // 2
        for tensor in reader.tensors[:half] if part == 0 else reader.tensors[half:]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return names


class TestSplitModels:
    """A model in several files becomes one file."""

    def test_joined(self, tmp_path: Path) -> None:
        """All tensors of both parts are in it, and nothing of the split is."""
        whole = model(tmp_path / "in.gguf", divisors={"rope_freqs.weight": UP})
        first, _ = split(whole, tmp_path / "parts")
        conversion = converted(first, tuned(), tmp_path / "out.gguf")
        keys, tensors = contents(tmp_path / "out.gguf")
        assert not [key for key in keys if key.startswith("split.")]
        assert {k: v for k, v in tensors.items() if k not in TENSORS} == {
            k: v for k, v in contents(whole)[1].items() if k not in TENSORS
        }
        assert any("2 parts" in note for note in conversion.notes)

    def test_missing_part(self, tmp_path: Path) -> None:
        """A part that is not there is named."""
        first, second = split(model(tmp_path / "in.gguf"), tmp_path / "parts")
        second.unlink()
        with pytest.raises(BadCheckpoint, match="cannot be read") as caught:
            planned(read_checkpoint(str(first)), tuned())
        assert second.name in caught.value.where

    def test_parts_that_differ(self, tmp_path: Path) -> None:
        """Parts of another alignment cannot be joined."""
        first, _ = split(model(tmp_path / "in.gguf"), tmp_path / "parts", alignment=64)
        with pytest.raises(BadCheckpoint, match="differ in alignment"):
            planned(read_checkpoint(str(first)), tuned())

    def test_tensor_in_both(self, tmp_path: Path) -> None:
        """A tensor that two parts have is refused."""
        first, second = split(model(tmp_path / "in.gguf"), tmp_path / "parts")
        shutil.copy(model(tmp_path / "again.gguf"), second)
        with pytest.raises(BadCheckpoint, match="two parts have it"):
            planned(read_checkpoint(str(first)), tuned())

    def test_source_part_as_output(self, tmp_path: Path) -> None:
        """No part of the source is replaced, not even with force."""
        first, second = split(model(tmp_path / "in.gguf"), tmp_path / "parts")
        with pytest.raises(BadUsage, match="is the source"):
            converted(first, tuned(), second, force=True)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestTarget:
    """The source is never touched, and an output is whole or absent."""

    def refused(self, tmp_path: Path, source: str, out: Path, expected: str, *, force: bool = False) -> RopeError:
        """The error, after which every file is as it was."""
        before = listing(tmp_path)
        with pytest.raises(RopeError, match=expected) as caught:
            write_gguf(planned(read_checkpoint(source), tuned()), out, force=force)
        assert listing(tmp_path) == before
        return caught.value

    @pytest.mark.parametrize("name", ["out.bin", "nowhere/out.gguf", "in.gguf"])
    def test_a_dry_run_refuses_the_same_targets(self, name: str, tmp_path: Path) -> None:
        """What the size is told of could be written there, but for a GGUF that needs force."""
        conversion = planned(read_checkpoint(str(model(tmp_path / "in.gguf"))), tuned())
        with pytest.raises(BadUsage):
            size_of(conversion, tmp_path / name)
        assert size_of(conversion, model(tmp_path / "there.gguf")) == size_of(conversion)

    def test_output_exists(self, tmp_path: Path) -> None:
        """An existing output needs force, and then is replaced whole."""
        source, out = model(tmp_path / "in.gguf"), model(tmp_path / "out.gguf", "qwen2")
        error = self.refused(tmp_path, str(source), out, "already exists")
        assert isinstance(error, OutputExists)
        converted(source, tuned(), out, force=True)
        assert read_checkpoint(str(out)).model_type == "llama"

    def test_output_that_is_no_gguf(self, tmp_path: Path) -> None:
        """Force replaces GGUF files alone: neither other files nor folders."""
        source = model(tmp_path / "in.gguf")
        (tmp_path / "notes.gguf").write_text("my notes")
        (tmp_path / "folder.gguf").mkdir()
        for name in ("notes.gguf", "folder.gguf"):
            self.refused(tmp_path, str(source), tmp_path / name, "is not a GGUF file", force=True)

    @pytest.mark.parametrize("name", ["out", "out.safetensors", "out.gguf.bak"])
    def test_name(self, tmp_path: Path, name: str) -> None:
        """The output's name ends as readers expect it."""
        error = self.refused(tmp_path, str(model(tmp_path / "in.gguf")), tmp_path / name, "name of a .gguf file")
        assert error.hint.endswith(f"{name}.gguf")

    def test_output_is_the_source(self, tmp_path: Path) -> None:
        """By its own name, by a symbolic link either way, or by a hard link."""
        source = model(tmp_path / "in.gguf")
        (tmp_path / "soft.gguf").symlink_to(source)
        (tmp_path / "hard.gguf").hardlink_to(source)
        for name, typed in (("in", "in"), ("soft", "in"), ("in", "soft"), ("hard", "in")):
            out, read = tmp_path / f"{name}.gguf", str(tmp_path / f"{typed}.gguf")
            self.refused(tmp_path, read, out, "is the source", force=True)

    def test_output_in_the_source(self, tmp_path: Path) -> None:
        """A folder that was named as the source gets no second model; beside a file that was named it may lie."""
        (tmp_path / "m").mkdir()
        source = model(tmp_path / "m" / "in.gguf")
        self.refused(tmp_path, str(tmp_path / "m"), tmp_path / "m" / "out.gguf", "lies in the source")
        converted(source, tuned(), tmp_path / "m" / "out.gguf")

    def test_missing_folder(self, tmp_path: Path) -> None:
        """The folder to write into has to exist."""
        out = tmp_path / "none" / "out.gguf"
        self.refused(tmp_path, str(model(tmp_path / "in.gguf")), out, "does not exist")

    def test_source_behind_a_link(self, tmp_path: Path) -> None:
        """A source in a Hub cache, which is links into a folder of blobs, is read and left alone."""
        (tmp_path / "blobs").mkdir()
        blob = model(tmp_path / "blobs" / "abc")
        (tmp_path / "snapshot.gguf").symlink_to(blob)
        before, stamp = blob.read_bytes(), blob.stat().st_mtime_ns
        converted(tmp_path / "snapshot.gguf", tuned(), tmp_path / "out.gguf")
        assert (blob.read_bytes(), blob.stat().st_mtime_ns) == (before, stamp)
        assert not (tmp_path / "out.gguf").is_symlink()

    def test_link_as_output(self, tmp_path: Path) -> None:
        """With force a link is replaced by the file; what it led to stays."""
        source, other = model(tmp_path / "in.gguf"), model(tmp_path / "other.gguf", "qwen2")
        before = other.read_bytes()
        (tmp_path / "out.gguf").symlink_to(other)
        self.refused(tmp_path, str(source), tmp_path / "out.gguf", "already exists")
        converted(source, tuned(), tmp_path / "out.gguf", force=True)
        assert other.read_bytes() == before
        assert not (tmp_path / "out.gguf").is_symlink()

    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Space is checked before the first byte."""
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        error = self.refused(tmp_path, str(model(tmp_path / "in.gguf")), tmp_path / "out.gguf", "1,000 are free")
        assert isinstance(error, NoResource)

    def test_space_that_runs_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that fills up while the file is written leaves nothing behind."""

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        error = self.refused(tmp_path, str(model(tmp_path / "in.gguf")), tmp_path / "out.gguf", "the disk is full")
        assert isinstance(error, NoResource)
        assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]

    def test_output_that_appears_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that someone else writes to the same name in the meantime is not replaced."""
        source, out = model(tmp_path / "in.gguf"), tmp_path / "out.gguf"
        monkeypatch.setattr(os, "fsync", lambda _: out.write_text("theirs"))
        with pytest.raises(OutputExists, match="appeared"):
            converted(source, tuned(), out)
        assert out.read_text() == "theirs"

    def test_source_cut_short(self, tmp_path: Path) -> None:
        """A source whose data ends too early is refused before anything is written."""
        source = model(tmp_path / "in.gguf")
        source.write_bytes(source.read_bytes()[:-2000])
        error = self.refused(tmp_path, str(source), tmp_path / "out.gguf", "the file has")
        assert isinstance(error, BadCheckpoint)
        assert "blk.1" in error.where

    def test_source_that_shrinks(self, tmp_path: Path) -> None:
        """A source that is cut between the plan and the deed is refused, and no output appears."""
        source = model(tmp_path / "in.gguf")
        conversion = planned(read_checkpoint(str(source)), tuned())
        source.write_bytes(source.read_bytes()[:5000])
        with pytest.raises(BadCheckpoint):
            write_gguf(conversion, tmp_path / "out.gguf")
        assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]

    def test_read_back(self, tmp_path: Path) -> None:
        """What reads back as something else than the intent never gets its name."""
        checkpoint = read_checkpoint(str(model(tmp_path / "in.gguf")))
        plan = planned(checkpoint, tuned())
        other = {"default": spec_of(checkpoint.ropes[0].spec, Linear(4.0))}
        wrong = GgufConversion(checkpoint, other, plan.settings, plan.tensors, plan.edits, plan.notes)
        with pytest.raises(CheckFailed, match="means other numbers"):
            write_gguf(wrong, tmp_path / "out.gguf")
        assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


class TestCopying:
    """Data goes through in blocks, by the kernel or without it."""

    def test_without_the_kernel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the kernel does not copy between files, blocks give the same bytes."""
        source = model(tmp_path / "in.gguf")
        converted(source, tuned(), tmp_path / "kernel.gguf")

        def unsupported(*_: int) -> int:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", unsupported, raising=False)
        converted(source, tuned(), tmp_path / "blocks.gguf")
        monkeypatch.delattr(os, "copy_file_range")
        converted(source, tuned(), tmp_path / "absent.gguf")
        blobs = {(tmp_path / f"{name}.gguf").read_bytes() for name in ("kernel", "blocks", "absent")}
        assert len(blobs) == 1

    def test_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Memory does not grow with the weights or the vocabulary."""
        monkeypatch.delattr(os, "copy_file_range", raising=False)
        peaks = []
        for name, vocabulary, rows in (("small", 2000, 64), ("large", 20000, 2**18)):
            source = grown(model(tmp_path / f"{name}.gguf", vocabulary=vocabulary), rows)
            tracemalloc.start()
            converted(source, tuned(), tmp_path / f"{name}-out.gguf")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert (tmp_path / "large-out.gguf").stat().st_size > 32 * 2**20
        assert peaks[1] < peaks[0] + 3 * BLOCK


def grown(path: Path, rows: int, width: int = WIDTH) -> Path:
    """The same model whose last tensor has more rows, zeros, or fewer and narrower ones."""
    blob = path.read_bytes()
    name = f"blk.{LAYERS - 1}.ffn.weight".encode()
    at = blob.index(name) + len(name) + 4
    assert struct.unpack_from("<QQ", blob, at) == (WIDTH, 48)
    changed = blob[:at] + struct.pack("<QQ", width, max(48 + rows, 1)) + blob[at + 16 :]
    more = 2 * (width * max(48 + rows, 1) - WIDTH * 48)
    path.write_bytes(changed + bytes(more) if more > 0 else changed[:more])
    return path


def test_options_of_a_config_are_said_to_be_without_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A GGUF has no config.json and no shards: the options about them are named, and none where none was given."""
    line = ["convert", str(model(tmp_path / "in.gguf")), "--rope-type", "linear", "--factor", "2", "--dry-run"]
    for more, named in (([], ""), (["--schema", "v4", "--weights", "copy"], "without effect: --schema, --weights (")):
        with pytest.raises(SystemExit) as ended:
            main([*line, *more])
        said = capsys.readouterr().err
        assert ended.value.code == 0
        assert named in said
        assert ("without effect" in said) == bool(more)
