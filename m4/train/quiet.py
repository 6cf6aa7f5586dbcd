"""Keeps Orbax quiet: what matters of its failures is raised and said in one line."""

import logging
import sys


def orbax() -> None:
    """Silences its log, and reads and writes that a failed one left under way.

    Their ends find nobody waiting, and say so through `sys.excepthook` or, as C++ and abandoned
    coroutines do, `sys.unraisablehook`. Called again it changes nothing.
    """
    # Every step of its work, and a traceback for what it raises all the same.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    report, raised = sys.unraisablehook, sys.excepthook
    if getattr(report, "__name__", "") == "without_abandoned":
        return

    def late(error):
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    def without_abandoned(unraisable):
        code = getattr(unraisable.object, "cr_code", None)
        if not late(unraisable.exc_value) and not (code and "orbax" in code.co_filename):
            report(unraisable)

    def without_late_errors(kind, error, trace):
        if not late(error):
            raised(kind, error, trace)

    sys.unraisablehook, sys.excepthook = without_abandoned, without_late_errors
