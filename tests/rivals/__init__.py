"""The methods in PyTorch, structured as their authors' modules are; see `tests.timing.method`.

Written from descriptions, for two uses: timing a training step, and checking that m4 with imported
weights computes the same (tests/interop). Tensor names are those of the authors' checkpoints, so
that the tables of `m4.interop` apply. Loops over experts, modalities and tasks are kept where the
originals have them. These files run in an interpreter with torch and without m4's requirements.
"""
