"""What must hold of a method, a run and its data, asked of them: `python -m m4.audit --help`."""
