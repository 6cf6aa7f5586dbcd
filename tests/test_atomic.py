"""Files that are replaced at once."""

import pytest

from m4 import atomic


def test_write_replaces_and_leaves_nothing_beside(tmp_path):
    atomic.write(tmp_path / "a", "one")
    atomic.write(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_block_that_fails_changes_nothing(tmp_path):
    atomic.write(tmp_path / "a", "one")
    with pytest.raises(OSError, match="full"), atomic.replaced(tmp_path / "a") as partial:
        partial.write_text("tw")
        raise OSError("full")
    assert (tmp_path / "a").read_text() == "one"
