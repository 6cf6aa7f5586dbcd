"""M4oE on EMBED: four mammographic views; density, BI-RADS group and risk.

    python -m m4.main --config=configs/m4oe_embed.py --workdir=runs/m4oe_embed

Files: docs/datasets.md; `python -m m4.data fake embed FOLDER` invents such. `:released` is the
authors' code. Not measured: the published sizes were never run (2.3 billion parameters).
"""

import common

VARIANTS = ("tiny", "released")


def get_config(variant=""):
    config = common.published_m4oe("embed", variant, select="risk_1y/auroc")
    config.method.fidelity = "released" if variant == "released" else "paper"
    return config
