"""M4oE on four generated images per patient, in EMBED's layout, tasks of known modalities.

    python -m m4.main --config=configs/m4oe_views.py --workdir=runs/m4oe_views

| variant | data                                     | raw files |
|---------|------------------------------------------|-----------|
| (none)  | 2,000 patients, 32 x 32 pixels           | none      |
| `:tiny` | 120 patients, 16 x 16 pixels, six steps  | none      |

No reference number yet.
"""

import ml_collections

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="views", raw_dir="", dir="", options=dict(num_patients=2000))
    config.method = dict(
        name="m4oe",
        fidelity="m4",
        width=32,
        hidden=64,
        num_experts=16,
        modality_experts=4,
        fusion_experts=4,
        depth=1,
        fusion_depth=1,
        vit_depth=2,
        patch=8,
        aux_weights=dict(information=0.05),
    )
    config.optim = dict(
        name="adamw",
        lr=1e-3,
        weight_decay=0.05,
        warmup_steps=30,
        schedule="cosine",
        clip_norm=1.0,
        ema=0.99,
    )
    config.train = dict(
        steps=400,
        batch_size=64,
        eval_every=100,
        log_every=25,
        save_every=100,
        select="density/accuracy",
    )
    config.eval = dict(
        batch_size=128, bootstrap=1000, subsets=True, baselines=False, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "tiny":
        config.data.options = dict(num_patients=120, size=16)
        config.method.update(
            width=16, hidden=16, num_experts=4, modality_experts=2, fusion_experts=2, vit_depth=1
        )
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(batch_size=16, bootstrap=20, baselines=False)
    return config
