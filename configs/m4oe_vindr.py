"""M4oE on VinDr-Mammo: two views of a breast; density and BI-RADS.

    python -m m4.main --config=configs/m4oe_vindr.py --workdir=runs/m4oe_vindr

Files: docs/datasets.md; `python -m m4.data fake vindr FOLDER` invents such. Cost and numbers: not
measured, the published sizes were never run (2.3 billion parameters: `mesh.expert`).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.published_m4oe("vindr", variant, select="density/accuracy")
