"""FlexCare on the PhysioNet 2012 challenge: train on set A, test on set B, open data.

    python -m m4.main --config=configs/flexcare_physionet2012.py --workdir=runs/flexcare_p12

| variant | data                                                | raw files                  |
|---------|-----------------------------------------------------|----------------------------|
| (none)  | sets A and B, 4000 stays each, 13 modalities        | M4_RAW_DIR/physionet2012   |
| `:tiny` | the same files, six steps of a small model          | M4_RAW_DIR/physionet2012   |

Thirteen modalities have 8,191 combinations: only the full set and single modalities have tokens
(`max_size=2` adds the 78 pairs). Every row is asked every task, as it carries their labels;
`--config.train.streams=batches` trains on one task at a time as the paper does.
Cost and expected numbers: `docs/methods/flexcare.md`.
"""

import ml_collections

VARIANTS = ("tiny",)


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="physionet2012", raw_dir="", dir="", options=dict(val_fraction=0.05))
    config.method = dict(
        name="flexcare",
        fidelity="m4",
        num_experts=8,
        top_k=2,
        width=64,
        hidden=64,
        mlp=128,
        depth=1,
        num_heads=4,
        max_size=1,
        dropout=0.4,
        aux_weights=dict(covariance=0.01, importance=0.01, load=0.01),
    )
    config.optim = dict(
        name="adamw",
        lr=1e-3,
        weight_decay=1.0,
        warmup_steps=100,
        schedule="cosine",
        clip_norm=1.0,
        ema=0.995,
    )
    config.train = dict(
        steps=950,
        batch_size=64,
        eval_every=190,
        log_every=25,
        save_every=190,
        select="death/auroc",
        choose="last",
        modality_dropout=0.15,
        task_weights=dict(los=0.3, los_over_7d=0.3, sofa7=0.3),
    )
    config.eval = dict(
        batch_size=256, bootstrap=1000, subsets=True, baselines=True, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "tiny":
        config.method.update(num_experts=4, width=16, hidden=16, mlp=16)
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(batch_size=16, bootstrap=20, baselines=False)
    return config
