"""Scores of predictions by the rules of the benchmarks they come from: pure Python and numpy."""
