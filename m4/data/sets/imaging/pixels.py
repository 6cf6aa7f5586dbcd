"""Image files -> uint8 [size, size, 3].

A mammogram (DICOM) goes through, in this order: modality rescale; the file's own window or VOI
table (the first, where there are several); inversion of MONOCHROME1; pixels of the header's padding
value or range become the black of the scale; a mirror image where the right half is the brighter
one, so that the chest wall is on the left whatever the side and the site's convention; stretch to
0..255; resize. M4oE's release neither windows nor mirrors, and divides by the maximum.

A fundus photograph is cut to its central square. An OCT volume gives the B-scans at 1/4, 1/2 and
3/4 of it as the three channels. A mask of 0 (cup), 128 (disc), 255 gives the cup as 1.

Letters: h rows, w columns, c channels.
"""

import math
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from m4 import regular
from m4.data import pictures
from m4.data.sets.imaging.exam import Exam, Picture
from m4.errors import DataError
from m4.specs import DataSpec

CUP = 0
MOST = 1 << 28  # pixels of a picture: ten times a mammogram's
MOST_BYTES = 4 * MOST  # of a DICOM file, and of what a deflated one inflates to
SIZES = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
SLICES = (0.25, 0.5, 0.75)
OTHER_SIDE = "images whose file names another side than the table, kept"


def example(exam: Exam, *, data: DataSpec, fit: str, skip: bool) -> tuple[dict, Counter]:
    """An exam's images decoded, and counts of those that are not there or unreadable.

    Raises DataError naming table and line of an image that cannot be decoded, unless `skip`.
    """
    counts: Counter[str] = Counter()
    inputs = {}
    for name, picture in exam.pictures.items():
        size = data.modality(name).shape[1]
        image = _decode(picture, size, fit, skip, counts)
        if image is not None:
            inputs[name] = {"values": image[None]}
    targets = {task: value for task, value in exam.targets.items() if task in data.task_names}
    for task, picture in exam.maps.items():
        if task in data.task_names:
            size = data.modality(data.task(task).needs[0]).shape[1]
            targets[task] = _decode(picture, size, fit, skip, counts)
    own: dict = {"key": exam.key} if exam.key else {}
    own |= {"groups": exam.groups} if exam.groups else {}
    return {"patient": exam.patient, **own, "inputs": inputs, "targets": targets}, counts


def _decode(picture: Picture, size: int, fit: str, skip: bool, counts: Counter):
    if not picture.path.exists():
        counts["images listed but not there"] += 1
        return None
    try:
        image = READERS[picture.kind](picture.path, size, fit)
        counts["images of padding alone, left out"] += image is None
        counts[OTHER_SIDE] += bool(picture.side) and _side(picture.path) not in (picture.side, "")
        return image
    except Exception as error:  # a decoder may raise anything on a damaged file
        if skip:
            counts["images that cannot be decoded, skipped"] += 1
            return None
        if isinstance(error, DataError):
            raise DataError(f"{picture.where}: its image has {error}") from None
        kind = _syntax(picture.path) if picture.kind == "mammogram" else ""
        raise DataError(
            f"{picture.where}: its image cannot be decoded ({type(error).__name__}{kind}); get it"
            " again, install 'm4-moe[images]', or set data.options.unreadable='skip'"
        ) from None


def _side(path: Path) -> str:
    """The side that a DICOM file names, empty if it names none."""
    names = ["ImageLaterality", "Laterality"]
    header = _header(path, stop_before_pixels=True, specific_tags=names)
    return next((side for name in names if (side := header.get(name))), "")


def _syntax(path: Path) -> str:
    """The transfer syntax of a DICOM file, if that can be read."""
    try:
        header = _header(path, stop_before_pixels=True, specific_tags=[SIZES[0]])
        return f", {header.file_meta.TransferSyntaxUID.name}"
    except Exception:
        return ""


def mammogram(path: Path, size: int, fit: str) -> np.ndarray | None:
    """A DICOM mammogram, see the module; None for a file of padding alone."""
    header = _header(path)
    sizes = [int(header.get(name) or 1) for name in SIZES]
    if (number := math.prod(sizes)) > MOST:
        raise DataError(f"{number:,} pixels, the limit is {MOST:,}")
    if header.get("NumberOfFrames", 1) not in (None, 1):
        raise DataError(f"{header.NumberOfFrames} frames, a mammogram has one")
    stored_hw = header.pixel_array
    image_hw, padded_hw = _shown(stored_hw, header), _padded(stored_hw, header)
    if padded_hw.all():
        return None
    if padded_hw.any():
        black = _black(stored_hw[~padded_hw], image_hw[~padded_hw], header)
        image_hw[padded_hw] = _shown(np.array([black], stored_hw.dtype), header)
    return grey(image_hw, size, fit)


class _Dicom:
    """A file that is read by pydicom, which gets nothing that inflates to more than `MOST_BYTES`.

    Of a deflated file it reads all that is left, wherever its header ends, and inflates that as a
    whole; of any other it reads no more at once than an element says that it has.
    """

    def __init__(self, file: BinaryIO):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1, /) -> bytes:
        """Raises DataError for what inflates to too much, zlib.error for what is damaged."""
        found = self._file.read(size)
        if size < 0:
            _require_size(found)
        return found


def _header(path: Path, **options) -> Any:
    """What pydicom reads of a file. Raises OSError for what is no file or too large."""
    import pydicom

    with regular.opened(path, MOST_BYTES) as file:
        return pydicom.dcmread(_Dicom(file), **options)


def _require_size(deflated: bytes) -> None:
    """Raises DataError for what inflates to more than `MOST_BYTES`."""
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    for start in range(0, len(deflated), 1 << 20):
        piece = deflated[start : start + (1 << 20)]
        while piece and not inflate.eof:
            size += len(inflate.decompress(piece, 1 << 24))
            piece = inflate.unconsumed_tail
            if size > MOST_BYTES:
                raise DataError(f"more than {MOST_BYTES:,} bytes when inflated, the limit")


def _shown(stored: np.ndarray, header) -> np.ndarray:
    """Stored values -> f32 of the same shape, brighter where larger: rescale, window, inversion."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = apply_modality_lut(stored, header)
    if header.get("VOILUTSequence"):
        values = apply_voi(np.floor(values).astype(np.int32), header, index=0)
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        values = _windowed(np.asarray(values, np.float64), header)
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    return np.array(values, np.float32) * (-1 if inverted else 1)


def _windowed(values: np.ndarray, header) -> np.ndarray:
    """The first window of the header, f64 in 0..1 (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Not pydicom's: it turns the picture over where the rescale slope is below 0.
    """
    first = (np.ravel(header[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
    (centre, width), function = map(float, first), header.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width <= 0:  # a width of 1 is a threshold, of a curve one of 0
        return (values > centre).astype(np.float64)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _padded(stored_hw: np.ndarray, header) -> np.ndarray:
    """bool[h, w]: pixels that only fill up the picture, by the header's padding value or range.

    A header may give the value in the other sign, or in more bits than are stored.
    """
    low = header.get("PixelPaddingValue")
    if low is None:
        return np.zeros(stored_hw.shape, bool)
    high = header.get("PixelPaddingRangeLimit", low)
    bits = header.BitsStored
    half = 2 ** (bits - 1) * header.PixelRepresentation
    low, high = sorted(
        (int(v) + half) % 2**bits - half for v in (low, low if high is None else high)
    )
    return (stored_hw >= low) & (stored_hw <= high)


def _black(stored_n: np.ndarray, shown_n: np.ndarray, header) -> int:
    """The stored value of the background of pixels that are no padding, given how they are shown.

    The end of the scale (0 of values that are not negative), as in files without padding; the
    darkest pixel where that end is so far away, more than the picture's own range, that nothing of
    the picture would be left. Below 0, where a scale may begin anywhere, the end must be near.
    """
    low, high = int(stored_n.min()), int(stored_n.max())
    signed, bits = header.PixelRepresentation, header.BitsStored
    if stored_n[shown_n.argmin()] > stored_n[shown_n.argmax()]:  # the larger, the darker
        top = 2 ** (bits - signed) - 1
        return top if top - high <= high - low else high
    if low >= 0:
        return 0 if low <= high - low else low
    end = -(2 ** (bits - 1))
    return end if low - end <= (high - low) / 20 else low


def grey(image_hw: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Mirror, stretch and resize one grey image; three equal channels."""
    low, high = float(image_hw.min()), float(image_hw.max())
    image_hw = (image_hw - low) * (255 / max(high - low, 1e-6))
    half = image_hw.shape[1] // 2
    if image_hw[:, -half:].sum() > image_hw[:, :half].sum():
        image_hw = image_hw[:, ::-1]
    return np.repeat(_resize(image_hw, size, fit)[..., None], 3, axis=-1)


def fundus(path: Path, size: int, fit: str) -> np.ndarray:
    """A colour photograph, its central square."""
    from PIL import Image

    with pictures.opened(path) as picture:
        square = _square(picture.convert("RGB"))
        return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


def oct_slices(folder: Path, size: int, fit: str) -> np.ndarray:
    """Three B-scans of a folder of images called '<number>_image.jpg'."""
    files = sorted(
        (p for p in folder.iterdir() if p.name.partition("_")[0].isdecimal()),
        key=lambda p: int(p.name.partition("_")[0]),
    )
    channels = []
    for share in SLICES:
        with pictures.opened(files[int(share * (len(files) - 1))]) as picture:
            channels.append(_resize(np.asarray(picture.convert("L"), np.float32), size, "stretch"))
    return np.stack(channels, axis=-1)


def cup(path: Path, size: int, fit: str) -> np.ndarray:
    """The optic cup as float32 [size, size, 1] of 0 and 1, cut as the fundus is."""
    from PIL import Image

    with pictures.opened(path) as picture:
        square = _square(picture.convert("L")).resize((size, size), Image.Resampling.NEAREST)
        return (np.asarray(square) == CUP).astype(np.float32)[..., None]


def _square(picture):
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _resize(image_hw: np.ndarray, size: int, fit: str) -> np.ndarray:
    """uint8 [size, size]; "pad" keeps the aspect ratio, flush left and centred in height."""
    from PIL import Image

    height, width = image_hw.shape
    scale = size / max(height, width)
    new = (size, size)
    if fit == "pad":
        new = (max(round(width * scale), 1), max(round(height * scale), 1))
    picture = Image.fromarray(np.ascontiguousarray(image_hw, np.float32))
    small = np.asarray(picture.resize(new, Image.Resampling.BILINEAR))
    out = np.zeros((size, size), np.uint8)
    top = (size - small.shape[0]) // 2
    out[top : top + small.shape[0], : small.shape[1]] = small.clip(0, 255).round()
    return out


READERS = {"mammogram": mammogram, "fundus": fundus, "oct": oct_slices, "cup": cup}
