"""What Orbax leaves behind is not heard, everything else is."""

import sys
import types

import orbax.checkpoint as ocp

from m4.train import quiet


def test_only_the_late_ends_of_abandoned_reads_are_not_heard(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(unraisable))
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: heard.append(error))
    for _ in range(2):
        quiet.orbax()
    closed, other = RuntimeError("Event loop is closed"), RuntimeError("something else")
    theirs = types.SimpleNamespace(cr_code=ocp.Checkpointer.save.__code__)
    for value, source in ((closed, None), (other, theirs)):
        sys.unraisablehook(types.SimpleNamespace(exc_value=value, object=source))
    sys.excepthook(RuntimeError, closed, None)
    assert heard == []
    sys.excepthook(RuntimeError, other, None)
    sys.unraisablehook(mine := types.SimpleNamespace(exc_value=other, object=None))
    assert heard == [other, mine]
