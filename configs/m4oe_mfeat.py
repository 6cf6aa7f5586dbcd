"""M4oE on the pixel view of the UCI Multiple Features digits: not clinical, a check on real images.

    python -m m4.main --config=configs/m4oe_mfeat.py --workdir=runs/m4oe_mfeat

2,000 digits, one image of 16 x 16 pixels, M4_RAW_DIR/uci-mfeat; `:all` adds five views as tables,
`:tiny` is six steps of a small model. Cost and numbers: not measured.
"""

import common

VARIANTS = ("all", "tiny")


def get_config(variant=""):
    views = ("pix", "fou", "fac", "kar", "zer", "mor")[: None if variant == "all" else 1]
    config = common.pictures("mfeat", dict(views=views), patch=4, select="digit/accuracy")
    return common.tiny(config, rows=16) if variant == "tiny" else config
