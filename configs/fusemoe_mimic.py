"""FuseMoE on MIMIC-IV: 48-hour mortality, length of stay and phenotypes from seven modalities.

    python -m m4.main --config=configs/fusemoe_mimic.py:synthetic --workdir=runs/mimic

Variants: MIMIC-IV, M4_RAW_DIR/mimiciv; `:demo`, its 100 patients, M4_RAW_DIR/mimic-iv-demo-2.2;
`:synthetic`, cost: 3 minutes of two cores, expected: death AUROC 0.885 [0.836, 0.926]
(docs/results.md); `:tiny`, six steps; `:next_test` (docs/evaluation.md); `:released`, the authors'
(Table 8), 1.2 billion parameters: never run. MIMIC-IV: not measured; paper: Tables 4 and 5.
"""

import common

VARIANTS = ("demo", "synthetic", "next_test", "tiny", "released")


def get_config(variant=""):
    method = dict(name="fusemoe", moe=dict(share="permod", num_experts=16, top_k=4))
    if variant == "released":
        moe = dict(gate="laplace", share="joint", num_experts=16, top_k=4, hidden=512)
        sizes = dict(width=128, depth=3, num_heads=8, num_queries=48, embed_time=64, dropout=0.1)
        method = dict(name="fusemoe", fidelity="released", utde="batch", moe=moe, **sizes)
        options = dict(modalities=("fusemoe", "notes", "cxr", "ecg"), tasks=("ihm48",))
        options |= dict(split_by="stay", available="charted")
        optim = dict(name="adam", lr=4e-4, schedule="constant")
        train = dict(batch=32, rows=8, select="ihm48/f1", accumulate=16)
        return common.experiment("mimiciv", options, method, optim, 6144, 768, **train)
    return common.of_mimic(common.mimic(method, modality_dropout=0.1), variant)
