"""M4oE on GAMMA: fundus and OCT; glaucoma grade and optic cup.

    python -m m4.main --config=configs/m4oe_gamma.py --workdir=runs/m4oe_gamma

GAMMA, the 100 labelled pairs, M4_RAW_DIR/gamma; `:tiny`: the same, 32 x 32, six steps, small model.
`python -m m4.data fake gamma FOLDER` writes invented files of this layout. The published sizes, 2.3
billion parameters: give `mesh` an expert axis. Cost and numbers: not measured, docs/datasets.md.
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = common.published_m4oe("gamma", select="glaucoma/accuracy")
    return common.tiny_published_m4oe(config, segment_widths=(8, 8)) if variant else config
