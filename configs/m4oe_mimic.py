"""M4oE on MIMIC-IV: soft mixtures over tokens of seven modalities, a slot per task.

    python -m m4.main --config=configs/m4oe_mimic.py:synthetic --workdir=runs/m4oe_mimic

Variants: MIMIC-IV (M4_RAW_DIR/mimiciv); `:synthetic`, a generated cohort, `:tiny`: without files.
The paper has images alone; series, tables, codes, embeddings are ours. Cost, numbers: not measured.
"""

import common

VARIANTS = ("synthetic", "tiny")


def get_config(variant=""):
    method = dict(name="m4oe", moe=dict(num_experts=16, hidden=128), dropout=0.2)
    config = common.of_mimic(common.mimic(method, modality_dropout=0.1), variant)
    config.eval.batch_size = 256 if variant == "synthetic" else config.eval.batch_size
    return config
