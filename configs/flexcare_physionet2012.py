"""FlexCare on the PhysioNet 2012 challenge: train on set A, test on set B, open data.

    python -m m4.main --config=configs/flexcare_physionet2012.py --workdir=runs/flexcare_p12

Raw files: M4_RAW_DIR/physionet2012; `:tiny` is six steps of a small model on them.
Thirteen modalities have 8,191 combinations: only the full set and single modalities have tokens
(`max_size=2` adds 78 pairs). `train.streams=batches` asks a task at a time, as the paper does.
Cost: minutes of one core, not measured. Expected, 1,980 stays of set B: death AUROC
0.851 [0.828, 0.875], over three seeds 0.855 ± 0.003; AUPRC 0.520 ± 0.002 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.physionet2012("flexcare", variant)
