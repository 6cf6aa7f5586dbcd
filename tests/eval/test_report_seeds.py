"""The page of one run among others that differ in the seed alone: what it shows of them."""

import json
import re
import shutil

import numpy as np
import pytest

from m4.eval import over_seeds
from m4.eval.report import page
from m4.eval.results import compose, write

CONFIG = {"data": {"name": "synthetic"}, "method": {"name": "fusemoe"}, "train": {}}


def train(folder, fabricate, *, seed, noise, config=None):
    """A work directory of one seed: the same patients, other answers."""
    folder.mkdir()
    spec, chosen, found = fabricate(rows=200, tasks=["ihm", "los"])
    for p in found.prediction.values():
        p *= 1 + noise * np.random.default_rng(seed).uniform(-1, 1, p.shape[1:]).astype(np.float32)
    document = compose(found, spec, chosen, split="test", draws=50)
    write(document, folder)
    (folder / "config.json").write_text(json.dumps({"seed": seed} | (config or CONFIG)))
    return document


@pytest.fixture(scope="module")
def family(fabricate, tmp_path_factory):
    """Three seeds beside each other, and neighbours that are something else."""
    place = tmp_path_factory.mktemp("runs")
    documents = {
        seed: train(place / f"s{seed}", fabricate, seed=seed, noise=0.2 * seed)
        for seed in (0, 1, 2)
    }
    other = CONFIG | {"method": {"name": "m3h"}}
    train(place / "other", fabricate, seed=7, noise=0.9, config=other)
    (place / "damaged").mkdir()
    (place / "damaged" / "config.json").write_text('{"seed": 8')
    (place / "untested").mkdir()
    (place / "untested" / "config.json").write_text(json.dumps({"seed": 9} | CONFIG))
    return place, documents


def estimates(documents, task, metric):
    return [
        next(r for r in d["scores"] if r["task"] == task and r["subset"] == "full")["metrics"][
            metric
        ]
        for d in documents.values()
    ]


def section(text):
    return re.search(r'<section[^>]*id="seeds".*?</section>', text, re.S)


def test_each_seed_and_their_mean_are_shown(family):
    place, documents = family
    text = section(page.render(place / "s1"))[0]
    rows = [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r"<tr.*?</tr>", text, re.S)]
    named = [next(w for w in ("seed 0", "seed 1", "seed 2", "mean of seeds") if w in row)
             for row in rows[1:]]  # fmt: skip
    assert named == ["seed 0", "seed 1", "seed 2", "mean of seeds"]
    assert not any(f"seed {other}" in text for other in (7, 8, 9))
    for task, metric in (("ihm", "auroc"), ("los", "mae")):
        known = estimates(documents, task, metric)
        for row, e in zip(rows[1:4], known, strict=True):
            assert f"{e['value']:.3f}" in row or f"{e['value']:.3g}" in row
        mean, ends = np.mean([e["value"] for e in known]), over_seeds.interval(known)
        for number in (mean, *ends):
            assert f"{number:.3f}" in rows[4] or f"{number:.3g}" in rows[4]
        assert ends[1] - ends[0] > max(e["high"] - e["low"] for e in known) * 0.9


def test_a_run_alone_has_no_such_section(family, tmp_path, fabricate):
    train(tmp_path / "alone", fabricate, seed=0, noise=0.0)
    assert section(page.render(tmp_path / "alone")) is None
    place, _ = family
    assert section(page.render(place / "other")) is None


def test_seeds_that_drew_the_patients_are_not_paired(family, tmp_path):
    place, _ = family
    for seed in (0, 1, 2):
        shutil.copytree(place / f"s{seed}", tmp_path / f"s{seed}")

    def last(*prints, keys=""):
        for seed, name in enumerate(prints):
            files = {"index/test.parquet": keys} if keys else {}
            told = json.dumps({"fingerprint": name, "seed": seed, "files": files})
            (tmp_path / f"s{seed}/data.json").write_text(told)
        text = section(page.render(tmp_path / "s0"))[0]
        rows = [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r"<tr.*?</tr>", text, re.S)]
        return text, len(rows) - 2, rows[-1]

    text, count, mean = last("a", "b", "c")
    assert "on patients of its own" in text and "on the same patients" not in text
    assert count == 3 and "mean of seeds" in mean and " to " not in mean and "[" not in mean
    text, count, paired = last("a", "a", "c")  # the third is of other patients
    assert "tested on the same patients" in text and count == 2 and len(paired) > len(mean)
    assert last("a", "a", "a")[1] == 3
    text, count, _ = last("a", "b", "c", keys="x")  # who is validated differs, not who is tested
    assert "tested on the same patients" in text and count == 3


def test_an_interval_ends_where_its_metric_does():
    pair = [{"value": v, "low": v - 0.02, "high": min(1.0, v + 0.02)} for v in (0.99, 0.9)]
    assert over_seeds.interval(pair, "auroc")[1] == 1.0
    assert over_seeds.interval(pair, "log_loss") == over_seeds.interval(pair)
    assert over_seeds.interval(pair)[1] > 1.0
