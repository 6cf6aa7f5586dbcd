"""M3H on the eICU demo as MEDS: hospital mortality from the first 24 hours, five folds.

    python -m m4.main --config=configs/m3h_eicu_meds.py --mode=crossval --workdir=runs/m3h

| variant | data                                                | raw files                  |
|---------|-----------------------------------------------------|----------------------------|
| (none)  | 873 stays: vitals, labs, text, medications, ...     | M4_RAW_DIR/eicu-demo-meds  |
| `:tiny` | the same files, six steps of a small model          | M4_RAW_DIR/eicu-demo-meds  |

`m4/data/sets/declared/eicu_demo.toml` says what is read;
`--config.data.options.split=meds` keeps the published split instead. 81 deaths: nothing was tuned
on them, and the last step is evaluated.
Expected numbers: `docs/results.md`.
"""

import ml_collections

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(
        name="meds", raw_dir="", dir="", options=dict(file="eicu_demo", fold=0, num_folds=5)
    )
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
        warmup_steps=30,
        schedule="cosine",
        clip_norm=1.0,
        ema=0.98,
    )
    config.train = dict(
        steps=240,
        batch_size=64,
        eval_every=60,
        log_every=20,
        save_every=120,
        select="hospital_mortality/auroc",
        choose="last",
        modality_dropout=0.15,
    )
    config.eval = dict(
        batch_size=256, bootstrap=1000, subsets=True, baselines=True, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "tiny":
        config.method.update(width=8, task_width=8)
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(bootstrap=20)
    return config
