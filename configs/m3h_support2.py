"""M3H on SUPPORT2: hospital death, function, length of stay, charges and survival at once.

    python -m m4.main --config=configs/m3h_support2.py --workdir=runs/m3h_support2

| variant | data                                                | raw files                  |
|---------|-----------------------------------------------------|----------------------------|
| (none)  | 9,105 adults, 8 tables that go missing together     | M4_RAW_DIR/support2        |
| `:tiny` | the same file, six steps of a small model           | M4_RAW_DIR/support2        |

Without other models' scores and physicians' estimates. One run tests one of five folds; out-of-fold
results need `--config.data.options.fold=0` to 4. Hospital death, five folds pooled: AUROC 0.844,
AUPRC 0.661; 40 s of one core per fold, without compiling. More: `docs/methods/m3h.md`.
"""

import ml_collections

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="support2", raw_dir="", dir="", options=dict(fold=0, val_fraction=0.1))
    config.method = dict(
        name="m3h",
        fidelity="m4",
        width=64,
        task_width=64,
        dropout=0.3,
        task_weighting="uniform",
    )
    config.optim = dict(
        name="adamw",
        lr=1e-3,
        weight_decay=0.1,
        warmup_steps=100,
        schedule="cosine",
        clip_norm=1.0,
        ema=0.998,
    )
    config.train = dict(
        steps=2000,
        batch_size=128,
        eval_every=400,
        log_every=50,
        save_every=400,
        select="hospital_death/auroc",
        choose="last",
        modality_dropout=0.05,
        task_weights=dict(function=0.3, los=0.3, charges=0.3, survival=0.3),
    )
    config.eval = dict(
        batch_size=256, bootstrap=1000, subsets=True, baselines=True, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "tiny":
        config.method.update(width=8, task_width=8)
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(bootstrap=20, baselines=False)
    return config
