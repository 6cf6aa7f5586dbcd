"""M3H on MIMIC-IV: 48-hour mortality, length of stay and phenotypes, each task reading the others.

    python -m m4.main --config=configs/m3h_mimic.py:synthetic --workdir=runs/m3h_mimic

Variants as in `configs/fusemoe_mimic.py`. The paper's own cohort (HAIM-MIMIC-MM, one row per chest
X-ray) and its 44 tasks are not this one: see `docs/methods/m3h.md`. Cost and numbers: not measured.
"""

import common

VARIANTS = ("demo", "synthetic", "tiny")


def get_config(variant=""):
    method = dict(name="m3h", width=64, task_width=64, dropout=0.2)
    return common.of_mimic(common.mimic(method, modality_dropout=0.1), variant, width=16)
