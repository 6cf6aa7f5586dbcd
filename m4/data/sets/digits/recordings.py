"""Spoken digits from WAV files, and their spectrograms.

Letters: N samples, T frames, W samples of a frame, K frequencies, F bands.
"""

import dataclasses
import re
import wave
from pathlib import Path

import numpy as np

from m4 import regular
from m4.errors import DataError

RATE = 8000  # Hz
LONGEST = 60  # s; what is longer is no spoken digit
NAME = re.compile(r"(\d)_([A-Za-z][\w-]{0,30}?)_(\d{1,6})\.wav")
BANDS, WINDOW, HOP, POINTS = 40, 200, 80, 256  # of a spectrogram: 25 ms every 10 ms
LOWEST, HIGHEST = 60.0, 3900.0  # Hz
QUIETEST = 1e-4  # power in a band, added; far below that of speech of mean square 1


@dataclasses.dataclass(frozen=True, order=True)
class Recording:
    """One file: who said which digit for the how manieth time."""

    speaker: str
    digit: int
    take: int
    path: Path = dataclasses.field(compare=False)


def find(folder: Path) -> list[Recording]:
    """The recordings of a folder by speaker, digit and take.

    Raises DataError for a WAV file without a right name, and for two of the same take.
    """
    found = []
    for path in sorted(folder.glob("*.wav")):
        if not (parts := NAME.fullmatch(path.name)):
            raise DataError(f"{path}: must be called <digit>_<speaker>_<take>.wav")
        found.append(Recording(parts[2], int(parts[1]), int(parts[3]), path))
    found.sort()
    for one, two in zip(found, found[1:], strict=False):
        if one == two:
            raise DataError(f"{two.path}: the same take as {one.path.name}")
    return found


def read(path: Path) -> np.ndarray:
    """float32[N] from -1 to 1. Raises DataError unless it is mono of 8 kHz and 16 bits."""
    try:
        with regular.opened(path) as opened, wave.open(opened) as file:
            kind = file.getnchannels(), file.getframerate(), 8 * file.getsampwidth()
            if kind != (1, RATE, 16):
                raise DataError(
                    f"{path}: {kind[0]} channels of {kind[1]} Hz and {kind[2]} bits, must be mono"
                    f" of {RATE} Hz and 16 bits"
                )
            said, most = file.getnframes(), LONGEST * RATE
            content = file.readframes(min(said, most + 1))
    except (wave.Error, EOFError, ValueError, MemoryError, OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read as WAV ({type(error).__name__})") from None
    if not content or said > most:
        raise DataError(f"{path}: {said} samples, must be 1 to {most} ({LONGEST} s)")
    if len(content) != 2 * said:
        raise DataError(f"{path}: is cut short, {len(content) // 2} of {said} samples")
    return np.frombuffer(content, "<i2").astype(np.float32) / 32768


def write(path: Path, sound_N: np.ndarray) -> None:
    """A sound from -1 to 1 as such a file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound_N.clip(-1, 1) * 32767).astype("<i2").tobytes())


def waveform(sound_N: np.ndarray, length: int) -> np.ndarray:
    """f32[n, 1], the middle `length` samples at most, with a root mean square of 1."""
    middle_n = _middle(sound_N, length)
    return _loud(middle_n)[:, None].astype(np.float32)


def spectrogram(sound_N: np.ndarray, length: int) -> np.ndarray:
    """f32[t, F], log power in mel bands: the middle `length` frames at most.

    Mean 0 and deviation 1 over the recording, since speakers stood near and far.
    """
    sound_N = _loud(sound_N)
    sharp_N = np.append(sound_N[:1], sound_N[1:] - 0.97 * sound_N[:-1])
    sharp_N = np.pad(sharp_N, (0, max(0, WINDOW - len(sharp_N))))
    frames_TW = np.lib.stride_tricks.sliding_window_view(sharp_N, WINDOW)[::HOP]
    power_TK = np.abs(np.fft.rfft(_middle(frames_TW, length) * np.hamming(WINDOW), POINTS)) ** 2
    level_TF = np.log(power_TK @ _mel_bands() + QUIETEST)
    spread = level_TF.std()
    return ((level_TF - level_TF.mean()) / (spread if spread > 1e-6 else 1.0)).astype(np.float32)


def centres() -> np.ndarray:
    """Hz in the middle of every band, f64[F]."""
    return _edges()[1:-1]


def _edges() -> np.ndarray:
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST, HIGHEST))  # O'Shaughnessy 1987
    return 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)


def _mel_bands() -> np.ndarray:
    """Triangles over the frequencies, [K, F]."""
    low, mid, high = _edges()[:-2], _edges()[1:-1], _edges()[2:]
    hz_K1 = np.linspace(0, RATE / 2, POINTS // 2 + 1)[:, None]
    rising, falling = (hz_K1 - low) / (mid - low), (high - hz_K1) / (high - mid)
    return np.maximum(0, np.minimum(rising, falling))


def _loud(sound_N: np.ndarray) -> np.ndarray:
    """With mean 0 and mean square 1; silence stays."""
    centred_N = sound_N.astype(np.float64) - sound_N.mean()
    return centred_N / (np.sqrt(np.square(centred_N).mean()) or 1.0)


def _middle(x: np.ndarray, length: int) -> np.ndarray:
    start = max(0, (len(x) - length) // 2)
    return x[start : start + length]
