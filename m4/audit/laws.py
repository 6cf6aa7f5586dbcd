"""What must hold of every method, as checks on a `Probe`: each raises `Defect` or returns.

    for law in LAWS:
        law(probe)

Letters: B rows, M modalities.
"""

from typing import Any

import jax
import numpy as np
from flax.errors import InvalidRngError

from m4.audit.altered import (
    drop_modalities,
    pollute,
    reassign,
    relabel,
    remask,
    replace_rows,
    reweigh,
    take,
)
from m4.audit.probe import Defect, Probe, Tolerance, eval_rngs, path_of
from m4.audit.random_rows import random_batch
from m4.nn.pretrained import wrapper

GARBAGE = (np.nan, np.inf, -np.inf, 1e30)
SWAPS = 8  # rows that are exchanged, one at a time
SHIFTS = (1, 997)  # of row numbers; no period divides both
DRAWS = (7, 8, 9)  # seeds: one draw may leave a small batch as it is
MOVED = 1e-6  # of a logit, from which on it has moved
RANDOM = ("random_bits", "random_seed", "random_wrap", "threefry2x32", "rng_bit_generator")
RANDOM += ("rng_uniform",)


def require(holds: Any, words: str) -> None:
    """Raises Defect with these words unless it holds."""
    if not holds:
        raise Defect(words)


def same(found: Any, wanted: Any, when: str) -> None:
    """Bit for bit, or Defect."""
    for (path, x), y in _pairs(found, wanted):
        x, y = np.asarray(x), np.asarray(y)
        if not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
            raise Defect(f"{path_of(path) or 'the loss'} is another number {when}")


def close(found: Any, wanted: Any, tolerance: Tolerance, when: str) -> None:
    """Within rounding, or Defect."""
    for (path, x), y in _pairs(found, wanted):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        largest = np.abs(y[np.isfinite(y)]).max(initial=1.0) if tolerance.to_scale else 1.0
        wrong = ~np.isclose(
            x, y, rtol=tolerance.rtol, atol=tolerance.atol * largest, equal_nan=True
        )
        if wrong.any():
            gap = np.abs(x - y)[wrong].max()
            raise Defect(f"{path_of(path) or 'the loss'} moves by up to {gap:.2g} {when}")


def _pairs(found: Any, wanted: Any):
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return zip(leaves, jax.tree.leaves(wanted), strict=True)


def _some(probe: Probe, number: int, salt: int) -> np.ndarray:
    """A few rows at random, at least one that stays."""
    return np.random.default_rng(salt).permutation(len(probe.batch.uid))[:number]


def batch_composition_invariance(probe: Probe):
    """What else is in the batch does not change a row's logits: any other row, one at a time.

    One at a time, since what rows exchange can stay within a part of the batch.
    """
    want, other = probe.predict(probe.batch), probe.another(9)
    for row in _some(probe, SWAPS, 9):
        found = probe.predict(replace_rows(probe.batch, other, [row]))
        kept = np.arange(len(probe.batch.uid)) != row
        close(
            {task: np.asarray(x)[kept] for task, x in found.items()},
            {task: np.asarray(x)[kept] for task, x in want.items()},
            probe.tolerance,
            "where another row of the batch is exchanged",
        )


def filler_rows_change_no_logits(probe: Probe):
    """A last batch filled up with empty rows of weight 0 is predicted as what there is of it."""
    rows = len(probe.batch.uid)
    few = take(probe.batch, range(rows - 2))
    full = drop_modalities(drop_modalities(probe.batch, rows - 2), rows - 1)
    real = np.arange(rows) < rows - 2
    full = full.replace(weight=real.astype(np.float32), uid=np.where(real, full.uid, -1))
    found = jax.tree.map(lambda x: x[real], probe.predict(full))
    close(found, probe.predict(few), probe.tolerance, "where empty rows fill the batch up")


def patient_permutation_equivariance(probe: Probe):
    """Permuted rows give permuted logits."""
    order = np.random.default_rng(4).permutation(len(probe.batch.uid))
    expected = jax.tree.map(lambda x: np.asarray(x)[order], probe.predict(probe.batch))
    found = probe.predict(take(probe.batch, order))
    close(found, expected, probe.tolerance, "where the rows stand in another order")


def garbage_changes_no_bit(probe: Probe):
    """NaN, infinities and huge numbers in unmeasured slots reach neither logits nor gradients."""
    logits, grads = probe.predict(probe.batch), probe.grads(probe.batch)
    for garbage in GARBAGE:
        when, polluted = (
            f"where {garbage} stands in unmeasured slots",
            pollute(probe.batch, garbage),
        )
        same(probe.predict(polluted), logits, when)
        same(probe.grads(polluted), grads, f"in the gradient, {when}")


def empty_row_counts_nowhere(probe: Probe):
    """A row with nothing present: finite, and neither its label nor its weight matters."""
    empty = drop_modalities(probe.batch, row=2)
    loss, grads = probe.grads(empty)
    for x in jax.tree.leaves((loss, grads, probe.predict(empty))):
        require(
            np.isfinite(x).all(), "a row with nothing present makes numbers that are not finite"
        )
    other_label = replace_rows(empty, relabel(empty, probe.method.data), [2])
    same(probe.grads(other_label), (loss, grads), "by the label of a row with nothing present")
    weight = np.array(empty.weight)
    weight[2] = 0.0
    weightless = probe.grads(empty.replace(weight=weight))
    same(weightless, (loss, grads), "by the weight of a row with nothing present")


def padding_rows_count_nowhere(probe: Probe):
    """A row of weight 0 (the tail of an evaluation) changes neither loss nor gradient."""
    weight = np.array(probe.batch.weight)
    weight[[1, 4]] = 0.0
    batch = probe.batch.replace(weight=weight)
    other = replace_rows(batch, probe.another(5), [1, 4]).replace(weight=weight)
    close(probe.grads(batch), probe.grads(other), probe.tolerance, "by a row of weight 0")


def missing_labels_give_no_gradient(probe: Probe):
    """Masked labels may hold anything; a task without labels gives its head no gradient."""
    for task in probe.method.data.task_names:
        target = probe.batch.targets[task]

        def unlabelled(value, task=task, target=target):
            filler: Any = np.full_like(target.value, value)
            masked = target.replace(value=filler, mask=np.zeros_like(target.mask))
            return probe.batch.replace(targets={**probe.batch.targets, task: masked})

        loss, grads = probe.grads(unlabelled(0))
        integer = np.asarray(target.value).dtype.kind != "f"
        for garbage in (-1, 1) if integer else GARBAGE:
            when = f"by a label of {task} that is not known"
            same(probe.grads(unlabelled(garbage)), (loss, grads), when)
        require(np.isfinite(loss), f"the loss is not finite where nobody has a label of {task}")
    nobody = {n: t.replace(mask=np.zeros_like(t.mask)) for n, t in probe.batch.targets.items()}
    loss, grads = probe.grads(probe.batch.replace(targets=nobody))
    require(loss == 0.0, "there is a loss without any label")
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        require(not np.any(g), f"{path_of(path)} has a gradient without labels")


def targets_do_not_influence_logits(probe: Probe):
    """No label leaks into the forward pass, nor whether it is known."""
    logits = probe.predict(probe.batch)
    for seed in DRAWS:
        relabelled = relabel(probe.batch, probe.method.data, seed)
        same(probe.predict(relabelled), logits, "where rows have other labels")
        other = probe.predict(remask(probe.batch, seed))
        same(other, logits, "where labels of other rows are known")


def weights_and_tasks_do_not_influence_logits(probe: Probe):
    """What a row counts in the loss, and for which task, is nothing that a prediction may know."""
    logits = probe.predict(probe.batch)
    for seed in DRAWS:
        same(probe.predict(reweigh(probe.batch, seed)), logits, "where rows have other weights")
        reassigned = reassign(probe.batch, probe.method.data, seed)
        same(probe.predict(reassigned), logits, "where rows are of other tasks")


def row_numbers_do_not_influence_logits(probe: Probe):
    """Where a row stands in its split tells nothing of it."""
    uid, logits = np.asarray(probe.batch.uid), probe.predict(probe.batch)
    drawn = np.random.default_rng(6).permutation(2**20)[: len(uid)]
    for other in (*(uid + shift for shift in SHIFTS), drawn):
        numbered = probe.batch.replace(uid=other.astype(uid.dtype))
        same(probe.predict(numbered), logits, "where rows have other numbers")


def evaluation_is_deterministic(probe: Probe):
    """Two evaluations agree bit for bit."""
    same(probe.predict(probe.batch), probe.predict(probe.batch), "the second time")


def every_parameter_learns(probe: Probe):
    """Each parameter gets a finite, somewhere non-zero gradient from the task losses."""
    _, grads = probe.grads(random_batch(probe.method.data, seed=3, keep=0.8))
    frozen, dead = _frozen(probe.method), []
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = path_of(path)
        if not name.startswith(frozen):
            require(np.isfinite(g).all(), f"{name}: its gradient is not finite")
            dead += [] if np.any(g) else [name]
    more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
    require(not dead, f"no gradient: {', '.join(dead[:3])}{more}")


def _frozen(method: Any) -> tuple[str, ...]:
    """Beginnings of parameters that are not meant to learn: encoders from files."""
    if not isinstance(method, wrapper.Reader):
        return ()
    own: Any = method
    part = (f"{own.part}/",) if own.tuning == "frozen" else ()
    return part + tuple(f"method/{name}" for name in _frozen(own.method))


def every_modality_matters(probe: Probe):
    """Dropping a modality changes the logits of the rows that had it, and of no other row."""
    logits = probe.predict(probe.batch)
    for name, stream in probe.batch.inputs.items():
        absent = jax.tree.map(np.zeros_like, stream)
        cut = probe.predict(probe.batch.replace(inputs={**probe.batch.inputs, name: absent}))
        had = np.asarray(stream.present)
        for task, x in cut.items():
            gap = np.abs(np.asarray(x) - logits[task]).reshape(len(had), -1).max(-1)
            read = (
                (gap[had] > MOVED).all() if probe.random else (gap > 0)[had].any() or not had.any()
            )
            require(read, f"{task} does not read {name}")
            largest = np.abs(logits[task]).max() if probe.tolerance.to_scale else 1.0
            scale = max(1.0, float(largest))
            require(
                not (gap[~had] > MOVED * scale).any(),
                f"{name} leaks into rows without it ({task})",
            )


def absence_stays_in_its_row(probe: Probe):
    """In a batch of complete rows, what one row lacks changes no other row's logits."""
    rows, spec = len(probe.batch.uid), probe.method.data
    complete = random_batch(spec, seed=11, rows=rows, keep=1.0)
    want = probe.predict(complete)
    for m, name in enumerate(spec.modality_names):
        row = m % rows
        lacking = drop_modalities(complete, row)
        inputs = {**complete.inputs, name: lacking.inputs[name]}
        found, kept = probe.predict(complete.replace(inputs=inputs)), np.arange(rows) != row
        close(
            {task: np.asarray(x)[kept] for task, x in found.items()},
            {task: np.asarray(x)[kept] for task, x in want.items()},
            probe.tolerance,
            f"where another row lacks {name}",
        )


def absence_is_no_zero(probe: Probe):
    """A modality that is absent is told from one whose every number is 0, an average patient's."""
    rows = len(probe.batch.uid)
    complete = random_batch(probe.method.data, seed=12, rows=rows, keep=1.0)
    for name, stream in complete.inputs.items():
        zeros = jax.tree.map(np.array, stream).replace(values=np.zeros_like(stream.values))
        absent = jax.tree.map(np.zeros_like, stream)
        one, two = (
            probe.predict(complete.replace(inputs={**complete.inputs, name: s}))
            for s in (zeros, absent)
        )
        moved = any((np.abs(np.asarray(one[t]) - two[t]) > MOVED).any() for t in one)
        require(moved, f"{name}: absent is read as zeros")


def evaluation_draws_nothing(probe: Probe):
    """Evaluation needs no random numbers: none are asked for, drawn, or traced in."""
    method, batch = probe.method, probe.batch

    def traced():
        def apply(params, batch):  # a new function, or JAX would not trace it again
            return method.apply({"params": params}, batch, train=False).logits

        return jax.make_jaxpr(apply)(probe.params, batch)

    try:
        one, two = traced(), traced()
    except InvalidRngError:
        streams = ", ".join(eval_rngs(method)) or "one that it does not declare"
        raise Defect(f"evaluation draws random numbers (stream: {streams})") from None
    drawn = sorted({*_primitives(one.jaxpr)} & {*RANDOM})
    require(not drawn, f"evaluation draws random numbers ({', '.join(drawn)}), if of a fixed key")
    constants = [*map(np.asarray, one.consts)], [*map(np.asarray, two.consts)]
    equal = str(one) == str(two) and len(constants[0]) == len(constants[1])
    equal = equal and all(x.tobytes() == y.tobytes() for x, y in zip(*constants, strict=True))
    require(equal, "evaluation is another program each time that it is traced")


def _primitives(jaxpr: Any):
    """Names of all operations of a program, also inside others."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(
            [*equation.params.values()], is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _primitives(inner)


LAWS = (
    batch_composition_invariance,
    filler_rows_change_no_logits,
    patient_permutation_equivariance,
    garbage_changes_no_bit,
    empty_row_counts_nowhere,
    padding_rows_count_nowhere,
    missing_labels_give_no_gradient,
    targets_do_not_influence_logits,
    weights_and_tasks_do_not_influence_logits,
    row_numbers_do_not_influence_logits,
    evaluation_is_deterministic,
    every_parameter_learns,
    every_modality_matters,
    absence_stays_in_its_row,
    absence_is_no_zero,
)
INVENTED = (every_parameter_learns, absence_stays_in_its_row, absence_is_no_zero)  # make own rows
# Of predictions alone: what can be asked of a run's own compiled program.
OF_PREDICTIONS = (
    batch_composition_invariance,
    patient_permutation_equivariance,
    targets_do_not_influence_logits,
    weights_and_tasks_do_not_influence_logits,
    row_numbers_do_not_influence_logits,
    evaluation_is_deterministic,
)
