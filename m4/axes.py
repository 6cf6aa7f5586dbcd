"""Names of dimensions, and the mesh axes on which they lie: the one table.

Mesh axes: `data` replicates parameters, `fsdp` splits them, `expert` splits experts, `tensor`
splits hidden units, heads and vocabularies. Rows of a batch are split over data x fsdp x expert.

A parameter's names are those that its module gives it (`nn.with_logical_partitioning`), else those
of `PARAMETERS`, by its place in the tree: so modules from outside have some, too. An activation has
those of `m4.maths.lie`.
"""

AXES = ("data", "fsdp", "expert", "tensor")
ROWS = ("data", "fsdp", "expert")
# Name of a dimension -> mesh axes, of parameters and activations alike. An axis splits one
# dimension of an array: where experts lie on `expert`, their `embed` lies on `fsdp` alone.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("batch", ROWS),
    ("expert", ("expert",)),
    ("embed", ("fsdp", "expert")),  # the model's width: whole where it is used
    ("mlp", ("tensor",)),  # hidden units
    ("heads", ("tensor",)),  # of attention
    ("vocab", ("tensor",)),  # rows of a table of embeddings
)
# Last parts of a parameter's path, as a pattern -> names of its last dimensions; the first that
# fits counts. Between two products hidden units are split: columns first, then rows.
PARAMETERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(qkv|query|key|value)/kernel", ("embed", "heads")),
    (r"attention[^/]*/out/kernel", ("heads", "embed")),
    (r"(down|out|project|gate_out)/kernel", ("mlp", "embed")),
    (r"kernel", ("embed", "mlp")),
    (r"embed[^/]*/embedding|word/embedding", ("vocab", "embed")),
)
LAYERS = "layers"  # ends the name of a module whose arrays have a leading dimension of layers
SPLIT_SIZE = 2**12  # numbers; smaller parameters are whole on every device
