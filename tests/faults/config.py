"""The smallest run of each method: starting, compiling and stepping cost next to nothing."""

import ml_collections

METHODS = ("fusemoe", "flexmoe", "flexcare", "m3h", "m4oe")
VARIANTS = METHODS
SPARSE = {"moe": {"num_experts": 4, "top_k": 2, "hidden": 8}, "width": 8, "num_heads": 2}
SOFT = {"moe": {"num_experts": 4, "hidden": 8}, "modality_experts": 2, "fusion_experts": 2}
FIELDS = {
    "fusemoe": SPARSE | {"num_queries": 2, "embed_time": 4, "statistics_hidden": 8},
    "flexmoe": SPARSE | {"bank_rank": 2},
    "flexcare": SPARSE | {"mlp": 8, "depth": 1},
    "m3h": {"width": 8, "task_width": 8},
    "m4oe": SOFT | {"width": 8, "num_heads": 2, "num_queries": 2},
}


def get_config(variant="m3h"):
    """Two modalities, two tasks, 24 steps; saved every second step, evaluated every eighth."""
    options = {"modalities": ("vitals", "static"), "tasks": ("ihm48", "los")}
    return ml_collections.ConfigDict(
        {
            "data": {"name": "synthetic", "options": dict(options, num_patients=120, steps=4)},
            "method": dict(name=variant or "m3h", **FIELDS[variant or "m3h"]),
            "optim": {"lr": 0.01, "ema": 0.9, "warmup_steps": 2, "clip_norm": 1.0},
            "train": {
                "steps": 24,
                "batch_size": 16,
                "log_every": 1,
                "eval_every": 8,
                "save_every": 2,
                "select": "ihm48/auroc",
                "modality_dropout": 0.2,
            },
            "eval": {"batch_size": 16, "bootstrap": 2, "subsets": False, "baselines": False},
        }
    )
