"""The one public head of M3H (a third party's) on HAIM's features, in PyTorch, a module per task.

Letters: B rows, D width of all modalities, T tasks, d task width.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Encoder(nn.Module):
    """Affine, GELU, dropout, affine (the tanh form of GELU, as m4 has)."""

    def __init__(self, features, width, dropout):
        super().__init__()
        self.up, self.down = nn.Linear(features, width), nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x):
        """[B, f] -> [B, D]."""
        h = F.gelu(self.up(x), approximate="tanh")
        return self.down(F.dropout(h, self.dropout, self.training))


class Model(nn.Module):
    """`features`: width of every modality; `tasks`: (kind, dim), binary, multiclass, regression."""

    def __init__(
        self, *, features=(6, 451, 2304, 2084), width=128, task_width=64, dropout=0.1,
        tasks=(("binary", 1),) * 42 + (("multiclass", 5), ("regression", 1)),
    ):  # fmt: skip
        super().__init__()
        self.kinds, self.dropout = [kind for kind, _ in tasks], dropout
        self.encoders = nn.ModuleList(Encoder(f, width, dropout) for f in features)
        wide, num = len(features) * width, len(tasks)
        self.project = nn.ModuleList(nn.Linear(wide, task_width, bias=False) for _ in tasks)
        self.task = nn.Linear(num, task_width, bias=False)  # of a one-hot vector
        self.query, self.key, self.value = (
            nn.Linear(task_width, task_width, bias=False) for _ in range(3)
        )
        self.heads = nn.ModuleList(nn.Linear(task_width, dim) for _, dim in tasks)

    def forward(self, batch):
        """`batch`: values, a list of [B, f], and present bool[B, M] -> a list of logits."""
        present = batch["present"][..., None]
        parts = [
            torch.where(present[:, m], f(x), torch.zeros(()).to(x))
            for m, (f, x) in enumerate(zip(self.encoders, batch["values"], strict=True))
        ]
        x = F.dropout(torch.cat(parts, 1), self.dropout, self.training)
        embedded = [f(x) for f in self.project]
        one_hot = torch.eye(len(embedded)).to(x)
        queries = [self.query(self.task(row)) for row in one_hot]
        keys = torch.stack([self.key(e) for e in embedded], 1)
        values = torch.stack([self.value(e) for e in embedded], 1)
        scores = torch.stack([keys @ q for q in queries], 1)  # B T U
        scores = scores / (scores.amax((1, 2), keepdim=True) + 1e-8)
        mixed = torch.softmax(one_hot + scores, -1) @ values
        return [head(mixed[:, t]) for t, head in enumerate(self.heads)]

    def loss(self, batch):
        """The mean of the tasks' losses; regression in squares."""
        logits, losses = self(batch), []
        for kind, y, label in zip(self.kinds, logits, batch["labels"], strict=True):
            if kind == "multiclass":
                losses.append(F.cross_entropy(y, label))
            elif kind == "regression":
                losses.append(F.mse_loss(y, label))
            else:
                losses.append(F.binary_cross_entropy_with_logits(y, label))
        return {"total": torch.stack(losses).mean()}
