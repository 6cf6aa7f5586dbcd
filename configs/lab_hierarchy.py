"""One level of gates against two (HMoE, arXiv 2410.02935) on the toy of the four quarters.

    python -m m4.lab --config=configs/lab_hierarchy.py --out=runs/hierarchy

`softmax` and `laplace` choose 2 of 8 experts; `softmax, laplace` chooses 1 of 4 groups by a softmax
gate and 2 of its 2 experts by a Laplace gate, and so on. 20 seeds, as the authors have; `:tiny` has
two and a few steps. Softmax gates are `linear` scores under the router's softmax.
"""

VARIANTS = ("tiny",)
MOE = "method.moe"
SCORES = {"softmax": "linear", "laplace": "laplace"}


def level(gate):
    return {"called": gate, f"{MOE}.gate": SCORES[gate]}


def levels(outer, inner):
    two = {f"{MOE}.router": "hierarchical", f"{MOE}.num_groups": 4}
    return level(inner) | two | {"called": f"{outer}, {inner}", f"{MOE}.outer_gate": SCORES[outer]}


def get_config(variant=""):
    base = dict(
        data=dict(name="m4.lab.quadrants", options=dict(rows=4000)),
        method=dict(name="m4.lab.mixture:Mixture", moe=dict(num_experts=8, top_k=2, hidden=8)),
        optim=dict(name="adam", lr=0.02, schedule="cosine"),
        train=dict(steps=1000, batch_size=128, log_every=100, eval_every=100, save_every=1000),
        eval=dict(batch_size=1000, baselines=False, subsets=False),
    )
    base["train"] |= dict(select="y/rmse", choose="last", watchdog=0, compile="some")
    arms = [level("softmax"), level("laplace")]
    arms += [levels(outer, inner) for outer in SCORES for inner in SCORES]
    found = dict(base=base, axes={"levels": tuple(arms)}, compare="levels", reference="softmax")
    found |= dict(nulls=("fixed_random", "oracle_cluster"), seeds=range(20), together="map")
    found |= dict(margin=dict(value=0.02, reason="a fifth of the noise of an answer"))
    if variant == "tiny":
        found |= dict(seeds=(0, 1), nulls=(), axes={"levels": (arms[0], arms[3])})
        found |= dict(set={"data.options.rows": 200, "train.steps": 4, "train.eval_every": 2})
        found["set"] |= {"train.compile": "little", "eval.batch_size": 50}
        found["set"] |= {"train.batch_size": 32}
    return found
