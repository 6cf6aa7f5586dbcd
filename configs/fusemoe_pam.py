"""FuseMoE on PAM: eight daily activities from 17 wearable sensors, each a modality.

    python -m m4.main --config=configs/fusemoe_pam.py --workdir=runs/fusemoe_pam

5,333 windows of 6 s, every sixth step, M4_RAW_DIR/PAMdata, open data (docs/datasets.md); invented
ones by `python -m m4.data fake pam FOLDER`. Blocks of 20 windows are split, not single ones, which
overlap by half: not as in the paper, unless `data.options.block=1`. Cost and numbers: not measured.
"""

import common

VARIANTS = ("tiny",)


def get_config(variant=""):
    method = dict(name="fusemoe", moe=dict(share="permod", num_experts=16, top_k=4), num_queries=8)
    optim = common.adamw(weight_decay=0.01, ema=0.995)
    train = dict(select="activity/accuracy", modality_dropout=0.1)
    config = common.experiment("pam", dict(every=6), method, optim, 2000, 200, **train)
    small = dict(options=dict(every=60), width=16, num_queries=2)
    return common.tiny(config, **small) if variant else config
