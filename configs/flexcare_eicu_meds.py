"""FlexCare on the eICU demo as MEDS: hospital mortality from the first 24 hours, five folds.

    python -m m4.main --config=configs/flexcare_eicu_meds.py --mode=crossval --workdir=runs/flexcare

M4_RAW_DIR/eicu-demo-meds. Not timed. AUROC 0.713 [0.645, 0.773]; boosting 0.763 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.eicu_demo("flexcare", variant)
