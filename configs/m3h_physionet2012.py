"""M3H on the PhysioNet 2012 challenge: train on set A, test on set B, open data.

    python -m m4.main --config=configs/m3h_physionet2012.py --workdir=runs/m3h_physionet2012

| variant | data                                                | raw files                  |
|---------|-----------------------------------------------------|----------------------------|
| (none)  | sets A and B, 4000 stays each, 13 modalities        | M4_RAW_DIR/physionet2012   |
| `:tiny` | the same files, six steps of a small model          | M4_RAW_DIR/physionet2012   |

5 % of A (about 30 deaths) is set aside to watch the run, too few to choose a step by, so the last
one is evaluated. Cost and expected numbers: `docs/methods/m3h.md`.
"""

import ml_collections

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="physionet2012", raw_dir="", dir="", options=dict(val_fraction=0.05))
    config.method = dict(
        name="m3h",
        fidelity="m4",
        width=32,
        task_width=64,
        dropout=0.4,
        task_weighting="uniform",
    )
    config.optim = dict(
        name="adamw",
        lr=1e-3,
        weight_decay=1.0,
        warmup_steps=100,
        schedule="cosine",
        clip_norm=1.0,
        ema=0.995,
    )
    config.train = dict(
        steps=950,
        batch_size=64,
        eval_every=190,
        log_every=25,
        save_every=190,
        select="death/auroc",
        choose="last",
        modality_dropout=0.15,
        task_weights=dict(los=0.3, los_over_7d=0.3, sofa7=0.3),
    )
    config.eval = dict(
        batch_size=256, bootstrap=1000, subsets=True, baselines=True, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "tiny":
        config.method.update(width=8, task_width=8)
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(batch_size=16, bootstrap=20, baselines=False)
    return config
