"""Work in other processes: same results, same order, same errors, bounded memory."""

import pytest

from m4.data import workers
from m4.errors import DataError


def double(number):
    if number < 0:
        raise DataError("bad record")
    return 2 * number


def test_worker_processes_keep_the_order_and_the_error():
    many = [*range(workers.FEW + 20)]
    found = workers.ordered(double, [*many, -1], workers=2)
    assert [next(found) for _ in many] == [2 * n for n in many]
    with pytest.raises(DataError, match="bad record"):
        next(found)


def test_few_items_start_no_process():
    local = []
    assert list(workers.ordered(local.append, [1, 2], workers=2)) == [None, None]
    assert local == [1, 2]  # another process would have its own list
