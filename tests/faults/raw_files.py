"""Small raw files of every data set that is read from text, right in every detail."""

import csv
import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from m4.data.sets import mfeat, physionet2012
from tests.data import test_support2

STAYS = {"a": range(100, 140), "b": range(500, 506)}


def physionet(folder: Path) -> None:
    """Forty stays in set A, six in set B."""
    home = folder / physionet2012.FOLDER
    home.mkdir(parents=True)
    head = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
    for letter, stays in STAYS.items():
        with tarfile.open(home / f"set-{letter}.tar.gz", "w:gz", compresslevel=1) as archive:
            for stay in stays:
                add(archive, f"set-{letter}/{stay}.txt", record(stay).encode())
        rows = "".join(f"{i},5,{i % 14},{i % 20 - 1},-1,{i % 2}\n" for i in stays)
        (home / f"Outcomes-{letter}.txt").write_text(head + rows)


def record(stay: int, *rows: str) -> str:
    """The text of one stay."""
    first = [f"00:00,RecordID,{stay}", "00:00,Age,60", "00:00,Gender,1", "01:30,HR,80"]
    return "\n".join(["Time,Parameter,Value", *first, *rows]) + "\n"


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def support(folder: Path) -> None:
    """Eighty patients."""
    (folder / "support2").mkdir(parents=True)
    columns = test_support2.COLUMNS
    known = {"sex": "male", "race": "white", "income": ">$50k", "dzgroup": "Coma", "ca": "no"}
    known |= {"sfdm2": "SIP>=30", "hospdead": "1", "death": "1"}
    with open(folder / "support2/support2.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for i in range(80):
            row = dict.fromkeys(columns, f"{1 + i % 7}") | known | {"sno": f"{i}"}
            writer.writerow([row[c] for c in columns])


def digits(folder: Path) -> None:
    """Sixty digits in one view."""
    (folder / mfeat.FOLDER).mkdir(parents=True)
    for view in ("mor",):
        size = mfeat.VIEWS[view]
        lines = [",".join([*(f"f{j}" for j in range(size)), "class"])]
        lines += [
            ",".join([*(f"{i + j + 1}" for j in range(size)), f"{i % 10}"]) for i in range(60)
        ]
        (folder / mfeat.FOLDER / f"mfeat-{view}.csv").write_text("\n".join(lines) + "\n")


def mimic(folder: Path) -> None:
    """Forty stays of three days, with vitals and labs."""
    root = folder / "mimiciv" / "2.2"
    days = ("2150-01-01 10:00:00", "2150-01-01 12:00:00", "2150-01-04 10:00:00")
    heads = {
        "icu/icustays": (
            "subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los"
        ),
        "hosp/admissions": (
            "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admission_location,"
            "discharge_location,insurance,hospital_expire_flag"
        ),
        "hosp/patients": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
        "icu/chartevents": (
            "subject_id,hadm_id,stay_id,charttime,storetime,itemid,value,valuenum,valueuom,warning"
        ),
        "hosp/labevents": (
            "labevent_id,subject_id,hadm_id,specimen_id,itemid,charttime,storetime,value,valuenum,"
            "valueuom,flag,comments"
        ),
    }
    rows: dict[str, Callable[[int], str]] = {
        "icu/icustays": lambda i: f"{i},1{i},2{i},CCU,CCU,{days[0]},{days[2]},3.0",
        "hosp/admissions": (
            lambda i: f"{i},1{i},{days[0]},{days[2]},,URGENT,PACU,HOME,Medicare,{i % 2}"
        ),
        "hosp/patients": lambda i: f"{i},F,60,2148,2011 - 2013,",
        "icu/chartevents": lambda i: f"{i},1{i},2{i},{days[1]},,220045,80,80,bpm,0",
        "hosp/labevents": lambda i: f"{i},{i},1{i},1,50971,{days[1]},,4.5,4.5,mEq/L,,none",
    }
    for name, head in heads.items():
        path = root / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join([head, *(rows[name](i) for i in range(10, 50))]) + "\n"
        path.write_bytes(gzip.compress(text.encode(), 1))
