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
