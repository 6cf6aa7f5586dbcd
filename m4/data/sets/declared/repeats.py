"""Which rows of a source came before: a record that was exported twice counts once."""

import numpy as np

from m4.data.sets.declared import arrow_files
from m4.data.sets.declared.definition import Source


class Repeats:
    """Remembers eight bytes a row."""

    def __init__(self):
        self._seen: dict[Source, np.ndarray] = {}  # sorted

    def new(self, table: arrow_files.Columns, source: Source, row_n: np.ndarray) -> np.ndarray:
        """bool[n]: whether the rows `row_n` of a batch are like none before them in the source.

        Wide rows are compared in every column, events in those that the source names.
        """
        named = (source.subject, source.time, source.code, source.value, source.text)
        names = [n for n in named if table.has(n)] if source.code else table.names()
        seen = self._seen.get(source, np.empty(0, np.int64))
        found, first = np.unique(table.digests(names, row_n), return_index=True)
        place = np.searchsorted(seen, found)
        fresh = np.ones(len(found), bool)
        fresh[place < len(seen)] = seen[place[place < len(seen)]] != found[place < len(seen)]
        self._seen[source] = np.insert(seen, place[fresh], found[fresh])
        out = np.zeros(len(row_n), bool)
        out[first[fresh]] = True
        return out
