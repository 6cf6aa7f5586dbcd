"""The gating lab: which gate, at which expert count, and is the difference real."""
