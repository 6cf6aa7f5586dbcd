"""Processes meet before JAX joins them: who differs, comes late, twice or not at all."""

import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from m4.config import Flags
from m4.errors import ConfigError, Preempted
from m4.run import agreement
from m4.train import processes, rendezvous


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(rendezvous, "MOMENT", 0.5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def meet(port, facts, count=None, numbers=None, seconds=10.0):
    """What each process ends with: an address, or an error."""
    numbers, ends = numbers or range(len(facts)), {}
    place = ("127.0.0.1", port, count or len(facts))

    def one(i, own):
        try:
            ends[i] = rendezvous.meet(*place, own, facts[i], processes.differing, seconds)
        except (ConfigError, Preempted) as error:
            ends[i] = error

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(numbers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ends[i] for i in range(len(facts))]


def test_alike(port):
    assert meet(port, [{"seed": "1"}] * 3) == [f"127.0.0.1:{port}", "", ""]


def test_every_process_hears_what_differs(port):
    alike = {"optim.lr": "0.1", "python": "3"}
    found = meet(port, [alike, alike, {"optim.lr": "0.5"}])
    assert all(isinstance(error, ConfigError) for error in found)
    assert len({str(error) for error in found}) == 1
    assert "optim.lr is 0.5 on process 2, 0.1 on processes 0, 1; python is (absent)" in str(
        found[0]
    )


def test_who_comes_before_its_turn_keeps_its_number(port):
    """Process 2 differs and comes first: it is not called process 1."""
    found = meet(port, [{"x": "0"}, {"x": "5"}], count=4, numbers=[0, 2])
    assert all("x is 5 on process 2, 0 on process 0" in str(error) for error in found)


def test_another_number_of_processes(port):
    """The first waits for a third; the second knows of none."""
    alike = [{"M4_NUM_PROCESSES": "3"}, {"M4_NUM_PROCESSES": "2"}]
    begun = time.monotonic()
    found = meet(port, alike, count=3, seconds=60.0)
    assert time.monotonic() - begun < 30
    assert all(
        "M4_NUM_PROCESSES is 2 on process 1, 3 on process 0" in str(error) for error in found
    )


def test_one_number_for_two(port):
    found = meet(port, [{}] * 3, numbers=[0, 1, 1])
    assert all("M4_PROCESS_ID=1: is the number of two" in str(error) for error in found)


def test_who_does_not_come_and_who_is_not_there(port):
    found = meet(port, [{}, {}], count=3, seconds=0.5)
    assert [type(error) for error in found] == [Preempted] * 2
    assert "of 3 processes, number 2 did not come" in str(found[1])
    with pytest.raises(Preempted, match="cannot be reached from process 1"):
        rendezvous.meet("127.0.0.1", port, 2, 1, {}, processes.differing, 0.3)


def test_noise_is_no_process(port):
    """Whatever connects and says something else is let go."""

    def noise():
        for text in (b"GET / HTTP/1.0\r\n\r\n", b"[1]\n", b'{"process": {}, "facts": 3}\n', b""):
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port)) as peer:
                        peer.sendall(text)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)

    thread = threading.Thread(target=noise)
    thread.start()
    first = threading.Thread(target=lambda: ends.append(meet_alone()))
    ends = []

    def meet_alone():
        return rendezvous.meet("127.0.0.1", port, 2, 0, {}, processes.differing, 20.0)

    first.start()
    thread.join()
    rendezvous.meet("127.0.0.1", port, 2, 1, {}, processes.differing, 10.0)
    first.join()
    assert ends == [f"127.0.0.1:{port}"]


def test_it_listens_on_its_own_address_alone(port):
    listener, address = rendezvous._listen("localhost", port)
    with listener:
        assert address == f"127.0.0.1:{port}" and listener.getsockname()[0] == "127.0.0.1"
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
            rendezvous._listen("127.0.0.1", port)


def test_a_name_that_is_the_loopback_here_leaves_all_addresses(port, monkeypatch, capsys):
    """As where a system has its own name for 127.0.1.1: the others know it by another address."""
    loop = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: loop)
    listener, address = rendezvous._listen("node7", port)
    listener.close()
    assert address == f"0.0.0.0:{port}" and "listens on all" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["host", "host:", ":5", "host:0", "host:65536", "host:٣", ""])
def test_an_address_that_is_none(text):
    with pytest.raises(ConfigError, match="M4_COORDINATOR"):
        rendezvous.parse(text)


def test_a_refusal_is_told_to_those_who_wait(port):
    environ = {"M4_COORDINATOR": f"127.0.0.1:{port}", "M4_NUM_PROCESSES": "2", "M4_PROCESS_ID": "1"}
    waiting, ends = threading.Thread(target=lambda: ends.append(meet(port, [{}], count=2)[0])), []
    waiting.start()
    with pytest.raises(ConfigError, match="^no such method$"), rendezvous.told(environ):
        raise ConfigError("no such method")
    waiting.join()
    assert str(ends[0]) == "process 1 was refused: no such method"


def test_half_a_gang_hides_no_refusal():
    """Without its number a process can tell nobody, and says what is wrong itself."""
    half = {"M4_COORDINATOR": "localhost:1"}
    with pytest.raises(ConfigError, match="^no such file$"), rendezvous.told(half):
        raise ConfigError("no such file")


GANG = {"M4_COORDINATOR": "localhost:1", "M4_NUM_PROCESSES": "2", "M4_PROCESS_ID": "0"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("M4_NUM_PROCESSES", "0"),
        ("M4_NUM_PROCESSES", "two"),
        ("M4_PROCESS_ID", "-1"),
        ("M4_HEARTBEAT", "0"),
        ("M4_JOIN_TIMEOUT", "1e3"),
    ],
)
def test_half_a_gang_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        processes.join({}, GANG | {name: value})


def test_a_number_beyond_the_last_is_refused():
    with pytest.raises(ConfigError, match="M4_PROCESS_ID=2: of M4_NUM_PROCESSES=2"):
        processes.join({}, GANG | {"M4_PROCESS_ID": "2"})


def test_lines_are_json_of_text(port):
    """Facts are compared and quoted, nothing else; a difference is no longer than a line."""
    told = [{"x": "a" * 1000}, {"x": json.dumps({"a": 1})}]
    (line,) = processes.differing(told)
    assert len(line) < 400 and "docs/reliability.md" in line


def test_long_values_are_shown_where_they_differ():
    told = [{"XLA_FLAGS": "--same " * 30 + end} for end in ("--one", "--two", "--one")]
    (line,) = processes.differing(told)
    assert "--two on process 1, ..." in line and "--one on processes 0, 2" in line


def test_what_a_platform_tells_each_process_of_itself_may_differ(monkeypatch):
    told = []
    for i in range(2):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"task": {"type": "worker", "index": i}}))
        monkeypatch.setenv("M4_PROCESS_ID", str(i))
        told.append(agreement.at_start(None, Flags(workdir=Path("w"))))
    assert processes.differing(told) == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"\x00\x00\x18\x04\x00\x00", ConfigError),  # the coordinator of a JAX that has all
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ConfigError),
        (b"[1]\n", ConfigError),
        (b"", Preempted),
    ],
)
def test_what_answers_but_does_not_wait_is_told_apart_from_silence(port, answer, error):
    """Process 0 was told that it is alone, or something else has its port."""

    over = threading.Event()

    def serve():  # to its end: one that waits on would accept what comes to another's socket
        while not over.is_set():
            with contextlib.suppress(TimeoutError, ConnectionError):
                peer, _ = listener.accept()
                with peer:
                    peer.recv(2**16)
                    peer.sendall(answer)

    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(0.1)
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        words = "does not wait for process 1: .* M4_NUM" if error is ConfigError else "cannot be"
        with pytest.raises(error, match=words):
            rendezvous.meet("127.0.0.1", port, 2, 1, {}, processes.differing, 0.5)
        over.set()
        server.join()
