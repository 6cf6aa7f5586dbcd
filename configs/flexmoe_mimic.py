"""Flex-MoE on MIMIC-IV: labs and vitals, notes and codes.

    python -m m4.main --config=configs/flexmoe_mimic.py:synthetic --workdir=runs/flexmoe_mimic

Variants as in `configs/fusemoe_mimic.py`. The paper's cohort and splits are not published. Drugs
stand for its codes (the diagnoses of a stay are written after it), 48-hour for one-year mortality.
Cost and numbers: not measured here; the paper has AUC 69.87 for labs, notes and codes with 32
experts, top 3 (Yun et al., NeurIPS 2024, Tables 2, 6, 9 and 10).
"""

import common

VARIANTS = ("demo", "synthetic", "tiny")
MODALITIES = ("vitals", "labs", "notes", "medications")


def get_config(variant=""):
    method = dict(name="flexmoe", width=128, dropout=0.4)
    method |= dict(moe=dict(num_experts=32, top_k=3, hidden=256))
    config = common.mimic(method, order="complete_first", order_epochs=5)
    config.data.options.update(modalities=MODALITIES, tasks=("ihm48",))
    if variant == "demo":
        return common.demo(config)
    if variant == "synthetic":
        config.method.update(width=64, moe=dict(num_experts=16, hidden=128))
        return common.synthetic(config, dims=dict(notes=16))
    if variant == "tiny":
        common.toy_cohort(config, dict(notes=16))
        config.train.order_epochs = 1
        return common.tiny(config, rows=16)
    return config
