"""What images, tasks and cohorts of each layout are, in words; none of them changes a record."""

from m4.specs import About

MODALITIES = {
    "cview_cc": "Synthetic 2-D mammogram, CC",
    "cview_mlo": "Synthetic 2-D mammogram, MLO",
    "ffdm_cc": "Full-field mammogram, CC",
    "ffdm_mlo": "Full-field mammogram, MLO",
    "cc": "Mammogram, CC",
    "mlo": "Mammogram, MLO",
    "fundus": "Fundus photograph",
    "oct": "Optical coherence tomography, three slices",
}
USE = "To study methods on images of which some views are missing."
NOT_FOR = "Screening, diagnosis or any decision about patients."
ABOUT = {
    "embed": About(
        title="EMBED, open release",
        source="Screening and diagnostic mammograms of routine care with the radiologists' "
        "findings and pathology, de-identified; the open release is two of ten cohorts.",
        setting="Four hospitals of one health system in Atlanta, United States.",
        period="2013 to 2020.",
        participants="Breasts of exams with a standard view; about as many Black as white women in "
        "the whole collection.",
        use=USE,
        not_for=NOT_FOR,
        limits="One health system. Findings are joined to images by exam and side, not by image. "
        "Of who left the health system it is not known whether cancer was found.",
    ),
    "rsna": About(
        title="RSNA screening mammography 2022",
        source="Digital screening mammograms of a public competition, de-identified.",
        setting="Two screening programmes, one in Australia and one in the United States.",
        period="Published in 2022; the dates of exams are not given.",
        participants="Breasts of the training files with a CC or MLO view; about 12,000 women.",
        use=USE,
        not_for=NOT_FOR,
        limits="Density and BI-RADS are known of a part of the breasts only. "
        "Cancers are more frequent than in screening at large.",
    ),
    "vindr": About(
        title="VinDr-Mammo 1.0.0",
        source="Full-field digital mammograms of routine care, read again for research by three "
        "radiologists, de-identified.",
        setting="Two hospitals in Hanoi, Vietnam.",
        period="2018 to 2020.",
        participants="5,000 exams of four views; the owner's split.",
        use=USE,
        not_for=NOT_FOR,
        limits="Assessments are opinions: no biopsy stands behind them. Patients are not named, so "
        "that two exams of one patient would go unnoticed.",
    ),
    "gamma": About(
        title="GAMMA: glaucoma grading",
        source="Pairs of a fundus photograph and an OCT volume of a public challenge.",
        setting="One eye hospital in Guangzhou, China.",
        period="Published for MICCAI 2021; the dates of exams are not given.",
        participants="The pairs whose grade was published; half without glaucoma.",
        use=USE,
        not_for=NOT_FOR,
        limits="A hundred pairs. Advanced stands for moderate and advanced. Of the OCT volume "
        "three slices are used.",
    ),
}
