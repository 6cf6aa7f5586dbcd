"""What the shipped configurations share: each states only how it differs.

A function returns a ConfigDict, which a configuration may change; what is not set is a default of
`m4.config.rules` or of the method. A configuration file can `import common`, which lies beside it.
"""

import ml_collections

TASKS = ("ihm48", "los", "los_under_96h")  # without 25 phenotypes, whose 50 references take minutes
SMALL = dict(notes=16, cxr=16, ecg=16)  # widths of the generated embeddings
FUSEMOE = dict(moe=dict(share="joint", num_experts=8, top_k=2), num_queries=4)  # not of MIMIC-IV
FLEXMOE = dict(moe=dict(num_experts=8, top_k=2, hidden=128), width=64)
FLEXMOE |= dict(aux_weights=dict(router=0.001, importance=0.001, load=0.001))
FLEXCARE = dict(moe=dict(num_experts=8, top_k=2, hidden=64), width=64, mlp=128, num_heads=4)
FLEXCARE |= dict(aux_weights=dict(covariance=0.01, importance=0.01, load=0.01), depth=1, max_size=1)
M3H = dict(width=32, task_width=64, task_weighting="uniform")
M4OE = dict(moe=dict(num_experts=8, hidden=64), width=32, modality_experts=2, timed="summary")
M4OE |= dict(aux_weights=dict(information=0.01))
MODELS = dict(fusemoe=FUSEMOE, flexmoe=FLEXMOE, flexcare=FLEXCARE, m3h=M3H, m4oe=M4OE)
TINY = dict(  # what `tiny` makes of a method
    fusemoe=dict(moe=dict(num_experts=4, top_k=2)),
    flexmoe=dict(moe=dict(num_experts=4, top_k=2, hidden=16), width=16),
    flexcare=dict(moe=dict(num_experts=4, hidden=16), width=16, mlp=16),
    m3h=dict(width=8, task_width=8),
    m4oe=dict(moe=dict(num_experts=4, hidden=16), width=16, modality_experts=2, vit_depth=1),
)
TINY["m4oe"] |= dict(fusion_experts=2)


def experiment(data, options, method, optim, steps, every, *, batch=64, log=25, rows=256, **train):
    """A run of `steps`, evaluated and saved every so many, with batches of `batch` and `rows`."""
    train |= dict(steps=steps, batch_size=batch, log_every=log, eval_every=every, save_every=every)
    config = dict(data=dict(name=data, options=options), method=method, optim=optim, train=train)
    return ml_collections.ConfigDict(config | dict(eval=dict(batch_size=rows)))


def adamw(lr=1e-3, *, weight_decay, warmup_steps=100, ema=0.0):
    """AdamW with a cosine schedule, gradients clipped at norm 1."""
    found = dict(name="adamw", schedule="cosine", clip_norm=1.0)
    return found | dict(lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps, ema=ema)


def tiny(config, *, options=None, rows=None, baselines=False, subsets=False, **method):
    """Six steps of a small model, evaluated once: sizes in `TINY`, or in `method`."""
    config.data.options.update(options or {})
    config.method.update(TINY[config.method.name])
    config.method.update(method)
    config.train.update(steps=6, batch_size=8, log_every=2, eval_every=3, save_every=3)
    config.optim.warmup_steps = min(2, config.optim.get("warmup_steps", 0))
    config.eval.update(bootstrap=20, batch_size=rows or config.eval.batch_size)
    config.eval.update(subsets=subsets, baselines=baselines)
    return config


def physionet2012(name, variant="", **train):
    """Train on set A, test on set B.

    5 % of A (about 30 deaths) is set aside to watch the run, too few to choose a step by, so the
    last one is evaluated. Steps and dropout were chosen for FuseMoE, by cross-validation on A.
    """
    optim, method = adamw(weight_decay=1.0, ema=0.995), dict(name=name, dropout=0.4, **MODELS[name])
    train |= dict(select="death/auroc", choose="last", modality_dropout=0.15)
    train |= dict(task_weights=dict(los=0.3, los_over_7d=0.3, sofa7=0.3))
    config = experiment("physionet2012", dict(val_fraction=0.05), method, optim, 950, 190, **train)
    return tiny(config) if variant else config


def eicu_demo(name, variant="", **train):
    """The part of the eICU demo at hand as MEDS: 854 stays, 72 deaths, five folds by patient.

    `m4/data/sets/declared/eicu_demo.toml` says what is read; `data.options.split=meds` keeps the
    published split instead. Nothing was tuned on the stays, and the last step is evaluated.
    """
    optim = adamw(weight_decay=1.0, warmup_steps=30, ema=0.98)
    method = dict(name=name, dropout=0.4, **MODELS[name])
    options = dict(file="eicu_demo", fold=0, num_folds=5)
    train |= dict(select="hospital_mortality/auroc", choose="last", modality_dropout=0.15)
    config = experiment("meds", options, method, optim, 240, 60, log=20, **train)
    config.train.save_every = 120
    return tiny(config) if variant else config


def support2(method, **train):
    """9,105 adults, eight tables that go missing together; one of five folds is tested.

    Without other models' scores and physicians' estimates. `data.options.fold` is 0 to 4.
    """
    optim, options = adamw(weight_decay=0.1, ema=0.998), dict(fold=0, val_fraction=0.1)
    train |= dict(select="hospital_death/auroc", choose="last", modality_dropout=0.05)
    train |= dict(task_weights=dict(function=0.3, los=0.3, charges=0.3, survival=0.3))
    return experiment("support2", options, method, optim, 2000, 400, batch=128, log=50, **train)


def mimic(method, **train):
    """MIMIC-IV, which was not run here yet."""
    optim, train = adamw(weight_decay=0.01, ema=0.999), train | dict(select="ihm48/auroc")
    return experiment("mimiciv", {}, method, optim, 10_000, 1000, log=50, **train)


def of_mimic(config, variant, **sizes):
    """`:demo`, `:synthetic` and `:tiny` of a configuration for MIMIC-IV."""
    if variant == "demo":
        return demo(config)
    if variant == "synthetic":
        return synthetic(config, dims=SMALL, tasks=TASKS)
    if variant == "next_test":
        config.update(method=FUSEMOE, eval=dict(baselines=False, subsets="all"), optim=dict(ema=0))
        return synthetic(config, planted="next_test", dims=SMALL, steps=16, num_patients=4000)
    if variant == "tiny":
        toy_cohort(config, SMALL)
        return tiny(config, rows=16, subsets=True, **sizes)
    return config


def demo(config, **options):
    """The same on the 100 patients of MIMIC-IV's demo."""
    config.data.options.update(options, demo=True)
    return shorten(config, steps=200, batch=16)


def synthetic(config, **options):
    """The same on the generated cohort, whose truth is known."""
    config.data.update(name="synthetic", options=dict(num_patients=3000) | options)
    return shorten(config, steps=300, batch=64)


def toy_cohort(config, dims):
    """The same on 120 generated patients with short series."""
    config.data.name = "synthetic"
    config.data.options.update(num_patients=120, steps=8, lab_steps=4, vocab=16, dims=dims)


def shorten(config, *, steps, batch):
    """Fewer steps, evaluated every quarter of them."""
    config.train.update(steps=steps, batch_size=batch, log_every=20)
    config.train.update(eval_every=steps // 4, save_every=steps // 4)
    config.optim.warmup_steps, config.eval.batch_size = steps // 20, 128
    return config


def pictures(name, options, *, patch, select):
    """M4oE, small, on small images that are not clinical."""
    method = dict(name="m4oe", patch=patch, width=32, moe=dict(num_experts=16, hidden=64))
    optim = adamw(weight_decay=0.05, warmup_steps=30, ema=0.99)
    config = experiment(name, options, method, optim, 400, 100, rows=128, select=select)
    config.eval.baselines = False
    return config


def published_m4oe(layout, variant="", *, select, **small):
    """M4oE's published sizes on images, 2.3 billion parameters; that was never run here."""
    method = dict(name="m4oe", fidelity="paper", moe=dict(num_experts=128, hidden=3072), width=768)
    method |= dict(num_heads=8, vit_depth=12, vit_heads=12, patch=16, dropout=0.0, depth=2)
    method |= dict(fusion_depth=2, modality_experts=32, fusion_experts=16)
    optim, options = adamw(5e-5, weight_decay=5e-5, warmup_steps=0), dict(layout=layout)
    config = experiment("imaging", options, method, optim, 10_000, 1000, log=50, rows=64)
    config.train.select, config.eval.baselines = select, False
    return tiny_published_m4oe(config, **small) if variant == "tiny" else config


def tiny_published_m4oe(config, **method):
    """`tiny` with images of 32 x 32."""
    method |= dict(num_heads=2, vit_heads=2, depth=1, fusion_depth=1)
    return tiny(config, options=dict(size=32), rows=8, **method)
