"""How the experts are used: balance, and what they know about modality and outcome.

Letters: E experts, G groups (modalities, outcomes, ...), R rows, M modalities, N assignments.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from m4.eval.bootstrap import number
from m4.eval.predictions import LayerRouting, Predictions
from m4.eval.subsets import describe as pattern_name
from m4.eval.subsets import patterns
from m4.evenness import evenness
from m4.specs import DataSpec, TaskSpec

PERMUTATIONS = 200
MAX_NULL_CELLS = 2_000_000  # rows x modalities x experts used for the permutation null
MAX_EXPERTS_SHOWN = 64
MAX_GROUPS = 8


def balance(load_E: np.ndarray) -> dict[str, float]:
    """`m4.evenness` of a load vector, and its entropy / ln E; NaN where nothing was routed."""
    load_E = np.asarray(load_E, np.float64)
    evened = evenness(load_E if load_E.sum() else np.ones_like(load_E))
    evened["entropy"] = entropy(load_E) / np.log(load_E.size) if load_E.size > 1 else 1.0
    return {name: float(value if load_E.sum() else np.nan) for name, value in evened.items()}


def entropy(count: np.ndarray) -> float:
    """Plug-in entropy of counts in nats."""
    p = np.ravel(count)[np.ravel(count) > 0] / np.sum(count)
    return float(-(p * np.log(p)).sum())


def mutual_information(count_GE: np.ndarray) -> tuple[float, float]:
    """I(group; expert) in nats: plug-in, and with the Miller-Madow correction.

    The plug-in estimate is too large by about (G - 1)(E - 1) / 2N. Miller and Madow add
    (non-empty cells - 1) / 2N to each of the three entropies of I = H(G) + H(E) - H(G, E).
    """
    total = count_GE.sum()
    if not total:
        return float("nan"), float("nan")
    g, e = count_GE.sum(axis=1), count_GE.sum(axis=0)
    plain = entropy(g) + entropy(e) - entropy(count_GE)
    cells = (g > 0).sum() + (e > 0).sum() - (count_GE > 0).sum() - 1
    return plain, plain + float(cells) / (2 * total)


def shuffled_modalities(
    by_row_RME: np.ndarray, present_RM: np.ndarray, rng: np.random.Generator, draws: int
) -> Iterator[np.ndarray]:
    """Counts [M, E] with the modality labels exchanged within every row.

    A row's tokens of one modality move together, so their dependence stays; the null says that it
    does not matter to the router which of a patient's modalities a token came from.
    """
    own_RM = np.argsort(~present_RM, axis=1, kind="stable")  # present modalities, then absent
    for _ in range(draws):
        key_RM = np.where(present_RM, rng.random(present_RM.shape), 2.0)
        other_RM = np.argsort(key_RM, axis=1, kind="stable")
        source_RM = np.empty_like(own_RM)
        np.put_along_axis(source_RM, own_RM, other_RM, axis=1)
        yield np.take_along_axis(by_row_RME, source_RM[:, :, None], axis=1).sum(axis=0)


def shuffled_rows(
    by_row_RE: np.ndarray, group_R: np.ndarray, rng: np.random.Generator, draws: int
) -> Iterator[np.ndarray]:
    """Counts [G, E] with the group labels exchanged between rows."""
    hot_GR = np.eye(group_R.max() + 1)[group_R].T
    for _ in range(draws):
        yield hot_GR[:, rng.permutation(len(group_R))] @ by_row_RE


def information(count_GE: np.ndarray, null: Iterator[np.ndarray]) -> dict[str, float | None]:
    """Mutual information with its permutation null.

    `p` is (1 + #{null >= observed}) / (1 + draws); `excess` = plug-in - mean of the null, which
    removes the bias whatever the dependence of the tokens; `share` = excess / H(group).
    """
    plain, corrected = mutual_information(count_GE)
    values = np.array([mutual_information(counts)[0] for counts in null])
    # the null includes the identity up to rounding: compare with a tolerance
    p = (1 + (values >= plain - 1e-9).sum()) / (1 + len(values))
    spread = entropy(count_GE.sum(axis=1)) if count_GE.sum() else 0.0
    excess = plain - values.mean()
    return {
        "plugin": number(plain),
        "miller_madow": number(corrected),
        "null": number(values.mean()),
        "excess": number(excess),
        "share": number(excess / spread) if spread > 0 else None,
        "p": number(p),
    }


def outcome_groups(
    task: TaskSpec, label_NL: np.ndarray, mask_NL: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """Groups of rows by the outcome of a task, [(label, bool[N])].

    binary, survival: the two outcomes; segmentation: maps without and with anything in them;
    multiclass: classes; regression: up to the median and above; multilabel: the rows that carry
    each of the most frequent labels (these groups overlap).
    """
    known = mask_NL[:, 0]
    if task.kind == "regression":
        if not known.any():
            return []
        middle = np.median(label_NL[known, 0])
        low = known & (label_NL[:, 0] <= middle)
        return [(f"{task.name} ≤ {middle:.3g}", low), (f"{task.name} > {middle:.3g}", known & ~low)]
    if task.kind == "multilabel":
        carried = (label_NL > 0) & mask_NL
        order = np.argsort(-carried.sum(axis=0), kind="stable")[:MAX_GROUPS]
        names = task.labels or tuple(f"{task.name} {c}" for c in range(label_NL.shape[1]))
        return [(names[c], carried[:, c]) for c in order]
    if task.kind in ("survival", "segmentation"):
        no, yes = ("censored", "event") if task.kind == "survival" else ("none", "some")
        there = label_NL[:, 1 if task.kind == "survival" else 0] > 0
        return [(f"{task.name}: {no}", known & ~there), (f"{task.name}: {yes}", known & there)]
    count = 2 if task.kind == "binary" else min(task.dim, MAX_GROUPS)
    names = [f"{task.name} = {c}" for c in range(count)]
    if len(task.labels) == count:
        names = [f"{task.name}: {label}" for label in task.labels]
    return [(name, known & (label_NL[:, 0] == c)) for c, name in enumerate(names)]


def describe(
    predictions: Predictions, spec: DataSpec, *, min_patients: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Balance, heat maps and information of every layer, as JSON.

    {num_experts, balance, router_entropy (of ln E), dropped, rows (whose routing was kept),
     experts: [indices shown], heat: {group: [{label, share: [of the group's assignments]}]},
     information: {group: plugin, miller_madow, null, excess, share, p}}.

    Groups are 'modality', 'presence pattern' and each task's outcomes. Groups of rows with fewer
    than `min_patients` patients are left out.
    """
    return {
        name: _describe_layer(layer, predictions, spec, min_patients, seed)
        for name, layer in predictions.routing.items()
    }


def _describe_layer(layer: LayerRouting, predictions, spec, min_patients, seed) -> dict[str, Any]:
    num_experts = len(layer.load)
    most = np.argsort(-layer.load, kind="stable")[:MAX_EXPERTS_SHOWN]
    shown = np.sort(most)
    out: dict[str, Any] = {
        "num_experts": num_experts,
        "balance": {key: number(value) for key, value in balance(layer.load).items()},
        "router_entropy": _relative_entropy(layer.entropy, num_experts),
        "dropped": number(layer.dropped),
        "rows": 0 if layer.by_row is None else len(layer.by_row),
        "experts": shown.tolist(),
        "heat": {},
        "information": {},
    }
    if layer.by_modality is not None:
        enough = [
            len(np.unique(predictions.patient[has])) >= min_patients
            for has in predictions.present.T
        ]
        named = zip(spec.modality_names, layer.by_modality, enough, strict=True)
        out["heat"]["modality"] = _heat([(n, c) for n, c, kept in named if kept], shown)
    if layer.by_row is None or not len(layer.by_row):
        return out
    rng = np.random.default_rng(seed)
    rows = max(2, min(len(layer.by_row), MAX_NULL_CELLS // max(1, layer.by_row[0].size)))
    few, present = layer.by_row[:rows], predictions.present[:rows]
    null = shuffled_modalities(few, present, rng, PERMUTATIONS)
    out["information"]["modality"] = information(few.sum(axis=0, dtype=np.float64), null)
    by_row_RE = layer.by_row.sum(axis=1, dtype=np.float64)
    for group, members, exclusive in _row_groups(predictions, spec, len(by_row_RE)):
        patient = predictions.patient[: len(by_row_RE)]
        kept = [(n, m) for n, m in members if len(np.unique(patient[m])) >= min_patients]
        if not kept:
            continue
        out["heat"][group] = _heat([(name, by_row_RE[m].sum(axis=0)) for name, m in kept], shown)
        if exclusive and len(kept) > 1:
            stacked = np.stack([m for _, m in kept])
            chosen = np.flatnonzero(stacked.any(axis=0))[:rows]
            group_R, counts_RE = stacked[:, chosen].argmax(axis=0), by_row_RE[chosen]
            counts_GE = np.eye(len(kept))[group_R].T @ counts_RE
            null = shuffled_rows(counts_RE, group_R, rng, PERMUTATIONS)
            out["information"][group] = information(counts_GE, null)
    return out


def _row_groups(predictions: Predictions, spec: DataSpec, rows: int):
    """(group, [(label, bool[R])], whether the members are disjoint)."""
    present = predictions.present[:rows]
    names = spec.modality_names
    found = patterns(present, predictions.patient[:rows])[:MAX_GROUPS]
    members = [(pattern_name(names, keep), (present == keep).all(axis=1)) for keep, _ in found]
    yield "presence pattern", members, True
    for task in spec.tasks:
        if task.name in predictions.label:
            label, mask = predictions.label[task.name], predictions.label_mask[task.name]
            groups = outcome_groups(task, label[:rows], mask[:rows])
            yield task.name, groups, task.kind != "multilabel"


def _heat(named, shown: np.ndarray) -> list[dict]:
    return [
        {"label": label, "share": [float(f"{c / count_E.sum():.4g}") for c in count_E[shown]]}
        for label, count_E in named
        if count_E.sum() > 0
    ]


def _relative_entropy(value: float | None, num_experts: int) -> float | None:
    return None if value is None or num_experts < 2 else number(value / np.log(num_experts))
