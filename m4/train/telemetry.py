"""Where numbers go: JSON lines, a progress line, TensorBoard.

Writers have the method names of clu's metric writers (`write_scalars`, `write_texts`,
`write_histograms`, `flush`, `close`), so that those can stand in where TensorFlow is installed.
"""

import importlib.util
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from m4 import atomic, seal

Scalars = Mapping[str, float]
LOG = "metrics.jsonl"
FLUSH_EVERY = 10.0  # seconds between lines of event files that others can see


class Writer:
    """Takes everything and writes nothing; the base of the other writers."""

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Named numbers at a step."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Named texts at a step."""

    def write_histograms(
        self, step: int, arrays: Mapping[str, np.ndarray], num_buckets: Any = None
    ) -> None:
        """Named arrays whose distribution matters."""

    def flush(self) -> None:
        """Everything written so far is on disk."""

    def close(self) -> None:
        """No more writing."""


class JsonLines(Writer):
    """One line per call: `{"step": 100, "train/loss": 0.4, ...}`, the source of reports.

    Lines after step `resume` are cut off, so that a restored run doesn't say things twice. A
    number that is not finite is written as null. Every line ends in its number and a checksum
    (`m4.seal`); lines that are damaged when a run is taken up again are left out, which is said.
    So are those that are missing of the `least` that there were.
    """

    def __init__(self, path: Path, *, resume: int = 0, least: int = 0):
        lines, problem = seal.sound_lines(path, least) if resume else ([], None)
        if problem is not None:
            print(f"m4: warning: {path}: {problem}; the run goes on without them", flush=True)
        rows = [row for row in map(_row, lines) if row is not None and row["step"] <= resume]
        path.with_suffix(seal.LOG).unlink(missing_ok=True)  # of an older version
        text = "".join(f"{seal.line(row, number)}\n" for number, row in enumerate(rows, start=1))
        atomic.write(path, text)
        self._file = open(path, "a", encoding="ascii")  # noqa: SIM115 (open for the whole run)
        self._number = len(rows)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Appends one line."""
        self._number += 1
        row = {"step": step} | {k: _json_number(v) for k, v in scalars.items()}
        self._file.write(seal.line(row, self._number) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Flushes the file."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard(Writer):
    """Event files in tensorboardX's format, written at once.

    Not by its `SummaryWriter`, whose thread reads from a queue of processes: on a full disk the
    thread outlives the writer and ends in a traceback, and a killed run leaves the queue's
    semaphores behind.
    """

    def __init__(self, folder: Path, *, resume: int = 0):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2  # whose names are made when it is imported

        events: Any = event_pb2
        folder.mkdir(parents=True, exist_ok=True)
        self._summary, self._event = summary, events.Event
        self._file = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()
        if resume:  # TensorBoard hides what a killed run wrote after that
            log = events.SessionLog
            self._add(resume + 1, session_log=log(status=log.START))

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Adds scalars."""
        for name, value in scalars.items():
            self._add(step, summary=self._summary.scalar(name, value))
        if time.monotonic() - self._flushed > FLUSH_EVERY:
            self.flush()

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Adds texts."""
        for name, text in texts.items():
            self._add(step, summary=self._summary.text(name, text))

    def write_histograms(
        self, step: int, arrays: Mapping[str, np.ndarray], num_buckets: Any = None
    ) -> None:
        """Adds histograms, of 30 buckets unless told otherwise."""
        for name, values in arrays.items():
            values = np.asarray(values)
            self._add(step, summary=self._summary.histogram(name, values, num_buckets or 30))

    def flush(self) -> None:
        """Flushes the event file."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the event file."""
        self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=step, **content))


class ProgressLine(Writer):
    """A live line on a terminal, plain lines elsewhere: step, loss, select, speed, wait, ETA."""

    def __init__(self, *, steps: int, start: int, select: str, console: Console | None = None):
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._steps, self._start, self._select = steps, start, select
        self._best: float | None = None
        self._began: tuple[float, int] | None = None
        self._progress = None
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=self._console)
            self._task = self._progress.add_task("compiling", total=steps, completed=start)
            self._progress.start()

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Shows what belongs on the line; validation numbers wait for the next line."""
        if f"val/{self._select}" in scalars:
            self._best = scalars[f"val/{self._select}"]
        if "train/loss" not in scalars:
            return
        text = self._line(step, scalars)
        if self._progress is None:
            self._console.print(text, markup=False)
        else:
            self._progress.update(self._task, completed=step, description=text)

    def close(self) -> None:
        """Leaves the last line on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _line(self, step: int, scalars: Scalars) -> str:
        parts = [
            f"step {step}/{self._steps} {100 * step / self._steps:.0f}%",
            f"loss {scalars['train/loss']:.4g}",
        ]
        if self._best is not None:
            parts.append(f"val {self._select} {self._best:.4g}")
        if "time/examples_per_s" in scalars:
            parts.append(f"{scalars['time/examples_per_s']:.3g} ex/s")
            parts.append(f"wait {100 * scalars['time/input_wait']:.0f}%")
        parts.append(f"ETA {self._eta(step)}")
        if scalars.get("train/skipped"):
            parts.append(f"{scalars['train/skipped']:.0f} steps skipped")
        return " | ".join(parts)

    def _eta(self, step: int) -> str:
        """Time left at the pace since the first line (compilation and warm-up don't count)."""
        now = time.monotonic()
        if self._began is None or step <= self._began[1]:
            self._began = (now, step)
            return "-"
        pace = (now - self._began[0]) / (step - self._began[1])
        seconds = round(pace * (self._steps - step))
        hours, minutes = seconds // 3600, seconds % 3600 // 60
        return f"{hours}:{minutes:02}:{seconds % 60:02}"


class Writers(Writer):
    """Several writers as one."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """To every writer."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """To every writer."""
        for writer in self._writers:
            writer.write_texts(step, texts)

    def write_histograms(
        self, step: int, arrays: Mapping[str, np.ndarray], num_buckets: Any = None
    ) -> None:
        """To every writer."""
        for writer in self._writers:
            writer.write_histograms(step, arrays, num_buckets)

    def flush(self) -> None:
        """Every writer."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Every writer."""
        for writer in self._writers:
            writer.close()


def make_writer(
    workdir: Path,
    *,
    resume: int,
    steps: int,
    select: str,
    least: int = 0,
    writers: Sequence[str] = ("tensorboard",),
    others: Sequence[Writer] = (),
) -> Writer:
    """JSON lines and the progress line, TensorBoard where asked and installed, and `others`."""
    made: list[Writer] = [JsonLines(workdir / LOG, resume=resume, least=least)]
    if "tensorboard" in writers and importlib.util.find_spec("tensorboardX") is not None:
        made.append(TensorBoard(workdir / "tensorboard", resume=resume))
    made += [*others, ProgressLine(steps=steps, start=resume, select=select)]
    return Writers(made)


def _row(line: bytes) -> dict[str, Any] | None:
    """A line as it was written; None for what is none."""
    try:
        row = json.loads(line)
        return row if isinstance(row["step"], int) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _json_number(value: Any) -> float | int | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(value) if number.is_integer() and isinstance(value, int) else number
