"""Discharge diagnosis codes -> the 25 phenotypes.

ICD-9-CM: the single-level categories of HCUP's Clinical Classifications Software (2015) that the
MIMIC-III benchmark (Harutyunyan et al., Sci Data 2019) chose, in its order, codes without the dot.
ICD-10-CM: **m4's own mapping**. The FuseMoE release carries ICD-10 back through a general
equivalence map and keeps a code when its ICD-9 image is in a category; the prefixes below aim at
the same diagnoses, but counts will differ in detail. `load(path)` takes the mapping from a file
instead: a csv with header `icd_version,icd_code,phenotype`, one exact code a line, phenotypes
named as in `NAMES`.

Notation: in ICD-9, `410*` is every code beginning with 410 and `4019` that code alone. In ICD-10
every entry is a prefix. `-` in front takes codes out again. The longest match decides.
"""

import csv
from pathlib import Path

from m4.errors import DataError

ICD9 = {
    "septicemia": "0031 0202 0223 0362 038* 0545 449 77181 7907 99591 99592",
    "diabetes_without_complication": "24900 25000 25001 7902* 7915 7916 V4585 V5391 V6546",
    "diabetes_with_complications": "249* -24900 250* -25000 -25001",
    "lipid_disorders": "2720 2721 2722 2723 2724",
    "fluid_electrolyte_disorders": "276* -27661 9951",
    "essential_hypertension": "4011 4019",
    "hypertension_with_complications": "4010 402* 403* 404* 405* 4372",
    "acute_myocardial_infarction": "410*",
    "coronary_atherosclerosis": (
        "411* 412 413* 4140 41400 41401 41406 4142 4143 4144 4148 4149 V4581 V4582"
    ),
    "conduction_disorders": "426* V450* V533*",
    "cardiac_dysrhythmias": "4270 4271 4272 4273* 4276* 4278* 4279 7850 7851",
    "congestive_heart_failure": "39891 428*",
    "acute_cerebrovascular_disease": (
        "3466* 430 431 432* 43301 43311 43321 43331 43381 43391 434* 436"
    ),
    "pneumonia": (
        "00322 0203 0204 0205 0212 0221 0310 0391 0521 0551 0730 0830 1124 1140 1144 1145 11505 "
        "11515 11595 1304 1363 480* 481 482* 483* 484* 485 486 5130 5171"
    ),
    "copd_bronchiectasis": "490 491* 492* 494* 496",
    "pleurisy_pneumothorax_collapse": "510* 511* -51181 5120 5128* 5180 5181 5182",
    "respiratory_failure": "5173 5185* 51881 51882 51883 51884 7991 V461* V462",
    "other_lower_respiratory": (
        "5131 514 515 516* 5172 5178 5183 5184 51889 5194 5198 5199 7825 7860* 7862 7863* 7864 "
        "78652 7866 7867 7868 7869 7931* 7942 V126* V426"
    ),
    "other_upper_respiratory": (
        "470 471* 472* 476* 477* -4771 478* 5191* 5192 5193 7841 7844* 7847 7848 7849 78499 7861 "
        "V414 V440 V550"
    ),
    "other_liver_diseases": (
        "570 5715 5716 5718 5719 572* 5730 5734 5735 5738 5739 7824 7891 7895 78959 7904 7905 7948 "
        "V427"
    ),
    "gastrointestinal_haemorrhage": (
        "4560 45620 5307 53082 5310* 5312* 5314* 5316* 5320* 5322* 5324* 5326* 5330* 5332* 5334* "
        "5336* 5340* 5342* 5344* 5346* 5693 578*"
    ),
    "acute_renal_failure": "584* 586",
    "chronic_kidney_disease": "585* 7925 V420 V451* V56*",
    "surgical_complications": (
        "27661 27783 27788 2853 28741 3490 3491 34931 41511 4294 4582* 5121 5122 5187 5190* 53086 "
        "53087 5364* 539* 5642 5643 5644 5696 56962 5697* 5793 59681 78062 78063 78066 9093 99524 "
        "9954 99586 997* 998* 999* -99931 -99932 -99933 V1553 V1580 V1583 V900*"
    ),
    "shock": "7855*",
}
ICD10 = {
    "septicemia": "A021 A207 A227 A267 A327 A392 A393 A394 A40 A41 A427 A5486 B007 B377 I76 P36 "
    "R652 R7881",
    "diabetes_without_complication": "E089 E099 E109 E119 E139 R730 R739 R81 R824 Z4681 Z9641",
    "diabetes_with_complications": "E08 E09 E10 E11 E13 -E089 -E099 -E109 -E119 -E139",
    "lipid_disorders": "E780 E781 E782 E783 E784 E785",
    "fluid_electrolyte_disorders": "E86 E87 -E8771 T783",
    "essential_hypertension": "I10",
    "hypertension_with_complications": "I11 I12 I13 I15 I16 I674",
    "acute_myocardial_infarction": "I21 I22",
    "coronary_atherosclerosis": "I20 I24 I25 -I253 -I254 -I257 -I25810 Z951 Z955 Z9861",
    "conduction_disorders": "I44 I45 Z450 Z950 Z95810",
    "cardiac_dysrhythmias": "I47 I48 I49 -I490 R000 R001 R002",
    "congestive_heart_failure": "I0981 I50",
    "acute_cerebrovascular_disease": "G436 I60 I61 I62 I63",
    "pneumonia": "A0222 A202 A212 A221 A310 A3701 A3711 A3781 A3791 A420 A430 A481 A70 A78 B012 "
    "B052 B250 B371 B380 B381 B382 B390 B391 B392 B583 B59 J12 J13 J14 J15 J16 J17 J18 J850 J851 "
    "J852",
    "copd_bronchiectasis": "J40 J41 J42 J43 J44 J47",
    "pleurisy_pneumothorax_collapse": "J86 J90 J91 -J910 J92 J93 J94 J981 J982 J983 R091",
    "respiratory_failure": "J80 J951 J952 J953 J9582 J96 R092 Z9911 Z9912 Z9981",
    "other_lower_respiratory": "J81 J82 J84 J853 J98 -J980 -J981 -J982 -J983 -J985 J99 R042 R048 "
    "R049 R05 R06 -R061 -R065 -R067 R071 R093 R0989 R230 R91 R942 Z870 Z942",
    "other_upper_respiratory": "J30 -J305 J31 J33 J34 J37 J38 J39 J980 J985 R040 R041 R061 R067 "
    "R070 R0981 R49 Z430 Z930",
    "other_liver_diseases": "K72 K74 K750 K751 K7581 K76 -K764 K77 R160 R162 R17 R188 R740 R748 "
    "R749 R945 Z944",
    "gastrointestinal_haemorrhage": "I8501 I8511 K226 K250 K252 K254 K256 K260 K262 K264 K266 "
    "K270 K272 K274 K276 K280 K282 K284 K286 K625 K920 K921 K922",
    "acute_renal_failure": "N17 N19",
    "chronic_kidney_disease": "N18 R880 Z49 Z9115 Z940 Z992",
    "surgical_complications": "D6481 D6951 D78 E36 E8771 E883 G97 H59 I952 I97 J95 -J951 -J952 "
    "-J953 -J9582 K91 K94 K95 L76 M96 N99 R5082 R5083 R5084 T80 -T8021 T81 T873 T874 T875 T878 "
    "T879 T88",
    "shock": "R57 R6521",
}
NAMES = tuple(ICD9)


class Phenotypes:
    """A mapping from (ICD version, code) to phenotype indices."""

    def __init__(self, exact, prefixes):
        self._exact, self._prefixes = exact, prefixes

    def __call__(self, icd_version: int, code: str) -> tuple[int, ...]:
        """Indices into `NAMES`; dots and blanks in the code do not matter."""
        code = code.replace(".", "").strip().upper()
        return tuple(j for j in range(len(NAMES)) if self._member(j, int(icd_version), code))

    def _member(self, j, icd_version, code):
        if (icd_version, code) in self._exact[j]:
            return self._exact[j][icd_version, code]
        for length in range(len(code), 0, -1):
            if (icd_version, code[:length]) in self._prefixes[j]:
                return self._prefixes[j][icd_version, code[:length]]
        return False


def builtin() -> Phenotypes:
    """The tables of this module."""
    exact, prefixes = [], []
    for name in NAMES:
        exact.append({})
        prefixes.append({})
        for entry in ICD9[name].split():
            code, keep = entry.lstrip("-"), not entry.startswith("-")
            (prefixes if code.endswith("*") else exact)[-1][9, code.rstrip("*")] = keep
        for entry in ICD10[name].split():
            prefixes[-1][10, entry.lstrip("-")] = not entry.startswith("-")
    return Phenotypes(exact, prefixes)


def load(path) -> Phenotypes:
    """A mapping from a csv file; see the module's docstring. DataError names a wrong line."""
    exact = [{} for _ in NAMES]
    try:
        with Path(path).open(newline="") as handle:
            for number, line in enumerate(csv.DictReader(handle), start=2):
                try:
                    key = int(line["icd_version"]), line["icd_code"].replace(".", "").upper()
                    exact[NAMES.index(line["phenotype"])][key] = True
                except (KeyError, ValueError, TypeError, AttributeError):
                    raise DataError(
                        f"{path}: line {number}: expected icd_version (9 or 10), icd_code and one "
                        f"of the phenotypes {', '.join(NAMES)}"
                    ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return Phenotypes(exact, [{} for _ in NAMES])
