"""What `inspect` says to people."""

import json
from pathlib import Path

import pytest

from ropecli.cli import main

TINY = Path(__file__).parent.parent / "examples" / "tiny"


def test_pairs_that_are_treated_alike_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each kind, from its first wavelength to its last; a lone pair has but one."""
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(TINY), "--target-length", "700"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "pair 0: one turn takes 6.28 tokens\n" in shown
    assert "pairs 1 to 6: one turn takes 11 to 199 tokens before, 1.1 to 2.19 times that now\n" in shown
    assert "pairs 7 to 15: one turn takes 353 to 35,333 tokens\n" in shown


def test_a_length_served_without_scaling_has_no_factor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Attention in chunks serves four times the trained length with the frequencies that it was trained with."""
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    chunks = {"original_max_position_embeddings": 64}
    config |= {"dual_chunk_attention_config": chunks}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "trained length L     64 tokens\n" in shown
    assert "served length L'     256 tokens\n" in shown


def test_a_temperature_of_one_is_shown_beside_those_that_runtimes_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """YaRN without a temperature says so, and whoever differs in the temperature alone is not off by 0 %."""
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "attention_factor": 1.0}
    config |= {"max_position_embeddings": 1024, "rope_scaling": scaling, "rope_theta": 10000.0}
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path)])
    lines = [line.split(None, 3) for line in capsys.readouterr().out.splitlines()]
    assert ["attention", "factor", "m", "1 on cos and sin (logits × 1)"] in lines
    (sglang,) = (words[2:] for words in lines if words[:2] == ["not:", "sglang"])
    assert " ".join(sglang).startswith("the right frequencies, but attention factor 1.1386; ")


def test_what_the_file_does_not_say_is_said_to_be_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Meta's file has no factor, and an unknown model no layout; of Llama in Hugging Face's form nothing is assumed."""
    meta = {"dim": 4096, "n_layers": 32, "n_heads": 32, "rope_theta": 500000.0, "use_scaled_rope": True}
    (tmp_path / "params.json").write_text(json.dumps(meta), encoding="utf-8")
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8")) | {"model_type": "unheard_of"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    told = []
    for path in (tmp_path / "params.json", tmp_path / "config.json", TINY):
        with pytest.raises(SystemExit):
            main(["inspect", str(path)])
        lines = capsys.readouterr().out.splitlines()
        told.append([" ".join(line.split()) for line in lines if line.startswith(("assumed ", "note "))])
    assert "assumed factor: 8, as in Llama 3.1; the file does not say, and could mean 32 as in Llama 3.2" in told[0]
    assert told[1][0] == "assumed layout: half"
    assert told[1][1].startswith("note model type unheard_of is not known here: what is said of runtimes holds where ")
    assert told[2] == []
