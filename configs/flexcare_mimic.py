"""FlexCare on MIMIC-IV: several tasks from time series, X-rays and notes, one stream per task.

    python -m m4.main --config=configs/flexcare_mimic.py --workdir=runs/flexcare_mimic

| variant      | data                                | raw files                           |
|--------------|-------------------------------------|-------------------------------------|
| (none)       | MIMIC-IV                            | M4_RAW_DIR/mimiciv                  |
| `:demo`      | MIMIC-IV demo, 100 patients         | M4_RAW_DIR/mimic-iv-demo-2.2        |
| `:synthetic` | generated cohort, known truth       | none                                |
| `:tiny`      | the same in seconds, for tests      | none                                |

Every row of a batch is there for one task (`train.streams`): 'rows' deals the rows of a batch,
'batches' whole batches, 'sequential' is the released order of one task after the other;
`train.stream_ratio` sets the shares. The paper's other tasks (decompensation, remaining length of
stay, readmission, X-ray findings, DRG) and its 76 columns are options of the data set: `window`,
`tasks` and the modality `flexcare`, see `m4/data/sets/mimiciv/`. Paper: Xu et al., KDD 2024.
"""

import ml_collections

VARIANTS = ("demo", "synthetic", "tiny")
MODALITIES = ("vitals", "labs", "cxr", "notes")


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="mimiciv", raw_dir="", dir="", options=dict(modalities=MODALITIES))
    config.method = dict(name="flexcare", fidelity="m4", num_experts=10, top_k=2)
    config.optim = dict(
        name="adamw",
        lr=5e-4,
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
        streams="rows",
        task_weights=dict(ihm48=0.2, los=0.5, los_under_96h=0.2, phe=1.0),
    )
    config.eval = dict(
        batch_size=256, bootstrap=1000, subsets=True, baselines=True, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "demo":
        config.data.options.demo = True
        config.data.options.modalities = ("vitals", "labs", "static", "medications")
        _shorten(config, steps=200, batch_size=16)
    elif variant in ("synthetic", "tiny"):
        config.data.name = "synthetic"
        # Without the 25 phenotypes, whose 50 reference models alone take minutes.
        tasks = ("ihm48", "los", "los_under_96h")
        dims = dict(notes=16, cxr=16)
        config.data.options.update(num_patients=3000, tasks=tasks, dims=dims)
        config.train.task_weights = dict(ihm48=1.0, los=0.5, los_under_96h=0.5)
        config.method.update(width=64, hidden=64, mlp=128, depth=2)
        _shorten(config, steps=300, batch_size=64)
    if variant == "tiny":
        config.data.options.update(num_patients=120, steps=8, lab_steps=4)
        config.method.update(num_experts=4, width=16, hidden=16, mlp=16, depth=1)
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
