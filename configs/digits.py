"""Digits heard, seen, spelt and counted, of unseen speakers: a benchmark where modalities matter.

    python -m m4.main --config=configs/digits.py:fusemoe --workdir=runs/digits

Variants: the methods, `:fusemoe` if none is named, and `_tiny` of each; files, licence and numbers:
docs/digits.md. The pairing is artificial. Cost and numbers: not measured as a whole.
"""

import common

VARIANTS = (*common.MODELS, *(f"{name}_tiny" for name in common.MODELS))


def get_config(variant="fusemoe"):
    name, _, tiny = variant.partition("_")
    method, optim = common.MODELS[name] | dict(name=name), common.adamw(2e-3, weight_decay=0.05)
    train = dict(select="digit/accuracy", choose="last", modality_dropout=0.4)
    config = common.experiment("digits", dict(num_folds=4), method, optim, 1000, 250, **train)
    config.optim.ema, config.conv = 0.99, dict(width=96, dropout=0.2, alone=0.5)
    return (
        common.tiny(config, options=dict(num_folds=2, samples=800, frames=16)) if tiny else config
    )
