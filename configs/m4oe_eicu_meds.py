"""M4oE on the eICU demo as MEDS: hospital mortality from the first 24 hours, five folds.

    python -m m4.main --config=configs/m4oe_eicu_meds.py --mode=crossval --workdir=runs/m4oe

M4_RAW_DIR/eicu-demo-meds. Not timed. AUROC 0.709 [0.643, 0.771]; boosting 0.763 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.eicu_demo("m4oe", variant)
