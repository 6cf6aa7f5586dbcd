"""The published configuration of every method, for both frameworks. Standard library only."""

VIT_B = {"width": 768, "vit_depth": 12, "vit_heads": 12, "num_heads": 8, "hidden": 3072}
CASES = {
    "fusemoe": {
        "rows": 2,
        "lengths": {"ts": 256, "cxr": 5, "text": 5},
        "channels": {"ts": 30, "cxr": 1024, "text": 768},
        "sizes": {
            "width": 128, "num_heads": 8, "num_queries": 48, "embed_time": 64, "depth": 3,
            "num_experts": 16, "top_k": 4, "hidden": 512, "gate": "laplace", "router": "permod",
            "dropout": 0.1, "utde": "batch",
        },
    },
    "flexmoe": {
        "rows": 8,
        "keep": 0.7,  # of the modalities of a row
        "features": {"image": 320, "genomic": 20000, "clinical": 1500, "biospecimen": 300},
        "sizes": {
            "width": 128, "num_heads": 4, "num_patches": 16, "depth": 1, "hidden": 256,
            "num_experts": 16, "top_k": 4, "dropout": 0.5,
        },
    },
    "flexcare": {
        "rows": 32,
        "hours": 48,
        "words": 51,
        "pixels": 224,
        "sizes": {
            "width": 128, "depth": 4, "num_heads": 2, "mlp": 512, "num_experts": 10, "top_k": 2,
            "dropout": 0.1, "patch": 16,
        },
    },
    "m3h": {
        "rows": 256,
        "features": [6, 451, 2304, 2084],
        "tasks": [["binary", 1]] * 41 + [["multiclass", 5], ["regression", 1]],
        "sizes": {"width": 128, "task_width": 64, "dropout": 0.1},
    },
    "m4oe": {
        "rows": 1,
        "pixels": 224,
        "classes": [4, 2, 3],
        "sizes": VIT_B
        | {
            "patch": 16, "num_experts": 16, "modality_experts": 4, "fusion_experts": 2,
            "depth": 2, "fusion_depth": 2,
        },
    },
}  # fmt: skip
NOTES = {
    "fusemoe": "per-modality routers; dispatch as the method chooses",
    "flexmoe": "ADNI with tables; the fusion model, the bank and linear encoders",
    "flexcare": "one task; BioBERT's hidden states are given",
    "m3h": "no code of the authors exists: a third party's head on HAIM's features, 43 tasks",
    "m4oe": "16, 4 and 2 experts for the published 128, 32 and 16: those need 37 GB",
}
LARGE = ("fusemoe", "m4oe")  # too large for both frameworks to be in memory at once


def case_of(name, rows=None, depth=None):
    """A case by name; `rows` and `depth` replace its own."""
    case = CASES[name] | {"name": name}
    if rows:
        case["rows"] = rows
    if depth:
        key = "vit_depth" if name == "m4oe" else "depth"
        case["sizes"] = case["sizes"] | {key: depth}
    return case
