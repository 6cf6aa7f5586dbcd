import jax
import numpy as np
import pytest

from m4.data import batch as batches
from m4.data import sampling
from m4.data.loader import TrainLoader, eval_batches
from m4.data.sampling import Sampling
from m4.data.store import Store
from tests.data.toy_cohort import SPEC


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_each_epoch_is_one_permutation_even_across_batch_borders(train):
    loader = TrainLoader(train, 16, seed=1)  # 40 rows: epochs end inside batches
    stream = np.concatenate([loader.indices(step) for step in range(10)])  # 160 = 4 epochs
    epochs = stream.reshape(4, 40)
    for epoch in epochs:
        assert sorted(epoch) == [*range(40)]
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_seed_and_step_only(train):
    loader = TrainLoader(train, 8, seed=1)
    assert np.array_equal(loader.indices(7), TrainLoader(train, 8, seed=1).indices(7))
    assert not np.array_equal(loader.indices(7), TrainLoader(train, 8, seed=2).indices(7))


@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_processes_take_consecutive_blocks_of_the_same_global_batch(train, process_count):
    whole = TrainLoader(train, 16, seed=3)
    parts = [
        TrainLoader(train, 16, seed=3, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    for step in (0, 2, 11):
        blocks = [part.indices(step) for part in parts]
        assert np.array_equal(np.concatenate(blocks), whole.indices(step))


def test_resume_is_setting_the_step(train):
    loader = TrainLoader(train, 8, seed=0)
    straight = [batch for _, batch in zip(range(9), loader.iter(), strict=False)]
    resumed = [batch for _, batch in zip(range(4), loader.iter(5), strict=False)]
    for first, second in zip(straight[5:], resumed, strict=True):
        assert_same(first, second)
    assert loader.input_wait > 0


def test_batches_have_one_structure_and_numpy_leaves(train):
    loader = TrainLoader(train, 8, seed=0)
    shapes = {
        tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(loader.batch(step)))
        for step in range(5)
    }
    assert len(shapes) == 1
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(loader.batch(0)))


def test_row_with_nothing_present_has_weight_zero(train):
    batch = next(eval_batches(train, 40))
    nothing = ~np.any([stream.present for stream in batch.inputs.values()], axis=0)
    assert nothing.sum() == 3  # patients 10, 21 and 32 of 0..39
    assert np.array_equal(batch.weight == 0, nothing)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_evaluation_sees_every_record_once(built, batch_size):
    store = Store(built, "test")  # 9 rows
    found = [*eval_batches(store, batch_size)]
    assert len(found) == -(-9 // batch_size)
    uid = np.concatenate([batch.uid for batch in found])
    assert [*uid[uid >= 0]] == [*range(9)]
    filler = np.concatenate([batch.weight for batch in found])[uid < 0]
    assert (filler == 0).all()
    assert len({tuple(x.shape for x in jax.tree.leaves(batch)) for batch in found}) == 1


def test_evaluation_gives_all_processes_the_same_number_of_batches(built):
    store = Store(built, "test")  # 9 rows in global batches of 8: process 1 of 2 gets filler only
    parts = [[*eval_batches(store, 8, process_index=p, process_count=2)] for p in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    uid = np.concatenate([batch.uid for part in parts for batch in part])
    assert sorted(uid[uid >= 0]) == [*range(9)]


def test_wrong_sizes_are_refused(train):
    with pytest.raises(ValueError, match="batch_size=41 must be within 1..40"):
        TrainLoader(train, 41, seed=0)
    with pytest.raises(ValueError, match="batch_size=9 cannot be divided over 2"):
        TrainLoader(train, 9, seed=0, process_count=2)
    with pytest.raises(ValueError, match="cannot be divided"):
        next(eval_batches(train, 9, process_count=2))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s.replace(mask=np.ones_like(s.mask)),  # mask without presence
        lambda s: s.replace(observed=np.ones_like(s.observed)),  # observed without mask
        lambda s: s.replace(values=np.ones_like(s.values)),  # values in an absent slot
        lambda s: s.replace(values=np.full_like(s.values, np.nan)),
        lambda s: s.replace(values=s.values.astype(np.float64)),
        lambda s: s.replace(times=s.times[:, :-1]),
        lambda s: s.replace(times=None),
    ],
)
def test_check_refuses_a_broken_batch(train, spoil):
    batch = next(eval_batches(train, 40))
    batches.check(SPEC, batch)
    spoiled = {**batch.inputs, "vitals": spoil(batch.inputs["vitals"])}
    with pytest.raises(AssertionError):
        batches.check(SPEC, batch.replace(inputs=spoiled))


def num_present(train):
    names = [f"{name}/present" for name in SPEC.modality_names]
    return np.sum([*train.columns(names).values()], axis=0)


def test_complete_rows_come_first_while_the_order_lasts(train):
    loader = TrainLoader(
        train, 8, seed=1, sampling=Sampling(order="complete_first", order_epochs=2)
    )
    first, second, third = (loader.indices(s).tolist() for s in (0, 5, 10))  # 5 steps an epoch
    epoch = np.concatenate([loader.indices(step) for step in range(5)])
    assert sorted(epoch) == [*range(40)]
    assert (np.diff(num_present(train)[epoch]) <= 0).all()
    assert first == second  # the same order in every ordered epoch
    assert third == TrainLoader(train, 8, seed=1).indices(10).tolist()
    last = TrainLoader(train, 8, seed=1, sampling=Sampling(order="complete_last", order_epochs=1))
    assert num_present(train)[last.indices(0)].max() <= num_present(train)[last.indices(4)].min()


def test_only_complete_rows_while_the_order_lasts(train, monkeypatch):
    with pytest.raises(ValueError, match="no training row has all modalities"):
        TrainLoader(train, 8, seed=1, sampling=Sampling(order="complete_only", order_epochs=1))
    monkeypatch.setattr(sampling, "num_missing", lambda store: np.arange(40) % 3)
    loader = TrainLoader(train, 8, seed=1, sampling=Sampling(order="complete_only", order_epochs=1))
    epoch = np.concatenate([loader.indices(step) for step in range(5)])
    assert (epoch % 3 == 0).all()
    assert set(epoch) == {*range(0, 40, 3)}  # all 14 of them, again and again
    assert sorted(np.concatenate([loader.indices(step) for step in range(5, 10)])) == [*range(40)]
    with pytest.raises(ValueError, match="order='sorted'; choose one of shuffled"):
        TrainLoader(train, 8, seed=1, sampling=Sampling(order="sorted", order_epochs=1))


def labelled(train, task):
    return train.columns([f"y/{task}/mask"])[f"y/{task}/mask"].reshape(40, -1).any(-1)


@pytest.mark.parametrize("streams", ["rows", "batches"])
def test_streams_deal_tasks_in_the_given_ratio(train, streams):
    ratio = {"death": 3.0, "los": 1.0}
    loader = TrainLoader(train, 8, seed=1, sampling=Sampling(streams=streams, stream_ratio=ratio))
    drawn = [loader.batch(step) for step in range(40)]
    task = np.stack([batch.task for batch in drawn])
    assert np.bincount(task.ravel()).tolist() == [240, 80]  # 3 : 1 of 320
    assert all(len(set(row)) == 1 for row in task) == (streams == "batches")
    for number, name in enumerate(("death", "los")):
        rows = np.concatenate([b.uid[b.task == number] for b in drawn])
        assert labelled(train, name)[rows].all()
        pool = labelled(train, name).sum()
        for start in range(0, len(rows) - pool, pool):  # each pass sees each of its rows once
            assert len(set(rows[start : start + pool])) == pool


def test_sequential_streams_pass_through_one_task_after_the_other(train):
    loader = TrainLoader(train, 8, seed=1, sampling=Sampling(streams="sequential"))
    passes = [int(labelled(train, name).sum() // 8) for name in SPEC.task_names]
    task = [int(loader.batch(step).task[0]) for step in range(2 * sum(passes))]
    assert task == [*np.repeat(range(4), passes)] * 2


def test_streams_are_stateless_and_shared_by_processes(train):
    def make(**kw):
        return TrainLoader(train, 8, seed=4, sampling=Sampling(streams="rows"), **kw)

    assert_same(make().batch(123), make().batch(123))
    parts = [make(process_index=p, process_count=2).batch(7) for p in range(2)]
    assert_same(np.concatenate([part.uid for part in parts]), make().batch(7).uid)
    assert_same(np.concatenate([part.task for part in parts]), make().batch(7).task)


def test_impossible_streams_are_refused(train):
    for ratio, message in (
        ({"deaht": 1.0}, r"\['deaht'\] are no tasks; tasks are death"),
        ({"death": -1.0}, "shares must be at least 0"),
        ({"death": 0.0}, "one above"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainLoader(train, 8, seed=0, sampling=Sampling(streams="rows", stream_ratio=ratio))
    with pytest.raises(ValueError, match="streams='task'; choose one of rows"):
        TrainLoader(train, 8, seed=0, sampling=Sampling(streams="task"))
