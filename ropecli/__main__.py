"""`python -m ropecli`."""

from ropecli.cli import main

main()
