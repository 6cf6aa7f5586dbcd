"""M3H on the PhysioNet 2012 challenge: train on set A, test on set B, open data.

    python -m m4.main --config=configs/m3h_physionet2012.py --workdir=runs/m3h_p12

Raw files: M4_RAW_DIR/physionet2012; `:tiny` is six steps of a small model on them.
Cost: two minutes of one core (docs/methods/m3h.md). Expected, 1,980 stays of set B: death AUROC
0.862 [0.838, 0.882], over three seeds 0.860 ± 0.002; AUPRC 0.532 ± 0.004 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.physionet2012("m3h", variant)
