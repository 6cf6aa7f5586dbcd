"""Encoders whose weights come from a file."""
