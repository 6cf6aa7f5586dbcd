"""The data sets: one module, package or definition each, found by `m4.data.data_sets`."""
