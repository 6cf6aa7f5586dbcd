"""Encoders: one `Stream` in, `Tokens` out."""
