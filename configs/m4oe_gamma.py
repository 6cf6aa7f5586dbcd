"""M4oE on GAMMA: fundus and OCT; glaucoma grade and optic cup.

    python -m m4.main --config=configs/m4oe_gamma.py --workdir=runs/m4oe_gamma

Files: docs/datasets.md; `python -m m4.data fake gamma FOLDER` invents such. Cost and numbers: not
measured, the published sizes were never run (2.3 billion parameters: `mesh.expert`).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = common.published_m4oe("gamma", select="glaucoma/accuracy")
    return common.tiny_published_m4oe(config, segment_widths=(8, 8)) if variant else config
