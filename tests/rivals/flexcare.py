"""FlexCare in PyTorch: one task per batch; embeddings of words are given.

Letters: B rows, D width, L tokens, C combinations (7).
"""

import torch
from torch import nn
from torch.nn import functional as F

from tests.rivals.common import Dispatcher, cv_squared, noisy_top_k

TASKS = {"mortality": 1, "decomp": 1, "ph": 25, "los": 10, "readm": 1, "diag": 14}
WEIGHTS = {"mortality": 0.2, "los": 0.5, "ph": 1.0, "decomp": 0.2, "readm": 0.2, "diag": 0.2}
MEMBERS = ((0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,))


class Expert(nn.Module):
    """D -> D -> D."""

    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        """ReLU between."""
        return self.fc2(F.relu(self.fc1(x)))


class Mixture(nn.Module):
    """Gate by token and task; the noise's scale by token alone."""

    def __init__(self, width, experts, k):
        super().__init__()
        self.k, self.randn = k, torch.randn
        self.w_gate = nn.Parameter(torch.zeros(width, experts))
        self.w_noise = nn.Parameter(torch.zeros(width, experts))
        self.task_gate = nn.Parameter(torch.zeros(width, experts))
        self.experts = nn.ModuleList(Expert(width) for _ in range(experts))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def forward(self, z, q):
        """[N, D], [N, D] -> [N, D] and the balance loss."""
        clean = z @ self.w_gate + q @ self.task_gate
        spread = F.softplus(z @ self.w_noise) + 0.01
        noise = self.randn(clean.shape).to(z) if self.training else None
        gates, load, *_ = noisy_top_k(clean, spread, self.k, noise)
        loss = 0.01 * (cv_squared(gates.sum(0)) + cv_squared(load.sum(0)))
        dispatcher = Dispatcher(gates)
        rows = dispatcher.dispatch(z)
        outputs = [self.experts[e](rows[e]) for e in range(len(self.experts))]
        return dispatcher.combine(outputs, logs=False), loss


class Patches(nn.Module):
    """Convolution of a patch."""

    def __init__(self, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class Model(nn.Module):
    """Sequence [task | 4 combinations | ehr | cxr | notes], each modality led by its own token."""

    def __init__(
        self, *, features=76, words=768, width=128, depth=4, num_heads=2, mlp=512, num_experts=10,
        top_k=2, dropout=0.1, patch=16, tasks=tuple(TASKS),
    ):  # fmt: skip
        super().__init__()
        zeros = lambda *shape: nn.Parameter(torch.zeros(*shape, width))  # noqa: E731
        for name in ("ehr", "cxr", "note", "mm"):
            self.register_parameter(f"{name}_cls_token", zeros(1, 1))
        self.cross_cls_tokens = zeros(3, 1)
        self.ehr_pos_embed, self.cxr_pos_embed = zeros(1, 600), zeros(1, 197)
        self.note_pos_embed = zeros(1, 600)
        self.task_embedding = nn.Embedding(40, width)
        self.ehr_projection, self.note_fc = nn.Linear(features, width), nn.Linear(words, width)
        self.patch_projection = Patches(width, patch)
        layer = nn.TransformerEncoderLayer(width, num_heads, mlp, dropout, batch_first=True)
        self.transformer_fusion = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.moe = Mixture(width, num_experts, top_k)
        self.mm_choose = nn.Linear(2 * width, width, bias=False)
        self.mm_choose2 = nn.Linear(width, 1, bias=False)
        self.mm_layernorm = nn.LayerNorm(width)
        self.tasks = list(TASKS)
        for task in tasks:
            self.add_module(f"dense_layer_{task}", nn.Linear(2 * width, TASKS[task]))

    def forward(self, batch):
        """Logits, covariance loss and balance loss.

        `batch`: ehr [B, T, f], ehr_length [B], cxr [B, 3, h, w], note [B, L, d], note_length [B],
        present bool[B, 3] and task, one name.
        """
        present, task = batch["present"], self.tasks.index(batch["task"])
        x, sizes, padded = self._sequence(batch, present, task)
        bias = self._bias(sizes).to(x)
        mask = torch.zeros(padded.shape).to(x).masked_fill(padded, float("-inf"))
        x = self.transformer_fusion(x, mask=bias, src_key_padding_mask=mask)
        starts = [5, 5 + sizes[0], 5 + sizes[0] + sizes[1]]
        z = torch.cat([x[:, 1:5], x[:, starts]], 1)
        ready = torch.stack([present[:, list(m)].all(1) for m in MEMBERS], 1)
        query = x[:, 0]
        tokens, loss = self.moe(z[ready], query[:, None].expand_as(z)[ready])
        y = torch.zeros_like(z)
        y[ready] = tokens
        pair = torch.cat([query[:, None].expand_as(y), y], -1)
        score = self.mm_choose2(torch.tanh(self.mm_choose(pair)))[..., 0]
        weights = torch.softmax((score - 1e7 * (~ready).to(score)) / 0.2, 1)
        fused = self.mm_layernorm((weights[..., None] * y).sum(1))
        logits = getattr(self, f"dense_layer_{batch['task']}")(torch.cat([query, fused], 1))
        return logits, covariance(z), loss

    def loss(self, batch):
        """Named losses; 'total' is what the authors minimise."""
        logits, cov, balance = self(batch)
        if batch["task"] == "los":
            task = F.cross_entropy(logits, batch["label"])
        else:
            known = batch["label"] > -1  # of all findings of all rows
            task = F.binary_cross_entropy_with_logits(logits[known], batch["label"][known])
        total = (task + 0.5 * cov + balance) * WEIGHTS[batch["task"]]
        return {"total": total, "task": task, "covariance": cov, "balance": balance}

    def _sequence(self, batch, present, task):
        """Tokens [B, T, D], tokens of every modality with its leading one, and what is padded."""
        rows = len(present)
        lead = self.task_embedding(torch.full((rows, 1), task))
        wide = lambda x: x.reshape(1, -1, x.shape[-1]).expand(rows, -1, -1)  # noqa: E731
        parts, sizes = [lead, wide(self.mm_cls_token), wide(self.cross_cls_tokens)], []
        padded = [torch.zeros(rows, 5, dtype=torch.bool)]
        cxr = self.patch_projection.proj(batch["cxr"]).flatten(2).transpose(1, 2)
        every = torch.full((rows,), cxr.shape[1])
        streams = (
            ("ehr", self.ehr_projection(batch["ehr"]), batch["ehr_length"]),
            ("cxr", cxr, every),
            ("note", self.note_fc(batch["note"]), batch["note_length"]),
        )
        for m, (name, x, length) in enumerate(streams):
            x = x + getattr(self, f"{name}_pos_embed")[:, : x.shape[1]]
            parts += [wide(getattr(self, f"{name}_cls_token")), x]
            sizes.append(1 + x.shape[1])
            late = torch.arange(x.shape[1]) >= length[:, None]
            absent = ~present[:, m : m + 1]
            padded += [absent, late | absent]
        return torch.cat(parts, 1), sizes, torch.cat(padded, 1)

    @staticmethod
    def _bias(sizes):
        """As released: +1 where a token should not look."""
        total = 5 + sum(sizes)
        bias, begin, data = torch.ones(total, total), 5, []
        for size in sizes:
            data.append(slice(begin + 1, begin + size))
            begin += size
        bias[0] = 0
        for row, members in enumerate(MEMBERS[:4], start=1):
            bias[row, row] = 0
            for m in members:
                bias[row, data[m]] = 0
        begin = 5
        for m, size in enumerate(sizes):
            bias[begin, begin] = 0
            bias[begin : begin + size, data[m]] = 0
            begin += size
        return bias


def covariance(z):
    """Squared covariances between the seven tokens of a row, divided by 36."""
    z = z - z.mean(-1, keepdim=True)
    c = z @ z.transpose(1, 2) / (z.shape[-1] - 1)
    off = c - torch.diag_embed(torch.diagonal(c, dim1=1, dim2=2))
    return (off**2).sum() / (len(z) * (z.shape[1] - 1) ** 2)
