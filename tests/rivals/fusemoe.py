"""FuseMoE (`MULTCrossModel` with cross_method 'moe') in PyTorch.

Letters: B rows, M modalities, Q query times, D width, L observations, p channels.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.rivals.common import Dispatcher, PackedAttention, cv_squared, noisy_top_k

FUSIONS = (("text", "ts"), ("cxr", "ts"), ("ts", "cxr", "text"), ("ts", "cxr", "text", "ecg"))
TYPES = ("ts", "text", "cxr", "ecg")


class TimeAttention(nn.Module):
    """mTAND: a softmax over time per value channel, scores repeated for every channel."""

    def __init__(self, channels, width, embed_time, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        maps = [nn.Linear(embed_time, embed_time) for _ in range(2)]
        self.linears = nn.ModuleList([*maps, nn.Linear(channels * heads, width)])

    def forward(self, query, key, value, mask):
        """[1, Q, K], [B, L, K], [B, L, p], [B, L, p] -> [B, Q, D]."""
        rows, channels = value.shape[0], value.shape[-1]
        q, k = (
            linear(x).view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)
            for linear, x in zip(self.linears, (query, key), strict=False)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.unsqueeze(-1).repeat(1, 1, 1, 1, channels)
        scores = scores.masked_fill(mask[:, None, None] == 0, -10000.0)
        weights = F.dropout(torch.softmax(scores, dim=-2), self.dropout, self.training)
        x = (weights * value[:, None, None]).sum(-2)  # B H Q p
        return self.linears[-1](x.transpose(1, 2).reshape(rows, -1, self.heads * channels))


class Gate(nn.Module):
    """How much of the irregular embedding to keep."""

    def __init__(self, width, outputs, dropout):
        super().__init__()
        self.gate = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, outputs),
            nn.Sigmoid(),
        )  # fmt: skip


class Expert(nn.Module):
    """Ends in a log-softmax over all of its outputs."""

    def __init__(self, inputs, hidden, outputs, dropout):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.dropout = dropout

    def forward(self, x):
        """[N, i] -> [N, o]."""
        return F.log_softmax(
            self.fc2(F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)), 1
        )


class Mixture(nn.Module):
    """One gate on all modalities ('joint'), or one per modality, which is no parameter."""

    def __init__(self, unit, num, experts, top_k, hidden, gate, router, dropout):
        super().__init__()
        self.num, self.top_k, self.gate, self.router = num, top_k, gate, router
        self.randn = torch.randn
        joint = router == "joint"
        inputs, reach = (
            unit * (num if joint else 1),
            experts // (num if router == "disjoint" else 1),
        )
        make = lambda: Expert(inputs, hidden, unit * num, dropout)  # noqa: E731
        lists = [nn.ModuleList(make() for _ in range(reach)) for _ in range(num)]
        self.experts = nn.ModuleList(lists) if router == "disjoint" else None
        if self.experts is None:
            self.experts = nn.ModuleList(make() for _ in range(experts))
        matrices = [torch.zeros(inputs, reach) for _ in range(2)]
        self.w_gate, self.w_noise = map(nn.Parameter, matrices) if joint else matrices
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def forward(self, units):
        """List of [B, u] -> [B, M u] and the balance loss, which the authors drop."""
        if self.router == "joint":
            return self._mix(torch.cat(units, 1), self.experts)
        found = [
            self._mix(x, self.experts[m] if self.router == "disjoint" else self.experts)
            for m, x in enumerate(units)
        ]
        return sum(y for y, _ in found), sum(loss for _, loss in found)

    def _mix(self, x, experts):
        if self.gate == "linear":
            clean = x @ self.w_gate.to(x)
        else:
            distance = torch.cdist(x, self.w_gate.to(x).t())
            clean = -distance if self.gate == "laplace" else -(distance**2)
        spread = F.softplus(x @ self.w_noise.to(x)) + 0.01
        gates, chance, *_ = noisy_top_k(clean, spread, self.top_k, self.randn(clean.shape).to(x))
        loss = cv_squared(gates.sum(0)) + cv_squared(chance.sum(0))
        dispatcher = Dispatcher(gates)
        outputs = [f(rows) for f, rows in zip(experts, dispatcher.dispatch(x), strict=True)]
        return dispatcher.combine(outputs, logs=True), loss


class Layer(nn.Module):
    """Self-attention, mixture, MLP; all but the mixture per modality, in loops."""

    def __init__(self, num, width, heads, queries, dropout, mixture):
        super().__init__()
        self.dropout, self.queries = dropout, queries
        norms = lambda: nn.ModuleList(nn.LayerNorm(width) for _ in range(num))  # noqa: E731
        attend = lambda: PackedAttention(width, heads, dropout)  # noqa: E731
        self.self_attns = nn.ModuleList(attend() for _ in range(num))
        self.pre_self_attn_layer_norm, self.pre_encoder_attn_layer_norm = norms(), norms()
        self.pre_ffn_layer_norm = norms()
        self.fc1 = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(num))
        self.fc2 = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(num))
        self.moe = mixture

    def forward(self, xs):
        """List of [Q, B, D] (time first) -> the same, and the mixture's balance loss."""
        drop = lambda x: F.dropout(x, self.dropout, self.training)  # noqa: E731
        xs = [
            x + drop(f(norm(x).transpose(0, 1)).transpose(0, 1))
            for x, f, norm in zip(xs, self.self_attns, self.pre_self_attn_layer_norm, strict=True)
        ]
        shape = xs[0].shape
        normed = [n(x) for x, n in zip(xs, self.pre_encoder_attn_layer_norm, strict=True)]
        # As released: reshaped without a transpose, so that rows of a batch mix.
        y, loss = self.moe([x.reshape(shape[1], -1) for x in normed])
        parts = y.split(shape[0] * shape[2], dim=1)
        xs = [x + drop(part.reshape(shape)) for x, part in zip(xs, parts, strict=True)]
        stacks = zip(xs, self.fc1, self.fc2, self.pre_ffn_layer_norm, strict=True)
        return [x + drop(down(drop(F.relu(up(n(x)))))) for x, up, down, n in stacks], loss


class Transformer(nn.Module):
    """The layers, with one table of positions for all modalities."""

    def __init__(self, num, width, queries, layers):
        super().__init__()
        self.embed_positions_q_1 = nn.Embedding(queries, width, padding_idx=0)
        nn.init.normal_(self.embed_positions_q_1.weight, std=0.02)
        self.embed_positions_q = nn.ModuleList([self.embed_positions_q_1] * num)
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(num))


class Model(nn.Module):
    """`channels`: role ('ts', 'text', 'cxr', 'ecg') -> width of its values."""

    def __init__(
        self, *, channels, width=128, num_heads=8, num_queries=48, embed_time=64, depth=3,
        num_experts=16, top_k=4, hidden=512, gate="laplace", router="joint", dropout=0.1,
        utde="batch", outputs=2,
    ):  # fmt: skip
        super().__init__()
        self.fusion = next(f for f in FUSIONS if sorted(f) == sorted(channels))
        self.types = sorted(channels, key=TYPES.index)
        self.num_queries, self.dropout, self.utde = num_queries, dropout, utde
        num = len(self.fusion)
        self.linear, self.periodic = nn.Linear(1, 1), nn.Linear(1, embed_time - 1)
        self.token_type_embeddings = nn.Embedding(num, width)
        for role, size in channels.items():
            values = 2 * size if role == "ts" else size
            attention = TimeAttention(values, width, embed_time, 8, dropout)
            self.add_module(f"time_attn_{role}", attention)
        self.proj_ts = nn.Conv1d(2 * channels["ts"], width, 1, bias=False)
        self.moe = Gate(width, width if utde == "batch_seq_feature" else 1, dropout)
        unit, expert = width * num_queries, (num_experts, top_k, hidden)
        mixtures = [Mixture(unit, num, *expert, gate, router, dropout) for _ in range(depth)]
        layers = [Layer(num, width, num_heads, num_queries, dropout, m) for m in mixtures]
        self.trans_self_cross_ts_txt = Transformer(num, width, num_queries, layers)
        wide = num * width
        self.proj1, self.proj2 = nn.Linear(wide, wide), nn.Linear(wide, wide)
        self.out_layer = nn.Linear(wide, outputs)

    def forward(self, batch):
        """Logits [B, outputs] and the sum of the balance losses.

        `batch[role]`: values, mask, times and, of all but ts, missing [B]; of ts also the
        imputed grid `reg` [B, Q, 2 f]. Times are what the authors' loader gives.
        """
        embedded = {role: self._embed(role, batch[role]) for role in self.fusion}
        embedded = self._type(embedded, batch)
        net = self.trans_self_cross_ts_txt
        position = net.embed_positions_q_1(torch.arange(self.num_queries))[:, None]
        drop = lambda x: F.dropout(x, self.dropout, self.training)  # noqa: E731
        width = position.shape[-1]
        xs = [drop(math.sqrt(width) * embedded[r].transpose(0, 1) + position) for r in self.fusion]
        balance = 0.0
        for layer in net.layers:
            xs, loss = layer(xs)
            balance = balance + loss
        h = torch.cat([n(x)[-1] for x, n in zip(xs, net.layer_norm, strict=True)], 1)
        return self.out_layer(self.proj2(drop(F.relu(self.proj1(h)))) + h), balance

    def loss(self, batch):
        """Named losses; 'total' is what the authors minimise."""
        logits, balance = self(batch)
        task = F.cross_entropy(logits, batch["label"])
        return {"total": task, "task": task, "balance": balance}

    def _time(self, times):
        times = times[..., None]
        return torch.cat([self.linear(times), torch.sin(self.periodic(times))], -1)

    def _embed(self, role, stream):
        """[B, Q, D]."""
        times = torch.linspace(0, 1.0, self.num_queries, dtype=self.linear.weight.dtype)
        query = self._time(times[None])
        values, mask = stream["values"], stream["mask"]
        if role == "ts":
            values, mask = torch.cat([values, mask], -1), torch.cat([mask, mask], -1)
        else:
            mask = mask[..., None].expand_as(values)
        attend = getattr(self, f"time_attn_{role}")
        x = attend(query, self._time(stream["times"]), values, mask)
        if role != "ts":
            return x
        regular = self.proj_ts(stream["reg"].transpose(1, 2)).transpose(1, 2)
        both = torch.cat([x, regular], -1)
        g = self.moe.gate(both.max(1, keepdim=True).values if self.utde == "batch" else both)
        return g * x + (1 - g) * regular

    def _type(self, embedded, batch):
        """Adds types; with three modalities or more, what a row lacks becomes zeros."""
        table, missing_ecg = self.token_type_embeddings.weight, False
        if "ecg" in embedded:
            missing_ecg = bool(batch["ecg"]["missing"].any())
        typed = {}
        for role, x in embedded.items():
            row = 1 if role == "ecg" and missing_ecg else self.types.index(role)
            x = x + table[row]
            if role != "ts" and len(embedded) > 2:
                x = torch.where(batch[role]["missing"][:, None, None], torch.zeros_like(x), x)
            typed[role] = x
        return typed
