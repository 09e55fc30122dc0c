"""The command line of inspect and convert: which stream, which exit status, and what is left behind."""

import io
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from ropecli.checkpoint import read_checkpoint
from ropecli.cli import app, main
from ropecli.frequencies import base_frequencies, frequencies, snapped_betas
from ropecli.inspection import OF_LAYERS, rope_to_json
from ropecli.spec import (
    SCALINGS,
    Dynamic,
    LayerRope,
    Linear,
    Llama3,
    Longrope,
    Ntk,
    NtkByParts,
    Plain,
    Proportional,
    RopeSpec,
    Yarn,
)

REPOSITORY = Path(__file__).parent.parent
SPEC = RopeSpec(10000.0, 32, 32, 128, 512)
FAST, SLOW = snapped_betas(SPEC, 1, 6)
TUNED = RopeSpec(10000.0, 32, 32, 128, 512, Yarn(4.0, 1.05, FAST, SLOW))
YARN = ["--rope-type", "yarn", "--factor", "4"]


def calibration(**changes: Any) -> dict[str, Any]:
    """A calibration file, as far as a converter reads it."""
    return {
        "schema_version": 1,
        "kind": "ropecli.calibration",
        "checkpoint": {"source": "tiny", "model_type": "llama", "config_sha256": "0" * 64},
        "rope": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_slow": SLOW,
            "beta_fast": FAST,
            "attention_factor": 1.05,
        },
        "temperature": {"a": 0.036, "b": 1.0},
        "inv_freq": list(frequencies(TUNED).inv_freq),
        "decision": "calibrated",
    } | changes


def rope_of(**changes: Any) -> dict[str, Any]:
    """The `rope` of `calibration` with other members; None removes one."""
    block = calibration()["rope"] | changes
    return {key: value for key, value in block.items() if value is not None}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return call


@pytest.fixture
def yarn_config(tmp_path: Path) -> Path:
    """A Llama of factor 4 whose betas are whole numbers, for which there is a finding."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 32}
    config = {"model_type": "llama", "hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
    config |= {"max_position_embeddings": 2048, "rope_theta": 10000.0, "rope_scaling": yarn | {"beta_slow": 1}}
    path = tmp_path / "yarn" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(config))
    return path


def environment(**changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS")}
    return kept | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"} | changes


def spawn(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """`python -m ropecli …` in a process of its own."""
    command = [sys.executable, "-m", "ropecli", *map(str, arguments)]
    env = environment(**options.pop("env", {}))
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False, **options)


def test_convert_writes_a_checkpoint_and_tells_it_on_standard_error(run, checkpoint, tmp_path):
    """Standard output is empty, standard error tells what was done, and the result means what was asked."""
    out = tmp_path / "out"
    status, stdout, stderr = run("convert", checkpoint, "-o", out, *YARN)
    assert (status, stdout) == (0, "")
    assert str(out) in stderr
    assert read_checkpoint(str(out)).ropes[0].spec.max_length == 512


def test_the_plan_of_a_lone_config(run, checkpoint, tmp_path):
    """A config.json without weights has a diff, too; a new checkpoint needs the folder."""
    source = tmp_path / "any-name.json"
    source.write_bytes((checkpoint / "config.json").read_bytes())
    status, out, _ = run("convert", source, "--rope-type", "yarn", "--factor", "4", "--dry-run")
    assert (status, list(tmp_path.glob("out"))) == (0, [])
    assert "+++ b/config.json" in out
    assert '"rope_type": "yarn"' in out
    status, _, said = run("convert", source, "--rope-type", "yarn", "--factor", "4", "--output", tmp_path / "out")
    assert status == 2
    assert "expected a checkpoint folder" in said


def test_a_config_stands_for_its_folder(run, checkpoint, tmp_path):
    """MODEL/config.json is MODEL: the weights and the tokenizer go along."""
    status, _, _ = run("convert", checkpoint / "config.json", "-o", tmp_path / "by-file", *YARN)
    assert status == 0
    assert run("convert", checkpoint, "-o", tmp_path / "by-folder", *YARN)[0] == 0
    by_file, by_folder = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("by-file", "by-folder")
    )
    assert by_file == by_folder
    assert "model-00002-of-00005.safetensors" in by_file


def test_quiet_says_nothing(run, checkpoint, tmp_path):
    """With -q neither stream has a word."""
    assert run("convert", checkpoint, "-o", tmp_path / "out", *YARN, "-q") == (0, "", "")


def test_json_is_one_document_on_one_line(run, checkpoint, tmp_path):
    """The document names source, output, edits, files and bytes, and that the result was read back."""
    out = tmp_path / "out"
    status, stdout, stderr = run("convert", checkpoint, "-o", out, *YARN, "--json")
    document = json.loads(stdout)
    assert (status, stdout.count("\n"), stderr) == (0, 1, "")
    assert document["schema_version"] == 1
    assert document["source"] == str(checkpoint)
    assert document["output"] == str(out)
    assert document["verified"] is True
    assert {"rope_parameters", "rope_scaling", "rope_theta"} <= {edit["key"] for edit in document["edits"]}
    assert document["files"].keys() == {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize("rope_type", ["none", "linear", "ntk", "dynamic", "ntk-by-parts", "yarn", "llama3"])
def test_every_kind_by_hand(rope_type, run, checkpoint, tmp_path):
    """Each --rope-type gives a checkpoint that inspect reads with the same served length."""
    factor = [] if rope_type == "none" else ["--factor", 4]
    assert run("convert", checkpoint, "-o", tmp_path / "out", "--rope-type", rope_type, *factor)[0] == 0
    spec = read_checkpoint(str(tmp_path / "out")).ropes[0].spec
    assert spec.max_length == {"none": 128, "ntk": 512}.get(rope_type, 512)


def test_lengths_read_k(run, checkpoint, tmp_path):
    """`--target-length 1k` from `--original-length 256` is a factor of 4."""
    run(
        "convert",
        checkpoint,
        "-o",
        tmp_path / "out",
        "--rope-type",
        "yarn",
        "--target-length",
        "1k",
        "--original-length",
        256,
    )
    spec = read_checkpoint(str(tmp_path / "out")).ropes[0].spec
    assert (spec.original_length, spec.max_length, spec.scaling.factor) == (256, 1024, 4.0)


def test_longrope_by_hand(run, checkpoint, tmp_path):
    """Divisors on the command line arrive in the config, one a pair."""
    factors = ",".join(str(1 + i / 10) for i in range(16))
    options = ["--rope-type", "longrope", "--factor", 4, "--factors", factors, "--attention-factor", 1.1]
    assert run("convert", checkpoint, "-o", tmp_path / "out", *options)[0] == 0
    scaling = read_checkpoint(str(tmp_path / "out")).ropes[0].spec.scaling
    assert scaling.long_factor == scaling.short_factor == tuple(1 + i / 10 for i in range(16))


@pytest.mark.parametrize("length", [["--factor", 4], ["--target-length", 512]], ids=["factor", "target length"])
def test_all_layer_types_at_once(length, run, tmp_path):
    """With --layers all, a config with two layer types is converted whole, by factor or by length."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(GEMMA))
    command = ["convert", source, "-o", tmp_path / "out", "--rope-type", "linear", *length, "--layers", "all"]
    assert run(*command)[0] == 0
    assert [rope.spec.scaling.factor for rope in read_checkpoint(str(tmp_path / "out")).ropes] == [4.0, 4.0]


def test_a_checkpoint_does_not_go_to_standard_output(run, checkpoint, tmp_path, monkeypatch):
    """No folder is named - by somebody who meant a pipe."""
    monkeypatch.chdir(tmp_path)
    before = list(tmp_path.iterdir())
    status, out, err = run("convert", checkpoint, "-o", "-", *YARN)
    assert (status, out) == (2, "")
    assert "--output: a checkpoint does not go to standard output" in err
    assert list(tmp_path.iterdir()) == before


GEMMA = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 6,
    "max_position_embeddings": 128,
    "sliding_window": 16,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    },
}


def check_calibrated(out: Path) -> None:
    """The checkpoint rotates as the calibration file says."""
    found, wanted = frequencies(read_checkpoint(str(out)).ropes[0].spec), frequencies(TUNED)
    assert found.inv_freq == pytest.approx(wanted.inv_freq, rel=5e-5)
    assert found.attention_factor == pytest.approx(1.05, abs=1e-6)


def test_from_a_calibration_file(run, checkpoint, tmp_path):
    """--from FILE writes the calibrated numbers."""
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(calibration()))
    assert run("convert", checkpoint, "-o", tmp_path / "out", "--from", file)[0] == 0
    check_calibrated(tmp_path / "out")


def test_from_standard_input(checkpoint, tmp_path):
    """--from - reads the end of a pipe, in a real process."""
    done = spawn("convert", checkpoint, "-o", tmp_path / "out", "--from", "-", input=json.dumps(calibration()))
    assert (done.returncode, done.stdout) == (0, "")
    check_calibrated(tmp_path / "out")


def test_from_a_calibration_that_carries_factors(run, checkpoint, tmp_path):
    """A longrope calibration is written as longrope."""
    divisors = [1 + i / 5 for i in range(16)]
    block = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "short_factor": divisors,
        "long_factor": divisors,
        "attention_factor": 1.1,
    }
    file = tmp_path / "calibration.json"
    table = [w / divisor for w, divisor in zip(base_frequencies(10000.0, 32), divisors, strict=True)]
    file.write_text(json.dumps(calibration(rope=block, inv_freq=table)))
    assert run("convert", checkpoint, "-o", tmp_path / "out", "--from", file)[0] == 0
    spec = read_checkpoint(str(tmp_path / "out")).ropes[0].spec
    assert (spec.scaling.long_factor, spec.scaling.attention_factor) == (tuple(divisors), 1.1)


BROKEN_CALIBRATIONS: dict[str, tuple[str, str]] = {
    "empty": ("", "empty"),
    "spaces": (" \n", "empty"),
    "no json": ("{", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "a list": ("[1]", "kind"),
    "another kind": (json.dumps(calibration(kind="x")), "kind"),
    "a newer schema": (json.dumps(calibration(schema_version=2)), "schema_version"),
    "no rope": (json.dumps(calibration(rope=None)), "rope"),
    "no factor": (json.dumps(calibration(rope=rope_of(factor=None))), "rope.factor"),
    "factor is text": (json.dumps(calibration(rope=rope_of(factor="4"))), "rope.factor"),
    "factor below 0": (json.dumps(calibration(rope=rope_of(factor=-4.0))), "factor"),
    "NaN": (json.dumps(calibration(rope=rope_of(attention_factor=float("nan")))), "attention_factor"),
    "infinite": (json.dumps(calibration(rope=rope_of(beta_fast=float("inf")))), "beta_fast"),
    "a number without end": (json.dumps(calibration()).replace("1.05", "9" * 5000), "calibration.json"),
    "unknown rope_type": (json.dumps(calibration(rope=rope_of(rope_type="magic"))), "rope.rope_type"),
    "no original length": (
        json.dumps(calibration(rope=rope_of(original_max_position_embeddings=None))),
        "original_max_position_embeddings",
    ),
    "no inv_freq": (json.dumps(calibration(inv_freq=[])), "inv_freq"),
    "another base": (json.dumps(calibration(rope=rope_of(rope_theta=5e5))), "rope_theta"),
    "another width": (json.dumps(calibration(inv_freq=[1.0] * 8)), "inv_freq"),
    "another table": (json.dumps(calibration(inv_freq=[1.0] * 16)), "inv_freq"),
}


@pytest.mark.parametrize("case", BROKEN_CALIBRATIONS)
def test_a_calibration_file_that_can_not_be_used(case, run, checkpoint, tmp_path, tree):
    """Exit status 3 and one line with the file and the key at fault; nothing is written."""
    text, named = BROKEN_CALIBRATIONS[case]
    file = tmp_path / "calibration.json"
    file.write_text(text)
    before = tree(tmp_path)
    status, stdout, stderr = run("convert", checkpoint, "-o", tmp_path / "out", "--from", file)
    assert (status, stdout) == (3, "")
    check_one_error(stderr, "calibration.json", named)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["missing", "not text"])
def test_a_calibration_file_that_can_not_be_read(content, run, checkpoint, tmp_path):
    """A missing file and a file that is not text: status 3, its name, a hint."""
    file = tmp_path / "calibration.json"
    if content is not None:
        file.write_bytes(content)
    status, stdout, stderr = run("convert", checkpoint, "-o", tmp_path / "out", "--from", file)
    assert (status, stdout) == (3, "")
    check_one_error(stderr, "calibration.json")
    assert "hint:" in stderr


def check_one_error(stderr: str, *parts: str) -> None:
    """One line that starts with "error:" and names these, at most a hint after it, and no traceback."""
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert all(line.startswith(("error: ", "hint: ")) for line in lines), stderr
    for part in parts:
        assert part in errors[0], stderr
    assert "Traceback" not in stderr


BAD_USAGE: dict[str, tuple[Sequence[str], str]] = {
    "no method": ([], "--rope-type"),
    "both methods": (["--from", "x.json", *YARN], "--from"),
    "options beside --from": (["--from", "x.json", "--factor", "2"], "--from"),
    "factor below 1": (["--rope-type", "yarn", "--factor", "0.5"], "0.5"),
    "factor 0": (["--rope-type", "yarn", "--factor", "0"], "--factor"),
    "negative factor": (["--rope-type", "yarn", "--factor", "-4"], "-4"),
    "factor nan": (["--rope-type", "yarn", "--factor", "nan"], "nan"),
    "factor inf": (["--rope-type", "linear", "--factor", "inf"], "inf"),
    "factor is a word": (["--rope-type", "yarn", "--factor", "four"], "--factor"),
    "factor is huge": (["--rope-type", "yarn", "--factor", "1e300"], "--factor"),
    "no factor": (["--rope-type", "yarn"], "--factor"),
    "factor and length": ([*YARN, "--target-length", "512"], "--target-length"),
    "length is a word": (["--rope-type", "yarn", "--target-length", "long"], "long"),
    "length below the original": (["--rope-type", "yarn", "--target-length", "64"], "--target-length"),
    "length of 0": (["--rope-type", "yarn", "--target-length", "0"], "--target-length"),
    "fractional length": (["--rope-type", "yarn", "--factor", "1.3"], "1.3"),
    "original length of 0": ([*YARN, "--original-length", "0"], "--original-length"),
    "unknown rope type": (["--rope-type", "magic", "--factor", "4"], "magic"),
    "an option that linear has not": (["--rope-type", "linear", "--factor", "4", "--beta-fast", "8"], "--beta-fast"),
    "an option that yarn has not": ([*YARN, "--low-freq-factor", "1"], "--low-freq-factor"),
    "α above β": ([*YARN, "--alpha", "32", "--beta", "1"], "--beta-slow"),
    "α of 0": ([*YARN, "--alpha", "0"], "beta-slow"),
    "no temperature": ([*YARN, "--attention-factor", "0"], "--attention-factor"),
    "temperature nan": ([*YARN, "--attention-factor", "nan"], "--attention-factor"),
    "a base of 0": ([*YARN, "--rope-theta", "0"], "--rope-theta"),
    "a negative base": ([*YARN, "--rope-theta", "-1"], "--rope-theta"),
    "factors that are words": (["--rope-type", "longrope", "--factor", "4", "--factors", "a,b"], "--factors"),
    "too few factors": (["--rope-type", "longrope", "--factor", "4", "--factors", "1,2"], "--factors"),
    "no factors": (["--rope-type", "longrope", "--factor", "4"], "--factors"),
    "temperature for ntk-by-parts": (
        ["--rope-type", "ntk-by-parts", "--factor", "4", "--attention-factor", "1.1"],
        "temperature",
    ),
    "a factor for none": (["--rope-type", "none", "--factor", "4"], "--factor"),
    "unknown schema": ([*YARN, "--schema", "v6"], "v6"),
    "unknown weights": ([*YARN, "--weights", "move"], "move"),
    "unknown layers": ([*YARN, "--layers", "some"], "some"),
    "unknown option": ([*YARN, "--no-such-option"], "--no-such-option"),
    "a second model": ([*YARN, "other"], "other"),
}


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage_of_convert(case, run, checkpoint, tmp_path, tree):
    """Exit status 2, one line that names the option or its value, and nothing written."""
    arguments, named = BAD_USAGE[case]
    before = tree(tmp_path)
    status, stdout, stderr = run("convert", checkpoint, "-o", tmp_path / "out", *arguments)
    assert (status, stdout) == (2, "")
    check_one_error(stderr, named)
    assert tree(tmp_path) == before


def test_an_output_is_needed(run, checkpoint):
    """Without -o there is nothing to do but a dry run."""
    status, stdout, stderr = run("convert", checkpoint, *YARN)
    assert (status, stdout) == (2, "")
    check_one_error(stderr, "--output")


@pytest.mark.parametrize("verb", ["convert", "inspect", "calibrate", "evaluate"])
@pytest.mark.parametrize("arguments", [[], ["--no-such-option"]])
def test_missing_arguments_and_unknown_options(verb, arguments, run):
    """Every verb: exit status 2, one line, and a hint that leads to its help."""
    status, stdout, stderr = run(verb, *arguments)
    assert (status, stdout) == (2, "")
    check_one_error(stderr)
    assert f"ropecli {verb} --help" in stderr


def test_an_unknown_verb(run):
    """`ropecli konvert` is bad usage, not a crash."""
    status, stdout, stderr = run("konvert", "x")
    assert (status, stdout) == (2, "")
    check_one_error(stderr, "konvert")


def test_a_hint_follows_an_error(run, checkpoint):
    """The second line says what to do."""
    stderr = run("convert", checkpoint, "-o", checkpoint / "inside", *YARN)[2]
    assert [line.partition(":")[0] for line in stderr.splitlines()] == ["error", "hint"]


BROKEN_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "broken JSON": (lambda folder: (folder / "config.json").write_text('{"model_type": "llama",'), "config.json"),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
    "empty": (lambda folder: (folder / "config.json").write_text(""), "config.json"),
    "not text": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "no shape": (lambda folder: (folder / "config.json").write_text('{"model_type": "x"}'), "head_dim"),
    "broken tokenizer config": (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "tokenizer_config"),
    "a truncated shard": (
        lambda folder: os.truncate(folder / "model-00002-of-00005.safetensors", 1000),
        "model-00002-of-00005.safetensors",
    ),
    "a missing shard": (
        lambda folder: (folder / "model-00002-of-00005.safetensors").unlink(),
        "model-00002-of-00005.safetensors",
    ),
}


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["for real", "dry run"])
@pytest.mark.parametrize("case", BROKEN_CHECKPOINTS)
def test_a_broken_checkpoint_is_not_converted(case, more, run, checkpoint, tmp_path, tree):
    """Exit status 3, one line with the file at fault, nothing left behind; a dry run finds it too."""
    damage, named = BROKEN_CHECKPOINTS[case]
    damage(checkpoint)
    before = tree(tmp_path)
    status, stdout, stderr = run("convert", checkpoint, "-o", tmp_path / "out", *YARN, *more)
    assert (status, stdout) == (3, "")
    check_one_error(stderr, named)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", [["inspect"], ["convert", *YARN, "-o", "out"]], ids=["inspect", "convert"])
def test_a_missing_model(verb, run, tmp_path, monkeypatch):
    """Status 3 and the path as it was typed, before anything else happens."""
    monkeypatch.chdir(tmp_path)
    status, stdout, stderr = run(verb[0], "./no/such/model", *verb[1:])
    assert (status, stdout) == (3, "")
    check_one_error(stderr, "./no/such/model")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_and_force_replaces_it(run, checkpoint, tmp_path, tree):
    """Status 2 and an untouched output without --force; the new checkpoint with it."""
    out = tmp_path / "out"
    assert run("convert", checkpoint, "-o", out, *YARN)[0] == 0
    before = tree(tmp_path)
    status, stdout, stderr = run("convert", checkpoint, "-o", out, "--rope-type", "linear", "--factor", 2)
    assert (status, stdout) == (2, "")
    check_one_error(stderr, str(out))
    assert "--force" in stderr
    assert tree(tmp_path) == before
    assert run("convert", checkpoint, "-o", out, "--rope-type", "linear", "--factor", 2, "--force")[0] == 0
    assert read_checkpoint(str(out)).ropes[0].spec.max_length == 256


ERRORS: dict[str, tuple[Sequence[str], int, str]] = {
    "usage": (["--rope-type", "yarn", "--factor", "0.5"], 2, "usage"),
    "unknown option": (["--no-such-option"], 2, "usage"),
    "missing file": (["--from", "/no/such/file.json"], 3, "calibration-file"),
    "output exists": ([*YARN], 2, "output-exists"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_under_json_is_a_document(case, run, checkpoint, tmp_path):
    """`{"error": {"code", "message", "hint"}}` on standard output, with the same exit status, and no second telling."""
    arguments, status, code = ERRORS[case]
    (tmp_path / "out").mkdir()
    found, stdout, stderr = run("convert", checkpoint, "-o", tmp_path / "out", *arguments, "--json")
    document = json.loads(stdout)
    assert (found, stderr) == (status, "")
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"code", "message", "hint"}
    assert document["error"]["code"] == code
    assert document["error"]["message"]


@pytest.mark.parametrize("output", [["-o", "out"], []], ids=["with an output", "without"])
def test_a_dry_run_touches_nothing_and_shows_the_diff(output, run, checkpoint, tmp_path, tree, monkeypatch):
    """Names, content, inodes and times are the same after; the diff of the config is on standard output."""
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    status, stdout, stderr = run("convert", checkpoint, *output, *YARN, "--dry-run")
    assert status == 0
    assert all(line.startswith(("note: ", "not in ")) for line in stderr.splitlines())
    assert tree(tmp_path) == before
    assert stdout.startswith("--- a/config.json\n+++ b/config.json\n@@")
    assert '-  "max_position_embeddings": 128,' in stdout.splitlines()
    assert '+  "max_position_embeddings": 512,' in stdout.splitlines()
    assert re.search(r"[\d,]+ bytes", stdout)


def test_a_dry_run_says_what_the_run_would_say(run, checkpoint, tmp_path):
    """Notes and runtimes that disagree, word for word; only the deed itself is not told."""
    linear = ["--rope-type", "linear", "--factor", "4"]
    dry = run("convert", checkpoint, *linear, "--dry-run")[2].splitlines()
    real = run("convert", checkpoint, "-o", tmp_path / "out", *linear)[2].splitlines()
    told = [line for line in real if line.startswith(("note: ", "not in "))]
    assert dry == told
    assert "note: vLLM multiplies the length by the factor again: serve with --max-model-len 512" in dry


@pytest.mark.parametrize(("lengths", "noted"), [([], True), (["--original-length", "32k"], False)])
def test_flags_are_noted_to_count_from_more_than_was_trained(lengths, noted, run, tmp_path):
    """Qwen3's 40,960 are a factor of 3.2 from 128k, the 32,768 of its training one of 4."""
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 40960}
    config |= {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "head_dim": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    emit = ["--rope-type", "yarn", "--target-length", "128k", "--emit", "vllm"]
    status, stdout, stderr = run("convert", tmp_path, *emit, *lengths)
    assert status == 0
    assert f'"factor": {3.2 if noted else 4.0}' in stdout
    assert ("note: qwen3 was trained for 32768 tokens" in stderr) == noted


def test_the_papers_yarn_is_a_list_of_divisors(run, checkpoint, tmp_path):
    """A ramp in rotations and a temperature: llama3 has no place for both, and the hint says what has."""
    words = ["--rope-type", "ntk-by-parts", "--factor", "4", "--attention-factor", "1.1386"]
    status, _, stderr = run("convert", checkpoint, "-o", tmp_path / "out", *words)
    assert (status, "--carrier longrope writes both" in stderr) == (2, True)
    status, _, stderr = run("convert", checkpoint, "-o", tmp_path / "out", *words, "--carrier", "longrope")
    assert status == 0
    assert not [name for name in ("transformers", "vllm", "sglang", "mlx-lm") if f"not in {name}: " in stderr]
    (rope,) = read_checkpoint(str(tmp_path / "out")).ropes
    found = frequencies(rope.spec, 512)
    paper = RopeSpec(10000.0, 32, 32, 128, 512, NtkByParts(4.0, attention_factor=1.1386))
    assert found.inv_freq == pytest.approx(frequencies(paper).inv_freq)
    assert found.attention_factor == pytest.approx(1.1386, abs=1e-4)


def test_a_dry_run_as_json(run, checkpoint, tmp_path, tree):
    """The same document as for a conversion, with no output and nothing verified."""
    before = tree(tmp_path)
    status, stdout, stderr = run("convert", checkpoint, "-o", tmp_path / "out", *YARN, "--dry-run", "--json")
    document = json.loads(stdout)
    assert (status, stderr) == (0, "")
    assert tree(tmp_path) == before
    assert document["output"] is None
    assert document["verified"] is False
    assert document["diff"].startswith("--- a/config.json")


@pytest.mark.parametrize(("output", "status"), [("missing/out", 2), ("source/inside", 2), ("source", 2), ("file", 2)])
def test_a_dry_run_refuses_what_a_real_run_refuses(output, status, run, checkpoint, tmp_path, tree):
    """A parent that is not there, an output inside the source, and a file in its place."""
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    found, stdout, stderr = run("convert", checkpoint, "-o", tmp_path / output, *YARN, "--dry-run")
    assert (found, stdout) == (status, "")
    check_one_error(stderr, str(tmp_path))
    assert tree(tmp_path) == before


def test_an_interrupt_has_status_130(run, checkpoint, tmp_path, monkeypatch):
    """Ctrl-C while a calibration is awaited ends without a word of Python's, and nothing is written."""

    class Waiting(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Waiting()))
    status, stdout, stderr = run("convert", checkpoint, "-o", tmp_path / "out", "--from", "-")
    assert (status, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


def test_debug_shows_where_an_error_came_from(run, tmp_path):
    """A traceback on standard error for those who ask; the line and the hint stay."""
    status, stdout, stderr = run("inspect", tmp_path / "nothing", "--debug")
    assert (status, stdout) == (3, "")
    assert "Traceback" in stderr
    assert "error: " in stderr


def test_control_characters_of_names_are_made_visible(run, tmp_path):
    """A file name can not colour or move what the terminal shows."""
    status, _, stderr = run("inspect", f"{tmp_path}/\x1b[31mred\nline")
    assert status == 3
    assert "\x1b" not in stderr
    check_one_error(stderr, "\\x1b[31mred\\nline")


ROPE_FIELDS: Mapping[str, Any] = {
    "name": str,
    "layers": int,
    "rope_type": str,
    "rope_theta": float,
    "head_dim": int,
    "rotary_dim": int,
    "layout": str,
    "factor": float,
    "original_length": int,
    "max_length": int,
    "attention_factor": float,
    "length_dependent": bool,
    "inv_freq": list,
    "rotations": list,
    "parameters": dict,
    "sources": dict,
}
FIELDS: Mapping[str, Any] = {
    "schema_version": int,
    "source": str,
    "format": str,
    "model_type": str,
    "rope": list,
    "runtimes": dict,
    "findings": list,
    "baked": object,
}


@pytest.mark.parametrize("converted", [False, True])
def test_inspect_json_has_the_promised_fields(converted, run, checkpoint, tmp_path):
    """One document on one line, with the names and types that scripts rely on."""
    model = checkpoint
    if converted:
        model = tmp_path / "out"
        run("convert", checkpoint, "-o", model, *YARN, "-q")
    status, stdout, stderr = run("inspect", model, "--json")
    document = json.loads(stdout)
    assert (status, stdout.count("\n"), stderr) == (0, 1, "")
    for key, kind in FIELDS.items():
        assert isinstance(document[key], kind), key
    (rope,) = document["rope"]
    for key, kind in ROPE_FIELDS.items():
        assert isinstance(rope[key], kind), key
    assert rope["factor"] == (4.0 if converted else 1.0)
    assert len(rope["inv_freq"]) == len(rope["rotations"]) == rope["rotary_dim"] // 2
    assert rope["max_length"] == (512 if converted else 128)
    assert rope["sources"]["rope_theta"]
    assert document["source"] == str(model)


AGREE = ["transformers", "transformers-4", "vllm", "vllm-2026-08", "sglang", "mlx-lm", "exllamav3", "tensorrt-llm"]


@pytest.mark.parametrize("m", [0.93, 1.0, 1.3])
def test_every_runtime_that_can_reads_the_result_the_same(m, run, checkpoint, tmp_path):
    """α, β and a temperature of one's own arrive in all runtimes that have any spelling for them."""
    options = ["--alpha", 0.7, "--beta", 12, "--attention-factor", m]
    run("convert", checkpoint, "-o", tmp_path / "out", *YARN, *options)
    runtimes = json.loads(run("inspect", tmp_path / "out", "--json")[1])["runtimes"]
    assert [name for name in AGREE if not runtimes[name]["agrees"]] == []
    assert [runtimes[name]["attention_factor"] for name in AGREE] == pytest.approx([m] * len(AGREE), abs=1e-6)


def test_inspect_json_of_several_models_is_a_document_a_line(run, checkpoint):
    """Scripts can read it line by line."""
    stdout = run("inspect", checkpoint, checkpoint / "config.json", "--json")[1]
    assert [json.loads(line)["source"] for line in stdout.splitlines()] == [
        str(checkpoint),
        str(checkpoint / "config.json"),
    ]


@pytest.mark.parametrize("arguments", [["--factor", "4"], ["--target-length", "512"]])
def test_inspect_previews_a_method(arguments, run, checkpoint, tmp_path, tree):
    """--factor shows what a conversion would give, and writes nothing; layer types are previewed alike."""
    before = tree(tmp_path)
    rope = json.loads(run("inspect", checkpoint, *arguments, "--json")[1])["rope"][0]
    assert (rope["rope_type"], rope["max_length"], rope["factor"]) == ("yarn", 512, 4.0)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("options", [("--factor", "1e9"), ("--factor", "16777216"), ("--target-length", "2048m")])
def test_a_length_that_nobody_serves_is_a_slip(run, checkpoint, tmp_path, options):
    """A length given for the factor is refused, with a word on which option takes which."""
    status, _, stderr = run("convert", checkpoint, "-o", tmp_path / "out", "--rope-type", "yarn", *options)
    assert status == 2
    assert "more than any model serves" in stderr
    assert "--target-length takes a number of tokens" in stderr


def test_a_preview_shows_what_runtimes_would_make_of_it(run, checkpoint):
    """The rows are those of the config that convert would write, not of the one on the disk."""
    shown = json.loads(run("inspect", checkpoint, "--factor", "4", "--json")[1])
    rows = shown["runtimes"]
    assert rows["transformers"]["attention_factor"] == pytest.approx(shown["rope"][0]["attention_factor"])
    assert rows["transformers"]["agrees"]
    assert not rows["exllamav2"]["agrees"]
    assert rows["vllm"]["context_length"] == 512


@pytest.mark.parametrize("name", ["mlx", "mlx-lm"])
def test_a_runtime_has_one_name_for_all_options(run, checkpoint, tmp_path, name):
    """--emit and --for both take MLX-LM as the other one calls it."""
    assert run("convert", checkpoint, *YARN, "--emit", name)[0] == 0
    assert run("convert", checkpoint, *YARN, "-o", tmp_path / name, "--for", name)[0] == 0
    written = json.loads((tmp_path / name / "config.json").read_text())["rope_scaling"]
    assert "mscale" in written
    assert "attn_factor" not in written


def test_emit_says_that_an_output_is_not_written(run, checkpoint, tmp_path):
    """The flags are on standard output all the same, and nothing is at OUT."""
    out = tmp_path / "out"
    status, stdout, stderr = run("convert", checkpoint, *YARN, "--emit", "vllm", "-o", out)
    assert (status, out.exists()) == (0, False)
    assert stdout.startswith("--hf-overrides")
    assert f"{out} is not written" in stderr


@pytest.mark.parametrize("arguments", [["--target-length", "512"], ["--rope-type", "longrope"]])
def test_every_error_has_a_hint(run, checkpoint, arguments):
    """Also one that has none of its own."""
    status, stdout, _ = run("inspect", checkpoint, "--factor", "4", *arguments, "--json")
    assert status == 2
    assert all(json.loads(stdout)["error"].values())


def test_a_broken_value_has_a_hint(run, tmp_path):
    """A list where a config should be, and text for a number."""
    config = tmp_path / "config.json"
    for text in ("[]", '{"model_type": "llama", "head_dim": 64, "num_hidden_layers": 1, "rope_theta": "1"}'):
        config.write_text(text)
        status, stdout, _ = run("inspect", config, "--json")
        assert status == 3
        assert json.loads(stdout)["error"]["hint"]


def test_an_original_length_that_is_text_is_not_called_missing(run, yarn_config):
    """It is there, and the finding for numbers written as text says so."""
    yarn_config.write_text(yarn_config.read_text().replace("512", '"512"'))
    status, stdout, _ = run("inspect", yarn_config, "--json")
    assert status == 3
    found = {finding["id"] for finding in json.loads(stdout)["findings"]}
    assert "ROPE120" in found
    assert "ROPE204" not in found


def test_expectations_decide_the_exit_status(run, checkpoint):
    """--expect is 0 where all values are found, 1 where one is not, 2 for a key that does not exist."""
    assert run("inspect", checkpoint, "--expect", "rope_type=default,original_length=128")[0] == 0
    status, _, stderr = run("inspect", checkpoint, "--expect", "rope_type=yarn")
    assert status == 1
    assert "rope_type=yarn" in stderr
    assert run("inspect", checkpoint, "--expect", "no_such_key=1")[0] == 2
    # as a shell variable that is not set gives it: nothing was checked, so it does not pass
    assert run("inspect", checkpoint, "--expect", "")[0] == 2


@pytest.mark.parametrize(
    "expectation",
    [
        *("rope_type=yarn , factor=4", "model_type=llama,format=hf", "default.factor=4", "beta_fast=32,truncate=true"),
        *("attention_factor=1.1386", "attention_factor=1.138629", "attention_factor=1.138629436"),
    ],
)
def test_what_inspect_shows_can_be_expected(run, yarn_config, expectation):
    """Names and numbers as the table and the JSON have them, 1.1386 for the temperature too."""
    assert run("inspect", yarn_config, "--expect", expectation)[0] == 0


def test_whatever_the_json_shows_can_be_expected():
    """The keys of --expect are those of a `rope` element and of the parameters of every scaling, lists left out."""
    scalings = (
        *(Plain(), Linear(4.0), Ntk(4.0), Dynamic(4.0), NtkByParts(4.0), Yarn.default(4.0), Llama3(8.0, 1.0, 4.0)),
        *(Longrope(4.0, (1.0,) * 16, (2.0,) * 16, 1.1, 1.1), Proportional(4.0, 0.5)),
    )
    assert {type(scaling) for scaling in scalings} == set(SCALINGS.values())
    shown = set()
    for scaling in scalings:
        data = rope_to_json(
            LayerRope("default", 1, RopeSpec(10000.0, 32, 32, 128, 512, scaling), {}, sliding_window=64)
        )
        parts = data, data["parameters"]
        shown |= {key for part in parts for key, value in part.items() if not isinstance(value, list | dict)}
    assert shown == set(OF_LAYERS)


@pytest.mark.parametrize(
    "expectation",
    [
        *("attention_factor=1.1387", "attention_factor=1.139", "attention_factor=1.13864", "factor=4.1"),
        *("model_type=qwen2", "sliding_attention.factor=4", "low_freq_factor=1", "sliding_window=512"),
    ],
)
def test_what_a_checkpoint_does_not_have_fails_the_check(run, yarn_config, expectation):
    """A parameter of another scaling is no slip of the user's: the check fails with 1, not with 2."""
    status, _, stderr = run("inspect", yarn_config, "--expect", expectation)
    assert status == 1
    key = expectation.partition("=")[0].rpartition(".")[2]
    assert f"expected {key}=" in stderr


def test_each_kind_of_layer_can_be_expected_by_itself(run, tmp_path):
    """Gemma 3 has two bases, so that no one value holds for both kinds of layer."""
    config = tmp_path / "config.json"
    gemma = {"model_type": "gemma3_text", "hidden_size": 128, "head_dim": 64, "num_attention_heads": 2}
    gemma |= {"num_hidden_layers": 6, "max_position_embeddings": 32768, "sliding_window": 512}
    config.write_text(json.dumps(gemma | {"rope_theta": 1e6, "rope_local_base_freq": 1e4}))
    both = "full_attention.rope_theta=1e6,sliding_attention.rope_theta=10000,sliding_attention.sliding_window=512"
    assert run("inspect", config, "--expect", both)[0] == 0
    assert run("inspect", config, "--expect", "rope_theta=1e6")[0] == 1


def test_an_unknown_expectation_is_refused_before_anything_is_read(run, yarn_config):
    """One line and a hint: no findings of the checkpoint, and no document."""
    status, stdout, stderr = run("inspect", yarn_config, yarn_config, "--expect", "rope_typ=yarn")
    assert (status, stdout) == (2, "")
    assert [line.partition(":")[0] for line in stderr.splitlines()] == ["error", "hint"]
    status, stdout, stderr = run("inspect", yarn_config, "--factor", "0.5")
    assert [line.partition(":")[0] for line in stderr.splitlines()] == ["error", "hint"]


def test_every_scalar_of_the_document_can_be_expected(run, yarn_config):
    """What `rope` and its `parameters` hold in the JSON, --expect knows."""
    document = json.loads(run("inspect", yarn_config, "--json")[1])
    layer = document["rope"][0] | document["rope"][0]["parameters"]
    scalars = {key: value for key, value in layer.items() if not isinstance(value, list | dict)}
    assert {"rope_theta", "beta_slow", "length_dependent"} <= set(scalars)
    wanted = ",".join(f"{key}={value}" for key, value in scalars.items())
    assert run("inspect", yarn_config, "--expect", wanted)[0] == 0


def test_expectations_of_a_model_that_does_not_rotate_fail(run, tmp_path):
    """GPT-2 has no rotary embedding, so that nothing that is expected of it is found."""
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "gpt2", "n_embd": 64, "n_head": 2, "n_positions": 128}')
    status, _, stderr = run("inspect", config, "--expect", "rope_type=yarn")
    assert status == 1
    assert "no rotary embedding" in stderr
    assert run("inspect", config, "--expect", "model_type=gpt2")[0] == 0


def test_an_expected_length_reads_as_every_length(run, saved_llama):
    """128 tokens are 0.125k, and not 1k."""
    assert run("inspect", saved_llama, "--expect", "original_length=0.125k,max_length=128")[0] == 0
    assert run("inspect", saved_llama, "--expect", "original_length=1k")[0] == 1


@pytest.mark.parametrize(
    "option",
    [
        ("--bake-length", "64"),
        ("--bake-dtype", "float16"),
        ("--bake-layout", "full"),
        ("--bake-per-layer",),
        ("--bake-into", "shards"),
    ],
)
def test_options_of_tables_that_are_not_baked_are_refused(run, checkpoint, tmp_path, option):
    """What would be ignored is bad usage: without --bake, and where it puts the temperature into the weights."""
    for bake in ((), ("--bake", "attention-factor")):
        status, _, stderr = run("convert", checkpoint, "-o", tmp_path / "out", *YARN, *bake, *option)
        assert status == 2
        assert option[0] in stderr
        assert not (tmp_path / "out").exists()


def test_a_dry_run_in_place_tells_what_the_run_will_do(run, checkpoint):
    """Only texts are written, no file goes along; where a backup is in the way, the dry run says so, too."""
    status, stdout, _ = run("convert", checkpoint, *YARN, "--in-place", "--dry-run")
    assert status == 0
    assert not list(checkpoint.glob("*.backup"))
    assert run("convert", checkpoint, *YARN, "--in-place")[0] == 0
    written = [path.with_suffix("") for path in checkpoint.glob("*.backup")]
    size = sum(path.stat().st_size for path in written)
    assert stdout.endswith(f"files that go along: 0; at most {size:,} bytes would be written; nothing was touched\n")
    status, _, stderr = run("convert", checkpoint, *YARN[:-1], "8", "--in-place", "--dry-run")
    assert status == 2
    assert "config.json.backup: already exists" in stderr


def test_an_empty_length_of_tables_is_no_length(run, checkpoint, tmp_path):
    """As a shell variable that is not set gives it: not the default."""
    status, _, stderr = run(
        "convert", checkpoint, "-o", tmp_path / "out", *YARN, "--bake", "cos-sin", "--bake-length", ""
    )
    assert status == 2
    assert "--bake-length" in stderr


@pytest.mark.parametrize("option", ["--beta-fast", "--beta-slow"])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_a_bad_end_of_the_ramp_is_named(run, checkpoint, tmp_path, option, value):
    """The option that was given is the one in the message, not the other end's default."""
    status, _, stderr = run("convert", checkpoint, "-o", tmp_path / "out", *YARN, option, value)
    assert status == 2
    assert f"{option}: expected a number of turns above 0" in stderr


def test_verify_finds_a_truncated_shard(run, checkpoint):
    """0 for whole weights; 1 for a shard that is cut short, which standard error names."""
    assert run("inspect", checkpoint, "--verify")[0] == 0
    os.truncate(checkpoint / "model-00002-of-00005.safetensors", 1000)
    status, _, stderr = run("inspect", checkpoint, "--verify")
    assert status == 1
    assert "model-00002-of-00005.safetensors" in stderr


def test_inspect_reads_a_config_from_standard_input(saved_llama):
    """`ropecli inspect -` is the end of a pipe."""
    text = (saved_llama / "config.json").read_text()
    done = spawn("inspect", "-", "--json", input=text)
    assert done.returncode == 0
    assert json.loads(done.stdout)["rope"][0]["original_length"] == 128


def test_convert_can_not_read_a_config_from_standard_input(saved_llama, tmp_path):
    """A config alone has no folder to carry along: bad usage."""
    text = (saved_llama / "config.json").read_text()
    done = spawn("convert", "-", "-o", tmp_path / "out", *YARN, input=text)
    assert (done.returncode, done.stdout) == (2, "")
    check_one_error(done.stderr, "standard input")


VERBS = ["inspect", "calibrate", "convert", "evaluate"]
HEAVY = ["torch", "transformers", "scipy", "numpy", "matplotlib", "pyarrow", "gguf", "safetensors", "huggingface_hub"]
IMPORTED = """
import sys
from ropecli.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    found = [name for name in {heavy} if name in sys.modules]
    sys.exit(f"imported {{found}}" if found else ended.code)
"""


def check_light(*arguments: object) -> None:
    """These arguments work in a fresh interpreter, and load no heavy library on the way."""
    command = [sys.executable, "-c", IMPORTED.format(heavy=HEAVY), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_is_light(arguments):
    """Help is there in a blink: neither torch nor transformers nor scipy, nor numpy, is imported for it."""
    check_light(*arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_is_its_docstring_with_an_example(verb):
    """Every paragraph is on the screen, at the width of whoever reads it."""
    command = next(command for command in app.registered_commands if command.name == verb)
    shown = " ".join(spawn(verb, "--help").stdout.split())
    assert " ".join(command.callback.__doc__.split()) in shown
    assert f"For example: ropecli {verb} MODEL" in shown


@pytest.mark.parametrize("more", [[], ["--json"], ["--factor", "4"], ["--verify"]], ids=" ".join)
def test_inspect_is_light(more, saved_llama):
    """Inspecting reads JSON and headers, so it needs no heavy library either."""
    check_light("inspect", saved_llama, *more)


def test_a_dry_run_is_light(saved_llama):
    """Neither does planning a conversion."""
    check_light("convert", saved_llama, *YARN, "--dry-run")


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_help_text(verb):
    """No option of any verb is left unexplained."""
    command = typer.main.get_command(app)
    parameters = command.commands[verb].params  # type: ignore[attr-defined]
    assert [p.name for p in parameters if not getattr(p, "help", None) and p.name != "help"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "MODEL"],
        ["inspect", "MODEL", "--json"],
        ["inspect", "no/such/model", "--json"],
        ["convert", "MODEL", *YARN, "--dry-run"],
        ["--version"],
        ["--help"],
        ["convert", "--help"],
    ],
    ids=" ".join,
)
def test_a_reader_that_goes_away_ends_it_silently(arguments, saved_llama):
    """A closed pipe gives exit status 141 and no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [str(saved_llama) if word == "MODEL" else word for word in arguments]
    command = [sys.executable, "-m", "ropecli", *words]
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, env=environment(), check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}, {"COLUMNS": "40"}, {"TERM": "xterm-256color"}], ids=str)
def test_pipes_carry_no_colour_and_cut_nothing(env, saved_llama, tmp_path):
    """Off a terminal: no escape codes on either stream, and long values stay whole."""
    long = tmp_path / ("long-" * 30)
    long.symlink_to(saved_llama)
    done = spawn("inspect", long, env=env)
    failed = spawn("inspect", tmp_path / ("missing-" * 30), env=env)
    assert done.returncode == 0
    assert str(long) in done.stdout
    assert str(tmp_path / ("missing-" * 30)) in failed.stderr
    assert "\x1b" not in done.stdout + done.stderr + failed.stdout + failed.stderr


def on_terminal(*arguments: object, **env: str) -> tuple[int, str]:
    """Exit status and what a terminal of 80 columns shows."""
    pty = pytest.importorskip("pty")
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "ropecli", *map(str, arguments)]
    variables = environment(COLUMNS="80", LINES="40", TERM="xterm-256color", **env)
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=variables)
    os.close(terminal)
    shown = b""
    while select.select([screen], [], [], 120)[0]:
        try:
            block = os.read(screen, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(screen)
    return process.wait(120), shown.decode()


@pytest.mark.parametrize("converted", [False, True])
def test_a_terminal_of_80_columns_is_enough(converted, checkpoint, tmp_path):
    """No line of the table is wider than the terminal, and nothing is lost to it."""
    model = checkpoint
    if converted:
        model = tmp_path / "out"
        spawn("convert", checkpoint, "-o", model, *YARN)
    status, shown = on_terminal("inspect", model)
    lines = ANSI.sub("", shown).splitlines()
    assert status == 0
    assert max(map(len, lines)) <= 80
    assert "…" not in shown
    assert any("128 tokens" in line for line in lines)


def test_no_color_is_honoured_on_a_terminal(tmp_path):
    """With NO_COLOR an error on a terminal has no colour; without, it has."""
    plain = on_terminal("inspect", tmp_path / "missing", NO_COLOR="1")
    coloured = on_terminal("inspect", tmp_path / "missing")
    assert plain[0] == coloured[0] == 3
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain[1])
    assert re.search(r"\x1b\[[0-9;]*3[0-7]", coloured[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rope-theta", "1e308"], "--rope-theta"),
        (["--original-length", ""], "--original-length"),
        (["--for", ","], "--for"),
        (["--bake", "sin"], "attention-factor"),
    ],
)
def test_values_that_say_nothing_are_bad_usage(options, message, run, checkpoint, tmp_path):
    """An empty or impossible value is not taken for an absent one; the status is 2 and nothing is written."""
    status, stdout, stderr = run("convert", checkpoint, "-o", tmp_path / "out", *YARN, *options)
    assert (status, stdout) == (2, "")
    assert message in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--expect", "factor"], ["--plot", "figure.gif"], ["--rope-type", "yarn"]])
def test_inspect_checks_its_options_before_it_prints(options, run, checkpoint):
    """A mistake in an option leaves standard output empty."""
    status, stdout, _ = run("inspect", checkpoint, *options)
    assert (status, stdout) == (2, "")


def test_without_arguments_the_help_is_all_there_is(run):
    """`ropecli` alone shows the help, with the status of bad usage and no error without words."""
    status, stdout, stderr = run()
    assert status == 2
    assert "Usage" in stdout
    assert stderr == ""


def test_a_calibration_for_another_kind_of_model_is_told(run, checkpoint, tmp_path):
    """The file of a Qwen-2 fits a Llama of the same geometry, but the user is told."""
    other = calibration(checkpoint={"source": "x", "model_type": "qwen2", "config_sha256": "0" * 64})
    (tmp_path / "c.json").write_text(json.dumps(other))
    status, _, stderr = run("convert", checkpoint, "-o", tmp_path / "out", "--from", tmp_path / "c.json")
    assert status == 0
    assert "qwen2" in stderr


def test_emitted_flags_are_those_of_the_carrier(run, checkpoint):
    """--carrier longrope is not forgotten by --emit."""
    status, stdout, _ = run("convert", checkpoint, *YARN, "--carrier", "longrope", "--emit", "vllm")
    assert status == 0
    assert "longrope" in stdout


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (("--rope-type", "yarn", "--carrier", "longrope"), "states an original length of "),
        (("--rope-type", "ntk"), "no longer tells that the model was trained at 128 tokens"),
        (("--rope-type", "ntk-by-parts"), "llama3, which has no temperature"),
    ],
    ids=["longrope", "ntk", "ntk-by-parts"],
)
def test_a_carrier_comes_with_what_it_costs(options, note, run, checkpoint, tmp_path):
    """What the config can no longer say is told as a note."""
    status, _, err = run("convert", checkpoint, "-o", tmp_path / "out", *options, "--factor", "4")
    assert status == 0
    assert note in err


def test_a_carrier_that_a_named_runtime_ignores_is_refused(run, checkpoint, tmp_path, tree):
    """With --for, the carrier is for that runtime: where it would not compute it, nothing is written."""
    before = tree(tmp_path)
    options = ("--rope-type", "yarn", "--factor", "4", "--carrier", "longrope", "--for")
    status, _, err = run("convert", checkpoint, "-o", tmp_path / "out", *options, "vllm,onnxruntime-genai")
    assert status == 2
    assert "onnxruntime-genai does not compute longrope" in err
    assert tree(tmp_path) == before
    assert run("convert", checkpoint, "-o", tmp_path / "out", *options, "vllm,exllamav2")[0] == 0
