"""Folders named by step: what a kill leaves behind at any point, and what goes."""

from m4.train import retention


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "array").write_text(name)


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_only_numbers_are_complete(tmp_path):
    assert retention.complete(tmp_path / "none") == []
    folders(tmp_path, "10", "9", "8.replaced", "7.deleted", "6.corrupt-0", "x", "5.orbax-tmp")
    assert retention.complete(tmp_path) == [9, 10]


def test_retire_deletes_what_is_not_kept_and_what_was_replaced(tmp_path):
    folders(tmp_path, "1", "2", "3", "3.replaced", "4.replaced", "2.corrupt-0")
    retention.retire(tmp_path, {2, 3, 9})
    # 4.replaced stays: no folder 4 is there, so it is all there is of that step
    assert names(tmp_path) == ["2", "2.corrupt-0", "3", "4.replaced"]


def test_sweep_after_a_kill(tmp_path):
    folders(tmp_path, "1", "1.replaced", "2.replaced", "3.deleted", "4.corrupt-0")
    folders(tmp_path, "5.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-77")
    retention.sweep(tmp_path)
    assert names(tmp_path) == ["1", "2", "4.corrupt-0"]
    # 2 had no complete successor and is back; 1 had one, which is the one that stays
    assert (tmp_path / "2/array").read_text() == "2.replaced"
    assert (tmp_path / "1/array").read_text() == "1"


def test_set_aside_says_whether_there_was_one(tmp_path):
    folders(tmp_path, "1")
    assert retention.set_aside(tmp_path, 1) and not retention.set_aside(tmp_path, 2)
    assert names(tmp_path) == ["1.replaced"]


def test_quarantine_counts_up_and_a_disk_that_refuses_is_no_error(tmp_path, monkeypatch):
    for _ in range(2):
        folders(tmp_path, "1")
        retention.quarantine(tmp_path, 1)
    assert names(tmp_path) == ["1.corrupt-0", "1.corrupt-1"]

    def refuse(self, target):
        raise OSError(30, "Read-only file system")

    folders(tmp_path, "2")
    monkeypatch.setattr("pathlib.Path.rename", refuse)
    retention.quarantine(tmp_path, 2)
    assert retention.complete(tmp_path) == [2]
