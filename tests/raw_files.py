"""Small raw files in the layout of the open data sets, with random values and labels."""

from pathlib import Path

import numpy as np

from m4.data.sets import mfeat, physionet2012
from tests.data import test_images, test_physionet2012, test_support2


def write_all(root: Path) -> Path:
    """PhysioNet 2012, SUPPORT2 and UCI digits below `root`."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for write in WRITERS.values():
        write(root, rng)
    return root


def write_support2(root: Path, rng) -> None:
    """80 patients."""
    test_support2.write(root, [support2_row(i, rng) for i in range(80)])


def write_mfeat(root: Path, rng) -> None:
    """60 digits."""
    for view, size in mfeat.VIEWS.items():
        test_images.write(root, view, [[*rng.integers(0, 7, size), i % 10] for i in range(60)])


def write_physionet2012(root: Path, rng) -> None:
    """80 stays in set A, 20 in B; each of the variables in half of them, twice."""
    folder = root / physionet2012.FOLDER
    folder.mkdir()
    variables = [name for _, names in physionet2012.GROUPS.values() for name in names]
    for letter, first, number in (("a", 100, 80), ("b", 500, 20)):
        stays, outcomes = {}, test_physionet2012.OUTCOMES
        for record in range(first, first + number):
            rows = []
            for name in variables:
                low, high = physionet2012.RANGES[name]
                if rng.random() < 0.5:
                    values = rng.uniform(low, high, 2)
                    rows += [
                        f"{h:02}:30,{name},{x:.2f}" for h, x in zip((1, 9), values, strict=True)
                    ]
            stays[str(record)] = test_physionet2012.stay(record, sorted(rows))
            outcomes += (
                f"{record},5,{rng.integers(14)},{rng.integers(2, 20)},-1,{rng.integers(2)}\n"
            )
        test_physionet2012.archive(folder / f"set-{letter}.tar.gz", stays)
        (folder / f"Outcomes-{letter}.txt").write_text(outcomes)


def support2_row(number: int, rng) -> dict[str, str]:
    """A patient with some measurements missing."""
    measured = {"age": 60, "meanbp": 80, "hrt": 90, "crea": 1, "sod": 140, "alb": 3, "adlp": 2}
    row = test_support2.ROW | {
        name: f"{x * rng.uniform(0.5, 2):.2f}" for name, x in measured.items() if rng.random() < 0.7
    }
    return row | {
        "sno": str(number),
        "hospdead": str(rng.integers(2)),
        "sfdm2": "" if rng.random() < 0.2 else "SIP>=30",
        "charges": str(rng.integers(1000, 9000)),
        "d.time": str(rng.integers(3, 900)),
        "death": str(rng.integers(2)),
    }


WRITERS = {"physionet2012": write_physionet2012, "support2": write_support2, "mfeat": write_mfeat}
