"""A whole training step of a rival: a worker process that needs torch and NumPy alone."""

import importlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.timing.worker_process import serve  # noqa: E402 (importable only by path)


def setup(case):
    """One variant, 'torch'; facts: parameters, version."""
    torch.set_num_threads(case["cores"])
    torch.manual_seed(0)
    rival = importlib.import_module(f"tests.rivals.{case['name']}")
    sizes, batch = {
        "fusemoe": fusemoe, "flexmoe": flexmoe, "flexcare": flexcare, "m3h": m3h, "m4oe": m4oe,
    }[case["name"]](case)  # fmt: skip
    model = rival.Model(**sizes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

    def run():
        optimiser.zero_grad()
        loss = model.loss(batch)["total"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return loss.item()

    for _ in range(2):
        run()
    count = sum(p.numel() for p in model.parameters())
    return {"torch": run}, {"params": count, "version": f"torch {torch.__version__}"}


def fusemoe(case):
    rows, batch = case["rows"], {"label": torch.ones(case["rows"], dtype=torch.long)}
    for role, f in case["channels"].items():
        length = case["lengths"][role]
        mask = torch.rand(rows, length, f) < 0.5 if role == "ts" else torch.ones(rows, length)
        stream = {"mask": mask.float(), "times": torch.rand(rows, length).sort(1).values}
        stream["values"] = torch.randn(rows, length, f)
        if role == "ts":
            stream["values"] *= stream["mask"]
            stream["reg"] = torch.randn(rows, case["sizes"]["num_queries"], 2 * f)
        batch[role] = stream | {"missing": torch.zeros(rows, dtype=torch.bool)}
    return case["sizes"] | {"channels": case["channels"]}, batch


def flexmoe(case):
    rows, features = case["rows"], case["features"]
    batch = {name: torch.randn(rows, f) for name, f in features.items()}
    present = torch.rand(rows, len(features)) < case["keep"]
    present[torch.arange(rows), torch.arange(rows) % len(features)] = True
    batch |= {"present": present, "label": torch.ones(rows, dtype=torch.long)}
    return case["sizes"] | {"features": features}, batch


def flexcare(case):
    rows = case["rows"]
    batch = {
        "ehr": torch.randn(rows, case["hours"], 76),
        "ehr_length": torch.full((rows,), case["hours"]),
        "cxr": torch.randn(rows, 3, case["pixels"], case["pixels"]),
        "note": torch.randn(rows, case["words"], 768),
        "note_length": torch.full((rows,), case["words"]),
        "present": torch.ones(rows, 3, dtype=torch.bool),
        "task": "mortality",
        "label": torch.ones(rows, 1),
    }
    return case["sizes"], batch


def m3h(case):
    rows = case["rows"]
    batch = {
        "values": [torch.randn(rows, f) for f in case["features"]],
        "present": torch.ones(rows, len(case["features"]), dtype=torch.bool),
        "labels": [
            torch.ones(rows, dtype=torch.long) if kind == "multiclass" else torch.ones(rows, dim)
            for kind, dim in case["tasks"]
        ],
    }
    return case["sizes"] | {"features": case["features"], "tasks": case["tasks"]}, batch


def m4oe(case):
    rows, size = case["rows"], case["pixels"]
    batch = {
        "images": [torch.randn(rows, 3, size, size) for _ in range(4)],
        "labels": [torch.ones(rows, dtype=torch.long) for _ in case["classes"]],
    }
    return case["sizes"] | {"image": size, "classes": case["classes"]}, batch


if __name__ == "__main__":
    serve(setup)
