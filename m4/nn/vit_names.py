"""What libraries call the parts of a ViT (`m4.nn.encoders.vit`)."""

import dataclasses

# Path of a module -> its names, which lie side by side in m4, and the shape of their weights, of
# one dimension in a norm.
Modules = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class Names:
    """What a library calls the parts of a ViT; those of a block follow `block.<i>.`."""

    class_token: str
    position: str
    patch: str
    norm: str
    block: str
    qkv: tuple[str, ...]
    out: str
    norms: tuple[str, str]
    up: str
    down: str
    epsilon: float  # of its layer norms


SAVED = Names(  # transformers, as it saves files
    class_token="embeddings.cls_token",
    position="embeddings.position_embeddings",
    patch="embeddings.patch_embeddings.projection",
    norm="layernorm",
    block="encoder.layer",
    qkv=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    out="attention.output.dense",
    norms=("layernorm_before", "layernorm_after"),
    up="intermediate.dense",
    down="output.dense",
    epsilon=1e-12,
)
MEMORY = dataclasses.replace(  # its state dict since release 5
    SAVED,
    block="layers",
    qkv=tuple(f"attention.{part}_proj" for part in "qkv"),
    out="attention.o_proj",
    up="mlp.fc1",
    down="mlp.fc2",
)
TIMM = Names(
    class_token="cls_token",
    position="pos_embed",
    patch="patch_embed.proj",
    norm="norm",
    block="blocks",
    qkv=("attn.qkv",),
    out="attn.proj",
    norms=("norm1", "norm2"),
    up="mlp.fc1",
    down="mlp.fc2",
    epsilon=1e-6,
)
LIBRARIES = (SAVED, MEMORY, TIMM)


def modules(names: Names, depth: int, width: int, hidden: int) -> Modules:
    """All modules of `ViT` but the patches'."""
    norm, square = (width,), (width, width)
    found: Modules = {"norm": ((names.norm,), norm)}
    for i in range(depth):
        at = f"{names.block}.{i}."
        qkv = tuple(at + part for part in names.qkv)
        found |= {
            f"attention_{i}/norm": ((at + names.norms[0],), norm),
            f"attention_{i}/attention/qkv": (qkv, (3 * width // len(qkv), width)),
            f"attention_{i}/attention/out": ((at + names.out,), square),
            f"mlp_{i}/norm": ((at + names.norms[1],), norm),
            f"mlp_{i}/mlp/up": ((at + names.up,), (hidden, width)),
            f"mlp_{i}/mlp/down": ((at + names.down,), (width, hidden)),
        }
    return found
