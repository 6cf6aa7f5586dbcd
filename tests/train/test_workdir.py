"""One run per work directory."""

import json
import os
import subprocess
import sys
import time

import pytest

from m4.errors import ConfigError
from m4.train import workdir


def test_second_user_is_refused_and_the_lock_goes_away(tmp_path):
    with workdir.locked(tmp_path / "w") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"), workdir.locked(folder):
            pass
    assert not (tmp_path / "w" / "lock").exists()
    with workdir.locked(tmp_path / "w"):
        pass


def test_a_killed_run_leaves_nothing_that_blocks(tmp_path):
    code = (
        "import os, signal, sys, pathlib; from m4.train import workdir\n"
        "with workdir.locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "lock").exists()
    with workdir.locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_another_host_is_believed_for_ten_minutes(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": "now"}))
    with pytest.raises(ConfigError, match="elsewhere"):
        workdir._acquire(tmp_path, {"host": "here", "token": "mine"})
    old = time.time() - workdir.STALE - 1
    os.utime(lock, (old, old))
    with workdir.locked(tmp_path):
        assert time.time() - lock.stat().st_mtime < 60


def test_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"), workdir.locked(tmp_path / "file"):
        pass
