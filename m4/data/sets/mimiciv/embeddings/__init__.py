"""Vectors of frozen encoders for MIMIC-IV's notes, X-rays and ECGs: written once, then read."""
