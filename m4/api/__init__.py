"""The library: `m4.fit`, `m4.load` and what they return. The command line is built on it."""
