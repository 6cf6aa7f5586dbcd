"""MIMIC-IV's records that contradict each other: every order of a stay's times, against an oracle.

The oracle knows nothing of intervals: it lists the hours at which a patient may have died by what
the tables say ("worlds"), and a label is what is so in all of them.
"""

import datetime
import itertools

import numpy as np
import pytest

from m4.data.sets import mimiciv
from m4.data.sets.mimiciv import labels, life
from m4.errors import DataError

BASE = datetime.datetime(2150, 1, 10)
NEVER = 10**6
TIMES = (7.25, 31.25, 94.25, 150.25, 215.25)  # in hours since BASE
POINTS = (*TIMES, *range(-24, 300), *range(300, 420 * 24, 24), NEVER)  # hours of death tried
ICU = "subject_id,hadm_id,stay_id,first_careunit,intime,outtime"
ADMISSIONS = (
    "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admission_location,"
    "discharge_location,insurance,hospital_expire_flag"
)
PATIENTS = "subject_id,gender,anchor_age,anchor_year,dod"


def when(hour):
    return "" if hour is None else str(BASE + datetime.timedelta(hours=hour))


def write(root, stays):
    """One patient each; a stay is a dict of hours, with `flag` and `dod` (of a day) beside them."""
    rows = {"icu/icustays": [ICU], "hosp/admissions": [ADMISSIONS], "hosp/patients": [PATIENTS]}
    for n, s in enumerate(stays, 1):
        rows["icu/icustays"].append(f"{n},{n},{n},MICU,{when(s['in'])},{when(s['out'])}")
        times = ",".join(when(s[name]) for name in ("admit", "end", "death"))
        flag = "" if s["flag"] is None else s["flag"]
        rows["hosp/admissions"].append(f"{n},{n},{times},URGENT,PACU,,Other,{flag}")
        rows["hosp/patients"].append(f"{n},F,60,2150,{when(s['dod'])[:10]}")
    for name, lines in rows.items():
        path = root / "mimiciv" / "2.2" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return root


def every_stay():
    """Every order of the five times, with and without nulls, and what is said of the death."""
    names = ("admit", "in", "out", "end", "death")
    for order in itertools.permutations(TIMES):
        s = dict(zip(names, order, strict=True))
        days = (None, s["death"], s["death"] - 400 * 24, s["death"] + 20 * 24)
        for flag, dod, null in itertools.product((0, 1, None), days, (None, "death", "end")):
            yield {**s, "flag": flag, "dod": dod, **({null: None} if null else {})}
        yield {**s, "flag": 1, "dod": None, "death": None, "end": None}
        yield {**s, "flag": 0, "dod": None, "death": None, "in": None}
        yield {**s, "flag": 0, "dod": s["death"], "death": None, "admit": None}


# --- the oracle ---------------------------------------------------------------------------------


def worlds(s):
    """Hours at which the patient may have died, whether in the hospital stay, and its end."""
    end = s["end"] if None in (s["end"], s["admit"]) or s["end"] > s["admit"] else None
    alive = max(s["in"], s["out"] if end is None else min(s["out"], end))  # in the ICU
    flag = s["flag"]
    if s["death"] is not None:
        if flag == 0 and s["death"] > s["in"]:
            return later(s["death"]), None, end
        if end is not None and s["death"] > s["in"] and s["death"] >= end + 24:
            return later(alive), None, end
        if s["dod"] is not None:
            first, last = (s["death"] if h is None else h for h in (s["admit"], end))
            first, last = min(first, s["death"]), max(last, s["death"])
            if not first - 48 <= s["dod"] // 24 * 24 <= last + 24:
                return later(s["death"]), None, end
        return [s["death"]], 1, end
    if s["dod"] is not None:
        day = range(int(s["dod"] // 24 * 24), int(s["dod"] // 24 * 24) + 25)
        found = [h for h in (*day, alive, s["in"], s["out"], end) if h is not None]
        found = [h for h in found if day[0] <= h <= day[-1]]
        if day[-1] > s["in"] and end is not None:
            if flag == 0 and day[-1] < end:
                return later(max(day[0], s["in"])), None, end
            if flag == 1 and day[0] > end:
                return later(alive), None, end
            found = [h for h in found if flag is None or (h <= end if flag else h >= end)]
        for bound in (alive, s["in"]):
            found = [h for h in found if h >= bound] or found
        if flag is None and end is not None:
            flag = 1 if max(found) <= end else 0 if min(found) > end else None
        return found, flag, end
    if flag == 0:
        return [NEVER], 0, end
    return [h for h in later(alive) if not flag or end is None or h <= end] or [alive], flag, end


def later(hour):
    return [h for h in POINTS if h >= hour]


def sure(values):
    return values.pop() if len(values := {*values}) == 1 else None


def right(s, limit):
    """Task -> label; None where a stay has none."""
    hours, died, end = worlds(s)
    lived = [min(s["out"], h) - s["in"] for h in hours]
    bins = [sum(max(x - limit, 0) / 24 >= d for d in (1, 2, 3, 4, 5, 6, 7, 8, 14)) for x in lived]
    days = [None if end is None else h // 24 - end // 24 if h < NEVER else NEVER for h in hours]
    known = None not in days
    return {
        "ihm48": died,
        "los": sure(x / 24 for x in lived),
        "los_under_96h": None if died is None else sure(x < 96 and died == 0 for x in lived),
        "los_remaining": sure(bins),
        "decompensation": sure(h - s["in"] - limit < 24 for h in hours) if died == 1 else died,
        "mortality_1y": sure(d <= 365 for d in days) if died == 0 and known else None,
        "readmission": sure(d < 30 for d in days) if died == 0 and known else None
        if died != 1 or max(hours) <= s["out"] or min(hours) < s["out"] else 1,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stays():
    return [*every_stay()]


@pytest.fixture(scope="module")
def raw(stays, tmp_path_factory):
    return write(tmp_path_factory.mktemp("raw"), stays)


def in_cohort(s, hours):
    """Whether a stay is long enough, possible, and its patient alive for so many hours of it."""
    if s["in"] is None or s["out"] <= s["in"]:
        return False
    found, _, end = worlds(s)
    if (end is not None and s["in"] > end) or (s["admit"] is not None and s["out"] < s["admit"]):
        return False
    return s["out"] - s["in"] >= hours and min(found) - s["in"] > hours


@pytest.mark.parametrize(("window", "hours"), [("48h", 48), ("stay", 0)])
def test_cohort_and_labels_of_every_order_of_the_times(raw, stays, window, hours):
    tasks = ("readmission", "mortality_1y", *(("ihm48", "los", "los_under_96h") if hours else ()))
    cohort = mimiciv.cohort(raw, seed=0, window=window, modalities=("static",), tasks=tasks)
    found = {e["patient"]: e["targets"] for start in cohort.splits.values() for e in start()}
    expected = {n for n, s in enumerate(stays, 1) if in_cohort(s, hours)}
    assert found.keys() == expected and len(expected) > 400
    for n, targets in found.items():
        wanted = right(stays[n - 1], 48)
        for task, value in targets.items():
            context = (task, stays[n - 1])
            assert (value is None) == (wanted[task] is None), (value, wanted[task], context)
            assert value is None or value == pytest.approx(float(wanted[task])), context


def test_labels_at_an_hour_of_every_order_of_the_times(raw, stays):
    table, _, _, _ = life.read(raw / "mimiciv" / "2.2")
    rows = [n for n, s in enumerate(stays) if in_cohort(s, 5)]
    table = table.take(rows)
    seen = {"decompensation": set(), "los_remaining": set()}
    for share, task in itertools.product((0.2, 0.6, 1), seen):
        limit = np.floor(share * table.hours_lived[0])
        got = labels.simple(task, table, limit)
        wanted = [right(stays[n], at)[task] for n, at in zip(rows, limit, strict=True)]
        np.testing.assert_array_equal(got, [np.nan if w is None else w for w in wanted])
        seen[task] |= {*wanted}
    assert [len(values) for values in seen.values()] == [3, 7]


def test_nothing_is_read_after_death(tmp_path):
    """The body stays until hour 90; the patient died at hour 40."""
    dead = {"admit": 0, "in": 1, "out": 91, "end": 95, "death": 41, "dod": 41, "flag": 1}
    fine = {**dead, "death": None, "dod": None, "flag": 0}
    raw = write(tmp_path, [dead, *[fine] * 9])
    lines = [f"1,1,{when(h)},,220045,{50 + h}" for h in (2, 30, 41, 42, 47, 80)]
    header = "subject_id,stay_id,charttime,storetime,itemid,valuenum"
    (raw / "mimiciv/2.2/icu/chartevents.csv").write_text("\n".join([header, *lines]) + "\n")

    def cohort(window, **options):
        made = mimiciv.cohort(raw, seed=0, window=window, modalities=("vitals",), **options)
        found = {e["patient"]: e for start in made.splits.values() for e in start()}
        return found, dict(made.flow)

    found, flow = cohort("48h", tasks=("ihm48", "los"))
    assert 1 not in found and len(found) == 9
    assert flow["ICU stays of at least 48 h"] == 10 and flow["ICU stays alive after 48 h"] == 9
    assert flow["records: left the ICU after death"] == 1
    found, _ = cohort("stay", tasks=("readmission",))
    np.testing.assert_array_equal(found[1]["inputs"]["vitals"]["times"], [1, 29, 40])
    found, _ = cohort("hour")
    assert found[1]["inputs"]["vitals"]["times"].max() <= 40


def test_stays_that_overlap_and_stays_after_death(tmp_path):
    """Patient 1 is in two ICUs at once, 2 comes back after death, 3 after the date of it."""
    stay = {"admit": 0, "in": 1, "out": 91, "end": 95, "death": None, "dod": None, "flag": 0}
    dead = {**stay, "death": 80, "out": 80, "end": 80, "flag": 1}
    raw = write(tmp_path, [stay, dead, {**stay, "dod": -9000}, *[stay] * 7])
    with open(raw / "mimiciv/2.2/icu/icustays.csv", "a") as file:
        file.write(f"1,1,101,MICU,{when(50)},{when(150)}\n2,102,102,MICU,{when(500)},{when(600)}\n")
        file.write(f"4,4,104,MICU,{when(91)},{when(150)}\n")  # moved on the hour: no overlap
    with open(raw / "mimiciv/2.2/hosp/admissions.csv", "a") as file:
        file.write(f"2,102,{when(499)},{when(601)},{when(599)},URGENT,PACU,,Other,1\n")
    tasks = ("ihm48", "mortality_1y")
    made = mimiciv.cohort(raw, seed=0, modalities=("static",), tasks=tasks)
    found = [e["patient"] for start in made.splits.values() for e in start()]
    assert sorted(found) == [2, 4, 4, 5, 6, 7, 8, 9, 10]
    flow = dict(made.flow)
    assert flow["ICU stays that overlap no other of the patient"] == 11
    assert flow["records: dead before the stay"] == 2


def test_a_later_death_in_hospital_counts_where_no_date_of_death_does(tmp_path):
    """Patient 1 dies in a second admission three months later, patient 2 within a month."""
    stay = {"admit": 0, "in": 1, "out": 91, "end": 95, "death": None, "dod": None, "flag": 0}
    raw = write(tmp_path, [stay] * 10)
    with open(raw / "mimiciv/2.2/hosp/admissions.csv", "a") as file:
        for n, day in ((1, 90), (2, 20)):
            times = f"{when(day * 24)},{when(day * 24 + 50)},{when(day * 24 + 50)}"
            file.write(f"{n},{n + 100},{times},URGENT,PACU,,Other,1\n")
    tasks = ("readmission", "mortality_1y")
    made = mimiciv.cohort(raw, seed=0, modalities=("static",), tasks=tasks)
    found = {e["patient"]: e["targets"] for start in made.splits.values() for e in start()}
    assert [found[n]["mortality_1y"] for n in (1, 2, 3)] == [1, 1, 0]
    assert [found[n]["readmission"] for n in (1, 2, 3)] == [0, 1, 0]


def test_who_died_without_a_time_of_death_is_counted(tmp_path):
    """Discharged dead at hour 61; the date of death, if any, is that of the discharge."""
    stay = {"admit": 0, "in": 1, "out": 61, "end": 62, "death": None, "dod": None, "flag": 1}
    raw = write(tmp_path, [stay, {**stay, "dod": 61}, *[{**stay, "flag": 0}] * 8])
    made = mimiciv.cohort(raw, seed=0, window="hour", modalities=("static",))
    assert dict(made.flow)["records: died in hospital without a time of death"] == 2
    table, _, _, _ = life.read(raw / "mimiciv" / "2.2")
    for hour, label in ((5, 0), (35, 0), (36.5, np.nan), (38, 1), (60, 1)):  # dead by hour 61
        found = labels.simple("decompensation", table, np.full(10, float(hour)))
        np.testing.assert_array_equal(found[:3], [label, label, 0])


@pytest.mark.parametrize(
    ("kind", "changes", "label"),
    [
        ("died in hospital, but a time of death after it", {"death": 119}, None),
        (None, {"death": 118}, 1),
        (None, {"death": 118, "flag": None}, 1),
        ("died in hospital, but a time of death after it", {"death": 119, "flag": None}, None),
        ("time and date of death differ", {"death": 95, "dod": 5 * 9000}, None),
        ("time and date of death differ", {"death": 95, "dod": -9000}, None),
        ("time and date of death differ", {"death": 95, "dod": 95 + 24}, 1),
        ("died in hospital neither 0 nor 1", {"flag": 2}, None),
    ],
)
def test_deaths_that_contradict_the_hospital_stay(tmp_path, kind, changes, label):
    stay = {"admit": 0, "in": 1, "out": 91, "end": 95, "death": None, "dod": None, "flag": 0}
    write(tmp_path, [{**stay, "flag": 1, **changes}, stay])
    table, _, _, counts = life.read(tmp_path / "mimiciv" / "2.2")
    np.testing.assert_array_equal(table.died, [np.nan if label is None else label, 0])
    assert {name: n for name, n in counts.items() if n} == ({kind: 1} if kind else {})
    lived = labels.simple("los", table, np.full(2, 48.0))
    np.testing.assert_allclose(lived, [90 / 24, 90 / 24])


def test_who_is_admitted_after_death(tmp_path):
    """Patients 1 to 4 die, by all that can say so; 1 to 5 are admitted again, 3 dies again."""
    stay = {"admit": 0, "in": 1, "out": 91, "end": 95, "death": None, "dod": None, "flag": 0}
    dead = {**stay, "death": 95, "flag": 1}
    soon = {**stay, "dod": 60 * 24}
    raw = write(tmp_path, [soon, dead, dead, {**dead, "death": None}, stay, soon, dead])
    with open(raw / "mimiciv/2.2/hosp/admissions.csv", "a") as file:
        for n in range(1, 6):
            death, flag = (when(9100), 1) if n == 3 else ("", 0)
            times = f"{when(9000)},{when(9100)},{death}"
            file.write(f"{n},{n + 100},{times},URGENT,PACU,,Other,{flag}\n")
    table, _, _, counts = life.read(raw / "mimiciv" / "2.2")
    assert counts["admitted after death"] == 4
    no = np.nan
    np.testing.assert_array_equal(table.died, [0, no, no, no, 0, 0, 1])
    year = labels.simple("mortality_1y", table, np.full(7, 48.0))
    np.testing.assert_array_equal(year, [no, no, no, no, 0, 1, no])


def test_admissions_that_enclose_the_discharge(tmp_path):
    stay = {"admit": 0, "in": 1, "out": 91, "end": 95, "death": None, "dod": None, "flag": 0}
    raw = write(tmp_path, [stay] * 5)
    with open(raw / "mimiciv/2.2/hosp/admissions.csv", "a") as file:
        for n, (begin, end) in enumerate([(-50, 200), (0, 200), (50, 200), (-50, 95)], 1):
            file.write(f"{n},{n + 100},{when(begin)},{when(end)},,URGENT,PACU,,Other,0\n")
    table, _, admissions, _ = life.read(raw / "mimiciv" / "2.2")
    found = labels.readmission(table, admissions)
    np.testing.assert_array_equal(found, [np.nan, np.nan, np.nan, 0, 0])


def test_nulls_match_no_null():
    found, known = life.lookup(np.array([5, -1, 3]), np.array([3, -1, 4, 5]))
    np.testing.assert_array_equal(known, [True, False, False, True])
    assert found[0] == 2 and found[3] == 0


def test_releases_without_deaths_outside_the_hospital(tmp_path):
    stay = {"admit": 0, "in": 1, "out": 91, "end": 95, "death": None, "dod": None, "flag": 0}
    raw = write(tmp_path, [stay] * 10)
    (raw / "mimiciv" / "2.2").rename(raw / "mimiciv" / "1.0")
    options = {"modalities": ("static",), "tasks": ("ihm48", "mortality_1y")}
    with pytest.raises(DataError) as caught:
        mimiciv.cohort(raw, seed=0, **options)
    (line,) = caught.value.lines()
    assert "data.options.tasks: mortality_1y needs deaths outside the hospital" in line
    assert "MIMIC-IV 1.0" in line and "2.0 or later" in line
    assert mimiciv.missing_files(raw, **options) == []
    mimiciv.cohort(raw, seed=0, modalities=("static",), tasks=("ihm48",))


def test_who_a_record_belongs_to(tmp_path):
    """Admission 1 is of another patient; the year of patient 2's age is unknown, 3's is later."""
    stay = {"admit": 0, "in": 1, "out": 91, "end": 95, "death": None, "dod": None, "flag": 0}
    raw = write(tmp_path, [stay] * 10)
    for name, old, new in (
        ("hosp/admissions", "\n1,1,", "\n4,1,"),
        ("hosp/patients", "\n2,F,60,2150", "\n2,F,60,"),
        ("hosp/patients", "\n3,F,60,2150", "\n3,F,60,2230"),
    ):
        path = raw / "mimiciv" / "2.2" / f"{name}.csv"
        path.write_text(path.read_text().replace(old, new))
    made = mimiciv.cohort(raw, seed=0, modalities=("static",), tasks=("ihm48",))
    found = {e["patient"]: e["inputs"] for start in made.splits.values() for e in start()}
    assert sorted(found) == [*range(2, 11)]
    assert dict(made.flow)["records: admission of another patient"] == 1
    ages = [found[n]["static"]["values"][0] for n in (2, 3, 4)]
    np.testing.assert_array_equal(ages, [np.nan, np.nan, 60])


def test_what_is_stored_within_a_second_after_the_window_is_not_known(tmp_path):
    stay = {"admit": 0, "in": 0, "out": 91, "end": 95, "death": None, "dod": None, "flag": 0}
    raw = write(tmp_path, [stay] * 10)
    stored = [f"{when(48)}.000", f"{when(48)}.500"]
    lines = [f"1,1,{when(40 + n)},{text},220045,80" for n, text in enumerate(stored)]
    header = "subject_id,stay_id,charttime,storetime,itemid,valuenum"
    (raw / "mimiciv/2.2/icu/chartevents.csv").write_text("\n".join([header, *lines]) + "\n")
    made = mimiciv.cohort(raw, seed=0, modalities=("vitals",), tasks=("ihm48",))
    (one,) = [e for start in made.splits.values() for e in start() if e["inputs"]]
    np.testing.assert_array_equal(one["inputs"]["vitals"]["times"], [40])


def test_oxygen_is_a_fraction(tmp_path):
    stay = {"admit": 0, "in": 1, "out": 91, "end": 95, "death": None, "dod": None, "flag": 0}
    raw = write(tmp_path, [stay] * 10)
    charted = (0.5, 50, 5, 1, 100, 0.21, 21, 19, 20, 0.2, 101, 1.5)
    lines = [f"1,1,{when(2 + n)},,223835,{value}" for n, value in enumerate(charted)]
    header = "subject_id,stay_id,charttime,storetime,itemid,valuenum"
    (raw / "mimiciv/2.2/icu/chartevents.csv").write_text("\n".join([header, *lines]) + "\n")
    header = "subject_id,charttime,storetime,itemid,valuenum\n"
    (raw / "mimiciv/2.2/hosp/labevents.csv").write_text(header)
    made = mimiciv.cohort(raw, seed=0, modalities=("benchmark", "flexcare"), tasks=("ihm48",))
    (one,) = [e for start in made.splits.values() for e in start() if e["patient"] == 1]
    column = made.spec.modality("benchmark").features.index("fio2")
    values = one["inputs"]["benchmark"]["values"][:, column]
    np.testing.assert_allclose(values, [0.5, 0.5, 1, 1, 0.21, 0.21, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(one["inputs"]["benchmark"]["times"], [1, 2, 4, 5, 6, 7, 9])
    column = made.spec.modality("flexcare").features.index("fio2")
    binned = one["inputs"]["flexcare"]["values"][:10, column] * 0.1714931950435367
    expected = [0.5, 0.5, 0.5, 1, 1, 0.21, 0.21, 0.21, 0.2, 0.2]  # what is dropped is carried on
    np.testing.assert_allclose(binned + 0.2941986945120962, expected, rtol=1e-5)
    assert dict(made.flow)["benchmark: dropped, out of range"] == 5
