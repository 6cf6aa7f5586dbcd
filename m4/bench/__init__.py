"""Benchmarks, each a ratio against a stated bound or rival: `python -m m4.bench <name>`."""
