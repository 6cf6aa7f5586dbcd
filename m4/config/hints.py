"""What somebody may have meant by a name that is not known."""

import difflib
from collections.abc import Iterable

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
    "method.num_experts": "experts n_experts num_expert expert_num",
    "method.top_k": "k topk num_experts_per_tok",
    "method.width": "hidden_size d_model hidden_dim embed_dim dim model_dim",
    "method.depth": "layers num_layers n_layers",
    "method.heads": "num_heads n_heads nhead",
    "data.name": "dataset dataset_name",
    "data.raw_dir": "raw raw_path data_path root path",
    "data.dir": "data_dir cache_dir",
    "mesh.data": "dp data_parallel",
    "mesh.expert": "ep expert_parallel",
    "mesh.tensor": "tp tensor_parallel",
}
SECTIONS = {"model": "method", "optimizer": "optim", "optimiser": "optim", "dataset": "data"}
SECTIONS |= {"training": "train", "evaluation": "eval", "trainer": "train", "parallel": "mesh"}


def alias(name: str) -> str | None:
    """The field that `name` is an everyday word for."""
    return next((f for f, words in ALIASES.items() if name.lower() in words.split()), None)


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """`"; did you mean x?"`, or an empty string when nothing is near."""
    close = difflib.get_close_matches(word.lower(), known, n=2, cutoff=0.6)
    # "learning_rate" -> "lr": initials and prefixes that edit distance does not see.
    initials = "".join(part[:1] for part in word.split("_"))
    close += [k for k in known if k not in close and k in (initials, word.split("_")[0])]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def unknown(path: str, fields: Iterable[str]) -> str:
    """The message about a path that is none of `fields`."""
    section, _, name = path.rpartition(".")
    siblings = [f.rpartition(".")[2] for f in fields if f.rpartition(".")[0] == section]
    meant = alias(name)
    elsewhere = [f for f in fields if f.rpartition(".")[2] == name or f == meant]
    if not siblings and not elsewhere:
        known = sorted({f.partition(".")[0] for f in fields if "." in f})
        head = path.partition(".")[0]
        also = SECTIONS.get(head)
        hint = f"; did you mean {also}?" if also else nearest(head, known)
        return f"{path}: no such section; sections: {', '.join(known)}{hint}"
    hint = nearest(name, siblings)
    typo = difflib.get_close_matches(name, siblings, cutoff=0.85)
    if elsewhere and not typo and (meant in elsewhere or not hint):
        hint = f"; did you mean {' or '.join(elsewhere)}?"
    listed = "" if hint else f"; {section or 'the top level'} has: {', '.join(sorted(siblings))}"
    return f"{path}: no such field{hint or listed}"
