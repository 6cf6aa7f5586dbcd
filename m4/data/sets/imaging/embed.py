"""EMBED, the Emory Breast Imaging Dataset, open release (Jeong et al., Radiology: AI 2023).

    embed/tables/EMBED_OpenData_metadata.csv     one row per file
    embed/tables/EMBED_OpenData_clinical.csv     one row per finding
    embed/images/cohort_<n>/<patient>/<study>/<file>.dcm

A record is a breast of an exam (`acc_anon` and side) with up to four views, the first file of
each; magnification views are left out. Findings are joined by exam *and side*, as the owners ask:

- density: the exam's, A to D; a male breast has none;
- BI-RADS: the worst assessment of findings of this side or of both; A (further images needed)
  without a worse one is no label, and so is a side of which no finding speaks;
- risk: cancer proven (path_severity 0 or 1) in the patient from the exam's date to a year later.
  Follow-up ends with the patient's last exam; if that is earlier and without cancer: no label,
  nor with a cancer whose date is not known.

`record="exam"` is M4oE's release: the first file of each view from either side.
"""

import datetime
from collections import Counter
from pathlib import Path

from m4 import local
from m4.data import identifiers
from m4.data.cohort import patient_number
from m4.data.sets.imaging.exam import (
    NO_ID,
    NO_SIDE,
    SIDES,
    TWICE,
    Exam,
    Picture,
    Row,
    age_band,
    disagreeing,
    rows,
)
from m4.errors import DataError
from m4.specs import text_problem

LICENCE = "EMBED Open Data licence, research only, not to be redistributed"
FOLDERS = ("embed*", "EMBED*")
CLINICAL = "tables/EMBED_OpenData_clinical.csv"
TABLE = METADATA = "tables/EMBED_OpenData_metadata.csv"
NEW = (TABLE,)
NEEDS = {CLINICAL: "findings", "images": "DICOM"}
CLINICAL_COLUMNS = (
    "empi_anon", "acc_anon", "study_date_anon", "side", "asses", "tissueden", "path_severity",
    "procdate_anon",
)  # fmt: skip
GROUPS = {"age_band": "age_at_study", "ethnicity": "ETHNICITY_DESC"}  # columns of the findings
METADATA_COLUMNS = (
    "empi_anon", "acc_anon", "study_date_anon", "FinalImageType", "ImageLateralityFinal",
    "ViewPosition", "spot_mag", "anon_dicom_path",
)  # fmt: skip
TYPES = {"cview": "cview", "c-view": "cview", "2d": "ffdm"}
BIRADS = {"N": 0, "B": 1, "P": 1, "S": 2, "M": 2, "K": 2}  # A: more images needed, so no label
WORST = "NBPASMK"  # in this order
DENSITY = {str(k): k for k in range(1, 6)}  # 1 is A; 5 a male patient
CANCER = ("0", "1")  # invasive, in situ
YEAR = 365  # so that an exam of the same date a year later ends it


def load(
    root: Path, flow: list, *, record: str, new: bool = False
) -> tuple[list[Exam], list[Path]]:
    """Breasts (or exams) in the order of the image table, and the tables read.

    Of `new` ones the findings may be lacking; then nothing is known of them.
    """
    forms: dict[str, identifiers.Forms] = {}
    images = rows(root / TABLE, METADATA_COLUMNS, forms)
    known = not new or (root / CLINICAL).exists()
    columns, optional = (*CLINICAL_COLUMNS, *GROUPS.values()), [*GROUPS.values()]
    clinical = rows(root / CLINICAL, columns, forms, optional=optional) if known else []
    pictured, seen = ({row["acc_anon"] for row in table} for table in (images, clinical))
    identifiers.require_match(pictured, seen, f"{root / CLINICAL}: of the exams in {TABLE}")
    findings = _Findings(clinical, images)
    place = ("acc_anon", "ImageLateralityFinal", "ViewPosition")
    twice = disagreeing(images, ("anon_dicom_path",), place)
    exams: dict[tuple[str, str], Exam] = {}
    counts: Counter[str] = Counter()
    for line, row in enumerate(images, start=2):
        kind = TYPES.get(row["FinalImageType"].lower())
        view, side = row["ViewPosition"].lower(), row["ImageLateralityFinal"]
        if not kind or view not in ("cc", "mlo") or row["spot_mag"] == "1":
            continue
        if not (row["acc_anon"] and row["empi_anon"] and row["anon_dicom_path"]):
            counts[NO_ID] += 1
        elif (row["acc_anon"],) in findings.torn:
            counts["images of exams of two patients, left out"] += 1
        elif (row["anon_dicom_path"],) in twice:
            counts[TWICE] += 1
        elif record == "breast" and side not in SIDES:
            counts[NO_SIDE] += 1
        else:
            key = (row["acc_anon"], side if record == "breast" else "")
            if key not in exams:
                labels = findings.labels(row, key[1]) if known else {}
                name = f"{row['acc_anon']}-{key[1]}".rstrip("-")
                who = row["empi_anon"]
                exams[key] = Exam(patient_number(who), {}, labels, key=(who, None, name))
                exams[key].groups = findings.groups(row["acc_anon"])
            where = f"{TABLE} line {line}"
            path = _place(root / "images", row["anon_dicom_path"], where)
            picture = Picture(path, "mammogram", where, side)
            exams[key].pictures.setdefault(f"{kind}_{view}", picture)
    flow += [("images in the table", len(images))]
    flow += [(f"{record}s with a standard view", len(exams)), *sorted(counts.items())]
    flow += findings.flow({exam for exam, _ in exams})
    return [*exams.values()], [*([root / CLINICAL] if known else []), root / TABLE]


def labels(
    density: int, assessment: str, years_to_cancer: float, years_seen: float, *, horizon: float = 1
) -> dict[str, int | None]:
    """Labels of one exam or breast; None where there is none.

    Args:
      density: BI-RADS density, 1 (A) to 4 (D); 5 is a male patient.
      assessment: one of N B P S M K, or A (further images needed), which is no label.
      years_to_cancer: from the exam to a proven cancer, infinite if there is none.
      years_seen: follow-up without cancer. The release counts a patient who was lost before the
        horizon as free of cancer; here that is no label.
      horizon: of the risk, in years.
    """
    risk = int(years_to_cancer <= horizon)
    return {
        "density": density - 1 if 1 <= density <= 4 else None,
        "birads": BIRADS.get(assessment),
        "risk_1y": risk if risk or years_seen >= horizon else None,
    }


class _Findings:
    """Clinical rows by exam; dates of exams, of proven cancers and of the last exam of a patient.

    `torn` are exams that the tables give to two patients. What the tables contradict is unknown.
    """

    def __init__(self, findings: list[Row], images: list[Row]):
        everything = [*findings, *images]
        self.torn = disagreeing(everything, ("acc_anon",), ("empi_anon",))
        self._dated_twice = disagreeing(everything, ("acc_anon",), ("study_date_anon",))
        self._dense_twice = disagreeing(findings, ("acc_anon",), ("tissueden",))
        self._exam: dict[str, list[Row]] = {}
        self._cancer: dict[str, list[datetime.date]] = {}
        self._undated: Counter[str] = Counter()  # patient -> cancers at an unknown time
        self._early = 0
        self._last: dict[str, datetime.date] = {}
        for row in findings:
            self._exam.setdefault(row["acc_anon"], []).append(row)
            if row["path_severity"] in CANCER:
                proven, seen = _date(row["procdate_anon"]), _date(row["study_date_anon"])
                if proven:
                    self._cancer.setdefault(row["empi_anon"], []).append(proven)
                    self._early += bool(seen and proven < seen)
                else:
                    self._undated[row["empi_anon"]] += 1
        for row in everything:
            day, who = self._day(row), row["empi_anon"]
            if day:
                self._last[who] = max(day, self._last.get(who, day))

    def _day(self, row: Row) -> datetime.date | None:
        unknown = (row["acc_anon"],) in self._dated_twice
        return None if unknown else _date(row["study_date_anon"])

    def labels(self, image: Row, side: str) -> dict[str, int | None]:
        """Labels of a side ('' for both) of the exam that an image is from."""
        exam, who, day = image["acc_anon"], image["empi_anon"], self._day(image)
        found = self._exam.get(exam, [])
        mine = [row for row in found if not side or row["side"] in (side, "B", "")]
        worst = max(
            (r["asses"] for r in mine if r["asses"] in [*WORST]), key=WORST.index, default=""
        )
        density = next((row["tissueden"] for row in found if row["tissueden"]), "")
        density = DENSITY.get(density if (exam,) not in self._dense_twice else "", 0)
        if day is None:
            return labels(density, worst, float("inf"), 0)
        later = [(date - day).days / YEAR for date in self._cancer.get(who, []) if date >= day]
        seen = 0 if who in self._undated else (self._last[who] - day).days / YEAR
        return labels(density, worst, min(later, default=float("inf")), seen)

    def groups(self, exam: str) -> dict[str, str]:
        """Who the patient of an exam is, as its first finding says; "" where none does."""
        first = next(iter(self._exam.get(exam, [])), dict.fromkeys(GROUPS.values(), ""))
        age, ethnicity = (first[column] for column in GROUPS.values())
        said = ethnicity if text_problem(ethnicity) is None else ""
        return {"age_band": age_band(age), "ethnicity": "" if "nknown" in said else said}

    def flow(self, shown: set[str]) -> list[tuple[str, int]]:
        """How often the tables contradict each other; `shown` are the exams with an image."""
        return [
            ("exams with findings but no standard view", len(self._exam.keys() - shown)),
            ("exams with a standard view but no findings", len(shown - self._exam.keys())),
            ("exams with two dates, no risk", len(self._dated_twice)),
            ("exams with two densities, no density", len(self._dense_twice)),
            ("cancers without a date", self._undated.total()),
            ("cancers dated before the exam of their finding, kept", self._early),
        ]


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text[:10])
    except ValueError:
        return None


def _place(folder: Path, path: str, where: str) -> Path:
    """cohort_<n>/<patient>/<study>/<file> of the path that the table gives, in the folder."""
    given = local.below(Path(), path.lstrip("/"))
    if given is None:
        raise DataError(f"{where}: a path that leads elsewhere")
    cohort = next((part for part in given.parts if part.startswith("cohort_")), "cohort_1")
    return folder.joinpath(cohort, *given.parts[-3:])
