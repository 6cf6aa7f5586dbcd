"""M4oE on the pixel view of the UCI Multiple Features digits.

    python -m m4.main --config=configs/m4oe_mfeat.py --workdir=runs/m4oe_mfeat

| variant | data                                          | raw files              |
|---------|-----------------------------------------------|------------------------|
| (none)  | 2,000 digits, one image of 16 x 16 pixels     | M4_RAW_DIR/uci-mfeat   |
| `:all`  | the same with five views as tables            | M4_RAW_DIR/uci-mfeat   |
| `:tiny` | pixels, six steps of a small model            | M4_RAW_DIR/uci-mfeat   |

Not clinical: a check on real images. No reference number yet.
"""

import ml_collections

VARIANTS = ("all", "tiny")


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="mfeat", raw_dir="", dir="", options=dict(views=("pix",)))
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
        patch=4,
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
        select="digit/accuracy",
    )
    config.eval = dict(
        batch_size=128, bootstrap=1000, subsets=True, baselines=False, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "all":
        config.data.options.views = ("pix", "fou", "fac", "kar", "zer", "mor")
    if variant == "tiny":
        config.method.update(
            width=16, hidden=16, num_experts=4, modality_experts=2, fusion_experts=2, vit_depth=1
        )
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(batch_size=16, bootstrap=20, baselines=False)
    return config
