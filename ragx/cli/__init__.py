"""The command line: one thin module a subcommand; parse, call one stage, render."""
