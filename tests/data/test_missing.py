import jax
import numpy as np
import pytest

from m4.data import missing
from m4.data.batch import assemble, check
from m4.data.loader import TrainLoader, eval_batches
from m4.data.store import allocate
from tests.data.toy_cohort import SPEC

NAMES = SPEC.modality_names


def full_batch(num_rows, uid=None):
    """Everything present: `vitals` observed at hours 0, 8, 16, 24, its first feature the row."""
    rows = allocate(SPEC, num_rows)
    for key, array in rows.items():
        if key.rsplit("/")[-1] in ("mask", "present", "observed"):
            array[:] = 1
    rows["vitals/times"][:] = [0, 8, 16, 24]
    rows["vitals/values"][..., 0] = np.linspace(-1, 1, num_rows)[:, None]
    rows["vitals/values"][..., 1] = [1, 2, 3, 4]
    rows["static/values"][:, 0] = np.linspace(-1, 1, num_rows)
    uid = np.arange(num_rows) if uid is None else uid
    return assemble(SPEC, rows, uid, np.ones(num_rows))


def present(batch):
    return np.stack([batch.inputs[name].present for name in NAMES], -1)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_modality_dropout_meets_its_rates():
    rates = {"vitals": 0.5, "note": 0.2, "xray": 1.0}
    kept = present(missing.modality_dropout(SPEC, rates)(full_batch(4000), rng())).mean(0)
    for name, share in zip(NAMES, kept, strict=True):
        rate = rates.get(name, 0)
        # the other four modalities always stay, so nothing is ever saved from being dropped
        assert abs(1 - share - rate) <= 5 * (rate * (1 - rate) / 4000) ** 0.5, name


def test_modality_dropout_keeps_one_and_picks_it_evenly():
    everything = dict.fromkeys(NAMES, 1.0)
    batch = missing.modality_dropout(SPEC, everything)(full_batch(7000), rng())
    assert (present(batch).sum(-1) == 1).all() and (batch.weight == 1).all()
    counts = present(batch).sum(0)  # 1,000 each, standard deviation 29
    assert np.abs(counts - 1000).max() < 150
    uneven = missing.modality_dropout(SPEC, {**everything, "ecg": 0.5})
    counts = present(uneven(full_batch(7000), rng())).sum(0)
    # ecg stays by itself in 3,500 rows; in the others one of seven stays: 500 each
    assert abs(counts[-1] - 4000) < 200 and np.abs(counts[:-1] - 500).max() < 110


def test_dropout_of_a_row_ignores_its_batch_and_the_processes():
    transform = missing.modality_dropout(SPEC, 0.4)
    whole = present(transform(full_batch(32), rng(5)))
    half = present(transform(full_batch(16, uid=np.arange(16, 32)), rng(5)))
    assert np.array_equal(whole[16:], half)
    assert not np.array_equal(whole, present(transform(full_batch(32), rng(6))))


def test_loader_applies_transforms_alike_on_any_number_of_processes(train):
    transform = missing.modality_dropout(SPEC, 0.5)
    whole = TrainLoader(train, 16, seed=3, transform=transform).batch(4)
    parts = [
        TrainLoader(train, 16, seed=3, process_index=p, process_count=2, transform=transform)
        for p in range(2)
    ]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *[part.batch(4) for part in parts])
    jax.tree.map(np.testing.assert_array_equal, whole, joined)


def test_lost_modality_is_zero_and_the_argument_is_untouched(train):
    batch = next(eval_batches(train, 40))
    before = jax.tree.map(np.copy, batch)
    lost = missing.mcar(SPEC, 1.0)(batch, rng())
    assert not any(stream.values.any() for stream in lost.inputs.values())
    assert not lost.weight.any()
    jax.tree.map(np.testing.assert_array_equal, batch, before)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_mcar_loses_an_exact_number_among_those_present(train, rate):
    batch = next(eval_batches(train, 40))
    lost = present(missing.mcar(SPEC, rate)(batch, rng()))
    before = present(batch).sum(0)
    assert (np.abs(before * (1 - rate) - lost.sum(0)) < 1).all()
    assert not (lost & ~present(batch)).any()


def test_expected_rate_is_exact_even_in_small_batches():
    transform, generator = missing.mcar(SPEC, {"note": 0.3}), rng()
    lost = [4 - present(transform(full_batch(4), generator))[:, 1].sum() for _ in range(500)]
    assert set(lost) == {1, 2}  # 1.2 of 4
    assert abs(np.mean(lost) - 1.2) < 5 * (0.2 * 0.8 / 500) ** 0.5


def test_mar_follows_the_driver_and_spares_it():
    transform = missing.mar(SPEC, {"note": 0.5}, driver="vitals", strength=4.0)
    lost = ~present(transform(full_batch(1000), rng()))
    assert lost[:, 1].sum() == 500 and lost.sum() == 500
    # The standardised driver x is even on +-1.732 and half the rows go, so by symmetry the
    # threshold is 0 and P(lost | x) = sigmoid(4 x); its mean over the upper half is
    # (log(1 + exp(6.928)) - log 2) / 6.928 = 0.900, with standard error (0.09 / 500) ** 0.5
    assert abs(lost[500:, 1].mean() - 0.900) < 5 * 0.0134
    none = missing.mar(SPEC, {"note": 0.5}, driver="vitals", strength=0.0)
    upper = (~present(none(full_batch(1000), rng())))[500:, 1].mean()
    assert abs(upper - 0.5) < 5 * 0.5 / 500**0.5
    with pytest.raises(ValueError, match="driver 'vitals' must stay"):
        missing.mar(SPEC, 0.5, driver="vitals")


def test_mnar_follows_the_values_it_hides():
    transform = missing.mnar(SPEC, {"vitals": 0.3, "static": 0.3}, strength=4.0)
    lost = ~present(transform(full_batch(1000), rng()))
    for m in (NAMES.index("vitals"), NAMES.index("static")):
        assert lost[:, m].sum() == 300
        assert lost[500:, m].sum() > 280
    assert not lost[:, NAMES.index("note")].any()


def test_segment_loss_removes_a_window_and_closes_the_gap():
    # 24 h, share 0.5: windows [s, s + 12] with s in [0, 12) hold 2 of the hours 0, 8, 16, 24
    # (s <= 4: 8 and 16 or 0 and 8, ...), always 1 or 2 of them
    transform = missing.segment_loss(SPEC, rate=1.0, share=0.5, modalities=("vitals",))
    stream = transform(full_batch(300), rng()).inputs["vitals"]
    count = stream.mask.sum(-1)
    assert {*count.tolist()} <= {2, 3} and 2 in count
    assert np.array_equal(stream.mask, np.arange(4) < count[:, None])
    for row in range(300):
        left = stream.times[row, : count[row]]
        assert (np.diff(left) > 0).all() and {*left.tolist()} < {0, 8, 16, 24}
        # second feature is 1 + hour / 8: values moved together with their times
        assert np.array_equal(stream.values[row, : count[row], 1], 1 + left / 8)
        assert not stream.values[row, count[row] :].any()
    half = missing.segment_loss(SPEC, rate=0.5, share=0.5, modalities=("vitals",))
    touched = (half(full_batch(2000), rng()).inputs["vitals"].mask.sum(-1) < 4).mean()
    assert abs(touched - 0.5) < 5 * 0.5 / 2000**0.5


def test_segment_loss_of_everything_spares_the_last_modality():
    only_vitals = np.ones((6, len(NAMES)), bool)
    only_vitals[:3, 0] = False
    batch = missing.lose(SPEC, full_batch(6), only_vitals)
    assert batch.weight.tolist() == [1, 1, 1, 0, 0, 0]
    lost = missing.segment_loss(SPEC, rate=1.0, share=1.0)(batch, rng())
    assert present(lost)[:, 0].tolist() == [True] * 3 + [False] * 3
    everything = missing.segment_loss(SPEC, rate=1.0, share=1.0)(full_batch(6), rng())
    assert not present(everything)[:, :2].any() and present(everything)[:, 2:].all()


def test_chained_transforms_keep_the_invariants(train):
    transform = missing.chain(
        missing.segment_loss(SPEC, rate=0.5, share=0.3),
        missing.modality_dropout(SPEC, 0.3),
        missing.mnar(SPEC, 0.2),
    )
    for step in range(5):
        check(SPEC, transform(TrainLoader(train, 16, seed=0).batch(step), rng(step)))


def test_blocks_go_together_in_an_exact_number_of_rows():
    groups = {"icu": ("vitals", "ecg"), "papers": ("note", "words")}
    lost = ~present(missing.blocks(SPEC, groups, {"icu": 0.25})(full_batch(40), rng()))
    columns = [NAMES.index(name) for name in ("vitals", "ecg")]
    assert lost[:, columns].all(-1).sum() == 10 and lost.sum() == 20
    transform, generator = missing.blocks(SPEC, groups, {"icu": 0.3, "papers": 0.5}), rng(1)
    counts = np.array(
        [(~present(transform(full_batch(5), generator)))[:, [0, 1]].sum(0) for _ in range(400)]
    )
    assert {*counts[:, 0]} == {1, 2} and {*counts[:, 1]} == {2, 3}  # 1.5 and 2.5 of 5
    assert np.abs(counts.mean(0) - [1.5, 2.5]).max() < 5 * 0.5 / 400**0.5
    with pytest.raises(ValueError, match="unknown modalities"):
        missing.blocks(SPEC, {"icu": ("eeg",)}, {"icu": 0.1})
    with pytest.raises(ValueError, match="rates"):
        missing.blocks(SPEC, groups, {"lab": 0.1})


def test_gaps_are_runs_of_an_exact_length():
    before = full_batch(40)
    after = missing.gaps(SPEC, {"vitals": 0.5}, share=0.5)(before, rng())
    length = after.inputs["vitals"].mask.sum(-1)
    assert sorted(length) == [2] * 20 + [4] * 20  # two of four positions in half of the rows
    third = after.inputs["vitals"].values[..., 1]  # positions hold 1, 2, 3, 4
    left = {tuple(row[:2]) for row in third[length == 2]}
    assert left == {(3, 4), (1, 4), (1, 2)}  # the run began at the first, second or third
    assert (third[length == 2][:, 2:] == 0).all()
    for name in set(NAMES) - {"vitals"}:
        assert after.inputs[name] is before.inputs[name]
    gone = missing.gaps(SPEC, {"vitals": 1.0}, share=1.0)(before, rng()).inputs["vitals"]
    assert not gone.present.any() and not gone.values.any()
    everything = missing.gaps(SPEC, 0.5, share=0.5)(before, rng())  # of those with times
    check(SPEC, everything)
    assert everything.inputs["static"] is before.inputs["static"]
    with pytest.raises(ValueError, match=r"without times: \['static'\]"):
        missing.gaps(SPEC, {"static": 0.5}, share=0.5)


def test_wrong_rates_are_refused():
    with pytest.raises(ValueError, match=r"rates for \['notes'\]"):
        missing.modality_dropout(SPEC, {"notes": 0.1})
    with pytest.raises(ValueError, match="within 0..1"):
        missing.mcar(SPEC, 1.5)
    with pytest.raises(ValueError, match=r"without times: \['ecg'\]"):
        missing.segment_loss(SPEC, rate=0.1, share=0.1, modalities=("ecg",))
