"""M4oE on EMBED: four mammographic views; density, BI-RADS group and risk.

    python -m m4.main --config=configs/m4oe_embed.py --workdir=runs/m4oe_embed

`:released` is the authors' model at these sizes, without dropout and information loss.
Files: docs/datasets.md; `python -m m4.data fake embed FOLDER` invents such. Cost and numbers: not
measured, the published sizes were never run (2.3 billion parameters: `mesh.expert`).
"""

import common

VARIANTS = ("tiny", "released")


def get_config(variant=""):
    config = common.published_m4oe("embed", select="risk_1y/auroc")
    if variant == "released":
        config.method.fidelity = "released"
        return config
    return common.tiny_published_m4oe(config) if variant else config
