"""Your own tables, CSV or Parquet, through one declarative file.

    data = dict(name="tables", options=dict(file="my_tables.toml"))

Long files ([[events]]: one row per event, with your column names) and wide ones ([[rows]]: one row
per record; a number becomes an event with the column's name as its code and no time, a text cell
one with the code `column//text`) are read by the same language as MEDS: see `docs/data.md`.
A shipped example is `m4/data/sets/declared/support2.toml`.
"""

from m4.data.sets.declared.dataset import LICENCE, VERSION, WHERE, Declared  # noqa: F401

_DECLARED = Declared(meds=False)
resolved, spec, missing_files = _DECLARED.resolved, _DECLARED.spec, _DECLARED.missing_files
cohort, new = _DECLARED.cohort, _DECLARED.new
SCRATCH, ELSEWHERE = _DECLARED.SCRATCH, _DECLARED.ELSEWHERE
read_definition = _DECLARED.read_definition  # frames go by the names of its files
everyone = _DECLARED.everyone
