"""FuseMoE, Flex-MoE, FlexCare and M4oE on SUPPORT2: five tasks from eight tables.

    python -m m4.main --config=configs/support2.py:flexmoe --workdir=runs/flexmoe_support2

| variant                                        | raw files             |
|------------------------------------------------|-----------------------|
| `:fusemoe`, `:flexmoe`, `:flexcare`, `:m4oe`   | M4_RAW_DIR/support2   |
| the same with `_tiny`, six steps for tests     | M4_RAW_DIR/support2   |

Data, tasks, folds and training settings are those of `configs/m3h_support2.py`; nothing was tuned
and there is no reference number. FlexCare trains on a stream of single tasks, batch by batch, as
its paper does (`train.streams`).
"""

import ml_collections

METHODS = dict(
    fusemoe=dict(router="joint", num_experts=8, top_k=2, width=32, hidden=64),
    flexmoe=dict(num_experts=8, top_k=2, width=32, hidden=64),
    flexcare=dict(max_size=1, num_experts=8, top_k=2, width=32, hidden=64, mlp=64, depth=1),
    m4oe=dict(width=32, hidden=64, num_experts=8, modality_experts=2, fusion_experts=4),
)
TINY = dict(
    fusemoe=dict(num_experts=4, width=8, hidden=8, statistics_hidden=8),
    flexmoe=dict(num_experts=4, width=8, hidden=8),
    flexcare=dict(num_experts=4, width=8, hidden=8, mlp=8),
    m4oe=dict(num_experts=4, width=8, hidden=8, fusion_experts=2),
)
VARIANTS = (*METHODS, *(f"{name}_tiny" for name in METHODS))


def get_config(variant="fusemoe"):
    method, _, tiny = variant.partition("_")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="support2", raw_dir="", dir="", options=dict(fold=0, val_fraction=0.1))
    config.method = dict(name=method, fidelity="m4", dropout=0.3, **METHODS[method])
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
    if method == "flexcare":
        config.train.streams = "batches"
    if tiny:
        config.method.update(TINY[method])
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(bootstrap=20, baselines=False)
    return config
