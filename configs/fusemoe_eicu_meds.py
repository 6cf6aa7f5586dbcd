"""FuseMoE on the eICU demo as MEDS: hospital mortality from the first 24 hours, five folds.

    python -m m4.main --config=configs/fusemoe_eicu_meds.py --mode=crossval --workdir=runs/eicu

M4_RAW_DIR/eicu-demo-meds. Not timed. AUROC 0.723 [0.662, 0.780]; boosting 0.763 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.eicu_demo("fusemoe", variant, segment_dropout=0.3)
