"""Digits heard, seen, spelt and counted, of unseen speakers: a benchmark where modalities matter.

    python -m m4.main --config=configs/digits.py:fusemoe --workdir=runs/digits

Variants: the methods, `:fusemoe` if none is named, and `_tiny` of each; files, licence and numbers:
docs/digits.md. The pairing is artificial. A fold: two CPU minutes, without the rows of trees.
"""

import common

VARIANTS = (*common.MODELS, *(f"{name}_tiny" for name in common.MODELS))


def get_config(variant="fusemoe"):
    name, _, tiny = variant.partition("_")
    method, optim = common.MODELS[name] | dict(name=name), common.adamw(2e-3, weight_decay=0.05)
    method |= dict(alone=1.0) if name == "fusemoe" else {}  # instead of heads of each encoder
    train = dict(select="digit/accuracy", choose="last", modality_dropout=0.4)
    train |= dict(task_weights=dict(parity=0.3, speaker_group=0.1))
    options = dict(num_folds=4, noise=0.5, samples=5120, frames=64)
    config = common.experiment("digits", options, method, optim, 400, 200, **train)
    config.optim.ema, config.conv = 0.99, dict(width=64, dropout=0.2, frames="power", centre=0.5)
    config.conv.alone, small = 0.5 * (name != "fusemoe"), dict(num_folds=2, samples=800, frames=16)
    return common.tiny(config, options=small) if tiny else config
