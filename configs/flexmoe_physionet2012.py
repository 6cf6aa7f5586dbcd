"""Flex-MoE on the PhysioNet 2012 challenge: train on set A, test on set B, open data.

    python -m m4.main --config=configs/flexmoe_physionet2012.py --workdir=runs/flexmoe_p12

Raw files: M4_RAW_DIR/physionet2012; `:tiny` is six steps of a small model on them.
Thirteen modalities have 8,191 combinations: they share seven experts, and the bank is factorised.
Cost: minutes of one core, not measured. Expected, 1,980 stays of set B: death AUROC
0.853 [0.829, 0.877], over three seeds 0.853 ± 0.001; AUPRC 0.520 ± 0.006 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.physionet2012("flexmoe", variant)
