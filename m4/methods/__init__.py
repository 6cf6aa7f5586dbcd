"""The published methods, a folder each; no folder imports another."""
