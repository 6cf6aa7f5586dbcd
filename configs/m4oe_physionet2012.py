"""M4oE on the PhysioNet 2012 challenge: train on set A, test on set B, open data.

    python -m m4.main --config=configs/m4oe_physionet2012.py --workdir=runs/m4oe_p12

Raw files: M4_RAW_DIR/physionet2012; `:tiny` is six steps of a small model on them.
Cost: two minutes of one core (docs/methods/m4oe.md). Expected, 1,980 stays of set B: death AUROC
0.847 [0.822, 0.871], over three seeds 0.850 ± 0.002; AUPRC 0.527 ± 0.002 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.physionet2012("m4oe", variant)
