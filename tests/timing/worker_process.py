"""A benchmark worker process: JSON requests on stdin, one JSON answer a line on stdout.

Needs nothing but the standard library, so that it runs in an interpreter without m4.
"""

import json
import os
import subprocess
import sys
import time


class Worker:
    """A child process that sets up variants of one case and runs them on request."""

    def __init__(self, command: list[str], env: dict[str, str], cores: int | None = None):
        """Start `command`; `cores` pins it to the first so many CPU cores."""
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.command, self.requests, self.answers = command, self.process.stdin, self.process.stdout
        if cores and hasattr(os, "sched_setaffinity"):
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(self.process.pid, allowed[:cores])

    def ask(self, **request):
        """Send a request and return the answer. RuntimeError if the worker failed."""
        self.requests.write(json.dumps(request) + "\n")
        self.requests.flush()
        line = self.answers.readline()
        answer = json.loads(line) if line else {"error": f"exited with {self.process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"{' '.join(self.command)}: {answer['error']}")
        return answer

    def close(self):
        """End the process."""
        self.requests.close()
        self.process.wait(timeout=30)
        self.answers.close()


def serve(setup):
    """Answer requests until stdin closes.

    `setup(case)` returns (variants, facts): functions to time, and what to tell about them.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may write among the answers
    variants = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "case" in request:
                variants.clear()  # free the last case's arrays first
                found, answer = setup(request["case"])
                variants.update(found)
                answer["variants"] = list(found)
            else:
                answer = _timed(variants[request["run"]])
        except Exception as error:  # noqa: BLE001 (reported to the parent, which stops)
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _timed(function):
    """Wall and process CPU seconds of one run; the function blocks and frees its results."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
