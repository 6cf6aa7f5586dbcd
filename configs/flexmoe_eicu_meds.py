"""Flex-MoE on the eICU demo as MEDS: hospital mortality from the first 24 hours, five folds.

    python -m m4.main --config=configs/flexmoe_eicu_meds.py --mode=crossval --workdir=runs/flexmoe

M4_RAW_DIR/eicu-demo-meds. Not timed. AUROC 0.729 [0.663, 0.784]; boosting 0.763 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.eicu_demo("flexmoe", variant)
