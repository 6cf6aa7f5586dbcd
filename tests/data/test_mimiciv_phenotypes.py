"""Diagnosis codes to phenotypes: spot checks against the published category lists."""

import pytest

from m4.data.sets.mimiciv import phenotypes
from m4.data.sets.mimiciv.phenotypes import NAMES as PHENOTYPES
from m4.errors import DataError


def names(version, code):
    return [PHENOTYPES[j] for j in phenotypes.builtin()(version, code)]


def test_tables_name_every_phenotype():
    assert set(phenotypes.ICD9) == set(phenotypes.ICD10) == set(PHENOTYPES)
    assert len(PHENOTYPES) == 25


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("99592", ["septicemia"]),
        ("78552", ["shock"]),
        ("25000", ["diabetes_without_complication"]),
        ("25001", ["diabetes_without_complication"]),
        ("25002", ["diabetes_with_complications"]),
        ("24900", ["diabetes_without_complication"]),
        ("2724", ["lipid_disorders"]),
        ("2725", []),  # other metabolic
        ("27651", ["fluid_electrolyte_disorders"]),
        ("27661", ["surgical_complications"]),  # transfusion overload, not fluid disorder
        ("4019", ["essential_hypertension"]),
        ("4010", ["hypertension_with_complications"]),
        ("40391", ["hypertension_with_complications"]),
        ("41071", ["acute_myocardial_infarction"]),
        ("412", ["coronary_atherosclerosis"]),
        ("41401", ["coronary_atherosclerosis"]),
        ("41410", []),  # aneurysm of heart
        ("42731", ["cardiac_dysrhythmias"]),
        ("42741", []),  # ventricular fibrillation has its own category
        ("4275", []),
        ("42823", ["congestive_heart_failure"]),
        ("43310", []),  # stenosis without infarction
        ("43311", ["acute_cerebrovascular_disease"]),
        ("5070", []),  # aspiration
        ("486", ["pneumonia"]),
        ("49121", ["copd_bronchiectasis"]),
        ("49320", []),  # asthma
        ("5119", ["pleurisy_pneumothorax_collapse"]),
        ("51181", []),  # malignant effusion
        ("5121", ["surgical_complications"]),  # iatrogenic pneumothorax
        ("51881", ["respiratory_failure"]),
        ("51889", ["other_lower_respiratory"]),
        ("4771", []),
        ("5715", ["other_liver_diseases"]),
        ("5712", []),  # alcoholic cirrhosis
        ("53140", ["gastrointestinal_haemorrhage"]),
        ("53150", []),  # perforation without haemorrhage
        ("5849", ["acute_renal_failure"]),
        ("5856", ["chronic_kidney_disease"]),
        ("99931", []),  # device infection
        ("99859", ["surgical_complications"]),
        ("V5867", []),
    ],
)
def test_icd9(code, expected):
    assert names(9, code) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("A419", ["septicemia"]),
        ("R6520", ["septicemia"]),
        ("R6521", ["septicemia", "shock"]),  # as its two ICD-9 images 995.92 and 785.52
        ("E119", ["diabetes_without_complication"]),
        ("E1165", ["diabetes_with_complications"]),
        ("E785", ["lipid_disorders"]),
        ("E8771", ["surgical_complications"]),
        ("I10", ["essential_hypertension"]),
        ("I130", ["hypertension_with_complications"]),
        ("I214", ["acute_myocardial_infarction"]),
        ("I2510", ["coronary_atherosclerosis"]),
        ("I253", []),
        ("I4901", []),
        ("I4891", ["cardiac_dysrhythmias"]),
        ("J189", ["pneumonia"]),
        ("J690", []),
        ("J9601", ["respiratory_failure"]),
        ("J95821", ["respiratory_failure"]),
        ("J95811", ["surgical_complications"]),
        ("J9811", ["pleurisy_pneumothorax_collapse"]),
        ("J984", ["other_lower_respiratory"]),
        ("K7031", []),
        ("K7460", ["other_liver_diseases"]),
        ("K254", ["gastrointestinal_haemorrhage"]),
        ("K255", []),
        ("N179", ["acute_renal_failure"]),
        ("N186", ["chronic_kidney_disease"]),
        ("T80211A", []),
        ("T8119XA", ["surgical_complications"]),
        ("Z515", []),
    ],
)
def test_icd10(code, expected):
    assert names(10, code) == expected


def test_versions_are_kept_apart():
    assert names(9, "E119") == [] and names(10, "4019") == []


def test_dots_blanks_and_case_do_not_matter():
    assert names(10, " i25.10 ") == ["coronary_atherosclerosis"]


def test_mapping_from_a_file(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("icd_version,icd_code,phenotype\n9,041.9,shock\n10,A41,septicemia\n")
    found = phenotypes.load(path)
    assert found(9, "0419") == (PHENOTYPES.index("shock"),)
    assert found(10, "A41") == (0,)
    assert found(10, "A419") == ()  # exact codes only
    assert found(9, "78552") == ()  # the built-in tables are replaced, not extended


@pytest.mark.parametrize("line", ["9,041,sepsis", "nine,041,shock", "9,041"])
def test_a_wrong_line_is_named(tmp_path, line):
    path = tmp_path / "groups.csv"
    path.write_text(f"icd_version,icd_code,phenotype\n10,A41,septicemia\n{line}\n")
    with pytest.raises(DataError, match="line 3"):
        phenotypes.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.csv"):
        phenotypes.load(tmp_path / "none.csv")
