"""Gates against each other: on the planted task, at a ladder of expert counts, and on real data.

    python -m m4.lab --config=configs/lab_gates.py:laptop --out=runs/lab

Variants: `:tiny` (seconds, for tests), `:one` (13 arms at 16 experts), `:laptop` (E = 16, 64, 256),
`:ladder` (8 ... 16,384, for a mesh), `:physionet2012` (Flex-MoE; M4_RAW_DIR/physionet2012). The
default is `:laptop`. docs/lab.md says what the fields mean and what came out.
"""

VARIANTS = ("tiny", "one", "laptop", "ladder", "physionet2012")
GATE, EXPERTS = "method.moe.gate", "method.moe.num_experts"
GATES = ("linear", "sigmoid", "sqrt_softplus", "cosine", "perturbed_cosine", "laplace", "gaussian")
GATES += ("student_t", "polynomial", "euclidean_sigmoid", "quadratic_monomial", "noisy_linear")
MORE = ("dense_to_sparse", "relu", "quadratic", "task_additive")
NULLS = ("content_hash", "fixed_random", "hash_modality", "dense_mean")
NULLS += ("oracle_modality", "oracle_cluster")
MARGIN = dict(
    value=0.04, reason="4 % of the answer's spread: less than another learning rate makes"
)
PLANTED = dict(
    data=dict(name="m4.lab.planted", options=dict(rows=20_000)),
    method=dict(name="m4.lab.mixture:Mixture", moe=dict(gate="linear", num_experts=16, hidden=16)),
    optim=dict(name="adam", lr=0.02, schedule="cosine"),
    train=dict(steps=400, batch_size=256, log_every=40, eval_every=40, save_every=400),
    eval=dict(batch_size=3000, baselines=False, subsets=False),
)
PLANTED["train"] |= dict(select="y0/rmse", choose="last", watchdog=0, compile="some")
# Biases and noise come on top of a linear gate; of the quadratic one rank 1 is the nearest.
UNMATCHED = ("sigmoid", "euclidean_sigmoid", "noisy_linear", "quadratic_monomial", *MORE)
# Flex-MoE costs a tenth of FuseMoE here. Its own loss tells gates where to send rows: left out.
PHYSIONET2012 = dict(
    base="configs/flexmoe_physionet2012.py",
    metric="death/auroc",
    margin=dict(
        value=0.01, reason="less than two cohorts of one hospital differ by in AUROC of death"
    ),
    set={
        "method.moe.router": "top_k",
        "method.moe.hidden": 32,
        "method.aux_weights": dict(importance=0.001, load=0.001),
        "optim.ema": 0.99,
        "optim.warmup_steps": 50,
        "train.steps": 400,
        "train.log_every": 40,
        "train.eval_every": 40,
        "train.save_every": 400,
        "eval.batch_size": 660,
        "eval.subsets": False,
        "eval.baselines": False,
    },
)


def get_config(variant="laptop"):
    found = dict(base=PLANTED, axes={GATE: GATES, EXPERTS: (16, 64, 256)}, nulls=NULLS)
    found |= dict(seeds=range(6), margin=MARGIN, budget="30min", together="map")
    if variant == "tiny":
        found |= dict(axes={GATE: ("linear", "laplace"), EXPERTS: (4,)}, seeds=(0, 1))
        found |= dict(nulls=("content_hash",), set={"data.options.rows": 400, "train.steps": 8})
        found["set"] |= {"train.batch_size": 32, "train.eval_every": 4, "train.log_every": 4}
    if variant == "one":
        found |= dict(axes={GATE: GATES[:8], EXPERTS: (16,)}, seeds=range(5))
        found["nulls"] = tuple(n for n in NULLS if n != "dense_mean")
    if variant == "ladder":
        gates = tuple(name for name in GATES + MORE if name != "cosine")  # whose ranks do not match
        found |= dict(axes={GATE: gates, EXPERTS: tuple(8 * 2**n for n in range(12))})
        found |= dict(set={"data.options.rows": 400_000, "train.steps": 20_000}, budget="")
    if variant == "physionet2012":
        found |= PHYSIONET2012 | dict(nulls=NULLS[:5], budget="")
    if variant in ("tiny", "one"):  # whose gates match as they are, but for a bias
        return found
    gates = found["axes"][GATE]
    found["match"] = dict(what="router", unmatched=[name for name in UNMATCHED if name in gates])
    found["by_arm"] = dict(
        quadratic_monomial={"method.moe.rank": 1},
        polynomial={"method.moe.gate_options.power": 4.0},  # by default, 2, it is student_t
    )
    return found
