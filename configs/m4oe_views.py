"""M4oE on four generated images per patient, in EMBED's layout, tasks of known modalities.

    python -m m4.main --config=configs/m4oe_views.py --workdir=runs/m4oe_views

2,000 patients, 32 x 32 pixels; `:tiny`: 120 of 16 x 16 pixels, six steps. No files are needed.
Cost and numbers: not measured.
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = common.pictures(
        "synthetic_images", dict(num_patients=2000), patch=8, select="density/accuracy"
    )
    if variant == "tiny":
        options = dict(num_patients=120, size=16)
        common.tiny(config, options=options, rows=16)
    return config
