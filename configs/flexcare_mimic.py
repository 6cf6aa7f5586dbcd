"""FlexCare on MIMIC-IV: several tasks from time series, X-rays and notes, one stream per task.

    python -m m4.main --config=configs/flexcare_mimic.py:synthetic --workdir=runs/flexcare_mimic

Variants as in `configs/fusemoe_mimic.py`; `:released`, the authors' model, sizes and recipe on
those of their tasks that share a window, one task after the other: never run. Every row of a batch
is there for one task; the paper (Xu et al., KDD 2024) deals whole batches, `train.streams=batches`,
its release one task after the other, 'sequential'. Its other tasks and 76 columns are options of
the data set: `window`, `tasks` and the modality `flexcare`, see `m4/data/sets/mimiciv/`. Cost and
numbers: not measured.
"""

import common

VARIANTS = ("demo", "synthetic", "tiny", "released")
MODALITIES = ("vitals", "labs", "cxr", "notes")


def get_config(variant=""):
    method = dict(name="flexcare", moe=dict(num_experts=10, top_k=2))
    if variant == "released":
        method |= dict(fidelity="released", moe=dict(num_experts=10, top_k=2, hidden=128))
        options = dict(modalities=("flexcare", "cxr_image", "notes"))
        options |= dict(tasks=("ihm48", "phe", "readmission"))
        train = dict(streams="sequential", select="ihm48/auroc", batch=32, rows=32)
        train |= dict(task_weights=dict(ihm48=0.2, phe=1.0, readmission=0.2))
        optim = dict(name="adam", lr=1e-4, schedule="constant")
        return common.experiment("mimiciv", options, method, optim, 25_000, 1000, **train)
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
