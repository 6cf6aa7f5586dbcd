"""FuseMoE on CMU-MOSI or CMU-MOSEI: sentiment from words, voice and face.

    python -m m4.main --config=configs/fusemoe_mosi.py --workdir=runs/fusemoe_mosi

| variant  | data                                        | raw files             |
|----------|---------------------------------------------|-----------------------|
| (none)   | CMU-MOSI, word-aligned features             | M4_RAW_DIR/cmu-mosi   |
| `:mosei` | CMU-MOSEI                                   | M4_RAW_DIR/cmu-mosei  |
| `:tiny`  | CMU-MOSI, six steps of a small model        | M4_RAW_DIR/cmu-mosi   |

The files are pickles; docs/datasets.md says how to convert them once. The paper's numbers (Han et
al., NeurIPS 2024) are MAE, accuracy, correlation and F1. `python -m m4.data fake mosi FOLDER`
writes invented files.
"""

import ml_collections

VARIANTS = ("mosei", "tiny")


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    dataset = "mosei" if variant == "mosei" else "mosi"
    config.data = dict(name="mosi", raw_dir="", dir="", options=dict(dataset=dataset))
    config.method = dict(
        name="fusemoe",
        fidelity="m4",
        gate="laplace",
        router="permod",
        num_experts=16,
        top_k=4,
        num_queries=8,
        dropout=0.3,
    )
    config.optim = dict(
        name="adamw",
        lr=5e-4,
        weight_decay=0.1,
        warmup_steps=50,
        schedule="cosine",
        clip_norm=1.0,
        ema=0.995,
    )
    config.train = dict(
        steps=10_000 if dataset == "mosei" else 1000,
        batch_size=64,
        eval_every=100,
        log_every=25,
        save_every=100,
        select="positive/auroc",
        modality_dropout=0.1,
    )
    config.eval = dict(
        batch_size=256, bootstrap=1000, subsets=True, baselines=True, min_patients=10
    )
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "tiny":
        config.method.update(num_experts=4, top_k=2, width=16, num_queries=2)
        config.optim.warmup_steps = 2
        config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
        config.eval.update(bootstrap=20, baselines=False)
    return config
