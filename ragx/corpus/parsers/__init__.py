"""Parsers of formats whose libraries cannot be trusted with any file: each runs as a child process with limits."""
