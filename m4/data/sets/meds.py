"""Any MEDS data set, through one declarative file.

    data = dict(name="meds", options=dict(file="my_hospital.toml"))

reads `data/**/*.parquet`, `metadata/subject_splits.parquet` and label files as MEDS 0.3 and 0.4
define them (https://github.com/Medical-Event-Data-Standard/meds), and makes one record per
(subject, prediction time). The file says which codes are which modality and where the labels of
each task are: see `docs/data.md`. `python -m m4.data draft FOLDER` writes a first version of it.
"""

from m4.data.sets.declared.dataset import LICENCE, VERSION, WHERE, Declared  # noqa: F401

_DECLARED = Declared(meds=True)
resolved, spec, missing_files = _DECLARED.resolved, _DECLARED.spec, _DECLARED.missing_files
cohort, new = _DECLARED.cohort, _DECLARED.new
SCRATCH, ELSEWHERE = _DECLARED.SCRATCH, _DECLARED.ELSEWHERE
read_definition = _DECLARED.read_definition  # frames go by the names of its files
everyone = _DECLARED.everyone
