"""M4oE on four generated images per patient, in EMBED's layout, tasks of known modalities.

    python -m m4.main --config=configs/m4oe_views.py --workdir=runs/m4oe_views

2,000 patients, 32 x 32 pixels; `:tiny`: 120 of 16 x 16, six steps. No files. Not measured.
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    options, small = dict(num_patients=2000), dict(num_patients=120, size=16)
    config = common.pictures("synthetic_images", options, patch=8, select="density/accuracy")
    return common.tiny(config, options=small, rows=16) if variant else config
