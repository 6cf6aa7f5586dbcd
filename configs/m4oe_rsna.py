"""M4oE on RSNA 2022: two views of a breast; density and BI-RADS.

    python -m m4.main --config=configs/m4oe_rsna.py --workdir=runs/m4oe_rsna

The RSNA 2022 training files (docs/datasets.md); `:tiny`: the same, 32 x 32, six steps, small model.
`python -m m4.data fake rsna FOLDER` writes invented files of this layout. The published sizes, 2.3
billion parameters: give `mesh` an expert axis. Cost and numbers: not measured, docs/datasets.md.
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = common.published_m4oe("rsna", select="density/accuracy")
    return common.tiny_published_m4oe(config) if variant else config
