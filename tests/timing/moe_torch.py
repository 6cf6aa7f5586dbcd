"""PyTorch rivals of the MoE layer. Runs as a script in an interpreter with torch, without m4.

- loop: what the published multimodal MoE releases do: sort the assignments, gather the rows,
  split them by expert, one small network per expert in a Python loop, scale, index-add.
- sorted: the best of torch: the same sort and `torch.nn.functional.grouped_mm` over stacked
  weights, where this torch has it.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.timing.moe_case import make_case  # noqa: E402 (importable only by path)
from tests.timing.worker_process import serve  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def loop(x_ND, experts_NK, weights_NK, modules):
    """One gather, a loop over experts with their own parameters, one index-add."""
    order_A = torch.argsort(experts_NK.reshape(-1), stable=True)
    token_A = order_A // experts_NK.shape[1]
    counts = torch.bincount(experts_NK.reshape(-1), minlength=len(modules)).tolist()
    outputs = [
        torch.relu(rows @ w1 + b1) @ w2 + b2
        for rows, (w1, b1, w2, b2) in zip(x_ND[token_A].split(counts), modules, strict=True)
    ]
    y_AD = torch.cat(outputs) * weights_NK.reshape(-1)[order_A, None]
    return torch.zeros_like(x_ND).index_add(0, token_A, y_AD)


def grouped(x_ND, experts_NK, weights_NK, w1, b1, w2, b2):
    """One gather, two grouped matmuls, one index-add."""
    sorted_A, order_A = torch.sort(experts_NK.reshape(-1), stable=True)
    token_A = order_A // experts_NK.shape[1]
    ends_E = torch.bincount(sorted_A, minlength=len(w1)).cumsum(0).to(torch.int32)
    matmul = torch.nn.functional.grouped_mm
    h_AF = torch.relu(matmul(x_ND[token_A], w1, offs=ends_E) + b1[sorted_A])
    y_AD = (matmul(h_AF, w2, offs=ends_E) + b2[sorted_A]) * weights_NK.reshape(-1)[order_A, None]
    return torch.zeros_like(x_ND).index_add(0, token_A, y_AD)


def setup(case):
    """The variants of one case, and their losses."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(case["cores"])
    arrays = make_case(case)

    def tensor(name, *index):
        a = torch.from_numpy(arrays[name][index])
        return a.to(device) if a.dtype == torch.int64 else a.to(device, DTYPES[case["dtype"]])

    x, experts = tensor("x").requires_grad_(), tensor("experts")
    weights = tensor("weights").requires_grad_()
    names = ("w1", "b1", "w2", "b2")

    def timed(function, *args):
        leaves = [x, weights, *[p for a in args for p in (a if isinstance(a, tuple) else (a,))]]

        def run():
            loss = function(x, experts, weights, *args).square().mean()
            torch.autograd.grad(loss, leaves)
            if device == "cuda":
                torch.cuda.synchronize()
            return loss.item()

        return run

    variants = {}
    modules = [tuple(tensor(n, e).requires_grad_() for n in names) for e in range(case["experts"])]
    variants["torch_loop"] = timed(lambda x, i, w, *m: loop(x, i, w, m), *modules)
    if hasattr(torch.nn.functional, "grouped_mm"):
        stacked = [tensor(n).requires_grad_() for n in names]
        variants["torch_sorted"] = timed(grouped, *stacked)
    losses = {name: run() for name, run in variants.items()}
    for _ in range(2):
        for run in variants.values():
            run()
    return variants, {"losses": losses, "version": torch.__version__, "device": device}


if __name__ == "__main__":
    serve(setup)
