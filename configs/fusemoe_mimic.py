"""FuseMoE on MIMIC-IV: 48-hour mortality, length of stay and phenotypes from seven modalities.

    python -m m4.main --config=configs/fusemoe_mimic.py:synthetic --workdir=runs/mimic

Variants: MIMIC-IV, M4_RAW_DIR/mimiciv; `:demo`, its 100 patients, M4_RAW_DIR/mimic-iv-demo-2.2;
`:synthetic`, a generated cohort with known truth, and `:tiny`, six steps of it, need no files.
Cost of `:synthetic`: 3 minutes of two cores; expected: 48-hour death AUROC 0.882 [0.838, 0.923],
boosting 0.850 (docs/results.md). MIMIC-IV itself: not measured here; the paper's numbers are in
Tables 4 and 5 of Han et al., NeurIPS 2024.
"""

import common

VARIANTS = ("demo", "synthetic", "tiny")


def get_config(variant=""):
    method = dict(name="fusemoe", moe=dict(share="permod", num_experts=16, top_k=4))
    config = common.mimic(method, modality_dropout=0.1)
    if variant == "demo":
        return common.demo(config)
    if variant == "synthetic":
        return common.synthetic(config, dims=common.SMALL, tasks=common.TASKS)
    if variant == "tiny":
        common.toy_cohort(config, common.SMALL)
        return common.tiny(config, rows=16)
    return config
