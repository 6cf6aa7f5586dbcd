"""Flex-MoE on ADNI: diagnosis from image volume, genome, clinical tables and biospecimens.

    python -m m4.main --config=configs/flexmoe_adni.py --workdir=runs/flexmoe_adni

Variants: ADNI as Flex-MoE has it (docs/datasets.md), image as FreeSurfer measures; `:volume`, as
grey-matter volume (the paper's); `:released`, the authors' code; `:synthetic`, generated, `:tiny`,
six steps of it. Paper: 50 epochs, the first 5 sorted by completeness, accuracy 66.11 ± 1.14 on
complete rows (Yun et al., NeurIPS 2024, Tables 1 and 6). Cost and numbers: not measured.
"""

import common

VARIANTS = ("volume", "synthetic", "tiny", "released")


def get_config(variant=""):
    method = dict(name="flexmoe", moe=dict(num_experts=16, top_k=4))
    optim = dict(name="adam", lr=1e-4, schedule="constant")
    train = dict(select="diagnosis/accuracy", order="complete_first", order_epochs=5, batch=8)
    options = dict(image="volume") if variant == "volume" else {}
    config = common.experiment("adni", options, method, optim, 7500, 150, log=50, rows=64, **train)
    config.method.fidelity = "released" if variant == "released" else "m4"
    if variant in ("synthetic", "tiny"):
        options = dict(modalities=("cxr", "notes", "labs", "static"), tasks=("ihm48",))
        options |= dict(lab_steps=16, dims=dict(notes=16, cxr=16))
        config.data = dict(name="synthetic", options=options)
        config.train.update(select="ihm48/auroc", steps=300, batch_size=64, log_every=20)
        config.train.update(eval_every=75, save_every=75, order_epochs=1)
        config.optim.lr = 1e-3
    small = dict(options=dict(num_patients=120, lab_steps=4), rows=16)
    return common.tiny(config, **small) if variant == "tiny" else config
