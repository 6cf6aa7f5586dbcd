"""Signals: a flag while steps run, the end at once while there is nothing to save."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from m4.errors import Preempted
from m4.train import early, preemption, processes
from m4.train.preemption import Signals


def test_while_steps_run_a_signal_is_a_flag():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signals.stepping()
        assert not signals.stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop(2) and signals.asked()
        with pytest.raises(Preempted, match="saved"):
            signals.idle()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1


TWICE = """
import os, pathlib, signal, sys, time
from m4.train import early, preemption, processes, workdir

def kill(number):
    os.kill(os.getpid(), number)
    time.sleep(0.1)

out = pathlib.Path(sys.argv[1])
with early.leaving(alone=True):
    with processes._handed_over(True):  # a launcher's gang of one joins
        pass
    with workdir.locked(out), preemption.Signals(lambda: print("let go", flush=True)) as signals:
        signals.stepping()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            kill(number)
        print(signals.asked(), flush=True)  # and now it saves
        preemption.PATIENCE = 0.0
        kill(signal.SIGXCPU)
        print("saves", (out / "lock").exists(), flush=True)
        kill(signal.SIGTERM)
        time.sleep(30)
"""


def test_told_twice_a_run_still_saves_and_told_late_again_it_leaves(tmp_path):
    """A launcher and a terminal, SIGUSR1 and SIGTERM: the second must not kill what is saving."""
    command = [sys.executable, "-c", TWICE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "saves", "True", "let", "go"], done.stderr
    assert done.returncode == 75 and "had not saved yet" in done.stderr
    assert not [*tmp_path.iterdir()]  # not even the outer lock


@pytest.fixture
def pythons_own():
    """Ctrl-C as Python has it, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_of_a_library_is_pythons(pythons_own):
    """`m4.fit` in a notebook: steps are saved, and anything else is left by KeyboardInterrupt."""
    with early.leaving(), pytest.raises(KeyboardInterrupt), Signals():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    with Signals() as signals:
        signals.stepping()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        with pytest.raises(Preempted):
            signals.idle()


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


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_what_is_ignored_is_left_alone(number):
    """`nohup` ignores SIGHUP, a shell SIGINT of what runs in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with early.leaving(), Signals() as signals:
            signals.stepping()
            os.kill(os.getpid(), number)
            assert not signals.asked()
            assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_without_a_signal_nothing_happens():
    with Signals() as signals:
        signals.stepping()
        signals.idle()
        assert not signals.asked()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_with_nothing_to_save_the_end_comes_at_once(number):
    code = (
        "import hashlib; from m4.train import early; from m4.train.preemption import Signals\n"
        "with early.leaving(alone=True), Signals(lambda: print('let go', flush=True)):\n"
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_any_command_ends_at_once_where_python_runs_no_handler(tmp_path, number):
    """Evaluating, predicting, building: in a compilation too, and the work directory is free."""
    code = (
        "import hashlib, pathlib, signal, sys; from m4.train import early, workdir\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
        "with early.leaving(alone=True), workdir.locked(pathlib.Path(sys.argv[1])):\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(number)
        start = time.monotonic()
        assert run.wait(30) == 75
        assert time.monotonic() - start < 5 and not [*tmp_path.iterdir()]
        assert run.stderr.read() == "m4: stopped: run the same command again\n"


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


def test_sigterm_is_jaxs_where_a_gang_saves_and_nobody_takes_it_back(monkeypatch):
    """JAX's handler is not Python's: one set again would take the signal from it, for good."""
    monkeypatch.setattr(processes.distributed.global_state, "num_processes", 2)
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


CHILD = r"""
import os, pathlib, signal, sys, threading, time
from m4.train import early, workdir
from m4.train.preemption import Signals

def forked():
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    os.kill(child, signal.SIGTERM)  # at once: it may not have run yet
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

def main(folder):
    with early.leaving(), workdir.locked(folder):
        for _ in range(20):
            forked()
        threads = [threading.Thread(target=forked) for _ in range(2)]
        for thread in threads:
            thread.start()
            thread.join()
        with Signals() as signals:
            forked()
            signals.stepping()
            forked()
            assert not signals.asked()
        if not os.fork():
            sys.exit(0)  # through all that would give up the lock
        os.wait()
        assert isinstance(signal.getsignal(signal.SIGTERM), early.Leave)
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
        time.sleep(0.2)
        print((folder / "lock").exists())

try:
    main(pathlib.Path(sys.argv[1]))
except SystemExit:
    os._exit(0)  # JAX's threads do not survive a fork
"""


def test_a_forked_childs_signal_is_not_its_parents(tmp_path):
    """Data sets of one's own may use `multiprocessing`, which forks and ends its children so."""
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["-15"] * 24 + ["True"]
    assert not [*(tmp_path / "w").iterdir()]


def test_a_child_that_leaves_takes_nothing_of_its_parents(monkeypatch):
    said = []
    leave = early.Leave(lambda: said.append(1))
    leave.part()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    leave.part()
    assert said == [1]


HUNG = r"""
import fcntl, os, pathlib, sys, time
from m4.train import early, watchdog
how, folder = sys.argv[1], pathlib.Path(sys.argv[2])
if how == "nobody":
    reads, writes = os.pipe()  # full, and nobody reads
    os.set_blocking(writes, False)
    try:
        while True:
            os.write(writes, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writes, True)
else:
    writes = os.open("/dev/full", os.O_WRONLY)
os.dup2(writes, 2)
leave = (folder / "left").touch
if sys.argv[3] == "watchdog":
    watchdog.Watchdog(1.0, folder / "stacks", leave=leave)._end("so")
early.end(7, early.say("m4: told"), leave, lambda: 1 / 0, seconds=0.5)
"""


@pytest.mark.parametrize("who", ["watchdog", "any"])
@pytest.mark.parametrize("how", ["nobody", "full"])
def test_nobody_need_read_what_a_process_says_at_its_end(tmp_path, how, who):
    command = [sys.executable, "-c", HUNG, how, str(tmp_path), who]
    assert subprocess.run(command, check=False, timeout=30).returncode == 7
    assert (tmp_path / "left").exists()
    assert who == "any" or "most recent call first" in (tmp_path / "stacks").read_text()


def test_who_has_no_others_or_cannot_join_keeps_sigterm(monkeypatch):
    with early.leaving():
        with processes._handed_over(True):  # of one process
            pass
        assert isinstance(signal.getsignal(signal.SIGTERM), early.Leave)
        monkeypatch.setattr(processes.distributed.global_state, "num_processes", 2)
        with pytest.raises(RuntimeError), processes._handed_over(True):
            raise RuntimeError("nobody there")
        assert isinstance(signal.getsignal(signal.SIGTERM), early.Leave)


def test_ctrl_c_of_a_gang_is_sigterm_to_jax(monkeypatch, pythons_own):
    """It says at which step all of them stop; after training a process leaves by itself."""
    sent, asked = [], []
    monkeypatch.setattr(preemption.os, "kill", lambda pid, number: sent.append(number))
    monkeypatch.setattr(preemption.jax, "process_count", lambda: 2)
    agreed = preemption.multihost_utils
    monkeypatch.setattr(agreed, "reached_preemption_sync_point", lambda n: asked.append(n))
    jaxs = signal.signal(signal.SIGTERM, lambda number, frame: None)
    own = signal.getsignal(signal.SIGTERM)
    try:
        with Signals() as signals:
            signals.stepping()
            signal.raise_signal(signal.SIGINT)
            end = time.monotonic() + 20
            while not sent and time.monotonic() < end:
                time.sleep(0.01)
            assert sent == [signal.SIGTERM] and not signals.asked()
            assert not signals.stop(501) and signal.getsignal(signal.SIGTERM) is own
            signals.idle()
            assert signal.getsignal(signal.SIGTERM) is not own
        assert asked == [asked[0], asked[0] + 1]
        monkeypatch.setattr(agreed, "reached_preemption_sync_point", lambda n: True)
        with Signals() as signals, pytest.raises(Preempted):
            assert signals.stop(1) and signals.asked()  # all of them know
            signals.idle()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, jaxs)


JAXS = """
import os, signal, socket, time
import jax
from m4.train import preemption
with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
options = {"cluster_detection_method": "deactivate"}
jax.distributed.initialize(address, 1, 0, **options)
jax.process_count = lambda: 2  # JAX's part is that of a gang
with preemption.Signals() as signals:
    signals.stepping()
    signals.stop(500)
    signals.idle()  # SIGTERM is Python's
os.kill(os.getpid(), signal.SIGTERM)  # between folds, or while a run that goes on compiles
time.sleep(2.5)  # JAX looks every second
with preemption.Signals() as signals:
    print(signals.stop(501), flush=True)
os._exit(0)
"""


def test_a_gang_that_is_told_before_its_first_step_stops_at_it():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", JAXS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
