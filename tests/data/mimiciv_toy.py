"""MIMIC-IV in small: a handful of invented stays whose every number is known."""

import gzip

from m4.data import split
from m4.data.sets import mimiciv

# Patient 1: stay 11 (4 days, survived), then stay 12 in a second admission (3 days, died).
# Patient 2: stay 21 (1 day, too short). Patient 3: stay 31 (exactly 48 h, survived).
TABLES = {
    "icu/icustays": """subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los
1,101,11,Medical Intensive Care Unit (MICU),X,2150-01-01 10:00:00,2150-01-05 10:00:00,4.0
1,102,12,Coronary Care Unit (CCU),X,2150-03-01 00:00:00,2150-03-04 00:00:00,3.0
2,201,21,Trauma SICU (TSICU),X,2151-01-01 00:00:00,2151-01-02 00:00:00,1.0
3,301,31,Neuro Stepdown,X,2152-01-01 00:00:00,2152-01-03 00:00:00,2.0
""",
    "hosp/admissions": """subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,\
admit_provider_id,admission_location,discharge_location,insurance,hospital_expire_flag
1,101,2150-01-01 04:00:00,2150-01-08 00:00:00,,EW EMER.,P,EMERGENCY ROOM,HOME,Medicare,0
1,102,2150-02-28 00:00:00,2150-03-04 00:00:00,2150-03-04 00:00:00,URGENT,P,\
TRANSFER FROM HOSPITAL,DIED,Medicare,1
2,201,2151-01-01 00:00:00,2151-01-03 00:00:00,,ELECTIVE,P,PHYSICIAN REFERRAL,HOME,Other,0
3,301,2152-01-01 00:00:00,2152-01-04 00:00:00,,OBSERVATION ADMIT,P,PACU,HOME,Medicaid,0
""",
    "hosp/patients": """subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod
1,F,60,2148,2011 - 2013,
2,M,50,2151,2011 - 2013,
3,M,40,2152,2011 - 2013,
""",
    "icu/chartevents": """subject_id,hadm_id,stay_id,caregiver_id,charttime,storetime,itemid,value,\
valuenum,valueuom,warning
1,101,11,,2150-01-01 09:59:00,,220045,70,70,bpm,0
1,101,11,,2150-01-01 12:00:00,2150-01-01 12:05:00,220045,80,80,bpm,0
1,101,11,,2150-01-01 12:00:00,,220045,81,81,bpm,0
1,101,11,,2150-01-01 12:00:00,,223761,98.6,98.6,F,0
1,101,11,,2150-01-01 11:00:00,,220050,118,118,mmHg,0
1,101,11,,2150-01-01 11:00:00,,220179,121,121,mmHg,0
1,101,11,,2150-01-01 13:00:00,,220277,250,250,%,0
1,101,11,,2150-01-01 13:00:00,,999999,1,1,,0
1,101,11,,2150-01-01 13:30:00,,220045,text,,bpm,0
1,101,11,,2150-01-03 09:30:00,2150-01-03 10:30:00,220045,99,99,bpm,0
1,101,11,,2150-01-03 10:00:00,,220045,90,90,bpm,0
1,101,11,,2150-01-03 10:00:01,,220045,91,91,bpm,0
2,201,21,,2151-01-01 01:00:00,,220045,60,60,bpm,0
3,301,31,,2152-01-01 01:00:00,,223762,38.5,38.5,C,0
""",
    "hosp/labevents": """labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,\
charttime,storetime,value,valuenum,valueuom,ref_range_lower,ref_range_upper,flag,priority,comments
1,1,,1,50971,,2150-01-01 11:00:00,2150-01-01 12:00:00,4.5,4.5,mEq/L,3,5,,ROUTINE,"two
lines"
2,1,102,2,50971,,2150-03-01 02:00:00,2150-03-01 03:00:00,5.5,5.5,mEq/L,3,5,,ROUTINE,
3,1,102,2,50912,,2150-03-01 02:00:00,2150-03-01 03:00:00,2,2,mg/dL,3,5,,ROUTINE,
4,1,,3,50912,,2150-02-01 02:00:00,2150-02-01 03:00:00,9,9,mg/dL,3,5,,ROUTINE,
""",
    "icu/inputevents": """subject_id,hadm_id,stay_id,caregiver_id,starttime,endtime,storetime,itemid
1,101,11,,2150-01-01 12:00:00,2150-01-01 13:00:00,2150-01-01 12:00:00,225798
1,101,11,,2150-01-01 11:00:00,2150-01-01 13:00:00,2150-01-01 12:00:00,225158
1,101,11,,2150-01-01 14:00:00,2150-01-01 15:00:00,2150-01-01 14:00:00,225798
1,101,11,,2150-01-04 14:00:00,2150-01-04 15:00:00,2150-01-04 14:00:00,221906
""",
    "icu/procedureevents": """subject_id,hadm_id,stay_id,starttime,endtime,storetime,itemid
1,101,11,2150-01-01 12:00:00,2150-01-01 13:00:00,2150-01-01 12:00:00.000,225792
""",
    "hosp/prescriptions": """subject_id,hadm_id,starttime,stoptime,drug_type,drug
1,101,2150-01-01 12:00:00,2150-01-01 13:00:00,MAIN,Heparin
1,101,2150-01-01 09:00:00,2150-01-01 13:00:00,MAIN,Aspirin
1,101,,2150-01-01 13:00:00,MAIN,Insulin
""",
    "hosp/diagnoses_icd": """subject_id,hadm_id,seq_num,icd_code,icd_version
1,101,1,99592,9
1,101,2,4019,9
1,102,1,N179,10
2,201,1,4019,9
""",
}
ALL = ("vitals", "labs", "static", "medications", "prescriptions", "procedures", "history")


def write(root, tables=TABLES, compress=True):
    for name, text in tables.items():
        path = root / f"{name}.csv{'.gz' if compress else ''}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") if compress else open(path, "w") as handle:
            handle.write(text)
    return root


def patch(raw, name, old, new):
    path = raw / "mimiciv" / "2.2" / f"{name}.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new).encode()))


def examples(raw, **options):
    """Examples by (patient, days in the ICU), so that the split does not matter."""
    cohort = mimiciv.cohort(raw, seed=0, **options)
    found = [e for split in cohort.splits.values() for e in split()]
    return {(e["patient"], float(e["targets"].get("los", 0))): e for e in found}, cohort


def raw_folder(tmp_path):
    """A raw folder with version 2.2."""
    return write(tmp_path / "raw" / "mimiciv" / "2.2").parents[1]


def all_splits(raw, seed):
    return len({split.assign(s, mimiciv.FRACTIONS, seed) for s in (11, 12, 31)}) == 3
