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
MAX_NULL_CELLS = 2_000_000  # not empty, of rows x modalities x experts, for the permutations
MAX_EXPERTS_SHOWN = 64
MAX_GROUPS = 8
FEW = 5  # patients to exchange with: with fewer too little can be exchanged to tell anything


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


def mutual_information(count_GE: np.ndarray) -> float:
    """Plug-in I(group; expert) in nats; of counts [M, G, E] given the first index.

    It is too large by about (G - 1)(E - 1) / 2N of independent counts: see `information`.
    """
    if not count_GE.sum():
        return float("nan")
    both = entropy(count_GE.sum(axis=-1)) + entropy(count_GE.sum(axis=-2))
    return both - entropy(count_GE) - entropy(count_GE.sum(axis=(-1, -2)))


def evened(by_row_RME: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many assignments of every modality that a row has, as shares, f64[R, M, E].

    Of the modalities with more, so many are drawn at random as that with the fewest has: else a
    modality would be known by its number of tokens alone, or by how even its experts look.
    Weights of soft routers are no assignments; they become shares as they are.
    """
    total_RM = by_row_RME.sum(axis=2)
    if (by_row_RME == np.round(by_row_RME)).all():
        fewest_R = np.where(total_RM > 0, total_RM, np.inf).min(axis=1)
        cell = np.repeat(np.arange(by_row_RME.size), by_row_RME.ravel().astype(int))
        group = cell // by_row_RME.shape[2]  # (row, modality) of each assignment
        order = np.lexsort((rng.random(len(cell)), group))
        first = np.searchsorted(group, np.arange(total_RM.size))
        kept = np.arange(len(cell)) - first[group] < fewest_R[group // total_RM.shape[1]]
        count = np.bincount(cell[order][kept], minlength=by_row_RME.size)
        by_row_RME = count.reshape(by_row_RME.shape)
    total_RM1 = by_row_RME.sum(axis=2, keepdims=True)
    return by_row_RME / np.where(total_RM1 > 0, total_RM1, 1)


def shuffled_modalities(
    share_RME: np.ndarray, patient_R: np.ndarray, rng: np.random.Generator, draws: int
) -> Iterator[np.ndarray]:
    """Counts [M, E] with the modality labels exchanged within every patient.

    All tokens that a patient has of one modality move together, so their dependence stays; the null
    says that it does not matter to the router which of a patient's modalities a token came from.
    """
    (row, m, e), (_, num_modalities, num_experts) = np.nonzero(share_RME), share_RME.shape
    weight, has_RM = share_RME[row, m, e], share_RME.sum(axis=2) > 0
    ids, owner_R = np.unique(patient_R, return_inverse=True)
    own_RM = np.argsort(~has_RM, axis=1, kind="stable")  # modalities with tokens, then the others
    label_RM = np.empty_like(own_RM)
    for _ in range(draws):
        key_RM = np.where(has_RM, rng.random((len(ids), num_modalities))[owner_R], 2.0)
        np.put_along_axis(label_RM, np.argsort(key_RM, axis=1, kind="stable"), own_RM, axis=1)
        cell, cells = label_RM[row, m] * num_experts + e, num_modalities * num_experts
        yield np.bincount(cell, weight, cells).reshape(num_modalities, num_experts)


class Exchange:
    """Labels of rows exchanged between patients who have about equally many.

    All labels of a patient move together, because they are not independent. Patients exchange with
    those who have as many rows; who would find fewer than `FEW` such patients, also with the next
    sizes. Where numbers differ, a patient's labels are repeated or left out evenly.
    """

    def __init__(self, patient_R: np.ndarray):
        ids, self.owner_R, size_P = np.unique(patient_R, return_inverse=True, return_counts=True)
        self.order_R = np.argsort(self.owner_R, kind="stable")
        self.first_P, self.size_P = np.cumsum(size_P) - size_P, size_P
        self.place_R = np.empty(len(patient_R), int)
        self.place_R[self.order_R] = np.arange(len(patient_R)) - np.repeat(self.first_P, size_P)
        self.ids, self.alike = ids, _alike(size_P)

    def rows(self, giver_P: np.ndarray) -> np.ndarray:
        """The row, i64[R], whose label every row gets if patient p gets those of `giver_P[p]`."""
        giver_R, size_R = giver_P[self.owner_R], self.size_P[self.owner_R]
        place_R = self.place_R * self.size_P[giver_R] // size_R
        return self.order_R[self.first_P[giver_R] + place_R]

    def permuted(self, rng: np.random.Generator) -> np.ndarray:
        """`rows` of one exchange at random."""
        giver_P = np.empty(len(self.ids), int)
        for own in self.alike:
            giver_P[own] = rng.permutation(own)
        return self.rows(giver_P)


def _alike(size_P: np.ndarray) -> list[np.ndarray]:
    """Patients of about equally many rows, at least `FEW` of them, if there are as many at all."""
    groups: list[np.ndarray] = []
    for size in np.unique(size_P):
        own = np.flatnonzero(size_P == size)
        if groups and len(groups[-1]) < FEW:
            groups[-1] = np.concatenate([groups[-1], own])
        else:
            groups.append(own)
    if len(groups) > 1 and len(groups[-1]) < FEW:
        groups[-2:] = [np.concatenate(groups[-2:])]
    return groups


def shuffled_groups(
    share_RME: np.ndarray,
    group_R: np.ndarray,
    patient_R: np.ndarray,
    rng: np.random.Generator,
    draws: int,
) -> Iterator[np.ndarray]:
    """Counts [M, G, E] with the group labels exchanged between patients, first the true ones.

    By `Exchange`, among the rows that have the modality.
    """
    (row, m, e), num_experts = np.nonzero(share_RME), share_RME.shape[2]
    weight, has_RM = share_RME[row, m, e], share_RME.sum(axis=2) > 0
    shape = has_RM.shape[1], int(group_R.max()) + 1, num_experts
    ids, owner_R = np.unique(patient_R, return_inverse=True)
    own = [np.flatnonzero(has_R) for has_R in has_RM.T]
    exchanges = [Exchange(owner_R[rows]) for rows in own]
    label_RM = np.repeat(group_R[:, None], shape[0], axis=1)
    for draw in range(draws + 1):
        walk_P, cycle_P = _cycles(rng.permutation(len(ids)) if draw else np.arange(len(ids)))
        for modality, (rows, exchange) in enumerate(zip(own, exchanges, strict=True)):
            giver_p = np.arange(len(exchange.ids))
            for alike in exchange.alike:
                patients = exchange.ids[alike]
                giver_p[alike] = alike[_within(walk_P[patients], cycle_P[patients])]
            label_RM[rows, modality] = group_R[rows[exchange.rows(giver_p)]]
        cell = (m * shape[1] + label_RM[row, m]) * num_experts + e
        yield np.bincount(cell, weight, int(np.prod(shape))).reshape(shape)


def _cycles(next_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """When a walk along a permutation comes by each patient, and in which of its cycles he is."""
    following = next_P.tolist()
    walk, cycle = [-1] * len(following), [-1] * len(following)
    steps = 0
    for start in range(len(following)):
        at = start
        while walk[at] < 0:
            walk[at], cycle[at] = steps, start
            steps, at = steps + 1, following[at]
    return np.array(walk, int), np.array(cycle, int)


def _within(walk_p: np.ndarray, cycle_p: np.ndarray) -> np.ndarray:
    """Place among some patients of each one's successor there, by a permutation of all.

    The next of them on the walk, so whoever stands in between is passed over. So the modalities'
    exchanges agree as far as the patients who have them do, as their labels do in truth.
    """
    order_p = np.argsort(walk_p)
    ends = np.flatnonzero(np.diff(cycle_p[order_p], append=-1))  # of the cycles, among these
    follows_p = np.arange(1, len(order_p) + 1)
    follows_p[ends] = np.concatenate([[0], ends[:-1] + 1])
    found_p = np.empty(len(order_p), int)
    found_p[order_p] = order_p[follows_p]
    return found_p


def information(count: np.ndarray, null: Iterator[np.ndarray]) -> dict[str, float | None]:
    """Mutual information of counts [G, E] or [M, G, E] with its permutation null.

    `p` is (1 + #{null >= observed}) / (1 + draws); `excess` = plug-in - mean of the null, which
    removes the bias whatever the dependence of the tokens and however many experts there are;
    `share` = excess / (H(group) - mean of the null): 0 by chance, 1 if the expert tells the group
    (adjusted mutual information, Vinh et al., JMLR 2010).
    """
    if not count.sum():
        return dict.fromkeys(("plugin", "null", "excess", "share", "p"))
    plain, values = mutual_information(count), np.array([mutual_information(x) for x in null])
    # the null includes the identity up to rounding: compare with a tolerance
    p = (1 + (values >= plain - 1e-9).sum()) / (1 + len(values))
    spread = entropy(count.sum(axis=-1)) - entropy(count.sum(axis=(-1, -2)))
    excess, room = plain - values.mean(), spread - values.mean()
    return {
        "plugin": number(plain),
        "null": number(values.mean()),
        "excess": number(excess),
        "share": number(excess / room) if room > 1e-12 else None,
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
     information: {group: plugin, null, excess, share, p}}.

    Groups are 'modality', 'presence pattern' and each task's outcomes. Information about the last
    two is given the modality: a token's modality tells both its expert and which patterns it can
    come from. Groups of rows with fewer than `min_patients` patients are left out.
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
    rng, rows = np.random.default_rng(seed), layer.kept()
    patient, by_row_RE = predictions.patient[rows], layer.by_row.sum(axis=1, dtype=np.float64)
    chosen = np.arange(len(rows))
    if np.count_nonzero(layer.by_row) > MAX_NULL_CELLS:
        few = MAX_NULL_CELLS // max(1, np.count_nonzero(layer.by_row, axis=(1, 2)).max())
        chosen = np.sort(rng.permutation(len(rows))[: max(2, few)])
    share_RME = evened(layer.by_row[chosen].astype(np.float64), rng)
    null = shuffled_modalities(share_RME, patient[chosen], rng, PERMUTATIONS)
    out["information"]["modality"] = information(share_RME.sum(axis=0), null)
    for group, members, exclusive in _row_groups(predictions, spec, rows):
        kept = [(n, m) for n, m in members if len(np.unique(patient[m])) >= min_patients]
        if not kept:
            continue
        out["heat"][group] = _heat([(name, by_row_RE[m].sum(axis=0)) for name, m in kept], shown)
        if exclusive and len(kept) > 1:
            of_chosen = [m[chosen] for _, m in kept]
            of_chosen = [m for m in of_chosen if len(np.unique(patient[chosen][m])) >= min_patients]
            if len(of_chosen) < 2:  # of the rows that were drawn
                continue
            stacked = np.stack(of_chosen)
            of = stacked.any(axis=0)
            args = share_RME[of], stacked[:, of].argmax(axis=0), patient[chosen][of]
            counts = shuffled_groups(*args, rng, PERMUTATIONS)
            out["information"][group] = information(next(counts), counts)
    return out


def _row_groups(predictions: Predictions, spec: DataSpec, rows: np.ndarray):
    """(group, [(label, bool[R])], whether the members are disjoint)."""
    present = predictions.present[rows]
    names = spec.modality_names
    found = patterns(present, predictions.patient[rows])[:MAX_GROUPS]
    members = [(pattern_name(names, keep), (present == keep).all(axis=1)) for keep, _ in found]
    yield "presence pattern", members, True
    for task in spec.tasks:
        if task.name in predictions.label:
            label, mask = predictions.label[task.name], predictions.label_mask[task.name]
            groups = outcome_groups(task, label[rows], mask[rows])
            yield task.name, groups, task.kind != "multilabel"


def _heat(named, shown: np.ndarray) -> list[dict]:
    return [
        {"label": label, "share": [float(f"{c / count_E.sum():.4g}") for c in count_E[shown]]}
        for label, count_E in named
        if count_E.sum() > 0
    ]


def _relative_entropy(value: float | None, num_experts: int) -> float | None:
    return None if value is None or num_experts < 2 else number(value / np.log(num_experts))
