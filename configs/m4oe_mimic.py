"""M4oE on MIMIC-IV: soft mixtures over tokens of seven modalities, a slot per task.

    python -m m4.main --config=configs/m4oe_mimic.py:synthetic --workdir=runs/m4oe_mimic

Variants: MIMIC-IV (M4_RAW_DIR/mimiciv); `:synthetic`, the generated cohort, and `:tiny`, which need
no files. The paper has images alone; series, tables, codes and embeddings are ours. Cost and
numbers: not measured.
"""

import common

VARIANTS = ("synthetic", "tiny")


def get_config(variant=""):
    method = dict(name="m4oe", moe=dict(num_experts=16, hidden=128), dropout=0.2)
    config = common.of_mimic(common.mimic(method, modality_dropout=0.1), variant)
    if variant == "synthetic":
        config.eval.batch_size = 256
    return config
