"""Modalities of images: files below the folder, named by the texts of events.

Names are never repeated in errors and counts, since they often hold a patient's number.

Letters: n events of one point, V views, h rows, w columns, c channels.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m4 import local
from m4.data import pictures
from m4.data.sets.declared.match import Lexicon
from m4.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def check(lexicons: Sequence[Lexicon], root: Path) -> None:
    """Raises DataError if a modality of images has names of files, but not one file is there."""
    for lexicon in lexicons:
        name, names = lexicon.modality.spec.name, lexicon.all()
        image = lexicon.modality.spec.kind == "image"
        if image and names and not any(_place(root, text) for text in names):
            raise DataError(
                f"{root}: none of the {len(names)} image files of modality {name} is there; they"
                f" are files below this folder that end in {', '.join(ENDINGS)}"
            )


def views(token_n: np.ndarray, lexicon: Lexicon, root: Path, flow: Counter[str]) -> dict | None:
    """The last views of a record, {'values': uint8[V, h, w, c]}, None without any.

    `flow` counts files that are not there or cannot be read.
    """
    spec = lexicon.modality.spec
    num, size, _, channels = spec.shape
    found = []
    for token in [*dict.fromkeys(token_n[::-1].tolist())]:  # the latest first, each once
        path = _place(root, lexicon.token(token))
        if path is None:
            flow[f"{spec.name}: image files that are not there"] += 1
            continue
        try:
            found.append(pictures.square(path, size, channels))
        except ImportError:
            raise DataError(f"{spec.name}: images need 'm4-moe[images]'") from None
        except Exception:  # a decoder may raise anything on a damaged file
            flow[f"{spec.name}: image files that cannot be decoded"] += 1
        if len(found) == num:
            break
    return {"values": np.stack(found[::-1])} if found else None


def _place(root: Path, text: str) -> Path | None:
    """The file that a name stands for; None if it is none, or not below the folder."""
    path = local.below(root, text)
    return path if path and path.suffix.lower() in ENDINGS and path.is_file() else None
