"""Data sets that a TOML or JSON file declares: the language, its reader, and shipped definitions.

`docs/data.md` describes the language. A definition in this folder is a data set by its own name.
"""
