"""M4oE on RSNA 2022: two views of a breast; density and BI-RADS.

    python -m m4.main --config=configs/m4oe_rsna.py --workdir=runs/m4oe_rsna

Files: docs/datasets.md; `python -m m4.data fake rsna FOLDER` invents such. Cost and numbers: not
measured, the published sizes were never run (2.3 billion parameters: `mesh.expert`).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    return common.published_m4oe("rsna", variant, select="density/accuracy")
