"""FuseMoE on CMU-MOSI or CMU-MOSEI: sentiment from words, voice and face.

    python -m m4.main --config=configs/fusemoe_mosi.py --workdir=runs/fusemoe_mosi

Variants: CMU-MOSI, word-aligned features (M4_RAW_DIR/cmu-mosi); `:mosei`, CMU-MOSEI
(M4_RAW_DIR/cmu-mosei); `:tiny`, six steps on CMU-MOSI. The files are pickles; docs/datasets.md says
how to convert them once; `python -m m4.data fake mosi FOLDER` writes invented ones. Not measured.
"""

import common

VARIANTS = ("mosei", "tiny")


def get_config(variant=""):
    name = "mosei" if variant == "mosei" else "mosi"
    method = dict(name="fusemoe", moe=dict(share="permod", num_experts=16, top_k=4))
    method |= dict(num_queries=8, dropout=0.3)
    optim = common.adamw(5e-4, weight_decay=0.1, warmup_steps=50, ema=0.995)
    steps, train = 1000 if name == "mosi" else 10_000, dict(select="positive/auroc")
    train |= dict(modality_dropout=0.1)
    config = common.experiment("mosi", dict(dataset=name), method, optim, steps, 100, **train)
    return common.tiny(config, width=16, num_queries=2) if variant == "tiny" else config
