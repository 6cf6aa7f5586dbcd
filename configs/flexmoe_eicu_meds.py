"""Flex-MoE on the eICU demo as MEDS: hospital mortality from the first 24 hours, five folds.

    python -m m4.main --config=configs/flexmoe_eicu_meds.py --mode=crossval --workdir=runs/flexmoe

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
        name="flexmoe",
        fidelity="m4",
        num_experts=8,
        top_k=2,
        width=64,
        hidden=128,
        dropout=0.4,
        aux_weights=dict(router=0.001, importance=0.001, load=0.001),
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
        config.method.update(num_experts=4, width=16, hidden=16)
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(bootstrap=20)
    return config
