"""Discharge diagnoses by admission: labels of this one, history from earlier ones."""

import numpy as np

from m4.data import csv_files
from m4.data.cohort import hash64
from m4.data.sets.mimiciv import catalogue, diseases, phenotypes, release
from m4.data.sets.mimiciv.life import Life


class Diagnoses:
    """Discharge diagnoses by admission: labels of this one, history from earlier ones."""

    def __init__(self, root, data, phenotype_file):
        """Read the table of diagnoses, if a task or modality of `data` wants it."""
        self._wanted = {*data.task_names, *data.modality_names}
        if not self._wanted & {"phe", "history", "diseases"}:
            return
        columns = {"hadm_id": "int", "icd_code": "text", "icd_version": "int"}
        self._vocab = data.modality("history").vocab if "history" in self._wanted else 1
        mapping = phenotypes.load(phenotype_file) if phenotype_file else phenotypes.builtin()
        hadm, code_of, ids = [], [], {}  # ids: (version, code) -> its number
        for batch in csv_files.stream(release.need(root, "diagnoses_icd"), columns):
            hadm += batch["hadm_id"].fill_null(-1).to_pylist()
            versions = batch["icd_version"].fill_null(-1).to_pylist()
            codes = batch["icd_code"].to_pylist()
            code_of += [ids.setdefault(k, len(ids)) for k in zip(versions, codes, strict=True)]
        order = np.argsort(hadm, kind="stable")
        self._hadm, self._code = np.array(hadm)[order], np.array(code_of, np.int32)[order]
        grouping = {"phe": mapping, "diseases": diseases.groups}
        self._groups = {t: [f(*k) for k in ids] for t, f in grouping.items() if t in self._wanted}
        self._hashes = np.array([hashed(f"{v}:{c.strip()[:3]}", self._vocab) for v, c in ids])

    def _codes(self, hadm):
        """The codes of an admission; of none without an id, for rows of others have none either."""
        if hadm == -1:
            return self._code[:0]
        return self._code[slice(*np.searchsorted(self._hadm, [hadm, hadm + 1]))]

    def labels(self, hadm_n, task):
        """f64[n, 25 or 40]; a row of NaN for an admission without diagnoses."""
        found = np.full((len(hadm_n), catalogue.TASK_SPECS[task].dim), np.nan)
        for row, hadm in zip(found, hadm_n, strict=True):
            codes = self._codes(hadm)
            if len(codes):
                row[:] = 0
                row[[j for code in codes for j in self._groups[task][code]]] = 1
        return found

    def history(self, life: Life, admissions: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Per stay the three-character codes of other admissions that ended before its own began.

        Its own does, too, if it is of no length.
        """
        hadm, end = admissions["hadm_id"], admissions["dischtime"]
        order = np.lexsort((end, admissions["subject_id"]))
        subject = admissions["subject_id"][order]
        found = []
        for who, own, begin in zip(life.subject, life.hadm, life.admit, strict=True):
            first, last = np.searchsorted(subject, [who, who + 1])
            others = [i for i in order[first:last] if hadm[i] != own]
            earlier = [i for i in others if csv_files.NEVER < end[i] <= begin]
            codes = [self._hashes[self._codes(hadm[i])] for i in earlier]
            found.append(last_distinct(np.concatenate(codes) if codes else np.zeros(0, int)))
        return found


def last_distinct(codes):
    """Distinct codes in the order of their last appearance."""
    _, first_from_end = np.unique(codes[::-1], return_index=True)
    return codes[::-1][np.sort(first_from_end)][::-1]


def hashed(text: str, vocab: int) -> int:
    """A stable id in [0, vocab); different codes may share one."""
    return hash64(text.strip().lower()) % vocab
