"""Eight virtual devices and a thread for every test; set before JAX is imported anywhere."""

import dataclasses
import gc
import os
import signal
import tempfile

import pytest

# Who starts tests in the background or by `nohup` has these ignored, and so would their children.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _usual = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _usual)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two processes whose trees wait for each other's threads take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Tests compile much and compute little: a FuseMoE gradient compiles in 8 s instead of 33.
    "--xla_backend_optimization_level=0",
    # XLA's older loop emitters: 12 ms less for every kernel that differs.
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # in more parts the same functions take longer
    # Eight threads meet in a collective: on a machine that is busy with others some come late, and
    # after 40 s XLA ends the process.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
for _flag in _FLAGS:
    if _flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
# Tracing makes many objects that live: looking for garbage among them is a tenth of all.
gc.set_threshold(200_000, 50, 1000)
# Compiled programs are kept for all tests, here and in the processes that they start.
os.environ.setdefault("M4_CACHE", f"{tempfile.gettempdir()}/m4-tests-{os.getuid()}")
os.environ.setdefault("XDG_STATE_HOME", f"{os.environ['M4_CACHE']}/state")

# The default mesh takes every device. In tests it takes one of the eight unless they say
# otherwise: a program for eight compiles longer. tests/test_placement.py has the real default.
from m4 import virtual  # noqa: E402 (imports no JAX, but let the flags come first)
from m4.config import rules  # noqa: E402

virtual.make_room(os.environ)
rules.FIELDS["mesh.data"] = dataclasses.replace(rules.FIELDS["mesh.data"], default=1)

# A process may map 65,530 pieces of memory (Linux's vm.max_map_count), each compiled program takes
# three, and JAX keeps them all: near the end of the suite XLA found no more and ended the process.
MOST_MAPS = 15_000


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drops compiled programs between files when there are many."""
    yield
    if maps() > MOST_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


def maps() -> int:
    """Pieces of memory that this process maps; 0 where the system does not tell."""
    try:
        with open("/proc/self/maps", "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0
