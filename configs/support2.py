"""FuseMoE, Flex-MoE, FlexCare and M4oE on SUPPORT2: five tasks from eight tables.

    python -m m4.main --config=configs/support2.py:flexmoe --workdir=runs/flexmoe_support2

Variants `:fusemoe` (the default), `:flexmoe`, `:flexcare`, `:m4oe`, each with `_tiny` for tests;
M4_RAW_DIR/support2. All else as in `configs/m3h_support2.py`; FlexCare trains on a stream of single
tasks, batch by batch, as its paper does. Cost and numbers: not measured.
"""

import common

MOE = dict(num_experts=8, top_k=2, hidden=64)
METHODS = dict(
    fusemoe=dict(moe=MOE | dict(share="joint"), width=32),
    flexmoe=dict(moe=MOE, width=32),
    flexcare=dict(moe=MOE, max_size=1, width=32, mlp=64, depth=1),
    m4oe=dict(moe=dict(num_experts=8, hidden=64), width=32, modality_experts=2),
)
TINY = dict(fusemoe=dict(statistics_hidden=8), flexcare=dict(mlp=8), m4oe=dict(vit_depth=2))
VARIANTS = (*METHODS, *(f"{name}_tiny" for name in METHODS))


def get_config(variant="fusemoe"):
    name, _, tiny = variant.partition("_")
    config = common.support2(dict(name=name, dropout=0.3, **METHODS[name]))
    config.train.streams = "batches" if name == "flexcare" else "none"
    small = dict(width=8, moe=dict(hidden=8)) | TINY.get(name, {})
    return common.tiny(config, **small) if tiny else config
