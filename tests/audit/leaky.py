"""A data set outside the tree: sound, or with one leak each."""

import numpy as np

from m4.data.cohort import Cohort
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION, LICENCE, WHERE = "1", "Apache-2.0", "generated"
# Leak -> the check that has to find it.
LEAKS = {
    "feature": "no_feature_tells_the_label",
    "feature known": "no_feature_tells_the_label",
    "late note": "no_feature_tells_the_label",
    "value": "no_feature_tells_the_label",
    "presence": "presence_tells_no_label",
    "two of three": "presence_tells_no_label",
    "copied row": "no_duplicate_rows",
    "row twice": "no_duplicate_rows",
    "other name": "no_duplicate_rows",
    "future": "nothing_after_the_window",
}
SHARES = (("train", 0.6), ("val", 0.2), ("test", 0.2))


def spec(*, leak="", rows=400):
    return DataSpec(
        (
            ModalitySpec("vitals", "series", (4, 2)),
            ModalitySpec("static", "table", (5,)),
            ModalitySpec("notes", "vectors", (2, 3)),
        ),
        (
            TaskSpec("death", "binary"),
            TaskSpec("stay", "regression"),
            TaskSpec("ward", "multiclass", dim=3),
        ),
    )


def missing_files(raw_dir, **options):
    return []


def cohort(raw_dir, *, seed, leak="", rows=400):
    made = [_example(i, seed, leak) for i in range(rows)]
    where = np.cumsum([0.0, *(share for _, share in SHARES)]) * rows
    splits = {
        name: made[int(low) : int(high)]
        for (name, _), low, high in zip(SHARES, where, where[1:], strict=False)
    }
    if leak == "copied row":  # the same data of another patient, in another split
        splits["test"][3] |= {"inputs": splits["train"][3]["inputs"]}
    if leak == "row twice":
        splits["train"].insert(7, splits["train"][7])
    if leak == "other name":
        splits["train"][7] |= {"inputs": splits["train"][8]["inputs"]}
    given = {name: lambda name=name: iter(splits[name]) for name in splits}
    return Cohort(spec(), given, {}, LICENCE, VERSION)


def _example(number, seed, leak):
    rng = np.random.default_rng((seed, number))
    risk = rng.normal()
    death = float(rng.random() < 1 / (1 + np.exp(-risk)))
    stay, ward = float(np.exp(0.3 * risk + rng.normal())), int(rng.integers(3))
    static = rng.normal(size=5)
    static[0] += risk
    static[1] = rng.integers(2)
    static[rng.random(5) < 0.2] = np.nan
    vitals = rng.normal(size=(3, 2)) + risk / 2
    times = np.sort(rng.uniform(0, 48, 3))
    notes = rng.normal(size=(2, 3))
    has = rng.random(2) < 0.6
    if leak == "feature":
        static[4] = death + 0.1 * rng.normal()
    if leak == "feature known":
        static[4] = rng.normal() if death else np.nan
    if leak == "late note":
        notes[:, 1] += 8 * (ward == 2)
        has[:] = True
    if leak == "value":
        static[4] = np.log(stay)
    if leak == "presence":
        has[0] = bool(death) if rng.random() < 0.98 else not death
    if leak == "two of three":
        has[1] = has[0] != bool(death)  # either alone says nothing
    if leak == "future":
        times[-1] = 50.0
    inputs = {"static": {"values": static.astype(np.float32)}}
    if has[0]:
        inputs["vitals"] = {"values": vitals.astype(np.float32), "times": times.astype(np.float32)}
    if has[1]:
        stamps = np.sort(rng.uniform(0, 48, 2)).astype(np.float32)
        inputs["notes"] = {"values": notes.astype(np.float32), "times": stamps}
    return {
        "patient": number,
        "inputs": inputs,
        "targets": {"death": death, "stay": stay, "ward": ward},
    }
