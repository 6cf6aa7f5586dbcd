"""Flex-MoE on ADNI: diagnosis from image volume, genome, clinical tables and biospecimens.

    python -m m4.main --config=configs/flexmoe_adni.py --workdir=runs/flexmoe_adni

| variant      | data                                                    | raw files            |
|--------------|---------------------------------------------------------|----------------------|
| (none)       | ADNI in Flex-MoE's layout, image as FreeSurfer measures | approved researchers |
| `:volume`    | the same, image as grey-matter volume (the paper's)     | approved researchers |
| `:synthetic` | four modalities of the generated cohort in their place  | none                 |
| `:tiny`      | the same in seconds, for tests                          | none                 |

Access and layout: docs/datasets.md. `python -m m4.data fake adni FOLDER` writes invented files.

The paper's setting: 16 experts, top 4, one layer, width 128, Adam at 1e-4, batches of 8, 50
epochs of which the first 5 are sorted by completeness; accuracy 66.11 ± 1.14 on complete rows
(Yun et al., NeurIPS 2024, Tables 1 and 6). `--config.method.fidelity=released` is their model.
"""

import ml_collections

VARIANTS = ("volume", "synthetic", "tiny")


def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="adni", raw_dir="", dir="", options=dict())
    config.method = dict(name="flexmoe", fidelity="m4", num_experts=16, top_k=4)
    config.optim = dict(name="adam", lr=1e-4, schedule="constant")
    config.train = dict(
        steps=7500,
        batch_size=8,
        eval_every=150,
        log_every=50,
        save_every=150,
        select="diagnosis/accuracy",
        order="complete_first",
        order_epochs=5,
    )
    config.eval = dict(batch_size=64, bootstrap=1000, subsets=True, baselines=True, min_patients=10)
    config.mesh = dict(data=1, fsdp=1, expert=1, tensor=1)
    if variant == "volume":
        config.data.options.image = "volume"
    if variant in ("synthetic", "tiny"):
        config.data.name = "synthetic"
        config.data.options = dict(
            modalities=("cxr", "notes", "labs", "static"), tasks=("ihm48",), lab_steps=16
        )
        config.data.options.dims = dict(notes=16, cxr=16)
        config.train.update(select="ihm48/auroc", steps=300, batch_size=64, eval_every=75)
        config.train.update(save_every=75, log_every=20, order_epochs=1)
        config.optim.lr = 1e-3
    if variant == "tiny":
        config.data.options.update(num_patients=120, lab_steps=4)
        config.method.update(num_experts=4, top_k=2, width=16, hidden=16, num_patches=2)
        config.train.update(steps=6, batch_size=8, eval_every=3, save_every=3, log_every=2)
        config.eval.update(batch_size=16, bootstrap=20, baselines=False)
    return config
