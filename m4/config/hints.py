"""What somebody may have meant by a name that is not known."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What the same thing is called elsewhere, for the hint about an unknown field.
ALIASES = {
    "optim.lr": "learning_rate learningrate base_lr initial_lr eta",
    "optim.name": "optimizer optimiser opt",
    "optim.schedule": "scheduler lr_schedule lr_scheduler",
    "optim.warmup_steps": "warmup num_warmup_steps warm_up_steps warmup_iters",
    "optim.weight_decay": "wd l2 decay",
    "optim.clip_norm": "grad_clip gradient_clip clip max_grad_norm grad_clip_norm",
    "optim.b1": "beta1 momentum",
    "optim.b2": "beta2",
    "optim.eps": "epsilon",
    "optim.ema": "ema_decay ema_rate",
    "train.steps": "epochs num_epochs max_epochs max_steps num_steps iterations num_train_steps",
    "train.batch_size": "batch batchsize bs train_batch_size global_batch_size",
    "train.eval_every": "eval_steps eval_interval",
    "train.log_every": "log_steps log_interval",
    "train.save_every": "save_steps checkpoint_every ckpt_every save_interval",
    "train.select": "metric monitor best_metric",
    "method.name": "model model_name arch architecture",
    "method.moe.gate": "gating gate_function score_func scoring",
    "method.moe.router": "routing router_type",
    "method.moe.share": "sharing router gate_sharing",
    "method.moe.num_experts": "experts n_experts num_expert expert_num",
    "method.moe.top_k": "k topk num_experts_per_tok",
    "method.moe.hidden": "expert_hidden ffn_dim intermediate_size",
    "method.moe.engine": "dispatch dispatcher strategy",
    "method.moe.capacity": "capacity_factor",
    "method.moe.replicas": "num_replicas",
    "method.moe.num_shared": "shared_experts n_shared_experts num_shared_experts",
    "method.moe.router_options": "routing_options",
    "method.aux_weights": "aux_loss_weight balance losses aux_losses",
    "method.width": "hidden_size d_model hidden_dim embed_dim dim model_dim",
    "method.depth": "layers num_layers n_layers",
    "method.num_heads": "heads n_heads nhead",
    "data.name": "dataset dataset_name",
    "data.raw_dir": "raw raw_path data_path root path",
    "data.dir": "data_dir cache_dir",
    "mesh.data": "dp data_parallel",
    "mesh.expert": "ep expert_parallel",
    "mesh.tensor": "tp tensor_parallel",
}
SECTIONS = {"model": "method", "optimizer": "optim", "optimiser": "optim", "dataset": "data"}
SECTIONS |= {"training": "train", "evaluation": "eval", "trainer": "train", "parallel": "mesh"}

# What the same choice is called elsewhere; where it is no choice of a field, it is none here.
VALUES = {
    "linear": "softmax dot dot_product dense learned",
    "noisy_linear": "noisy noisy_gate",
    "laplace": "laplacian",
    "gaussian": "rbf normal",
    "top_k": "topk top-k",
    "noisy_top_k": "noisy_gating",
    "expert_choice": "ec",
    "loss_free": "aux_free bias deepseek",
    "soft": "softmoe soft_moe",
    "bfloat16": "bf16",
    "float32": "fp32 full single",
    "adamw": "adam_w fused_adamw",
    "cosine": "cosine_decay warmup_cosine cos",
    "constant": "none const",
    "m4": "ours default",
    "released": "original official authors code",
    "importance": "cv load_balance balance",
    "z": "z_loss zloss router_z",
}
# What is not the same, but nearest to it.
NEAR = {
    "top_k": "top1 top2 sparse switch gshard",
    "bfloat16": "half mixed fp16 float16 amp",
    "adamw": "rmsprop adagrad lamb",
    "constant": "step",
}


def nearest(word: str, known: Sequence[str]) -> str:
    """`"; did you mean x?"`, or an empty string when nothing is near."""
    same = [k for k, words in VALUES.items() if k in known and word.lower() in words.split()]
    if same:
        return f"; {word} is called {' or '.join(same)} here"
    close = [k for k, words in NEAR.items() if k in known and word.lower() in words.split()]
    close += difflib.get_close_matches(word.lower(), [*dict.fromkeys(known)], n=2, cutoff=0.6)
    # "learning_rate" -> "lr": initials and prefixes that edit distance does not see.
    initials = "".join(part[:1] for part in word.split("_"))
    close += [k for k in known if k in (initials, word.split("_")[0])]
    if close:
        return f"; did you mean {' or '.join(dict.fromkeys(close))}?"
    others = {w: k for k, words in VALUES.items() if k in known for w in words.split()}
    meant = difflib.get_close_matches(word.lower(), others, n=1, cutoff=0.8)
    return f"; did you mean {meant[0]}, which is called {others[meant[0]]} here?" if meant else ""


def unknown(path: str, fields: Iterable[str]) -> str:
    """The message about a path that is none of `fields`."""
    section, _, name = path.rpartition(".")
    names = {field: field.rpartition(".")[2] for field in fields}
    siblings = [names[f] for f in names if f.rpartition(".")[0] == section]
    meant = {field for field, words in ALIASES.items() if name.lower() in words.split()}
    elsewhere = [field for field in names if names[field] == name or field in meant]
    inside = sorted(
        {f[len(path) + 1 :].partition(".")[0] for f in names if f.startswith(f"{path}.")}
    )
    if inside:
        hint = f"; did you mean --set {path}.name=...?" if "name" in inside else ""
        return f"{path}: no such field, but a section; it has: {', '.join(inside)}{hint}"
    if section in names and not siblings:
        return f"{path}: no such field; {section} is a value"
    if (
        not siblings
        and not elsewhere
        and any(f.startswith(f"{section.rpartition('.')[0]}.") for f in names)
    ):
        return unknown(section, names).replace("field", "section", 1)
    if not siblings and not elsewhere:
        known = sorted({f.partition(".")[0] for f in names if "." in f})
        head = path.partition(".")[0]
        also = SECTIONS.get(head)
        hint = f"; did you mean {also}?" if also else nearest(head, known)
        return f"{path}: no such section; sections: {', '.join(known)}{hint}"
    hint = nearest(name, siblings)
    if elsewhere and not difflib.get_close_matches(name, siblings, cutoff=0.85):
        hint = f"; did you mean {' or '.join(elsewhere)}?"
    if not hint:  # a misspelt name of another section
        near = difflib.get_close_matches(name, [*names.values()], n=1, cutoff=0.8)
        there = [field for field in names if names[field] in near]
        hint = f"; did you mean {' or '.join(there)}?" if there else ""
    listed = "" if hint else f"; {section or 'the top level'} has: {', '.join(sorted(siblings))}"
    return f"{path}: no such field{hint or listed}"


def alias(name: str) -> str:
    """The field that others call so, '' for none: for `--lr=0.1` and the like."""
    word = name.lower().replace("-", "_")
    found = [f for f, words in ALIASES.items() if f.rpartition(".")[2] == word]
    found += [f for f, words in ALIASES.items() if word in words.split() and f not in found]
    return "seed" if word == "seed" else found[0] if found else ""


def twin(source: str, method: str, shipped: Sequence[str]) -> list[str]:
    """The configuration that is shipped for another method on the data of `source`, if one is."""
    stem = source.partition(":")[0].rpartition("/")[2].removesuffix(".py")
    names = f"{method}_{stem.partition('_')[2]}.py", f"{method}_{stem}.py"
    return [path for path in shipped if path.rpartition("/")[2] in names]


def switched(
    key: str, old: str, new: str, *, source: str, stray: Sequence[str], shipped: Sequence[str]
) -> str:
    """The message about another method or data set than the one that a configuration is made for.

    `stray` are fields that it sets and `new` hasn't, `shipped` the names of all configurations.
    """
    some = ", ".join(stray[:2]) + (f" and {len(stray) - 2} more" if len(stray) > 2 else "")
    stems = {path.rpartition("/")[2].removesuffix(".py"): path for path in shipped}
    same = twin(source, new, shipped)
    fits = same or [path for stem, path in stems.items() if new in stem.split("_", 1)]
    take = f"; take --config={' or '.join(fits[:3])}" if fits else ""
    return f"{key}={new}: {source} is made for {old} and sets {some}, which {new} hasn't{take}"


def elsewhere(path: str, value: Any, choices: Mapping[str, Sequence[str]]) -> str:
    """The hint about a value that other fields of the same section have among their choices."""
    section = path.rpartition(".")[0]
    meant = {value} | {k for k, words in VALUES.items() if str(value).lower() in words.split()}
    inside = {f: [*meant & {*k}] for f, k in choices.items() if f.rpartition(".")[0] == section}
    fits = [f"{field}={found[0]}" for field, found in inside.items() if found and field != path]
    return f"; did you mean {' or '.join(fits)}?" if fits else ""
