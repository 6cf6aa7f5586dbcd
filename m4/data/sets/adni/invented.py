"""Invented subjects in Flex-MoE's layout of ADNI, with volumes of 6 x 5 x 4 voxels."""

import json
from pathlib import Path

import numpy as np

from m4.data.fake import fresh, write_table

SHAPE = (6, 5, 4)
VARIANTS = 12


def invent(folder: Path, *, patients: int, seed: int) -> Path:
    """`adni/`: every file, about a fifth of the subjects without each modality."""
    import h5py
    import nibabel

    root, rng = fresh(folder / "adni"), np.random.default_rng(seed)
    for name in ("image", "genomic", "clinical", "biospecimen"):
        (root / name).mkdir()
    people = [f"{k % 7:03d}_S_{1000 + k}" for k in range(patients)]
    label_n = rng.integers(0, 3, patients)
    write_table(root / "label.csv", [["PTID", "DIAGNOSIS"], *zip(people, label_n + 1, strict=True)])
    cut = [int(0.7 * patients), int(0.85 * patients)]
    parts = dict(zip(("training", "validation", "testing"), np.split(people, cut), strict=True))
    text = json.dumps({name: part.tolist() for name, part in parts.items()})
    (root / "PTID_splits.json").write_text(text)

    def some():
        return [k for k in range(patients) if rng.random() < 0.8]

    header = ["PTID", "update_stamp", "ST1CV", "ST2TA", "ST3SV", "OVERALLQC"]
    rows = []
    for k in some():
        for year in (2019, 2020):
            sizes = rng.normal(2 - label_n[k] + (year == 2019) * 9, 0.5, 3).round(3)
            rows.append([people[k], f"{year}-05-01 10:00:00", *sizes, "Pass"])
    write_table(root / "image" / "UCSFFSX7_01Jan2025.csv", [header, *rows])
    mask = np.zeros(SHAPE, np.int16)
    mask[1:-1, 1:-1, 1:-1] = 150
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), root / "image" / "atlas_DS222.nii.gz")
    scans = some()
    voxels = rng.normal(label_n[scans][:, None], 1, (len(scans), int((mask == 150).sum())))
    np.save(root / "image" / "ADNI_G.npy", voxels.astype(np.float32))
    lines = [f"{people[k]}_T1_2019-05-01" for k in scans]
    (root / "image" / "ADNI_subj.txt").write_text("\n".join(lines) + "\n")
    genotyped = some()
    with h5py.File(root / "genomic" / "genomic_merged.h5ad", "w") as file:
        risk = rng.integers(0, 3, (len(genotyped), VARIANTS)).astype(np.float32)
        risk[:, 0] = label_n[genotyped]
        risk[rng.random(risk.shape) < 0.05] = np.nan
        file["X"] = risk
        for axis, names in (("obs", [people[k] for k in genotyped]), ("var", range(VARIANTS))):
            group = file.create_group(axis)
            group.attrs["_index"] = "_index"
            group["_index"] = [str(name).encode() for name in names]
    header = ["PTID", "AGE", "PTCOGBEG", "FEMALE_True"]
    rows = [[people[k], rng.normal(70), 2000 + k, "True" if k % 2 else "False"] for k in some()]
    write_table(root / "clinical" / "clinical_merged.csv", [header, *rows])
    rows = [[people[k], rng.normal(label_n[k]), "" if k % 3 else 1.5] for k in some()]
    write_table(
        root / "biospecimen" / "biospecimen_merged.csv", [["PTID", "ABETA42", "TAU"], *rows]
    )
    return root
