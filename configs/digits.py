"""A benchmark in which modalities matter: digits that are heard, seen, spelt and counted.

    python -m m4.main --config=configs/digits.py:fusemoe --workdir=runs/digits

Variants `:fusemoe` (the default), `:m3h`, `:flexmoe`, `:flexcare`, `:m4oe`, each with `_tiny` for
tests; M4_RAW_DIR/free-spoken-digits. The pairing is artificial (docs/digits.md); speakers are
unseen. Augmentation was chosen on the training speakers alone.
"""

import common

VARIANTS = (*common.MODELS, *(f"{name}_tiny" for name in common.MODELS))
AUGMENT = dict(
    spectrogram=dict(speed=0.3, warp=0.15, slide=3.0, tilt=0.3, level=0.2, noise=0.3, mask=0.2),
    waveform=dict(speed=0.2, noise=0.2, mask=0.2),
    pixels=dict(shift=0.5, zoom=0.1, noise=0.3),
)


def get_config(variant="fusemoe"):
    name, _, tiny = variant.partition("_")
    method = dict(name=name, dropout=0.2, **common.MODELS[name])
    optim = common.adamw(2e-3, weight_decay=0.05, ema=0.99)
    train = dict(select="digit/accuracy", choose="last", modality_dropout=0.4, augment=AUGMENT)
    train |= dict(task_weights=dict(parity=0.3, speaker_group=0.1))
    options = dict(fold=0, num_folds=4)
    config = common.experiment("digits", options, method, optim, 1200, 300, **train)
    config.conv = dict(width=96, dropout=0.2, alone=0.5)
    small = dict(options=dict(num_folds=2, samples=800, frames=16))
    return common.tiny(config, **small) if tiny else config
