"""Processes meet at the coordinator's address before JAX joins them, and compare what they are.

Process 0 listens there, alone on its own address; every other one says in a line of JSON who it is
and hears in a line what is wrong. Nothing that comes from there is more than compared and quoted.
JAX itself ends a process that does not find the others by a stack of C++, and one whose port is in
use by a fault of memory.
"""

import contextlib
import errno
import ipaddress
import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from m4.errors import ConfigError, Preempted, UserError

LONGEST = 2**20  # bytes of a line
MOMENT = 5.0  # seconds: for one peer to say its line; for all to come once something is wrong
REFUSED = 10.0  # seconds for which a refused process 0 waits for the others, to tell them
Facts = Mapping[str, str]


class Silence(ValueError):
    """No answer, as of a process 0 that has just ended."""


def parse(coordinator: str) -> tuple[str, int]:
    """(host, port) of M4_COORDINATOR. Raises ConfigError."""
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"M4_COORDINATOR={coordinator!r}: must be HOST:PORT or 'auto'")
    return host.removeprefix("[").removesuffix("]"), int(port)


def meet(
    host: str,
    port: int,
    count: int,
    own: int,
    facts: Facts,
    differing: Callable[[Sequence[Facts], Sequence[int]], list[str]],
    seconds: float,
) -> str:
    """The address, of this machine, that the coordinator must be bound to ("" unless `own` is 0).

    Raises on every process: ConfigError for what `differing` says of the facts of all, and for a
    port in use; Preempted for processes that do not come within `seconds`.
    """
    if own:
        _call(host, port, own, facts, seconds)
        return ""
    listener, address = _listen(host, port)
    with listener, contextlib.ExitStack() as peers:
        told: dict[int, Facts] = {0: facts}
        lines: list[socket.socket] = []
        end = time.monotonic() + seconds
        code = 0
        odd: list[str] = []
        problems: list[str] = []
        while len(told) < count and time.monotonic() < end:
            if not select.select([listener], [], [], 0.2)[0]:
                continue
            peer, _ = listener.accept()
            peers.enter_context(peer)
            number, found, refused = _heard(peer)
            if number is None:
                continue
            lines.append(peer)
            if refused:
                odd = odd or [f"process {number} was refused: {refused[0]}"]
            elif number in told:
                odd = odd or [f"M4_PROCESS_ID={number}: is the number of two processes"]
            told.setdefault(number, facts if refused else found)
            come = sorted(told)
            problems = odd or differing([told[i] for i in come], come)  # again with each
            if problems:
                code, end = ConfigError.exit_code, min(end, time.monotonic() + MOMENT)
        if not problems and len(told) < count:
            absent = ", ".join(str(i) for i in range(count) if i not in told)
            problems = [f"of {count} processes, number {absent} did not come in {seconds:.0f} s"]
            code = Preempted.exit_code
        for peer in lines:
            _answer(peer, code, problems)
    _raise(code, problems)
    return address


@contextlib.contextmanager
def told(environ: Mapping[str, str]) -> Iterator[None]:
    """A UserError inside, before this process has met the others, is told to them and raised on.

    Otherwise they would wait for it.
    """
    try:
        yield
    except UserError as error:
        with contextlib.suppress(UserError, ValueError, LookupError, OSError):
            host, port = parse(environ.get("M4_COORDINATOR", ""))
            own, others = int(environ["M4_PROCESS_ID"]), int(environ["M4_NUM_PROCESSES"]) - 1
            _tell(host, port, own, others, [str(arg) for arg in error.args] or ["?"])
        raise


def _tell(host: str, port: int, own: int, others: int, refused: list[str]) -> None:
    if own:
        _call(host, port, own, {}, REFUSED, refused)
        return
    listener, _ = _listen(host, port)
    end = time.monotonic() + REFUSED
    with listener:
        while others > 0 and time.monotonic() < end:
            if select.select([listener], [], [], 0.1)[0]:
                peer, _ = listener.accept()
                with peer:
                    others -= _heard(peer)[0] is not None
                    line = f"process 0 was refused: {refused[0]}"
                    _answer(peer, ConfigError.exit_code, [line])


def _answer(peer: socket.socket, code: int, problems: list[str]) -> None:
    with contextlib.suppress(OSError):
        peer.sendall(json.dumps({"code": code, "lines": problems}).encode() + b"\n")


def _call(
    host: str, port: int, own: int, facts: Facts, seconds: float, refused: Sequence[str] = ()
) -> None:
    """Says who this is, and raises what process 0 answers."""
    message = {"process": own, "facts": dict(facts), "refused": [*refused]}
    end, reason, strange = time.monotonic() + seconds, "", False
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, port), timeout=MOMENT) as peer:
                peer.settimeout(seconds + MOMENT)
                peer.sendall(json.dumps(message).encode() + b"\n")
                answer = json.loads(_line(peer))
                _raise(int(answer["code"]), [str(line) for line in answer["lines"]])
                return
        except UserError:
            raise
        except (OSError, ValueError, LookupError, TypeError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            if not isinstance(error, ConnectionResetError):  # with its answer, if there was one
                strange = not isinstance(error, OSError | Silence)
            time.sleep(0.1)
    if strange:
        raise ConfigError(
            f"M4_COORDINATOR={host}:{port}: what answers there does not wait for process {own}: a"
            " process 0 that was told another M4_NUM_PROCESSES, an older run, or no run at all"
        )
    raise Preempted(
        f"M4_COORDINATOR={host}:{port}: process 0 cannot be reached from process {own} in"
        f" {seconds:.0f} s ({reason})"
    )


def _heard(peer: socket.socket) -> tuple[int | None, dict[str, str], list[str]]:
    """(number, facts, why it was refused) of a peer; None for what is none."""
    try:
        peer.settimeout(MOMENT)
        found = json.loads(_line(peer))
        facts = {str(k): str(v) for k, v in found["facts"].items()}
        return int(found["process"]), facts, [str(line) for line in found["refused"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, {}, []


def _line(peer: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        piece = peer.recv(2**16)
        if not piece and not data:
            raise Silence
        if not piece or len(data) + len(piece) > LONGEST:
            raise ValueError("no line")
        data += piece
    return data


def _listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket on the host's own address, and that address as JAX wants it.

    A name that stands for no address of this machine but the loopback (as some systems have it for
    their own name), or for a service in front of it, leaves all addresses.
    """
    local = host == "localhost" or _loopback(host)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    places = [(info[0], str(info[4][0])) for info in found if local or not _loopback(info[4][0])]
    for family, ip in places:
        listener = _bound(family, ip, port)
        if listener is not None:
            return listener, f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    print(
        f"m4: warning: M4_COORDINATOR={host}:{port}: no address of this machine; listens on all",
        file=sys.stderr,
    )
    listener = _bound(socket.AF_INET, "0.0.0.0", port)  # noqa: S104 (said above)
    if listener is None:
        raise ConfigError(f"M4_COORDINATOR={host}:{port}: cannot be listened on")
    return listener, f"0.0.0.0:{port}"


def _bound(family: int, ip: str, port: int) -> socket.socket | None:
    """A socket that listens; None if the address is not this machine's."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # JAX binds it next
    try:
        listener.bind((ip, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            reason = "is in use" if error.errno == errno.EADDRINUSE else "is not allowed"
            raise ConfigError(
                f"M4_COORDINATOR: port {port} of {ip} {reason}; choose another"
            ) from error
        return None
    return listener


def _loopback(ip: object) -> bool:
    try:
        return ipaddress.ip_address(str(ip).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _raise(code: int, problems: list[str]) -> None:
    if code == Preempted.exit_code:
        raise Preempted(*problems)
    if code:
        raise ConfigError(*problems)
