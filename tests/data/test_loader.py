import jax
import numpy as np
import pytest

from m4.data import batch as batches
from m4.data.loader import TrainLoader, eval_batches
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
