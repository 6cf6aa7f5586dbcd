"""Faults on purpose, one scenario each, counted: see `docs/reliability.md`."""
