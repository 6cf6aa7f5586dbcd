"""Signals: a flag while steps run, the end at once while there is nothing to save."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from m4.errors import Preempted
from m4.train import early, processes
from m4.train.preemption import Signals


def test_while_steps_run_a_signal_is_a_flag_and_the_second_acts_as_before():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signals.stepping()
        assert not signals.stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop(2) and signals.asked()
        assert signal.getsignal(signal.SIGTERM) == before[0]
        with pytest.raises(Preempted, match="saved"):
            signals.idle()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("number", early.OTHERS)
def test_what_schedulers_send_is_a_flag_however_often(number):
    """SIGXCPU comes every second from the limit on."""
    before = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with Signals() as signals:
            signals.stepping()
            for _ in range(3):
                os.kill(os.getpid(), number)
                assert signals.asked()
            with pytest.raises(Preempted):
                signals.idle()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_what_somebody_else_takes_is_left_alone():
    """`nohup` ignores SIGHUP: the run goes on when the terminal has gone."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with early.leaving(), Signals() as signals:
            signals.stepping()
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.asked()
            assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_signal_nothing_happens():
    with Signals() as signals:
        signals.stepping()
        signals.idle()
        assert not signals.asked()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_with_nothing_to_save_the_end_comes_at_once(number):
    code = (
        "import hashlib; from m4.train.preemption import Signals\n"
        "with Signals(lambda: print('let go', flush=True)):\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # no Python handler runs in here
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with run:
        assert run.stdout.readline() == "ready\n"
        time.sleep(0.1)
        run.send_signal(number)
        start = time.monotonic()
        assert run.wait(30) == 75
        assert time.monotonic() - start < 5
        assert "nothing to save" in run.stderr.read()
        assert run.stdout.read() == "let go\n"


def test_any_command_ends_at_once_where_python_runs_no_handler(tmp_path):
    """Evaluating, predicting, building: in a compilation too, and the work directory is free."""
    code = (
        "import hashlib, pathlib, sys; from m4.train import early, workdir\n"
        "with early.leaving(), workdir.locked(pathlib.Path(sys.argv[1])):\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert run.wait(30) == 75
        assert time.monotonic() - start < 5 and not [*tmp_path.iterdir()]


def test_it_leaves_no_thread_and_no_handler_behind():
    before = signal.getsignal(signal.SIGTERM), threading.active_count()
    for _ in range(3):
        with early.leaving():
            assert isinstance(signal.getsignal(signal.SIGTERM), early.Leave)
    end = time.monotonic() + 10
    while threading.active_count() > before[1] and time.monotonic() < end:
        time.sleep(0.01)
    assert (signal.getsignal(signal.SIGTERM), threading.active_count()) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_sigterm_is_jaxs_where_a_gang_saves_and_nobody_takes_it_back():
    """JAX's handler is not Python's: one set again would take the signal from it, for good."""
    with early.leaving():
        with processes._handed_over(True):  # here JAX joins
            pass
        with early.farewell(lambda: None):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with early.leaving():
        with processes._handed_over(False):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with early.farewell(lambda: None):
            assert isinstance(signal.getsignal(signal.SIGTERM), early.Leave)
