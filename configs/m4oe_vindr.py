"""M4oE on VinDr-Mammo: two views of a breast; density and BI-RADS.

    python -m m4.main --config=configs/m4oe_vindr.py --workdir=runs/m4oe_vindr

VinDr-Mammo 1.0.0, M4_RAW_DIR/vindr-mammo; `:tiny`: the same, 32 x 32, six steps, small model.
`python -m m4.data fake vindr FOLDER` writes invented files of this layout. The published sizes, 2.3
billion parameters: give `mesh` an expert axis. Cost and numbers: not measured, docs/datasets.md.
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = common.published_m4oe("vindr", select="density/accuracy")
    return common.tiny_published_m4oe(config) if variant else config
