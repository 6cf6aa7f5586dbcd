"""FuseMoE on PAM: eight daily activities from 17 wearable sensors, each a modality.

    python -m m4.main --config=configs/fusemoe_pam.py --workdir=runs/fusemoe_pam

| variant | data                                                | raw files          |
|---------|-----------------------------------------------------|--------------------|
| (none)  | 5,333 windows of 6 s, every sixth step              | M4_RAW_DIR/PAMdata |
| `:tiny` | the same files, six steps of a small model          | the same           |

Blocks of 20 consecutive windows are split, not single ones, which overlap by half: numbers are
not comparable with the paper's table unless `--config.data.options.block=1`. Open data, see
docs/datasets.md. `python -m m4.data fake pam FOLDER` writes invented files.
"""

import ml_collections

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="pam", raw_dir="", dir="", options=dict(every=6))
    config.method = dict(
        name="fusemoe",
        fidelity="m4",
        gate="laplace",
        router="permod",
        num_experts=16,
        top_k=4,
        num_queries=8,
    )
    config.optim = dict(
        name="adamw",
        lr=1e-3,
        weight_decay=0.01,
        warmup_steps=100,
        schedule="cosine",
        clip_norm=1.0,
        ema=0.995,
    )
    config.train = dict(
        steps=2000,
        batch_size=64,
        eval_every=200,
        log_every=25,
        save_every=200,
        select="activity/accuracy",
        modality_dropout=0.1,
    )
    config.eval = dict(
        batch_size=256, bootstrap=1000, subsets=True, baselines=True, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "tiny":
        config.data.options.every = 60
        config.method.update(num_experts=4, top_k=2, width=16, num_queries=2)
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(bootstrap=20, baselines=False)
    return config
