"""M4oE in PyTorch: a ViT per image, soft mixtures per modality and per task, loops over experts.

The block of the task mixture is not public; it is taken to be timm's pre-norm block.

Letters: B rows, T tokens, D width, E experts, P slots of an expert.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

VITS = ("vit_cc", "vit_mlo", "vit_2dcc", "vit_2dmlo")
HEADS = (1, 2, 7)  # of density, risk and BI-RADS


class Attention(nn.Module):
    """timm's."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = (
            heads,
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x):
        """[B, T, D] -> [B, T, D]."""
        rows, length, width = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v
        return self.proj(y.transpose(1, 2).reshape(rows, length, width))


class Expert(nn.Module):
    """Exact GELU between two affine maps."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        """[..., D] -> [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class SoftMixture(nn.Module):
    """Soft-MoE; unit tokens reach the experts. With tasks a slot of every expert is a task's."""

    def __init__(self, width, hidden, experts, tasks=0):
        super().__init__()
        self.phi = nn.Parameter(torch.randn(width, experts, max(tasks, 1)) * width**-0.5)
        self.scale = nn.Parameter(torch.ones(1))
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(experts))
        for task in range(1, tasks + 1):
            self.register_parameter(f"task_embedding{task}", nn.Parameter(torch.zeros(width)))
        self.tasks = tasks

    def forward(self, x):
        """[B, T, D] -> [B, T, D], or with tasks one such per task and the information loss."""
        x = F.normalize(x, dim=2)
        logits = torch.einsum("btd,dep->btep", x, self.scale * F.normalize(self.phi, dim=0))
        dispatch = logits.softmax(1)
        combine = logits.flatten(2).softmax(2).view(logits.shape)
        slots = torch.einsum("btd,btep->bepd", x, dispatch)
        if self.tasks:
            names = [f"task_embedding{t}" for t in range(1, self.tasks + 1)]
            slots = slots + torch.stack([getattr(self, n) for n in names])
        y = torch.stack([f(slots[:, e]) for e, f in enumerate(self.experts)], 1)
        if not self.tasks:
            return torch.einsum("bepd,btep->btd", y, combine)
        out = [torch.einsum("bed,bte->btd", y[:, :, t], combine[..., t]) for t in range(self.tasks)]
        return out, information(logits)


def information(logits):
    """Minus I(token; task) with the experts summed out, summed over rows."""
    joint = logits.flatten(1).softmax(1).view(logits.shape).sum(2)
    outer = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    return -(joint * torch.log(joint / outer + 1e-10)).sum()


class Block(nn.Module):
    """Pre-norm attention and mixture."""

    def __init__(self, width, heads, hidden, experts, tasks=0):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = Attention(width, heads)
        self.mlp = SoftMixture(width, hidden, experts, tasks)

    def forward(self, x):
        """As the mixture's."""
        x = x + self.attn(self.norm1(x))
        y = self.mlp(self.norm2(x))
        if not self.mlp.tasks:
            return x + y
        branches, loss = y
        return [x + branch for branch in branches], loss


class ViT(nn.Module):
    """transformers' ViTModel without its pooler; modules are plain containers of its names."""

    def __init__(self, *, image, patch, channels, width, depth, heads):
        super().__init__()
        tokens = 1 + (image // patch) ** 2
        self.embeddings = nn.Module()
        self.embeddings.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.embeddings.position_embeddings = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.embeddings.patch_embeddings = nn.Module()
        self.embeddings.patch_embeddings.projection = nn.Conv2d(channels, width, patch, patch)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(ViTLayer(width, heads) for _ in range(depth))
        self.layernorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x):
        """[B, c, h, w] -> [B, 1 + N, D]."""
        x = self.embeddings.patch_embeddings.projection(x).flatten(2).transpose(1, 2)
        first = self.embeddings.cls_token.expand(len(x), -1, -1)
        x = torch.cat([first, x], 1) + self.embeddings.position_embeddings
        for layer in self.encoder.layer:
            x = layer(x)
        return self.layernorm(x)


class ViTLayer(nn.Module):
    """attention.attention.{query,key,value}, attention.output.dense, intermediate, output."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.layernorm_before, self.layernorm_after = (
            nn.LayerNorm(width, eps=1e-12) for _ in range(2)
        )
        self.attention, self.intermediate, self.output = nn.Module(), nn.Module(), nn.Module()
        self.attention.attention, self.attention.output = nn.Module(), nn.Module()
        for name in ("query", "key", "value"):
            self.attention.attention.add_module(name, nn.Linear(width, width))
        self.attention.output.dense = nn.Linear(width, width)
        self.intermediate.dense = nn.Linear(width, 4 * width)
        self.output.dense = nn.Linear(4 * width, width)

    def forward(self, x):
        """[B, T, D] -> [B, T, D]."""
        rows, length, width = x.shape
        u, inner = self.layernorm_before(x), self.attention.attention
        q, k, v = (
            f(u).view(rows, length, self.heads, -1).transpose(1, 2)
            for f in (inner.query, inner.key, inner.value)
        )
        y = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v
        x = x + self.attention.output.dense(y.transpose(1, 2).reshape(rows, length, width))
        return x + self.output.dense(F.gelu(self.intermediate.dense(self.layernorm_after(x))))


class Model(nn.Module):
    """Four images; `classes` of the three tasks; `class_weights` of the focal loss."""

    def __init__(
        self, *, image=224, channels=3, patch=16, width=768, vit_depth=12, vit_heads=12,
        num_heads=8, hidden=3072, num_experts=128, modality_experts=32, fusion_experts=16,
        depth=2, fusion_depth=2, classes=(4, 2, 3), information_weight=0.05, class_weights=None,
    ):  # fmt: skip
        super().__init__()
        self.depth, self.fusion_depth = depth, fusion_depth
        self.weights, self.information_weight = class_weights, information_weight
        for name in VITS:
            vit = ViT(
                image=image, patch=patch, channels=channels, width=width, depth=vit_depth,
                heads=vit_heads,
            )  # fmt: skip
            self.add_module(name, vit)
        stack = lambda num, experts: nn.ModuleList(  # noqa: E731
            Block(width, num_heads, hidden, experts) for _ in range(num)
        )
        self.blocks = nn.ModuleList([Block(width, num_heads, hidden, num_experts, len(HEADS))])
        for m in range(1, 5):
            self.add_module(f"blocks{m}", stack(depth, modality_experts))
        self.blocks5 = stack(fusion_depth, fusion_experts)
        for t, (head, dim) in enumerate(zip(HEADS, classes, strict=True), start=1):
            self.add_module(f"norm{t}", nn.LayerNorm(width, eps=1e-6))
            self.add_module(f"proj{head}", nn.Linear(width, width))
            self.add_module(f"head{head}", nn.Linear(width, dim))

    def forward(self, batch):
        """`batch['images']`: four [B, c, h, w] -> three logits and the information loss."""
        tokens = [getattr(self, v)(x) for v, x in zip(VITS, batch["images"], strict=True)]
        single = []
        for m, x in enumerate(tokens, start=1):
            for block in getattr(self, f"blocks{m}"):
                x = block(x)
            single.append(x.mean(1))
        branches, loss = self.blocks[0](torch.cat(tokens, 1))
        logits = []
        for t, (head, h) in enumerate(zip(HEADS, branches, strict=True), start=1):
            x = torch.stack([h.mean(1), *single], 1)
            for block in self.blocks5:
                x = block(x)
            x = getattr(self, f"proj{head}")(getattr(self, f"norm{t}")(x))
            logits.append(getattr(self, f"head{head}")(x[:, 0]))
        return logits, loss

    def loss(self, batch):
        """Focal losses of the rows with every label (labels below 0 are missing), and the sum."""
        logits, info = self(batch)
        rows = torch.stack([label >= 0 for label in batch["labels"]]).all(0)
        found = {}
        for t, (y, label) in enumerate(zip(logits, batch["labels"], strict=True)):
            log = F.log_softmax(y[rows], 1).gather(1, label[rows, None])[:, 0]
            weight = 1.0 if self.weights is None else self.weights[t][label[rows]]
            found[f"task{t}"] = -((1 - log.exp().detach()) ** 2 * weight * log).mean()
        total = sum(found.values()) + self.information_weight * info
        return found | {"information": info, "total": total}
