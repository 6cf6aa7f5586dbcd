"""M3H on SUPPORT2: hospital death, function, length of stay, charges and survival at once.

    python -m m4.main --config=configs/m3h_support2.py --workdir=runs/m3h_support2

M4_RAW_DIR/support2; `:tiny` is for tests. A run tests one fold of five, `data.options.fold=0` to 4.
Cost: 40 s of one core a fold, without compiling (docs/methods/m3h.md). Expected, folds pooled:
hospital death AUROC 0.846 [0.837, 0.855], AUPRC 0.670 [0.649, 0.688] (docs/results.md).
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = common.support2(dict(name="m3h", dropout=0.3) | common.M3H | dict(width=64))
    return common.tiny(config) if variant else config
