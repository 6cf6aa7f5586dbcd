"""The published methods, one file each; no file imports a sibling."""
