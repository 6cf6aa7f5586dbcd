"""Batches cut to buckets: which row goes where, in what order, and that nothing is lost."""

import dataclasses

import jax
import numpy as np
import pytest

from m4.data import batch as batches
from m4.data import buckets, mapped, regularise
from m4.data.loader import TrainLoader, eval_batches
from m4.data.sampling import Sampling
from m4.data.store import Store
from m4.specs import DataSpec
from tests.data.toy_cohort import SPEC

LENGTHS = (1, 3)  # of at most 4 positions, those of vitals


def loader(store, **options):
    names = {field.name for field in dataclasses.fields(Sampling)}
    drawn = {"buckets": LENGTHS} | {k: v for k, v in options.items() if k in names}
    rest = {"seed": 1} | {k: v for k, v in options.items() if k not in names}
    return TrainLoader(store, 8, sampling=Sampling(**drawn), **rest)  # 5 steps an epoch


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def window(loader, first, field="uid", steps=5):
    """What five batches hold, [5, G]."""
    return np.stack([getattr(loader.batch(first + step), field) for step in range(steps)])


def test_a_bucket_cuts_the_modalities_that_are_longer():
    short, middle, whole = buckets.ladder(SPEC, LENGTHS)
    assert whole == SPEC
    # vitals 4, note 2, icd 3, words 3; a table, an image and a signal are not ragged
    assert [m.length for m in middle.modalities] == [3, 2, 1, 3, 3, 1, 5]
    assert [m.length for m in short.modalities] == [1, 1, 1, 1, 1, 1, 5]
    assert short.modality("vitals").shape == (1, 2) and short.tasks == SPEC.tasks
    assert buckets.ladder(SPEC, (1, 3, 4)) == (short, middle, whole)  # 4 is the full length
    assert buckets.ladder(SPEC, ()) == (SPEC,)


@pytest.mark.parametrize(
    ("lengths", "match"),
    [
        ((3, 1), r"buckets=\(3, 1\): must increase, from 1 on"),
        ((2, 2), "must increase"),
        ((0, 2), "must increase"),
        ((2, 5), r"must be at most 4, the positions of the longest modality of kind series, "),
    ],
)
def test_lengths_that_make_no_buckets_are_refused(train, lengths, match):
    with pytest.raises(ValueError, match=match):
        loader(train, buckets=lengths)
    table = DataSpec((SPEC.modality("static"),), SPEC.tasks)
    with pytest.raises(ValueError, match="must be at most 0"):
        buckets.ladder(table, (2,))


def test_rows_by_hand(train):
    # Row p: vitals min(1 + p % 6, 4), note 1 + p % 2, icd and words 1 + p % 3 positions; the
    # m-th of vitals, note, static, icd, words, xray, ecg is absent where (p + m) % 5 == 0.
    by_hand = {
        0: 1,  # no vitals; note, icd, words 1
        1: 2,  # vitals 2, note 2, icd 2
        3: 4,  # vitals 4
        5: 3,  # no vitals; note 2, icd 3, words 3
        8: 3,  # vitals 3, icd 3
        10: 0,  # nothing at all
        12: 1,  # vitals 1, note 1, icd 1
    }
    assert train.longest[[*by_hand]].tolist() == [*by_hand.values()]
    bucket = buckets.assign(LENGTHS, train.longest[[*by_hand]])
    assert bucket.tolist() == [0, 1, 2, 1, 1, 0, 0]  # up to 1, up to 3, more


def test_a_window_by_hand():
    bucket = np.array([1, 0, 0, 1, 0, 0, 1, 1])
    found = buckets.arrange(bucket, np.zeros(8, int), 2, np.random.default_rng(0))
    # sorted by bucket, in the order of their coming: 1 2 4 5 | 0 3 6 7
    assert sorted(found.tolist()) == [[0, 3], [1, 2], [4, 5], [6, 7]]
    other = buckets.arrange(bucket, np.zeros(8, int), 2, np.random.default_rng(1))
    assert found.tolist() != other.tolist()
    kinds = np.array([5, 5, 7, 7, 5, 5, 7, 7])  # kind 5 is rows 0 1 4 5, kind 7 2 3 6 7
    kept = buckets.arrange(bucket, kinds, 2, np.random.default_rng(0)).tolist()
    assert sorted(kept[::2]) == [[1, 4], [5, 0]] and sorted(kept[1::2]) == [[2, 3], [6, 7]]


@pytest.mark.parametrize("streams", ["none", "rows", "batches", "sequential"])
def test_every_window_holds_the_rows_that_it_would_hold_without(train, streams):
    ratio = {"death": 3.0, "los": 1.0} if streams in ("rows", "batches") else {}
    options = {"streams": streams, "stream_ratio": ratio}
    cut, plain = loader(train, **options), loader(train, buckets=(), **options)
    for first in (0, 5, 35):
        uid, task = window(cut, first), window(cut, first, "task")
        plain_uid, plain_task = window(plain, first), window(plain, first, "task")
        pairs, plain_pairs = (
            sorted(zip(u.ravel(), t.ravel(), strict=True))
            for u, t in ((uid, task), (plain_uid, plain_task))
        )
        assert pairs == plain_pairs
        assert (uid != plain_uid).any()
        if streams != "rows":
            assert_same(task, plain_task)  # also the order of sequential passes


def test_every_epoch_sees_every_row_once(train):
    found = loader(train)  # 5 batches of 8 are the 40 rows
    epochs = [window(found, first).ravel() for first in (0, 5, 10)]
    assert all(sorted(epoch) == [*range(40)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("source", ["memory", "mapped", "decoded"])
def test_a_batch_is_as_long_as_its_longest_row_needs(built, train, source, monkeypatch):
    if source == "decoded":
        monkeypatch.setattr(mapped, "rows", lambda *args: None)
    store = train if source == "memory" else Store(built, "train", ram_limit=0)
    assert (store._rows is None) == (source == "decoded")
    seen = set()
    for step in range(5):
        batch = loader(store).batch(step)
        need = train.longest[batch.uid].max()
        length = min(size for size in (1, 3, 4) if size >= need)
        whole = train.read(batch.uid)
        for name, stream in batch.inputs.items():
            m = SPEC.modality(name).cut(length)
            assert stream.values.shape == (8, *m.shape), name
            assert stream.mask.sum() == whole[f"{name}/mask"].sum()  # nothing real was cut
            for part in ("values", "mask", "times", "observed"):
                if getattr(stream, part) is not None:
                    full = whole[f"{name}/{part}"]
                    assert_same(getattr(stream, part), full[:, : getattr(stream, part).shape[1]])
        seen.add(length)
    assert len(seen) > 1


def test_order_is_a_function_of_seed_and_step(train):
    assert_same(loader(train).batch(7), loader(train).batch(7))
    assert (window(loader(train), 5) != window(loader(train, seed=2), 5)).any()
    straight = [batch for _, batch in zip(range(9), loader(train).iter(), strict=False)]
    resumed = [batch for _, batch in zip(range(6), loader(train).iter(3), strict=False)]
    for first, second in zip(straight[3:], resumed, strict=True):  # from the middle of an epoch
        assert_same(first, second)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_take_blocks_of_the_same_batch_and_bucket(train, process_count):
    parts = [
        loader(train, process_index=p, process_count=process_count) for p in range(process_count)
    ]
    for step in (0, 2, 11):
        whole, blocks = loader(train).batch(step), [part.batch(step) for part in parts]
        assert_same(jax.tree.map(lambda *x: np.concatenate(x), *blocks), whole)


def test_dropout_of_modalities_and_windows_takes_cut_batches(train):
    drop = regularise.chain(
        regularise.modality_dropout(SPEC, 0.4), regularise.segment_loss(SPEC, rate=0.5, share=0.5)
    )
    for step in range(5):
        batch, lossy = loader(train).batch(step), loader(train, transform=drop).batch(step)
        assert_same(batch.uid, lossy.uid)
        assert batch.inputs["vitals"].mask.shape == lossy.inputs["vitals"].mask.shape
        assert lossy.present(SPEC).sum() < batch.present(SPEC).sum()


def test_an_order_of_rows_is_refused(train):
    with pytest.raises(ValueError, match="order='complete_first' sorts rows, buckets"):
        loader(train, order="complete_first", order_epochs=1)


def test_a_batch_longer_than_its_schema_or_uneven_is_refused(train):
    batch = next(eval_batches(train, 40))
    with pytest.raises(AssertionError):
        batches.check(SPEC.cut(3), batch)
    stream = batch.inputs["vitals"]
    uneven = {**batch.inputs, "vitals": stream.replace(values=stream.values[:, :3])}
    with pytest.raises(AssertionError):
        batches.check(SPEC, batch.replace(inputs=uneven))


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4, 64])
def test_evaluation_sees_every_record_once(built, batch_size, process_count):
    store = Store(built, "test")  # 9 rows
    parts = [
        [*eval_batches(store, batch_size, buckets=LENGTHS, process_index=p,
                       process_count=process_count)]
        for p in range(process_count)
    ]  # fmt: skip
    assert {len(part) for part in parts} == {-(-9 // batch_size)}  # as many as without buckets
    whole = [
        jax.tree.map(lambda *x: np.concatenate(x), *found) for found in zip(*parts, strict=True)
    ]
    uid = np.concatenate([batch.uid for batch in whole])
    assert sorted(uid[uid >= 0]) == [*range(9)] and (uid[9:] == -1).all()
    assert not np.concatenate([batch.weight for batch in whole])[uid < 0].any()
    lengths = [batch.inputs["vitals"].mask.shape[1] for batch in whole]
    assert lengths == sorted(lengths)
    for batch, length in zip(whole, lengths, strict=True):
        real = batch.uid[batch.uid >= 0]
        assert length == min(size for size in (1, 3, 4) if size >= store.longest[real].max())
