"""Forty diseases in sixteen departments, as prefixes of discharge codes.

M3H (Bertsimas and Ma 2024) states 40 diseases and 16 departments but does not list them: this
list is m4's. It says what was *coded* in the admission, not what began after the input.

`name: ICD-10 prefixes; ICD-9 prefixes`; `a-b` is every prefix from a to b.
"""

LIST = {
    "cardiology": """
        heart_failure: I50; 428
        atrial_fibrillation: I48; 4273
        coronary_disease: I25; 414
        acute_mi: I21; 410
        hypertension: I10; 401""",
    "pulmonology": """
        copd: J44; 496 4912
        pneumonia: J12-J18; 480-486
        respiratory_failure: J96; 51881 51884
        pleural_effusion: J90 J91; 5119
        asthma: J45; 493""",
    "nephrology": """
        acute_kidney_injury: N17; 584
        chronic_kidney_disease: N18; 585
        sodium_potassium: E870 E871 E875 E876; 2760 2761 2767 2768""",
    "gastroenterology": """
        gi_bleed: K920-K922; 578
        reflux: K21; 53081
        pancreatitis: K85; 5770""",
    "hepatology": """
        cirrhosis: K703 K746; 5712 5715
        hepatic_failure: K72; 5722""",
    "endocrinology": """
        type_2_diabetes: E11; 250?0 250?2
        hypothyroidism: E03; 244
        obesity: E66; 2780
        hyperlipidaemia: E78; 272""",
    "haematology": """
        anaemia: D62-D64; 285
        thrombocytopenia: D696; 2875
        coagulopathy: D68; 286""",
    "oncology": """
        metastasis: C77-C79; 196-198
        lung_cancer: C34; 162""",
    "neurology": """
        ischaemic_stroke: I63; 43301 43311 43321 43331 43381 43391 43401 43411 43491
        seizure: G40 R56; 345 7803
        encephalopathy: G934 F05; 3483 2930""",
    "psychiatry": """
        depression: F32 F33; 311 2962 2963
        alcohol: F10; 303 3050""",
    "infectious_diseases": """
        sepsis: A40 A41 R652; 038 99591 99592
        urinary_infection: N390; 5990""",
    "rheumatology": "gout: M10; 274",
    "orthopaedics": "hip_fracture: S72; 820",
    "urology": "prostatic_hyperplasia: N40; 600",
    "vascular": """
        peripheral_arterial: I70 I73; 440 443
        venous_thromboembolism: I26 I82; 4151 453""",
    "dermatology": "pressure_ulcer: L89; 7070",
}


def _expand(entry: str) -> list[str]:
    if "-" not in entry:
        return [entry]
    first, last = entry.split("-")
    letter = first[0] if first[0].isalpha() else ""
    width = len(first) - len(letter)
    numbers = range(int(first[len(letter) :]), int(last[len(letter) :]) + 1)
    return [f"{letter}{number:0{width}d}" for number in numbers]


def _table() -> dict[str, dict[int, list[str]]]:
    found = {}
    for lines in LIST.values():
        for line in lines.strip().splitlines():
            name, _, codes = line.strip().partition(":")
            ten, nine = codes.split(";")
            found[name] = {
                10: [p for entry in ten.split() for p in _expand(entry)],
                9: [p for entry in nine.split() for p in _expand(entry)],
            }
    return found


TABLE = _table()
NAMES = tuple(TABLE)


def groups(icd_version: int, code: str) -> list[int]:
    """Numbers of the diseases that a code, with or without dot, belongs to; `?` is any digit."""
    code = code.replace(".", "").strip().upper()

    def begins(prefix: str) -> bool:
        return len(code) >= len(prefix) and all(
            p in ("?", c) for p, c in zip(prefix, code, strict=False)
        )

    return [j for j, name in enumerate(NAMES) if any(map(begins, TABLE[name].get(icd_version, ())))]
