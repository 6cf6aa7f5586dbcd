"""M3H on MIMIC-IV: 48-hour mortality, length of stay and phenotypes, each task reading the others.

    python -m m4.main --config=configs/m3h_mimic.py --workdir=runs/m3h_mimic

| variant      | data                                | raw files                           |
|--------------|-------------------------------------|-------------------------------------|
| (none)       | MIMIC-IV                            | M4_RAW_DIR/mimiciv                  |
| `:demo`      | MIMIC-IV demo, 100 patients         | M4_RAW_DIR/mimic-iv-demo-2.2        |
| `:synthetic` | generated cohort, known truth       | none                                |
| `:tiny`      | the same in seconds, for tests      | none                                |

The paper's own cohort (HAIM-MIMIC-MM, one row per chest X-ray) and its 44 tasks are not this one:
see `docs/methods/m3h.md`. No published number is expected here.
"""

import ml_collections

VARIANTS = ("demo", "synthetic", "tiny")
SMALL = dict(notes=16, cxr=16, ecg=16)  # widths of the generated embeddings


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="mimiciv", raw_dir="", dir="", options=dict())
    config.method = dict(name="m3h", fidelity="m4", width=64, task_width=64, dropout=0.2)
    config.optim = dict(
        name="adamw",
        lr=1e-3,
        weight_decay=0.01,
        warmup_steps=100,
        schedule="cosine",
        clip_norm=1.0,
        ema=0.999,
    )
    config.train = dict(
        steps=10_000,
        batch_size=64,
        eval_every=1000,
        log_every=50,
        save_every=1000,
        select="ihm48/auroc",
        modality_dropout=0.1,
    )
    config.eval = dict(
        batch_size=256, bootstrap=1000, subsets=True, baselines=True, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "demo":
        config.data.options = dict(demo=True)
        _shorten(config, steps=200, batch_size=16)
    elif variant == "synthetic":
        config.data.name = "synthetic"
        # Without the 25 phenotypes, whose 50 reference models alone take minutes.
        tasks = ("ihm48", "los", "los_under_96h")
        config.data.options = dict(num_patients=3000, dims=SMALL, tasks=tasks)
        _shorten(config, steps=300, batch_size=64)
    elif variant == "tiny":
        config.data.name = "synthetic"
        config.data.options = dict(num_patients=120, steps=8, lab_steps=4, vocab=16, dims=SMALL)
        config.method.update(width=16, task_width=8)
        _shorten(config, steps=6, batch_size=8)
        config.train.update(log_every=2, eval_every=3, save_every=3)
        config.optim.warmup_steps = 2
        config.eval.update(batch_size=16, bootstrap=20, baselines=False)
    return config


def _shorten(config, steps, batch_size):
    config.train.update(steps=steps, batch_size=batch_size, log_every=20)
    config.train.update(eval_every=steps // 4, save_every=steps // 4)
    config.optim.warmup_steps = steps // 20
    config.eval.batch_size = 128
