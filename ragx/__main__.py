"""`python -m ragx`: the same command line."""

from ragx.cli.main import run

run()
