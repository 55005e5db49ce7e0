"""Benchmarks: ratios and costs measured in one run; ``python -m benchmarks`` writes them to docs/performance.md."""
