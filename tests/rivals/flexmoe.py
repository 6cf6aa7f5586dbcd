"""Flex-MoE in PyTorch: encoders, bank, fusion layers with a loop over modalities and experts.

The authors' experts are a CUDA kernel (fastmoe); here they are a loop, as that kernel is inside.

Letters: B rows, M modalities, P tokens of a modality, D width, E experts.
"""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.rivals.common import Dispatcher, cv_squared, noisy_top_k


def combination_numbers(num):
    """Set of modalities -> its number: by decreasing size, then lexicographic."""
    sets = [s for size in range(num, 0, -1) for s in itertools.combinations(range(num), size)]
    return {frozenset(s): i for i, s in enumerate(sets)}


class PatchEmbeddings(nn.Module):
    """Features in P patches, one affine map for all."""

    def __init__(self, features, patches, width):
        super().__init__()
        self.patches, self.size = patches, math.ceil(features / patches)
        self.projection = nn.Linear(self.size, width)

    def forward(self, x):
        """[B, F] -> [B, P, D]."""
        x = F.pad(x, (0, self.patches * self.size - x.shape[1]))
        return self.projection(x.view(len(x), self.patches, self.size))


class Volume(nn.Module):
    """Six convolutions with three poolings, [B, 1, d, h, w] -> [B, D]."""

    def __init__(self, shape, width, dropout):
        super().__init__()
        self.dropout = dropout
        channels = (1, 32, 32, 64, 64, 128, width)
        for i in range(6):
            conv = nn.Conv3d(channels[i], channels[i + 1], 3, padding=1)
            self.add_module(f"conv{i + 1}", conv)
        places = math.prod(size // 2 // 3 // 4 for size in shape)
        self.fc = nn.Linear(width * places, width)

    def forward(self, x):
        """Pools by 2, 3 and 4; dropout takes whole channels."""
        for i, pool in enumerate((2, 3, 4)):
            for j in (1, 2):
                x = F.relu(getattr(self, f"conv{2 * i + j}")(x))
            x = F.dropout3d(F.max_pool3d(x, pool), self.dropout, self.training)
        return self.fc(x.flatten(1))


class Attention(nn.Module):
    """Queries apart from keys and values, none with a bias."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        """[B, T, D] -> [B, T, D]."""
        rows, length, width = x.shape
        drop = lambda x: F.dropout(x, self.dropout, self.training)  # noqa: E731
        q = self.q(x).view(rows, length, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x).view(rows, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        y = (drop(weights) @ v).transpose(1, 2).reshape(rows, length, width)
        return drop(self.proj(y))


class Router(nn.Module):
    """Two matrices, and the loss of the call."""

    def __init__(self, width, experts, k):
        super().__init__()
        self.k, self.randn = k, torch.randn
        bound = experts**-0.5
        self.w_gate = nn.Parameter(torch.empty(width, experts).uniform_(-bound, bound))
        self.w_noise = nn.Parameter(torch.empty(width, experts).uniform_(-bound, bound))

    def forward(self, x, number):
        """[N, D], combination of every token [N] -> gates [N, E] and the loss."""
        clean = x @ self.w_gate
        spread = F.softplus(x @ self.w_noise) + 0.01
        noise = self.randn(clean.shape).to(x) if self.training else None
        gates, load, scores, _ = noisy_top_k(clean, spread, self.k, noise)
        whole = number == 0
        if bool(whole.all()):
            return gates, cv_squared(gates.sum(0)) + cv_squared(load.sum(0))
        loss = F.cross_entropy(scores[~whole], number[~whole])
        loss = loss + cv_squared(gates[whole].sum(0)) + cv_squared(load[whole].sum(0))
        # As released: without the first expert, not without the best one.
        loss = loss + cv_squared(gates[~whole].sum(0)[1:]) + cv_squared(load[~whole].sum(0)[1:])
        return gates, loss


class Stacked(nn.Module):
    """fastmoe's linear map with one matrix per expert."""

    def __init__(self, experts, inputs, outputs):
        super().__init__()
        bound = (inputs * outputs) ** -0.5
        weight = torch.empty(experts, outputs, inputs).uniform_(-bound, bound)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(experts, outputs))


class Experts(nn.Module):
    """GELU perceptrons, one call each."""

    def __init__(self, experts, width, hidden):
        super().__init__()
        self.htoh4, self.h4toh = Stacked(experts, width, hidden), Stacked(experts, hidden, width)

    def forward(self, rows):
        """Rows of every expert -> the same."""
        up, down = self.htoh4, self.h4toh
        return [
            F.linear(F.gelu(F.linear(x, up.weight[e], up.bias[e])), down.weight[e], down.bias[e])
            for e, x in enumerate(rows)
        ]


class SparseMLP(nn.Module):
    """The mixture on the tokens of one modality."""

    def __init__(self, width, hidden, experts, k):
        super().__init__()
        self.gate = Router(width, experts, k)
        self.all_gates = nn.ModuleList([self.gate])
        self.experts = Experts(experts, width, hidden)

    def forward(self, x, number):
        """[B, P, D] -> [B, P, D] and the router's loss."""
        flat = x.reshape(-1, x.shape[-1])
        gates, loss = self.gate(flat, number.repeat_interleave(x.shape[1]))
        dispatcher = Dispatcher(gates)
        y = dispatcher.combine(self.experts(dispatcher.dispatch(flat)), logs=False)
        return y.view(x.shape), loss


class MLP(nn.Module):
    """`network` = affine, GELU, dropout, affine, as numbered by the authors."""

    def __init__(self, width, hidden, dropout):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )

    def forward(self, x, number):
        """[B, P, D] -> [B, P, D], no loss."""
        return self.network(x), 0.0


class Layer(nn.Module):
    """a + drop(a) of the attention (no residual of the input), then experts or an MLP."""

    def __init__(self, width, heads, dropout, mlp):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp, self.dropout = Attention(width, heads, dropout), mlp, dropout

    def forward(self, blocks, number):
        """List of [B, P, D] -> the same and the losses' sum."""
        drop = lambda x: F.dropout(x, self.dropout, self.training)  # noqa: E731
        a = self.attn(self.norm1(torch.cat(blocks, 1)))
        h, out, total = a + drop(a), [], 0.0
        for part in h.split([x.shape[1] for x in blocks], dim=1):
            y, loss = self.mlp(self.norm2(part), number)
            out.append(part + drop(y))
            total = total + loss
        return out, total


class Head(nn.Module):
    """Affine."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(inputs, outputs))


class Fusion(nn.Module):
    """Positions, layers and head."""

    def __init__(self, num, patches, width, heads, depth, hidden, experts, k, classes, dropout):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, num * patches, width))
        make = lambda i: (  # noqa: E731
            MLP(width, hidden, dropout) if i % 2 else SparseMLP(width, hidden, experts, k)
        )
        layers = [Layer(width, heads, dropout, make(i)) for i in range(depth)]
        self.network = nn.ModuleList([*layers, Head(num * width, classes)])

    def forward(self, blocks, number):
        """List of [B, P, D] -> logits and the routers' losses."""
        sizes = [x.shape[1] for x in blocks]
        blocks = (torch.cat(blocks, 1) + self.pos_embed).split(sizes, dim=1)
        total = 0.0
        for layer in self.network[:-1]:
            blocks, loss = layer(blocks, number)
            total = total + loss
        h = torch.cat([x.mean(1) for x in blocks], 1)
        return self.network[-1].network(h), total


class Model(nn.Module):
    """`features`: name -> number of features of a table, or the shape of a volume."""

    def __init__(
        self, *, features, width=128, num_heads=4, num_patches=16, depth=1, hidden=256,
        num_experts=16, top_k=4, classes=3, dropout=0.5, volume_dropout=0.2,
        router_weight=0.01,
    ):  # fmt: skip
        super().__init__()
        self.names, self.router_weight = list(features), router_weight
        num = len(features)
        self.numbers = combination_numbers(num)
        cells = torch.randn(2**num - 1, num, num_patches, width)
        self.missing_embeds = nn.Parameter(cells)
        self.fusion_model = Fusion(
            num, num_patches, width, num_heads, depth, hidden, num_experts, top_k, classes, dropout
        )
        encoders = {}
        for name, size in features.items():
            volume = not isinstance(size, int)
            patches = PatchEmbeddings(width if volume else size, num_patches, width)
            if volume:
                patches = nn.Sequential(Volume(size, width, volume_dropout), patches)
            encoders[name] = patches
        self.encoder_dict = nn.ModuleDict(encoders)

    def forward(self, batch):
        """`batch`: features by name, and `present` bool[B, M] -> logits and routers' losses."""
        present = batch["present"]
        number = torch.tensor(
            [self.numbers[frozenset(i for i, p in enumerate(row) if p)] for row in present.tolist()]
        )
        blocks = []
        for m, name in enumerate(self.names):
            block = self.missing_embeds[number, m].clone()
            here = present[:, m]
            if bool(here.any()):
                block[here] = self.encoder_dict[name](batch[name][here])
            blocks.append(block)
        return self.fusion_model(blocks, number)

    def loss(self, batch):
        """Named losses; 'total' is minimised."""
        logits, router = self(batch)
        task = F.cross_entropy(logits, batch["label"])
        return {"total": task + self.router_weight * router, "task": task, "router": router}
