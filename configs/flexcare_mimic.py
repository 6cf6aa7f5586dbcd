"""FlexCare on MIMIC-IV: several tasks from time series, X-rays and notes, one stream per task.

    python -m m4.main --config=configs/flexcare_mimic.py:synthetic --workdir=runs/flexcare_mimic

Variants as in `configs/fusemoe_mimic.py`. Every row of a batch is there for one task; the paper
(Xu et al., KDD 2024) deals whole batches, `train.streams=batches`, its release one task after the
other, 'sequential'. Its other tasks and 76 columns are options of the data set: `window`, `tasks`
and the modality `flexcare`, see `m4/data/sets/mimiciv/`. Cost and numbers: not measured.
"""

import common

VARIANTS = ("demo", "synthetic", "tiny")
MODALITIES = ("vitals", "labs", "cxr", "notes")


def get_config(variant=""):
    method = dict(name="flexcare", moe=dict(num_experts=10, top_k=2))
    weights = dict(ihm48=0.2, los=0.5, los_under_96h=0.2, phe=1.0)
    config = common.mimic(method, streams="rows", task_weights=weights)
    config.optim.lr = 5e-4
    config.data.options.modalities = MODALITIES
    if variant == "demo":
        return common.demo(config, modalities=("vitals", "labs", "static", "medications"))
    if variant in ("synthetic", "tiny"):
        dims = dict(notes=16, cxr=16)
        common.synthetic(config, tasks=common.TASKS, dims=dims)
        config.train.task_weights = dict(ihm48=1.0, los=0.5, los_under_96h=0.5)
        config.method.update(width=64, mlp=128, depth=2, moe=dict(hidden=64))
    if variant == "tiny":
        options = dict(num_patients=120, steps=8, lab_steps=4)
        common.tiny(config, options=options, rows=16, depth=1)
    return config
