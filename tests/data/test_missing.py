import jax
import numpy as np
import pytest

from m4.data import missing, regularise
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


def thinned(batch, kind, seed=0, **arguments):
    """The batch, as a split of its own, after a mechanism took from it."""
    generator = seed if isinstance(seed, np.random.Generator) else rng(seed)
    split = missing.Split(
        SPEC, present(batch), lambda name, f: missing.mean_of(batch.inputs[name], f)
    )
    plan = missing.KINDS[kind](split, generator, **arguments)
    rows = {
        f"{name}/{part}": np.copy(array)
        for name, stream in batch.inputs.items()
        for part, array in vars(stream).items()
        if array is not None
    }
    for name, target in batch.targets.items():
        rows |= {f"y/{name}": target.value, f"y/{name}/mask": target.mask}
    rows = missing.lose_rows(SPEC, rows, plan, np.arange(len(batch.uid)))
    return assemble(SPEC, rows, batch.uid, batch.weight)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_modality_dropout_meets_its_rates():
    rates = {"vitals": 0.5, "note": 0.2, "xray": 1.0}
    kept = present(regularise.modality_dropout(SPEC, rates)(full_batch(4000), rng())).mean(0)
    for name, share in zip(NAMES, kept, strict=True):
        rate = rates.get(name, 0)
        # the other four modalities always stay, so nothing is ever saved from being dropped
        assert abs(1 - share - rate) <= 5 * (rate * (1 - rate) / 4000) ** 0.5, name


def test_modality_dropout_keeps_one_and_picks_it_evenly():
    everything = dict.fromkeys(NAMES, 1.0)
    batch = regularise.modality_dropout(SPEC, everything)(full_batch(7000), rng())
    assert (present(batch).sum(-1) == 1).all() and (batch.weight == 1).all()
    counts = present(batch).sum(0)  # 1,000 each, standard deviation 29
    assert np.abs(counts - 1000).max() < 150
    uneven = regularise.modality_dropout(SPEC, {**everything, "ecg": 0.5})
    counts = present(uneven(full_batch(7000), rng())).sum(0)
    # ecg stays by itself in 3,500 rows; in the others one of seven stays: 500 each
    assert abs(counts[-1] - 4000) < 200 and np.abs(counts[:-1] - 500).max() < 110


def test_dropout_of_a_row_ignores_its_batch_and_the_processes():
    transform = regularise.modality_dropout(SPEC, 0.4)
    whole = present(transform(full_batch(32), rng(5)))
    half = present(transform(full_batch(16, uid=np.arange(16, 32)), rng(5)))
    assert np.array_equal(whole[16:], half)
    assert not np.array_equal(whole, present(transform(full_batch(32), rng(6))))


def test_loader_applies_transforms_alike_on_any_number_of_processes(train):
    transform = regularise.modality_dropout(SPEC, 0.5)
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
    lost = thinned(batch, "mcar", rate=1.0)
    assert not any(stream.values.any() for stream in lost.inputs.values())
    assert not lost.weight.any()
    jax.tree.map(np.testing.assert_array_equal, batch, before)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_mcar_loses_an_exact_number_among_those_present(train, rate):
    batch = next(eval_batches(train, 40))
    lost = present(thinned(batch, "mcar", rate=rate))
    before = present(batch).sum(0)
    assert (np.abs(before * (1 - rate) - lost.sum(0)) < 1).all()
    assert not (lost & ~present(batch)).any()


def test_expected_rate_is_exact_even_in_small_batches():
    batch, generator = full_batch(4), rng()
    lost = [
        4 - present(thinned(batch, "mcar", generator, rate={"note": 0.3}))[:, 1].sum()
        for _ in range(500)
    ]
    assert set(lost) == {1, 2}  # 1.2 of 4
    assert abs(np.mean(lost) - 1.2) < 5 * (0.2 * 0.8 / 500) ** 0.5


def test_mar_follows_the_driver_and_spares_it():
    how = {"rate": {"note": 0.5}, "driver": "vitals"}
    lost = ~present(thinned(full_batch(1000), "mar", **how, strength=4.0))
    assert lost[:, 1].sum() == 500 and lost.sum() == 500
    # The standardised driver x is even on +-1.732 and half the rows go, so by symmetry the
    # threshold is 0 and P(lost | x) = sigmoid(4 x); its mean over the upper half is
    # (log(1 + exp(6.928)) - log 2) / 6.928 = 0.900, with standard error (0.09 / 500) ** 0.5
    assert abs(lost[500:, 1].mean() - 0.900) < 5 * 0.0134
    none = thinned(full_batch(1000), "mar", **how, strength=0.0)
    upper = (~present(none))[500:, 1].mean()
    assert abs(upper - 0.5) < 5 * 0.5 / 500**0.5
    with pytest.raises(ValueError, match="driver 'vitals' must stay"):
        missing.check(SPEC, {"kind": "mar", "rate": 0.5, "driver": "vitals"})


def test_mnar_follows_the_values_it_hides():
    rate = {"vitals": 0.3, "static": 0.3}
    lost = ~present(thinned(full_batch(1000), "mnar", rate=rate, strength=4.0))
    for m in (NAMES.index("vitals"), NAMES.index("static")):
        assert lost[:, m].sum() == 300
        assert lost[500:, m].sum() > 280
    assert not lost[:, NAMES.index("note")].any()


def test_segment_loss_removes_a_window_and_closes_the_gap():
    # 24 h, share 0.5: windows [s, s + 12] with s in [0, 12) hold 2 of the hours 0, 8, 16, 24
    # (s <= 4: 8 and 16 or 0 and 8, ...), always 1 or 2 of them
    transform = regularise.segment_loss(SPEC, rate=1.0, share=0.5, modalities=("vitals",))
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
    half = regularise.segment_loss(SPEC, rate=0.5, share=0.5, modalities=("vitals",))
    touched = (half(full_batch(2000), rng()).inputs["vitals"].mask.sum(-1) < 4).mean()
    assert abs(touched - 0.5) < 5 * 0.5 / 2000**0.5


def test_segment_loss_of_everything_spares_the_last_modality():
    only_vitals = np.ones((6, len(NAMES)), bool)
    only_vitals[:3, 0] = False
    batch = regularise.lose(SPEC, full_batch(6), only_vitals)
    assert batch.weight.tolist() == [1, 1, 1, 0, 0, 0]
    lost = regularise.segment_loss(SPEC, rate=1.0, share=1.0)(batch, rng())
    assert present(lost)[:, 0].tolist() == [True] * 3 + [False] * 3
    everything = regularise.segment_loss(SPEC, rate=1.0, share=1.0)(full_batch(6), rng())
    assert not present(everything)[:, :2].any() and present(everything)[:, 2:].all()


def test_chained_transforms_keep_the_invariants(train):
    transform = regularise.chain(
        regularise.segment_loss(SPEC, rate=0.5, share=0.3),
        regularise.modality_dropout(SPEC, 0.3),
    )
    loader = TrainLoader(missing.incomplete(train, {"kind": "mnar", "rate": 0.2}, 0), 16, seed=0)
    for step in range(5):
        check(SPEC, transform(loader.batch(step), rng(step)))


def test_blocks_go_together_in_an_exact_number_of_rows():
    groups = {"icu": ("vitals", "ecg"), "papers": ("note", "words")}
    lost = ~present(thinned(full_batch(40), "blocks", groups=groups, rate={"icu": 0.25}))
    columns = [NAMES.index(name) for name in ("vitals", "ecg")]
    assert lost[:, columns].all(-1).sum() == 10 and lost.sum() == 20
    batch, how = full_batch(5), {"groups": groups, "rate": {"icu": 0.3, "papers": 0.5}}
    generator = rng(1)
    counts = np.array(
        [
            (~present(thinned(batch, "blocks", generator, **how)))[:, [0, 1]].sum(0)
            for _ in range(400)
        ]
    )
    assert {*counts[:, 0]} == {1, 2} and {*counts[:, 1]} == {2, 3}  # 1.5 and 2.5 of 5
    assert np.abs(counts.mean(0) - [1.5, 2.5]).max() < 5 * 0.5 / 400**0.5
    kind = {"kind": "blocks"}
    with pytest.raises(ValueError, match="eeg: no such modality; modalities are vitals"):
        missing.check(SPEC, kind | {"groups": {"icu": ("eeg",)}, "rate": {"icu": 0.1}})
    with pytest.raises(ValueError, match="rate=.*: must be by group; groups are icu, papers"):
        missing.check(SPEC, kind | {"groups": groups, "rate": {"lab": 0.1}})


def test_gaps_are_runs_of_an_exact_length():
    before = full_batch(40)
    after = thinned(before, "gaps", rate={"vitals": 0.5}, share=0.5)
    length = after.inputs["vitals"].mask.sum(-1)
    assert sorted(length) == [2] * 20 + [4] * 20  # two of four positions in half of the rows
    third = after.inputs["vitals"].values[..., 1]  # positions hold 1, 2, 3, 4
    left = {tuple(row[:2]) for row in third[length == 2]}
    assert left == {(3, 4), (1, 4), (1, 2)}  # the run began at the first, second or third
    assert (third[length == 2][:, 2:] == 0).all()
    for name in set(NAMES) - {"vitals"}:
        assert np.array_equal(after.inputs[name].values, before.inputs[name].values)
    gone = thinned(before, "gaps", rate={"vitals": 1.0}, share=1.0).inputs["vitals"]
    assert not gone.present.any() and not gone.values.any()
    everything = thinned(before, "gaps", rate=0.5, share=0.5)  # of those with times
    check(SPEC, everything)
    assert np.array_equal(everything.inputs["static"].values, before.inputs["static"].values)
    with pytest.raises(ValueError, match="without times: static"):
        missing.check(SPEC, {"kind": "gaps", "rate": {"static": 0.5}, "share": 0.5})


def test_wrong_rates_are_refused():
    with pytest.raises(ValueError, match="notes: no such modality"):
        regularise.modality_dropout(SPEC, {"notes": 0.1})
    with pytest.raises(ValueError, match="within 0..1"):
        missing.check(SPEC, {"kind": "mcar", "rate": 1.5})
    with pytest.raises(ValueError, match=r"without times: \['ecg'\]"):
        regularise.segment_loss(SPEC, rate=0.1, share=0.1, modalities=("ecg",))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "mcar", "rate": 0.4},
        {"kind": "mar", "rate": {"note": 0.5}, "driver": "vitals", "feature": 1},
        {"kind": "mnar", "rate": 0.3, "features": {"vitals": 1}},
        {"kind": "blocks", "groups": {"icu": ("vitals", "ecg")}, "rate": {"icu": 0.5}},
        {"kind": "gaps", "rate": 0.5, "share": 0.5},
    ],
    ids=lambda options: options["kind"],
)
def test_an_incomplete_split_lacks_the_same_whoever_reads_it(train, options):
    store = missing.incomplete(train, options, 3)
    assert store.spec == train.spec and len(store) == len(train)
    whole = store.read(np.arange(len(store)))
    for rows in ([5], [7, 5, 2], np.arange(10)):
        for key, array in store.read(rows).items():
            np.testing.assert_array_equal(array, whole[key][rows])
    for key, array in store.columns([*whole]).items():
        np.testing.assert_array_equal(array, whole[key])
    before = train.read(np.arange(len(train)))
    assert any((whole[f"{n}/mask"] != before[f"{n}/mask"]).any() for n in NAMES)
    for key in (key for key in before if key.startswith("y/")):
        np.testing.assert_array_equal(whole[key], before[key])
    again, other = (missing.incomplete(train, options, s).read([*range(40)]) for s in (3, 4))
    assert all(np.array_equal(whole[key][:40], again[key]) for key in whole)
    assert any(not np.array_equal(again[key], other[key]) for key in whole)
    for size in (8, 40):
        batches = [*eval_batches(store, size)]
        values = np.concatenate([batch.inputs["vitals"].values for batch in batches])
        assert np.array_equal(values[: len(store)], whole["vitals/values"])


def test_wrong_options_are_refused_in_words():
    mar = {"kind": "mar", "rate": {"note": 0.5}}
    for options, words in (
        ({"kind": "mcarr"}, "must be one of mcar, mar, mnar, blocks, gaps; did you mean mcar?"),
        ({"kind": "mcar", "rates": 0.1}, "rates: kind='mcar' takes rate"),
        (mar, "driver: is missing, kind='mar' needs it"),
        (mar | {"driver": "x"}, "x: no such modality"),
        (mar | {"driver": "vitals", "feature": 9}, "feature 9 of 'vitals'"),
    ):
        with pytest.raises(ValueError, match=words):
            missing.check(SPEC, options)
    missing.check(SPEC, {})


def test_arguments_of_another_type_are_refused_in_words():
    """A command line can hold any value; none ends in an internal error or is passed over."""
    mar = {"kind": "mar", "rate": {"note": 0.5}, "driver": "vitals"}
    mnar = {"kind": "mnar", "rate": {"note": 0.5}}
    blocks = {"kind": "blocks", "rate": {"icu": 0.5}}
    for options, words in (
        ({"kind": ["mcar"], "rate": 0.1}, "must be one of mcar"),
        ({"kind": "mcar", "rate": {1: 0.1, "x": 0.1}}, "1, x: no such modality"),
        (mar | {"driver": None}, "None: no such modality"),
        (mar | {"driver": ["vitals"]}, "no such modality"),
        (mar | {"feature": True}, "feature True of 'vitals'"),
        (mar | {"strength": "a"}, "strength='a': must be a finite number"),
        (mar | {"strength": None}, "strength=None: must be"),
        (mar | {"strength": np.inf}, "strength=inf: must be"),
        (mnar | {"strength": np.nan}, "strength=nan: must be"),
        (mnar | {"features": 3}, "features=3: must be by modality"),
        (mnar | {"features": "vitals"}, "features='vitals': must be by modality"),
        (mnar | {"features": {"vitals": 9}}, "feature 9 of 'vitals'"),  # also where it stays
        (blocks | {"groups": ["icu"]}, "groups=.*: must be lists of modalities"),
        (blocks | {"groups": {"icu": "vitals"}}, "groups=.*: must be lists of modalities"),
        (blocks | {"groups": {"icu": []}}, "groups=.*: must be lists of modalities"),
        (blocks | {"groups": {}}, "groups={}: is empty"),
        ({"kind": "mcar", "rate": {}}, "rate={}: is empty"),
        ({"kind": "mcar", "rate": 2}, "rate=2: must be a number within 0..1"),
        ({"kind": "gaps", "rate": 0.5, "share": 2}, "share=2: must be a number within 0..1"),
    ):
        with pytest.raises(ValueError, match=words):
            missing.check(SPEC, options)
