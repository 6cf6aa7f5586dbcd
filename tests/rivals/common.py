"""What the rivals share: noisy top-k gating, dispatch by a loop over experts, attention.

Letters: N tokens, E experts, K chosen ones, D width, A assignments.
"""

import torch
from torch import nn
from torch.nn import functional as F


def cv_squared(x):
    """Unbiased variance over squared mean; 0 for one number."""
    return x.var() / (x.mean() ** 2 + 1e-10) if len(x) > 1 else x.new_zeros(())


def noisy_top_k(clean, spread, k, noise):
    """Gates [N, E], and the chance of every expert to be among the best k, [N, E].

    `noise` [N, E] is standard normal; None: no noise, and hard counts instead of chances.
    """
    scores = clean if noise is None else clean + spread * noise
    top, index = scores.topk(min(k + 1, clean.shape[1]), dim=1)
    weights = torch.softmax(top[:, :k], dim=1)
    gates = torch.zeros_like(scores).scatter(1, index[:, :k], weights)
    if noise is None or k == clean.shape[1]:
        return gates, (gates > 0).float(), scores, index[:, :k]
    inside, outside = top[:, k : k + 1], top[:, k - 1 : k]
    normal = torch.distributions.Normal(0.0, 1.0)
    chance_in = normal.cdf((clean - inside) / spread)
    chance_out = normal.cdf((clean - outside) / spread)
    return gates, torch.where(scores > inside, chance_in, chance_out), scores, index[:, :k]


class Dispatcher:
    """Rows sorted by expert, and back (after davidmrau/mixture-of-experts)."""

    def __init__(self, gates):
        order = torch.nonzero(gates.t())  # (expert, row), sorted by expert
        self.row_A = order[:, 1]
        self.counts = (gates > 0).sum(0).tolist()
        self.weight_A = gates[order[:, 1], order[:, 0]]
        self.num_rows = gates.shape[0]

    def dispatch(self, x):
        """Rows of every expert."""
        return torch.split(x[self.row_A], self.counts, dim=0)

    def combine(self, outputs, *, logs):
        """Weighted sum; with `logs` of the exponentials, and the logarithm of it."""
        y = torch.cat(outputs, 0)
        y = (y.exp() if logs else y) * self.weight_A[:, None]
        total = y.new_zeros(self.num_rows, y.shape[1]).index_add(0, self.row_A, y)
        if not logs:
            return total
        return torch.where(
            total == 0, torch.full_like(total, torch.finfo(torch.double).eps), total
        ).log()


class PackedAttention(nn.Module):
    """Self-attention with packed projections, [B, T, D]; scores and weights as tensors."""

    def __init__(self, width, heads, dropout=0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x):
        """[B, T, D] -> [B, T, D]."""
        rows, length, width = x.shape
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        split = packed.view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        y = F.dropout(weights, self.dropout, self.training) @ v
        return self.out_proj(y.transpose(1, 2).reshape(rows, length, width))
