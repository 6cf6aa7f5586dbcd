"""Virtual devices of a CPU, by XLA_FLAGS: threads enough that they can wait for each other."""

import re
from collections.abc import MutableMapping

COUNT = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
THREADS = 4  # of a device


def make_room(environ: MutableMapping[str, str]) -> None:
    """To be called before JAX makes its devices; a number of threads that is given stays.

    XLA has as many threads as there are devices or cores, and one that takes part in a collective
    waits for the others. A device may be in two at once, of a loop and of what stands beside it:
    then all threads wait, none is left for who is missing, and the program hangs.
    """
    found = COUNT.findall(environ.get("XLA_FLAGS", ""))
    if found and not {"NPROC", "PJRT_NPROC"} & environ.keys():
        environ["PJRT_NPROC"] = str(THREADS * int(found[-1]))
