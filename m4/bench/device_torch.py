"""The rivals of `m4.bench.device` in PyTorch: reads what is asked as JSON, prints a line of JSON.

The same rows, sizes and FLOPs without biases; over a loop and over `grouped_mm`. PyTorch is an
optional extra; without it, or without its device, the stage is skipped.

Letters: A rows, E experts, D width, F hidden units.
"""

import json
import sys
from typing import Any

from m4.bench.clock import milliseconds


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of forward and backward by both."""
    try:
        import torch
        import torch.nn.functional as F  # noqa: N812 (PyTorch's own name for it)
    except ImportError:
        return {"status": "skipped", "why": "no torch"}
    toy = asked["side"] < 1000
    if not toy and not torch.cuda.is_available():
        return {"status": "skipped", "why": "torch has no CUDA device"}
    where = {"device": "cpu" if toy else "cuda", "dtype": torch.bfloat16}
    num, d, f = asked["experts"], asked["width"], asked["hidden"][str(asked["experts"])]
    rows = asked["tokens"] * asked["top_k"]
    torch.manual_seed(0)
    x_AD = torch.randn(rows, d, **where).requires_grad_()
    g_AD = torch.randn(rows, d, **where)
    w1, w2 = (torch.randn(num, f, d, **where) * s for s in (d**-0.5, f**-0.5))
    w1, w2 = w1.requires_grad_(), w2.requires_grad_()
    ends_E = torch.arange(1, num + 1, device=where["device"], dtype=torch.int32) * (rows // num)

    def grouped():
        h_AF = F.relu(F.grouped_mm(x_AD, w1.transpose(1, 2), offs=ends_E))
        return torch.autograd.grad(F.grouped_mm(h_AF, w2, offs=ends_E), (x_AD, w1, w2), g_AD)

    def loop():
        parts = x_AD.split(rows // num)
        y_AD = torch.cat([F.relu(x @ a.T) @ b for x, a, b in zip(parts, w1, w2, strict=True)])
        return torch.autograd.grad(y_AD, (x_AD, w1, w2), g_AD)

    wait = (lambda _: None) if toy else (lambda _: torch.cuda.synchronize())
    how = {"seconds": asked["seconds"], "groups": asked["groups"]}
    found: dict[str, Any] = {"torch": torch.__version__}
    for name, step in (("grouped_mm", grouped), ("loop", loop)):
        try:
            found[f"{name}_ms"] = milliseconds(step, wait, **how)["ms"]
        except (RuntimeError, AttributeError) as error:
            found[f"{name}_why"] = str(error).splitlines()[0][:200]
    return {"status": "ok"} | found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.stdin.read()))))
