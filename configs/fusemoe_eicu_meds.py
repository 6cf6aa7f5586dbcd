"""FuseMoE on the eICU demo as MEDS: hospital mortality from the first 24 hours, five folds.

    python -m m4.main --config=configs/fusemoe_eicu_meds.py --mode=crossval --workdir=runs/eicu

M4_RAW_DIR/eicu-demo-meds; `:tiny` is for tests. Cost: not measured. Expected, five folds pooled:
AUROC 0.723 [0.662, 0.780], AUPRC 0.291; boosting 0.763 [0.699, 0.817], 0.325 (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = common.eicu_demo("fusemoe", segment_dropout=0.3)
    return common.tiny(config, baselines=True) if variant else config
