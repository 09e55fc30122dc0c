"""What `inspect` says to people."""

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
