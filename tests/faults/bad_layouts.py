"""Damaged raw files of the data sets that cannot be passed on, as `m4.data.fake` invents them.

And of tables of one's own, in the words of `canaries`. Every kind of file that such a layout has,
each damaged in every way that makes sense for it; as in `bad_files`, what a reader may accept is
then refused for its number of rows, exit 2.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from m4.data import fake
from tests.faults import canaries
from tests.faults.bad_files import BUILT, CONFIG, DAMAGES
from tests.faults.catalogue import Case

PATIENTS = 12
BINARY = ("deleted", "a folder", "dangling link", "empty", "cut", "noise")
TEXT = (*BINARY, "header only", "column gone", "text for a number", "short row", "not UTF-8", "NUL")


class Source(NamedTuple):
    """A file of a layout (the first that matches), and a column that must hold numbers, or -1."""

    fake: str  # its name in `m4.data.fake`, or "tables"
    file: str
    column: int = -1
    data: str = ""  # name of the data set where it is another
    select: str = "diagnosis/accuracy"
    options: Mapping = MappingProxyType({})
    accepted: tuple[str, ...] = ()  # damages that a reader may take as it is


def cases() -> Iterator[Case]:
    """All of them."""
    for source in SOURCES:
        for damage in TEXT if source.column >= 0 else BINARY:
            says = f"{source.file.strip('*').partition('*')[0]}|{source.fake}|split| line "
            code, says = BUILT if damage in source.accepted else (3, says)
            name = f"{source.fake} {source.file}: {damage}"
            yield Case(name, _damaged(source, DAMAGES[damage]), code, (says,))


def _damaged(source: Source, damage: Callable[[Path, int], None]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        raw, options = folder / "raw", dict(source.options)
        if source.fake == "tables":
            canaries.plant(raw, random.Random(0), patients=40)
            options["file"] = str(raw / "s.toml")
        else:
            fake.write(source.fake, raw, patients=PATIENTS)
        damage(min(raw.rglob(source.file)), source.column)
        text = CONFIG.format(
            name=source.data or source.fake,
            built=str(folder / "built"),
            raw=str(raw),
            options=options,
            select=source.select,
        )
        (folder / "x.py").write_text(text)
        return [f"--config={folder / 'x.py'}", "--mode=check", f"--workdir={folder / 'w'}"]

    return make


def _image(layout: str, file: str, column: int = -1, *accepted: str, select: str) -> Source:
    options = {"layout": layout, "size": 8}
    return Source(layout, file, column, "imaging", select, options, accepted)


VOLUME = {"image": "volume", "volume": (4, 4, 4, 1)}
ABSENT = ("deleted", "dangling link")  # a picture that is not there is a missing modality
FEWER = ("header only", "column gone")  # nobody has that modality, or one feature of it
# A label that is none is unknown and a date that is none has no later exams; both are counted.
LABELS = ("text for a number", "NUL")
SOURCES = (
    Source("tables", "events.csv", 3, select="death/auroc"),
    Source("tables", "labels.csv", 2, select="death/auroc"),
    Source("adni", "label.csv", 1),
    Source("adni", "clinical_merged.csv", 1, accepted=FEWER),
    Source("adni", "biospecimen_merged.csv", 1, accepted=FEWER),
    Source("adni", "UCSFFSX7*.csv", 2, accepted=FEWER),
    Source("adni", "PTID_splits.json", accepted=ABSENT),  # split by hash then
    Source("adni", "genomic_merged.h5ad"),
    Source("adni", "ADNI_G.npy", options=VOLUME),
    Source("adni", "ADNI_subj.txt", options=VOLUME),
    Source("adni", "*.nii.gz", options=VOLUME),
    Source("pam", "PTdict_list.npy", select="activity/accuracy"),
    Source("pam", "arr_outcomes.npy", select="activity/accuracy"),
    Source("mosi", "train.npz", select="positive/auroc"),
    _image("embed", "*clinical.csv", 2, "header only", *LABELS, select="density/accuracy"),
    _image("embed", "*metadata.csv", 2, "cut", *LABELS, select="density/accuracy"),
    _image("embed", "*.dcm", -1, *ABSENT, select="density/accuracy"),
    _image("rsna", "train.csv", 6, select="density/accuracy"),
    _image("rsna", "*.dcm", select="density/accuracy"),
    _image("vindr", "breast-level_annotations.csv", 8, *LABELS, select="density/accuracy"),
    _image("gamma", "*.xlsx", select="glaucoma/accuracy"),
    _image("gamma", "[0-9]*[0-9].jpg", -1, *ABSENT, select="glaucoma/accuracy"),
    _image("gamma", "*.png", -1, *ABSENT, select="glaucoma/accuracy"),
)
