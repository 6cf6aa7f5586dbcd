"""FuseMoE on the PhysioNet 2012 challenge: train on set A, test on set B, open data.

    python -m m4.main --config=configs/fusemoe_physionet2012.py --workdir=runs/p12

Raw files: M4_RAW_DIR/physionet2012; `:tiny` is six steps of a small model on them.
Cost: 5 to 7 minutes of one core, 2.7 GB. Expected, 1,980 stays of set B: death AUROC
0.856 [0.831, 0.878], over three seeds 0.855 ± 0.004; AUPRC 0.527 ± 0.005 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.physionet2012("fusemoe", variant, segment_dropout=0.3)
