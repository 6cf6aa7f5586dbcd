"""Decoding in worker processes, in order and in bounded memory.

For work that holds the interpreter for milliseconds per item, such as a DICOM or JPEG image; a
few items are cheaper to do here, because a fresh interpreter costs seconds.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection
from typing import Any

FEW = 512  # items that are not worth a process
AHEAD = 4  # items per process that wait to be taken


def ordered(
    function: Callable[[Any], Any], items: Sequence[Any], *, workers: int | None = None
) -> Iterator[Any]:
    """`map(function, items)` over `workers` processes, results in order.

    `function` and items are pickled, so `function` is one of a module or a partial of it. The
    default is one process per core, but none in a plain script: a new process runs the script
    again, and without `if __name__ == "__main__"` that has no end. Processes end with this one,
    however that ends.
    """
    if workers is None:
        main = sys.modules["__main__"]
        script = getattr(main, "__spec__", None) is None and hasattr(main, "__file__")
        workers = 1 if script else len(os.sched_getaffinity(0))
    if workers < 2 or len(items) <= FEW:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_follow) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # not one by one: of a pool whose workers died Python then ends none
            pool.shutdown(cancel_futures=True)


def _follow() -> None:
    """Begins a worker: it ends when the process that started it does, by which signal ever.

    A terminal's Ctrl-C is for that process, which lets its workers end in order.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Others would wait for work for ever: all of them hold both ends of the pipe it comes by."""
    if (parent := multiprocessing.parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
