"""What modalities, tasks and features of MIMIC-IV are, in words; none of them changes a record."""

from m4.specs import About

ABOUT = About(
    title="MIMIC-IV",
    source="Routine records of a hospital, de-identified: MIMIC-IV, with MIMIC-CXR, MIMIC-IV-Note "
    "and MIMIC-IV-ECG where they are linked.",
    setting="Intensive care units of one tertiary hospital in Boston, United States.",
    period="2008 to 2022; dates are shifted by patient, so years are known to within three.",
    participants="ICU stays of adults that reach the end of the input window; see the flow of the "
    "cohort for who is left out.",
    use="To study methods on data of which some is missing: a prediction at the end of the window "
    "from what was stored by then.",
    not_for="Decisions about patients, and hospitals other than this one without a test there.",
    limits="One hospital. What is measured depends on what was suspected, and who is missing an "
    "image or a note differs from who has one. Race, language and marital status are no inputs, "
    "but may be told by others.",
)
INVENTED = About(
    title="Synthetic ICU cohort",
    source="Drawn by a random generator with MIMIC-IV's schema; six latent factors drive outcomes "
    "and measurements. No patient, and nothing that resembles one.",
    setting="None.",
    period="None.",
    participants="As many invented patients as asked for, one in ten with a second stay.",
    use="To test methods and this software where the truth is known.",
    not_for="Any statement about patients.",
    limits="Simpler than real records: presence is random unless asked otherwise.",
)
# task -> title, unit, definition
TASKS: dict[str, tuple[str, str, str]] = {
    "ihm48": (
        "Death in hospital",
        "",
        "The patient died in the hospital stay to which the ICU stay belongs; asked at 48 hours.",
    ),
    "los": ("Time in the ICU", "days", "Days from ICU admission to discharge from it, or death."),
    "los_under_96h": (
        "Out of the ICU within 96 hours",
        "",
        "Less than 96 hours in the ICU, and alive at the end of the hospital stay.",
    ),
    "phe": ("Phenotypes", "", "25 groups of diagnoses billed for the hospital stay."),
    "decompensation": ("Death within 24 hours", "", "Death within 24 hours of the input's end."),
    "los_remaining": ("Days left in the ICU", "", "Days left at the input's end, in ten bins."),
    "readmission": (
        "Readmission or death",
        "",
        "After the ICU stay: death in hospital, or within 30 days death or another admission.",
    ),
    "mortality_1y": ("Death within a year", "", "Dead within a year of leaving the hospital."),
    "diseases": ("Diseases", "", "40 diseases of the hospital stay's diagnosis codes."),
    "disposition": ("Where to", "", "Home, home with help, a facility, hospice or death, other."),
    "drg": ("Diagnosis-related group", "", "The HCFA diagnosis-related group of the admission."),
    "los_after_cxr": ("Time to discharge", "hours", "Hours from the X-ray to discharge."),
    "los_under_48h": ("Home within 48 hours", "", "Discharged alive within 48 h of the X-ray."),
    "mortality_48h": ("Death within 48 hours", "", "Died within 48 hours of the X-ray."),
    "chexpert": (
        "Findings of the X-ray",
        "",
        "14 findings as CheXpert reads them in the radiologist's report; uncertain is no label.",
    ),
}
MODALITIES = {
    "vitals": "Vital signs",
    "labs": "Laboratory",
    "static": "Patient and admission",
    "medications": "Medications given",
    "prescriptions": "Prescriptions",
    "procedures": "Procedures",
    "history": "Earlier diagnoses",
    "notes": "Notes",
    "earlier_notes": "Earlier discharge summaries",
    "note_words": "Words of notes",
    "cxr": "Chest X-ray",
    "cxr_image": "Chest X-ray",
    "ecg": "ECG",
    "ecg_measures": "ECG intervals and axes",
}
# feature -> title, unit; '' for what explains itself
FEATURES: dict[str, tuple[str, str]] = {
    "heart_rate": ("", "/min"),
    "systolic_bp": ("systolic blood pressure", "mmHg"),
    "diastolic_bp": ("diastolic blood pressure", "mmHg"),
    "mean_bp": ("mean blood pressure", "mmHg"),
    "respiratory_rate": ("", "/min"),
    "spo2": ("oxygen saturation", "%"),
    "temperature": ("", "°C"),
    "gcs_verbal": ("Glasgow coma scale, verbal", ""),
    "gcs_eye": ("Glasgow coma scale, eye", ""),
    "gcs_motor": ("Glasgow coma scale, motor", ""),
    "potassium": ("", "mmol/l"),
    "sodium": ("", "mmol/l"),
    "chloride": ("", "mmol/l"),
    "creatinine": ("", "mg/dl"),
    "urea_nitrogen": ("", "mg/dl"),
    "bicarbonate": ("", "mmol/l"),
    "anion_gap": ("", "mmol/l"),
    "haemoglobin": ("", "g/dl"),
    "haematocrit": ("", "%"),
    "magnesium": ("", "mg/dl"),
    "platelets": ("", "10³/µl"),
    "phosphate": ("", "mg/dl"),
    "white_cells": ("", "10³/µl"),
    "calcium": ("", "mg/dl"),
    "mch": ("mean corpuscular haemoglobin", "pg"),
    "red_cells": ("", "10⁶/µl"),
    "mchc": ("mean corpuscular haemoglobin concentration", "g/dl"),
    "mcv": ("mean corpuscular volume", "fl"),
    "rdw": ("red cell distribution width", "%"),
    "neutrophils": ("", "%"),
    "vancomycin": ("", "µg/ml"),
    "glucose": ("", "mg/dl"),
    "age": ("", "years"),
    "hours_before_icu": ("in hospital before the ICU", "hours"),
}
