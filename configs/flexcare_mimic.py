"""FlexCare on MIMIC-IV: several tasks from time series, X-rays and notes, one stream per task.

    python -m m4.main --config=configs/flexcare_mimic.py:synthetic --workdir=runs/flexcare_mimic

Variants as in `configs/fusemoe_mimic.py`; `:released`, the authors' recipe: task after task, where
Xu et al. (KDD 2024) deal whole batches, `train.streams=batches`. Cost and numbers: not measured.
"""

import common

VARIANTS = ("demo", "synthetic", "tiny", "released")


def get_config(variant=""):
    method = dict(name="flexcare", moe=dict(num_experts=10, top_k=2))
    if variant == "released":
        weights, method["fidelity"] = dict(ihm48=0.2, phe=1.0, readmission=0.2), "released"
        options = dict(modalities=("flexcare", "cxr_image", "notes"), tasks=tuple(weights))
        train = dict(streams="sequential", select="ihm48/auroc", task_weights=weights, batch=32)
        optim = dict(name="adam", lr=1e-4, schedule="constant", halve=True)
        return common.experiment("mimiciv", options, method, optim, 25_000, 1000, **train)
    weights = dict(ihm48=0.2, los=0.5, los_under_96h=0.2, phe=1.0)
    config = common.mimic(method, streams="rows", task_weights=weights)
    config.optim.lr = 5e-4
    config.data.options.modalities = ("vitals", "labs", "cxr", "notes")
    if variant == "demo":
        return common.demo(config, modalities=("vitals", "labs", "static", "medications"))
    if variant in ("synthetic", "tiny"):
        common.synthetic(config, tasks=common.TASKS, dims=dict(notes=16, cxr=16))
        config.train.task_weights = dict(ihm48=1.0, los=0.5, los_under_96h=0.5)
        config.method.update(width=64, mlp=128, depth=2, moe=dict(hidden=64))
    small = dict(options=dict(num_patients=120, steps=8, lab_steps=4), rows=16, depth=1)
    return common.tiny(config, **small) if variant == "tiny" else config
