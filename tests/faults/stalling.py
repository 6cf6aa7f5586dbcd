"""`m4.main` that stands still at SIGUSR1 while its heartbeats go on, for `gangs.peers`."""

import signal
import sys
import time

from m4.main import main

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda number, frame: time.sleep(3600))
    sys.exit(main(sys.argv[1:]))
