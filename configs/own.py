"""FuseMoE on files of your own, of some hundred to ten thousand patients: docs/own-data.md.

    python -m m4.main --config=configs/own.py --config.data.options.file=ward.toml

and --config.train.select=TASK/METRIC; CSV, Parquet, or `:meds`. Regularised for small data: no arm
tried on seven small open sets was better (docs/own-data.md). Cost: 30 s of a core for the example.
"""

import common

VARIANTS = ("meds",)


def get_config(variant=""):
    config = common.eicu_demo("fusemoe", segment_dropout=0.3)
    config.data = dict(name=variant or "tables", options=dict(file=""))
    config.train.select = ""
    return config
