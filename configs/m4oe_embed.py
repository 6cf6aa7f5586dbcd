"""M4oE on EMBED: four mammographic views; density, BI-RADS group and risk.

    python -m m4.main --config=configs/m4oe_embed.py --workdir=runs/m4oe_embed

The EMBED open release, M4_RAW_DIR/embed; `:tiny`: the same, 32 x 32, six steps, small model.
`python -m m4.data fake embed FOLDER` writes invented files of this layout. The published sizes, 2.3
billion parameters: give `mesh` an expert axis. Cost and numbers: not measured, docs/datasets.md.
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = common.published_m4oe("embed", select="risk_1y/auroc")
    return common.tiny_published_m4oe(config) if variant else config
