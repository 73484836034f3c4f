"""One script per claim, each against a peer in the same run; RESULTS.md keeps the figures."""
