"""Flex-MoE on MIMIC-IV: labs and vitals, notes and codes.

    python -m m4.main --config=configs/flexmoe_mimic.py --workdir=runs/flexmoe_mimic

| variant      | data                                | raw files                           |
|--------------|-------------------------------------|-------------------------------------|
| (none)       | MIMIC-IV                            | M4_RAW_DIR/mimiciv                  |
| `:demo`      | MIMIC-IV demo, 100 patients         | M4_RAW_DIR/mimic-iv-demo-2.2        |
| `:synthetic` | generated cohort, known truth       | none                                |
| `:tiny`      | the same in seconds, for tests      | none                                |

The paper's modalities are labs with vitals (L), clinical notes (N) and ICD-9 codes (C), its task
one-year mortality; its cohort, features and splits are not published. Here vitals and labs are
two modalities, medications stand for codes (the diagnoses of a stay are written after it), and
the task is 48-hour in-hospital death. Paper: Yun et al., NeurIPS 2024, Tables 2, 6, 9 and 10
(32 experts, top 3, AUC 69.87 for L, N, C).
"""

import ml_collections

VARIANTS = ("demo", "synthetic", "tiny")
MODALITIES = ("vitals", "labs", "notes", "medications")


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(
        name="mimiciv", raw_dir="", dir="", options=dict(modalities=MODALITIES, tasks=("ihm48",))
    )
    config.method = dict(
        name="flexmoe", fidelity="m4", num_experts=32, top_k=3, width=128, hidden=256, dropout=0.4
    )
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
        order="complete_first",
        order_epochs=5,
    )
    config.eval = dict(
        batch_size=256, bootstrap=1000, subsets=True, baselines=True, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "demo":
        config.data.options.demo = True
        _shorten(config, steps=200, batch_size=16)
    elif variant == "synthetic":
        config.data.name = "synthetic"
        config.data.options.update(num_patients=3000, dims=dict(notes=16))
        config.method.update(num_experts=16, width=64, hidden=128)
        _shorten(config, steps=300, batch_size=64)
    elif variant == "tiny":
        config.data.name = "synthetic"
        options = dict(num_patients=120, steps=8, lab_steps=4, vocab=16, dims=dict(notes=16))
        config.data.options.update(options)
        config.method.update(num_experts=4, top_k=2, width=16, hidden=16)
        _shorten(config, steps=6, batch_size=8)
        config.train.update(log_every=2, eval_every=3, save_every=3, order_epochs=1)
        config.optim.warmup_steps = 2
        config.eval.update(batch_size=16, bootstrap=20, baselines=False)
    return config


def _shorten(config, steps, batch_size):
    config.train.update(steps=steps, batch_size=batch_size, log_every=20)
    config.train.update(eval_every=steps // 4, save_every=steps // 4)
    config.optim.warmup_steps = steps // 20
    config.eval.batch_size = 128
