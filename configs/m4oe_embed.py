"""M4oE on EMBED: four mammographic views; density, BI-RADS group and risk.

    python -m m4.main --config=configs/m4oe_embed.py --workdir=runs/m4oe_embed

| variant | data                                             | raw files               |
|---------|--------------------------------------------------|-------------------------|
| (none)  | EMBED open release                               | M4_RAW_DIR/embed |
| `:tiny` | the same files, 32 x 32, six steps, small model  | the same                |

The published sizes, 2.3 billion parameters with four images, most of them in experts: give `mesh`
an expert axis. Access and cost: docs/datasets.md. `python -m m4.data fake embed FOLDER` writes
invented files of this layout.
"""

import ml_collections

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="imaging", raw_dir="", dir="", options=dict(layout="embed"))
    config.method = dict(
        name="m4oe",
        fidelity="paper",
        width=768,
        hidden=3072,
        num_heads=8,
        vit_depth=12,
        vit_heads=12,
        patch=16,
        num_experts=128,
        modality_experts=32,
        fusion_experts=16,
        depth=2,
        fusion_depth=2,
        dropout=0.0,
        aux_weights=dict(information=0.05),
    )
    config.optim = dict(
        name="adamw",
        lr=5e-5,
        weight_decay=5e-5,
        warmup_steps=0,
        schedule="cosine",
        clip_norm=1.0,
        ema=0.0,
    )
    config.train = dict(
        steps=10000,
        batch_size=64,
        eval_every=1000,
        log_every=50,
        save_every=1000,
        select="risk_1y/auroc",
    )
    config.eval = dict(
        batch_size=64, bootstrap=1000, subsets=True, baselines=False, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "tiny":
        config.data.options.size = 32
        config.method.update(
            width=16,
            hidden=16,
            num_heads=2,
            vit_heads=2,
            vit_depth=1,
            depth=1,
            fusion_depth=1,
            num_experts=4,
            modality_experts=2,
            fusion_experts=2,
        )
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(batch_size=8, bootstrap=20)
    return config
