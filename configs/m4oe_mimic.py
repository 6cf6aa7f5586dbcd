"""M4oE on MIMIC-IV: soft mixtures over tokens of seven modalities, a slot per task.

    python -m m4.main --config=configs/m4oe_mimic.py --workdir=runs/m4oe_mimic

| variant      | data                                | raw files                           |
|--------------|-------------------------------------|-------------------------------------|
| (none)       | MIMIC-IV                            | M4_RAW_DIR/mimiciv                  |
| `:synthetic` | generated cohort, known truth       | none                                |
| `:tiny`      | the same in seconds, for tests      | none                                |

The paper has images alone; series, tables, codes and embeddings are ours.
"""

import ml_collections

VARIANTS = ("synthetic", "tiny")
SMALL = dict(notes=16, cxr=16, ecg=16)  # widths of the generated embeddings


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="mimiciv", raw_dir="", dir="", options=dict())
    config.method = dict(
        name="m4oe",
        fidelity="m4",
        width=64,
        hidden=128,
        num_experts=16,
        modality_experts=4,
        fusion_experts=4,
        depth=1,
        fusion_depth=1,
        num_queries=4,
        dropout=0.2,
        aux_weights=dict(information=0.05),
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
        steps=10000,
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
    if variant == "synthetic":
        config.data.name = "synthetic"
        tasks = ("ihm48", "los", "los_under_96h")
        config.data.options = dict(num_patients=3000, dims=SMALL, tasks=tasks)
        config.train.update(steps=300, log_every=20, eval_every=75, save_every=75)
        config.optim.warmup_steps = 15
    if variant == "tiny":
        config.data.name = "synthetic"
        config.data.options = dict(num_patients=120, steps=8, lab_steps=4, vocab=16, dims=SMALL)
        config.method.update(
            width=16, hidden=16, num_experts=4, modality_experts=2, fusion_experts=2, vit_depth=1
        )
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(batch_size=16, bootstrap=20, baselines=False)
    return config
