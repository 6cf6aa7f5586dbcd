"""Flex-MoE on ADNI: diagnosis from image volume, genome, clinical tables and biospecimens.

    python -m m4.main --config=configs/flexmoe_adni.py --workdir=runs/flexmoe_adni

Variants: ADNI in Flex-MoE's layout (docs/datasets.md), image as FreeSurfer measures; `:volume`,
image as grey-matter volume (the paper's); `:synthetic`, four modalities of the generated cohort in
their place; `:tiny`, six steps of it; `:released`, the authors' model and recipe. `python -m
m4.data fake adni FOLDER` writes invented files. The paper's setting: 50 epochs of which the first 5
are sorted by completeness; accuracy 66.11 ± 1.14 on complete rows (Yun et al., NeurIPS 2024, Tables
1 and 6). Cost and numbers: not measured.
"""

import common

VARIANTS = ("volume", "synthetic", "tiny", "released")


def get_config(variant=""):
    method = dict(name="flexmoe", moe=dict(num_experts=16, top_k=4))
    optim = dict(name="adam", lr=1e-4, schedule="constant")
    train = dict(select="diagnosis/accuracy", order="complete_first", order_epochs=5)
    sizes = dict(batch=8, log=50, rows=64)
    config = common.experiment("adni", {}, method, optim, 7500, 150, **sizes, **train)
    if variant == "released":
        config.method.update(fidelity="released", moe=dict(hidden=256))
    if variant == "volume":
        config.data.options.image = "volume"
    if variant in ("synthetic", "tiny"):
        options = dict(modalities=("cxr", "notes", "labs", "static"), tasks=("ihm48",))
        config.data = dict(name="synthetic", options=options)
        config.data.options.update(lab_steps=16, dims=dict(notes=16, cxr=16))
        config.train.update(select="ihm48/auroc", steps=300, batch_size=64, log_every=20)
        config.train.update(eval_every=75, save_every=75, order_epochs=1)
        config.optim.lr = 1e-3
    if variant == "tiny":
        common.tiny(config, options=dict(num_patients=120, lab_steps=4), rows=16)
    return config
