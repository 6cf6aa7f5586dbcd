"""Reports of fabricated runs: every number in them is made up."""

import html.parser
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from m4 import seal
from m4.eval import damage
from m4.eval.report import page as report
from m4.eval.report import sections, words
from m4.eval.results import compose, write

SECTIONS = ["tasks", "subsets", "ranking", "calibration", "experts", "training", "cohort", "setup"]
PATIENT = 880_000_000


class Page(html.parser.HTMLParser):
    """Checks nesting and collects what could reach outside."""

    VOID = {"meta", "br", "link", "img", "hr", "input"}

    def __init__(self, text):
        super().__init__()
        self.stack, self.ids, self.links, self.tags = [], [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.stack.append(tag)
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [v for k, v in attrs.items() if k in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.stack = self.stack[:-1] if tag not in self.VOID else self.stack

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, tag


def fill(workdir, fabricate, *, rows=400, references=True, **kwargs):
    spec, subsets, predictions = fabricate(rows=rows, patient_offset=PATIENT, **kwargs)
    noise = np.random.default_rng(0)
    ihm = predictions.prediction["ihm"][0]
    found = {"boosting": {"ihm": ihm}, "linear": {"ihm": noise.random(ihm.shape)}}
    document = compose(
        predictions,
        spec,
        subsets,
        split="test",
        draws=60,
        references=found if references else None,
    )
    write(document, workdir)
    dump(workdir, "config.json", CONFIG)
    dump(workdir, "run.json", RUN)
    dump(workdir, "data.json", DATA)
    lines = [{"step": s, "train/loss": 1 / s, "time/input_wait": 0.25} for s in range(1, 900)]
    lines += [{"step": s, "val/ihm/auroc": 0.8 - abs(s - 600) / 1e4} for s in range(100, 900, 100)]
    lines += [{"step": 5, "train/moe/layer_0/entropy": 1.0, "train/task/ihm": None}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 901, "tra'
    (workdir / "metrics.jsonl").write_text(text)
    return document


def dump(workdir, name, value):
    (workdir / name).write_text(json.dumps(value))


CONFIG = {
    "seed": 3,
    "data": {"name": "synthetic", "raw_dir": "/secret/place", "dir": ""},
    "method": {"name": "fusemoe", "shape": [1, 2], "note": "<script>alert(1)</script>"},
    "train": {"select": "ihm/auroc"},
}
RUN = {
    "m4": "0.1",
    "git": "abc123",
    "python": "3.11",
    "devices": "1 x cpu",
    "seed": 3,
    "parameters": 1234567,
    "started": "today",
    "versions": {"jax": "0.10.2"},
}
DATA = {
    "name": "synthetic",
    "version": "1.2.3",
    "fingerprint": "f00d",
    "seed": 0,
    "licence": "none",
    "sources": {"a.csv": {}},
    "schema": {"tasks": [{"name": "ihm", "kind": "binary", "dim": 1}]},
    "flow": [["stays", 3400], ["adults", 3397], ["long stays", 3000], ["transplants", 4]],
    "splits": {
        "test": {
            "rows": 400,
            "patients": 360,
            "present": {"vitals": 320, "labs": 396, "ecg": 7},
            "labels": {"ihm": {"known": 400, "mean": 0.14}},
        }
    },
}


@pytest.fixture(scope="module")
def run(fabricate, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fabricated")
    document = fill(workdir, fabricate)
    return document, report.write(workdir).read_text()


def test_page_is_one_well_formed_self_contained_file(run):
    _, text = run
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert set(SECTIONS) <= set(page.ids)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    for link in page.links:
        files = ("data:image/png;base64,", "data:text/csv;", "data:text/plain;")
        assert link.startswith(("#", *files)), link[:80]
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert len(text) < 3_000_000


def test_page_says_what_matters(run):
    document, text = run
    assert "Research use only. Not a medical device." in text
    assert text.count("How to read:") >= 8
    assert "synthetic 1.2.3 (f00d)" in text and "seed 3" in text and "abc123" in text
    full = words.scores(document, "ihm")["auroc"]
    assert words.text(full["value"]) in text and words.interval(full) in text
    assert "patients prove nothing: treat every interval" in text
    assert "Selected: step 600, validation ihm/auroc = 0.800." in text
    assert "gradient boosting" in text and "logistic regression" in text
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_page_holds_no_patient_and_no_folder(run):
    _, text = run
    assert str(PATIENT)[:5] not in text
    assert "/secret/place" not in text


def test_small_cells_of_the_cohort_are_suppressed(run):
    _, text = run
    flow = sections.cohort(DATA, 10)["flow"]
    assert flow == [
        ("stays", "3,400"),
        ("adults", "within 10 of the line above"),
        ("long stays", "3,000"),
        ("transplants", "<10"),
    ]
    split = sections.cohort(DATA, 10)["splits"][0]
    assert split["present"] == {"vitals": "80%", "labs": "nearly all", "ecg": "rare"}
    assert "3,397" not in text


def test_combinations_of_modalities_are_drawn_without_the_rare_ones():
    schema = {"modalities": [{"name": "vitals"}, {"name": "ecg"}], "tasks": []}
    splits = {
        name: {"rows": 0, "patients": 0, "present": {}, "labels": {}, "patterns": patterns}
        for name, patterns in (("train", {"3": 1200, "1": 8, "2": 4}), ("test", {"3": 34, "1": 5}))
    }
    svg = sections.cohort({"schema": schema, "splits": splits}, 10)["presence"]
    drawn = {word for word in ("1,234", "13", "vitals", "ecg") if f">{word}<" in svg}
    assert drawn == {"1,234", "13", "vitals", "ecg"} and ">4<" not in svg
    assert sections.cohort(DATA, 10)["presence"] is None  # no modalities are known


def test_verdicts_are_plain(run):
    document, text = run
    assert {v["mood"] for v in words.verdicts(document)} == {"unknown"}  # of 240 patients
    assert "? not enough data to compare" in text and "✓ better than boosting" not in text
    enough = {**document, "patients": 5000}
    by_name = {v["reference"]: v for v in words.verdicts(enough)}
    # boosting has the model's own predictions: no difference, so it is not cleared
    assert not by_name["boosting"]["clears"] and by_name["boosting"]["mood"] == "level"
    assert "ihm: the model does not clear gradient boosting (AUROC " in by_name["boosting"]["text"]
    assert by_name["linear"]["clears"] and "is better than" in by_name["linear"]["text"]
    enough["tasks"] = {"ihm": {**document["tasks"]["ihm"], "events": 12}}  # but few outcomes
    assert {v["mood"] for v in words.verdicts(enough)} == {"unknown"}


def test_verdicts_take_all_comparisons_into_account():
    delta = {"auroc": {"value": 0.02, "low": 0.001, "high": 0.04, "p": 0.04}}
    card = {"primary": "auroc", "kind": "binary", "events": 900}
    tasks = {f"t{i}": card for i in range(10)}
    found = {"delta": delta, "metrics": {}}
    results = {
        "tasks": tasks,
        "patients": 9000,
        "references": {"linear": dict.fromkeys(tasks, found)},
    }
    assert {v["mood"] for v in words.verdicts(results)} == {"level"}
    results["references"] = {"linear": {"t0": found}}
    assert {v["mood"] for v in words.verdicts(results)} == {"good"}


def test_worse_model_is_called_worse():
    delta = {"mae": {"value": 0.3, "low": 0.1, "high": 0.5}}
    results = {
        "tasks": {"los": {"primary": "mae", "kind": "regression"}},
        "references": {"boosting": {"los": {"metrics": {}, "delta": delta}}},
    }
    (verdict,) = words.verdicts(results)
    assert not verdict["clears"] and "is worse than gradient boosting" in verdict["text"]


@pytest.mark.parametrize("gone", ["config.json", "run.json", "data.json", "metrics.jsonl", "all"])
def test_missing_pieces_are_named(fabricate, tmp_path, gone):
    if gone == "all":
        text = report.render(tmp_path)
        assert text.count('class="missing"') == 8
    else:
        fill(tmp_path, fabricate, modalities=("vitals",), tasks=("ihm",), references=False)
        (tmp_path / gone).write_text("{not json")
        text = report.render(tmp_path)
        said = re.findall(r'class="missing">(.*?)</p>', text)
        assert any(gone in line for line in said) or "no readable run.json" in text
        assert any("No reference rows" in line for line in said)
    Page(text)


def test_newer_schema_is_not_guessed_at(tmp_path):
    (tmp_path / "results").mkdir()
    dump(tmp_path, "results/test.json", {"schema": 99})
    assert "No readable results/*.json of schema 1" in report.render(tmp_path)


def test_many_modalities_and_few_patients(fabricate, tmp_path):
    names = ("vitals", "labs", "notes", "ecg", "cxr", "static", "codes")
    fill(tmp_path, fabricate, rows=25, modalities=names, experts=96, tasks=("ihm", "los"))
    text = report.render(tmp_path)
    Page(text)
    assert len(text) < 3_000_000
    assert "The 64 most used of 96 experts are shown" in text
    assert "patients with the outcome, or without it, prove nothing" in text


def test_terminal_table(run):
    document, _ = run
    out = io.StringIO()
    words.print_table(document, Console(file=out, width=80))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    full = words.scores(document, "ihm")["auroc"]
    assert words.text(full["value"]) in text
    assert "is not judged against gradient boosting" in text and "prove nothing" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0.84249, "0.842"), (-0.0001, "0.000"), (12.345, "12.3"), (-4321.0, "−4321")],
)
def test_numbers(value, expected):
    assert words.text(value) == expected


def test_report_needs_no_jax():
    code = (
        "import sys, m4.eval.report.page, m4.eval.results, m4.eval.baselines\n"
        "assert not {'jax', 'flax', 'tensorflow'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_stress_test_of_other_parameters_is_not_shown(fabricate, tmp_path):
    document = fill(tmp_path, fabricate)

    def best(step):
        note = tmp_path / f"checkpoints/best/{step}/meta/metadata"
        note.parent.mkdir(parents=True)
        note.write_text(json.dumps(seal.sealed({"note": {"step": step}, "leaves": {}})))
        return [damage.best(tmp_path)]

    def shown(**of):
        for name, own in (("stress.json", stress), ("results/test.json", document)):
            told = {"parameters": of[name[:6]]} if of[name[:6]] else {}
            seal.write(tmp_path, name, json.dumps(own | told))
        found, line = report._stress(
            tmp_path, json.loads((tmp_path / "results/test.json").read_text())
        )
        said = [*damage.lines(tmp_path), line or ""]
        return found is not None, any("is of other parameters than" in text for text in said)

    score = {"value": 0.8, "low": 0.7, "high": 0.9}
    told = {"score": score, "drop": score | {"p": 0.01, "p_holm": 0.01}}
    row = {"kind": "mcar", "rate": 0.1, "lost": 0.1, "emptied": 0, "tasks": {"ihm": told}}
    stress = {"schema": 1, "tasks": {"ihm": {"metric": "auroc"}}, "whole": {"ihm": score}}
    stress |= {"conditions": [row], "left_out": {}}
    before, now = best(2), best(4)
    assert shown(stress=now, result=now) == (True, False)
    assert shown(stress=before, result=now) == (False, True)
    assert shown(stress=now, result=before) == (False, True)
    assert shown(stress=None, result=now) == shown(stress=None, result=None) == (True, False)
    assert shown(stress=before, result=now) == (False, True)
    text = report.render(tmp_path)
    assert "Under other conditions" not in text and "stress.json is of other parameters" in text
    shutil.rmtree(tmp_path / "checkpoints")  # whose they are cannot be looked up any more
    assert shown(stress=before, result=before) == (True, False)
    assert shown(stress=before, result=now) == (False, True)
