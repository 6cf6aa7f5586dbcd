"""The data sets: one module or package each, with `spec` and `cohort`."""
