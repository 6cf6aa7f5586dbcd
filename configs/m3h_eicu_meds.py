"""M3H on the eICU demo as MEDS: hospital mortality from the first 24 hours, five folds.

    python -m m4.main --config=configs/m3h_eicu_meds.py --mode=crossval --workdir=runs/m3h

M4_RAW_DIR/eicu-demo-meds. Not timed. AUROC 0.710 [0.645, 0.770]; boosting 0.763 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.eicu_demo("m3h", variant)
