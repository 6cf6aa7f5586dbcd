"""Gates in a small vision transformer on CIFAR-10, as FuseMoE compares them (V-MoE's layer).

    M4_RAW_DIR=... python -m m4.lab --config=configs/lab_cifar10.py --out=runs/cifar10

RAW/cifar-10-batches-bin is CIFAR-10's binary version, which you bring (`m4/lab/cifar10.py`). A
transformer of four layers on patches of 4 x 4 pixels, trained from nothing for 20 epochs without
augmentation: a comparison of gates, not a record. `:tiny` has one layer and four steps; it was run
on generated files alone, and the study itself was not.
"""

VARIANTS = ("tiny",)
GATE = "method.moe.gate"
GATES = ("linear", "laplace", "gaussian", "cosine", "sigmoid")


def get_config(variant=""):
    base = dict(
        data=dict(name="m4.lab.cifar10"),
        method=dict(name="m4.lab.vision:VisionMoE", aux_weights=dict(importance=0.01)),
        optim=dict(name="adamw", lr=1e-3, schedule="cosine", warmup_steps=500, weight_decay=0.05),
        train=dict(steps=7030, batch_size=128, log_every=100, eval_every=703, save_every=7030),
        eval=dict(batch_size=500, baselines=False, subsets=False),
    )
    base["train"] |= dict(select="label/accuracy", choose="last", watchdog=0)
    found = dict(base=base, axes={GATE: GATES}, nulls=("content_hash", "fixed_random"))
    reason = "half a point of accuracy is less than another seed makes"
    found |= dict(margin=dict(value=0.005, reason=reason))
    if variant == "tiny":
        found |= dict(axes={GATE: GATES[:2]}, seeds=(0, 1), nulls=())
        small = dict(depth=1, width=16, num_heads=2)
        found["set"] = {f"method.{k}": v for k, v in small.items()}
        found["set"] |= {"method.moe.num_experts": 4, "method.moe.hidden": 16, "train.steps": 4}
        found["set"] |= {"train.batch_size": 16, "train.eval_every": 2, "eval.batch_size": 20}
        found["set"] |= {"optim.warmup_steps": 0, "method.patch": 8}
    return found
