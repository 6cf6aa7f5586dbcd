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
  Follow-up ends with the patient's last exam; if that is earlier and without cancer: no label.

`record="exam"` is M4oE's release: the first file of each view from either side.
"""

import datetime
from pathlib import Path

from m4.data.cohort import patient_number
from m4.data.sets.imaging.exam import Exam, Picture, folder, home, rows
from m4.specs import DataSpec

LICENCE = "EMBED Open Data licence, research only, not to be redistributed"
FOLDERS = ("embed*", "EMBED*")
CLINICAL = "tables/EMBED_OpenData_clinical.csv"
METADATA = "tables/EMBED_OpenData_metadata.csv"
CLINICAL_COLUMNS = (
    "empi_anon", "acc_anon", "study_date_anon", "side", "asses", "tissueden", "path_severity",
    "procdate_anon",
)  # fmt: skip
METADATA_COLUMNS = (
    "empi_anon", "acc_anon", "study_date_anon", "FinalImageType", "ImageLateralityFinal",
    "ViewPosition", "spot_mag", "anon_dicom_path",
)  # fmt: skip
TYPES = {"cview": "cview", "c-view": "cview", "2d": "ffdm"}
BIRADS = {"N": 0, "B": 1, "P": 1, "S": 2, "M": 2, "K": 2}  # A: more images needed, so no label
WORST = "NBPASMK"  # in this order
CANCER = ("0", "1")  # invasive, in situ
YEAR = 365  # so that an exam of the same date a year later ends it


def missing_files(raw_dir: Path) -> list[str]:
    """One line per table or folder that is not there."""
    root = folder(raw_dir, FOLDERS, METADATA)
    if root is None:
        return [f"{raw_dir}: no embed/{METADATA}"]
    missing = [f"{root / CLINICAL}: missing"] if not (root / CLINICAL).is_file() else []
    return missing + ([] if (root / "images").is_dir() else [f"{root / 'images'}: missing (DICOM)"])


def load(raw_dir: Path, data: DataSpec, flow: list, *, record: str) -> tuple[list, list[Path]]:
    """Breasts (or exams) in the order of the image table, and the tables read."""
    root = home(raw_dir, FOLDERS, METADATA)
    images = rows(root / METADATA, METADATA_COLUMNS)
    findings = _Findings(rows(root / CLINICAL, CLINICAL_COLUMNS), images)
    flow.append(("images in the table", len(images)))
    exams: dict[tuple[str, str], Exam] = {}
    for line, row in enumerate(images, start=2):
        kind = TYPES.get(row["FinalImageType"].strip().lower())
        view = row["ViewPosition"].strip().lower()
        if not kind or view not in ("cc", "mlo") or row["spot_mag"].removesuffix(".0") == "1":
            continue
        side = row["ImageLateralityFinal"].strip() if record == "breast" else ""
        key = (row["acc_anon"], side)
        if key not in exams:
            exams[key] = Exam(patient_number(row["empi_anon"]), {}, findings.labels(row, side))
        path = root / "images" / _relative(row["anon_dicom_path"])
        where = f"{METADATA} line {line}"
        exams[key].pictures.setdefault(f"{kind}_{view}", Picture(path, "mammogram", where))
    flow.append((f"{record}s with a standard view", len(exams)))
    return list(exams.values()), [root / CLINICAL, root / METADATA]


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
    """Clinical rows by exam; dates of proven cancers and of the last exam by patient."""

    def __init__(self, findings, images):
        self._exam: dict[str, list[dict[str, str]]] = {}
        self._cancer: dict[str, list[datetime.date]] = {}
        self._last: dict[str, datetime.date] = {}
        for row in findings:
            self._exam.setdefault(row["acc_anon"], []).append(row)
            proven = _date(row["procdate_anon"])
            if row["path_severity"].removesuffix(".0") in CANCER and proven:
                self._cancer.setdefault(row["empi_anon"], []).append(proven)
        for row in [*findings, *images]:
            day, who = _date(row["study_date_anon"]), row["empi_anon"]
            if day:
                self._last[who] = max(day, self._last.get(who, day))

    def labels(self, image: dict[str, str], side: str) -> dict[str, int | None]:
        """Labels of a side ('' for both) of the exam that an image is from."""
        found = self._exam.get(image["acc_anon"], [])
        mine = [row for row in found if not side or row["side"].strip() in (side, "B", "")]
        assessed = [row["asses"].strip() for row in mine if row["asses"].strip() in {*WORST}]
        worst = max(assessed, key=WORST.index, default="")
        density = next((row["tissueden"] for row in found if row["tissueden"].strip()), "0")
        who, day = image["empi_anon"], _date(image["study_date_anon"])
        if day is None:
            return labels(int(float(density)), worst, float("inf"), 0)
        later = [(date - day).days / YEAR for date in self._cancer.get(who, []) if date >= day]
        seen = (self._last[who] - day).days / YEAR
        return labels(int(float(density)), worst, min(later, default=float("inf")), seen)


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text.strip()[:10])
    except ValueError:
        return None


def _relative(path: str) -> Path:
    """cohort_<n>/<patient>/<study>/<file> of the path that the table gives."""
    parts = path.strip().split("/")
    cohort = next((part for part in parts if part.startswith("cohort_")), "cohort_1")
    return Path(cohort, *parts[-3:])
