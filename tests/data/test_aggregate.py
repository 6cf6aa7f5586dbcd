import numpy as np
import pytest

from m4.data import aggregate
from m4.data.store import Store
from tests.data.toy_cohort import SPEC, build_into, make_cohort


def test_hand_computed_series(tmp_path):
    # feature hr over 4 steps: 2, -, 4, 9; lactate: -, 7, -, - (raw values: no scaling to undo)
    def make(patient):
        inputs = {
            "vitals": {
                "values": [[2, np.nan], [np.nan, 7], [4, np.nan], [9, np.nan]],
                "times": [0, 1, 2, 3],
            },
            "static": {"values": [np.nan, 1]},
            "icd": {"values": [3, 3, 1]},
        }
        return {
            "patient": patient,
            "inputs": inputs if patient % 2 else {},
            "targets": {"death": 1},
        }

    store = Store(
        build_into(tmp_path, make_cohort(make, (("train", 4), ("val", 2), ("test", 2)))), "train"
    )
    for fitted in store.manifest["normalisers"]["vitals"]:
        assert fitted["transform"] == "none"
    table, names = aggregate.table(store, include=("vitals", "static", "icd"))
    assert table.shape == (4, len(names)) and table.dtype == np.float32
    assert len({*names}) == len(names)
    row = dict(zip(names, table[1].tolist(), strict=True))
    hr = store.manifest["normalisers"]["vitals"][0]
    scale = lambda x: (x - hr["mean"]) / hr["std"]  # noqa: E731
    assert row["vitals/hr/first"] == pytest.approx(max(scale(2), hr["low"]))
    assert row["vitals/hr/last"] == row["vitals/hr/max"] == pytest.approx(hr["high"])
    assert row["vitals/hr/min"] == row["vitals/hr/first"]
    three = np.clip([scale(2), scale(4), scale(9)], hr["low"], hr["high"])
    assert row["vitals/hr/mean"] == pytest.approx(three.mean(), abs=1e-6)
    assert row["vitals/hr/std"] == pytest.approx(three.std(), rel=1e-5)
    assert row["vitals/hr/count"] == 3 and row["vitals/lactate/count"] == 1
    assert row["vitals/lactate/last"] == row["vitals/lactate/first"] == 1  # constant: v / |v|
    assert np.isnan(row["vitals/lactate/std"]) and np.isnan(row["static/age"])
    assert row["static/sex"] == 1 and row["vitals/present"] == 1
    assert [row[f"icd/id {v}"] for v in range(5)] == [0, 1, 0, 2, 0]
    empty = dict(zip(names, table[0].tolist(), strict=True))
    assert empty["vitals/present"] == empty["vitals/hr/count"] == empty["icd/id 3"] == 0
    assert np.isnan([empty["vitals/hr/last"], empty["vitals/hr/mean"], empty["static/sex"]]).all()


def test_equals_a_loop_over_rows(train):
    table, names = aggregate.table(train)
    rows = train.read(range(len(train)))
    column = {name: table[:, j] for j, name in enumerate(names)}
    for i in range(len(train)):
        for f, feature in enumerate(("hr", "lactate")):
            seen = rows["vitals/values"][i, rows["vitals/observed"][i, :, f], f]
            assert column[f"vitals/{feature}/count"][i] == len(seen)
            if len(seen):
                got = [column[f"vitals/{feature}/{s}"][i] for s in ("first", "last", "min", "max")]
                assert got == [seen[0], seen[-1], seen.min(), seen.max()]
                assert column[f"vitals/{feature}/mean"][i] == pytest.approx(seen.mean(), abs=1e-6)
        kept = rows["note/values"][i][rows["note/mask"][i]]
        expected = kept.mean(0)[0] if len(kept) else np.nan
        assert column["note/0"][i] == pytest.approx(expected, abs=1e-6, nan_ok=True)
        kept = rows["ecg/values"][i, rows["ecg/mask"][i], 0]
        assert column["ecg/length"][i] == len(kept)
        for part, piece in enumerate(np.repeat(kept, 8).reshape(8, -1)):  # equal parts of it
            expected = piece.mean() if len(kept) else np.nan
            got = column[f"ecg/0/part {part + 1}"][i]
            assert got == pytest.approx(expected, abs=1e-6, nan_ok=True)
        for y, x in np.ndindex(2, 2):
            there = rows["xray/present"][i]
            expected = rows["xray/values"][i, 0, y, x, 0] if there else np.nan
            assert column[f"xray/0/{y},{x}"][i] == pytest.approx(expected, nan_ok=True)
        for modality in SPEC.modalities:
            present = rows[f"{modality.name}/present"][i]
            assert column[f"{modality.name}/present"][i] == present


def test_unknown_modality_is_refused(train):
    with pytest.raises(ValueError, match="include="):
        aggregate.table(train, include=("labs",))
