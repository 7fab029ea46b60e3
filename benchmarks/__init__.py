"""Benchmarks: each prints a table of ratios measured in one run, and writes `out/bench/NAME.json`.

They report and exit 0; they are no tests. Results that were kept are in RESULTS.md, with
machine, date and commit.
"""
